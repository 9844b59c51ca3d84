"""K-wise ranking: four responses per prompt, each comparison with the same total weight (InstructGPT's loss).

python -m rmjax.train --config=configs/kwise.py

Two CPU cores, 2 minutes 12 seconds: pair accuracy 0.773 on new comparisons; the best achievable accuracy is 0.777.

python -m rmjax.train --config=configs/kwise.py:pretrained --config.model.path=DIR \
        --config.data.train=../shared/data/qa_feedback_kwise/train.jsonl \
        --config.data.validation=../shared/data/qa_feedback_kwise/test.jsonl

qa_feedback_kwise with SmolLM2-135M-Instruct and --config.model.dtype=bfloat16 --config.evaluation.every=1000, one epoch
of 367 questions: pair accuracy on 99 test questions 0.589 (standard error 0.021; baselines: bag of words 0.508, longer
response 0.524), loss 0.677. 68 minutes on two CPU cores with other load.
"""

from rmjax.core import config as configs


def get_config(arg: str = ""):
    """Returns the configuration; with `pretrained`, the one to fine-tune a pretrained model on the user's data."""
    configs.check_argument(arg, "pretrained")
    config = configs.fine_tuning() if arg == "pretrained" else configs.small()
    config.name = "kwise"
    config.data.synthetic_format = "kwise"
    config.objective.name = "pairwise"
    if arg == "pretrained":
        config.data.max_length = 2048
        config.train.batch_size = 8
    else:
        config.train.steps = 900
        config.train.batch_size = 32
    return config
