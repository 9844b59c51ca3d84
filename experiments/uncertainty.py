"""Accuracy, calibration and uncertainty of heads on frozen features: one head, several, Laplace, weight average.

    python ../shared/tools/smollm2.py DIR
    python experiments/uncertainty.py --model=DIR --data=../shared/data/vader_pairs/train.jsonl \
        --test=../shared/data/vader_pairs/test.jsonl --output=runs/uncertainty

The decoder computes the features of all pairs once; they are kept in --output, and a second call reuses them. The last
fifth of the training pairs are the validation pairs: they choose the learning rate and the epoch of each head, and the
temperature is fitted to them. Test pairs are only scored.

`one` is a head. `8 heads` are trained together, with the bootstrap weights of `config.objective.member_weights`.
`laplace` is `one` with a Laplace approximation from the validation pairs, as `rmjax.calibrate --laplace` makes it,
`laplace, training` from the training pairs; `… difference` takes the standard deviation of the difference of the two
rewards in place of the sum of theirs. `warm` is the weight average of three heads of other seeds and learning rates;
`ensemble` is these three together.

A cell has the metric of the first seed, its 95 % bootstrap interval over prompts, and the smallest and the largest
value over the seeds. error_auc_std is the AUROC of the standard deviations as a predictor of wrongly ordered pairs,
error_auc_margin that of the negated margin.

Axis letters: n pairs, E edges, D features, K members, L learning rates.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rmjax
from rmjax.core.mesh import make_mesh
from rmjax.core.progress import progress_bar
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons
from rmjax.data.schema import Comparison
from rmjax.evaluation import laplace
from rmjax.evaluation.pipeline import RewardPipeline
from rmjax.evaluation.scores import clusters, prompt_text
from rmjax.evaluation.scoring import Scorer
from rmjax.metrics.bootstrap import Bootstrap
from rmjax.metrics.calibration import fit_temperature
from rmjax.metrics.edges import EdgeTable, edge_table
from rmjax.metrics.pairs import pair_metrics
from rmjax.metrics.uncertainty import uncertainty_metrics
from rmjax.models import loading
from rmjax.training.datasets import load_tokenizer
from rmjax.training.members import Members

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
BATCH, EPOCHS, MEMBERS, AVERAGED, CHUNK = 16, 20, 8, 3, 64
COLUMNS = ("accuracy", "loss", "loss after", "calibration_error", "calibration_error after")
UNCERTAINTY = ("error_auc_std", "error_auc_margin", "confident_accuracy", "unsure_accuracy")


@dataclasses.dataclass(frozen=True)
class Split:
    """Pairs with their features [n, 2, D], the better response first."""

    comparisons: list[Comparison]
    features: np.ndarray

    def take(self, rows: Sequence[int] | np.ndarray) -> "Split":
        """Returns the pairs with these indices."""
        return Split([self.comparisons[i] for i in rows], self.features[rows])

    @property
    def difference(self) -> np.ndarray:
        """x_chosen - x_rejected, float64 [n, D]."""
        return self.features[:, 0] - self.features[:, 1]

    def table(self, rewards: np.ndarray) -> EdgeTable:
        """Returns the edges with rewards [n, 2]."""
        return edge_table(list(rewards), [one.edges for one in self.comparisons])


@dataclasses.dataclass(frozen=True)
class Scored:
    """Rewards of validation and test pairs, [n, 2], and the standard deviations of the test rewards, if known."""

    validation: np.ndarray
    test: np.ndarray
    std: np.ndarray | None = None


def load_decoder(options: argparse.Namespace) -> RewardPipeline:
    """Returns the model with its tokenizer; its head is new and not used."""
    config = rmjax.configs.fine_tuning()
    config.model.path = options.model
    tokenizer, mesh = load_tokenizer(config), make_mesh()
    model = loading.make_model(config.model, len(tokenizer))
    with jax.set_mesh(mesh):
        params = loading.start_params(config, model, mesh)
    scorer = Scorer(model, params, mesh, options.max_length, rows=1)
    return RewardPipeline(scorer, tokenizer, options.max_length, ReadOptions(strings="chat"))


def read(options: argparse.Namespace, path: pathlib.Path, limit: int, pipelines: list[RewardPipeline]) -> Split:
    """Returns the first pairs of a file, without those that are too long.

    Features are kept after each chunk: a run that is ended, or repeated with a larger limit, computes what is missing.

    Args:
      pipelines: gets the model when features are computed.
    """
    comparisons, _ = read_comparisons([str(path)], ReadOptions(strings="chat", limit=limit))
    key = f"{pathlib.Path(options.model).resolve()}\0{options.max_length}\0".encode() + path.read_bytes()
    file = options.output / f"features-{hashlib.sha256(key).hexdigest()[:16]}.npz"
    done, usable, found = 0, np.zeros(0, np.int64), []
    if file.exists():
        stored = np.load(file)
        done, usable, found = int(stored["done"]), stored["usable"], [stored["features"]]
    with progress_bar(len(comparisons), f"features of {path.name}", "pair", initial=min(done, len(comparisons))) as bar:
        while done < len(comparisons):
            if not pipelines:
                pipelines.append(load_decoder(options))
            chunk = comparisons[done : done + CHUNK]
            numbered = [dataclasses.replace(one, where=str(done + i)) for i, one in enumerate(chunk)]
            kept, values = laplace.read_features(pipelines[0], numbered)
            usable = np.append(usable, [int(one.where) for one in kept]).astype(np.int64)
            found += [np.stack(values).astype(np.float32)] if values else []
            done += len(chunk)
            np.savez(file.with_suffix(".part.npz"), done=done, usable=usable, features=np.concatenate(found))
            file.with_suffix(".part.npz").replace(file)
            bar.update(len(chunk))
    used = usable[usable < len(comparisons)]
    return Split([comparisons[i] for i in used], np.concatenate(found)[: len(used)].astype(np.float64))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `read_pairs`."""
    parser.add_argument("--model", required=True, help="directory of the language model")
    parser.add_argument("--data", required=True, type=pathlib.Path, help="training pairs")
    parser.add_argument("--test", required=True, type=pathlib.Path, help="test pairs")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="directory of features and results")
    parser.add_argument("--limit", type=int, default=1500, help="training and validation pairs; 0: all")
    parser.add_argument("--test_limit", type=int, default=400, help="test pairs; 0: all")
    parser.add_argument("--max_length", type=int, default=512, help="tokens; longer pairs are left out")


