"""The attention mask, and the choice of kernel and matrix product by the platform of the mesh."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from rmjax.core.mesh import AXES, make_mesh
from rmjax.models.attention import KERNELS, attend, choose_kernel, make_mask
from rmjax.models.attention.mask import visible
from rmjax.models.matmul import dot
from rmjax.models.sharding import mesh_platform

# Two groups (the first with two branches after a prefix of two tokens) and one token of padding.
GROUP, BRANCH = np.array([[1, 1, 1, 1, 1, 2, 2, 0]]), np.array([[0, 0, 1, 1, 2, 0, 1, 0]])
POSITION = np.array([[0, 1, 2, 3, 2, 0, 1, 0]])
VISIBLE = [
    [1, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 0, 0, 0, 0],
    [1, 1, 0, 0, 1, 0, 0, 0],
    [0, 0, 0, 0, 0, 1, 0, 0],
    [0, 0, 0, 0, 0, 1, 1, 0],
    [0, 0, 0, 0, 0, 0, 0, 0],
]
# With a window of 2 tokens: the token of the second branch sees the end of the prefix, three tokens before it.
VISIBLE_IN_WINDOW = [
    [1, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0, 0],
    [0, 1, 1, 0, 0, 0, 0, 0],
    [0, 0, 1, 1, 0, 0, 0, 0],
    [0, 1, 0, 0, 1, 0, 0, 0],
    [0, 0, 0, 0, 0, 1, 0, 0],
    [0, 0, 0, 0, 0, 1, 1, 0],
    [0, 0, 0, 0, 0, 0, 0, 0],
]


def abstract_mesh(platform):
    """Returns a mesh of one device of a platform that need not be there."""
    device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    return AbstractMesh((1,) * 4, AXES, axis_types=(AxisType.Auto,) * 4, abstract_device=device)


def test_visible_tokens():
    tokens = make_mask(GROUP, BRANCH, POSITION, KERNELS["dense"]).tokens
    np.testing.assert_array_equal(visible(tokens, tokens)[0], np.array(VISIBLE, bool))
    np.testing.assert_array_equal(visible(tokens, tokens, 2)[0], np.array(VISIBLE_IN_WINDOW, bool))


def test_a_window_as_long_as_the_row_is_none():
    assert [make_mask(GROUP, BRANCH, POSITION, KERNELS["dense"], window).window for window in (7, 8, 9)] == [7, 0, 0]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize(("window", "scale", "softcap"), [(0, None, 0.0), (2, 1.5, 0.7)])
def test_kernels_equal_softmax_attention(kernel, heads, window, scale, softcap):
    q, k, v = (
        jax.random.normal(key, (1, 8, n, 6))
        for key, n in zip(jax.random.split(jax.random.key(0), 3), (heads[0], heads[1], heads[1]), strict=True)
    )
    out = attend(q, k, v, make_mask(GROUP, BRANCH, POSITION, KERNELS[kernel], window), scale, softcap)
    chex.assert_shape(out, q.shape)
    assert np.isfinite(out).all()
    k, v = (jnp.repeat(x, heads[0] // heads[1], axis=2) for x in (k, v))
    scores = jnp.einsum("btnp,bsnp->bnts", q, k) * (scale or 1 / 6**0.5)
    scores = softcap * jnp.tanh(scores / softcap) if softcap else scores
    scores = jnp.where(np.array(VISIBLE_IN_WINDOW if window else VISIBLE, bool), scores, -jnp.inf)
    expected = jnp.einsum("bnts,bsnp->btnp", jax.nn.softmax(scores), v)
    chex.assert_trees_all_close(out[:, :7], expected[:, :7], atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "short", "long"), [("cpu", "dense", "blocks"), ("gpu", "triton", "triton"), ("tpu", "dense", "mosaic")]
)
def test_the_platform_of_the_mesh_chooses_the_kernel(platform, short, long):
    with jax.sharding.use_abstract_mesh(abstract_mesh(platform)):
        assert mesh_platform() == platform
        assert choose_kernel("auto", 256) is KERNELS[short]
        assert choose_kernel("auto", 4096) is KERNELS[long]
        assert all(choose_kernel(name, 1024) is KERNELS[name] for name in KERNELS)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_only_cpu_meshes_flatten_the_tokens_of_a_product(platform):
    x, w = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
    with jax.sharding.use_abstract_mesh(abstract_mesh(platform)):
        operations = str(jax.make_jaxpr(dot)(x, w))
    assert ("reshape" in operations) == (platform == "cpu")


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_products_of_the_backward_pass_have_operands_of_the_activations_dtype(platform):
    x, w = jnp.ones((2, 8, 4), jnp.bfloat16), jnp.ones((4, 5))
    with jax.sharding.use_abstract_mesh(abstract_mesh(platform)):
        jaxpr = str(jax.make_jaxpr(lambda x, w: jax.vjp(dot, x, w)[1](dot(x, w)))(x, w))
    operands = re.findall(r"dot_general\[.*?\] (\w+) (\w+)", jaxpr, re.DOTALL)
    types = dict(re.findall(r"(\w+):(\w+)\[", jaxpr))
    assert len(operands) >= 3
    assert {types[name] for pair in operands for name in pair} == {"bf16"}


def trees(rng, rows, length, longest):
    """Returns group, branch and position, int32 [rows, length], of random trees; the end of each row is padding."""
    group, branch, position = np.zeros((3, rows, length), np.int32)
    for row in range(rows):
        start = number = 0
        while start + (sizes := rng.integers(1, longest, 3)).sum() <= length * 7 // 8:
            number += 1
            group[row, start : start + sizes.sum()] = number
            branch[row, start : start + sizes.sum()] = np.repeat(range(3), sizes)
            positions = [np.arange(sizes[0]), *(sizes[0] + np.arange(size) for size in sizes[1:])]
            position[row, start : start + sizes.sum()] = np.concatenate(positions)
            start += sizes.sum()
    return group, branch, position


# Rows that are no multiple of a block, head dimensions that are no power of two, trees within and across blocks.
@pytest.mark.parametrize(
    ("rows", "length", "longest", "heads", "kv_heads", "head_dim", "dtype", "window", "softcap"),
    [
        (2, 256, 20, 4, 2, 16, "float32", 0, 0.0),
        (1, 200, 60, 4, 1, 24, "float32", 17, 0.0),
        (2, 128, 40, 2, 2, 64, "float32", 0, 1.5),
        (1, 40, 5, 2, 1, 6, "float32", 3, 0.5),
        (2, 256, 60, 4, 2, 16, "float32", 40, 1.0),
        (1, 256, 60, 4, 2, 32, "bfloat16", 0, 0.0),
        (1, 256, 60, 4, 2, 32, "bfloat16", 20, 2.0),
    ],
)
@pytest.mark.parametrize("kernel", ["blocks", "triton", "mosaic"])
def test_kernels_and_their_gradients_equal_dense(
    kernel, rows, length, longest, heads, kv_heads, head_dim, dtype, window, softcap
):
    rng = np.random.default_rng(0)
    group, branch, position = trees(rng, rows, length, longest)
    draw = lambda n: jnp.asarray(rng.normal(size=(rows, length, n, head_dim)), dtype)
    q, k, v, d_out = draw(heads), draw(kv_heads), draw(kv_heads), draw(heads)
    used = jnp.asarray(group > 0)[..., None, None]

    def result(name):
        mask = make_mask(group, branch, position, KERNELS[name], window)
        out, pullback = jax.vjp(lambda q, k, v: jnp.where(used, attend(q, k, v, mask, None, softcap), 0), q, k, v)
        return jax.tree.map(lambda x: np.asarray(x, np.float32), (out, *pullback(d_out)))

    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    for found, expected in zip(result(kernel), result("dense"), strict=True):
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("window", [0, 70])
def test_the_lists_hold_each_visible_pair_of_blocks_once(window):
    group, branch, position = trees(np.random.default_rng(1), 2, 512, 90)
    mask = make_mask(group, branch, position, KERNELS["triton"], window)
    seen = np.asarray(visible(mask.tokens, mask.tokens, window))
    for visits, table in zip(mask.prepared, (seen, seen, seen.swapaxes(1, 2)), strict=True):
        rows, outer, inner = visits.blocks.shape
        tiles = table.reshape(rows, outer, 512 // outer, inner, 512 // inner)
        some, every = tiles.any((2, 4)), tiles.all((2, 4))
        for row, block in np.ndindex(rows, outer):
            whole, listed = visits.counts[row, block]
            order = visits.blocks[row, block]
            assert sorted(order[:whole]) == list(np.flatnonzero(every[row, block]))
            assert sorted(order[:listed]) == list(np.flatnonzero(some[row, block]))


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (40, 3.0)])
def test_the_triton_kernel_is_lowered_for_gpus(window, softcap):
    """Pallas refuses operations and blocks that Triton does not have, which its interpreter does not show."""
    group, branch, position = trees(np.random.default_rng(0), 1, 256, 60)
    q, k = jnp.ones((1, 256, 4, 64)), jnp.ones((1, 256, 2, 64))

    def gradients(q, k, v):
        mask = make_mask(group, branch, position, KERNELS["triton"], window)
        return jax.grad(lambda *qkv: attend(*qkv, mask, None, softcap).sum(), (0, 1, 2))(q, k, v)

    with jax.sharding.use_abstract_mesh(abstract_mesh("gpu")):
        lowered = jax.jit(gradients).trace(q, k, k).lower(lowering_platforms=("cuda",)).as_text()
    assert all(f"tree_attention_{part}" in lowered for part in ("forward", "dq", "dkv"))


def test_a_mesh_of_cpu_devices_decides_where_the_default_backend_differs(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert mesh_platform() == "tpu"  # no mesh
    assert choose_kernel("auto", 1024) is KERNELS["dense"]
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        assert mesh_platform() == "cpu"
        assert jax.jit(lambda: jnp.float32(choose_kernel("auto", 1024) is KERNELS["blocks"]))() == 1
