"""Bradley-Terry on Anthropic's HH-RLHF, with the hyperparameters of NeMo-Aligner's tutorial of reward models.

python -m rmjax.train --config=configs/hh_rlhf.py

The tutorial's: batches of 512 pairs, one epoch of the 160,800 training pairs, AdamW with a learning rate of 9e-6,
weight decay 0.1, betas 0.9 and 0.98, ten steps of warm-up, and a cosine to a tenth. It trains 2B to 70B models after
supervised fine-tuning; here Llama 3.2 1B Instruct, or any --config.model.path.

Not run: neither the data nor the hardware was at hand. Plan for 300 unique tokens a pair (an assumption; with the
data at hand, `rmjax.plan` reads it), compiled in November 2026; bounds of a roofline, real steps are slower:

                                         v5e-8         1 H100
    topology                           v5e:2x4         h100:1
    memory of a device, GiB        4.7 of 15.8   23.3 of 79.1
    s a step, at least                    0.60           0.93
    pairs a second, at most                860            554
    the run, hours times chips            0.42           0.08
"""

from rmjax.core import config as configs


def get_config(arg: str = ""):
    """Returns the configuration."""
    configs.check_argument(arg)
    config = configs.fine_tuning()
    config.name = "hh_rlhf"
    config.model.path = "meta-llama/Llama-3.2-1B-Instruct"
    config.model.dtype = "bfloat16"
    config.data.train, config.data.validation = ("Anthropic/hh-rlhf:train",), ("Anthropic/hh-rlhf:test",)
    config.data.max_length = 4096
    config.optimizer.update(learning_rate=9e-6, schedule="cosine", final_fraction=0.1, warmup_steps=10)
    config.optimizer.update(weight_decay=0.1, b2=0.98)
    config.train.batch_size = 512
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config