def read_pairs(options: argparse.Namespace) -> tuple[Split, Split]:
    """Returns the pairs of --data and of --test."""
    options.output.mkdir(parents=True, exist_ok=True)
    pipelines: list[RewardPipeline] = []
    known = read(options, options.data, options.limit, pipelines)
    return known, read(options, options.test, options.test_limit, pipelines)


def fit(training: Split, validation: Split, seed: int, members: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights [L, D, K] of heads, one of each learning rate, at their best epoch; and validation losses [L].

    Adam on the Bradley-Terry loss of batches of 16 pairs, from zero. Of several members, it is the mean of their
    losses with the bootstrap weights of `Members`; the validation loss is that of the mean reward.
    """
    d, held = jnp.asarray(training.difference, jnp.float32), jnp.asarray(validation.difference, jnp.float32)
    weight = jnp.ones((1, len(d)))
    if members > 1:
        weight = Members(members, "exponential", seed).weights(jnp.arange(len(d)))
    rates, steps = jnp.asarray(RATES), len(d) // BATCH
    optimizer = optax.scale_by_adam()

    def train_epoch(carry, key):
        order = jax.random.permutation(key, len(d))[: steps * BATCH].reshape(steps, BATCH)

        def step(carry, rows):
            w, state = carry
            loss = lambda w: (weight[:, rows].T * jax.nn.softplus(-(d[rows] @ w))).mean(axis=(-2, -1)).sum()
            update, state = optimizer.update(jax.grad(loss)(w), state)
            return (w - rates[:, None, None] * update, state), None

        carry, _ = jax.lax.scan(step, carry, order)
        return carry, (carry[0], jax.nn.softplus(-(held @ carry[0]).mean(axis=-1)).mean(axis=-1))

    start = jnp.zeros((len(RATES), d.shape[1], members))
    keys = jax.random.split(jax.random.key(seed), EPOCHS)
    _, (found, losses) = jax.jit(lambda: jax.lax.scan(train_epoch, (start, optimizer.init(start)), keys))()
    best, each = np.argmin(losses, axis=0), np.arange(len(RATES))
    return np.asarray(found, np.float64)[best, each], np.asarray(losses)[best, each]


def posterior_std(posterior: laplace.Posterior, test: Split, difference: bool) -> np.ndarray:
    """Returns standard deviations [n, 2] of the test rewards, or halves of those of their differences."""
    if not difference:
        return posterior.std(test.features)
    return np.repeat(posterior.difference_std(test.features[:, 0], test.features[:, 1])[:, None] / 2, 2, axis=1)


def models(training: Split, validation: Split, test: Split, seed: int) -> dict[str, Scored]:
    """Returns the rewards of each model, whose heads are fitted with this seed."""
    score = lambda w, std=None: Scored(validation.features @ w, test.features @ w, std)
    fits = [fit(training, validation, AVERAGED * seed + i) for i in range(AVERAGED)]
    best = int(np.argmin(fits[0][1]))
    # The average is of heads that differ: the best learning rate, and those beside it.
    near = [min(max(best + offset, 0), len(RATES) - 1) for offset in (0, 1, -1)]
    single = np.stack([weights[rate, :, 0] for (weights, _), rate in zip(fits, near, strict=True)], 1)  # [D, 3]
    several, losses = fit(training, validation, seed, MEMBERS)
    several, one = several[int(np.argmin(losses))], single[:, 0]
    spread = lambda w: (test.features @ w).std(axis=-1)
    print(f"seed {seed}: learning rate {RATES[best]:g}, of 8 heads {RATES[int(np.argmin(losses))]:g}", flush=True)
    found = {"one": score(one), "8 heads": score(several.mean(axis=1), spread(several))}
    for name, split in (("laplace", validation), ("laplace, training", training)):
        posterior = laplace.fit(split.comparisons, list(split.features), one)
        found[name] = score(one, posterior_std(posterior, test, difference=False))
        found[f"{name}, difference"] = score(one, posterior_std(posterior, test, difference=True))
    average = single.mean(axis=1)
    return found | {"warm": score(average), "ensemble": score(average, spread(single))}


def measure(scored: Scored, validation: Split, test: Split) -> dict[str, float]:
    """Returns the metrics on test pairs, with intervals; `… after` with the temperature of the validation pairs."""
    table = validation.table(scored.validation)
    temperature = fit_temperature(table.margin, table.target, table.weight)
    edges = [one.edges for one in test.comparisons]
    prompts = clusters([prompt_text(one) for one in test.comparisons])
    found = pair_metrics(list(scored.test), edges, [np.nan], prompts.tolist())
    after = pair_metrics(list(scored.test / temperature), edges, [np.nan], prompts.tolist())
    for name in ("loss", "calibration_error"):
        found |= {f"{name} after{end}": after[f"{name}{end}"] for end in ("", "_low", "_high")}
    if scored.std is not None:
        # Confidence depends on the temperature no more than the order does: margin and deviation are both divided.
        found |= uncertainty_metrics(test.table(scored.test), scored.std, Bootstrap(prompts))
    return found


def cell(seeds: list[dict[str, float]], name: str) -> str:
    """Returns a metric of the first seed with its interval, and its range over the seeds."""
    if name not in seeds[0]:
        return "-"
    low, high = (seeds[0].get(f"{name}_{end}", np.nan) for end in ("low", "high"))
    values = [metrics[name] for metrics in seeds if name in metrics]
    spread = f"; {min(values):.3f}-{max(values):.3f}" if len(seeds) > 1 else ""
    return f"{seeds[0][name]:.3f} ({low:.3f}-{high:.3f}{spread})"


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--seeds", type=int, default=5, help="seeds: order of the pairs, and bootstrap weights")
    options = parser.parse_args()
    known, test = read_pairs(options)
    count = len(known.comparisons) * 4 // 5
    training, validation = known.take(range(count)), known.take(range(count, len(known.comparisons)))
    print(f"{count} training, {len(validation.comparisons)} validation and {len(test.comparisons)} test pairs")
    results: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for name, scored in models(training, validation, test, seed).items():
            results.setdefault(name, []).append(measure(scored, validation, test))
    (options.output / "metrics.json").write_text(json.dumps(results, indent=2))
    names = (*COLUMNS, *UNCERTAINTY)
    print("| model | " + " | ".join(names) + " |\n" + "|---" * (1 + len(names)) + "|")
    for name, seeds in results.items():
        print(f"| {name} | " + " | ".join(cell(seeds, metric) for metric in names) + " |")


if __name__ == "__main__":
    main()
