"""Calibration after training: curves against references, artifacts that rmjax and transformers read, Laplace."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file

import rmjax
from rmjax.core.errors import InputError
from rmjax.data.schema import Comparison, Edge
from rmjax.evaluation import calibrating, laplace
from rmjax.evaluation.evaluate import read_evaluation_data
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.evaluation.rewards import std_of
from rmjax.metrics.lowess import lowess
from rmjax.models.correction import Correction
from rmjax.training.experiment import train
from tests.training.conftest import tiny as tiny_config


def pairs(margins, tokens):
    """Returns comparisons of a winner and a loser with these margins."""
    one = lambda i: Comparison((f"prompt {i}", f"prompt {i}!"), True, (Edge(0, 1),), None, f"x:{i}", {})
    rewards = [np.array([margin / 2, -margin / 2]) for margin in margins]
    count = len(margins)
    return calibrating.ScoredData([one(i) for i in range(count)], rewards, list(tokens), np.arange(count))


def test_lowess_follows_a_line_and_ignores_outliers():
    x = np.arange(200.0)
    y = 3 + 0.5 * x
    np.testing.assert_allclose(np.interp(x, *lowess(x, y)), y, atol=1e-9)
    y[::20] += 100
    np.testing.assert_allclose(np.interp(x, *lowess(x, y)), 3 + 0.5 * x, atol=0.5)
    at, curve = lowess(np.full(9, 4.0), np.arange(9.0))  # one length
    assert at.tolist() == [4.0]
    assert curve[0] == pytest.approx(4.0)


def test_temperature_is_recovered_and_lowers_the_loss():
    rng = np.random.default_rng(0)
    true = rng.normal(size=4000) * 2
    won = rng.uniform(size=4000) < 1 / (1 + np.exp(-true))
    data = pairs(np.where(won, true, -true) * 3, rng.integers(5, 50, size=(4000, 2)))
    found = calibrating.fit(data)
    assert found.temperature == pytest.approx(3, rel=0.15)
    metrics = calibrating.cross_validate(data)
    assert metrics["after"]["loss"] < metrics["before"]["loss"]
    assert metrics["after"]["loss_low"] < metrics["after"]["loss"] < metrics["after"]["loss_high"]
    assert metrics["after"]["accuracy"] == pytest.approx(metrics["before"]["accuracy"], abs=1e-9)


def test_length_bias_is_removed():
    rng = np.random.default_rng(1)
    tokens = rng.integers(10, 400, size=(500, 2))
    quality = rng.normal(size=500)
    data = pairs(quality, tokens)
    biased = [r + 0.02 * t for r, t in zip(data.rewards, tokens, strict=True)]
    data = dataclasses.replace(data, rewards=biased)
    metrics = calibrating.cross_validate(data, length=True)
    assert metrics["before"]["reward_length_pearson"] > 0.9
    assert abs(metrics["after"]["reward_length_pearson"]) < 0.1
    expected = np.mean(quality > 0)
    assert metrics["after"]["accuracy"] == pytest.approx(expected, abs=0.05)


def test_correction_of_json_is_the_same():
    found = Correction(((1.0, 2.0), (3.0, 4.0)), ((0.0, 0.0), (1.0, 5.0)))
    assert Correction.from_metadata({"correction": found.to_json()}) == found
    np.testing.assert_allclose(found(np.array([3.5, 9.0]), np.array([2, 99])), [2.5, 5.0])
    with pytest.raises(InputError, match="ascending"):
        Correction.from_metadata({"correction": {"length": [[3, 1], [2, 1]]}})


def test_laplace_is_the_inverse_hessian():
    rng = np.random.default_rng(2)
    w, features = rng.normal(size=3), [rng.normal(size=(2, 3)) for _ in range(50)]
    edges = [Comparison(("a", "b"), True, (Edge(0, 1),), None, "x", {}) for _ in features]
    found = laplace.fit(edges, features, w)
    hessian = np.zeros((3, 3))
    for x in features:
        d = x[0] - x[1]
        p = 1 / (1 + np.exp(-w @ d))
        hessian += p * (1 - p) * np.outer(d, d)
    covariance = np.linalg.inv(hessian + found.precision * np.eye(3))
    np.testing.assert_allclose(found.factor @ found.factor.T, covariance, rtol=1e-8, atol=1e-12)
    d = features[0][0] - features[0][1]
    assert found.difference_std(*features[0]) == pytest.approx(np.sqrt(d @ covariance @ d))
    m = np.concatenate(features).mean(0)
    assert found.std(features[0])[1] == pytest.approx(np.sqrt((features[0][1] - m) @ covariance @ (features[0][1] - m)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workdir of a head (`run`)."""
    path = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMJAX_CACHE", str(path / "cache"))
        config = tiny_config.__wrapped__()
        config.train.trainable, config.optimizer.learning_rate = "head", 1e-1
        train(config, path / "run", log=lambda line: None, progress=False)
    return path


