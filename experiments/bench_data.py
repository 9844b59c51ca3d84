"""Benchmark of the batch plan and of the search for duplicates, over generated comparisons of about 500 tokens.

    python experiments/bench_data.py --plan=100000,400000,1000000 --curation=20000,100000

Prints the CPU seconds of each part and the peak memory of the process; everything runs on one core. The plan: choosing
the row length, packing all steps of an epoch, and reading back their rows as the data loader does. Curation: signatures
of the comparisons, which take time in proportion to the text; then the groups of near duplicates, and the overlap with
an evaluation set of 3,000 prompts. The generated words have the frequencies of English (Zipf); a tenth of the
comparisons are edited copies of others.
"""

import argparse
import os
import resource
import time

import numpy as np

from rmjax.data.curation.duplicates import match, near_duplicates, signatures
from rmjax.data.packing.plan import choose_row_length, short_row_length, training_plan
from rmjax.data.schema import Comparison, Edge

EVALUATION_SET = 3000  # comparisons
PROMPT, RESPONSE = 80, 150  # words; about 500 unique tokens a comparison


def lap(times: dict[str, float], name: str, start: float) -> float:
    """Adds the CPU time since `start` to `times` and returns the time now."""
    now = time.process_time()
    times[name] = now - start
    return now


def report(what: str, times: dict[str, float]) -> None:
    """Prints the times of the parts."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{what}: {', '.join(f'{name} {t:.2f} s' for name, t in times.items())}; peak memory {peak:.2f} GiB", flush=True
    )


def measure_plan(n: int, batch_size: int) -> None:
    """Prints the times of the batch plan of an epoch over n comparisons."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(450), 0.6, n), 20, 2000).astype(np.int64)
    times: dict[str, float] = {}
    start = time.process_time()
    row_length = choose_row_length(lengths, batch_size, 8, short_microbatches=True)
    start = lap(times, "row length", start)
    plan = training_plan(
        lengths,
        np.full(n, 2),
        np.ones(n, np.int64),
        batch_size=batch_size,
        steps=0,
        epochs=1.0,
        row_length=row_length,
        short_length=short_row_length(row_length),
        microbatch_rows=8,
        seed=0,
    )
    fill = plan.sizes.fill
    start = lap(times, "packing", start)
    for step in range(plan.num_steps):
        plan.rows(step)
    lap(times, "rows of all steps", start)
    report(f"plan of {n:,} comparisons, batches of {batch_size:,}, rows of {row_length:,} ({fill:.0%} filled)", times)


def make_comparisons(n: int) -> list[Comparison]:
    """Returns n generated pairs; a tenth of them are copies of others with one word changed."""
    rng = np.random.default_rng(0)
    vocabulary = np.array(["".join(rng.choice(list("etaoinshrdlu"), rng.integers(2, 10))) for _ in range(30_000)])
    shares = 1 / (np.arange(len(vocabulary)) + 5)
    words = vocabulary[rng.choice(len(vocabulary), (n, PROMPT + 2 * RESPONSE), p=shares / shares.sum())]
    copies = rng.choice(n, n // 10, replace=False)
    words[copies] = words[rng.integers(0, n, len(copies))]
    words[copies, 5] = "changed"
    comparisons = []
    for i, row in enumerate(words):
        prompt = {"role": "user", "content": " ".join(row[:PROMPT])}
        texts = (" ".join(row[PROMPT : PROMPT + RESPONSE]), " ".join(row[PROMPT + RESPONSE :]))
        whole = tuple([prompt, {"role": "assistant", "content": text}] for text in texts)
        comparisons.append(Comparison(whole, True, (Edge(0, 1),), None, f"generated:{i + 1}", {}))
    return comparisons


def measure_curation(n: int) -> None:
    """Prints the times of the search for duplicates among n comparisons."""
    comparisons, times = make_comparisons(n), {}
    start = time.process_time()
    found = signatures(comparisons)
    start = lap(times, "signatures", start)
    groups = near_duplicates(found, 0.7)
    start = lap(times, "near duplicates", start)
    overlap = match(found, found[:EVALUATION_SET], 0.7)
    lap(times, f"overlap with {min(n, EVALUATION_SET):,}", start)
    duplicates, prompts = int((groups != np.arange(n)).sum()), int((overlap.similar_prompt >= 0).sum())
    size = f"{found.nbytes / 2**20:.0f} MiB of signatures"
    report(f"curation of {n:,} comparisons ({duplicates:,} near duplicates, {prompts:,} overlapping, {size})", times)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", default="100000,400000,1000000", help="numbers of comparisons, separated by commas")
    parser.add_argument("--batch", default="64,512,4096", help="comparisons per batch, separated by commas")
    parser.add_argument("--curation", default="20000,100000", help="numbers of comparisons, separated by commas")
    flags = parser.parse_args()
    print(f"{os.cpu_count()} cores, one used; NumPy {np.__version__}")
    for n in filter(None, flags.plan.split(",")):
        for batch_size in flags.batch.split(","):
            measure_plan(int(n), int(batch_size))
    for n in filter(None, flags.curation.split(",")):
        measure_curation(int(n))


if __name__ == "__main__":
    main()
