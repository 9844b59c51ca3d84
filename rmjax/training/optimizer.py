"""Optimizer, learning rate schedule and weight decay mask."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from rmjax.core import pytree
from rmjax.core.config import Config
from rmjax.core.config_checks import check_choice
from rmjax.core.errors import InputError

# Weight decay applies to the layers' matrices and their adapters alone; norms, biases, embeddings and the reward head
# have no reason to shrink towards zero.
_DECAYED = r"layers/.*(kernel|lora_[ab])$"


def make_schedule(config: Config, steps: int) -> optax.Schedule:
    """Returns the schedule of `config.optimizer`: linear warm-up, then `schedule` to `final_fraction` of the peak.

    The decay begins after `hold_steps` at the peak and ends `final_steps` before the end of the run.
    """
    check_choice("optimizer.schedule", config.schedule)
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    warmup = min(config.warmup_steps, steps)
    hold = min(config.hold_steps, steps - warmup)
    rest = max(steps - warmup - hold - config.final_steps, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, final, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction),
    }[config.schedule]()
    if hold:
        after = optax.join_schedules([optax.constant_schedule(peak), after], [hold])
    # Warm-up over w steps takes 1/(w+1), 2/(w+1), … of the peak, so that the first step has an effect.
    ramp = optax.linear_schedule(peak / (warmup + 1), peak, max(warmup, 1))
    return optax.join_schedules([ramp, after], [warmup]) if warmup else after


def check_schedule(config: Config, steps: int) -> None:
    """Raises InputError if `config.optimizer` leaves no step of a run of `steps` steps for the decay."""
    if (constant := config.hold_steps + config.final_steps) and config.warmup_steps + constant >= steps:
        raise InputError(
            f"config.optimizer.warmup_steps ({config.warmup_steps}), config.optimizer.hold_steps ({config.hold_steps}) "
            f"and config.optimizer.final_steps ({config.final_steps}) leave none of the run's {steps} steps for the "
            f"decay; lower them"
        )


def make_optimizer(config: Config, schedule: optax.Schedule, num_layers: int = 0) -> optax.GradientTransformation:
    """Returns the optimizer of `config.optimizer` without gradient clipping, which is part of the train step.

    Args:
      num_layers: of the decoder; needed for `layer_decay`.
    """
    check_choice("optimizer.name", config.name)
    optimizer = _OPTIMIZERS[config.name](config, schedule)
    if config.layer_decay == 1:
        return optimizer
    return optax.chain(optimizer, _decay_by_layer(config.layer_decay, num_layers))


def decay_mask(params: Any) -> Any:
    """Returns True at each leaf that weight decay applies to."""
    return pytree.map_with_path(lambda path, _: bool(re.search(_DECAYED, path)), params)


def _adamw(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decay_mask)


def _lion(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(schedule, config.b1, config.b2, weight_decay=config.weight_decay, mask=decay_mask)


def _adafactor(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018, arXiv 1804.04235) without momentum and relative step sizes.

    Row and column sums of matrices of at least 128 x 128 replace the second moment. Updates are clipped to RMS 1.
    """
    rescale = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    decay = optax.add_decayed_weights(config.weight_decay, decay_mask)
    return optax.chain(_by_layer(rescale), decay, optax.scale_by_learning_rate(schedule))


def _muon(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the layers' matrices, AdamW for the rest.

    Its updates have the root mean square of AdamW's (arXiv 2502.16982), so both take the same learning rate.
    """
    matrix = contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)  # others: a batch
    of_matrices = contrib.muon(
        schedule,
        weight_decay=config.weight_decay,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda _: matrix, params),
    )
    label = lambda path, _: "matrices" if re.search(_DECAYED, path) else "rest"
    transforms = {"matrices": of_matrices, "rest": _adamw(config, schedule)}
    return optax.partition(transforms, lambda params: pytree.map_with_path(label, params))


_OPTIMIZERS = {"adamw": _adamw, "lion": _lion, "adafactor": _adafactor, "muon": _muon}


def _by_layer(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns `transform` applied to each layer, and each expert, of the stacked parameters by itself.

    It is applied to all others as they are.
    """

    def split(tree: Any) -> dict[str, Any]:
        layers, rest = pytree.split(tree, _is_layer)
        experts, layers = pytree.split(layers, lambda path: "/experts/" in path)
        return {"experts": experts, "layers": layers, "rest": rest}

    def over(part: str, function: Any) -> Any:
        return {"experts": lambda: jax.vmap(jax.vmap(function)), "layers": lambda: jax.vmap(function)}.get(
            part, lambda: function
        )()

    def init(params: Any) -> Any:
        return {part: over(part, transform.init)(tree) for part, tree in split(params).items() if tree}

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        grouped = split(params)
        changed: dict[str, Any] = {}
        states: dict[str, Any] = {}
        for part, tree in split(updates).items():
            if tree:
                found, states[part] = over(part, transform.update)(tree, state[part], grouped[part])
                changed = pytree.merge(changed, found)
        return changed, states

    return optax.GradientTransformation(init, update)


def _decay_by_layer(decay: float, num_layers: int) -> optax.GradientTransformation:
    """Multiplies updates by decay^(depth of the head - depth): 0 for embeddings, 1 to L for layers, L + 1 for the rest.

    Clark et al. 2020, arXiv 2003.10555 (ELECTRA).
    """

    def scale(path: str, update: jax.Array) -> jax.Array:
        if _is_layer(path):
            factors = decay ** (num_layers - jnp.arange(num_layers, dtype=jnp.float32))
            return update * factors.reshape(-1, *[1] * (update.ndim - 1))
        return update * decay ** (num_layers + 1) if "embedding" in path else update

    return optax.stateless(lambda updates, _: pytree.map_with_path(scale, updates))


def _is_layer(path: str) -> bool:
    return "/layers/" in path
