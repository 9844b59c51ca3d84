"""Conversion of NeMo's Llama-like checkpoints (.nemo) to Hugging Face directories, with their reward head.

L layers, D model width, N query heads, H key/value heads, P head dimension, F width of the MLP, A attributes.
"""

import functools
import json
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from rmjax.core import safetensors
from rmjax.core.errors import InputError
from rmjax.core.files import new_directory
from rmjax.data.records.formats.single import NEMO
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.migration import nemo_archive
from rmjax.migration.nemo_archive import Tensors

# {name in Megatron, without its prefix: name of Hugging Face}; both norms have two names, by Megatron's backend
_WHOLE = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
    "rm_head.weight": "score.weight",
    "rm_head.bias": "score.bias",
}
_LAYER = {
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "input_layernorm.weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
}
_QKV, _FC1 = "self_attention.linear_qkv.weight", "mlp.linear_fc1.weight"
# What a Llama has, {key: (values, value if the key is missing)}; another value is another architecture.
_REQUIRED: dict[str, tuple[tuple[Any, ...], Any]] = {
    "normalization": (("rmsnorm",), "layernorm"),
    "activation": (("fast-swiglu", "swiglu"), "gelu"),
    "position_embedding_type": (("rope",), "learned_absolute"),
    "rotary_percentage": ((1.0, 1), 1.0),
    "bias": ((False,), True),
    "add_qkv_bias": ((False, None), False),
    "num_moe_experts": ((None,), None),
    "window_size": ((None,), None),
    "seq_len_interpolation_factor": ((None, 1), None),
}


