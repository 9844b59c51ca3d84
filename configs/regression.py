"""Multi-attribute regression: several scores of a response, some of them missing perhaps.

python -m rmjax.train --config=configs/regression.py

Two cores, 1 minute 40 seconds: mean squared error 0.273 on fresh responses, where the labels' noise alone is 0.250.

python -m rmjax.train --config=configs/regression.py:pretrained --config.model.path=DIR \
        --config.data.train=../shared/data/summeval/train.jsonl \
        --config.data.validation=../shared/data/summeval/test.jsonl

summeval with SmolLM2-135M-Instruct and --config.model.dtype=bfloat16 --config.evaluation.every=72, on the 448 summaries
of the 28 test articles; 14.6 s a step of an article's 16 summaries (median), 44 minutes in all beside other work:

                                 coherence  consistency  fluency  relevance  mean
    Pearson, ridge on TF-IDF       0.180       0.165      0.193     0.248    0.197
    Pearson, after 72 articles     0.198       0.386      0.349     0.112    0.261
    Pearson, after 144 (2 epochs)  0.236       0.353      0.296     0.139    0.256
    MSE, labels' variance          1.061       0.810      0.521     0.623    0.754
    MSE, after 144                 1.019       0.711      0.476     0.646    0.713

Relevance stays below the linear model: 72 articles are few to learn from.
"""

from rmjax.core import config as configs


def get_config(arg: str = ""):
    """Returns the configuration; with the argument `pretrained`, to fine-tune a model on data of the user's."""
    config = configs.fine_tuning() if arg == "pretrained" else configs.small()
    config.name = "regression"
    config.data.format = "regression"
    config.objective.name = "regression"
    config.objective.standardize = True  # the head has no bias: it starts at the mean of the labels
    if arg == "pretrained":
        config.data.max_length = 2048
        config.data.group_prompts = True  # a comparison holds all responses to a prompt: summeval's are 16
        config.train.batch_size = 1
        config.train.epochs = 2.0
    else:
        config.train.steps = 1500
    return config
