"""Adapters: their initialization, product, merging and sharding."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmjax.core import pytree
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.models import lora
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import RewardModel
from rmjax.models.layers import Linear
from rmjax.models.lora import LoraConfig
from rmjax.models.sharding import state_shardings
from tests.models.rows import whole_rows

CONFIG = DecoderConfig(97, 32, 48, 2, 4, 2, 8, 1e-5, 1e4, None, True, False, 512, 0.3)
ROWS = whole_rows(np.random.default_rng(0).integers(1, 97, (1, 24)).astype(np.int32))


def make_plain_model():
    return RewardModel(CONFIG, HeadConfig(init=1.0))


def make_model(**options):
    return dataclasses.replace(make_plain_model(), lora=LoraConfig(**{"rank": 4, "alpha": 8.0} | options))


def with_random_b(params):
    """Returns the parameters with adapters that are not zero."""
    random = lambda path, leaf: (
        0.05 * jax.random.normal(jax.random.key(len(path)), leaf.shape) if path.endswith(lora.B) else leaf
    )
    return pytree.map_with_path(random, params)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 4.0)])
def test_the_scale_is_alpha_over_the_rank_or_its_root(rslora, scale):
    assert LoraConfig(rank=4, alpha=8.0, rslora=rslora).scale == scale


def test_the_product_is_added_to_a_linear_map():
    linear = Linear(2, 2, True, 0.0, jnp.float32, nnx.Rngs(0))
    lora.attach(linear, {lora.A: jnp.array([[1.0], [2.0]]), lora.B: jnp.array([[10.0, 100.0]])}, 0.5)
    # x · A = 3 + 8 = 11; 11 · B · 0.5 = (55, 550)
    np.testing.assert_array_equal(linear(jnp.array([[3.0, 4.0]])), [[55.0, 550.0]])


@pytest.mark.parametrize("dora", [False, True])
def test_new_adapters_do_not_change_the_rewards(dora):
    plain, model = make_plain_model(), make_model(dora=dora)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        params = model.init(jax.random.key(0))
        found, expected = model.rewards(params, ROWS), plain.rewards(plain.init(jax.random.key(0)), ROWS)
        np.testing.assert_allclose(found, expected, atol=1e-5 if dora else 0)
    leaf = params["decoder"]["layers"]["mlp"]["down"][lora.A]
    bound = CONFIG.intermediate_size**-0.5  # of PEFT's kaiming_uniform_(a=sqrt(5))
    assert leaf.shape == (CONFIG.num_layers, CONFIG.intermediate_size, 4)
    assert 0.8 * bound < float(jnp.abs(leaf).max()) <= bound


@pytest.mark.parametrize("dora", [False, True])
def test_a_model_with_merged_adapters_has_the_same_rewards(dora):
    model = make_model(rslora=True, dora=dora)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        params = with_random_b(model.init(jax.random.key(0)))
        expected = model.rewards(params, ROWS)
        merged = lora.merge(params, model.lora)
        plain = make_plain_model()
        found = plain.rewards(merged, ROWS)
        chex.assert_trees_all_equal_shapes(merged, jax.eval_shape(plain.init, jax.random.key(0)))
        assert float(jnp.abs(expected - plain.rewards(plain.init(jax.random.key(0)), ROWS)).max()) > 1e-2
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_dora_replaces_the_norm_of_each_column():
    linear = Linear(2, 2, True, 0.0, jnp.float32, nnx.Rngs(0))
    linear.kernel[...] = jnp.array([[0.0, 3.0], [0.0, 0.0]])
    linear.bias[...] = jnp.array([1.0, 1.0])
    adapter = {lora.A: jnp.array([[1.0], [2.0]]), lora.B: jnp.array([[0.0, 2.0]]), lora.M: jnp.array([5.0, 10.0])}
    lora.attach(linear, adapter, 0.5)
    # The second column of the sum is (3 + 1, 2), of norm √20; a column of zeros stays zero, and the bias as it is.
    np.testing.assert_allclose(linear(jnp.array([[3.0, 4.0]])), [[1.0, 1 + 10 * (12 + 8) / 20**0.5]], rtol=1e-6)


def test_the_norm_has_no_gradient():
    def product(b):
        linear = Linear(2, 1, False, 0.0, jnp.float32, nnx.Rngs(0))
        linear.kernel[...] = jnp.array([[3.0], [4.0]])
        lora.attach(linear, {lora.A: jnp.array([[1.0], [0.0]]), lora.B: b, lora.M: jnp.array([10.0])}, 1.0)
        return linear(jnp.array([[1.0, 1.0]])).sum()

    np.testing.assert_allclose(jax.grad(product)(jnp.zeros((1, 1))), [[10 / 5]])


def test_targets_are_a_regex_of_paths():
    params = make_model(targets="attention/(query|value)").init(jax.random.key(0))
    modules = {path.rpartition("/")[0] for path in pytree.flatten(params) if lora.is_adapter(path)}
    assert modules == {"decoder/layers/attention/query", "decoder/layers/attention/value"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("q_proj", "'q_proj', which matches none of the matrices: decoder/layers/attention/"),
        ("(", r"'\(', not a regular expression"),
    ],
)
def test_wrong_targets_are_named(targets, message):
    with pytest.raises(InputError, match=f"config.lora.targets is {message}"):
        make_model(targets=targets).init(jax.random.key(0))


def test_adapters_are_sharded_with_their_matrices():
    mesh = make_mesh([1, 2, 2, 1], devices=jax.devices()[:4])
    shardings = state_shardings(mesh, jax.eval_shape(make_model(dora=True).init, jax.random.key(0)))
    specs = {path: tuple(sharding.spec) for path, sharding in pytree.flatten(shardings).items()}
    assert specs["decoder/layers/attention/query/lora_a"] == (None, "fsdp", None)
    assert specs["decoder/layers/attention/query/lora_b"] == (None, None, "tensor")
    assert specs["decoder/layers/attention/query/lora_magnitude"] == (None, "tensor")
    assert specs["decoder/layers/mlp/down/lora_a"] == (None, "tensor", None)
    assert specs["decoder/layers/mlp/down/lora_b"] == (None, None, "fsdp")
