"""What a PATH of a model is: an artifact, a Hugging Face directory, an adapter or a workdir; its files and options."""

import pathlib
from typing import Any

from rmjax.core import readouts, remote
from rmjax.core.config import Config
from rmjax.core.errors import InputError
from rmjax.core.files import identify, read_json
from rmjax.core.safetensors import TensorDirectory
from rmjax.models import artifact, heads, peft, quantized
from rmjax.models.workdir import Workdir


def resolve_path(path: str) -> pathlib.Path:
    """Returns the local directory of a path, a URL or a hub name; the latter two are downloaded.

    Raises:
      InputError: `path` is neither a directory nor something that can be downloaded.
    """
    if remote.is_remote(path):
        path = str(remote.fetch(path))
    directory = pathlib.Path(path).expanduser()
    if not peft.is_adapter(directory) and (what := identify(directory)):
        raise InputError(f"model {path!r}: {what}")
    if directory.is_dir():
        return directory
    if directory.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise InputError(f"model {path!r}: no such directory; give a Hugging Face directory, an artifact or a workdir")
    import huggingface_hub  # slow to import, and only needed for hub names

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(path))
    except Exception as error:  # the client raises whatever its transport raises
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"model {path!r}: no such directory, and the hub download failed ({reason})") from error


def is_composed(path: str) -> bool:
    """Returns whether PATH is a workdir or an adapter rather than a whole Hugging Face directory."""
    directory = resolve_path(path)
    return Workdir(directory).is_workdir or peft.is_adapter(directory)


def tokenizer_directory(path: str) -> str:
    """Returns the directory with the tokenizer of the model at PATH."""
    workdir = Workdir(resolve_path(path))
    if workdir.is_workdir:
        return str(workdir.checked(workdir.tokenizer_directory))
    if peft.is_adapter(workdir.path) and not any(workdir.path.glob("tokenizer*")):
        return str(base_directory(workdir.path))
    return str(workdir.path)


def tokenizer_of(config: Config) -> str:
    """Returns the directory or hub name of a run's tokenizer; empty for the built-in one."""
    return config.data.tokenizer or (config.model.path and tokenizer_directory(config.model.path))


def data_options(path: str) -> tuple[dict[str, Any], int]:
    """Returns the data options of the model at PATH and its maximum length in tokens; ({}, 0) if not stored."""
    workdir = Workdir(resolve_path(path))
    if workdir.is_workdir:
        return workdir.data_options()
    if metadata := artifact.read_metadata(workdir.path):
        return metadata.get("data_options", {}), metadata.get("max_length", 0)
    file = config_file(workdir.path)  # missing where there is only a tokenizer
    return heads.data_options(read_json(file)) if file.exists() else {}, 0


def template_date(path: str) -> str:
    """Returns the date that the chat template of the model at PATH writes; empty if none is stored."""
    workdir = Workdir(resolve_path(path))
    if workdir.is_workdir:
        return workdir.config().data.template_date
    return artifact.read_metadata(workdir.path, verify=False).get("template_date") or ""


def readout(path: str) -> str:
    """Returns where the rewards of the model at PATH are read, a value of `config.data.readout`."""
    workdir = Workdir(resolve_path(path))
    if workdir.is_workdir:
        return workdir.config().data.readout or readouts.LAST_TOKEN
    if metadata := artifact.read_metadata(workdir.path, verify=False):
        return metadata["pooling"]
    file = config_file(workdir.path)  # missing where there is only a tokenizer
    return heads.readout(read_json(file)) if file.exists() else readouts.LAST_TOKEN


def readout_of(config: Config) -> str:
    """Returns where the rewards of a new run are read: as `config` says, else as in the model at its path."""
    return config.data.readout or (readout(config.model.path) if config.model.path else readouts.LAST_TOKEN)


def tensors(directory: pathlib.Path) -> TensorDirectory:
    """Returns the tensors of a Hugging Face directory; of an adapter: those of the base model with it."""
    if peft.is_adapter(directory):
        return peft.MergedTensors(directory, tensors(base_directory(directory)))
    files = TensorDirectory(directory, heads.SEPARATE_FILES)
    if packed := quantized.find_packed(files.shapes):
        raise InputError(f"{files.paths[packed]}: the tensor {packed!r} is of quantized weights; {quantized.FIX}")
    return files


def config_file(directory: pathlib.Path) -> pathlib.Path:
    """Returns the path of a Hugging Face directory's config.json; of an adapter: of its base model's."""
    return (base_directory(directory) if peft.is_adapter(directory) else directory) / "config.json"


def base_directory(adapter: pathlib.Path) -> pathlib.Path:
    """Returns the directory of the base model of an adapter; raises InputError if it is no Hugging Face directory."""
    name = peft.base_model(adapter)
    where = f"{adapter / peft.CONFIG_FILE}: base_model_name_or_path"
    try:
        directory = resolve_path(name)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if is_composed(name):
        raise InputError(f"{where} is {name!r}, a workdir or an adapter; expected a whole model: export it first")
    return directory