def convert(path: pathlib.Path, output: pathlib.Path, tokenizer: str) -> list[str]:
    """Writes the Hugging Face directory of a .nemo archive, or of its directory, and returns lines about it.

    Raises:
      InputError: the archive cannot be read, is of another architecture, or its tensors are not those of its
        configuration; or `output` exists.
    """
    if output.exists():
        raise InputError(f"--output={output}: exists already; choose a new directory")
    parent = output.absolute().parent
    with tempfile.TemporaryDirectory(dir=parent, prefix=".nemo-") as temporary:
        directory = nemo_archive.extract(path, pathlib.Path(temporary))
        values = nemo_archive.read_config(directory)
        if not tokenizer:
            raise InputError(f"--tokenizer is missing; give the Hugging Face directory or hub name of {_named(values)}")
        tensors = _split(nemo_archive.read_tensors(directory), values, path)
        has_head = "score.weight" in tensors
        config, attributes = make_config(values, {name: make for name, (_, make) in tensors.items()}, path)
        with new_directory(output, output.with_name(f".{output.name}.part")) as partial:
            Tokenizer.load(tokenizer).save(partial)
            (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            if has_head:
                tensors.pop("lm_head.weight", None)
            safetensors.write(partial, ((name, make, size) for name, (size, make) in tensors.items()))
    kind = f"reward head {', '.join(attributes)}" if has_head else "language model without a reward head"
    lines = [f"wrote {output}: {kind}, {config['num_hidden_layers']} layers, {len(tensors)} tensors, float32"]
    if (standardization := values.get("reward_standardization") or {}).get("enable"):
        lines.append(
            f"note: NeMo-Aligner's server standardizes rewards by mean {standardization.get('mean')} and std "
            f"{standardization.get('std')}; the converted head does not"
        )
    if (values.get("regression") or {}).get("merge_attributes"):
        lines.append("note: NeMo-Aligner merges the attributes; rmjax.export --merge=attribute=weight does")
    lines.append("note: NeMo-Aligner scores texts as they are, with no token added at their start or end")
    return lines


def make_config(
    values: Mapping[str, Any], tensors: Tensors, path: pathlib.Path
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the config.json of a checkpoint, and the attributes of its head.

    Raises:
      InputError: the checkpoint is of another architecture.
    """
    for key, (allowed, default) in _REQUIRED.items():
        if (value := values.get(key, default)) not in allowed:
            raise InputError(
                f"{path}: {key} is {value!r} in {nemo_archive.CONFIG}; the conversion knows Llama, with "
                f"{' or '.join(map(repr, allowed))}; convert it with NeMo's script for its architecture"
            )
    heads = values["num_attention_heads"]
    if not (positions := values.get("max_position_embeddings") or values.get("encoder_seq_length")):
        raise InputError(f"{path}: encoder_seq_length is missing from {nemo_archive.CONFIG}")
    config: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": int(tensors["model.embed_tokens.weight"]().shape[0]),
        "hidden_size": values["hidden_size"],
        "intermediate_size": values["ffn_hidden_size"],
        "num_hidden_layers": values["num_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": values.get("num_query_groups") or heads,
        "head_dim": values.get("kv_channels") or values["hidden_size"] // heads,
        "rms_norm_eps": float(values.get("layernorm_epsilon", 1e-5)),
        "rope_theta": float(values.get("rotary_base", 1e4)),
        "max_position_embeddings": positions,
        "hidden_act": "silu",
        "tie_word_embeddings": bool(values.get("share_embeddings_and_output_weights")),
        "dtype": "float32",
    }
    if values.get("scale_positional_embedding"):  # Llama 3.1's, with Megatron's constants
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    if "score.weight" not in tensors:
        return config, ()
    count = tensors["score.weight"]().shape[0]
    names = ("reward",) if count == 1 else NEMO if count == len(NEMO) else tuple(f"label_{i}" for i in range(count))
    config |= {
        "architectures": ["LlamaForSequenceClassification"],
        "num_labels": count,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "regression",
    }
    return config, names


def _named(values: Mapping[str, Any]) -> str:
    """Returns what a configuration says of its tokenizer."""
    tokenizer = values.get("tokenizer") or {}
    return (
        f"the tokenizer ({tokenizer.get('type') or tokenizer.get('model') or tokenizer.get('library') or 'not named'})"
    )


def _split(
    tensors: Tensors, values: Mapping[str, Any], path: pathlib.Path
) -> dict[str, tuple[int, Callable[[], np.ndarray]]]:
    """Returns {name of Hugging Face: (bytes, function that returns the array)}, one matrix for each linear map.

    Raises:
      InputError: a tensor is unknown, missing, or has another shape than the configuration gives.
    """
    try:
        count = values["num_layers"]
        sizes = [values[key] for key in ("hidden_size", "ffn_hidden_size", "num_attention_heads")]
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]} is missing from {nemo_archive.CONFIG}") from error
    zero_centered = bool(values.get("layernorm_zero_centered_gamma"))
    found: dict[str, tuple[int, Callable[[], np.ndarray]]] = {}
    last = functools.lru_cache(maxsize=1)(lambda read: read())  # several matrices are made of one tensor in turn
    for full, make_tensor in tensors.items():
        read = functools.partial(last, make_tensor)
        name = re.sub(r"^(module\.|model\.)+", "", full)
        for target, make, shape in _targets(name, read, values, sizes, count, path):
            if zero_centered and "norm" in target:
                make = functools.partial(lambda make: make() + 1, make)
            found[target] = (4 * int(np.prod(shape)), functools.partial(_checked, make, shape, full, path))
    expected = ["model.embed_tokens.weight", "model.norm.weight"]
    suffixes = [*_LAYER.values(), *(f"self_attn.{x}_proj.weight" for x in "qkv")]
    suffixes += ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
    expected += [f"model.layers.{layer}.{suffix}" for layer in range(count) for suffix in dict.fromkeys(suffixes)]
    if missing := [name for name in expected if name not in found]:
        raise InputError(f"{path}: nothing gives the tensor {missing[0]} ({len(missing)} are missing)")
    return found


def _checked(make: Callable[[], np.ndarray], shape: tuple[int, ...], name: str, path: pathlib.Path) -> np.ndarray:
    array = make()
    if -1 not in shape and array.shape != shape:
        raise InputError(f"{path}: {name} gives {array.shape}; expected {shape} by {nemo_archive.CONFIG}")
    return np.ascontiguousarray(array, np.float32)


def _targets(
    name: str,
    read: Callable[[], np.ndarray],
    values: Mapping[str, Any],
    sizes: list[int],
    count: int,
    path: pathlib.Path,
) -> Iterator[tuple[str, Callable[[], np.ndarray], tuple[int, ...]]]:
    """Yields (name of Hugging Face, function that returns the array, shape) of what a tensor of Megatron holds."""
    width, mlp, heads = sizes
    groups = values.get("num_query_groups") or heads
    size = values.get("kv_channels") or width // heads
    if name in _WHOLE:
        array = read()
        yield _WHOLE[name], read, (array.shape[0], *([width] if array.ndim == 2 else []))
        return
    match = re.fullmatch(r"decoder\.layers\.(?:(\d+)\.)?(.+)", name)
    if match is None or match[2] not in {*_LAYER, _QKV, _FC1}:
        raise InputError(f"{path}: the tensor {name} is not one of a Llama; convert it with NeMo's script")
    if match[1] and int(match[1]) >= count:
        raise InputError(f"{path}: there is the tensor {name}, and num_layers is {count} in {nemo_archive.CONFIG}")
    layers = [int(match[1])] if match[1] else range(count)  # without a number, the layers are stacked: [L, …]
    for layer in layers:
        one = read if match[1] else functools.partial(_layer, read, layer, count, name, path)
        prefix = f"model.layers.{layer}."
        if match[2] == _QKV:
            shapes = {"q": heads * size, "k": groups * size, "v": groups * size}
            for which, rows in shapes.items():
                make = functools.partial(_from_qkv, one, which, groups, heads // groups, size)
                yield f"{prefix}self_attn.{which}_proj.weight", make, (rows, width)
        elif match[2] == _FC1:
            for part, module in enumerate(("gate", "up")):
                make = functools.partial(_half, one, part, mlp)
                yield f"{prefix}mlp.{module}_proj.weight", make, (mlp, width)
        else:
            target = _LAYER[match[2]]
            shape = {"o": (width, heads * size), "d": (width, mlp)}.get(target.split(".")[-2][0], (width,))
            yield prefix + target, one, shape if "proj" in target else (width,)


def _layer(read: Callable[[], np.ndarray], layer: int, count: int, name: str, path: pathlib.Path) -> np.ndarray:
    stack = read()
    if len(stack) != count:
        raise InputError(f"{path}: {name} holds {len(stack)} layers; num_layers is {count} in {nemo_archive.CONFIG}")
    return stack[layer]


def _half(read: Callable[[], np.ndarray], part: int, mlp: int) -> np.ndarray:
    """Returns one of the two matrices [F, D] in a fused one [2 F, D]."""
    fused = read()
    if len(fused) != 2 * mlp:
        return fused  # of another shape, which `_checked` names
    return fused[part * mlp : (part + 1) * mlp]


def _from_qkv(read: Callable[[], np.ndarray], which: str, groups: int, queries: int, size: int) -> np.ndarray:
    """Returns the rows of query, key or value of a fused matrix [H (N/H + 2) P, D], which has them group by group."""
    fused = read()
    rows = groups * (queries + 2) * size
    if fused.shape[0] != rows:
        return fused  # of another shape, which `_checked` names
    split = fused.reshape(groups, queries + 2, size, fused.shape[-1])
    part = {"q": split[:, :queries], "k": split[:, queries : queries + 1], "v": split[:, queries + 1 :]}[which]
    return part.reshape(-1, fused.shape[-1])
