"""Loading of models and their parameters from a PATH: an artifact, a Hugging Face directory or a workdir."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rmjax.core.config import Config
from rmjax.core.errors import InputError
from rmjax.core.files import identify, read_json
from rmjax.models import artifact, weights
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.families import read_config
from rmjax.models.sharding import state_shardings
from rmjax.models.workdir import Workdir

_DEFAULT_HEAD = HeadConfig()


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A reward model with its parameters."""

    model: RewardModel
    params: Params
    directory: pathlib.Path  # with the tokenizer's files
    max_length: int  # of a conversation in training, in tokens
    metadata: dict[str, Any]  # contents of rmjax.json; of a workdir: what export would write; {} if there is none


def resolve_path(path: str) -> pathlib.Path:
    """Returns the local directory of a path or hub name.

    Raises:
      InputError: `path` is neither a directory nor a name that can be downloaded from the hub.
    """
    directory = pathlib.Path(path).expanduser()
    if what := identify(directory):
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


def tokenizer_directory(path: str) -> str:
    """Returns the directory with the tokenizer of the model at PATH."""
    workdir = Workdir(resolve_path(path))
    return str(workdir.tokenizer_directory if workdir.is_workdir else workdir.path)


def tokenizer_of(config: Config) -> str:
    """Returns the directory or hub name of a run's tokenizer; empty for the built-in one."""
    return config.data.tokenizer or (config.model.path and tokenizer_directory(config.model.path))


def data_options(path: str) -> tuple[dict[str, Any], int]:
    """Returns the data options of the model at PATH and its maximum length in tokens; ({}, 0) if not stored."""
    workdir = Workdir(resolve_path(path))
    if workdir.is_workdir:
        return workdir.data_options()
    metadata = artifact.read_metadata(workdir.path)
    return metadata.get("data_options", {}), metadata.get("max_length", 0)


def make_model(config: Config, vocab_size: int, head: HeadConfig = _DEFAULT_HEAD) -> RewardModel:
    """Returns the model of the section `config.model`: of its path, or with its sizes and `vocab_size`."""
    head = dataclasses.replace(head, init=config.head_init)
    options = {key: config[key] for key in ("dtype", "param_dtype", "attention", "remat", "scan_layers")}
    if config.path:
        workdir = Workdir(resolve_path(config.path))
        file = workdir.model_file if workdir.is_workdir else workdir.path / "config.json"
        family, decoder = read_config(file)
        return RewardModel(decoder, head, family=family, **options)
    sizes = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "rope_theta")
    decoder = DecoderConfig(
        vocab_size=vocab_size,
        head_dim=config.head_dim or config.hidden_size // config.num_heads,
        norm_eps=1e-5,
        rope_scaling=None,
        attention_bias=False,
        mlp_bias=False,
        max_positions=1 << 20,
        # 1 / sqrt(D) preserves the scale of activations at any width; the usual 0.02 does so only near D = 2,500.
        initializer_range=config.hidden_size**-0.5,
        **{key: config[key] for key in sizes},
    )
    return RewardModel(decoder, head, **options)


def initial_params(config: Config, model: RewardModel, mesh: Mesh, key: jax.Array) -> Params:
    """Returns the parameters at the start of training: of `config.path` if it is set, and random where it has none.

    Raises:
      InputError: the pretrained head has other attributes, or another shift, than the model's.
    """
    if not config.path:
        shardings = state_shardings(mesh, jax.eval_shape(model.init, key))
        return jax.jit(model.init, out_shardings=shardings)(key)
    workdir = Workdir(resolve_path(config.path))
    if workdir.is_workdir:
        _check_head(workdir.path, workdir.head(), model.head)
        return _rescale(workdir.restore_params(model, mesh), workdir.head(), model.head)
    found = model.head
    if metadata := artifact.read_metadata(workdir.path):
        found = HeadConfig.from_json(metadata)
        _check_head(workdir.path, found, model.head)
    shape = (model.decoder.hidden_size, len(model.head.attributes))
    head = model.head.init * jax.random.normal(key, shape, "float32")
    return _rescale(weights.load(workdir.path, model, mesh, initial_head=head), found, model.head)


def _check_head(directory: pathlib.Path, found: HeadConfig, expected: HeadConfig) -> None:
    single = len(found.attributes) == 1 == len(expected.attributes)  # then its name does not matter
    attributes_differ = found.attributes != expected.attributes and not single
    if attributes_differ or found.shift != expected.shift:
        describe = lambda head: f"{', '.join(head.attributes)} (scale {list(head.scale)}, shift {list(head.shift)})"
        raise InputError(
            f"{directory}: the reward head predicts {describe(found)}; expected {describe(expected)}: "
            "start from a model without a reward head"
        )


def _rescale(params: Params, found: HeadConfig, expected: HeadConfig) -> Params:
    """Returns the parameters with the head's weights such that the rewards of `found` result with `expected`'s scale.

    Export folds the scale into the weights, so that an artifact of a standardized head has scale 1.
    """
    if found.scale == expected.scale:
        return params
    ones = (1.0,) * len(expected.attributes)
    ratio = jnp.asarray(found.scale or ones, jnp.float32) / jnp.asarray(expected.scale or ones, jnp.float32)
    return params | {"head": {"kernel": params["head"]["kernel"] * ratio}}


def load_model(path: str, *, mesh: Mesh, dtype: str = "float32", attention: str = "auto") -> LoadedModel:
    """Returns a trained reward model: an artifact, a Hugging Face classifier, or a workdir's best checkpoint.

    Raises:
      InputError: PATH has no model, a file is damaged, or there is no reward head.
    """
    directory = resolve_path(path)
    workdir = Workdir(directory)
    if workdir.is_workdir:
        family, decoder = read_config(workdir.model_file)
        param_dtype = workdir.config().model.param_dtype
        model = RewardModel(decoder, workdir.head(), dtype, param_dtype, attention, family=family)
        metadata = workdir.metadata()
        params = workdir.restore_params(model, mesh)
        return LoadedModel(model, params, workdir.tokenizer_directory, metadata["max_length"], metadata)
    metadata = artifact.read_metadata(directory)
    family, decoder = read_config(directory / "config.json")
    labels = read_json(directory / "config.json").get("id2label") or {"0": "reward"}
    head = HeadConfig.from_json(metadata or {"attributes": [labels[key] for key in sorted(labels, key=int)]})
    model = RewardModel(decoder, head, dtype, attention=attention, family=family)
    params = weights.load(directory, model, mesh)
    return LoadedModel(model, params, directory, metadata.get("max_length", decoder.max_positions), metadata)
