"""Everything once on the accelerator of this machine, beside the CPU: training, resuming, scoring, serving.

    python experiments/check_accelerator.py [--steps=60] [--platform=cuda]

A small model is trained on the built-in comparisons in float32 with exact matrix products, once by processes that see
the accelerator and once by processes on the CPU, then each workdir is continued by the other platform. Prints

* the greatest difference of the losses of a step, also after each change of the platform, which is rounding;
* the time of a step;
* the greatest difference of rewards between platforms, and to them in bfloat16 and with int8 weights;
* that rewards over HTTP equal those of `rmjax.load`, and rewards a second with concurrent clients.

Exits with 1 if float32 differs by more than 1e-3, relative to the losses and to the spread of the rewards (60 steps
with AdamW enlarge differences by rounding).
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

TOLERANCE = 1e-3
SAMPLES, CLIENTS = 512, 16


def train(workdir: str, steps: int, stop: int) -> dict[str, Any]:
    """Trains, or continues, until the step `stop` or one soon after it; returns the losses, and the times of steps."""
    import rmjax
    from rmjax.training.logging import MetricsWriter

    class Stop(MetricsWriter):
        """Stops the training at a step."""

        def __init__(self, *_: Any):
            pass

        def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
            if split == "train" and step == stop < steps:
                os.kill(os.getpid(), signal.SIGTERM)

    config = rmjax.configs.small()
    config.data.update(synthetic_train=4000, synthetic_validation=64)
    config.train.update(steps=steps, batch_size=64)
    run = rmjax.train(config, workdir=workdir, writers=(Stop,))
    lines = [line for line in run.history if line["split"] == "train"]
    return {"losses": {line["step"]: line["loss"] for line in lines}, "seconds": [line["step_time"] for line in lines]}


def score(workdir: str, variants: list[tuple[str, bool]]) -> list[list[float]]:
    """Returns the rewards of generated prompts with two responses each, for variants: dtype, and whether int8."""
    import rmjax

    models = [rmjax.load(workdir, dtype=dtype, int8=int8) for dtype, int8 in variants]
    return [[float(reward) for record in make_records() for reward in model.score(*record)] for model in models]


def make_records() -> list[tuple[str, list[str]]]:
    """Returns prompts with two responses each, of letters, in several lengths."""
    text = lambda i, n: "".join(chr(97 + (i * 31 + j * j * 7) % 26) for j in range(n))
    return [(text(i, 5 + i % 40), [text(i + 1, 3 + i % 23), text(i + 2, 4 + i % 31)]) for i in range(32)]


def serve(workdir: str) -> dict[str, float]:
    """Returns the difference of rewards over HTTP from those of the loaded model, and the rewards of a second."""
    import numpy as np

    import rmjax

    model = rmjax.load(workdir)
    texts = [prompt + response for prompt, responses in make_records() for response in responses]
    expected = np.array([model.score(text) for text in texts])
    with rmjax.serve(model) as server:
        client = server.client()
        found = np.array(client.rewards(texts)).ravel()
        many = [texts[i % len(texts)] + str(i) for i in range(SAMPLES)]
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            begin = time.perf_counter()
            list(pool.map(lambda i: client.rewards(many[i : i + 8]), range(0, SAMPLES, 8)))
            seconds = time.perf_counter() - begin
    return {"difference": float(np.abs(found - expected).max()), "per_second": SAMPLES / seconds}


def describe() -> str:
    """Returns the devices of the process."""
    import jax

    return f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()}), jax {jax.__version__}"


def call(platform: str, name: str, *arguments: Any) -> Any:
    """Returns a function's result in a new process on a platform; empty: the default one."""
    environment = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "JAX_PLATFORMS": platform}
    code = [sys.executable, __file__, "--call", json.dumps([name, *arguments])]
    result = subprocess.run(code, env=environment, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(f"{name} on {platform or 'the accelerator'} failed, see its error above")
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Prints the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--platform", default="", help="JAX's name of the accelerator; empty: JAX's choice")
    parser.add_argument("--call", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.call:
        name, *arguments = json.loads(options.call)
        print(json.dumps({"train": train, "score": score, "serve": serve, "describe": describe}[name](*arguments)))
        return
    print(f"{call(options.platform, 'describe')}; beside {call('cpu', 'describe')}", flush=True)
    platforms = {"accelerator": options.platform, "cpu": "cpu"}
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="check-") as temporary:
        workdirs = {name: str(pathlib.Path(temporary) / name) for name in platforms}
        runs = {
            name: call(platform, "train", workdirs[name], 2 * options.steps, options.steps)
            for name, platform in platforms.items()
        }
        worst = max(worst, compare("trained", runs))
        for name, run in runs.items():
            print(f"{name}: {sorted(run['seconds'])[len(run['seconds']) // 2] * 1e3:.1f} ms a step", flush=True)
        variants = (("float32", False), ("bfloat16", False), ("float32", True))
        (reference,) = call("cpu", "score", workdirs["cpu"], variants[:1])
        spread = max(reference) - min(reference)
        found = call(options.platform, "score", workdirs["cpu"], variants)
        for (dtype, int8), values in zip(variants, found, strict=True):
            difference = max(abs(a - b) for a, b in zip(values, reference, strict=True)) / spread
            print(f"rewards in {dtype}{', int8 weights' if int8 else ''}: differ by {difference:.1e} of their spread")
            if dtype == "float32" and not int8:
                worst = max(worst, difference)
        served = call(options.platform, "serve", workdirs["accelerator"])
        print(f"HTTP: differs by {served['difference']:.1e}; {served['per_second']:,.0f} rewards/s, {CLIENTS} clients")
        worst = max(worst, served["difference"] / spread)
        exchanged = {
            name: call(other, "train", workdirs[name], 2 * options.steps, 2 * options.steps)
            for name, other in zip(platforms, reversed(platforms.values()), strict=True)
        }
        worst = max(worst, compare("continued on the other platform", exchanged))
    sys.exit(f"a difference of {worst:.1e} is above {TOLERANCE:g}" if worst > TOLERANCE else 0)


def compare(title: str, runs: dict[str, dict[str, Any]]) -> float:
    """Prints and returns the greatest relative difference of the losses of a step."""
    ours, theirs = (run["losses"] for run in runs.values())
    differences = {step: abs(ours[step] - theirs[step]) / abs(theirs[step]) for step in theirs if step in ours}
    if len(ours) != len(theirs):
        print(f"stopped at steps {len(ours)} and {len(theirs)}")
    step = max(differences, key=differences.__getitem__)
    print(f"{title}: losses of {len(differences)} steps differ by at most {differences[step]:.1e} (step {step})")
    return differences[step]


if __name__ == "__main__":
    main()
