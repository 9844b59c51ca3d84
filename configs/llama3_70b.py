"""Bradley-Terry: fine-tuning of all weights of Llama 3.1 70B Instruct, as configs/llama3_8b.py, for v5p-256.

python -m rmjax.train --config=configs/llama3_70b.py --config.data.train=FILE --config.data.validation=FILE

Not run: no such hardware was at hand. Plans for 100,000 comparisons of 1,000 unique tokens
(python -m rmjax.plan --config=... --topology=... --tokens_per_comparison=1000), compiled in November 2026; the bounds
are those of a roofline, and real steps are slower:

                                             v5p-256
    topology                               v5p:4x4x8
    memory of a device, GiB             76.5 of 95.0
      parameters, moments                   4.1, 8.1
      gradients, activations                    64.3
    received by a device, GiB a step             275
    s a step, at least                          3.70
      computing, communicating            3.70, 0.49
    MFU, at most                                 97%
    comparisons a second, at most                138
    hours times chips, at least                 25.8

A v5p-256 has 256 cores, which are 128 chips. Other plans for it, each with 1 row per device:

    mesh                 remat     memory, GiB   received, GiB   s a step, at least
    data 2, fsdp 64      layer            25.4             287                 4.92
    fsdp 128             layer            17.8             517                 4.92
    fsdp 32, tensor 4    small            33.5             754                 3.69

With fsdp = 128, a shard of 8,192 columns has 64, half of a TPU's lanes, and XLA gathers it by all-reduces, which
transfer twice the bytes; with 64, by all-gathers.
"""

import pathlib

from rmjax.core import config as configs
from rmjax.core.python_file import load_module

LLAMA = load_module(str(pathlib.Path(__file__).with_name("llama3_8b.py")), "rmjax_config_llama3_8b")


def get_config(arg: str = ""):
    """Returns the configuration; data.train and data.validation are required."""
    configs.check_argument(arg)
    config = LLAMA.get_config()
    config.name = "llama3_70b"
    config.model.path = "meta-llama/Llama-3.1-70B-Instruct"
    config.optimizer.learning_rate = 1e-6
    config.train.update(batch_size=512, rows_per_device=1)
    config.mesh.data, config.mesh.fsdp = 2, 64
    return config
