"""SmolLM2-135M-Instruct fine-tuned into a reward model with Bradley-Terry, all weights, float32.

python ../shared/tools/smollm2.py DIR
python -m rmjax.train --config=configs/smollm2.py --config.model.path=DIR \
        --config.data.train=../shared/data/vader_pairs/train.jsonl \
        --config.data.validation=../shared/data/vader_pairs/test.jsonl
"""

from rmjax.core import config as configs


def get_config():
    """Returns the configuration; model.path, data.train and data.validation are the user's to give."""
    config = configs.fine_tuning()
    config.name = "smollm2"
    return config
