"""The serving artifact: a Hugging Face sequence classifier with the metadata file rmjax.json."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax.numpy as jnp

from rmjax.core import readouts, safetensors, state_files
from rmjax.core.errors import InputError
from rmjax.models import card, members, peft, weights
from rmjax.models.architecture import OPTIONAL_HEAD_KEYS
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.families import FAMILIES

METADATA_FILE = "rmjax.json"
FORMAT_VERSION = 1


def write(
    directory: pathlib.Path, model: RewardModel, params: Params, pad_token_id: int, metadata: dict[str, Any]
) -> dict[str, Any]:
    """Writes config.json, weights and rmjax.json into `directory`, which must already hold the tokenizer's files.

    The head's scale is multiplied into its weights. Its shift is not, since a Hugging Face head has no bias: rmjax adds
    it, and the rewards are transformers' logits plus `transformers_shift` [A] of rmjax.json.

    Args:
      pad_token_id: a token that never ends a conversation: transformers reads the reward at the last token that is not
        padding.
      metadata: further contents of rmjax.json: maximum length, source step, validation metrics, …

    Returns:
      the contents of rmjax.json.
    """
    model, params = fold_scale(model, params)
    write_config(directory, model, pad_token_id)
    safetensors.write(directory, weights.named_tensors(*write_members(directory, model, params)))
    return write_metadata(directory, model, metadata)


def write_members(directory: pathlib.Path, model: RewardModel, params: Params) -> tuple[RewardModel, Params]:
    """Writes `members.FILE` of an uncertain head; returns the model with the head of their mean, a Hugging Face head.

    Other combinations than the mean, and standard deviations, are not linear: only rmjax computes them.
    """
    head = params["head"]
    members.write(directory, model.head, head)
    if not model.head.uncertain:
        return model, params
    plain = {name: part for name, part in head.items() if name != "laplace"}
    plain["kernel"] = members.mean_kernel(head["kernel"], model.head.members)
    config = dataclasses.replace(model.head, members=1, combination="mean", beta=1.0, laplace=False)
    return dataclasses.replace(model, head=config), params | {"head": plain}


def write_config(directory: pathlib.Path, model: RewardModel, pad_token_id: int) -> None:
    """Writes the config.json of a sequence classifier; `pad_token_id` is as in `write`."""
    attributes, family = model.head.attributes, FAMILIES[model.family]
    config = family.write_config(model.decoder) | {
        **({"architectures": [classifier]} if (classifier := transformers_class(model)) else {}),
        "num_labels": len(attributes),
        "problem_type": "regression",  # other engines then return the rewards, not their sigmoid or softmax
        "id2label": {str(i): name for i, name in enumerate(attributes)},
        "label2id": {name: i for i, name in enumerate(attributes)},
        "pad_token_id": pad_token_id,
        "tie_word_embeddings": False,
        "dtype": model.param_dtype,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_metadata(directory: pathlib.Path, model: RewardModel, metadata: dict[str, Any]) -> dict[str, Any]:
    """Writes and returns rmjax.json, with the head and the checksums of all other files in `directory`; the model card.

    Args:
      model: its head has no scale (`fold_scale`).
      metadata: as in `write`.
    """
    without = (METADATA_FILE, card.FILE, peft.CONFIG_FILE)  # the last has the path of the base model, which may move
    checksums = {path.name: _sha256(path) for path in sorted(directory.iterdir()) if path.name not in without}
    head = "linear_relu_linear" if model.head.hidden else "linear"
    pooling = metadata.get("pooling", readouts.LAST_TOKEN)
    fixed = {"format_version": FORMAT_VERSION, "head": head, "pooling": pooling}
    fixed |= {"transformers_class": transformers_class(model)}
    shift = {"transformers_shift": list(model.head.shift) or [0.0] * len(model.head.attributes)}
    kept = {name: value for name, value in metadata.items() if name not in OPTIONAL_HEAD_KEYS}
    metadata = kept | fixed | model.head.to_json() | shift | {"sha256": checksums}
    (directory / METADATA_FILE).write_text(json.dumps(state_files.seal(metadata), indent=2) + "\n")
    card.write(directory, metadata, metadata["transformers_class"])
    return metadata


def transformers_class(model: RewardModel) -> str | None:
    """Returns the class of transformers that computes the model; None if there is none."""
    return None if model.head.hidden or model.mean_readout else FAMILIES[model.family].classifier


def fold_scale(model: RewardModel, params: Params) -> tuple[RewardModel, Params]:
    """Returns the model with its head's scale in the head's weights; the rewards stay the same, to float rounding."""
    if not model.head.scale:
        return model, params
    scale = jnp.asarray(model.head.scale, jnp.float32)
    parts = {"kernel": params["head"]["kernel"] * jnp.tile(scale, model.head.members)}
    if model.head.laplace:  # of one reward
        parts["laplace"] = {name: part * scale for name, part in params["head"]["laplace"].items()}
    head = dataclasses.replace(model.head, scale=())
    return dataclasses.replace(model, head=head), params | {"head": params["head"] | parts}


def read_metadata(directory: pathlib.Path, *, verify: bool = True) -> dict[str, Any]:
    """Returns an artifact's rmjax.json, after verifying the checksums; {} for another Hugging Face directory.

    Raises:
      InputError: a file is missing or altered, or the format version or the readout is not supported.
    """
    file = directory / METADATA_FILE
    if not file.exists():
        return {}
    metadata = state_files.read_sealed(file, {"format_version": int, "sha256": dict})
    if (version := metadata["format_version"]) != FORMAT_VERSION:
        raise InputError(f"{file}: format_version is {version!r}; this version of rmjax reads {FORMAT_VERSION}")
    readouts.check(metadata.setdefault("pooling", readouts.LAST_TOKEN), f"{file}: pooling")
    for name, expected in metadata["sha256"].items() if verify else ():
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path}: missing from the artifact; export it again")
        if (found := _sha256(path)) != expected:
            raise InputError(
                f"{path}: altered or truncated (its SHA-256 is {found[:12]}…, in {METADATA_FILE} {expected[:12]}…); "
                "export the artifact again"
            )
    if "reading" in metadata:  # the key's name until version 0.1.0
        metadata["data_options"] = metadata.pop("reading")
    return metadata


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
