"""Benchmark of training the head alone on features: SmolLM2-135M-Instruct on vader_pairs, several rates and seeds.

    python ../shared/tools/smollm2.py DIR
    python experiments/bench_features.py --model=DIR --data=../shared/data/vader_pairs --limit=1200

Every run is a process of its own, `python -m rmjax.train`, with a new cache directory for all of them: the first one
computes the features, the others read them. Printed for each: the seconds until the features are there, those of the
training itself (compilation and validation included), those of the whole process, its peak memory, and the accuracy of
the last validation. Further flags (--config.…) are given to all runs.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent


def measure(flags: list[str], workdir: pathlib.Path, cache: pathlib.Path) -> str:
    """Returns the times, the peak memory and the accuracy of a run."""
    start = time.perf_counter()
    program = [sys.executable, "-m", "rmjax.train", f"--workdir={workdir}", *flags]
    environment = os.environ | {"RMJAX_CACHE": str(cache), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    process = subprocess.Popen(program, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    times: dict[str, float] = {}  # of the first line that begins with each word
    for line in process.stdout:
        times.setdefault(line.partition(":")[0], time.perf_counter() - start)
    _, status, usage = os.wait4(process.pid, 0)
    end = time.perf_counter() - start
    if status:
        sys.exit(f"{workdir}: the run failed")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    accuracy = [line["accuracy"] for line in lines if line["split"] == "validation"]
    before, training = times["model"] - times["train"], times["done"] - times["model"]
    return (
        f"model and features {before:6.1f} s, training {training:5.1f} s, "
        f"process {end:6.1f} s, peak memory {usage.ru_maxrss / 2**20:.2f} GiB, accuracy {accuracy[-1]:.3f} "
        f"(best {max(accuracy):.3f})"
    )


def size(directory: pathlib.Path) -> float:
    """Returns the size of the files of a directory in MB."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 1e6


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory of the model")
    parser.add_argument("--data", required=True, type=pathlib.Path, help="directory with train.jsonl and test.jsonl")
    parser.add_argument("--limit", type=int, default=0, help="training pairs; 0: all")
    parser.add_argument("--rates", default="0.001,0.01", help="learning rates")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each learning rate")
    options, more = parser.parse_known_args()
    flags = [
        "--config=configs/smollm2.py",
        f"--config.model.path={pathlib.Path(options.model).absolute()}",
        f"--config.data.train={options.data.absolute()}/train.jsonl",
        f"--config.data.validation={options.data.absolute()}/test.jsonl",
        f"--config.data.train_limit={options.limit}",
        "--config.data.validation_limit=400",
        "--config.train.trainable=head",
        "--config.train.epochs=10.0",
        *more,
    ]
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        for rate in options.rates.split(","):
            for seed in range(options.seeds):
                run = root / f"{rate}-{seed}"
                own = [f"--config.optimizer.learning_rate={rate}", f"--config.train.seed={seed}"]
                print(f"rate {rate}, seed {seed}: {measure([*flags, *own], run, root / 'cache')}", flush=True)
        print(f"features {size(root / 'cache' / 'features'):.1f} MB, workdir {size(run):.1f} MB", flush=True)
        program = [sys.executable, "-m", "rmjax.export", f"--workdir={run}", f"--output={root / 'artifact'}"]
        subprocess.run(program, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        print(f"artifact {size(root / 'artifact'):.1f} MB")


if __name__ == "__main__":
    main()
