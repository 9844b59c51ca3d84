"""Frequencies of rotary position embeddings, and the rotation."""

import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from rmjax.models.families import FAMILIES
from rmjax.models.rope import rope_frequencies, rope_tables, rotate

pytest.importorskip("torch")
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # needs torch

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LONG = {"rope_type": "longrope", "short_factor": [1.0 + i / 8 for i in range(16)], "long_factor": [2.0] * 16}


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        YARN,
        YARN | {"factor": 1.0},
        YARN | {"truncate": False, "beta_fast": 8, "beta_slow": 2},
        YARN | {"mscale": 2.0, "mscale_all_dim": 0.5},
        YARN | {"attention_factor": 1.5, "mscale": 2.0, "mscale_all_dim": 0.5},
        {"rope_type": "yarn", "factor": 2.0},
        {"rope_type": "yarn", "original_max_position_embeddings": 512, "factor": None},
        LONG | {"original_max_position_embeddings": 512},
        LONG | {"original_max_position_embeddings": 2048, "factor": 3.0},
        LONG | {"original_max_position_embeddings": 512, "attention_factor": 1.25},
    ],
)
def test_frequencies_equal_transformers(tmp_path, rope, theta):
    sizes = {"head_dim": 32, "hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 4096}
    config = transformers.LlamaConfig(**sizes, rope_parameters={**rope, "rope_theta": theta})
    decoder = FAMILIES["llama"].read_config(config.to_dict(), tmp_path)
    found, factor = rope_frequencies(32, decoder.rope_theta, decoder.rope_scaling, 1024)
    expected, expected_factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu", seq_len=1024)
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-6)
    assert factor == pytest.approx(expected_factor, rel=1e-6)


def test_longrope_is_fixed_by_the_maximum_length():
    values = {"rope_parameters": LONG | {"original_max_position_embeddings": 512, "rope_theta": 1e4}, "head_dim": 32}
    config = transformers.LlamaConfig(**values, max_position_embeddings=4096)
    decoder = FAMILIES["llama"].read_config(config.to_dict(), "config.json")
    assert decoder.for_length(512).rope_length == 512
    frequencies = lambda length: rope_frequencies(32, 1e4, decoder.rope_scaling, length)[0]
    np.testing.assert_allclose(frequencies(512) / frequencies(513), 2 / np.array(LONG["short_factor"]), rtol=1e-6)


@pytest.mark.parametrize(("interleaved", "partner"), [(False, [4, 5, 6, 7]), (True, [1, 3, 5, 7])])
def test_pairs_that_are_rotated(interleaved, partner):
    """A rotation by 90 degrees moves (x, 0) to (0, x), where `partner` has the second of each pair."""
    first = [i for i in range(8) if i not in partner]
    x = np.zeros((1, 1, 1, 10), np.float32)
    x[..., first] = [1, 2, 3, 4]
    x[..., 8:] = 9  # not rotated
    expected = np.zeros_like(x)
    expected[..., partner] = [1, 2, 3, 4]
    expected[..., 8:] = 9
    tables = rope_tables(jnp.ones((1, 1), jnp.int32), jnp.full(4, np.pi / 2, jnp.float32))
    np.testing.assert_allclose(rotate(jnp.asarray(x), tables, interleaved), expected, atol=1e-6)
    np.testing.assert_array_equal(rotate(jnp.asarray(x), None), x)
