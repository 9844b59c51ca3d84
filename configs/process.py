"""Process supervision: a label at the end of each step of a response.

python -m rmjax.train --config=configs/process.py

Two cores, 1 minute 6 seconds: accuracy over steps 0.898 on fresh responses, where the best reachable is 0.900.

python -m rmjax.train --config=configs/process.py:pretrained --config.model.path=DIR \
        --config.data.train=../shared/data/bigbench_mistake/train.jsonl \
        --config.data.validation=../shared/data/bigbench_mistake/test.jsonl
"""

from rmjax.core import config as configs


def get_config(arg: str = ""):
    """Returns the configuration; with the argument `pretrained`, to fine-tune a model on data of the user's."""
    config = configs.fine_tuning() if arg == "pretrained" else configs.small()
    config.name = "process"
    config.data.format = "process"
    config.objective.name = "process"
    config.checkpoint.best = "auc"
    if arg == "pretrained":
        config.data.max_length = 2048
    else:
        config.train.steps = 400
    return config
