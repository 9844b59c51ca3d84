"""Loading of models and their parameters from a PATH: an artifact, a Hugging Face directory or a workdir."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from rmjax.core import pytree
from rmjax.core.config import Config
from rmjax.core.errors import InputError
from rmjax.core.files import read_json
from rmjax.core.option_names import Option
from rmjax.core.readouts import is_mean
from rmjax.models import artifact, head_tokens, heads, int8, lora, memory, partition, paths, start_head, weights
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.continued import StartAdapters
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.families import read_config
from rmjax.models.lora import LoraConfig
from rmjax.models.sharding import state_shardings
from rmjax.models.workdir import Workdir

_DEFAULT_HEAD = HeadConfig()
_NO_ADAPTERS = StartAdapters()


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A reward model with its parameters."""

    model: RewardModel
    params: Params
    directory: pathlib.Path  # with the tokenizer's files
    max_length: int  # of a conversation in training, in tokens
    metadata: dict[str, Any]  # contents of rmjax.json; of a workdir: what export would write; else `reward_head`


def make_model(config: Config, vocab_size: int, head: HeadConfig = _DEFAULT_HEAD) -> RewardModel:
    """Returns the model of the section `config.model`: of its path, or with its sizes and `vocab_size`."""
    head = dataclasses.replace(head, init=config.head_init, members=config.head_members)
    keys = ("dtype", "param_dtype", "frozen_dtype", "attention", "remat", "scan_layers")
    options = {key: config[key] for key in keys}
    if config.path:
        workdir = Workdir(paths.resolve_path(config.path))
        file = workdir.checked(workdir.model_file) if workdir.is_workdir else paths.config_file(workdir.path)
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


def start_params(
    config: Config, model: RewardModel, mesh: Mesh, adapters: StartAdapters = _NO_ADAPTERS, progress: bool = False
) -> Params:
    """Returns the parameters at the start of the run of `config`, float32 where they are trained.

    Args:
      adapters: from `continued.find`.
      progress: show a progress bar.
    """
    if not partition.is_float32(partition.trainable_pattern(config), model):
        model = dataclasses.replace(model, param_dtype="float32")
    if adapters.base:
        return _continue_adapters(config, model, mesh, adapters)
    return initial_params(config.model, model, mesh, jax.random.key(config.train.seed), progress)


def _continue_adapters(config: Config, model: RewardModel, mesh: Mesh, adapters: StartAdapters) -> Params:
    """Returns the parameters of the base model with the adapters and the head of the model at `config.model.path`."""
    params, workdir = _base_params(config, model, mesh, adapters.base), Workdir(paths.resolve_path(config.model.path))
    if workdir.is_workdir:
        run, head = workdir.config().model, workdir.head()
        options = {"param_dtype": run.param_dtype, "lora": LoraConfig.from_config(workdir.config().lora)}
        trained = pytree.flatten(restore(workdir, dataclasses.replace(model, head=head, **options), mesh))
        trained = {path: leaf for path, leaf in trained.items() if re.search(partition.FEW, path)}
    else:
        found = heads.read(paths.tensors(workdir.path), model.decoder, artifact.read_metadata(workdir.path))
        head, trained = (found.config if found else model.head), dict(adapters.leaves)
        if found:
            trained |= pytree.flatten({"head": found.params})
    start_head.check(workdir.path, head, model.head)
    leaves = pytree.flatten(params)
    for path, value in trained.items():
        if not isinstance(value, jax.Array):
            value = jax.make_array_from_callback(value.shape, leaves[path].sharding, value.__getitem__)
        leaves[path] = value
    return start_head.rescale(pytree.unflatten(leaves), head, model.head)


