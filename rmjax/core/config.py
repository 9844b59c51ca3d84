"""The configuration of a run: every key, its default and its meaning, in one place.

A file under `configs/` starts from `default()` and sets what it changes. The result is locked: a key that does not
exist here, or a value of another type, ends in a message that names it.
"""

import json
import pathlib
from collections.abc import Iterator

import ml_collections

from rmjax.core.errors import InputError
from rmjax.core.files import write_atomic

# What may differ between a workdir's config.json and the command that resumes it: these keys decide how the work is
# laid out, logged and kept, never what is computed (beyond float rounding).
FREE_ON_RESUME = (
    "model.attention",
    "model.remat",
    "mesh.",
    "train.rows_per_device",
    "train.log_every",
    "train.profile",
    "data.row_length",
    "checkpoint.",
    "evaluation.",
)


def default() -> ml_collections.ConfigDict:
    """Returns the locked configuration that every experiment starts from."""
    config = ml_collections.ConfigDict()
    config.name = "run"  # names the workdir runs/NAME-N when --workdir is not given

    config.model = model = ml_collections.ConfigDict()
    model.path = ""  # Hugging Face directory or hub name, artifact or workdir; empty: random, of the sizes below
    model.hidden_size = 128  # D; the sizes are read only when path is empty
    model.intermediate_size = 384  # F
    model.num_layers = 4  # L
    model.num_heads = 4  # N
    model.num_kv_heads = 4  # H
    model.head_dim = 0  # P; 0: hidden_size / num_heads
    model.rope_theta = 10000.0  # base of the rotary frequencies
    model.head_init = 0.0  # standard deviation of a fresh reward head; 0 starts at loss ln 2
    model.dtype = "float32"  # of activations and matrix products; the head is float32 always
    model.param_dtype = "float32"  # of the stored parameters
    model.remat = "small"  # none | small | layer: what the backward pass computes again; see RewardModel
    model.attention = "auto"  # auto | dense | blocks: see rmjax/models/attention.py
    model.scan_layers = True  # False unrolls the layers: longer to compile

    config.data = data = ml_collections.ConfigDict()
    data.train = ("synthetic",)  # paths, globs, hub names, or `synthetic` for the built-in data
    data.validation = ("synthetic",)  # "name=path" reports a set under its own name too
    data.weights = ()  # shares in which the sources of `train` are mixed, one a source; (): each record once an epoch
    data.format = "auto"  # auto, or a name of rmjax/data/formats.py
    data.columns = ()  # fields to rename, "old=new" each
    data.group_prompts = False  # single responses to one prompt become one comparison: the prompt is computed once
    data.ties = "drop"  # drop | half: ties between responses are left out, or edges with target 0.5
    data.missing_label = -100.0  # NeMo-Aligner's loss_mask_val: a label that is missing
    data.preference_label = 0  # nemo_preference: index of the label that is the signed preference
    data.step_separator = "\n"  # process: between prompt and steps
    data.step_labels = "auto"  # auto | binary | ternary: whether 0 is a wrong step, or a neutral one beside -1 and 1
    data.strings = "joined"  # joined | chat: prompt and response strings as one text, or as two chat messages
    data.tokenizer = ""  # Hugging Face directory or hub name; empty: the model's
    data.max_length = 1024  # tokens of the longest conversation of a comparison
    data.row_length = 0  # tokens of a packed row; 0: chosen from the lengths
    data.on_overlong = "drop"  # drop | truncate_prompt | error
    data.on_bad_record = "error"  # error | skip
    data.train_limit = 0  # use the first so many comparisons; 0: all
    data.validation_limit = 0
    data.synthetic_train = 20000  # size of the built-in data
    data.synthetic_validation = 1000

    config.objective = objective = ml_collections.ConfigDict()
    objective.name = "bradley_terry"  # one of rmjax/training/objectives.py, or several: "regression+bradley_terry"
    objective.weights = ()  # of the several, one each; (): 1 each
    objective.margin = False  # subtract the data's margin from the reward difference (Llama 2, eq. 2)
    objective.strength = False  # multiply each edge's loss by the data's strength (scaled Bradley-Terry)
    objective.label_smoothing = 0.0  # probability that a preference is the wrong way round
    objective.centering = 0.0  # weight of (r_w + r_l)² (TRL's center_rewards_coefficient)
    objective.reward_l2 = 0.0  # weight of r² at each readout
    objective.reward_attribute = ""  # which attribute ranks; empty: the only one, or helpfulness
    objective.attributes = ()  # names of the head's attributes; (): the data's, or reward
    objective.attribute_weights = ()  # of the regression, one an attribute; (): 1 each
    objective.standardize = False  # regression: the head learns (label - mean) / std of the training labels
    objective.process_loss = "cross_entropy"  # cross_entropy | mse

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.name = "adamw"  # adamw | lion
    optimizer.learning_rate = 1e-3  # peak
    optimizer.schedule = "cosine"  # constant | linear | cosine: what follows the warm-up
    optimizer.final_fraction = 0.0  # of the peak, reached at the last step
    optimizer.warmup_steps = 0
    optimizer.weight_decay = 0.0  # on matrices alone: not on norms, biases, embedding or head
    optimizer.b1 = 0.9
    optimizer.b2 = 0.999
    optimizer.eps = 1e-8
    optimizer.grad_clip = 1.0  # global norm; 0: off

    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = -1  # replicas; one axis may be -1: all remaining devices
    mesh.fsdp = 1  # shards of parameters and optimizer state; rows are split over it too
    mesh.tensor = 1  # shards of heads and mlp
    mesh.sequence = 1  # shards of a row's tokens

    config.train = train = ml_collections.ConfigDict()
    train.steps = 0  # either steps
    train.epochs = 0.0  # or epochs
    train.batch_size = 64  # comparisons a step, over all devices
    train.rows_per_device = 8  # rows of a microbatch on one device: bounds memory, changes no result
    train.seed = 0
    train.log_every = 1  # steps between lines of metrics.jsonl
    train.profile = ""  # "first:last": traces these steps into workdir/profile

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every = 0  # steps; 0: at each validation
    checkpoint.keep = 2  # the last so many, besides the best
    checkpoint.best = ""  # the validation metric that picks the best; empty: the first of accuracy, spearman, loss

    config.evaluation = evaluation = ml_collections.ConfigDict()
    evaluation.every = 0  # steps; 0: ten times a run
    evaluation.batch_size = 256  # comparisons a validation step; large ones fill rows better
    return config.lock()


