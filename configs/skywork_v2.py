"""Bradley-Terry on Skywork's 80,000 curated pairs, the public part of what Skywork-Reward-V2 was trained on.

python -m rmjax.train --config=configs/skywork_v2.py

Skywork-Reward-V2 (arXiv 2507.01352) is plain Bradley-Terry on 26 million curated pairs, which are not public, with a
learning rate of 3e-6; curation, not the loss, makes the difference. The pairs of its first generation are public. The
same rate and Llama 3.2 1B Instruct, one of its eight bases, are taken here, in batches of 256 pairs for one epoch.
Near-duplicates, and pairs with a prompt of RewardBench 2, are left out.

Not run: neither the data nor the hardware was at hand. Plan for 1,100 unique tokens a pair (an assumption; with the
data at hand, `rmjax.plan` reads it), compiled in November 2026; bounds of a roofline, real steps are slower:

                                         v5e-8         1 H100
    topology                           v5e:2x4         h100:1
    memory of a device, GiB        7.1 of 15.8   25.1 of 79.1
    s a step, at least                    1.10           1.75
    pairs a second, at most                233            146
    the run, hours times chips            0.74           0.15
"""

from rmjax.core import config as configs


def get_config(arg: str = ""):
    """Returns the configuration; data.validation is required."""
    configs.check_argument(arg)
    config = configs.fine_tuning()
    config.name = "skywork_v2"
    config.model.path = "meta-llama/Llama-3.2-1B-Instruct"
    config.model.dtype = "bfloat16"
    config.data.train = ("Skywork/Skywork-Reward-Preference-80K-v0.2:train",)
    config.data.exclude = ("allenai/reward-bench-2:test",)
    config.data.duplicates = "drop_near"
    config.data.max_length = 8192
    config.optimizer.update(learning_rate=3e-6, warmup_steps=10)
    config.train.batch_size = 256
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config
