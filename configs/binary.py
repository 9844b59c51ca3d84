"""A small transformer on built-in comparisons with a known gold reward.

python -m rmjax.train --config=configs/binary.py
"""

from rmjax.core import config as configs


def get_config():
    """Returns the configuration."""
    config = configs.default()
    config.name = "binary"
    config.model.hidden_size = 64
    config.model.intermediate_size = 192
    config.model.num_layers = 3
    config.model.num_heads = 4
    config.model.num_kv_heads = 2
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 20
    config.train.steps = 700
    config.optimizer.b2 = 0.98
    config.train.batch_size = 64
    return config
