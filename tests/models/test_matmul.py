"""Matrix products and their custom gradients equal the same products in float64."""

import jax
import numpy as np
import pytest

from rmjax.models.matmul import dot


# 4 x 6 = 24 tokens are transposed in 8 chunks, 3 x 5 = 15 in one.
@pytest.mark.parametrize("rows", [(4, 6), (3, 5)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_product_and_gradients(rows, dtype, tolerance):
    keys = jax.random.split(jax.random.key(0), 3)
    x, dy = (jax.random.normal(key, (*rows, size), dtype) for key, size in zip(keys[:2], (7, 9), strict=True))
    w = jax.random.normal(keys[2], (7, 9), "float32")
    y, pullback = jax.vjp(jax.jit(dot), x, w)
    dx, dw = jax.jit(pullback)(dy)
    rounded = np.asarray(w.astype(dtype), np.float64)  # the operand of the product
    x64, dy64 = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    expected = {"y": x64 @ rounded, "dx": dy64 @ rounded.T, "dw": np.einsum("btd,btf->df", x64, dy64)}
    for found, name in ((y, "y"), (dx, "dx"), (dw, "dw")):
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(np.asarray(found, np.float64), expected[name], atol=tolerance * scale, err_msg=name)
    assert (y.dtype, dx.dtype, dw.dtype) == (dtype, dtype, "float32")
    # The weight gradient is accumulated and stored in float32, never rounded to the activations' dtype.
    np.testing.assert_allclose(np.asarray(dw, np.float64), expected["dw"], atol=1e-5 * np.abs(expected["dw"]).max())