def scored(path):
    pipeline = load_pipeline(str(path))
    items = read_evaluation_data(["synthetic"], pipeline.options, limit=40)
    lengths = []
    rewards = pipeline.rewards(items, None, lengths)
    return pipeline, items, np.concatenate(rewards)[:, 0], np.concatenate(lengths), rewards


def test_artifact_applies_calibration_and_laplace(made, tmp_path):
    found = rmjax.calibrate(made / "run", "synthetic", tmp_path / "out", length=True, laplace=True, limit=40)
    pipeline, items, before, tokens, _ = scored(made / "run")
    _, _, after, _, rewards = scored(tmp_path / "out")
    curve = np.array(load_pipeline(str(tmp_path / "out")).metadata["correction"]["length"])
    expected = before / found["temperature"] - found["mean"] - np.interp(tokens, *curve.T)
    np.testing.assert_allclose(after, expected, atol=2e-5)
    assert after.mean() == pytest.approx(0, abs=1e-4)
    assert found["std"] == pytest.approx(after.std(), rel=1e-3)
    # The Hugging Face head has the temperature.
    kernel = np.asarray(pipeline.scorer.params["head"]["kernel"])[:, 0]
    weight = load_file(tmp_path / "out" / "model.safetensors")["score.weight"][0]
    np.testing.assert_allclose(weight, kernel / found["temperature"], rtol=1e-5)
    comparisons, features = laplace.read_features(pipeline, items)
    posterior = laplace.fit(comparisons, features, kernel.astype(np.float64))
    std = np.concatenate([std_of(r) for r in rewards])[:, 0]
    np.testing.assert_allclose(std, posterior.std(np.concatenate(features)) / found["temperature"], rtol=2e-3)
    with pytest.raises(InputError, match="has a correction already"):
        rmjax.calibrate(tmp_path / "out", "synthetic", tmp_path / "again", limit=40)


def test_isotonic_needs_labels(made, tmp_path):
    with pytest.raises(InputError, match="preferences alone"):
        rmjax.calibrate(made / "run", "synthetic", tmp_path / "out", isotonic=True, limit=40)


def test_isotonic_maps_rewards_to_labels():
    rng = np.random.default_rng(3)
    rewards = rng.normal(size=300)
    labels = (rng.uniform(size=300) < 1 / (1 + np.exp(-2 * rewards))).astype(np.float32)
    one = lambda i: Comparison((f"{i}",), True, (), labels[i : i + 1, None], "x", {}, attributes=("reward",))
    data = calibrating.ScoredData(
        [one(i) for i in range(300)], list(rewards[:, None]), [np.array([5])] * 300, np.arange(300)
    )
    found = calibrating.fit(data, isotonic=True)
    assert (np.diff([y for _, y in found.isotonic]) >= 0).all()
    metrics = calibrating.cross_validate(data, isotonic=True)
    assert metrics["after"]["mse"] < 0.25 < metrics["before"]["mse"]
