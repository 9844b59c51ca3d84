"""SmolLM2-135M-Instruct fine-tuned into a reward model with Bradley-Terry, all weights, float32.

python ../shared/tools/smollm2.py DIR
python -m rmjax.train --config=configs/smollm2.py --config.model.path=DIR \
        --config.data.train=../shared/data/vader_pairs/train.jsonl \
        --config.data.validation=../shared/data/vader_pairs/test.jsonl

Two cores. vader_pairs, all 6,165 training pairs, on all 1,096 test pairs (standard error 0.007; bag of words 0.806):

    pairs seen  1,552   3,104   4,656   6,165
    accuracy    0.895   0.928   0.945   0.940

8.3 s a step (median), so some 53 minutes of training for the 386 steps, and a minute a validation; this run shared the
machine and took 125 minutes of wall clock.

The first 1,200 pairs alone (--config.data.train_limit=1200 --config.data.validation_limit=400
--config.evaluation.every=25):
0.850, 0.865, 0.880 after 400, 800, 1,200 pairs on the first 400 test pairs; 15 min 42 s with all validations.

hh_harmless (--config.data.train=../shared/data/hh_harmless/train.jsonl.gz
--config.data.validation=../shared/data/hh_harmless/test.jsonl.gz --config.evaluation.every=31), 1,980 training pairs,
on all 322 test pairs (standard error 0.026; bag of words 0.587, the longer response 0.412):

    pairs seen    496     992   1,488   1,980
    accuracy    0.661   0.649   0.661   0.674

23.8 s a step (median of 124, on a machine that did other work; 21.6 s in the quickest quarter), 70 minutes in all.
"""

from rmjax.core import config as configs


def get_config():
    """Returns the configuration; model.path, data.train and data.validation are the user's to give."""
    config = configs.fine_tuning()
    config.name = "smollm2"
    return config
