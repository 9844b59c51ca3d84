"""Mixtures of experts: grouped products, sharding over devices, int8 matrices, adapters, and tensors in files."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rmjax.core import pytree
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.models import artifact, int8, loading, lora
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import RewardModel
from rmjax.models.experts import grouped_dot
from rmjax.models.families import FAMILIES
from rmjax.models.sharding import state_shardings
from tests.models.rows import whole_rows

DENSE = DecoderConfig(97, 32, 48, 2, 4, 2, 8, 1e-5, 1e4, None, False, False, 512, 0.3)
CONFIG = dataclasses.replace(DENSE, num_experts=4, experts_per_token=2, expert_size=24, shared_expert_size=16)
MODEL = RewardModel(CONFIG, HeadConfig(init=1.0))
ROWS = whole_rows(np.random.default_rng(0).integers(1, 97, (4, 24)).astype(np.int32))


@pytest.mark.parametrize("block", [0, 4])  # of TPUs; of CPUs and GPUs
def test_grouped_products_and_gradients(block):
    """Expert 1 has no rows, the last three rows before those that fill the block belong to no expert."""
    sizes, keys = np.array([5, 0, 1, 4], np.int32), jax.random.split(jax.random.key(0), 3)
    x, w = jax.random.normal(keys[0], (13 + block, 3)), jax.random.normal(keys[1], (4, 3, 2))
    dy = jax.random.normal(keys[2], (10, 2))
    expert = np.repeat(np.arange(4), sizes)

    def run(function):
        y, backward = jax.vjp(function, x, w)
        return y, *backward(dy)

    found = run(jax.jit(lambda x, w: grouped_dot(x, w, sizes, block)[:10]))
    expected = run(lambda x, w: jnp.einsum("rd,rdf->rf", x[:10], w[expert]))
    found, expected = ((y, dx[:10], dw) for y, dx, dw in (found, expected))
    chex.assert_trees_all_close(found, expected, atol=1e-5)
    assert not found[2][1].any()


def gradients(params, mesh):
    """Returns the gradients of the mean of the rewards' squares."""
    batch = jax.device_put(ROWS, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"))))
    loss = lambda params: jnp.mean(MODEL.rewards(params, batch) ** 2)
    with jax.set_mesh(mesh):
        compute = jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})
        return pytree.flatten(jax.device_get(compute(params)))


def test_experts_on_several_devices_give_the_same_gradients():
    params = MODEL.init(jax.random.key(0))
    expected = gradients(params, make_mesh(devices=jax.devices()[:1]))
    mesh = make_mesh((1, 2, 2, 2))
    sharded = jax.device_put(params, state_shardings(mesh, params))
    experts = sharded["decoder"]["layers"]["mlp"]["experts"]
    assert {part["kernel"].addressable_shards[0].data.shape for part in experts.values()} == {
        *((2, 2, 16, 24), (2, 2, 24, 16))
    }
    found = gradients(sharded, mesh)
    for path, leaf in expected.items():
        assert np.abs(found[path] - leaf).max() < 1e-5 * np.abs(leaf).max(), path


