"""Bradley-Terry: fine-tuning of all weights of Qwen3 8B, as configs/llama3_8b.py.

python -m rmjax.train --config=configs/qwen3_8b.py:v5p-64 --config.data.train=FILE --config.data.validation=FILE

Not run: no such hardware was at hand. Plans for 100,000 comparisons of 1,000 unique tokens
(python -m rmjax.plan --config=... --topology=... --tokens_per_comparison=1000), compiled in November 2026; the bounds
are those of a roofline, and real steps are slower:

                                              v5e-32         v5p-64         h100-8
    topology                                 v5e:4x8      v5p:2x4x4         h100:8
    memory of a device, GiB              7.3 of 15.8   29.1 of 95.0   43.6 of 79.1
      parameters, moments                   0.9, 1.8       0.9, 1.8       3.5, 7.1
      gradients, activations                     4.7           26.4           33.0
    received by a device, GiB a step             107             52            102
    s a step, at least                          2.35           0.76           1.41
      computing, communicating            2.35, 0.57     0.76, 0.09     1.41, 0.24
    MFU, at most                                 74%            98%            98%
    comparisons a second, at most                109            337            182
    hours times chips, at least                  8.2            2.6            1.2

A v5p-64 has 64 cores, which are 32 chips.
"""

import pathlib

from rmjax.core.python_file import load_module

LLAMA = load_module(str(pathlib.Path(__file__).with_name("llama3_8b.py")), "rmjax_config_llama3_8b")


def get_config(arg: str = ""):
    """Returns the configuration; data.train and data.validation are required. `arg`: as of configs/llama3_8b.py."""
    config = LLAMA.get_config(arg)
    config.name = "qwen3_8b"
    config.model.path = "Qwen/Qwen3-8B"
    return config
