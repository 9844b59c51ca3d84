"""Checks of the values of a configuration, and of the configuration of a run that is resumed."""

import datetime
import math
import pathlib
from collections.abc import Sequence

from rmjax.core import readouts
from rmjax.core.config import REQUIRED, Config, leaves, load
from rmjax.core.errors import InputError

# Keys (and sections, with a dot) that may change when a workdir is resumed: memory layout, and logging and
# checkpointing. They do not affect the results, beyond float rounding.
_LAYOUT = ("data.row_length", "mesh.", "model.attention", "model.remat", "model.scan_layers", "train.rows_per_device")
_LOGGING = ("checkpoint.", "evaluation.", "train.log_every", "train.loggers", "train.profile")
CHANGEABLE_ON_RESUME = ("name", "train.cache_features", "train.skip_non_finite", *_LAYOUT, *_LOGGING)
_FROM_RUN = ("data.template_date", "data.readout")  # keys whose value "" stands for that of the run that is resumed
BOUNDS = {  # section: (keys of 1 or more, keys of 0 or more)
    "model": (
        ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_members"),
        ("head_init",),
    ),
    "data": (("max_length",), ("row_length", "train_limit", "validation_limit", "preference_label")),
    "objective": ((), ("centering", "reward_l2", "label_smoothing")),
    "lora": ((), ("rank", "alpha")),
    "optimizer": (
        (),
        ("learning_rate", "warmup_steps", "hold_steps", "final_steps", "weight_decay", "grad_clip", "layer_decay"),
    ),
    "train": (("batch_size", "rows_per_device", "log_every"), ("steps", "epochs", "skip_non_finite")),
    "checkpoint": (("keep", "keep_best"), ("every",)),
    "evaluation": (("batch_size",), ("every",)),
}
_CHOICES = {
    "model.dtype": ("float32", "bfloat16"),
    "model.param_dtype": ("float32", "bfloat16"),
    "model.frozen_dtype": ("", "int8"),
    "model.remat": ("none", "small", "layer"),
    "data.synthetic_format": ("pairs", "kwise", "regression", "process"),
    "data.strings": ("joined", "chat"),
    "data.ties": ("drop", "half"),
    "data.label_field": ("", "better_response_id", "safer_response_id"),
    "data.step_labels": ("auto", "binary", "ternary"),
    "data.step_readout": ("step", "separator"),
    "data.duplicates": ("keep", "drop", "drop_near"),
    "data.on_overlong": ("drop", "truncate_prompt", "error"),
    "data.on_bad_record": ("error", "skip"),
    "objective.member_weights": ("exponential", "poisson", "equal"),
    "objective.process_loss": ("cross_entropy", "mse"),
    "optimizer.name": ("adamw", "lion", "adafactor", "muon"),
    "optimizer.schedule": ("constant", "linear", "cosine"),
}
ELEMENTS = {  # type of the entries of a tuple
    str: ("data.train", "data.validation", "data.columns", "data.exclude", "objective.attributes", "train.loggers"),
    float: ("data.weights", "objective.weights", "objective.attribute_weights"),
}


def check_choice(name: str, value: str, choices: Sequence[str] = ()) -> None:
    """Raises InputError naming the key if `value` is not one of `choices`, by default those of the key `name`."""
    if value not in (choices := choices or _CHOICES[name]):
        raise InputError(f"config.{name} is {value!r}; choose one of {', '.join(choices)}")


def check_date(date: str) -> str:
    """Returns a value of `data.template_date` in the form YYYY-MM-DD; raises InputError if it has another form."""
    try:
        return datetime.datetime.strptime(date, "%Y-%m-%d").date().isoformat()
    except ValueError as error:
        raise InputError(f"config.data.template_date is {date!r}; expected a date as YYYY-MM-DD") from error


def check(config: Config, data: bool = True) -> None:
    """Raises InputError for missing and invalid values, naming the key, the value and the valid values.

    Args:
      data: will be read; otherwise its sources may be missing.
    """
    values = dict(leaves(config))
    required = lambda key: data or not key.startswith("data.")
    if missing := [key for key, value in values.items() if value in (REQUIRED, (REQUIRED,)) and required(key)]:
        flags = " ".join(f"--config.{key}={'DIR' if key == 'model.path' else 'FILE'}" for key in missing)
        raise InputError(
            f"{', '.join(f'config.{key}' for key in missing)}: required by this configuration and not set; on the "
            f"command line: {flags} (hub names are accepted too)"
        )
    for key, value in values.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"config.{key} is {value}; expected a finite number")
    for section, (positive, not_negative) in BOUNDS.items():
        for key in positive + not_negative:
            if config[section][key] < (minimum := int(key in positive)):
                raise InputError(f"config.{section}.{key} is {config[section][key]}; expected at least {minimum}")
    for kind, keys in ELEMENTS.items():
        for key in keys:
            for entry in values[key]:
                if not isinstance(entry, str if kind is str else int | float):
                    expected = "texts" if kind is str else "numbers"
                    raise InputError(f"config.{key} holds {entry!r}; expected {expected}")
    for key in _CHOICES:
        check_choice(key, values[key])
    if config.data.template_date:
        check_date(config.data.template_date)
    if config.data.readout:
        readouts.check(config.data.readout)
    if not 0.5 <= config.data.similarity <= 1:
        raise InputError(f"config.data.similarity is {config.data.similarity}; expected 0.5 to 1")
    if config.objective.label_smoothing >= 0.5:
        raise InputError(f"config.objective.label_smoothing is {config.objective.label_smoothing}; expected below 0.5")
    if not 0 < config.optimizer.layer_decay <= 1:
        raise InputError(f"config.optimizer.layer_decay is {config.optimizer.layer_decay}; expected above 0, up to 1")
    if config.optimizer.schedule == "constant" and (config.optimizer.hold_steps or config.optimizer.final_steps):
        raise InputError(
            "config.optimizer.hold_steps and config.optimizer.final_steps belong to a decay, and "
            "config.optimizer.schedule is 'constant'; set them to 0, or choose linear or cosine"
        )
    if config.data.weights and not config.data.shuffle:
        raise InputError("config.data.weights draws from the sources at random; set config.data.shuffle to True")
    if not (config.train.steps or config.train.epochs):
        raise InputError("config.train.steps and config.train.epochs are 0; set one of them, or both")


def check_same_run(config: Config, path: pathlib.Path) -> None:
    """Raises InputError naming each key of `config` that would change the results of the run saved in `path`."""
    old = dict(leaves(load(path)))
    changed = [
        f"{key}: {old.get(key)!r} there, {value!r} here"
        for key, value in leaves(config)
        if value != old.get(key) and not key.startswith(CHANGEABLE_ON_RESUME) and not (key in _FROM_RUN and value == "")
    ]
    if changed:
        raise InputError(
            f"{path.parent} holds a run with another configuration ({'; '.join(changed)}). "
            "Resume it with the same values, or choose another workdir.",
            page="docs/troubleshooting.md#a-run-cannot-be-resumed-with-other-options",
        )
