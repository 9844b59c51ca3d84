"""Compares the losses of 20 steps on meshes of 8 simulated devices with those of one device, in float32.

    JAX_PLATFORMS=cpu python experiments/check_meshes.py [--settings=lora,experts] [--meshes=8,1,1,1 --meshes=1,2,2,2]

Without --meshes every shape with 8 devices is run: sizes of the axes data, fsdp, tensor and sequence. Prints for each
setting and shape the greatest relative difference of a step's loss, and in the column `rounding` that of one device
whose parameters start with a relative error of 1e-7, which the training enlarges: differences of that size are no
errors of a mesh. Exits with 1 if one is above 1e-5 and above four times that of `rounding`.
"""

import argparse
import dataclasses
import itertools
import json
import math
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from unittest import mock

import jax

from rmjax.core import config as configs
from rmjax.core.mesh import AXES
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import artifact, loading
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.loading import start_params
from rmjax.training.experiment import train

DEVICES, STEPS, TOLERANCE = 8, 20, 1e-5
SETTINGS = ("all", "lora", "experts", "kwise", "uneven")


def make_config(setting: str, directory: pathlib.Path) -> configs.Config:
    """Returns the configuration of a setting, for one device."""
    config = configs.default()
    config.model.update(hidden_size=64, intermediate_size=128, num_layers=2, num_heads=8, num_kv_heads=8)
    config.model.head_init = 0.1  # so that the first losses are not all ln 2
    config.data.update(synthetic_train=200, synthetic_validation=16)
    config.optimizer.warmup_steps = 2
    config.train.update(steps=STEPS, batch_size=16, rows_per_device=2)
    config.evaluation.every = STEPS
    config.mesh.data = 1
    if setting == "lora":
        config.lora.rank = 4
    elif setting == "experts":
        config.model.path = str(write_experts(directory))
    elif setting == "kwise":
        config.objective.name, config.data.synthetic_format = "plackett_luce", "kwise"
    elif setting == "uneven":  # rows of a step fill no microbatch, and no device's share of one
        config.train.update(batch_size=13, rows_per_device=3)
    return config


def write_experts(directory: pathlib.Path) -> pathlib.Path:
    """Writes an untrained model with eight experts, two for each token, unless it is there; returns its path."""
    path = directory / "mixtral"
    if not path.exists():
        path.mkdir()
        tokenizer = Tokenizer.load("")
        tokenizer.save(path)
        decoder = DecoderConfig(len(tokenizer), 64, 128, 2, 8, 8, 8, 1e-5, 1e4, None, False, False, 1024, 0.1)
        decoder = dataclasses.replace(decoder, num_experts=8, experts_per_token=2)
        model = RewardModel(decoder, HeadConfig(init=0.1), family="mixtral")
        artifact.write(path, model, model.init(jax.random.key(0)), 0, {"max_length": 1024})
    return path


def losses(config: configs.Config, mesh: Sequence[int], workdir: pathlib.Path, error: float = 0.0) -> list[float]:
    """Returns the losses of a run on a mesh, whose initial parameters have a relative error."""
    config.mesh.update(dict(zip(AXES, mesh, strict=True)))
    with mock.patch.object(loading, "start_params", lambda *given: disturb(start_params(*given), error)):
        train(config, workdir, log=lambda line: None, progress=False)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["split"] == "train"]


def disturb(params: Params, error: float) -> Params:
    """Returns parameters with a random relative error, uniform up to `error`."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    errors = [
        1 + error * jax.random.uniform(key, leaf.shape, minval=-1) for key, leaf in zip(keys, leaves, strict=True)
    ]
    return tree.unflatten(leaf * each for leaf, each in zip(leaves, errors, strict=True))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default=",".join(SETTINGS), help="separated by commas")
    parser.add_argument("--meshes", action="append", help="sizes of data, fsdp, tensor, sequence, separated by commas")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", DEVICES)
    sizes = [2**power for power in range(DEVICES.bit_length())]
    meshes = [mesh for mesh in itertools.product(sizes, repeat=len(AXES)) if math.prod(mesh) == DEVICES]
    if options.meshes:
        meshes = [tuple(map(int, text.split(","))) for text in options.meshes]
    failed = False
    print(f"jax {jax.__version__}, {STEPS} steps; greatest relative difference of a loss from one device's")
    print(f"{'setting':<10}" + "".join(f"{'x'.join(map(str, mesh)):>10}" for mesh in meshes) + "  rounding", flush=True)
    with tempfile.TemporaryDirectory(prefix="meshes-") as temporary:
        directory = pathlib.Path(temporary)
        for setting in options.settings.split(","):
            config, name = make_config(setting, directory), f"{setting}-{{}}".format
            expected = losses(config, (1, 1, 1, 1), directory / name("one"))
            print(f"{setting:<10}", end="", flush=True)
            greatest = []
            for mesh in (*meshes, None):
                workdir = directory / name("-".join(map(str, mesh or ["rounding"])))
                found = losses(config, mesh or (1, 1, 1, 1), workdir, 0.0 if mesh else 1e-7)
                greatest.append(max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True)))
                print(f"{greatest[-1]:>10.1e}", end="", flush=True)
            failed |= not max(greatest[:-1]) <= max(TOLERANCE, 4 * greatest[-1])
            print(flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
