"""Training that starts from a reward model of another tool continues with its head, bias included."""

import numpy as np
import pytest

from rmjax.core import pytree
from rmjax.core.errors import InputError
from rmjax.data.records import synthetic
from rmjax.data.tokens.byte_level import byte_level
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.models.workdir import Workdir
from rmjax.training.experiment import train
from rmjax.training.export import export
from tests.training.test_experiment import lines
from tests.training.test_export import save_foreign

HEAD = {
    "v_head.summary.weight": 0.1 * np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32),
    "v_head.summary.bias": np.array([0.75], np.float32),
}
TWO_LAYERS = {
    "score.0.weight": 0.1 * np.random.default_rng(1).normal(size=(32, 64)).astype(np.float32),
    "score.0.bias": 0.1 * np.random.default_rng(2).normal(size=32).astype(np.float32),
    "score.2.weight": 0.1 * np.random.default_rng(3).normal(size=(1, 32)).astype(np.float32),
    "score.2.bias": np.array([0.75], np.float32),
}


@pytest.mark.parametrize("head", [HEAD, TWO_LAYERS], ids=["linear", "two layers"])
def test_the_run_starts_with_the_rewards_of_the_model_and_keeps_its_bias(tiny, tmp_path, head):
    save_foreign(tmp_path / "model", byte_level(), 260, head)
    tiny.model.path, tiny.train.steps = str(tmp_path / "model"), 2
    train(tiny, tmp_path / "run")
    pipeline = load_pipeline(str(tmp_path / "model"))
    rewards = np.concatenate([r for r in pipeline.rewards(synthetic.comparisons("validation", 40))])
    start = lines(tmp_path / "run", "validation")[0]
    assert start["reward_mean"] == pytest.approx(float(rewards.mean()), abs=1e-5)
    assert Workdir(tmp_path / "run").head().shift == (0.75,)
    assert train(tiny, tmp_path / "run").step == 2  # resumed
    assert export(tmp_path / "run", tmp_path / "artifact")["transformers_shift"] == [0.75]
    trained, exported = (load_pipeline(str(tmp_path / name)) for name in ("run", "artifact"))
    for path, leaf in pytree.flatten(trained.scorer.params["head"]).items():
        assert np.abs(leaf - pytree.flatten(pipeline.scorer.params["head"])[path]).max() > 1e-6, path
        np.testing.assert_array_equal(leaf, pytree.flatten(exported.scorer.params["head"])[path])


def test_a_run_continues_from_a_workdir_with_a_shift(tiny, tmp_path):
    save_foreign(tmp_path / "model", byte_level(), 260, HEAD)
    tiny.model.path, tiny.train.steps = str(tmp_path / "model"), 1
    train(tiny, tmp_path / "first")
    tiny.model.path = str(tmp_path / "first")
    train(tiny, tmp_path / "second")
    ended, started = lines(tmp_path / "first", "validation")[-1], lines(tmp_path / "second", "validation")[0]
    assert started["reward_mean"] == pytest.approx(ended["reward_mean"], abs=1e-5)
    assert Workdir(tmp_path / "second").head().shift == (0.75,)


def test_a_head_that_does_not_fit_the_objective_is_named(tiny, tmp_path):
    save_foreign(tmp_path / "model", byte_level(), 260, {"score.weight": np.ones((3, 64), np.float32)})
    tiny.model.path = str(tmp_path / "model")
    with pytest.raises(InputError, match="predicts LABEL_0, LABEL_1, LABEL_2; the objective expects reward: "):
        train(tiny, tmp_path / "run")
