"""Directories of the PEFT library as models: tensors with the adapter added, and what is refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from rmjax.core.errors import InputError
from rmjax.core.safetensors import TensorDirectory
from rmjax.models import loading, peft

PREFIX = "base_model.model."
RANDOM = np.random.default_rng(0)
A, B = RANDOM.normal(size=(2, 6)).astype(np.float32), RANDOM.normal(size=(4, 2)).astype(np.float32)
W = RANDOM.normal(size=(4, 6)).astype(np.float16)
HEAD = np.ones((1, 6), np.float32)
CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]}


def save(path, *, base=None, adapter=None, **options):
    """Writes a base model and an adapter, of matrices q_proj and v_proj; returns the adapter's directory."""
    base = {"a.q_proj.weight": W, "a.v_proj.weight": W, "score.weight": 0 * HEAD} if base is None else base
    adapter = adapter or {"a.q_proj.lora_A.weight": A, "a.q_proj.lora_B.weight": B, "score.weight": HEAD}
    (path / "base").mkdir()
    (path / "base" / "config.json").write_text("{}")
    save_file(base, path / "base" / "model.safetensors")
    (path / "adapter").mkdir()
    config = CONFIG | {"base_model_name_or_path": str(path / "base")} | options
    (path / "adapter" / peft.CONFIG_FILE).write_text(json.dumps(config))
    save_file({PREFIX + name: value for name, value in adapter.items()}, path / "adapter" / "adapter_model.safetensors")
    return path / "adapter"


def read(path):
    return peft.MergedTensors(path, TensorDirectory(path.parent / "base"))


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"v_proj": 1, "q_proj": 8}}, 4.0),
        ({"alpha_pattern": {r"a\.[pq]_proj": 10}, "r": 64, "rank_pattern": {"q_proj": 2}}, 5.0),
        ({"alpha_pattern": {"proj": 8}}, 3.0),  # a name matches whole
    ],
)
def test_the_product_is_added_in_float32(tmp_path, options, scale):
    files = read(save(tmp_path, **options))
    expected = W.astype(np.float32) + np.float32(scale) * (B @ A)
    assert files.shapes == {"a.q_proj.weight": (4, 6), "a.v_proj.weight": (4, 6), "score.weight": (1, 6)}
    np.testing.assert_allclose(files.read("a.q_proj.weight"), expected, rtol=1e-6)
    for index in ((slice(1, 3),), (slice(None), slice(2, 5)), (slice(1, 3), slice(2, 5))):
        np.testing.assert_allclose(files.read("a.q_proj.weight", index), expected[index], rtol=1e-6)
    assert files.read("a.v_proj.weight").dtype == np.float16
    np.testing.assert_array_equal(files.read("a.v_proj.weight"), W)
    np.testing.assert_array_equal(files.read("score.weight"), HEAD)


def test_a_transposed_matrix_is_read_transposed(tmp_path):
    base = {"a.q_proj.weight": np.ascontiguousarray(W.T)}
    files = read(save(tmp_path, base=base, fan_in_fan_out=True))
    expected = W.T.astype(np.float32) + 3 * (B @ A).T
    np.testing.assert_allclose(files.read("a.q_proj.weight"), expected, rtol=1e-6)
    index = (slice(2, 5), slice(1, 3))
    np.testing.assert_allclose(files.read("a.q_proj.weight", index), expected[index], rtol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_magnitude_replaces_the_norms_of_the_rows(tmp_path, transposed):
    magnitude = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    adapter = {"a.q_proj.lora_A.weight": A, "a.q_proj.lora_B.weight": B, "a.q_proj.lora_magnitude_vector": magnitude}
    base = {"a.q_proj.weight": np.ascontiguousarray(W.T)} if transposed else None
    files = read(save(tmp_path, base=base, adapter=adapter, use_dora=True, fan_in_fan_out=transposed))
    total = W.astype(np.float32) + 3 * (B @ A)
    expected = magnitude[:, None] * total / np.linalg.norm(total, axis=1, keepdims=True)
    expected = expected.T if transposed else expected
    for index in ((), (slice(1, 3),), (slice(1, 3), slice(2, 4))):
        np.testing.assert_allclose(files.read("a.q_proj.weight", index), expected[index], rtol=1e-5)


def test_a_missing_magnitude_is_named(tmp_path):
    with pytest.raises(InputError, match=r"the magnitude of 'a\.q_proj' has the shape None; expected \(4,\)"):
        read(save(tmp_path, use_dora=True))


def test_biases_and_whole_modules_of_the_adapter_precede_those_of_the_base_model(tmp_path):
    bias = np.zeros(4, np.float32)
    adapter = {"a.q_proj.lora_A.weight": A, "a.q_proj.lora_B.weight": B, "a.q_proj.base_layer.bias": bias + 1}
    files = read(save(tmp_path, base={"a.q_proj.weight": W, "a.q_proj.bias": bias}, adapter=adapter, bias="all"))
    np.testing.assert_array_equal(files.read("a.q_proj.bias"), bias + 1)


@pytest.mark.parametrize(
    ("base", "found"),
    [
        ({"a.q_proj.weight": np.zeros((8, 6), np.float32)}, r"a\.q_proj\.weight has the shape \(8, 6\) in .*base"),
        ({"b.q_proj.weight": W}, r"a\.q_proj\.weight is missing in .*base"),
    ],
)
def test_an_adapter_of_another_base_model_is_refused(tmp_path, base, found):
    path = save(tmp_path, base=base)
    with pytest.raises(
        InputError, match=rf"its matrices A \(2, 6\) and B \(4, 2\) are for a matrix \(4, 6\), and {found}"
    ):
        read(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA' is implemented"),
        (
            {"lora_bias": True},
            r"lora_bias is True, which is not implemented; merge the adapter .* \(merge_and_unload\)",
        ),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is missing"),
        ({"base_model_name_or_path": "/nowhere"}, r"base_model_name_or_path: model '/nowhere': no such directory"),
    ],
)
def test_an_adapter_that_cannot_be_read_is_refused(tmp_path, options, message):
    path = save(tmp_path, **options)
    with pytest.raises(InputError, match=message):
        loading.load_model(str(path), mesh=None)


def test_the_base_model_of_an_adapter_must_be_whole(tmp_path):
    path = save(tmp_path)
    (path / peft.CONFIG_FILE).write_text(json.dumps(CONFIG | {"base_model_name_or_path": str(path)}))
    with pytest.raises(InputError, match="a workdir or an adapter; expected a whole model: export it first"):
        loading.load_model(str(path), mesh=None)


def test_a_matrix_without_its_counterpart_is_refused(tmp_path):
    path = save(tmp_path, adapter={"a.q_proj.lora_A.weight": A, "score.weight": HEAD})
    with pytest.raises(InputError, match=r"the adapter of 'a\.q_proj' has the matrices A \(2, 6\) and B None"):
        read(path)
