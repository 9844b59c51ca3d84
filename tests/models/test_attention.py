"""The attention mask, and the choice of kernel and matrix product by the platform of the mesh."""

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


def abstract_mesh(platform):
    """Returns a mesh of one device of a platform that need not be there."""
    device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    return AbstractMesh((1,) * 4, AXES, axis_types=(AxisType.Auto,) * 4, abstract_device=device)


def test_visible_tokens():
    tokens = make_mask(GROUP, BRANCH, KERNELS["dense"]).tokens
    np.testing.assert_array_equal(visible(tokens, tokens)[0], np.array(VISIBLE, bool))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_kernels_equal_softmax_attention(kernel, heads):
    q, k, v = (
        jax.random.normal(key, (1, 8, n, 6))
        for key, n in zip(jax.random.split(jax.random.key(0), 3), (heads[0], heads[1], heads[1]), strict=True)
    )
    out = attend(q, k, v, make_mask(GROUP, BRANCH, KERNELS[kernel]))
    chex.assert_shape(out, q.shape)
    assert np.isfinite(out).all()
    k, v = (jnp.repeat(x, heads[0] // heads[1], axis=2) for x in (k, v))
    scores = jnp.where(np.array(VISIBLE, bool), jnp.einsum("btnp,bsnp->bnts", q, k) / 6**0.5, -jnp.inf)
    expected = jnp.einsum("bnts,bsnp->btnp", jax.nn.softmax(scores), v)
    chex.assert_trees_all_close(out[:, :7], expected[:, :7], atol=1e-5)


@pytest.mark.parametrize(("platform", "kernel"), [("cpu", "blocks"), ("gpu", "dense"), ("tpu", "dense")])
def test_the_platform_of_the_mesh_chooses_the_kernel(platform, kernel):
    with jax.sharding.use_abstract_mesh(abstract_mesh(platform)):
        assert mesh_platform() == platform
        assert choose_kernel("auto", 1024) is KERNELS[kernel]
        assert choose_kernel("auto", 256) is KERNELS["dense"]
        assert choose_kernel("auto", 4096) is KERNELS["blocks"]
        assert all(choose_kernel(name, 1024) is KERNELS[name] for name in KERNELS)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_only_cpu_meshes_use_the_custom_product(platform):
    x, w = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
    with jax.sharding.use_abstract_mesh(abstract_mesh(platform)):
        operations = str(jax.make_jaxpr(dot)(x, w))
    assert ("custom_vjp" in operations) == (platform == "cpu")


def test_a_mesh_of_cpu_devices_decides_where_the_default_backend_differs(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert mesh_platform() == "tpu"  # no mesh
    assert choose_kernel("auto", 1024) is KERNELS["dense"]
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        assert mesh_platform() == "cpu"
        assert jax.jit(lambda: jnp.float32(choose_kernel("auto", 1024) is KERNELS["blocks"]))() == 1
