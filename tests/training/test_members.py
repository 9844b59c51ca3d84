"""Heads of several members: weights, losses, training on features and with the whole model, resume, export, scoring."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.evaluation.evaluate import evaluate, read_evaluation_data
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.evaluation.rewards import std_of
from rmjax.evaluation.scoring import Scorer
from rmjax.models import loading
from rmjax.training.experiment import train
from rmjax.training.export import export
from rmjax.training.members import Members
from rmjax.training.objectives import make_objective
from tests.training.conftest import tiny as tiny_config
from tests.training.test_lora import check_peft

QUIET = {"log": lambda line: None, "progress": False}


@pytest.mark.parametrize("kind", ["exponential", "poisson", "equal"])
def test_weights_have_mean_one_and_depend_on_seed_member_and_comparison(kind):
    members = Members(3, kind, 0)
    index = jnp.arange(4000)
    w = np.asarray(members.weights(index))
    assert w.shape == (3, 4000)
    assert w.dtype == np.float32
    assert np.isfinite(w).all()
    np.testing.assert_allclose(w.mean(axis=1), 1, atol=0.06)  # 4 standard errors
    np.testing.assert_allclose(w.var(axis=1), 0 if kind == "equal" else 1, atol=0.2)
    np.testing.assert_array_equal(members.weights(index[::-1].reshape(40, 100)).reshape(3, -1), w[:, ::-1])
    if kind != "equal":
        assert abs(np.corrcoef(w)[0, 1]) < 0.06
        assert (np.asarray(Members(3, kind, 1).weights(index)) != w).any()
    if kind == "poisson":
        np.testing.assert_array_equal(w, np.round(w))
        np.testing.assert_allclose([(w == n).mean() for n in (0, 1, 2)], np.exp(-1) / np.array([1, 1, 2]), atol=0.02)


def test_losses_are_means_over_members_of_weighted_losses():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(2, 4, 3, 1)).astype(np.float32)
    batch = {
        "readout_group": np.array([[1, 1, 2, 2], [1, 1, 0, 0]]),
        "readout_comparison": np.array([[7, 7, 9, 9], [4, 4, 0, 0]]),
        "edge_winner": np.array([[0, 3], [1, 0]]),
        "edge_loser": np.array([[1, 2], [0, 0]]),
        "edge_weight": np.array([[1.0, 2.0], [1.0, 0.0]]),
        "edge_target": np.ones((2, 2)),
        "edge_margin": np.zeros((2, 2)),
        "edge_strength": np.ones((2, 2)),
        "labels": np.full((2, 4, 1), np.nan),
    }
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    members = Members(3, "exponential", 5)
    objective = make_objective(tiny_config.__wrapped__().objective)
    sums = members.sums(objective, jnp.asarray(rewards), batch)
    w = np.asarray(members.weights(jnp.array([7, 9, 4])))  # [K, comparisons]
    r = rewards[..., 0]
    margins = np.stack([r[0, 0] - r[0, 1], r[0, 3] - r[0, 2], r[1, 1] - r[1, 0]])  # [comparisons, K]
    expected = (w.T * np.array([[1], [2], [1]]) * np.log1p(np.exp(-margins))).sum(axis=0).mean()
    np.testing.assert_allclose(sums["loss/bradley_terry"][0], expected, rtol=1e-5)
    assert float(sums["loss/bradley_terry"][1]) == 4  # of the data alone
    plain = objective(jnp.asarray(rewards.mean(axis=2)), batch)
    np.testing.assert_allclose(sums["accuracy"][0], plain["accuracy"][0])


def members_config(**options):
    config = tiny_config.__wrapped__()
    config.optimizer.learning_rate, config.model.head_members = 1e-2, 4
    config.train.update(**options)
    return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of four members on features, one that computes the model, and the artifact of the former."""
    path = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMJAX_CACHE", str(path / "cache"))
        train(members_config(trainable="head"), path / "run", **QUIET)
        train(members_config(trainable="head", cache_features=False, rows_per_device=4), path / "whole", **QUIET)
    export(path / "run", path / "artifact")
    return path


def kernel(path):
    mesh = make_mesh([1, 1, 1, 1])
    with jax.set_mesh(mesh):
        return np.asarray(loading.load_model(str(path), mesh=mesh).params["head"]["kernel"])


def test_members_differ_and_do_not_depend_on_packing(made):
    one, other = kernel(made / "run"), kernel(made / "whole")
    assert one.shape == (32, 4)
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert np.abs(one - one.mean(axis=1, keepdims=True)).max() > 1e-3


def test_resumed_members_equal_those_of_one_run(made, tmp_path, monkeypatch):
    monkeypatch.setenv("RMJAX_CACHE", str(made / "cache"))
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")  # step 3 remains
    train(members_config(trainable="head"), tmp_path / "run", **QUIET)
    np.testing.assert_array_equal(kernel(tmp_path / "run"), kernel(made / "run"))


def test_artifact_holds_mean_and_members(made):
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(kernel(made / "artifact"), kernel(made / "run"))
    weight = load_file(made / "artifact" / "model.safetensors")["score.weight"]
    np.testing.assert_allclose(weight[0], kernel(made / "run").mean(axis=1), atol=1e-7)


