"""SmolLM2-135M-Instruct fine-tuned into a reward model with Bradley-Terry, all weights, float32.

python ../shared/tools/smollm2.py DIR
python -m rmjax.train --config=configs/smollm2.py --config.model.path=DIR \
        --config.data.train=../shared/data/vader_pairs/train.jsonl \
        --config.data.validation=../shared/data/vader_pairs/test.jsonl
"""

from rmjax.core import config as configs


def get_config():
    """Returns the configuration; model.path, data.train and data.validation are the user's to give."""
    config = configs.default()
    config.name = "smollm2"
    config.data.strings = "chat"
    config.optimizer.learning_rate = 5e-5
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 8
    config.train.epochs = 1.0
    config.train.batch_size = 16
    config.train.rows_per_device = 1
    config.evaluation.batch_size = 512
    return config
