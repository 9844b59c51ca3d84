"""From a PATH (artifact, Hugging Face directory, workdir) to a model and its parameters on a mesh."""

import dataclasses
import pathlib
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from rmjax.core.errors import InputError
from rmjax.core.files import read_json
from rmjax.models import artifact, weights
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.families.llama import from_hugging_face
from rmjax.models.sharding import state_shardings
from rmjax.models.workdir import Workdir

_ONE_REWARD = HeadConfig()


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A reward model with its parameters.

    Attributes:
      directory: where the tokenizer's files lie.
      max_length: the longest conversation it was trained on, in tokens.
      metadata: the contents of rmjax.json, or the part of them that a workdir has.
    """

    model: RewardModel
    params: Params
    directory: pathlib.Path
    max_length: int
    metadata: dict[str, Any]


def resolve(path: str) -> pathlib.Path:
    """Returns the local directory of a path or hub name.

    Raises:
      InputError: neither a directory nor a name that the hub client can fetch.
    """
    directory = pathlib.Path(path).expanduser()
    if directory.is_dir():
        return directory
    if directory.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise InputError(f"model {path!r}: no such directory; give a Hugging Face directory, an artifact or a workdir")
    import huggingface_hub  # slow to import, and needed for hub names alone

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(path))
    except Exception as error:  # the client raises whatever its transport raises
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"model {path!r}: no such directory, and the hub gave none ({reason})") from error


def tokenizer_directory(path: str) -> str:
    """Returns where the tokenizer of a PATH lies."""
    directory = resolve(path)
    workdir = Workdir(directory)
    return str(workdir.tokenizer_directory if workdir.is_workdir else directory)


def data_options(path: str) -> tuple[dict[str, Any], int]:
    """Returns the data options of the model at PATH and its longest conversation; ({}, 0) if they are not stored."""
    workdir = Workdir(resolve(path))
    if workdir.is_workdir:
        return workdir.data_options()
    metadata = artifact.read_metadata(workdir.path)
    return metadata.get("data_options", {}), metadata.get("max_length", 0)


def make_model(config: ml_collections.ConfigDict, vocab_size: int, head: HeadConfig = _ONE_REWARD) -> RewardModel:
    """Returns the model of `config.model`: from its path's config.json, or random of the sizes given there."""
    options = {key: getattr(config, key) for key in ("dtype", "param_dtype", "attention", "remat", "scan_layers")}
    head = dataclasses.replace(head, init=config.head_init)
    if config.path:
        workdir = Workdir(resolve(config.path))
        decoder = workdir.decoder() if workdir.is_workdir else from_hugging_face(workdir.path / "config.json")
        return RewardModel(decoder, head, **options)
    decoder = DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim or config.hidden_size // config.num_heads,
        norm_eps=1e-5,
        rope_theta=config.rope_theta,
        rope_scaling=None,
        attention_bias=False,
        mlp_bias=False,
        max_positions=1 << 20,
        # 1 / sqrt(D) keeps the scale of what passes through at any width; 0.02 is right near D = 2,500 alone.
        initializer_range=config.hidden_size**-0.5,
    )
    return RewardModel(decoder, head, **options)


def initial_params(config: ml_collections.ConfigDict, model: RewardModel, mesh: Mesh, key: jax.Array) -> Params:
    """Returns the parameters that training starts from, each made where it belongs.

    1. pretrained, if `config.model.path` is set, with the head found there or else a fresh one;
    2. random.
    """
    shardings = state_shardings(mesh, jax.eval_shape(model.init, key))
    if not config.path:
        return jax.jit(model.init, out_shardings=shardings)(key)
    directory = resolve(config.path)
    workdir = Workdir(directory)
    if workdir.is_workdir:
        _check_head(directory, workdir.head(), model.head)
        return workdir.restore_params(model, mesh)
    if metadata := artifact.read_metadata(directory):
        _check_head(directory, HeadConfig.from_json(metadata), model.head)
    shape = (model.decoder.hidden_size, len(model.head.attributes))
    fresh = model.head.init * jax.random.normal(key, shape, "float32")
    return weights.load(directory, model, shardings, fresh_head=fresh)


def _check_head(directory: pathlib.Path, found: HeadConfig, wanted: HeadConfig) -> None:
    """Raises InputError if a trained head means something else than the one that it would be taken for."""
    same_names = len(wanted.attributes) == 1 == len(found.attributes) or found.attributes == wanted.attributes
    if not same_names or (found.scale, found.shift) != (wanted.scale, wanted.shift):
        raise InputError(
            f"{directory}: its head gives {', '.join(found.attributes)} with scale {list(found.scale)}, "
            f"shift {list(found.shift)}; this run's would be {', '.join(wanted.attributes)}, "
            f"{list(wanted.scale)}, {list(wanted.shift)}: start from a model without a head"
        )


def load_model(path: str, *, mesh: Mesh, dtype: str = "float32", attention: str = "auto") -> LoadedModel:
    """Loads a trained reward model: an artifact, a Hugging Face classifier, or a workdir's best checkpoint.

    Raises:
      InputError: nothing usable is there, a file is damaged, or there is no reward head.
    """
    directory = resolve(path)
    workdir = Workdir(directory)
    if workdir.is_workdir:
        metadata = workdir.metadata()
        param_dtype = workdir.config().model.param_dtype
        model = RewardModel(workdir.decoder(), workdir.head(), dtype, param_dtype, attention)
        params = workdir.restore_params(model, mesh)
        return LoadedModel(model, params, workdir.tokenizer_directory, metadata["max_length"], metadata)
    metadata = artifact.read_metadata(directory)
    decoder = from_hugging_face(directory / "config.json")
    head = HeadConfig.from_json(metadata or {"attributes": _labels(directory)})
    model = RewardModel(decoder, head, dtype, "float32", attention)
    shardings = state_shardings(mesh, jax.eval_shape(model.init, jax.random.key(0)))
    params = weights.load(directory, model, shardings, fresh_head=None)
    return LoadedModel(model, params, directory, metadata.get("max_length", decoder.max_positions), metadata)


def _labels(directory: pathlib.Path) -> list[str]:
    labels = read_json(directory / "config.json").get("id2label") or {"0": "reward"}
    return [labels[key] for key in sorted(labels, key=int)]
