"""Bradley-Terry: fine-tuning of all weights of SmolLM2-135M-Instruct, in float32.

python ../shared/tools/smollm2.py DIR
python -m rmjax.train --config=configs/smollm2.py --config.model.path=DIR \
        --config.data.train=../shared/data/vader_pairs/train.jsonl \
        --config.data.validation=../shared/data/vader_pairs/test.jsonl

Two CPU cores. vader_pairs, 6,165 training pairs, 1,096 test pairs (standard error 0.007; baseline: bag of words 0.806):

    pairs seen  1,552   3,104   4,656   6,165
    accuracy    0.895   0.928   0.945   0.940

8.3 s per step (median), about 53 minutes for the 386 steps, and one minute per validation; this run took 125 minutes
with other load.

Only the first 1,200 pairs (--config.data.train_limit=1200 --config.data.validation_limit=400
--config.evaluation.every=25):
accuracy 0.850, 0.865, 0.880 after 400, 800, 1,200 pairs on the first 400 test pairs; 15 min 42 s with all validations.

hh_harmless (--config.data.train=../shared/data/hh_harmless/train.jsonl.gz
--config.data.validation=../shared/data/hh_harmless/test.jsonl.gz --config.evaluation.every=31), 1,980 training pairs,
322 test pairs (standard error 0.026; baselines: bag of words 0.587, longer response 0.412):

    pairs seen    496     992   1,488   1,980
    accuracy    0.661   0.649   0.661   0.674

23.8 s per step (median of 124, with other load; 21.6 s in the fastest quarter), 70 minutes in total.
"""

from rmjax.core import config as configs


def get_config(arg: str = ""):
    """Returns the configuration; model.path, data.train and data.validation are required."""
    configs.check_argument(arg)
    config = configs.fine_tuning()
    config.name = "smollm2"
    return config
