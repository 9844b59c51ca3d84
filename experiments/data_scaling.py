"""Accuracy against the number of training pairs: heads on frozen features, and points of whole trainings.

    python ../shared/tools/smollm2.py DIR
    python experiments/data_scaling.py --model=DIR --data=../shared/data/vader_pairs/train.jsonl \
        --test=../shared/data/vader_pairs/test.jsonl --limit=0 --test_limit=0 --output=runs/data_scaling

The decoder computes the features of all pairs once, as in experiments/uncertainty.py, whose fit of heads is used: the
learning rate and the epoch of each head are chosen on the last --validation pairs, which are in no training set. For
each size and seed, that many of the other pairs are drawn; test pairs are only scored.

Prints the mean accuracy and its range over the seeds, and the 95 % bootstrap interval of the first seed over pairs;
writes scaling.svg. --full adds points of trainings of all weights, pairs:accuracy each, which are not run here.
"""

import argparse

import numpy as np
from uncertainty import RATES, Split, add_arguments, fit, read_pairs

from rmjax.core.plotting import draw_svg
from rmjax.metrics.bootstrap import Bootstrap

SIZES = (100, 200, 400, 800, 1600, 3200)


def accuracies(known: Split, validation: Split, test: Split, size: int, seeds: int) -> list[np.ndarray]:
    """Returns which test pairs are ordered rightly, bool [n], for each seed."""
    found = []
    for seed in range(seeds):
        chosen = np.random.default_rng(seed).permutation(len(known.comparisons))[:size]
        weights, losses = fit(known.take(chosen), validation, seed)
        found.append(test.difference @ weights[int(np.argmin(losses)), :, 0] > 0)
    return found


def plot(rows: list[tuple[int, float, float, float]], full: dict[int, float]) -> str:
    """Returns the figure of (pairs, mean, lowest, highest accuracy) of heads, and of whole trainings, as SVG."""
    sizes, mean, low, high = map(list, zip(*rows, strict=True))

    def draw(axes) -> None:
        axes.fill_between(sizes, low, high, alpha=0.25, linewidth=0)
        axes.plot(sizes, mean, "o-", label="head on frozen features")
        if full:
            axes.plot(list(full), list(full.values()), "s--", color="#d9822b", label="all weights")
        axes.set(xlabel="training pairs", ylabel="test accuracy", xscale="log")
        axes.legend()

    return draw_svg([draw], "data_scaling")


def main() -> None:
    """Fits the heads, prints the table, and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--validation", type=int, default=300, help="validation pairs")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--full", default="", help="trainings of all weights: pairs:accuracy, separated by commas")
    options = parser.parse_args()
    pairs, test = read_pairs(options)
    count = len(pairs.comparisons) - options.validation
    known, validation = pairs.take(range(count)), pairs.take(range(count, len(pairs.comparisons)))
    print(f"{count} training, {options.validation} validation and {len(test.comparisons)} test pairs; rates {RATES}")
    print(
        "| pairs | accuracy, mean over seeds | lowest to highest | 95 % interval of the first seed |\n|---|---|---|---|"
    )
    rows = []
    for size in (*(size for size in SIZES if size < count), count):
        right = accuracies(known, validation, test, size, options.seeds)
        values = [float(each.mean()) for each in right]
        low, high = Bootstrap(np.arange(len(right[0]))).ratio(right[0].astype(float), np.ones(len(right[0])))
        rows.append((size, float(np.mean(values)), min(values), max(values)))
        print(f"| {size:,} | {rows[-1][1]:.3f} | {rows[-1][2]:.3f} to {rows[-1][3]:.3f} | {low:.3f} to {high:.3f} |")
    full = {int(n): float(accuracy) for n, accuracy in (point.split(":") for point in options.full.split(",") if point)}
    (options.output / "scaling.svg").write_text(plot(rows, full))


if __name__ == "__main__":
    main()
