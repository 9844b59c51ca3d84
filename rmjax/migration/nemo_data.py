"""The model and the data of NeMo-Aligner's configurations."""

from typing import Any

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.migration.keys import Migration

_PREFIX = "model.data.data_prefix"


def convert(migration: Migration) -> None:
    """Takes over the path of the pretrained model, the data and their maximum length."""
    _model(migration, "pretrained_checkpoint.restore_from_path")
    given = migration[_PREFIX] or {}
    if not isinstance(given, dict) or (given and "train" not in given):
        raise InputError(
            f"{migration.where}: {_PREFIX} is {given!r}; expected {{train: [FILE], validation: [FILE], test: [FILE]}}"
        )
    train, weights = _blend(migration, given.get("train"))
    validation: list[str] = []
    for name, files in given.items():
        split, _, label = name.partition("_")
        if split not in ("train", "validation", "test"):
            raise InputError(
                f"{migration.where}: {_PREFIX} has {name!r}; expected train, validation, validation_X, test"
            )
        if split == "validation":
            validation += [f"{label}={file}" if label else file for file in _blend(migration, files)[0]]
    required = (configs.REQUIRED,)
    migration.take(
        _PREFIX, data__train=train or required, data__validation=validation or required, data__weights=weights
    )
    if given.get("test"):
        migration.left.append((f"{_PREFIX}.test", given["test"], "evaluate the model: rmjax.evaluate --data=FILE"))
    implementation = migration["model.data.data_impl"]
    if not str(implementation).startswith("json"):
        raise InputError(f"{migration.where}: model.data.data_impl is {implementation!r}; rmjax reads jsonl")
    migration.leave("model.data.data_impl", "the form of the files is found")
    if migration["model.data.splits_string"] is not None:
        raise InputError(
            f"{migration.where}: model.data.splits_string splits one file; split it, and set {_PREFIX}.train and "
            f"{_PREFIX}.validation"
        )
    _max_length(migration)


def _max_length(migration: Migration) -> None:
    names = [name for name in ("model.data.seq_length", "model.encoder_seq_length") if migration[name] is not None]
    if names:
        migration.take(names[0], data__max_length=migration[names[0]])
    else:
        migration.take("model.encoder_seq_length", data__max_length=4096)  # the file's default
    migration.leave("model.encoder_seq_length", "model.data.seq_length bounds the texts")
    migration.differences += [
        "NeMo-Aligner silently takes another pair for one with an overlong text, and skips two pairs a time in the "
        "search; rmjax leaves overlong ones out and counts them (data.on_overlong).",
        "Neither appends an end-of-sequence token to `text` lines; NeMo-Aligner's server adds none either.",
    ]


def _blend(migration: Migration, files: Any) -> tuple[list[str], list[float]]:
    """Returns the files of a split and their weights, of [FILE, …] or [weight, FILE, …]."""
    entries = [files] if isinstance(files, str) else list(files or [])
    weights, names = [], []
    for entry in entries:
        if not isinstance(entry, str | int | float):
            raise InputError(f"{migration.where}: {_PREFIX} holds {entry!r}; expected files, or a weight before each")
        try:
            weights.append(float(entry))
        except ValueError:
            names.append(str(entry))
    if weights and len(weights) != len(names):
        raise InputError(f"{migration.where}: {_PREFIX} is {entries}; expected a weight before each file, or none")
    return names, weights if len(names) > 1 else []


def _model(migration: Migration, name: str) -> None:
    """Takes over the path of the pretrained model, which has to be a Hugging Face directory."""
    path = migration[name]
    if path and path.endswith(".nemo"):
        migration.differences.append(
            f"{path} has to be converted first: python -m rmjax.migrate nemo_checkpoint {path} "
            f"--output={path.removesuffix('.nemo')}"
        )
    migration.take(name, model__path=path.removesuffix(".nemo") if path else configs.REQUIRED)
