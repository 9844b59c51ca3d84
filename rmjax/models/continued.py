"""The adapters of the model at `config.model.path`: continued by a run with the same, and otherwise merged."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from rmjax.core import pytree
from rmjax.core.config import Config
from rmjax.models import artifact, heads, lora, partition, paths, peft, peft_adapters
from rmjax.models.decoder import RewardModel
from rmjax.models.lora import LoraConfig
from rmjax.models.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class StartAdapters:
    """What a run does with the adapters of the model that it starts from.

    Attributes:
      base: path or hub name of the model that they were trained on, if the run continues them; else empty.
      leaves: {path: float32 array} of the adapters of a PEFT directory that are continued.
      line: what is done, for the user; empty if there are no adapters.
    """

    base: str = ""
    leaves: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    line: str = ""


def find(config: Config, model: RewardModel) -> StartAdapters:
    """Returns what the run of `config` does with the adapters of the model at `config.model.path`.

    It continues them if its own have the same rank, scale and matrices, only they and the head are trained, and the
    saved model consists of them, its head and a base model. Otherwise they are added to the matrices.

    Args:
      model: with the adapters of the run, if it has some.
    """
    path = config.model.path
    if not path or not paths.is_composed(path):
        return StartAdapters()
    workdir = Workdir(paths.resolve_path(path))
    theirs = LoraConfig.from_config(workdir.config().lora) if workdir.is_workdir else None
    if workdir.is_workdir and not theirs:
        return StartAdapters()
    if not model.lora:
        return StartAdapters(line=f"the adapters of {path} are added to its matrices (config.lora.rank is 0)")
    base, leaves, reason = "", dict[str, np.ndarray](), ""
    if (rule := config.train.trainable) not in partition.ADAPTERS_ONLY:
        reason = f"config.train.trainable is {rule!r}"
    elif theirs:
        base, reason = workdir.frozen_path(), _difference(workdir, theirs, config, model)
    else:
        base = peft.base_model(workdir.path)
        try:
            leaves = _read_peft(workdir, model)
        except peft_adapters.OtherAdapters as difference:
            reason = str(difference)
    if reason:
        line = f"the adapters of {path} are added to its matrices, and new ones begin, since {reason}"
        return StartAdapters(line=line)
    line = f"continues the adapters of {path} (rank {model.lora.rank}, alpha {model.lora.alpha:g}) on {base}"
    return StartAdapters(base, leaves, line)


def _difference(workdir: Workdir, theirs: LoraConfig, config: Config, model: RewardModel) -> str:
    """Returns why the adapters of a run are not those of `model`; empty if they are."""
    run, ours = workdir.config(), model.lora
    assert ours is not None
    for name, saved, own in (("rank", theirs.rank, ours.rank), ("dora", theirs.dora, ours.dora)):
        if saved != own:
            return f"their {name} is {saved}, config.lora.{name} is {own}"
    if theirs.scale != ours.scale:
        return f"their scale is {theirs.scale:g}, that of config.lora (alpha, rank and rslora) {ours.scale:g}"
    if _paths(model, theirs) != _paths(model, ours):
        return f"their targets are {theirs.targets!r}, config.lora.targets is {ours.targets!r}"
    if (rule := run.train.trainable) not in partition.ADAPTERS_ONLY:
        return f"their run trained more (train.trainable is {rule!r})"
    if not workdir.frozen_path():
        return "their base model is a random initialization"
    if run.model.frozen_dtype != config.model.frozen_dtype:
        saved, own = run.model.frozen_dtype, config.model.frozen_dtype
        return f"their base model has frozen_dtype {saved!r}, config.model.frozen_dtype is {own!r}"
    return ""


def _paths(model: RewardModel, adapters: LoraConfig) -> set[str]:
    shapes = dataclasses.replace(model, lora=adapters).shapes()
    return {path for path in pytree.flatten(shapes) if lora.is_adapter(path)}


def _read_peft(workdir: Workdir, model: RewardModel) -> dict[str, np.ndarray]:
    files = paths.tensors(workdir.path)
    head = heads.read(files, model.decoder, artifact.read_metadata(workdir.path))
    return peft_adapters.read(workdir.path, model, head.tensors if head else frozenset())
