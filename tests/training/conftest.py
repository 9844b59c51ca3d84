import pytest

from rmjax.core import config as configs


@pytest.fixture
def tiny():
    """A configuration that trains in seconds on the built-in data."""
    config = configs.default()
    config.model.hidden_size = 32
    config.model.intermediate_size = 64
    config.model.num_layers = 2
    config.model.num_heads = 4
    config.model.num_kv_heads = 2
    config.optimizer.warmup_steps = 2
    config.data.synthetic_train = 200
    config.data.synthetic_validation = 40
    config.train.steps = 6
    config.train.batch_size = 16
    config.train.rows_per_device = 2
    config.evaluation.every = 3
    config.mesh.data = 1
    return config