def test_int8_experts_compute_with_the_dequantized_matrices():
    params = MODEL.init(jax.random.key(0))
    quantized = int8.quantize(params)
    paths = {path for path in pytree.flatten(quantized) if path.endswith("/int8")}
    assert {path for path in paths if "/experts/" in path} == {
        f"decoder/layers/mlp/experts/{part}/kernel/int8" for part in ("gate", "up", "down")
    }
    assert not any("router" in path or "shared_weight" in path for path in paths)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        found = jax.jit(MODEL.rewards)(quantized, ROWS)
        expected = jax.jit(MODEL.rewards)(int8.dequantize(quantized, "float32"), ROWS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_adapters_are_beside_the_matrices_of_attention_and_the_shared_expert():
    params = jax.eval_shape(MODEL.init, jax.random.key(0))
    adapters = jax.eval_shape(lambda: lora.init(params, lora.LoraConfig(2, 4.0), jax.random.key(0)))
    modules = {path.rpartition("/")[0].removeprefix("decoder/layers/") for path in pytree.flatten(adapters)}
    assert modules == {f"attention/{part}" for part in ("query", "key", "value", "output")} | {
        f"mlp/shared/{part}" for part in ("gate", "up", "down")
    }
    with pytest.raises(InputError, match=r"config.lora.targets is 'experts', which matches no"):
        lora.init(params, lora.LoraConfig(2, 4.0, targets="experts"), jax.random.key(0))


def make_directory(path, family, config):
    """Writes a model with random bfloat16 weights of layers, and returns it, its parameters and its tensors."""
    path.mkdir()
    model = RewardModel(config, HeadConfig(init=1.0), family=family, param_dtype="bfloat16")
    params = model.init(jax.random.key(0))
    artifact.write(path, model, params, 0, {})
    (path / artifact.METADATA_FILE).unlink()
    return model, params, load_file(path / "model.safetensors")


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_fused_tensors_of_all_experts_are_read_too(tmp_path, family):
    """Written back, they have the names of each expert's, and the same bits."""
    config = dataclasses.replace(CONFIG, shared_expert_size=0, qk_norm="head" if family == "qwen3_moe" else "")
    if family == "mixtral":
        config = dataclasses.replace(config, normalize_experts=True, expert_size=0)
    model, params, tensors = make_directory(tmp_path / "a", family, config)
    names = {
        "qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj"),
        "mixtral": ("block_sparse_moe", "w1", "w3", "w2"),
    }
    block, *parts = names[family]
    fused = dict(tensors)
    for layer in ("model.layers.0.", "model.layers.1."):
        gate, up, down = (
            np.stack([fused.pop(f"{layer}{block}.experts.{e}.{part}.weight") for e in range(4)]) for part in parts
        )
        fused[f"{layer}mlp.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        fused[f"{layer}mlp.experts.down_proj"] = down
        fused[f"{layer}mlp.gate.weight"] = fused.pop(f"{layer}{block}.gate.weight")
    save_file(fused, tmp_path / "a" / "model.safetensors")
    mesh = make_mesh((1, 2, 2, 1), devices=jax.devices()[:4])
    loaded = loading.load_model(str(tmp_path / "a"), mesh=mesh)
    chex.assert_trees_all_equal(jax.device_get(loaded.params), jax.tree.map(np.float32, jax.device_get(params)))
    check_written(tmp_path, model, loaded.params, tensors)


def check_written(path, model, params, tensors):
    """Checks that export writes the same tensors, bit for bit and in the same dtypes."""
    (path / "again").mkdir()
    params = pytree.map_with_path(lambda path, x: x if path == "head/kernel" else x.astype("bfloat16"), params)
    artifact.write(path / "again", model, params, 0, {})
    written = load_file(path / "again" / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, array in tensors.items():
        assert written[name].dtype == array.dtype, name
        np.testing.assert_array_equal(written[name], array, err_msg=name)


def test_a_missing_expert_is_named(tmp_path):
    config = dataclasses.replace(CONFIG, expert_size=0, shared_expert_size=0)
    tensors = make_directory(tmp_path / "a", "mixtral", config)[2]
    del tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    save_file(tensors, tmp_path / "a" / "model.safetensors")
    with pytest.raises(InputError, match=r"'model.layers.1.block_sparse_moe.experts.3.w2.weight' is missing"):
        loading.load_model(str(tmp_path / "a"), mesh=make_mesh(devices=jax.devices()[:1]))


def test_internlm2_is_llama_with_other_names(tmp_path):
    """Its `wqkv` has, for each key/value head, its queries, its key and its value, [H, N / H + 2, P, D]."""
    model, params, tensors = make_directory(tmp_path / "llama", "llama", DENSE)
    renamed = {"v_head.weight": tensors.pop("score.weight"), "output.weight": np.zeros((97, 32), np.float32)}
    names = {
        "embed_tokens": "tok_embeddings", "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for layer in ("model.layers.0.", "model.layers.1."):
        query, key, value = (tensors.pop(f"{layer}self_attn.{part}_proj.weight") for part in "qkv")
        heads = [np.split(array, 2) for array in (query, key, value)]
        wqkv = [part for head in range(2) for part in (heads[0][head], heads[1][head], heads[2][head])]
        renamed[f"{layer}attention.wqkv.weight"] = np.concatenate(wqkv)
    for name, array in tensors.items():
        renamed[next((name.replace(old, new) for old, new in names.items() if old in name), name)] = array
    directory = tmp_path / "internlm2"
    directory.mkdir()
    save_file(renamed, directory / "model.safetensors")
    values = FAMILIES["internlm2"].write_config(DENSE)
    values |= {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 1e6, "attn_implementation": "eager"}
    values |= {"auto_map": {}, "architectures": ["InternLM2ForRewardModel"]}
    del values["rope_parameters"], values["head_dim"]
    (directory / "config.json").write_text(json.dumps(values))
    mesh = make_mesh((1, 2, 2, 1), devices=jax.devices()[:4])
    loaded = loading.load_model(str(directory), mesh=mesh)
    found = loaded.model.decoder
    assert (found.rope_theta, found.rope_scaling.factor, found.attention_bias) == (1e6, 2.0, False)
    assert dataclasses.replace(found, rope_theta=1e4, rope_scaling=None) == DENSE
    chex.assert_trees_all_equal(jax.device_get(loaded.params), jax.tree.map(np.float32, jax.device_get(params)))
    renamed["score.weight"] = renamed.pop("v_head.weight")
    del renamed["output.weight"]
    check_written(tmp_path, dataclasses.replace(model, family="internlm2"), loaded.params, renamed)
