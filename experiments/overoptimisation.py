"""Over-optimisation of reward models whose gold reward is known: the figure of Gao et al. 2022 (arXiv 2210.10760).

    python experiments/overoptimisation.py --workdir=runs/overoptimisation

Trains reward models (proxies) on a few numbers of built-in comparisons, with several seeds each, and optimises a policy
against each proxy and against the ensembles of a size (mean, or minimum, of the members' rewards, each standardized on
samples of the base policy), by best-of-n and by REINFORCE without a KL penalty. The base policy gives all orders of
distinct digits the same probability. Prints the fits of `rmjax.metrics.overoptimisation`; writes WORKDIR/curves.json
and --figure. Proxies that are already in the workdir are not trained again. --quick is a check of the program: its
figures mean nothing. docs/overoptimisation.md has a result.
"""

import argparse
import dataclasses
import json
import pathlib
import time

import digit_policy as policy
import jax
import jax.numpy as jnp
import numpy as np
import reinforce
from matplotlib.axes import Axes

import rmjax
from rmjax.core.plotting import draw_svg
from rmjax.core.progress import progress_bar
from rmjax.data.records import synthetic
from rmjax.metrics import overoptimisation
from rmjax.metrics.best_of_n import best_of_n, curve_sizes

CHUNK = 64  # responses per scored record; one record has one prompt
COMBINATIONS = {"mean": lambda rewards: rewards.mean(0), "minimum": lambda rewards: rewards.min(0)}
COLORS = ("#b33", "#d9822b", "#247", "#3f9c6d")  # of the data sizes
DASHES = {"single": "-", "mean": "--", "minimum": ":"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of the experiment."""

    comparisons: tuple[int, ...] = (50, 500, 5000)
    seeds: int = 3  # proxies of each data size
    steps: int = 300  # of training a proxy, with 64 comparisons each
    pool: int = 2048  # responses of the base policy to each prompt
    iterations: int = 60  # of REINFORCE


QUICK = Settings(comparisons=(64,), seeds=2, steps=4, pool=64, iterations=4)


class Proxy:
    """A reward model with rewards standardized on the pool; rewards of responses seen before are remembered."""

    def __init__(self, model: rmjax.Model):
        self._model = model
        self._known: dict[tuple[int, str], float] = {}
        self._mean, self._std = 0.0, 1.0

    def standardize(self, prompts: np.ndarray, digits: np.ndarray) -> None:
        """Makes rewards of these responses have mean 0 and standard deviation 1."""
        rewards = self(prompts, digits)
        self._mean, self._std = rewards.mean(), rewards.std()

    def __call__(self, prompts: np.ndarray, digits: np.ndarray) -> np.ndarray:
        """Returns the rewards float64 [B] of responses [B, N] to prompts [B]."""
        keys = list(zip(prompts.tolist(), policy.texts(digits), strict=True))
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        records = []
        for prompt in range(len(policy.PROMPTS)):
            texts = [text for index, text in new if index == prompt]
            records += [(prompt, texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK)]
        rewards = self._model.score_batch(
            [{"prompt": policy.PROMPTS[p][0], "responses": texts} for p, texts in records]
        )
        for (prompt, texts), found in zip(records, rewards, strict=True):
            self._known.update(zip(((prompt, text) for text in texts), found.tolist(), strict=True))
        return (np.array([self._known[key] for key in keys]) - self._mean) / self._std


class Ensemble:
    """The mean or minimum of the rewards of proxies."""

    def __init__(self, members: list[Proxy], combination: str):
        self._members, self._combine = members, COMBINATIONS[combination]

    def __call__(self, prompts: np.ndarray, digits: np.ndarray) -> np.ndarray:
        """Returns the rewards float64 [B] of responses [B, N] to prompts [B]."""
        return self._combine(np.stack([member(prompts, digits) for member in self._members]))


def gold_rewards(prompts: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """Returns the gold rewards float64 [B] of responses [B, N] to prompts [B]."""
    pairs = zip(prompts, digits, strict=True)
    return np.array([synthetic.gold(row, policy.PROMPTS[p][1]) for p, row in pairs], np.float64)


def train(settings: Settings, size: int, seed: int, workdir: pathlib.Path) -> tuple[Proxy, float]:
    """Returns a proxy and its accuracy on new comparisons."""
    config = rmjax.configs.small()
    config.name = "proxy"
    config.model.update(hidden_size=32, intermediate_size=96, num_layers=2, num_heads=2, num_kv_heads=2)
    config.data.update(synthetic_train=size, synthetic_validation=500)
    config.train.update(steps=settings.steps, seed=seed)
    config.evaluation.every = max(settings.steps // 4, 1)
    run = rmjax.train(config, workdir=workdir / f"proxy-{size}-{seed}")
    return Proxy(rmjax.load(run)), run.metrics["accuracy"]


def select(proxy, gold: np.ndarray, prompts: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """Returns best-of-n's d, mean gold and mean proxy reward, float64 [P, 3], over samples of the base policy."""
    rewards = proxy(prompts, digits).reshape(len(policy.PROMPTS), -1)
    sizes = curve_sizes(rewards.shape[1] // 2)  # of more, too few independent sets are left
    mean = lambda values: np.mean([best_of_n(*row, sizes) for row in zip(rewards, values, strict=True)], axis=0)
    golds = mean(gold.reshape(rewards.shape))
    return np.stack([overoptimisation.best_of_n_distance(sizes), golds, mean(rewards)], axis=1)


def reinforce_against(proxy, iterations: int, seed: int) -> np.ndarray:
    """Returns d, mean gold and mean proxy reward before each of REINFORCE's updates, float64 [P, 3].

    The KL is the mean over the iteration's responses of log(policy / base policy), or 0 if the estimate is negative.
    """
    key, start = jax.random.split(jax.random.key(seed))
    params = base = policy.init(start)
    opt_state = reinforce.OPTIMIZER.init(params)
    prompts = np.repeat(np.arange(len(policy.PROMPTS)), reinforce.REPEATS * reinforce.SAMPLES)
    log_probs = jax.jit(lambda params, digits: policy.log_probs(params, prompts, digits).sum(1))
    points = []
    for i in range(iterations):
        digits = np.asarray(policy.sample(params, jax.random.fold_in(key, i), prompts))
        rewards = proxy(prompts, digits)
        kl = float((log_probs(params, digits) - log_probs(base, digits)).mean())
        points.append((max(kl, 0.0) ** 0.5, gold_rewards(prompts, digits).mean(), rewards.mean()))
        advantages = reinforce.leave_one_out(rewards.reshape(-1, reinforce.SAMPLES)).ravel()
        params, opt_state = reinforce.update(params, opt_state, prompts, digits, jnp.asarray(advantages, jnp.float32))
    return np.array(points)


def measure(settings: Settings, workdir: pathlib.Path) -> dict:
    """Trains the proxies and returns {"accuracy": …, "curves": {form: {size: {kind: curves [C, P, 3]}}}}."""
    prompts = np.repeat(np.arange(len(policy.PROMPTS)), settings.pool)
    base = policy.init(jax.random.key(0))
    digits = np.asarray(policy.sample(base, jax.random.key(1), prompts))
    gold = gold_rewards(prompts, digits)
    accuracy: dict[str, list[float]] = {}
    curves: dict = {"best_of_n": {}, "rl": {}}
    total = len(settings.comparisons) * (2 * settings.seeds + len(COMBINATIONS))
    with progress_bar(total, "over-optimisation", "model") as bar:
        for size in settings.comparisons:
            members = []
            for seed in range(settings.seeds):
                member, found = train(settings, size, seed, workdir)
                member.standardize(prompts, digits)
                members.append(member)
                accuracy.setdefault(str(size), []).append(found)
                bar.update()
            kinds = {"single": members} | {name: [Ensemble(members, name)] for name in COMBINATIONS}
            for form in curves:
                curves[form][str(size)] = {kind: [] for kind in kinds}
            for kind, proxies in kinds.items():
                for seed, proxy in enumerate(proxies):
                    chosen = select(proxy, gold, prompts, digits)
                    curves["best_of_n"][str(size)][kind].append(chosen.tolist())
                    learned = reinforce_against(proxy, settings.iterations, seed)
                    curves["rl"][str(size)][kind].append(learned.tolist())
                    bar.update()
    return {"accuracy": accuracy, "gold_mean": gold.mean(), "gold_std": gold.std(), "curves": curves}


def fits(result: dict) -> dict:
    """Returns {form: {size: {kind: Fit}}}, over all points of a kind's curves."""
    found: dict = {}
    for form, sizes in result["curves"].items():
        for size, kinds in sizes.items():
            for kind, curves in kinds.items():
                points = np.concatenate(curves)
                fit = overoptimisation.fit(form, points[:, 0], points[:, 1] - result["gold_mean"])
                found.setdefault(form, {}).setdefault(size, {})[kind] = fit
    return found


def table(result: dict, fitted: dict) -> str:
    """Returns the fits as a Markdown table."""
    lines = ["| policy | comparisons | proxy | alpha | beta | R² | fitted peak, d | largest d | gold: highest, last |"]
    lines.append("|---" * 9 + "|")
    for form, sizes in result["curves"].items():
        for size, kinds in sizes.items():
            for kind, curves in kinds.items():
                fit, mean = fitted[form][size][kind], np.mean(curves, axis=0)
                gold = mean[:, 1] if form == "best_of_n" else smooth(mean[:, 1])
                lines.append(
                    f"| {form} | {size} | {kind} | {fit.alpha:.2f} ± {fit.alpha_error:.2f} | {fit.beta:.2f} ± "
                    f"{fit.beta_error:.2f} | {fit.r_squared:.2f} | {fit.peak:.3g} | {mean[:, 0].max():.2f} | "
                    f"{gold.max():.2f}, {gold[-1]:.2f} |"
                )
    return "\n".join(lines)


def smooth(values: np.ndarray) -> np.ndarray:
    """Returns means of 5 consecutive values (of all, if there are fewer)."""
    width = min(5, len(values))
    return np.convolve(values, np.full(width, 1 / width), "valid")


def figure(result: dict, fitted: dict) -> str:
    """Returns the figure as SVG: best-of-n and REINFORCE against single proxies, and REINFORCE against ensembles."""

    def single(form: str, title: str, axes: Axes) -> None:
        for color, (size, kinds) in zip(COLORS, result["curves"][form].items(), strict=False):
            curves = np.array(kinds["single"])
            points, mean = np.concatenate(curves), curves.mean(0)
            d = np.linspace(0, points[:, 0].max(), 40)
            shown = points if form == "best_of_n" else points[::4]  # for a small file
            axes.plot(shown[:, 0], shown[:, 1], ".", color=color, markersize=4, alpha=0.5)
            axes.plot(
                d, fitted[form][size]["single"](d) + result["gold_mean"], color=color, label=f"{size} comparisons"
            )
            proxy = mean[:, 2] * result["gold_std"] + result["gold_mean"]
            axes.plot(mean[:, 0], proxy, "--", color=color, linewidth=0.8)
        axes.set(title=title, xlabel="d = sqrt(KL)", ylabel="gold (line: fit); proxy (dashed)")
        axes.legend(fontsize=8)

    def ensembles(axes: Axes) -> None:
        for color, (size, kinds) in zip(COLORS, result["curves"]["rl"].items(), strict=False):
            for kind, curves in kinds.items():
                d = np.linspace(0, np.array(curves)[:, :, 0].max(), 40)
                gold = fitted["rl"][size][kind](d) + result["gold_mean"]
                axes.plot(d, gold, DASHES[kind], color=color, label=f"{size}, {kind}")
        axes.set(title="REINFORCE, ensembles (fits)", xlabel="d = sqrt(KL)", ylabel="gold reward")
        axes.legend(fontsize=7)

    plots = [
        lambda axes: single("best_of_n", "best-of-n, single proxies", axes),
        lambda axes: single("rl", "REINFORCE, single proxies", axes),
        ensembles,
    ]
    return draw_svg(plots, "overoptimisation")


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/overoptimisation"), help="directory")
    parser.add_argument("--figure", type=pathlib.Path, help="SVG file; default: WORKDIR/overoptimisation.svg")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check the program")
    options = parser.parse_args()
    start = time.monotonic()
    result = measure(QUICK if options.quick else Settings(), options.workdir)
    (options.workdir / "curves.json").write_text(json.dumps(result))
    fitted = fits(result)
    for size, values in result["accuracy"].items():
        print(f"{size} comparisons: accuracy of the proxies", " ".join(f"{value:.3f}" for value in values))
    print(table(result, fitted))
    path = options.figure or options.workdir / "overoptimisation.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(figure(result, fitted))
    print(f"figure: {path}; {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
