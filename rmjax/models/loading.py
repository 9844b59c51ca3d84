"""Loading of models and their parameters from a PATH: an artifact, a Hugging Face directory or a workdir."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rmjax.core import pytree
from rmjax.core.config import Config
from rmjax.core.errors import InputError
from rmjax.core.files import identify, read_json
from rmjax.core.safetensors import TensorDirectory
from rmjax.models import artifact, heads, lora, partition, peft, weights
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.families import read_config
from rmjax.models.lora import LoraConfig
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
    metadata: dict[str, Any]  # contents of rmjax.json; of a workdir: what export would write; else `reward_head`


def resolve_path(path: str) -> pathlib.Path:
    """Returns the local directory of a path or hub name.

    Raises:
      InputError: `path` is neither a directory nor a name that can be downloaded from the hub.
    """
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
        return str(workdir.tokenizer_directory)
    if peft.is_adapter(workdir.path) and not any(workdir.path.glob("tokenizer*")):
        return str(_base_directory(workdir.path))
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
    file = _config_file(workdir.path)  # missing where there is only a tokenizer
    return heads.data_options(read_json(file)) if file.exists() else {}, 0


def template_date(path: str) -> str:
    """Returns the date that the chat template of the model at PATH writes; empty if none is stored."""
    workdir = Workdir(resolve_path(path))
    if workdir.is_workdir:
        return workdir.config().data.template_date
    file = workdir.path / artifact.METADATA_FILE
    return (read_json(file).get("template_date") if file.exists() else None) or ""


def make_model(config: Config, vocab_size: int, head: HeadConfig = _DEFAULT_HEAD) -> RewardModel:
    """Returns the model of the section `config.model`: of its path, or with its sizes and `vocab_size`."""
    head = dataclasses.replace(head, init=config.head_init)
    options = {key: config[key] for key in ("dtype", "param_dtype", "attention", "remat", "scan_layers")}
    if config.path:
        workdir = Workdir(resolve_path(config.path))
        file = workdir.model_file if workdir.is_workdir else _config_file(workdir.path)
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


def start_params(config: Config, model: RewardModel, mesh: Mesh) -> Params:
    """Returns the parameters at the start of the run of `config`, float32 where they are trained."""
    if not partition.is_float32(partition.trainable_pattern(config), model):
        model = dataclasses.replace(model, param_dtype="float32")
    return initial_params(config.model, model, mesh, jax.random.key(config.train.seed))


def frozen_params(config: Config, model: RewardModel, mesh: Mesh) -> Params:
    """Returns the parameters that the run of `config` does not train, in the dtypes of the model."""
    pattern = partition.trainable_pattern(config)
    if not jax.tree.leaves(partition.split(jax.eval_shape(model.init, jax.random.key(0)), pattern)[1]):
        return {}
    return partition.store(start_params(config, model, mesh), pattern, model)[1]


def restore(workdir: Workdir, model: RewardModel, mesh: Mesh) -> Params:
    """Returns the parameters of the best checkpoint of a workdir, and those that its run does not train.

    Args:
      model: with the adapters of the run.

    Raises:
      InputError: there is no checkpoint, it is damaged, or the frozen parameters cannot be read or have changed.
    """
    trained, config = workdir.restore_params(model, mesh), workdir.config()
    if workdir.frozen_file.exists():
        config.model.path = workdir.frozen_path()
        try:
            frozen = frozen_params(config, dataclasses.replace(model, head=workdir.head()), mesh)
        except InputError as error:
            raise InputError(f"{workdir}: the parameters that were not trained cannot be read: {error}") from error
        workdir.check_frozen(frozen)
        return pytree.merge(trained, frozen)
    return trained


def initial_params(config: Config, model: RewardModel, mesh: Mesh, key: jax.Array) -> Params:
    """Returns the parameters at the start of training: of `config.path` if it is set, and random where it has none.

    Adapters of the model at `config.path` are merged; those of `model` are new.

    Raises:
      InputError: the pretrained head has other attributes, or another shift, than the model's.
    """
    if model.lora:
        params = initial_params(config, dataclasses.replace(model, lora=None), mesh, key)
        init = functools.partial(lora.init, jax.eval_shape(lambda: params), model.lora, key)
        shardings = state_shardings(mesh, jax.eval_shape(init))
        return pytree.merge(params, jax.jit(init, out_shardings=shardings)())
    if not config.path:
        shardings = state_shardings(mesh, jax.eval_shape(model.init, key))
        return jax.jit(model.init, out_shardings=shardings)(key)
    workdir = Workdir(resolve_path(config.path))
    if workdir.is_workdir:
        _check_head(workdir.path, workdir.head(), model.head)
        return _rescale(restore_merged(workdir, model, mesh), workdir.head(), model.head)
    files = _tensors(workdir.path)
    found = heads.read(files, model.decoder, artifact.read_metadata(workdir.path))
    if found is None:
        shape = (model.decoder.hidden_size, len(model.head.attributes))
        return weights.load(files, model, mesh, model.head.init * jax.random.normal(key, shape, "float32"))
    _check_head(workdir.path, found.config, model.head)
    params = weights.load(files, model, mesh, found.kernel, found.tensors)
    return _rescale(params, found.config, model.head)


def continue_head(config: Config, head: HeadConfig) -> HeadConfig:
    """Returns `head` with the shift (a bias, a normalization) of the head at `config.path`, unless it has its own."""
    if not config.path or head.shift:
        return head
    workdir = Workdir(resolve_path(config.path))
    if workdir.is_workdir:
        found = workdir.head()
    else:
        decoder, metadata = (
            read_config(_config_file(workdir.path))[1],
            artifact.read_metadata(workdir.path, verify=False),
        )
        read = heads.read(_tensors(workdir.path), decoder, metadata)
        found = read.config if read else head
    return dataclasses.replace(head, shift=found.shift) if len(found.attributes) == len(head.attributes) else head


def restore_merged(workdir: Workdir, model: RewardModel, mesh: Mesh) -> Params:
    """Returns the parameters that `restore` returns, with the adapters added to the matrices."""
    adapters = LoraConfig.from_config(workdir.config().lora)
    params = restore(workdir, dataclasses.replace(model, lora=adapters), mesh)
    return lora.merge(params, adapters) if adapters else params


def _tensors(directory: pathlib.Path) -> TensorDirectory:
    if peft.is_adapter(directory):
        return peft.MergedTensors(directory, _tensors(_base_directory(directory)))
    return TensorDirectory(directory, heads.SEPARATE_FILES)


def _config_file(directory: pathlib.Path) -> pathlib.Path:
    """Returns the path of a Hugging Face directory's config.json; of an adapter: of its base model's."""
    return (_base_directory(directory) if peft.is_adapter(directory) else directory) / "config.json"


def _base_directory(adapter: pathlib.Path) -> pathlib.Path:
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


def _check_head(directory: pathlib.Path, found: HeadConfig, expected: HeadConfig) -> None:
    nameless = len(expected.attributes) == 1 or all(map(heads.is_placeholder, found.attributes))
    same = len(found.attributes) == len(expected.attributes) if nameless else found.attributes == expected.attributes
    if not same:
        raise InputError(
            f"{directory}: the reward head predicts {', '.join(found.attributes)}; the objective expects "
            f"{', '.join(expected.attributes)}: set config.objective.attributes to the head's, merge them into one "
            "(rmjax.export --merge), or start from a model without a reward head"
        )
    if found.shift != expected.shift:
        raise InputError(
            f"{directory}: the reward head has the shift {list(found.shift)}; config.objective.standardize needs "
            f"{list(expected.shift)}: set it to False, or start from a model without a reward head"
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


def load_model(
    path: str, *, mesh: Mesh, dtype: str = "float32", attention: str = "auto", max_length: int = 0
) -> LoadedModel:
    """Returns a trained reward model: an artifact, a Hugging Face classifier, or a workdir's best checkpoint.

    Args:
      max_length: of a conversation, for a model that stores none; it matters to LongRoPE alone. 0: all its positions.

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
        model = dataclasses.replace(model, decoder=decoder.for_length(metadata["max_length"]))
        params = restore_merged(workdir, model, mesh)
        return LoadedModel(model, params, workdir.tokenizer_directory, metadata["max_length"], metadata)
    metadata = artifact.read_metadata(directory)
    family, decoder = read_config(_config_file(directory))
    files = _tensors(directory)
    if (head := heads.read(files, decoder, metadata)) is None:
        fix = heads.suggest_name(files, decoder.hidden_size)
        raise InputError(
            f"{directory}: there is no reward head among the tensors (such as score.weight or v_head.summary.weight); "
            + (fix or "train one with this directory as config.model.path, or give a reward model")
        )
    decoder = decoder.for_length(metadata.get("max_length", max_length))
    model = RewardModel(decoder, head.config, dtype, attention=attention, family=family)
    params = weights.load(files, model, mesh, head.kernel, head.tensors)
    if not metadata:
        options = heads.data_options(read_json(files.config_file))
        metadata = {"reward_head": head.description, "data_options": options, **head.statistics}
    directory = pathlib.Path(tokenizer_directory(path))
    return LoadedModel(model, params, directory, metadata.get("max_length", decoder.max_positions), metadata)
