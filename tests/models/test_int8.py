"""int8 matrices: their error, products, gradients, memory and sharding."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.core import pytree
from rmjax.core.mesh import make_mesh
from rmjax.models import int8
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import RewardModel
from rmjax.models.sharding import sharded_shapes
from tests.models.rows import whole_rows

CONFIG = DecoderConfig(97, 32, 48, 2, 4, 2, 8, 1e-5, 1e4, None, True, False, 512, 0.3)
ROWS = whole_rows(np.random.default_rng(0).integers(1, 97, (2, 24)).astype(np.int32))
MODEL = RewardModel(CONFIG, HeadConfig(init=1.0))


@pytest.fixture(autouse=True)
def _one_device():
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        yield


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0))


def test_values_and_scales_of_a_small_matrix():
    kernel = jnp.array([[[1.0, 0.0, -254.0], [-0.5, 0.0, 3.0]]])
    matrix = int8.quantize({"decoder": {"layers": {"up": {"kernel": kernel}}}})["decoder"]["layers"]["up"]["kernel"]
    np.testing.assert_array_equal(matrix["int8"], [[[127, 0, -127], [-64, 0, 2]]])  # -63.5 and 1.5 are rounded to even
    np.testing.assert_allclose(matrix["scale"], [[[1 / 127, 1.0, 2.0]]], rtol=1e-6)
    assert matrix["int8"].dtype == jnp.int8


def test_only_matrices_of_layers_are_changed_and_by_half_a_scale_at_most(params):
    quantized = int8.quantize(params)
    chex.assert_trees_all_equal(int8.quantize(quantized), quantized)
    restored, leaves = pytree.flatten(int8.dequantize(quantized, "float32")), pytree.flatten(quantized)
    assert restored.keys() == pytree.flatten(params).keys()
    for path, leaf in pytree.flatten(params).items():
        scale = leaves.get(f"{path}/scale", np.zeros(()))
        assert (scale.size > 1) == ("/layers/" in path and path.endswith("/kernel"))
        assert (abs(restored[path] - leaf) <= scale * 0.5001).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_products_and_gradients_are_those_of_the_dequantized_matrix(dtype, tolerance):
    x = jax.random.normal(jax.random.key(1), (2, 5, 32)).astype(dtype)
    kernel = jax.random.normal(jax.random.key(2), (1, 32, 8))
    layers = {"decoder": {"layers": {"up": {"kernel": kernel}}}}
    stacked = int8.quantize(layers)["decoder"]["layers"]["up"]["kernel"]
    matrix = jax.tree.map(lambda leaf: leaf[0], stacked)
    w = matrix["int8"].astype(jnp.float32) * matrix["scale"]
    assert int8.dot(x, matrix).dtype == dtype
    close = lambda a, b: np.testing.assert_allclose(
        np.float32(a), np.float32(b), atol=tolerance * float(jnp.abs(b).max()), rtol=0
    )
    close(int8.dot(x, matrix), x.astype(jnp.float32) @ w)
    gradient = jax.vjp(lambda x: int8.dot(x, matrix), x)[1](jnp.ones((2, 5, 8), dtype))[0]
    close(gradient, jnp.broadcast_to(w.sum(axis=1), x.shape))


def test_rewards_and_gradients_of_a_model_are_those_of_its_dequantized_matrices(params):
    quantized = int8.quantize(params)
    plain = int8.dequantize(quantized, "float32")

    def gradient(params):
        embedding, rest = pytree.split(params, lambda path: "embedding" in path)
        return jax.grad(lambda embedding: MODEL.rewards(pytree.merge(embedding, rest), ROWS).sum())(embedding)

    np.testing.assert_allclose(MODEL.rewards(quantized, ROWS), MODEL.rewards(plain, ROWS), atol=1e-4)
    chex.assert_trees_all_close(gradient(quantized), gradient(plain), atol=1e-4)
    assert abs(MODEL.rewards(plain, ROWS) - MODEL.rewards(params, ROWS)).max() > 1e-3


def test_the_backward_pass_keeps_no_copies_of_the_matrices_of_all_layers():
    layers, size = 16, 128
    matrices = {"int8": jnp.zeros((layers, size, size), jnp.int8), "scale": jnp.ones((layers, 1, size))}

    def loss(x, matrices):
        return jax.lax.scan(lambda x, matrix: (jnp.tanh(int8.dot(x, matrix)), None), x, matrices)[0].sum()

    program = jax.jit(jax.grad(loss)).lower(jnp.ones((4, size)), matrices).compile()
    assert program.memory_analysis().temp_size_in_bytes < layers * size * size  # as float32: four times that


def test_values_and_scales_are_sharded_with_their_matrices(params):
    mesh = make_mesh((1, 2, 2, 2))
    shapes = sharded_shapes(mesh, jax.eval_shape(int8.quantize, params))["decoder"]["layers"]
    spec = lambda *path: tuple(shapes[path[0]][path[1]]["kernel"][path[2]].sharding.spec)
    assert spec("attention", "query", "int8") == (None, "fsdp", "tensor")
    assert spec("attention", "query", "scale") == (None, None, "tensor")
    assert spec("mlp", "down", "int8") == (None, "tensor", "fsdp")
    assert spec("mlp", "down", "scale") == (None, None, "fsdp")
