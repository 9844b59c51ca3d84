"""Accuracy, calibration and uncertainty of heads on frozen features: one head, several, Laplace, weight average.

    python ../shared/tools/smollm2.py DIR
    python experiments/uncertainty.py --model=DIR --data=../shared/data/vader_pairs/train.jsonl \
        --test=../shared/data/vader_pairs/test.jsonl --output=runs/uncertainty --limit=1200

The last fifth of the training data is held out: it selects checkpoints, and the Laplace approximation and temperature
are fitted to it. `one` is a head; `8 heads` are trained together with bootstrap weights; `laplace` is `one` calibrated;
`warm` is the weight average of three heads with other seeds and learning rates; `ensemble` is these three together. The
table has 95 % bootstrap intervals over prompts. error_auc_std is the AUROC of the standard deviations as a predictor of
wrongly ordered pairs, error_auc_margin that of the negated margin.
"""

import argparse
import gzip
import json
import pathlib

import rmjax

MEMBERS = ((0, 1e-2), (1, 2e-2), (2, 5e-3))  # seed and learning rate of the models that are averaged
METRICS = ("accuracy", "loss", "calibration_error")
UNCERTAINTY = (
    *("error_auc_std", "error_auc_margin", "confident_accuracy", "unsure_accuracy"),
    *("bound_calibration_lower", "bound_calibration_upper"),
)


def read(path: pathlib.Path, limit: int) -> list[dict]:
    """Returns the records of a JSONL file, which may be compressed."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return records[:limit] if limit else records


def train(options: argparse.Namespace, train, held, name: str, seed: int, rate: float, members: int = 1) -> str:
    """Trains heads on the features of the model and returns the path of their artifact."""
    config = rmjax.configs.fine_tuning()
    config.model.path, config.model.head_members = options.model, members
    config.train.update(trainable="head", epochs=float(options.epochs), steps=0, batch_size=16, seed=seed)
    config.optimizer.update(learning_rate=rate, warmup_steps=0)
    config.data.max_length = options.max_length
    run = rmjax.train(config, train=train, validation=held, workdir=options.output / f"run-{name}")
    artifact = options.output / name
    rmjax.load(run).export(artifact)
    return str(artifact)


def cell(metrics: dict[str, float], name: str) -> str:
    """Returns a metric with its interval."""
    if name not in metrics:
        return "-"
    bounds = [metrics.get(f"{name}_{end}") for end in ("low", "high")]
    return f"{metrics[name]:.3f}" + ("" if None in bounds else f" ({bounds[0]:.3f}-{bounds[1]:.3f})")


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory of the language model")
    parser.add_argument("--data", required=True, type=pathlib.Path, help="training pairs")
    parser.add_argument("--test", required=True, type=pathlib.Path, help="test pairs")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="new directory of runs and artifacts")
    parser.add_argument("--limit", type=int, default=0, help="training and test pairs each; 0: all")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training data")
    parser.add_argument("--max_length", type=int, default=512, help="tokens; longer pairs are left out")
    options = parser.parse_args()
    records, test = read(options.data, options.limit), read(options.test, options.limit)
    training, held = records[: len(records) * 4 // 5], records[len(records) * 4 // 5 :]
    single = [train(options, training, held, f"one-{seed}", seed, rate) for seed, rate in MEMBERS]
    models = {"one": single[0], "8 heads": train(options, training, held, "heads", 0, MEMBERS[0][1], members=8)}
    models["laplace"] = str(options.output / "laplace")
    rmjax.calibrate(single[0], held, models["laplace"], laplace=True)
    models["warm"] = str(options.output / "warm")
    rmjax.average(single, models["warm"])
    models["ensemble"] = ",".join(single)
    print("| model | " + " | ".join((*METRICS, *UNCERTAINTY)) + " |")
    print("|---" * (1 + len(METRICS) + len(UNCERTAINTY)) + "|")
    for name, path in models.items():
        metrics = rmjax.load(path).evaluate(test).metrics
        cells = [cell(metrics, metric) for metric in METRICS]
        cells += [cell(metrics, f"uncertainty/{metric}") for metric in UNCERTAINTY]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