def small() -> ml_collections.ConfigDict:
    """Returns the defaults with the sizes and the optimizer that suit the built-in data on two cores."""
    config = default()
    config.model.hidden_size = 64
    config.model.intermediate_size = 192
    config.model.num_layers = 3
    config.model.num_heads = 4
    config.model.num_kv_heads = 2
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 20
    config.optimizer.b2 = 0.98
    return config


def fine_tuning() -> ml_collections.ConfigDict:
    """Returns the defaults for fine-tuning all weights of a pretrained model for one epoch."""
    config = default()
    config.data.strings = "chat"
    config.optimizer.learning_rate = 5e-5
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 8
    config.train.epochs = 1.0
    config.train.batch_size = 16
    config.train.rows_per_device = 1
    config.evaluation.batch_size = 512
    return config


def leaves(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields (dotted key, value) of every leaf, in order of declaration."""
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Returns `value` if it is one of `choices`; raises InputError naming the key and the choices otherwise."""
    if value not in choices:
        raise InputError(f"config.{name} is {value!r}; choose one of {', '.join(choices)}")
    return value


def check(config: ml_collections.ConfigDict) -> None:
    """Raises InputError for values that no run can use, naming the key, the value and the fix."""
    positive = (
        "model.hidden_size",
        "model.intermediate_size",
        "model.num_layers",
        "model.num_heads",
        "model.num_kv_heads",
        "data.max_length",
        "train.batch_size",
        "train.rows_per_device",
        "train.log_every",
        "checkpoint.keep",
        "evaluation.batch_size",
    )
    not_negative = (
        "model.head_init",
        "data.row_length",
        "data.train_limit",
        "data.validation_limit",
        "optimizer.learning_rate",
        "optimizer.warmup_steps",
        "optimizer.weight_decay",
        "optimizer.grad_clip",
        "train.steps",
        "train.epochs",
        "checkpoint.every",
        "evaluation.every",
        "objective.centering",
        "objective.reward_l2",
        "data.preference_label",
        "objective.label_smoothing",
    )
    values = dict(leaves(config))
    for key in positive:
        if values[key] <= 0:
            raise InputError(f"config.{key} is {values[key]}; it must be positive")
    for key in not_negative:
        if values[key] < 0:
            raise InputError(f"config.{key} is {values[key]}; it must not be negative")
    check_choice("model.dtype", config.model.dtype, ("float32", "bfloat16"))
    check_choice("model.param_dtype", config.model.param_dtype, ("float32", "bfloat16"))
    check_choice("model.remat", config.model.remat, ("none", "small", "layer"))
    check_choice("objective.process_loss", config.objective.process_loss, ("cross_entropy", "mse"))
    if config.objective.label_smoothing >= 0.5:
        raise InputError(
            f"config.objective.label_smoothing is {config.objective.label_smoothing}; expected below 0.5, "
            "where the loss still says which response is the better one"
        )
    check_choice("model.attention", config.model.attention, ("auto", "dense", "blocks"))
    if (config.train.steps > 0) == (config.train.epochs > 0):
        raise InputError(
            f"config.train.steps is {config.train.steps} and config.train.epochs is {config.train.epochs}; "
            "set exactly one of them above 0 and the other to 0"
        )


def selection(metrics: dict[str, float], best: str) -> float:
    """Returns the number by which `checkpoint.best` picks a checkpoint: more is better.

    Raises:
      InputError: validation has no such metric.
    """
    name = best or next(name for name in ("accuracy", "spearman", "loss") if name in metrics)
    if name not in metrics:
        raise InputError(f"config.checkpoint.best is {best!r}; validation has {', '.join(sorted(metrics))}")
    lower = any(part in ("loss", "mse") for part in name.split("/"))
    return -metrics[name] if lower else metrics[name]


def save(config: ml_collections.ConfigDict, path: pathlib.Path) -> None:
    """Writes the resolved configuration as JSON."""
    write_atomic(path, json.dumps(config.to_dict(), indent=2) + "\n")


def load(path: pathlib.Path) -> ml_collections.ConfigDict:
    """Reads what `save` wrote onto the defaults; raises InputError if it is damaged or of another version."""
    config = default()
    try:
        config.update(json.loads(path.read_text()))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a configuration of this version of rmjax ({error})") from error
    return config


def check_same_run(config: ml_collections.ConfigDict, path: pathlib.Path) -> None:
    """Raises InputError naming each key in which `config` would compute something other than the run in `path`."""
    old, new = dict(leaves(load(path))), dict(leaves(config))
    changed = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} here"
        for key in {**old, **new}
        if old.get(key) != new.get(key) and not key.startswith(FREE_ON_RESUME)
    ]
    if changed:
        raise InputError(
            f"{path.parent} holds a run with another configuration ({'; '.join(changed)}). "
            "Resume it with the same values, or choose another --workdir."
        )
