"""Parity with transformers on tiny random Llama models, and strict reading of their files."""

import dataclasses
import json
import math

import chex
import jax
import numpy as np
import pytest
import transformers

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.models import loading
from rmjax.models.attention import KERNELS
from tests.models.rows import whole_rows

torch = pytest.importorskip("torch")

ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 1e4,
}
VARIANTS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "one_kv_head": {"num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3_rope": {"rope_parameters": ROPE},
    "wide_heads": {"head_dim": 32},
    "tied": {"tie_word_embeddings": True},
}


def make_directory(path, classifier=True, shards=False, **options):
    """Saves a tiny random Llama by transformers and returns the torch model."""
    values = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_labels": 1,
        "pad_token_id": 0,
    }
    values |= options
    kind = transformers.LlamaForSequenceClassification if classifier else transformers.LlamaForCausalLM
    torch.manual_seed(0)
    model = kind(transformers.LlamaConfig(**values)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.15)
    model.save_pretrained(path, **({"max_shard_size": "60KB"} if shards else {}))
    return model


def load(path, mesh_sizes=(1, 1, 1, 1)):
    mesh = make_mesh(mesh_sizes, devices=jax.devices()[: math.prod(mesh_sizes)])
    loaded = loading.load_model(str(path), mesh=mesh)
    return loaded.model, loaded.params, mesh


@pytest.mark.parametrize("attention", KERNELS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_hidden_states_and_rewards_equal_transformers(tmp_path, variant, attention):
    reference = make_directory(tmp_path, **VARIANTS[variant])
    model, params, mesh = load(tmp_path)
    model = dataclasses.replace(model, attention=attention)
    tokens = np.random.default_rng(0).integers(1, 97, (2, 40)).astype(np.int32)
    with jax.set_mesh(mesh):
        batch = whole_rows(tokens)
        hidden, rewards = jax.jit(model.hidden)(params, batch), jax.jit(model.rewards)(params, batch)
    with torch.no_grad():
        expected = reference.model(torch.tensor(tokens).long()).last_hidden_state.numpy()
        logits = reference(torch.tensor(tokens).long()).logits.numpy()
    np.testing.assert_allclose(hidden, expected, atol=1e-4)
    np.testing.assert_allclose(rewards[:, 0], logits, atol=1e-4)


def test_causal_lm_gets_an_initial_head_and_its_lm_head_is_ignored(tmp_path):
    reference = make_directory(tmp_path, classifier=False, shards=True)
    assert (tmp_path / "model.safetensors.index.json").exists()
    config = configs.default().model
    config.path, config.head_init = str(tmp_path), 0.5
    model, mesh = loading.make_model(config, 0), make_mesh(devices=jax.devices()[:1])
    params = loading.initial_params(config, model, mesh, jax.random.key(0))
    assert 0.3 < np.std(params["head"]["kernel"]) < 0.7
    embedding = reference.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(params["decoder"]["embedding"]["weight"], embedding)
    with pytest.raises(InputError, match=r"no reward head among the tensors .*; train one"):
        load(tmp_path)


def test_sharded_loading_gives_the_same_parameters(tmp_path):
    make_directory(tmp_path, num_key_value_heads=2)
    _, params, _ = load(tmp_path)
    _, sharded, _ = load(tmp_path, (1, 4, 2, 1))
    query = sharded["decoder"]["layers"]["attention"]["query"]["kernel"]
    assert query.addressable_shards[0].data.shape == (3, 16, 32)
    chex.assert_trees_all_equal(params, sharded)


def change(path, **values):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({k: v for k, v in (config | values).items() if v != "remove"}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model_type": "mamba"},
            "model_type is 'mamba': it has recurrent layers, .*; supported model families: .*, llama, ",
        ),
        ({"hidden_act": "elu"}, "hidden_act is 'elu'; implemented: silu, gelu, "),
        ({"hidden_size": "remove"}, "the key 'hidden_size' is missing"),
        ({"sliding_window": 7}, "the key 'sliding_window' = 7 is not known"),
        (
            {"rope_parameters": {"rope_type": "mrope", "rope_theta": 1e4}},
            "rope_type is 'mrope'; implemented: 'default', ",
        ),
        ({"intermediate_size": 95}, r"mlp\.\w+_proj\.weight' has shape .* expected .* by config.json"),
        ({"num_hidden_layers": 4}, r"'model.layers.3.\S+' is missing"),
        ({"num_hidden_layers": 2}, r"'model.layers.2.\S+' .* is not known"),
    ],
)
def test_errors_name_the_key_of_config_json_or_the_tensor(tmp_path, values, message):
    make_directory(tmp_path)
    change(tmp_path, **values)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_errors_name_the_damaged_or_missing_shard(tmp_path):
    make_directory(tmp_path, shards=True)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=f"{shard.name}: truncated"):
        load(tmp_path)
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard.name}: missing, .*copy the directory again"):
        load(tmp_path)
