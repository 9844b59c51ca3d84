"""Benchmark of large sources: tokenization, resident memory, restart from the cache, and the batch plan.

    python experiments/bench_large.py --tokenizer=DIR --comparisons=1000000 --format=jsonl --dir=/tmp/large

Writes invented comparisons (chat messages with words of this repository's documentation, about 500 unique tokens each),
loads them twice, and makes the plan of one epoch. Memory is sampled five times a second: the resident memory of this
process without files that it maps (the cache), and that of its worker processes.
"""

import argparse
import json
import os
import pathlib
import threading
import time
from collections.abc import Iterator

import numpy as np

from rmjax.data.packing.plan import choose_row_length, training_plan
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def records(count: int) -> Iterator[dict]:
    """Yields invented comparisons; prompts have a median of 150 words, responses of 75."""
    rng = np.random.default_rng(0)
    text = " ".join(path.read_text() for path in sorted(DOCS.glob("*.md")))
    words = [word for word in text.split() if "<" not in word]  # no special tokens
    for _ in range(count):
        sizes = np.minimum(rng.lognormal(np.log([110, 55, 55]), 0.6).astype(int) + 4, 600)
        starts = rng.integers(0, len(words) - 600, 3)
        texts = [" ".join(words[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
        message = lambda role, text: [{"role": role, "content": text}]
        yield {
            "prompt": message("user", texts[0]),
            "chosen": message("assistant", texts[1]),
            "rejected": message("assistant", texts[2]),
        }


def write(path: pathlib.Path, count: int) -> None:
    """Writes the records as JSONL or Parquet."""
    if path.suffix == ".jsonl":
        with open(path, "w") as file:
            file.writelines(json.dumps(record) + "\n" for record in records(count))
        return
    import pyarrow
    import pyarrow.parquet

    found, writer = records(count), None
    while batch := [record for record, _ in zip(found, range(10_000), strict=False)]:
        table = pyarrow.Table.from_pylist(batch)
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


class Memory:
    """Samples the largest resident memory, in MiB, of this process (without mapped files) and of its children."""

    def __init__(self):
        self.own = self.children = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.own = max(self.own, anonymous("self"))
            children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            self.children = max(self.children, sum(map(anonymous, children)))
            time.sleep(0.2)


def anonymous(process: str) -> float:
    """Returns the resident memory of a process without mapped files, in MiB (Linux)."""
    try:
        status = pathlib.Path(f"/proc/{process}/status").read_text()
    except OSError:  # ended
        return 0.0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024


def main() -> None:
    """Runs the benchmark and prints its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="Hugging Face directory or hub name")
    parser.add_argument("--comparisons", type=int, default=1_000_000)
    parser.add_argument("--format", default="jsonl", choices=["jsonl", "parquet"])
    parser.add_argument("--dir", required=True, help="directory for the data and the cache; kept")
    parser.add_argument("--batch", type=int, default=128, help="comparisons per step")
    flags = parser.parse_args()
    directory = pathlib.Path(flags.dir)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{flags.comparisons}.{flags.format}"
    if not path.exists():
        write(path, flags.comparisons)
    print(f"{path}: {path.stat().st_size / 2**30:.2f} GiB; {os.cpu_count()} cores", flush=True)
    tokenizer, memory = Tokenizer.load(flags.tokenizer), Memory()
    for what in ("tokenization", "restart from the cache"):
        start = time.perf_counter()
        dataset, report = load_dataset(
            str(path), tokenizer, DatasetOptions(max_length=4096), split="train", cache_dir=directory / "cache"
        )
        seconds = time.perf_counter() - start
        print(
            f"{what}: {seconds:.1f} s, {len(dataset) / seconds:,.0f} comparisons/s, {report.tokens / seconds:,.0f} "
            f"tokens/s; median {int(np.median(dataset.lengths))} unique tokens; memory {memory.own:,.0f} MiB, workers "
            f"{memory.children:,.0f} MiB",
            flush=True,
        )
    start = time.perf_counter()
    row_length = choose_row_length(dataset.lengths, flags.batch, 8)
    plan = training_plan(
        dataset.lengths,
        dataset.readout_counts,
        dataset.edge_counts,
        batch_size=flags.batch,
        steps=0,
        epochs=1.0,
        row_length=row_length,
        microbatch_rows=8,
        seed=0,
    )
    fill = plan.sizes.fill
    print(
        f"plan of {plan.num_steps:,} steps: {time.perf_counter() - start:.1f} s, rows of {row_length} tokens filled "
        f"{fill:.1%}; memory {memory.own:,.0f} MiB"
    )
    start = time.perf_counter()
    dataset.fingerprint()
    print(f"fingerprint of all tokens: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
