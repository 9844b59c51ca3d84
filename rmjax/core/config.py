"""The configuration of a run: declaration of all keys with defaults and descriptions, JSON file.

A file under `configs/` starts from `default()` and sets what differs. The configuration is locked: an unknown key, or a
value of another type, raises an error that names the key.
"""

import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections
from ml_collections import config_dict

from rmjax.core.errors import InputError
from rmjax.core.files import read_json, write_atomic

REQUIRED = "<required>"  # value of a key that has no default: the user has to set it

# Annotation of a configuration or a section: a ConfigDict, whose attributes have too wide a union type for mypy.
Config = Any


# The comment on a key, or directly above it, is its description in docs/configuration.md (`config_reference`).
def default() -> ml_collections.ConfigDict:
    """Returns the locked configuration that every experiment starts from."""
    config = ml_collections.ConfigDict()
    config.name = "run"  # name of the run; without --workdir the workdir is runs/NAME-N

    config.model = model = ml_collections.ConfigDict()  # Architecture, initialization and numerics of the reward model.
    model.path = ""  # Hugging Face directory or hub name, artifact or workdir; empty: random, with the sizes below
    model.hidden_size = 128  # D, model width; this and the other sizes are used only when `path` is empty
    model.intermediate_size = 384  # F, width of the MLP's hidden layer
    model.num_layers = 4  # L, number of decoder layers
    model.num_heads = 4  # N, number of query heads
    model.num_kv_heads = 4  # H, number of key/value heads (grouped-query attention when below `num_heads`)
    model.head_dim = 0  # P, size of an attention head; 0: hidden_size / num_heads
    model.rope_theta = 10000.0  # base of the rotary position embedding's frequencies
    model.head_init = 0.0  # standard deviation of a new reward head's weights; 0: the initial loss is ln 2
    model.head_members = 1  # reward heads that are trained on the same features, for the uncertainty of a reward
    model.dtype = "float32"  # activations and matrix products: float32 or bfloat16; the reward head is always float32
    # parameters in the computation and in artifacts: float32 or bfloat16. Those that are trained, their gradients and
    # the optimizer's moments are stored in float32 whichever is set; the reward head is always float32
    model.param_dtype = "float32"
    # the layers' matrices that are not trained (`train.trainable`): int8, or empty for `param_dtype`
    model.frozen_dtype = ""
    model.remat = "small"  # recomputation in the backward pass: none, small (cheap operations) or layer (least memory)
    # kernel: dense, blocks (block-sparse, for CPUs), triton (for GPUs), mosaic (for TPUs), or auto (by platform)
    model.attention = "auto"
    # run the layers in one `lax.scan`; False: unrolled, slower to compile, faster on a GPU; None: False on a GPU
    model.scan_layers = config_dict.placeholder(bool)

    config.data = data = ml_collections.ConfigDict()  # Sources, record formats, tokenization and packing.
    data.train = ("synthetic",)  # sources: paths, globs or hub names; `synthetic`: the built-in data
    data.validation = ("synthetic",)  # sources; `name=path` also reports the metrics of this source under `name/`
    data.weights = ()  # relative sampling weights of the `train` sources, one each; (): each record once per epoch
    data.shuffle = True  # a new order of the training data in every epoch; False: the order of the sources
    data.format = "auto"  # record format: auto (detected), a name in docs/data.md, or a Python file with a format
    data.columns = ()  # fields to rename, `old=new` each; `old=_` leaves one out, several of one new name are joined
    data.group_prompts = False  # merge single responses to the same prompt into one comparison, which shares the prompt
    data.ties = "drop"  # ties between responses: drop, or half (edges with target probability 0.5)
    data.missing_label = -100.0  # number that marks a missing label (NeMo-Aligner's `loss_mask_val`)
    data.preference_label = 0  # format nemo_preference: index of the label that holds the signed preference
    # which label of a format with several: better_response_id or safer_response_id (PKU-SafeRLHF); empty: the only one
    data.label_field = ""
    data.step_separator = "\n"  # process formats: text between the prompt and each step
    data.step_readout = "step"  # process formats: read the reward at the end of the step, or of the separator after it
    data.step_labels = "auto"  # process label 0 is wrong (binary) or neutral (ternary); auto: ternary if a label is -1
    data.strings = "joined"  # prompt format of strings: joined (concatenated) or chat (user and assistant messages)
    # where the reward is read: last_token, eos, token:TEXT or token_id:NUMBER (the last such token, which is added if
    # missing), conversation_mean or response_mean (of the hidden states of all tokens); empty: as in the reward model
    # at `model.path`, else last_token
    data.readout = ""
    data.tokenizer = ""  # Hugging Face directory or hub name; empty: the tokenizer of `model.path`, or byte-level
    data.template_date = ""  # date (YYYY-MM-DD) that a chat template writes; empty: the day on which training starts
    data.exclude = ()  # evaluation sets: training comparisons with one of their prompts, or a similar one, are left out
    data.duplicates = "keep"  # training comparisons like an earlier one: keep, drop (same conversations), or drop_near
    data.similarity = 0.7  # Jaccard similarity of word bigrams from which texts are similar (exclude, drop_near)
    data.max_length = 1024  # maximum length of a conversation (prompt and one response), in tokens
    data.row_length = 0  # length of a packed row, in tokens; 0: chosen to minimize padding
    data.on_overlong = "drop"  # conversations longer than max_length: drop, truncate_prompt (from the left) or error
    data.on_bad_record = "error"  # records that cannot be used: error, or skip (counted in the report)
    data.train_limit = 0  # maximum number of comparisons per `train` source; 0: no limit
    data.validation_limit = 0  # maximum number of comparisons per `validation` source; 0: no limit
    data.synthetic_format = "pairs"  # built-in data's format if `format` is auto: pairs, kwise, regression or process
    data.synthetic_train = 20000  # size of the built-in training data, in comparisons
    data.synthetic_validation = 1000  # size of the built-in validation data, in comparisons

    config.objective = objective = ml_collections.ConfigDict()  # The training loss and its options.
    # bradley_terry, pairwise, plackett_luce, regression, regression_bt or process; several are joined with `+`
    objective.name = "bradley_terry"
    objective.weights = ()  # weights of the terms of `name`, one each; (): 1 each
    objective.margin = False  # subtract the data's margin from the reward difference (Llama 2, eq. 2)
    objective.strength = False  # multiply the loss of each edge by the data's strength (scaled Bradley-Terry)
    objective.label_smoothing = 0.0  # assumed probability that a preference label is wrong, at least 0 and below 0.5
    objective.centering = 0.0  # weight of (r_w + r_l)² (TRL's `center_rewards_coefficient`); 0: off
    objective.reward_l2 = 0.0  # weight of r² at each readout; 0: off
    objective.reward_attribute = ""  # attribute used for ranking; empty: the only one, or helpfulness
    objective.attributes = ()  # attributes that the head predicts; (): those of the data, or `reward`
    objective.attribute_weights = ()  # regression: weights of the attributes in the loss, one each; (): 1 each
    objective.standardize = False  # regression: predict (label - mean) / std of the training labels
    # data weights of each of several `model.head_members`: exponential or poisson (bootstrap of comparisons), or equal
    objective.member_weights = "exponential"
    objective.process_loss = "cross_entropy"  # process: cross_entropy, or mse (Brier score of the probability)

    config.lora = lora = ml_collections.ConfigDict()  # Low-rank adapters (LoRA) of the decoder's matrices.
    lora.rank = 0  # rank of an adapter; 0: no adapters
    lora.alpha = 32.0  # an adapter's product is multiplied by alpha / rank
    lora.rslora = False  # multiply by alpha / sqrt(rank) instead (rsLoRA)
    lora.dora = False  # also train the norm of each column of the sum of matrix and adapter (DoRA)
    lora.targets = ""  # regex of the matrices with adapters, such as `attention/query`; empty: all

    config.optimizer = optimizer = ml_collections.ConfigDict()  # Optimizer and learning rate schedule.
    optimizer.name = "adamw"  # adamw, lion, adafactor (little memory) or muon (of matrices; adamw for the rest)
    optimizer.learning_rate = 1e-3  # peak learning rate
    optimizer.schedule = "cosine"  # decay after the warm-up: constant, linear or cosine
    optimizer.final_fraction = 0.0  # learning rate at the last step, as a fraction of the peak (linear, cosine)
    optimizer.warmup_steps = 0  # steps of linear warm-up
    optimizer.hold_steps = 0  # steps at the peak between the warm-up and the decay (linear, cosine)
    optimizer.final_steps = 0  # last steps of the run, at `final_fraction` (linear, cosine)
    optimizer.weight_decay = 0.0  # decoupled decay of the layers' weight matrices (not norms, biases, embedding, head)
    optimizer.b1 = 0.9  # decay rate of the first moment (not of adafactor, nor of muon's matrices)
    optimizer.b2 = 0.999  # decay rate of the second moment (not of adafactor, nor of muon's matrices)
    optimizer.eps = 1e-8  # adamw: constant added to the denominator
    optimizer.grad_clip = 1.0  # maximum global norm of the gradient; 0: no clipping
    # learning rate of a layer relative to the next one; the embedding comes before the first layer, the head last
    optimizer.layer_decay = 1.0

    config.mesh = mesh = ml_collections.ConfigDict()  # Sizes of the device mesh's axes; one may be -1 (the remainder).
    mesh.data = -1  # replicas (data parallelism)
    mesh.fsdp = 1  # shards of parameters and optimizer state; also splits the rows of a batch
    mesh.tensor = 1  # shards of attention heads and MLP (tensor parallelism)
    mesh.sequence = 1  # shards of a row's tokens (sequence parallelism)

    config.train = train = ml_collections.ConfigDict()  # Duration, batch size, seed and logging of the training loop.
    # parameters to train: all, head, lora (adapters and head), or a regex of their paths; the others are stored in
    # `model.param_dtype`. Empty: lora if `lora.rank` is set, else all
    train.trainable = ""
    # if only the head is trained: compute what it reads of the decoder once, and keep it in the cache directory for
    # later runs too (docs/training.md); False: compute the decoder in every step
    train.cache_features = True
    train.steps = 0  # optimizer steps; 0: no limit. With `epochs` set too, the run ends at whichever comes first
    train.epochs = 0.0  # passes over the training data; 0: no limit
    train.batch_size = 64  # comparisons per step, over all devices
    train.rows_per_device = 8  # rows of a microbatch on each device; bounds memory, does not change results
    train.seed = 0  # random seed of initialization and data order
    train.skip_non_finite = 0  # steps whose loss or gradient is not finite that a run leaves out; the next one ends it
    train.log_every = 1  # steps between training lines in metrics.jsonl
    train.loggers = ()  # further loggers of the metrics: wandb, whose package must be installed
    train.profile = ""  # steps to trace, `first:last` (from 1), for TensorBoard or Perfetto; written to workdir/profile

    config.checkpoint = checkpoint = ml_collections.ConfigDict()  # When checkpoints are saved, and which are kept.
    checkpoint.every = 0  # steps between checkpoints; 0: at each validation
    checkpoint.keep = 2  # number of latest checkpoints to keep, in addition to the best ones
    checkpoint.keep_best = 1  # number of best checkpoints to keep
    checkpoint.best = ""  # validation metric that selects the best; empty: the first of accuracy, spearman, loss

    config.evaluation = evaluation = ml_collections.ConfigDict()  # Validation during training.
    evaluation.every = 0  # steps between validations; 0: ten per run
    evaluation.batch_size = 256  # comparisons per validation step; larger batches need less padding
    return config.lock()


