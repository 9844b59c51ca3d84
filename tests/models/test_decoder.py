"""The decoder's hyperparameters, dtypes and compilation."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from rmjax.core.mesh import make_mesh
from rmjax.models.architecture import DecoderConfig, HeadConfig, RopeScaling
from rmjax.models.decoder import RewardModel
from tests.models.rows import whole_rows

CONFIG = DecoderConfig(97, 32, 48, 2, 4, 2, 8, 1e-5, 1e4, RopeScaling(8.0, 1.0, 4.0, 16), True, True, 512, 0.3)


def random_rows(seed=0, rows=1):
    return whole_rows(np.random.default_rng(seed).integers(1, 97, (rows, 24)).astype(np.int32))


@pytest.mark.parametrize(
    "change",
    [
        {"norm_eps": 1.0},
        {"rope_theta": 100.0},
        {"rope_scaling": None},
        {"initializer_range": 0.1},
        {"rope_scaling": RopeScaling(2.0, 1.0, 4.0, 16)},
        {"rope_scaling": RopeScaling(8.0, 2.0, 4.0, 16)},
        {"rope_scaling": RopeScaling(8.0, 1.0, 2.0, 16)},
        {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64)},
        {"num_layers": 3},
        {"num_kv_heads": 4},
        {"intermediate_size": 64},
        {"head_dim": 4},
        {"hidden_size": 48},
    ],
)
def test_every_hyperparameter_changes_the_output(change):
    def rewards(config):
        model = RewardModel(config, HeadConfig(init=1.0))
        with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
            return jax.jit(lambda key: model.rewards(model.init(key), random_rows()))(jax.random.key(1))

    assert abs(float((rewards(dataclasses.replace(CONFIG, **change)) - rewards(CONFIG))[0, 0, 0])) > 1e-4


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_the_head_is_float32_for_every_dtype_of_the_model(param_dtype):
    model = RewardModel(CONFIG, HeadConfig(init=1.0), dtype="bfloat16", param_dtype=param_dtype)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        params = model.init(jax.random.key(0))
        hidden, rewards = model.hidden(params, random_rows()), model.rewards(params, random_rows())
    assert params["head"]["kernel"].dtype == np.float32
    assert hidden.dtype == jax.numpy.bfloat16
    assert rewards.dtype == np.float32
    expected = np.asarray(hidden[0, -1], np.float32) @ np.asarray(params["head"]["kernel"])
    np.testing.assert_allclose(rewards[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_held_in_float32_are_used_as_param_dtype_and_get_gradients_in_float32(dtype):
    model = RewardModel(CONFIG, HeadConfig(init=1.0), dtype=dtype, param_dtype="bfloat16")
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        params = dataclasses.replace(model, param_dtype="float32").init(jax.random.key(0))
        decoder = jax.tree.map(lambda leaf: leaf.astype(jax.numpy.bfloat16), params["decoder"])
        rounded = params | {"decoder": decoder}
        compute = jax.jit(lambda params: model.rewards(params, random_rows()).sum())
        np.testing.assert_allclose(compute(params), compute(rounded), rtol=1e-6)
        exact = dataclasses.replace(model, dtype="float32", param_dtype="float32")
        assert abs(float(compute(params) - jax.jit(exact.rewards)(params, random_rows()).sum())) > 1e-4
        gradients = jax.grad(compute)(params)
        as_float32 = jax.tree.map(lambda leaf: leaf.astype(np.float32), rounded)
        expected = jax.grad(compute)(as_float32)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(gradients)} == {"float32"}
    chex.assert_trees_all_close(gradients, expected, rtol=1e-4, atol=1e-5)


def test_one_trace_serves_all_batches_of_a_shape():
    model = RewardModel(CONFIG, HeadConfig(("a", "b", "c"), init=1.0))
    chex.clear_trace_counter()
    rewards = jax.jit(chex.assert_max_traces(model.rewards, n=1))
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        for seed in range(3):
            chex.assert_shape(rewards(model.init(jax.random.key(seed)), random_rows(seed, rows=2)), (2, 1, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"num_heads": 5}, "num_heads is 5; expected a multiple of num_kv_heads, 2"), ({"head_dim": 7}, "head_dim is 7")],
)
def test_errors_name_the_hyperparameter(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)
