"""Atomic writes, reading of JSON files, and recognition of files that are given by mistake."""

import codecs
import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from rmjax.core import os_errors
from rmjax.core.errors import InputError
from rmjax.core.json_text import DuplicateKey, parse

_HEAD = 64  # bytes of a file that are compared
_HTML = ("an HTML page", "download the file itself; the address may be that of a page about it")
_TORCH = ("PyTorch weights", "give a Hugging Face directory with config.json and safetensors; convert the weights")
_GGUF = ("a GGUF model", "give the Hugging Face directory with safetensors that it was made from")
_ARCHIVE = ("an archive", "extract it, and give what is in it")
_ARROW = ("an Arrow file", "give the directory that `datasets` wrote it to")
_NEMO = (
    "a NeMo model",
    "convert it to Hugging Face format: python -m rmjax.migrate nemo_checkpoint MODEL.nemo --tokenizer=DIR "
    "--output=DIR (Llama), or with NeMo's conversion script for its architecture",
)
_RECOMPRESS = "decompress it, or compress it by gzip"
_TEXTS = {  # the first characters, in lower case: what the file is, and what to do
    b"version https://git-lfs": ("a git-lfs pointer instead of the file", "run `git lfs pull` in its repository"),
    **dict.fromkeys((b"<!doctype", b"<html", b"<head", b"<body", b"<script", b"<meta", b"<!--"), _HTML),
    b"<": ("XML or HTML", "download the file itself; this may be the error of a server"),
}
_MAGIC = {
    b"GGUF": _GGUF,
    b"ARROW1": _ARROW,
    b"\x80\x02": _TORCH,
    b"PK\x03\x04": ("a ZIP file (an archive, a spreadsheet or PyTorch weights)", "extract, export or convert it"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", _RECOMPRESS),
    b"\xfd7zXZ": ("compressed by xz", _RECOMPRESS),
    b"BZh": ("compressed by bzip2", _RECOMPRESS),
    b"\x1f\x8b": ("compressed by gzip", "add .gz to its name"),
    b"PAR1": ("a Parquet file", "give it the ending .parquet"),
}
_ENDINGS = {
    ".nemo": _NEMO,
    ".gguf": _GGUF,
    ".bin": _TORCH,
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".ckpt": _TORCH,
    ".safetensors": ("a file of weights", "give the directory that it is in"),
    ".yaml": ("a YAML file", "configurations are Python files (see configs/), data is JSONL, Parquet or CSV"),
    ".yml": ("a YAML file", "configurations are Python files (see configs/), data is JSONL, Parquet or CSV"),
    ".py": ("a Python file", "configurations are given as --config"),
    ".ipynb": ("a notebook", "give the data or the model that it uses"),
    ".tar": _ARCHIVE,
    ".tar.gz": _ARCHIVE,
    ".tgz": _ARCHIVE,
    ".zip": _ARCHIVE,
    ".arrow": _ARROW,
}


def identify(path: pathlib.Path, *, by_name: bool = True) -> str:
    """Returns what a file or directory is that was given as data or model and can be neither, and what to do; else "".

    Only names (unless `by_name` is False) and the first bytes are read.
    """
    found = None
    if path.is_dir():
        has = lambda *names: all((path / name).exists() for name in names)
        if has("config.json"):
            return ""
        if has("model_config.yaml") or has("context", "weights") or any(path.glob("*.nemo")):
            found = _NEMO
        elif has("adapter_config.json"):
            found = (
                "an adapter of PEFT (LoRA)",
                "merge it into its base model (merge_and_unload), and give the result",
            )
    elif path.is_file():
        name, head = path.name.lower(), _head(path)
        if text := identify_text(head):
            return text
        if not name.endswith((".gz", ".parquet")):
            found = next((what for start, what in _MAGIC.items() if head.startswith(start)), None)
        if found is None and by_name:
            found = next((what for ending, what in _ENDINGS.items() if name.endswith(ending)), None)
    return f"this is {found[0]}; {found[1]}" if found else ""


def identify_text(head: bytes) -> str:
    """Returns the same of the first bytes of a file, if they are those of a text that is neither data nor model."""
    text = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    found = next((what for start, what in _TEXTS.items() if text.startswith(start)), None)
    return f"this is {found[0]}; {found[1]}" if found else ""


def _head(path: pathlib.Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def cache_directory() -> pathlib.Path:
    """Returns $RMJAX_CACHE or ~/.cache/rmjax."""
    return pathlib.Path(os.environ.get("RMJAX_CACHE", pathlib.Path.home() / ".cache" / "rmjax"))


def write_atomic(path: pathlib.Path, text: str) -> None:
    """Writes to a temporary file beside `path` and renames it, so that no reader sees an incomplete file.

    Raises:
      OSError: it cannot be written; names `path`, and leaves no temporary file.
    """
    with os_errors.writing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_together(directory: pathlib.Path, texts: Mapping[str, str]) -> None:
    """Writes the files {name: text}, of which the first one marks that all are there.

    It is removed before the others are replaced. So a failed write leaves the former files, and a killed process leaves
    these, or no first one.

    Raises:
      OSError: as `write_atomic`.
    """
    with contextlib.ExitStack() as stack:
        for name, text in texts.items():
            stack.enter_context(os_errors.writing(directory / name)).write_text(text, encoding="utf-8")
        (directory / next(iter(texts))).unlink(missing_ok=True)
        # The stack replaces the last file first.


@contextlib.contextmanager
def new_directory(path: pathlib.Path, partial: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the new directory `partial`, which becomes `path` at the end, or is removed after an error.

    Args:
      path: does not exist, or is an empty directory.
      partial: beside it; what a killed program left there is removed.
    """
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        if path.exists():
            path.rmdir()
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object in a file; raises InputError naming the file."""
    try:
        value = parse(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; a model directory must have it") from error
    except DuplicateKey as error:
        raise InputError(f"{path}: {error}") from error
    except ValueError as error:  # not JSON, or not Unicode
        raise InputError(f"{path}: {identify(path) or f'not valid JSON ({error}); copy the file again'}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: the JSON value is a {type(value).__name__}; expected an object")
    return value
