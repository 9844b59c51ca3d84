"""A whole training beside TRL: the same pairs in the same order, the same start, optimizer and learning rates.

    python -m pip install -e '.[bench]'
    python ../shared/tools/smollm2.py DIR
    python experiments/compare_training.py --model=DIR --data=../shared/data/vader_pairs [--lora=16 --seeds=0,1,2]

For each seed the first --pairs training pairs are put into an order, and both `rmjax.train` and TRL's `RewardTrainer`
train on them for one epoch, then predict the first --test pairs of the test file. Both start from a head of zeros and
take batches of 16 pairs in float32, AdamW without weight decay, gradients clipped to a norm of 1, and a cosine schedule
without warm-up. Both get the same tokens. Other options of TRL are its defaults: gradient checkpointing, padding.

Prints, for each seed, both accuracies, the greatest and the median difference of the losses of a step, and the median
time of a step; writes the curves to --output as CSV and SVG.
"""

import argparse
import csv
import os
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np

import rmjax
from rmjax.core import config as configs
from rmjax.core import program
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer

BATCH = 16


def write_order(source: pathlib.Path, target: pathlib.Path, pairs: int, seed: int) -> None:
    """Writes the first lines of a JSONL file in the order of a seed."""
    lines = source.read_text().splitlines()[:pairs]
    target.write_text("\n".join(lines[i] for i in np.random.default_rng(seed).permutation(len(lines))) + "\n")


def train_rmjax(options: argparse.Namespace, files: list[pathlib.Path], directory: pathlib.Path, seed: int) -> dict:
    """Returns the losses of the steps, the accuracy after the last one, and the median seconds of a step."""
    config = configs.fine_tuning()
    config.model.path, config.lora.rank = options.model, options.lora
    config.data.update(train=(str(files[0]),), validation=(str(files[1]),), shuffle=False)
    config.optimizer.update(learning_rate=options.learning_rate, schedule="cosine", warmup_steps=0)
    config.train.update(batch_size=BATCH, seed=seed)
    config.evaluation.every = 10**6  # after the last step only
    run = rmjax.train(config, workdir=directory / f"workdir-{seed}")
    steps = [line for line in run.history if line["split"] == "train"]
    accuracy = [line["accuracy"] for line in run.history if line["split"] == "validation"][-1]
    return {
        "losses": [line["loss"] for line in steps],
        "accuracy": accuracy,
        "seconds": statistics.median(line["step_time"] for line in steps),
    }


def train_trl(options: argparse.Namespace, files: list[pathlib.Path], directory: pathlib.Path, seed: int) -> dict:
    """Returns what `train_rmjax` returns, of TRL."""
    import datasets
    import torch
    import transformers
    import trl

    transformers.logging.set_verbosity_error()  # it would warn about the missing head
    tokenizer = Tokenizer.load(options.model)
    tables = []
    for path, split in zip(files, ("train", "validation"), strict=True):
        reading = DatasetOptions(max_length=1024, strings="chat")
        dataset, _ = load_dataset(str(path), tokenizer, reading, split=split, progress=False)
        trees = [dataset.tree(i) for i in range(len(dataset))]
        columns = {
            name: [np.concatenate([tree.prefix, tree.branches[k]]) for tree in trees]
            for k, name in enumerate(("chosen_ids", "rejected_ids"))
        }
        tables.append(datasets.Dataset.from_dict(columns))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=1, dtype=torch.float32
    )
    model.score.weight.data.zero_()
    model.config.pad_token_id = None

    class InOrder(trl.RewardTrainer):
        """A trainer that takes the pairs in the order of the table."""

        def _get_train_sampler(self, dataset=None):
            return torch.utils.data.SequentialSampler(dataset if dataset is not None else self.train_dataset)

    times: list[float] = []

    class Times(transformers.TrainerCallback):
        """Notes when steps begin and end."""

        def on_step_begin(self, *_, **__):
            times.append(-time.perf_counter())

        def on_step_end(self, *_, **__):
            times[-1] += time.perf_counter()

    arguments = trl.RewardConfig(
        str(directory / f"trl-{seed}"),
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=10,  # a divisor of the number of test pairs
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        bf16=False,
        seed=seed,
    )
    adapters = {}
    if options.lora:
        import peft

        adapters["peft_config"] = peft.LoraConfig(
            r=options.lora, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS"
        )
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=tables[0],
        eval_dataset=tables[1],
        # The classifier reads the last token that is not padding, so the pad token must not be the EOS token.
        processing_class=tokenizer.with_separate_pad().base,
        callbacks=[Times()],
        **adapters,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    accuracy = trainer.evaluate()["eval_accuracy"]  # the mean of the accuracies of batches
    return {"losses": losses, "accuracy": accuracy, "seconds": statistics.median(times)}