def test_trains_with_adapters_and_fully(made, tmp_path):
    config = members_config(steps=2)
    config.lora.rank, config.model.path = 2, str(made / "artifact")
    train(config, tmp_path / "lora", **QUIET)
    export(tmp_path / "lora", tmp_path / "adapter", peft=True)  # PEFT's head is the mean; rmjax reads all members
    (_, run), (_, adapter) = (rewards(tmp_path / name, combination="minimum") for name in ("lora", "adapter"))
    for one, same in zip(run, adapter, strict=True):
        np.testing.assert_allclose(one, same, atol=1e-5)
        np.testing.assert_allclose(std_of(one), std_of(same), atol=1e-5)
    check_peft(tmp_path / "adapter", tmp_path / "lora", tmp_path)
    train(members_config(steps=2), tmp_path / "full", **QUIET)
    for name in ("lora", "full"):
        found = kernel(tmp_path / name)
        assert np.abs(found - found.mean(axis=1, keepdims=True)).max() > 0


def rewards(path, **options):
    pipeline = load_pipeline(str(path), **options)
    items = read_evaluation_data(["synthetic"], pipeline.options, limit=6)
    return pipeline, pipeline.rewards(items)


@pytest.mark.parametrize(
    ("combination", "beta", "expected"),
    [
        ("mean", None, lambda r: r.mean(-1)),
        ("minimum", None, lambda r: r.min(-1)),
        ("mean_std", 2.0, lambda r: r.mean(-1) - 2 * r.std(-1)),
        ("quantile", 0.3, lambda r: np.quantile(r, 0.3, axis=-1)),
    ],
)
def test_combinations_and_standard_deviations(made, tmp_path, combination, beta, expected):
    features = rewards(made / "artifact")[0]  # compiled once
    members = []
    for k in range(4):
        scorer = features.scorer
        head = dataclasses.replace(scorer.model.head, members=1)
        params = scorer.params | {"head": {"kernel": scorer.params["head"]["kernel"][:, k : k + 1]}}
        one = Scorer(dataclasses.replace(scorer.model, head=head), params, scorer._mesh, scorer.row_length, scorer.rows)
        items = read_evaluation_data(["synthetic"], features.options, limit=6)
        members.append(np.concatenate(dataclasses.replace(features, scorer=one).rewards(items)))
    members = np.stack(members, -1)[:, 0]  # [R, K]
    if combination == "quantile":  # kept in an artifact
        export(made / "artifact", tmp_path / "other", combination=combination, beta=beta)
        _, found = rewards(tmp_path / "other")
    else:
        _, found = rewards(made / "artifact", combination=combination, beta=beta)
    np.testing.assert_allclose(np.concatenate(found)[:, 0], expected(members), atol=1e-5)
    np.testing.assert_allclose(np.concatenate([std_of(r) for r in found])[:, 0], members.std(-1), atol=1e-5)


def test_evaluation_and_predictions_have_uncertainty(made):
    pipeline = load_pipeline(str(made / "artifact"))
    items = read_evaluation_data(["synthetic"], pipeline.options, limit=20)
    found = evaluate(pipeline, items, progress=False)
    assert all(len(line["reward_std"]) == len(line["rewards"]) == 2 for line in found.predictions)
    assert 0 <= found.metrics["uncertainty/confident_right"] <= 1
    assert "uncertainty/error_auc_std" in found.metrics


def test_wrong_combinations_are_refused(made):
    with pytest.raises(InputError, match="combination is 'best'"):
        load_pipeline(str(made / "artifact"), combination="best")
    with pytest.raises(InputError, match="from 0 to 1"):
        load_pipeline(str(made / "artifact"), combination="quantile", beta=2.0)


def test_a_head_continues_with_members_but_not_with_fewer(made, tmp_path):
    config = members_config(trainable="head", steps=1)
    config.model.path = str(made / "artifact")
    train(config, tmp_path / "again", **QUIET)
    config.model.head_members = 2
    with pytest.raises(InputError, match=r"has 4 members; config\.model\.head_members is 2"):
        train(config, tmp_path / "fewer", **QUIET)


def test_members_of_several_standardized_attributes_are_exported_and_merged(made, tmp_path):
    config = members_config(steps=2)
    config.data.format = config.objective.name = "regression"
    config.objective.standardize, config.model.head_init = True, 0.1
    train(config, tmp_path / "run", **QUIET)
    export(tmp_path / "run", tmp_path / "artifact")
    export(tmp_path / "run", tmp_path / "merged", merge=["order=2", "start=-0.5"])
    pipeline = load_pipeline(str(tmp_path / "run"))
    options = dataclasses.replace(pipeline.options, format="regression")
    items = read_evaluation_data(["synthetic"], options, limit=4)
    run, artifact, merged = (
        load_pipeline(str(tmp_path / name)).rewards(items) for name in ("run", "artifact", "merged")
    )
    names = list(pipeline.attributes)
    weights = np.array([{"order": 2, "start": -0.5}.get(name, 0) for name in names])
    for one, same, other in zip(run, artifact, merged, strict=True):
        np.testing.assert_allclose(one, same, atol=1e-4)
        np.testing.assert_allclose(std_of(one), std_of(same), atol=1e-4)
        np.testing.assert_allclose(other[:, 0], np.asarray(one) @ weights, atol=1e-4)
        assert (std_of(one) > 0).all()
