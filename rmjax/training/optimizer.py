"""The optimizer: schedule, clipping, decay masks."""

import re
from typing import Any

import ml_collections
import optax

from rmjax.core import pytree
from rmjax.core.config import check_choice

# Weight decay goes to the matrices of the layers alone: decaying norms, biases, embeddings or the reward head pulls
# towards zero what has no reason to be there.
_DECAYED = r"layers/.*kernel$"


def make_schedule(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Returns the learning rate of each step: linear warm-up, then `schedule` down to `final_fraction` of the peak."""
    check_choice("optimizer.schedule", config.schedule, ("constant", "linear", "cosine"))
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    warmup = min(config.warmup_steps, steps)
    rest = max(steps - warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, final, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction),
    }[config.schedule]()
    # The first step already moves: warm-up over w steps takes 1/(w+1), 2/(w+1), … of the peak.
    ramp = optax.linear_schedule(peak / (warmup + 1), peak, max(warmup, 1))
    return optax.join_schedules([ramp, after], [warmup]) if warmup else after


def make_optimizer(config: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns the gradient transformation of `config.optimizer`; clipping is the train step's own."""
    check_choice("optimizer.name", config.name, ("adamw", "lion"))
    options: dict[str, Any] = {"weight_decay": config.weight_decay, "mask": decay_mask}
    if config.name == "lion":
        return optax.lion(schedule, config.b1, config.b2, **options)
    return optax.adamw(schedule, config.b1, config.b2, config.eps, **options)


def decay_mask(params: Any) -> Any:
    """Returns True at each leaf that weight decay applies to."""
    return pytree.map_paths(lambda path, _: bool(re.search(_DECAYED, path)), params)
