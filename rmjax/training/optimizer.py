"""Optimizer, learning rate schedule and weight decay mask."""

import re
from typing import Any

import optax

from rmjax.core import pytree
from rmjax.core.config import Config, check_choice

# Weight decay applies to the layers' matrices alone; norms, biases, embeddings and the reward head have no reason to
# shrink towards zero.
_DECAYED = r"layers/.*kernel$"


def make_schedule(config: Config, steps: int) -> optax.Schedule:
    """Returns the schedule of `config.optimizer`: linear warm-up, then `schedule` to `final_fraction` of the peak."""
    check_choice("optimizer.schedule", config.schedule)
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    warmup = min(config.warmup_steps, steps)
    rest = max(steps - warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, final, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction),
    }[config.schedule]()
    # Warm-up over w steps takes 1/(w+1), 2/(w+1), … of the peak, so that the first step has an effect.
    ramp = optax.linear_schedule(peak / (warmup + 1), peak, max(warmup, 1))
    return optax.join_schedules([ramp, after], [warmup]) if warmup else after


def make_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns the optimizer of `config.optimizer` without gradient clipping, which is part of the train step."""
    check_choice("optimizer.name", config.name)
    options: dict[str, Any] = {"weight_decay": config.weight_decay, "mask": decay_mask}
    if config.name == "lion":
        return optax.lion(schedule, config.b1, config.b2, **options)
    return optax.adamw(schedule, config.b1, config.b2, config.eps, **options)


def decay_mask(params: Any) -> Any:
    """Returns True at each leaf that weight decay applies to."""
    return pytree.map_with_path(lambda path, _: bool(re.search(_DECAYED, path)), params)
