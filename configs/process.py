"""Process supervision: a label at the end of each step of a response.

python -m rmjax.train --config=configs/process.py

Two CPU cores, 1 minute 6 seconds: step accuracy 0.897 on new responses; the best achievable accuracy is 0.900.

python -m rmjax.train --config=configs/process.py:pretrained --config.model.path=DIR \
        --config.data.train=../shared/data/bigbench_mistake/train.jsonl \
        --config.data.validation=../shared/data/bigbench_mistake/test.jsonl

bigbench_mistake with SmolLM2-135M-Instruct and --config.model.dtype=bfloat16 --config.optimizer.learning_rate=1e-4
--config.evaluation.every=1000, one epoch of 1,720 solutions (9 exceed max_length); on the 453 of 456 test solutions
within max_length: step AUC 0.880 (baseline: logistic regression on the step's text 0.786), step accuracy 0.911
(baseline: all steps correct 0.899). 79 minutes on two CPU cores with other load.
"""

from rmjax.core import config as configs


def get_config(arg: str = ""):
    """Returns the configuration; with `pretrained`, the one to fine-tune a pretrained model on the user's data."""
    configs.check_argument(arg, "pretrained")
    config = configs.fine_tuning() if arg == "pretrained" else configs.small()
    config.name = "process"
    config.data.synthetic_format = "process"
    config.objective.name = "process"
    config.checkpoint.best = "auc"
    if arg == "pretrained":
        config.data.max_length = 2048
    else:
        config.train.steps = 400
    return config
