"""Training with `param_dtype` bfloat16: small updates arrive, and runs resume, shard and load as with float32."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.core import config as configs
from rmjax.core.mesh import make_mesh
from rmjax.data.records import synthetic
from rmjax.evaluation.evaluate import evaluate, read_evaluation_data
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.models import loading
from rmjax.models.workdir import Workdir
from rmjax.training.experiment import train
from rmjax.training.export import export
from rmjax.training.optimizer import make_optimizer, make_schedule
from rmjax.training.step import Trainer
from tests.training.conftest import tiny as tiny_config
from tests.training.test_experiment import final_params, lines, losses

STEPS, RATE = 3000, 1e-6


class ConstantGradient:
    """A model and an objective whose gradient is the batch's `gradient`, the same at every parameter."""

    param_dtype, frozen_dtype = "bfloat16", ""

    def init(self, key):
        ones = jnp.ones((8, 8), self.param_dtype)
        return {"decoder": {"norm": {"scale": ones}, "embedding": {"weight": ones}}}

    def shapes(self):
        return jax.eval_shape(self.init, jax.random.key(0))

    def rewards(self, params, rows):
        return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(params)) * rows["gradient"][0]

    def total_weights(self, batch):
        return {}

    def __call__(self, rewards, rows):
        return {"loss": (rewards, 1.0)}

    def loss_share(self, sums, total_weights):
        return sums["loss"][0]


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_small_updates_add_up(name):
    """Each of 3,000 updates of 1e-6 is below a thousandth of bfloat16's resolution at 1."""
    config, model = configs.default().optimizer, ConstantGradient()
    config.name, config.schedule, config.learning_rate = name, "constant", RATE
    schedule, mesh = make_schedule(config, STEPS), make_mesh(devices=jax.devices()[:1])
    trainer = Trainer(model, model, make_optimizer(config, schedule), schedule, 0.0, mesh)
    state = trainer.init(model.init(jax.random.key(0)))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} == {"float32", "int32"}
    gradients = np.where(np.arange(STEPS) < STEPS // 2, 1.0, 1.3).astype(np.float32)
    with jax.set_mesh(mesh):
        step = trainer.compile_step(0)
        for gradient in gradients:
            state, _ = step(state, {"gradient": np.full((1, 1), gradient)}, np.ones(2, np.int32))
    moved = np.stack([1 - np.asarray(leaf) for leaf in jax.tree.leaves(state["params"])])
    first = second = expected = 0.0
    for n, gradient in enumerate(gradients.astype(np.float64), 1):
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        corrected = first / (1 - 0.9**n), second / (1 - 0.999**n)
        expected += RATE * (corrected[0] / np.sqrt(corrected[1]) if name == "adamw" else 1.0)
    np.testing.assert_allclose(moved, expected, rtol=2e-2)  # float32 itself rounds each update by 1.3 %
    if name == "adamw":
        chex.assert_trees_all_close(jax.tree.leaves(state["opt_state"][0].nu), [np.full((8, 8), second)] * 2, rtol=1e-3)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A file of 40 comparisons."""
    path = tmp_path_factory.mktemp("records") / "validation.jsonl"
    found = [item.record for item in synthetic.comparisons("validation", 40)]
    path.write_text("".join(json.dumps(record) + "\n" for record in found))
    return path


@pytest.fixture
def half(tiny, records):
    tiny.model.param_dtype = "bfloat16"
    tiny.data.validation = (str(records),)
    tiny.optimizer.learning_rate = 1e-2
    return tiny


@pytest.fixture(scope="module")
def reference(tmp_path_factory, records):
    workdir = tmp_path_factory.mktemp("reference") / "run"
    train(half.__wrapped__(tiny_config.__wrapped__(), records), workdir)
    return workdir


def test_a_loaded_model_is_the_rounding_of_the_state(half, reference):
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        model = dataclasses.replace(loading.load_model(str(reference), mesh=mesh).model, param_dtype="float32")
        state = jax.device_get(Workdir(reference).restore_params(model, mesh))
    loaded = final_params(reference)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded["decoder"])} == {"bfloat16"}
    assert loaded["head"]["kernel"].dtype == np.float32
    assert all(
        (a != b.astype(np.float32)).any()
        for a, b in zip(*map(jax.tree.leaves, (state["decoder"], loaded["decoder"])), strict=True)
    )
    chex.assert_trees_all_equal(jax.tree.map(lambda a, b: a.astype(b.dtype), state, loaded), loaded)


def test_validation_in_training_is_that_of_the_exported_model(reference, records, tmp_path):
    """Training computes rewards with the rounded parameters, so the artifact's differ by float rounding only."""
    export(reference, tmp_path / "artifact")
    assert json.loads((tmp_path / "artifact" / "config.json").read_text())["dtype"] == "bfloat16"
    pipeline = load_pipeline(str(tmp_path / "artifact"))
    found = evaluate(pipeline, read_evaluation_data([records], pipeline.options)).metrics
    step = Workdir(reference).best_step()
    expected = next(line for line in lines(reference, "validation") if line["step"] == step)
    for name in ("reward_mean", "reward_std", "margin"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5)


def test_a_sharded_run_has_the_losses_of_one_device_and_resumes_bit_for_bit(half, reference, tmp_path):
    half.mesh.update(fsdp=2, tensor=2)
    for name in ("whole", "run"):
        train(half, tmp_path / name)
    np.testing.assert_allclose(losses(tmp_path / "whole"), losses(reference), atol=1e-4)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    assert train(half, tmp_path / "run").step == 6
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    chex.assert_trees_all_equal(final_params(tmp_path / "run"), final_params(tmp_path / "whole"))
