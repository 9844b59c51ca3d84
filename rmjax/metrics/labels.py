"""Agreement of rewards with labels of attributes, and of the steps of a process; float64 on the host.

Axis letters: R readouts of a comparison, N readouts of all comparisons, A attributes, S resamples (`bootstrap`).
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats

from rmjax.metrics.bootstrap import Bootstrap, Samples
from rmjax.metrics.correlation import auc, pearson, spearman
from rmjax.metrics.process import first_error_f1, first_errors, prm_score
from rmjax.metrics.ranking import correctness

Statistic = Callable[[np.ndarray], np.ndarray]  # from weights of rows [S, N] to [S]


def label_metrics(
    rewards: Sequence[np.ndarray], labels: Sequence[np.ndarray], attributes: Sequence[str], *, steps: bool
) -> dict[str, float]:
    """Returns `step_metrics` (of the first attribute) if the readouts are steps, else `attribute_metrics`.

    Args:
      rewards, labels: of each comparison, [R, A]; NaN labels are missing.
    """
    if not rewards:
        return {}
    x, y = np.concatenate(rewards), np.concatenate(labels)
    return step_metrics(x[:, 0], y[:, 0]) if steps else attribute_metrics(x, y, attributes)


def attribute_metrics(rewards: np.ndarray, labels: np.ndarray, attributes: Sequence[str]) -> dict[str, float]:
    """Returns `mse/<attribute>`, `pearson/<attribute>`, `spearman/<attribute>`, and the mean of each over attributes.

    An attribute without labels is omitted; the correlation with a constant is 0.

    Args:
      rewards, labels: [N, A]; NaN labels are missing.
    """
    metrics = {}
    for a, name in enumerate(attributes):
        known = ~np.isnan(labels[:, a])
        if known.any():
            x, y = rewards[known, a].astype(np.float64), labels[known, a].astype(np.float64)
            metrics[f"mse/{name}"] = float(np.mean(np.square(x - y)))
            metrics[f"pearson/{name}"] = _correlation(x, y)
            metrics[f"spearman/{name}"] = _correlation(scipy.stats.rankdata(x), scipy.stats.rankdata(y))
    mean = lambda kind: float(np.mean([value for key, value in metrics.items() if key.startswith(f"{kind}/")]))
    return {kind: mean(kind) for kind in ("mse", "pearson", "spearman") if metrics} | metrics


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt(np.sum(x * x) * np.sum(y * y))
    return float(np.sum(x * y) / scale) if scale > 0 else 0.0


def attribute_samples(
    rewards: np.ndarray, labels: np.ndarray, attributes: Sequence[str], prompts: np.ndarray
) -> Samples:
    """Returns the metrics of `attribute_metrics` with their values over resampled prompts.

    Args:
      rewards, labels: [N, A]; NaN labels are missing.
      prompts: int [N], of each readout.
    """
    bootstrap, samples = Bootstrap(prompts), {}
    for a, name in enumerate(attributes):
        known = ~np.isnan(labels[:, a])
        if known.any():
            x, y = rewards[known, a].astype(np.float64), labels[known, a].astype(np.float64)
            statistics = {"mse": _mean(np.square(x - y)), "pearson": _pearson(x, y), "spearman": spearman(x, y)}
            for kind, statistic in statistics.items():
                samples[f"{kind}/{name}"] = bootstrap.samples(_of_rows(statistic, known))
    # All attributes have the same resamples, so those of their mean are known.
    for kind in ("mse", "pearson", "spearman") if samples else ():
        samples[kind] = np.mean([values for name, values in samples.items() if name.startswith(f"{kind}/")], axis=0)
    values = attribute_metrics(rewards, labels, attributes)
    return {name: (values[name], samples[name]) for name in values}


def _mean(values: np.ndarray) -> Statistic:
    return lambda weights: weights @ values / weights.sum(1)


def _pearson(x: np.ndarray, y: np.ndarray) -> Statistic:
    return lambda weights: pearson(x, y, weights)


def _of_rows(statistic: Statistic, rows: np.ndarray) -> Statistic:
    return lambda weights: statistic(weights[:, rows])


def step_metrics(rewards: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns `accuracy` and `auc`, the area under the ROC curve (omitted if all labels are equal), of process steps.

    A reward above 0 predicts a right step; rewards of 0 count 0.5 in the accuracy, and equal rewards in the AUC.

    Args:
      rewards, labels: [N]; labels are 1 (right), 0 (wrong), or 0.5 (neutral) and NaN (missing), which are excluded.
    """
    rewards, right, _ = _judged(rewards, labels)
    if not len(rewards):
        return {}
    metrics = {"accuracy": float(np.mean(correctness(rewards * np.where(right, 1, -1))))}
    positive, negative = int(right.sum()), int((~right).sum())
    if positive and negative:
        ranks = scipy.stats.rankdata(rewards)
        metrics["auc"] = float((ranks[right].sum() - positive * (positive + 1) / 2) / (positive * negative))
    return metrics


