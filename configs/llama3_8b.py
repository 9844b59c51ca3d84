"""Bradley-Terry: fine-tuning of all weights of Llama 3.1 8B Instruct, bfloat16 computation, float32 parameters.

python -m rmjax.train --config=configs/llama3_8b.py:v5p-64 --config.data.train=FILE --config.data.validation=FILE

Not run: no such hardware was at hand. Plans for 100,000 comparisons of 1,000 unique tokens
(python -m rmjax.plan --config=... --topology=... --tokens_per_comparison=1000), compiled in November 2026; the bounds
are those of a roofline, and real steps are slower:

                                              v5e-32         v5p-64         h100-8
    topology                                 v5e:4x8      v5p:2x4x4         h100:8
    memory of a device, GiB              7.2 of 15.8   28.6 of 95.0   43.0 of 79.1
      parameters, moments                   0.9, 1.7       0.9, 1.7       3.5, 7.0
      gradients, activations                     4.6           26.0           32.5
    received by a device, GiB a step             107             52            103
    s a step, at least                          2.35           0.76           1.41
      computing, communicating            2.35, 0.58     0.76, 0.09     1.41, 0.25
    MFU, at most                                 74%            98%            98%
    comparisons a second, at most                109            336            181
    hours times chips, at least                  8.2            2.6            1.2

A v5p-64 has 64 cores, which are 32 chips. With remat = small, a v5e's 15.75 GiB are too little (17.1 GiB of temporary
arrays). On H100s the kernel is `triton`.
"""

from rmjax.core import config as configs

SLICES = {  # (rows per device, remat)
    "v5e-32": (1, "layer"),
    "v5p-64": (2, "small"),
    "h100-8": (2, "small"),
}


def get_config(arg: str = ""):
    """Returns the configuration; data.train and data.validation are required. `arg`: a key of `SLICES`."""
    configs.check_argument(arg, *SLICES)
    config = configs.fine_tuning()
    config.name = "llama3_8b"
    config.model.path = "meta-llama/Llama-3.1-8B-Instruct"
    config.model.dtype = "bfloat16"
    config.train.rows_per_device, config.model.remat = SLICES[arg or "v5p-64"]
    config.data.max_length = config.data.row_length = 4096
    config.optimizer.update(learning_rate=2e-6, warmup_steps=30)
    config.train.batch_size = 256
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config
