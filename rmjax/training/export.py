"""Export of a model to a serving artifact."""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rmjax.core import locks, os_errors, pytree, readouts
from rmjax.core.errors import InputError
from rmjax.core.files import new_directory
from rmjax.core.mesh import make_mesh
from rmjax.data.tokens.tokenizer import ADDED_PAD, Tokenizer
from rmjax.models import artifact, loading, partition, paths, peft_adapters
from rmjax.models import peft as peft_format
from rmjax.models.architecture import HeadConfig
from rmjax.models.decoder import RewardModel
from rmjax.models.families import FAMILIES, read_config
from rmjax.models.lora import LoraConfig
from rmjax.models.members import with_combination
from rmjax.models.workdir import Workdir
from rmjax.training import token_head


def export(
    model: pathlib.Path | str,
    output: pathlib.Path,
    *,
    merge: Sequence[str] = (),
    standardize: bool = False,
    peft: bool = False,
    head_tokens: Sequence[str] = (),
    step_separator: str = "",
    combination: str = "",
    beta: float | None = None,
    change: Callable[[loading.LoadedModel], loading.LoadedModel] = lambda loaded: loaded,
) -> dict[str, Any]:
    """Writes the artifact of a model; `output` appears only when it is complete.

    Args:
      model: a workdir, whose best checkpoint is exported, an artifact, or a Hugging Face directory with a head.
      merge: `attribute=weight` each: reduce the attributes to one reward, in the weights of the head.
      standardize: rewards become (reward - mean) / std, with mean and std over the validation data. transformers'
        logits then differ from them by a constant, see `artifact.write`.
      peft: write the adapters and the head alone, for the PEFT library.
      head_tokens: `model` is a causal language model, and the reward the logit of this token, or that of the first
        minus that of the second.
      step_separator: with `head_tokens`: the model judges steps, and is read at this text after each.
      combination, beta: of the members' rewards (`models.members`), which rmjax applies by default; empty: the model's.
        The Hugging Face head of the artifact holds their mean whichever is chosen.
      change: returns the model to be written, of the one that was loaded; it has the same decoder.

    Returns:
      the contents of rmjax.json.

    Raises:
      InputError: `model` cannot be loaded, `output` is in use or cannot be written, or an option does not fit the
        head.
    """
    mesh = make_mesh()
    with (
        locks.hold(output, "--output", directory=False),
        os_errors.reported(output),
        jax.set_mesh(mesh),
        output_directory(output) as incomplete,
    ):
        if head_tokens:
            loaded = token_head.load(str(model), mesh, head_tokens, step_separator)
        else:
            loaded = _load_adapters(model, mesh) if peft else loading.load_model(str(model), mesh=mesh)
        if wrong := pytree.non_finite_paths(loaded.params):
            raise InputError(
                f"{model}: {wrong[0]} is not finite, so the model is not exported; train again with a lower "
                "config.optimizer.learning_rate, or restore the weights"
            )
        loaded = change(loaded)
        loaded = dataclasses.replace(loaded, model=with_combination(loaded.model, combination, beta))
        if merge:
            loaded = _merge_attributes(loaded, merge)
        if standardize:
            loaded = _standardize_rewards(loaded)
        tokenizer = Tokenizer.load(str(loaded.directory), readout=loaded.metadata["pooling"])
        padded = tokenizer.with_separate_pad()
        if peft:  # the base model's embedding stays as it is
            fits = padded.base.pad_token_id < loaded.model.decoder.vocab_size
            metadata = _write_adapters(incomplete, loaded, padded if fits else tokenizer, model)
        else:
            padded.save(incomplete)
            loaded = _cover_padding(loaded, padded)
            pad = padded.base.pad_token_id
            metadata = artifact.write(incomplete, loaded.model, loaded.params, pad, loaded.metadata)
    return metadata


@contextlib.contextmanager
def output_directory(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary directory beside `output`, which must be new or empty, and replaces it at the end."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: exists and is not an empty directory; choose another --output or remove it")
    with new_directory(output, output.with_name(f".{output.name}.part")) as partial:
        yield partial


def _load_adapters(path: pathlib.Path | str, mesh: Mesh) -> loading.LoadedModel:
    """Returns the model of a workdir with its trained parameters alone: adapters and head.

    Raises:
      InputError: these are not what the run trained, or PEFT could not read its base model.
    """
    workdir = Workdir(pathlib.Path(path))
    config = workdir.config() if workdir.is_workdir else None
    if config is None or not config.lora.rank:
        found = "trained no adapters (config.lora.rank is 0)" if config else "is not a workdir"
        raise InputError(f"--peft: {path} {found}; export it without --peft")
    family, decoder = read_config(workdir.checked(workdir.model_file))
    adapters = LoraConfig.from_config(config.lora)
    mean = readouts.is_mean(config.data.readout)
    options = {"param_dtype": config.model.param_dtype, "family": family}
    model = RewardModel(decoder, workdir.head(), lora=adapters, mean_readout=mean, **options)
    pattern = partition.trainable_pattern(config)
    if not partition.is_float32(pattern, model):
        rule = config.train.trainable
        raise InputError(
            f"--peft: the run trained more than adapters and the head (config.train.trainable is {rule!r}), which an "
            "adapter does not hold; export it without --peft"
        )
    params = workdir.restore_params(model, mesh)
    if "head" not in params:
        raise InputError(
            "--peft: the run did not train the head, which has to be in the adapter; export without --peft"
        )
    metadata = workdir.metadata()
    tokenizer = workdir.checked(workdir.tokenizer_directory)
    return loading.LoadedModel(model, params, tokenizer, metadata["max_length"], metadata)


