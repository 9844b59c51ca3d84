"""Regression of HelpSteer2's five attributes, with the hyperparameters of its paper (arXiv 2406.08673).

python -m rmjax.train --config=configs/helpsteer2.py

The paper's, in NeMo-Aligner: 317 steps of 128 responses (two epochs of 20,324), a constant learning rate of 2e-6 after
ten steps of warm-up, for Llama 3 70B; here Llama 3.2 3B Instruct, or any --config.model.path. Export with weights of
the attributes to get one reward: those of the published 70B model are

python -m rmjax.export --workdir=runs/helpsteer2-0 --output=DIR \
        --merge=helpfulness=0.65,correctness=0.8,coherence=0.45,complexity=0.55,verbosity=-0.4

Not run: neither the data nor the hardware was at hand. Plan for 700 unique tokens a response (an assumption; with the
data at hand, `rmjax.plan` reads it), compiled in November 2026; bounds of a roofline, real steps are slower:

                                         v5e-8         1 H100
    topology                           v5e:2x4         h100:1
    memory of a device, GiB        8.9 of 15.8   58.9 of 79.1
    s a step, at least                    1.31           2.09
    responses a second, at most             98             61
    the run, hours times chips            0.92           0.18
"""

from rmjax.core import config as configs


def get_config(arg: str = ""):
    """Returns the configuration."""
    configs.check_argument(arg)
    config = configs.fine_tuning()
    config.name = "helpsteer2"
    config.model.path = "meta-llama/Llama-3.2-3B-Instruct"
    config.model.dtype = "bfloat16"
    config.model.remat = "layer"
    config.data.train, config.data.validation = ("nvidia/HelpSteer2:train",), ("nvidia/HelpSteer2:validation",)
    config.data.max_length = 4096
    config.objective.name, config.objective.standardize = "regression", True
    config.objective.attributes = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    config.optimizer.update(learning_rate=2e-6, schedule="constant", warmup_steps=10)
    config.train.update(batch_size=128, epochs=2.0)
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config
