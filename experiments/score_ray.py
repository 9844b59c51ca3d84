"""Offline scoring of many records on a cluster: a Ray Data pipeline with a pool of workers that each hold the model.

    python -m pip install 'rmjax[ray]'
    python experiments/score_ray.py --model=PATH --input=FILE_OR_DIRECTORY --output=DIRECTORY --workers=8 --gpus=1

Parquet to Parquet, JSON lines (also .gz) to JSON lines; paths and s3:// or gs:// URLs, by Ray's own readers and
writers. Each record keeps its fields and gets `rewards`, or `error` if it cannot be scored, as with rmjax.score; the
order is that of the input. On a cluster, run it with `ray job submit`, or give --address; otherwise Ray starts on
this machine. --workers=MIN,MAX lets Ray scale the pool.

A worker that dies is started again and Ray gives it its block of records again; a block is passed on only as a whole,
and a file is written under a name that its number determines, so every record is written once. At the end the records
of input and output are counted, and _SUCCESS is written. A run that was ended itself (no _SUCCESS) is not continued:
remove its output. For runs of days, give each part of the input a run of its own, or use rmjax.score --shard in a job
array, which continues.
"""

import argparse
import json
import math
import os
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.fs
import ray
from ray.data.datasource import BlockBasedFileDatasink

from rmjax.core.errors import InputError

LINE = "line"  # the column of a JSON line that is to be written
_OTHER_CPUS = 2  # for reading and writing


class Scorer:
    """A worker: scores blocks of records with a model of its own.

    Args:
      path, options: of `rmjax.load`.
      record_format: of the records, as of `Model.score_batch`.
      lines: whether blocks have JSON lines, in the column `text`, instead of records.
    """

    def __init__(self, path, options, record_format, lines):
        import rmjax  # in the worker's process, after Ray has chosen its devices

        self._model = rmjax.load(path, **options)
        self._format, self._lines = record_format, lines
        print(f"worker {os.getpid()} has loaded {path}", flush=True)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns the records with the columns `rewards` and `error`, or as JSON lines, in the column `line`."""
        return self._score_lines(table) if self._lines else self._score_table(table)

    def _score_table(self, table):
        kept = table.drop_columns([name for name in ("rewards", "error") if name in table.column_names])
        results = self._score(kept.to_pylist())
        attributes = self._model.attributes
        row = pa.float32() if len(attributes) == 1 else pa.struct([(name, pa.float32()) for name in attributes])
        rewards = pa.array([result.get("rewards") for result in results], pa.list_(row))
        kept = kept.append_column("rewards", rewards)
        return kept.append_column("error", pa.array([result.get("error") for result in results], pa.string()))

    def _score_lines(self, table):
        records = [_parse(text) for text in table["text"].to_pylist()]
        valid = [record for record in records if isinstance(record, dict)]
        scored = iter(self._score(valid))
        lines = [record | next(scored) if isinstance(record, dict) else {"error": record} for record in records]
        return pa.table({LINE: pa.array([json.dumps(line, ensure_ascii=False) for line in lines], pa.string())})

    def _score(self, records):
        """Returns {"rewards": [...]} or {"error": ...} of each record."""
        found = self._model.score_batch(records, format=self._format, errors="return")
        return [
            {"error": str(rewards)} if isinstance(rewards, InputError) else {"rewards": self._listed(rewards)}
            for rewards in found
        ]

    def _listed(self, rewards: np.ndarray):
        if rewards.ndim == 1:
            return rewards.tolist()
        return [dict(zip(self._model.attributes, row, strict=True)) for row in rewards.tolist()]


class JsonLines(BlockBasedFileDatasink):
    """Files of the column `line`."""

    def write_block_to_file(self, block, file):
        """Writes a block to its file."""
        file.write("".join(text + "\n" for text in block.to_arrow()[LINE].to_pylist()).encode())


def _parse(text):
    """Returns the record of a line, or what is wrong with the line."""
    try:
        record = json.loads(text)
    except ValueError as error:
        return f"not valid JSON ({error}): {text:.80}"
    return record if isinstance(record, dict) else f"expected an object, found {text:.80}"


def main():
    """Scores --input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="what rmjax.load takes; workers must be able to read it")
    parser.add_argument("--input", required=True, nargs="+", help="files or directories")
    parser.add_argument("--output", required=True, help="directory that is new or empty")
    parser.add_argument("--input_format", choices=("parquet", "jsonl"), help="default: by the names in --input")
    parser.add_argument("--format", default="auto", help="format of the records, as of rmjax.score")
    parser.add_argument("--workers", default="2", help="N, or MIN,MAX")
    parser.add_argument("--cpus", type=float, default=1, help="of each worker")
    parser.add_argument("--gpus", type=float, default=0, help="of each worker")
    parser.add_argument("--tpus", type=float, default=0, help="chips of each worker")
    parser.add_argument("--block", type=int, default=1024, help="records that a worker is given at once")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--max_length", type=int, default=0, help="tokens; 0: the model's")
    address = os.environ.get("RAY_ADDRESS")  # set by `ray job submit`
    parser.add_argument("--address", default=address, help="of a Ray cluster; default: $RAY_ADDRESS, or Ray is started")
    arguments = parser.parse_args()

    parquet = (arguments.input_format or _format(arguments.input)) == "parquet"
    system, output = _open_empty(arguments.output)
    least, most = _sizes(arguments.workers)
    _start(arguments.address, most * arguments.cpus)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    context.execution_options.preserve_order = True

    started = time.monotonic()
    read = ray.data.read_parquet if parquet else ray.data.read_text
    source = read(arguments.input)
    options = {"dtype": arguments.dtype, "max_length": arguments.max_length}
    resources = {"resources": {"TPU": arguments.tpus}} if arguments.tpus else {}
    scored = source.repartition(target_num_rows_per_block=arguments.block).map_batches(
        Scorer,
        fn_constructor_args=(arguments.model, options, arguments.format, not parquet),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=arguments.cpus,
        num_gpus=arguments.gpus,
        **resources,
    )
    if parquet:
        scored.write_parquet(arguments.output)
    else:
        scored.write_datasink(JsonLines(arguments.output, file_format="jsonl"))

    counts = {"input": source.count(), **_count(arguments.output, parquet)}
    if counts["input"] != counts["output"]:
        raise InputError(f"{arguments.output}: {counts['output']} records of {counts['input']}; the input has changed")
    with system.open_output_stream(f"{output}/_SUCCESS") as file:
        file.write(json.dumps({"model": arguments.model, "input": arguments.input, **counts}).encode())
    seconds = time.monotonic() - started
    failed = counts["errors"]
    print(f"{arguments.output}: {counts['output'] - failed:,} of {counts['output']:,} records scored, {seconds:.1f} s")
    if failed:
        raise InputError(f"{failed:,} records could not be scored; see `error` in the output")


