"""Bradley-Terry: a small transformer on the built-in comparisons, whose gold reward is known.

python -m rmjax.train --config=configs/binary.py

Two CPU cores, 50 seconds (83 with other load): validation accuracy 0.933 on new comparisons; the best achievable
accuracy is 0.931.
"""

from rmjax.core import config as configs


def get_config(arg: str = ""):
    """Returns the configuration."""
    configs.check_argument(arg)
    config = configs.small()
    config.name = "binary"
    config.train.steps = 700
    return config