def _base_params(config: Config, model: RewardModel, mesh: Mesh, path: str) -> Params:
    """Returns the parameters at the start of a run from the model at `path`; adapters are new.

    If the head is trained, it is as it is there, whatever the run expects of a head: it will be replaced.
    """
    config = config.copy_and_resolve_references()
    config.model.path = path
    if path and re.search(partition.trainable_pattern(config), "head/kernel"):
        model = dataclasses.replace(model, head=start_head.find(path) or model.head)
    return start_params(config, model, mesh)


def frozen_params(config: Config, model: RewardModel, mesh: Mesh, workdir: Workdir) -> Params:
    """Returns the parameters that the run of `config` in `workdir` does not train, in the dtypes of the model."""
    if not _has_frozen(config, model):
        return {}
    pattern = partition.trainable_pattern(config)
    return partition.store(_base_params(config, model, mesh, workdir.frozen_path()), pattern, model)[1]


def _has_frozen(config: Config, model: RewardModel) -> bool:
    shapes = model.shapes()
    return bool(jax.tree.leaves(partition.split(shapes, partition.trainable_pattern(config))[1]))


def restore(workdir: Workdir, model: RewardModel, mesh: Mesh) -> Params:
    """Returns the parameters of the best checkpoint of a workdir, and those that its run does not train.

    Args:
      model: with the adapters of the run.

    Raises:
      InputError: there is no checkpoint, it is damaged, or the frozen parameters cannot be read or have changed.
    """
    trained, config = workdir.restore_params(model, mesh), workdir.config()
    if _has_frozen(config, model):
        model = dataclasses.replace(model, head=workdir.head())
        try:
            frozen = frozen_params(config, model, mesh, workdir)
        except InputError as error:
            raise InputError(f"{workdir}: the parameters that were not trained cannot be read: {error}") from error
        workdir.check_frozen(partition.checksum(frozen))
        return pytree.merge(trained, frozen)
    return trained


def initial_params(config: Config, model: RewardModel, mesh: Mesh, key: jax.Array, progress: bool = False) -> Params:
    """Returns the parameters at the start of training: of `config.path` if it is set, and random where it has none.

    Adapters of the model at `config.path` are merged; those of `model` are new.

    Raises:
      InputError: the pretrained head has other attributes, or another shift, than the model's.
    """
    if model.lora:
        params = initial_params(config, dataclasses.replace(model, lora=None), mesh, key, progress)
        init = functools.partial(lora.init, config=model.lora, key=key)
        shardings = state_shardings(mesh, jax.eval_shape(init, params))
        return pytree.merge(params, jax.jit(init, out_shardings=shardings)(params))
    if not config.path:
        shardings = state_shardings(mesh, model.shapes())
        return jax.jit(model.init, out_shardings=shardings)(key)
    workdir = Workdir(paths.resolve_path(config.path))
    if workdir.is_workdir:
        found = workdir.head()
        start_head.check(workdir.path, found, model.head)
        saved = dataclasses.replace(model, head=dataclasses.replace(model.head, members=found.members))
        return start_head.rescale(restore_merged(workdir, saved, mesh), found, model.head)
    files = paths.tensors(workdir.path)
    read = heads.read(files, model.decoder, artifact.read_metadata(workdir.path))
    if read is None:
        return weights.load(files, model, mesh, model.init_head(key), progress=progress)
    start_head.check(workdir.path, read.config, model.head)
    saved = dataclasses.replace(model, head=dataclasses.replace(model.head, members=read.config.members))
    params = weights.load(files, saved, mesh, read.params, read.tensors, progress)
    return start_head.rescale(params, read.config, model.head)


def restore_merged(workdir: Workdir, model: RewardModel, mesh: Mesh) -> Params:
    """Returns the parameters that `restore` returns, in the dtypes of the model, with adapters added to matrices."""
    config = workdir.config()
    options = {"lora": LoraConfig.from_config(config.lora), "param_dtype": config.model.param_dtype}
    saved = dataclasses.replace(model, frozen_dtype=config.model.frozen_dtype, **options)
    params = int8.dequantize(restore(workdir, saved, mesh), config.model.param_dtype)
    params = lora.merge(params, saved.lora) if saved.lora else params
    shapes = model.shapes()
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, shapes)