def small() -> ml_collections.ConfigDict:
    """Returns `default()` with model sizes and optimizer options for the built-in data on two CPU cores."""
    config = default()
    config.model.update(hidden_size=64, intermediate_size=192, num_layers=3, num_heads=4, num_kv_heads=2)
    config.optimizer.update(learning_rate=3e-3, warmup_steps=20, b2=0.98)
    config.train.steps = 700
    return config


def fine_tuning() -> ml_collections.ConfigDict:
    """Returns `default()` with options for fine-tuning all weights of a pretrained model for one epoch.

    `model.path`, `data.train` and `data.validation` are `REQUIRED`.
    """
    config = default()
    config.model.path, config.data.train, config.data.validation = REQUIRED, (REQUIRED,), (REQUIRED,)
    config.data.strings = "chat"
    config.optimizer.update(learning_rate=5e-5, schedule="linear", warmup_steps=8)
    config.train.update(epochs=1.0, batch_size=16, rows_per_device=1)
    config.evaluation.batch_size = 512
    return config


def leaves(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every leaf, sorted by key within a section."""
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def check_argument(argument: str, *known: str) -> None:
    """Raises InputError unless the argument of a configuration file (`FILE:ARGUMENT`) is empty or one of `known`."""
    if argument and argument not in known:
        expected = f"expected {' or '.join(known)}, or none" if known else "this configuration takes none"
        raise InputError(f"unknown argument {argument!r} after the colon; {expected}")


def selection_metric(metrics: dict[str, float], best: str) -> str:
    """Returns the name of the validation metric by which `checkpoint.best` compares checkpoints.

    Raises:
      InputError: the validation metrics do not include `best`.
    """
    name = best or next(name for name in ("accuracy", "spearman", "loss") if name in metrics)
    if name not in metrics:
        raise InputError(f"config.checkpoint.best is {best!r}; choose one of {', '.join(sorted(metrics))}")
    return name


def selection_score(metrics: dict[str, float], best: str) -> float:
    """Returns the value of `selection_metric`, negated if lower is better; -inf if it or the loss is not finite."""
    name = selection_metric(metrics, best)
    if not (math.isfinite(metrics[name]) and math.isfinite(metrics.get("loss", 0.0))):
        return -math.inf
    lower_is_better = any(part in ("loss", "mse") for part in name.split("/"))
    return -metrics[name] if lower_is_better else metrics[name]


def save(config: ml_collections.ConfigDict, path: pathlib.Path) -> None:
    """Writes the resolved configuration as JSON."""
    write_atomic(path, to_text(config))


def to_text(config: ml_collections.ConfigDict) -> str:
    """Returns what `save` writes."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def load(path: pathlib.Path) -> ml_collections.ConfigDict:
    """Returns the configuration that `save` wrote.

    Raises:
      InputError: the file is missing or damaged, or has other keys.
    """
    config = default()
    values = read_json(path)
    try:
        config.update(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a configuration of this version of rmjax ({error})") from error
    return config