def write_curves(path: pathlib.Path, results: dict[int, tuple[dict, dict]]) -> None:
    """Writes the losses of all seeds as CSV and as a figure."""
    from matplotlib import figure

    path.mkdir(parents=True, exist_ok=True)
    with (path / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("seed", "step", "rmjax", "trl"))
        for seed, (ours, theirs) in results.items():
            for step, losses in enumerate(zip(ours["losses"], theirs["losses"], strict=True), 1):
                writer.writerow((seed, step, *losses))
    plot = figure.Figure(figsize=(7, 2.5 * len(results)), layout="constrained")
    panels = plot.subplots(len(results), squeeze=False).ravel()
    for axes, (seed, (ours, theirs)) in zip(panels, results.items(), strict=True):
        axes.plot(ours["losses"], label=f"rmjax, accuracy {ours['accuracy']:.3f}")
        axes.plot(theirs["losses"], "--", label=f"TRL, accuracy {theirs['accuracy']:.3f}")
        axes.set(xlabel="step", ylabel="training loss", title=f"seed {seed}")
        axes.legend()
    plot.savefig(path / "curves.svg")


def main() -> None:
    """Trains with both for each seed and prints the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face directory of a causal LM")
    parser.add_argument("--data", required=True, help="directory with train.jsonl and test.jsonl")
    parser.add_argument("--pairs", type=int, default=1200)
    parser.add_argument("--test", type=int, default=400)
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0: all weights are trained")
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas")
    parser.add_argument("--output", default="runs/compare_training")
    options = parser.parse_args()
    import trl

    print(
        f"jax {jax.__version__}, trl {trl.__version__}, {os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}; "
        f"{options.pairs} pairs, {'LoRA of rank ' + str(options.lora) if options.lora else 'all weights'}, float32"
    )
    results: dict[int, tuple[dict, dict]] = {}
    with tempfile.TemporaryDirectory(prefix="compare-") as temporary:
        directory = pathlib.Path(temporary)
        test = directory / "test.jsonl"
        test.write_text("\n".join((pathlib.Path(options.data) / "test.jsonl").read_text().splitlines()[: options.test]))
        for seed in map(int, options.seeds.split(",")):
            train = directory / f"train-{seed}.jsonl"
            write_order(pathlib.Path(options.data) / "train.jsonl", train, options.pairs, seed)
            ours = train_rmjax(options, [train, test], directory, seed)
            theirs = train_trl(options, [train, test], directory, seed)
            results[seed] = ours, theirs
            differences = np.abs(np.subtract(ours["losses"], theirs["losses"]))
            print(
                f"seed {seed}: accuracy {ours['accuracy']:.4f} and {theirs['accuracy']:.4f} (TRL); losses differ by "
                f"{statistics.median(differences):.1e} (median), at most {differences.max():.1e}; a step "
                f"takes {ours['seconds']:.2f} s and {theirs['seconds']:.2f} s",
                flush=True,
            )
            write_curves(pathlib.Path(options.output), results)


if __name__ == "__main__":
    program.use_huge_pages()
    main()
