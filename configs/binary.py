"""A small transformer on built-in comparisons with a known gold reward.

python -m rmjax.train --config=configs/binary.py

Two cores, 50 seconds (83 beside other work): validation accuracy 0.933 on fresh comparisons, where the best reachable
is 0.931.
"""

from rmjax.core import config as configs


def get_config():
    """Returns the configuration."""
    config = configs.small()
    config.name = "binary"
    config.train.steps = 700
    return config