def load_model(
    path: str,
    *,
    mesh: Mesh,
    dtype: str = "float32",
    param_dtype: str = "float32",
    quantized: bool = False,
    attention: str = "auto",
    max_length: int = 0,
    progress: bool = False,
    tokens: Sequence[int] = (),
    attribute: str = "reward",
    trained: bool = False,
    option: Option | None = None,
) -> LoadedModel:
    """Returns a trained reward model: an artifact, a Hugging Face classifier, or a workdir's best checkpoint.

    Args:
      param_dtype: of parameters; those of a workdir have the dtype of its configuration.
      quantized: store the layers' matrices as int8; of an artifact or a Hugging Face directory, each while it is read.
      max_length: of a conversation, for a model that stores none; it matters to LongRoPE alone. 0: all its positions.
      progress: show a progress bar.
      tokens, attribute: of a head made of rows of the language modeling head, see `head_tokens.read`.
      trained: the caller will hold gradients and moments too; only for the error if they do not fit.
      option: formats `mesh`, `dtype` and `int8` in errors, as the caller's options; None: it has none.

    Raises:
      InputError: PATH has no model, a file is damaged, there is no reward head, or the parameters do not fit in memory.
    """
    directory = paths.resolve_path(path)
    workdir = Workdir(directory)
    if workdir.is_workdir:
        family, decoder = read_config(workdir.checked(workdir.model_file))
        param_dtype = workdir.config().model.param_dtype
        model = RewardModel(decoder, workdir.head(), dtype, param_dtype, attention, family=family)
        metadata = workdir.metadata()
        decoder = decoder.for_length(metadata["max_length"])
        model = dataclasses.replace(model, decoder=decoder, mean_readout=is_mean(metadata["pooling"]))
        memory.check_parameters(model, mesh, path, whole=True, trained=trained, option=option)
        restored = lambda: restore_merged(workdir, model, mesh)
        params = int8.quantize(restored()) if quantized else restored()
        tokenizer = workdir.checked(workdir.tokenizer_directory)
        return LoadedModel(model, params, tokenizer, metadata["max_length"], metadata)
    metadata = artifact.read_metadata(directory)
    family, decoder = read_config(paths.config_file(directory))
    files = paths.tensors(directory)
    head = heads.read(files, decoder, metadata)
    if tokens:
        if head:
            raise InputError(f"{directory}: there is a reward head already ({head.description}); give no --head_tokens")
        head = head_tokens.read(files, family, tokens, attribute)
    if head is None:
        fix = heads.suggest_name(files, decoder.hidden_size)
        raise InputError(
            f"{directory}: there is no reward head among the tensors (such as score.weight or v_head.summary.weight); "
            + (
                fix
                or "train one with this directory as config.model.path, give a reward model, or name the tokens whose "
                "logits are the reward (rmjax.export --head_tokens)"
            ),
            page="docs/troubleshooting.md#there-is-no-reward-head",
        )
    if not metadata:
        values = read_json(files.config_file)
        options, pooling = heads.data_options(values), heads.readout(values)
        metadata = {"reward_head": head.description, "data_options": options, "pooling": pooling, **head.statistics}
    decoder, mean = decoder.for_length(metadata.get("max_length", max_length)), is_mean(metadata["pooling"])
    model = RewardModel(decoder, head.config, dtype, param_dtype, attention, family=family, mean_readout=mean)
    memory.check_parameters(model, mesh, path, int8=quantized, trained=trained, option=option)
    params = weights.load(files, model, mesh, head.params, head.tensors, progress, quantized)
    directory = pathlib.Path(paths.tokenizer_directory(path))
    return LoadedModel(model, params, directory, metadata.get("max_length", decoder.max_positions), metadata)
