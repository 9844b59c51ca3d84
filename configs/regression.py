"""Multi-attribute regression: several labels per response, some of which may be missing.

python -m rmjax.train --config=configs/regression.py

Two CPU cores, 1 minute 40 seconds: mean squared error 0.274 on new responses; the variance of the label noise is 0.250.

python -m rmjax.train --config=configs/regression.py:pretrained --config.model.path=DIR \
        --config.data.train=../shared/data/summeval/train.jsonl \
        --config.data.validation=../shared/data/summeval/test.jsonl \
        --config.data.columns="('prompt=_',)" --config.train.batch_size=16 --config.train.epochs=3.0

summeval without the articles, as in the linear baseline (without the overrides in the last line, each article and its
16 summaries form one comparison), with SmolLM2-135M-Instruct and --config.model.dtype=bfloat16, on the 448 summaries of
the 28 test articles; two CPU cores with other load, 5.2 s per step (median), 24 minutes in total:

                                            coherence  consistency  fluency  relevance  mean
    Pearson, ridge on TF-IDF                  0.180       0.165      0.193     0.248    0.197
    Pearson, 1 epoch                          0.355       0.182      0.224     0.294    0.263
    Pearson, 2 epochs                         0.538       0.292      0.444     0.415    0.422
    Pearson, 3 epochs                         0.543       0.292      0.449     0.422    0.427
    Spearman, 3 epochs                        0.544       0.242      0.341     0.425    0.388
    MSE, variance of the labels               1.061       0.810      0.521     0.623    0.754
    MSE, 3 epochs                             0.756       0.743      0.424     0.533    0.614
    With the article, Pearson:
    1 article per step, 2 epochs              0.236       0.353      0.296     0.139    0.256
    4 per step, learning rate 1e-4, 3 epochs  0.294       0.396      0.288     0.177    0.289

With the article, consistency improves and the rest degrades: 72 articles are few and easily memorized.
"""

from rmjax.core import config as configs


def get_config(arg: str = ""):
    """Returns the configuration; with `pretrained`, the one to fine-tune a pretrained model on the user's data."""
    configs.check_argument(arg, "pretrained")
    config = configs.fine_tuning() if arg == "pretrained" else configs.small()
    config.name = "regression"
    config.data.synthetic_format = "regression"
    config.objective.name = "regression"
    config.objective.standardize = True  # the head has no bias; predictions start at the mean of the labels
    if arg == "pretrained":
        config.data.max_length = 2048
        config.data.group_prompts = True  # one comparison per prompt; summeval has 16 responses for each
        config.train.batch_size = 1
        config.train.epochs = 2.0
    else:
        config.train.steps = 1500
    return config
