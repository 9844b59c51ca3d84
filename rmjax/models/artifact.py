"""The serving artifact: a Hugging Face sequence classifier with rmjax.json beside it."""

import hashlib
import json
import pathlib
from typing import Any

from rmjax.core import safetensors
from rmjax.core.errors import InputError
from rmjax.core.files import read_json
from rmjax.models import weights
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.families.llama import to_hugging_face

METADATA_FILE = "rmjax.json"
FORMAT_VERSION = 1


def write(
    directory: pathlib.Path, model: RewardModel, params: Params, pad_token_id: int, metadata: dict[str, Any]
) -> None:
    """Writes config.json, weights and rmjax.json; the tokenizer's files must lie in `directory` already.

    Args:
      pad_token_id: must be no token that can end a conversation: transformers reads the reward at the last token that
        is not padding.
      metadata: what else rmjax.json says: max_length, source step, validation metrics, …
    """
    attributes = model.head.attributes
    config = to_hugging_face(model.decoder) | {
        "architectures": ["LlamaForSequenceClassification"],
        "num_labels": len(attributes),
        "id2label": {str(i): name for i, name in enumerate(attributes)},
        "label2id": {name: i for i, name in enumerate(attributes)},
        "pad_token_id": pad_token_id,
        "tie_word_embeddings": False,
        "dtype": model.param_dtype,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    safetensors.write(directory, weights.named_tensors(params))
    sums = {path.name: sha256(path) for path in sorted(directory.iterdir()) if path.name != METADATA_FILE}
    own = {"format_version": FORMAT_VERSION, "head": "linear", "pooling": "last_token"}
    (directory / METADATA_FILE).write_text(
        json.dumps(metadata | own | model.head.to_json() | {"sha256": sums}, indent=2) + "\n"
    )


def read_metadata(directory: pathlib.Path) -> dict[str, Any]:
    """Returns rmjax.json of an artifact after checking every file's sum; {} for a plain Hugging Face directory.

    Raises:
      InputError: a file is missing or altered, or the format is of another version.
    """
    if not (directory / METADATA_FILE).exists():
        return {}
    metadata = read_json(directory / METADATA_FILE)
    if metadata.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{directory / METADATA_FILE}: format_version is {metadata.get('format_version')!r}; this rmjax reads "
            f"{FORMAT_VERSION}"
        )
    for name, expected in metadata["sha256"].items():
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path}: missing from the artifact; export it again")
        if (found := sha256(path)) != expected:
            raise InputError(
                f"{path}: altered or truncated (SHA-256 {found[:12]}…, rmjax.json says {expected[:12]}…); "
                "export the artifact again"
            )
    if "reading" in metadata:  # the name of this key until version 0.1.0
        metadata["data_options"] = metadata.pop("reading")
    return metadata


def sha256(path: pathlib.Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
