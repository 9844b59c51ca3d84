"""The decoder's hyperparameters, dtypes and compilation."""

import dataclasses
import itertools
import math

import chex
import jax
import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.models import decoder as decoder_module
from rmjax.models.architecture import DecoderConfig, HeadConfig, LayerKind
from rmjax.models.decoder import RewardModel
from rmjax.models.rope import Llama3Scaling
from rmjax.models.sharding import state_shardings
from tests.models.rows import whole_rows

CONFIG = DecoderConfig(97, 32, 48, 2, 4, 2, 8, 1e-5, 1e4, Llama3Scaling(8.0, 1.0, 4.0, 16), True, True, 512, 0.3)


def random_rows(seed=0, rows=1):
    return whole_rows(np.random.default_rng(seed).integers(1, 97, (rows, 24)).astype(np.int32))


@pytest.mark.parametrize(
    "change",
    [
        {"norm_eps": 1.0},
        {"rope_theta": 100.0},
        {"rope_scaling": None},
        {"initializer_range": 0.1},
        {"rope_scaling": Llama3Scaling(2.0, 1.0, 4.0, 16)},
        {"rope_scaling": Llama3Scaling(8.0, 2.0, 4.0, 16)},
        {"rope_scaling": Llama3Scaling(8.0, 1.0, 2.0, 16)},
        {"rope_scaling": Llama3Scaling(8.0, 1.0, 4.0, 64)},
        {"num_layers": 3},
        {"num_kv_heads": 4},
        {"intermediate_size": 64},
        {"head_dim": 4},
        {"hidden_size": 48},
        {"kinds": (LayerKind(5),)},
        {"kinds": (LayerKind(), LayerKind(rotary=False))},
        {"kinds": (LayerKind(), LayerKind(rope_theta=100.0))},
        {"activation": "gelu"},
        {"mlp_gated": False},
        {"qk_norm": "head"},
        {"qk_norm": "all"},
        {"pre_norms": False},
        {"post_norms": True},
        {"attention_scale": 1.0},
        {"attention_softcap": 0.1},
        {"embedding_scale": 2.0},
        {"residual_scale": 0.5},
        {"rotary_dim": 4},
        {"rotary_interleaved": True},
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
    [
        ({"num_heads": 5}, "num_heads is 5; expected a multiple of num_kv_heads, 2"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"rotary_dim": 3}, "rotary_dim is 3; expected an even number up to 8"),
        ({"activation": "elu"}, "the activation is 'elu'; implemented: silu, gelu, "),
    ],
)
def test_errors_name_the_hyperparameter(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


EVERYTHING = dataclasses.replace(
    CONFIG,
    kinds=(LayerKind(5), LayerKind(rope_theta=100.0)),
    num_layers=3,
    qk_norm="all",
    post_norms=True,
    norm_offset=1.0,
    norm_float32=True,
    attention_softcap=2.0,
    embedding_scale=2.0,
    rotary_dim=4,
)


@pytest.mark.parametrize(
    ("kernel", "sizes"),
    [
        *itertools.product(("dense", "blocks"), ((2, 2, 2, 1), (1, 1, 2, 2))),
        ("triton", (1, 1, 2, 2)),
        ("mosaic", (1, 1, 2, 2)),
    ],
)
def test_all_features_on_a_mesh(kernel, sizes):
    model = RewardModel(EVERYTHING, HeadConfig(init=1.0), attention=kernel)
    rows = whole_rows(np.random.default_rng(0).integers(1, 97, (4, 32)).astype(np.int32))

    def run(sizes):
        mesh = make_mesh(sizes, devices=jax.devices()[: math.prod(sizes)])
        with jax.set_mesh(mesh):
            shardings = state_shardings(mesh, jax.eval_shape(model.init, jax.random.key(0)))
            params = jax.jit(model.init, out_shardings=shardings)(jax.random.key(0))
            return jax.device_get(jax.jit(jax.value_and_grad(lambda p: model.rewards(p, rows).sum()))(params))

    chex.assert_trees_all_close(run(sizes), run((1, 1, 1, 1)), atol=2e-4, rtol=1e-4)


A, B, C = LayerKind(), LayerKind(4), LayerKind(rotary=False)


@pytest.mark.parametrize("kinds", [(A,), (B, A), (B, B, A), (C, B), (C,), (B,), (LayerKind(4, rope_theta=7.0), C, A)])
@pytest.mark.parametrize("remat", ["none", "small"])
def test_one_loop_runs_layers_of_several_kinds(kinds, remat):
    config = dataclasses.replace(CONFIG, kinds=kinds, num_layers=4)
    model, batch = RewardModel(config, HeadConfig(init=1.0), remat=remat), random_rows()

    def one_by_one(params, batch):
        """Each layer as a model of its own, which has one kind."""
        x = params["decoder"]["embedding"]["weight"][batch["tokens"]]
        for i in range(4):
            layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["decoder"]["layers"])
            alone = RewardModel(dataclasses.replace(config, kinds=(kinds[i % len(kinds)],)), HeadConfig())
            mask, rope = alone._shared(batch)[0]
            x = decoder_module._bind(lambda: model._block(jax.random.key(0)), layer)(x, mask, rope)
        return decoder_module._bind(model._norm, params["decoder"]["norm"])(x)

    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        params = model.init(jax.random.key(0))
        jaxpr = jax.make_jaxpr(model.hidden)(params, batch)
        assert [equation.primitive.name for equation in jaxpr.eqns].count("scan") == 1
        weights = jax.random.normal(jax.random.key(1), (*batch["tokens"].shape, CONFIG.hidden_size))
        results = [
            jax.value_and_grad(lambda p, f=f: (weights * f(p, batch)).mean())(params)
            for f in (model.hidden, one_by_one)
        ]
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5)


def test_several_sizes_of_windows_are_refused():
    with pytest.raises(InputError, match=r"windows of \[4, 8\] tokens; expected one size"):
        dataclasses.replace(CONFIG, kinds=(B, LayerKind(8)))


def test_windows_that_hide_nothing_in_a_row_are_left_out():
    length = random_rows()["tokens"].shape[1]
    config = dataclasses.replace(CONFIG, kinds=(LayerKind(length), A), num_layers=4)
    assert config.layer_kinds(length) == [A] * 4
    assert config.layer_kinds(length + 1) == [LayerKind(length), A] * 2
    models = [RewardModel(dataclasses.replace(config, kinds=kinds), HeadConfig()) for kinds in (config.kinds, (A,))]
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        params = models[0].init(jax.random.key(0))
        found = [model.hidden(params, random_rows()) for model in models]
    np.testing.assert_array_equal(*found)