def _write_adapters(
    directory: pathlib.Path, loaded: loading.LoadedModel, tokenizer: Tokenizer, path: pathlib.Path | str
) -> dict[str, Any]:
    """Writes PEFT's files, the tokenizer and rmjax.json, and returns the contents of the latter."""
    base = Workdir(pathlib.Path(path)).frozen_path()
    if not base or paths.is_composed(base):
        kind = "a workdir or an adapter" if base else "not saved (config.model.path is empty)"
        raise InputError(
            f"--peft: the base model {base or 'of the run'} is {kind}, and PEFT needs a whole model: export it without "
            "--peft, or train from an exported artifact"
        )
    tokenizer.save(directory)
    model, params = artifact.fold_scale(loaded.model, loaded.params)
    peft_adapters.write(directory, *artifact.write_members(directory, model, params), base)
    files, family = paths.tensors(paths.resolve_path(base)), FAMILIES[model.family]
    names = {re.sub(f"^{family.prefix}", family.base, name): name for name in files.shapes}
    checksum = peft_format.base_sum(files, [names[name] for name in peft_adapters.matrices(model)])
    identity = {peft_format.BASE_SUM: checksum, peft_format.OPTIONS: peft_format.options(directory)}
    return artifact.write_metadata(directory, model, loaded.metadata | identity)


def _cover_padding(loaded: loading.LoadedModel, tokenizer: Tokenizer) -> loading.LoadedModel:
    """Returns the model with a row of zeros in its embedding for a padding token beyond it, which was added."""
    if tokenizer.base.pad_token != ADDED_PAD:
        return loaded
    decoder, params = loaded.model.decoder, loaded.params
    size = max(decoder.vocab_size, tokenizer.base.pad_token_id + 1)
    embedding = jnp.pad(params["decoder"]["embedding"]["weight"], ((0, size - decoder.vocab_size), (0, 0)))
    params = params | {"decoder": params["decoder"] | {"embedding": {"weight": embedding}}}
    model = dataclasses.replace(loaded.model, decoder=dataclasses.replace(decoder, vocab_size=size))
    metadata = loaded.metadata | {"added_padding_token": ADDED_PAD}
    return dataclasses.replace(loaded, model=model, params=params, metadata=metadata)


def _merge_attributes(loaded: loading.LoadedModel, merge: Sequence[str]) -> loading.LoadedModel:
    """Returns the model with the one reward sum_a w_a r_a, the weights w folded into the head's."""
    head = loaded.model.head
    weights = dict.fromkeys(head.attributes, 0.0)
    for entry in merge:
        name, _, weight = entry.partition("=")
        if name not in weights:
            raise InputError(f"--merge names the attribute {name!r}; the head has {', '.join(head.attributes)}")
        try:
            weights[name] = float(weight)
        except ValueError as error:
            raise InputError(f"--merge has {entry!r}; expected attribute=weight") from error
    w = jnp.asarray(list(weights.values()), jnp.float32)
    scale = jnp.asarray(head.scale or [1.0] * len(w), jnp.float32)
    shift = sum(a * b for a, b in zip(weights.values(), head.shift or [0.0] * len(w), strict=True))
    kernel = loaded.params["head"]["kernel"]
    kernel = kernel.reshape(kernel.shape[0], head.members, -1) @ (w * scale)  # [D, K]
    metadata = loaded.metadata | {"merged": weights}
    if tuple(weights.values()) != head.merge:  # the stored statistics are of another reward
        metadata |= {"reward_mean": None, "reward_std": None}
    of_members = {name: getattr(head, name) for name in ("members", "combination", "beta")}
    head = HeadConfig(hidden=head.hidden, shift=(shift,) if shift else (), **of_members)
    model = dataclasses.replace(loaded.model, head=head)
    params = loaded.params | {"head": loaded.params["head"] | {"kernel": kernel}}
    return dataclasses.replace(loaded, model=model, params=params, metadata=metadata)


def _standardize_rewards(loaded: loading.LoadedModel) -> loading.LoadedModel:
    """Returns the model whose reward has mean 0 and standard deviation 1 over the validation data."""
    head, mean, std = loaded.model.head, loaded.metadata.get("reward_mean"), loaded.metadata.get("reward_std")
    if len(head.attributes) != 1 or mean is None or not std:
        raise InputError(
            f"--standardize needs one reward with known validation mean and std; the head has "
            f"{', '.join(head.attributes)}, mean {mean}, std {std}; remove --standardize"
        )
    scale, shift = (head.scale or (1.0,))[0], (head.shift or (0.0,))[0]
    head = dataclasses.replace(head, scale=(scale / std,), shift=((shift - mean) / std,))
    model = dataclasses.replace(loaded.model, head=head)
    return dataclasses.replace(loaded, model=model, metadata=loaded.metadata | {"standardized": True})