def _format(paths):
    names = [path for path in paths if path.endswith((".parquet", ".jsonl", ".jsonl.gz"))]
    if len(names) != len(paths) or len(kinds := {name.endswith(".parquet") for name in names}) > 1:
        raise InputError(f"--input={' '.join(paths)}: cannot tell the format by the names; give --input_format")
    return "parquet" if kinds == {True} else "jsonl"


def _open_empty(path):
    """Returns the file system and the path in it; raises InputError if the directory is not empty."""
    system, name = pyarrow.fs.FileSystem.from_uri(path if "://" in path else os.path.abspath(path))
    entries = system.get_file_info(pyarrow.fs.FileSelector(name, allow_not_found=True))
    if any(entry.base_name == "_SUCCESS" for entry in entries):
        raise InputError(f"--output={path} holds the scores of a finished run; choose another directory")
    if entries:
        raise InputError(f"--output={path} is not empty (a run that did not finish?); remove it or choose another")
    return system, name


def _sizes(workers):
    try:
        sizes = [int(size) for size in workers.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2) or not 0 < sizes[0] <= sizes[-1]:
        raise InputError(f"--workers={workers}; expected N, or MIN,MAX")
    return sizes[0], sizes[-1]


def _start(address, cpus):
    """Connects to the cluster at `address`, or starts Ray on this machine with `cpus` and two more."""
    if not address:  # not the default, which would join what another run has started for itself
        ray.init(address="local", num_cpus=math.ceil(cpus) + _OTHER_CPUS, include_dashboard=False)
        return
    try:
        ray.init(address=address)
    except ConnectionError as error:
        raise InputError(f"--address={address}: no Ray cluster there ({error})") from error
    if (found := ray.cluster_resources().get("CPU", 0)) <= cpus:
        raise InputError(
            f"the workers would take {cpus:g} of the cluster's {found:g} CPUs, and reading and writing need some; use "
            "fewer --workers or --cpus"
        )


def _count(path, parquet):
    """Returns the numbers of records and of errors in the output."""
    if parquet:
        data = ray.data.read_parquet(path).select_columns(["error"])
        failed = lambda table: len(table) - table["error"].null_count
    else:
        data = ray.data.read_text(path)
        failed = lambda table: sum("rewards" not in json.loads(text) for text in table["text"].to_pylist())
    count = lambda table: {"output": np.array([len(table)]), "errors": np.array([failed(table)])}
    counts = data.map_batches(count, batch_format="pyarrow", batch_size=None).take_all()
    return {name: int(sum(row[name] for row in counts)) for name in ("output", "errors")}


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except (ray.exceptions.RayError, OSError, pa.ArrowException) as error:
        lines = [type(error).__name__, *str(error).split("\n")]
        last = [line.strip() for line in lines if line.strip()][-1]  # of a traceback, what was raised
        sys.exit(f"error: {last.removeprefix('rmjax.core.errors.InputError: ')}")
