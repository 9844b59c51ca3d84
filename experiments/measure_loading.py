"""Peak host memory of loading a large checkpoint: the owned weights and one tensor beside them.

    python experiments/measure_loading.py [--gigabytes=2] [--shards=4]

Writes a random checkpoint of Llama's shape (bfloat16 files) to a temporary directory, loads it in a process for each
dtype of the parameters and once with int8 matrices, and prints the peak resident size (`resource.ru_maxrss`) above that
before loading.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

_D, _F, _HEADS, _VOCABULARY = 2048, 5632, 16, 32000


def make_checkpoint(directory: pathlib.Path, gigabytes: float, shards: int) -> None:
    """Writes config.json and `model-*.safetensors` of about `gigabytes` in bfloat16."""
    import ml_dtypes
    import numpy as np

    from rmjax.core import safetensors

    layer = 4 * _D * _D + 3 * _D * _F
    layers = max(1, round((gigabytes * 2**30 / 2 - _VOCABULARY * _D) / layer))
    config = {
        "model_type": "llama",
        "vocab_size": _VOCABULARY,
        "hidden_size": _D,
        "intermediate_size": _F,
        "num_hidden_layers": layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }
    (directory / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (_VOCABULARY, _D), "model.norm.weight": (_D,), "score.weight": (1, _D)}
    for i in range(layers):
        prefix = f"model.layers.{i}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (_D, _D) for name in "qkvo"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (_F, _D) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (_D, _F)
        shapes |= {f"{prefix}{name}_layernorm.weight": (_D,) for name in ("input", "post_attention")}
    values = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(ml_dtypes.bfloat16)
    make = lambda shape: np.resize(values, shape)
    size = lambda shape: 2 * int(np.prod(shape))
    safetensors.SHARD_BYTES = sum(map(size, shapes.values())) // shards + 1
    safetensors.write(directory, [(name, lambda s=shape: make(s), size(shape)) for name, shape in shapes.items()])


def load(directory: str, kind: str) -> None:
    """Loads the checkpoint in a dtype, or as `int8`, and prints its sizes and the peak resident size as JSON."""
    import resource

    import jax

    from rmjax.core.mesh import make_mesh
    from rmjax.models import heads, paths, weights
    from rmjax.models.decoder import RewardModel
    from rmjax.models.families import read_config

    path, mesh = pathlib.Path(directory), make_mesh()
    family, decoder = read_config(path / "config.json")
    files = paths.tensors(path)
    head = heads.read(files, decoder, {})
    int8 = kind == "int8"
    model = RewardModel(decoder, head.config, param_dtype="bfloat16" if int8 else kind, family=family)
    jax.block_until_ready(jax.numpy.zeros(1) + 1)
    before = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    with jax.set_mesh(mesh):
        params = jax.block_until_ready(weights.load(files, model, mesh, head.params, head.tensors, True, int8))
    leaves = jax.tree.leaves(params)
    tensor = max(leaf.nbytes // (leaf.shape[0] if leaf.ndim == 3 else 1) for leaf in leaves)
    print(
        json.dumps(
            {
                "before": before,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "weights": sum(leaf.nbytes for leaf in leaves),
                "tensor": tensor,
                "leaf": max(leaf.nbytes for leaf in leaves),
            }
        )
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=2, metavar=("DIRECTORY", "KIND"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.load:
        load(*flags.load)
        return
    if flags.make:
        make_checkpoint(pathlib.Path(flags.make), flags.gigabytes, flags.shards)
        return
    with tempfile.TemporaryDirectory() as temporary:
        # In processes of their own: `ru_maxrss` of a process begins with the size of the one that started it.
        sizes = [f"--gigabytes={flags.gigabytes}", f"--shards={flags.shards}"]
        subprocess.run([sys.executable, __file__, "--make", temporary, *sizes], check=True)
        for kind in ("float32", "bfloat16", "int8"):
            command = [sys.executable, __file__, "--load", temporary, kind]
            environment = os.environ | {"JAX_PLATFORMS": "cpu"}
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout)
            size = {name: f"{value / 2**30:.2f} GiB" for name, value in found.items()}
            extra = found["peak"] - found["before"] - found["weights"]
            print(
                f"{kind}: peak {size['peak']}, of which {size['before']} before loading; weights {size['weights']}, "
                f"beside them {extra / 2**20:.0f} MiB; the largest tensor has {found['tensor'] / 2**20:.0f} MiB, the "
                f"largest array of all layers {found['leaf'] / 2**20:.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