def _judged(rewards: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns rewards and rightness of the steps that are right or wrong, and which these are, bool [N]."""
    known = ~np.isnan(labels) & (labels != 0.5)
    return rewards[known].astype(np.float64), labels[known] > 0.5, known


def process_samples(rewards: Sequence[np.ndarray], labels: Sequence[np.ndarray], prompts: Sequence[int]) -> Samples:
    """Returns the metrics of `step_metrics`, and by the rules of ProcessBench and PRMBench, over resampled prompts.

    `first_error_f1` with its parts `error_accuracy` and `correct_accuracy`: `process.first_error_f1`; the predicted
    first error is the first judged step whose reward is not above 0. It is 0 if no error is found exactly, or if no
    process without error is accepted: where few are without error, these decide as much as all others. `prm_score` with
    `f1` and `negative_f1`: `process.prm_score`. A metric of which a class is missing has the value NaN.

    Args:
      rewards, labels: of each process, [steps], as for `step_metrics`; processes without a judged step are left out.
      prompts: of each process.
    """
    pairs = zip(rewards, labels, prompts, strict=True)
    kept = [(x, y, prompt) for x, y, prompt in pairs if len(_judged(x, y)[0])]
    if not kept:
        return {}
    steps = np.repeat([prompt for *_, prompt in kept], [len(x) for x, *_ in kept])
    every, of_every = np.concatenate([x for x, *_ in kept]), np.concatenate([y for _, y, _ in kept])
    x, right, known = _judged(every, of_every)
    bootstrap, said = Bootstrap(steps[known]), x > 0
    samples = {"accuracy": bootstrap.samples(_mean(correctness(x * np.where(right, 1, -1))))}
    if right.any() and not right.all():
        samples["auc"] = bootstrap.samples(auc(x, right))
    sums = bootstrap.sums(np.stack([said & right, ~said & ~right, said != right], 1))
    with np.errstate(invalid="ignore"):
        f1, negative = (2 * hits / (2 * hits + sums[:, 2]) for hits in (sums[:, 0], sums[:, 1]))
    resampled = {"prm_score": 0.5 * (f1 + negative), "f1": f1, "negative_f1": negative}
    samples |= {name: np.nan_to_num(each) for name, each in resampled.items()}
    values = step_metrics(every, of_every) | prm_score(said, right)
    return {name: (values[name], samples[name]) for name in samples} | _first_error_samples(kept)


def _first_error_samples(kept: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> Samples:
    actual = np.array([int(np.argmax(y < 0.5)) if (y < 0.5).any() else -1 for _, y, _ in kept])
    # A step that was not judged can be neither right nor wrong to predict as an error.
    predicted = np.array(first_errors([np.where(_judged(x, y)[2], x, np.inf) for x, y, _ in kept]))
    wrong, hit = actual != -1, predicted == actual
    columns = np.stack([hit & wrong, wrong, hit & ~wrong, ~wrong], 1)
    sums = Bootstrap([prompt for *_, prompt in kept]).sums(columns)
    with np.errstate(invalid="ignore", divide="ignore"):
        error, correct = sums[:, 0] / sums[:, 1], sums[:, 2] / sums[:, 3]
        f1 = np.where(error + correct == 0, 0.0, 2 * error * correct / (error + correct))
    values = first_error_f1(predicted, actual)
    samples = {"f1": f1, "error_accuracy": error, "correct_accuracy": correct}
    return {"first_error_f1" if name == "f1" else name: (values[name], samples[name]) for name in samples}
