"""Our decoder against transformers' on tiny random Llamas."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers

from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.models import weights
from rmjax.models.architecture import DecoderConfig, HeadConfig, RopeScaling
from rmjax.models.decoder import RewardModel
from rmjax.models.families.llama import from_hugging_face, to_hugging_face
from rmjax.models.sharding import state_shardings

ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16, "rope_theta": 1e4}  # fmt: skip
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
    """Writes a tiny random Llama as transformers does and returns the torch model."""
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


def load(path, fresh_head=None):
    model = RewardModel(from_hugging_face(path / "config.json"), HeadConfig())
    mesh = make_mesh(devices=jax.devices()[:1])
    shardings = state_shardings(mesh, jax.eval_shape(model.init, jax.random.key(0)))
    return model, weights.load(path, model, shardings, fresh_head=fresh_head), mesh


def whole_rows(tokens):
    """A batch in which each row is one conversation."""
    ones = np.ones_like(tokens)
    position = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    last = np.full((len(tokens), 1), tokens.shape[1] - 1, np.int32)
    return {"tokens": tokens, "group": ones, "branch": ones, "position": position, "readout_index": last}


@pytest.mark.parametrize("attention", ["dense", "blocks"])
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


def test_a_causal_lm_gets_a_fresh_head_and_loses_its_own(tmp_path):
    make_directory(tmp_path, classifier=False, shards=True)
    assert (tmp_path / "model.safetensors.index.json").exists()
    head = jax.numpy.ones((64, 1))
    _, params, _ = load(tmp_path, fresh_head=head)
    np.testing.assert_array_equal(params["head"]["kernel"], head)
    with pytest.raises(InputError, match=r"'score.weight' is missing; a reward model needs its head"):
        load(tmp_path)


def test_sharded_loading_reads_the_same(tmp_path):
    make_directory(tmp_path, num_key_value_heads=2)
    model, params, _ = load(tmp_path)
    mesh = make_mesh((1, 4, 2, 1))
    shardings = state_shardings(mesh, jax.eval_shape(model.init, jax.random.key(0)))
    sharded = weights.load(tmp_path, model, shardings, fresh_head=None)
    query = sharded["decoder"]["layers"]["attention"]["query"]["kernel"]
    assert query.addressable_shards[0].data.shape == (3, 16, 32)
    jax.tree.map(np.testing.assert_array_equal, params, sharded)


def test_the_config_survives_both_ways(tmp_path):
    config = DecoderConfig(97, 64, 96, 3, 4, 2, 16, 1e-5, 5e5, RopeScaling(8.0, 1.0, 4.0, 64), True, False, 512, 0.02)
    (tmp_path / "config.json").write_text(json.dumps(to_hugging_face(config)))
    assert from_hugging_face(tmp_path / "config.json") == config


def change(path, **values):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({k: v for k, v in (config | values).items() if v != "remove"}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ({"hidden_size": "remove"}, "the key 'hidden_size' is missing"),
        ({"sliding_window": 7}, "the key 'sliding_window' = 7 is not known"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type is 'yarn'"),
        ({"intermediate_size": 95}, r"mlp\.\w+_proj\.weight' has shape .* asks for"),
        ({"num_hidden_layers": 4}, r"'model.layers.3.\S+' is missing"),
        ({"num_hidden_layers": 2}, r"'model.layers.2.\S+' .* is not known"),
    ],
)
def test_a_wrong_config_names_the_key_or_tensor(tmp_path, values, message):
    make_directory(tmp_path)
    change(tmp_path, **values)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_damaged_weights_are_named(tmp_path):
    make_directory(tmp_path, shards=True)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=f"{shard.name}: truncated"):
        load(tmp_path)
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard.name}: this shard is named by"):
        load(tmp_path)


CONFIG = DecoderConfig(97, 32, 48, 2, 4, 2, 8, 1e-5, 1e4, RopeScaling(8.0, 1.0, 4.0, 16), True, True, 512, 0.3)


@pytest.mark.parametrize(
    "change",
    [
        {"norm_eps": 1.0}, {"rope_theta": 100.0}, {"rope_scaling": None}, {"initializer_range": 0.1},
        {"rope_scaling": RopeScaling(2.0, 1.0, 4.0, 16)}, {"rope_scaling": RopeScaling(8.0, 2.0, 4.0, 16)},
        {"rope_scaling": RopeScaling(8.0, 1.0, 2.0, 16)}, {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64)},
        {"num_layers": 3}, {"num_kv_heads": 4}, {"intermediate_size": 64}, {"head_dim": 4}, {"hidden_size": 48},
    ],
)  # fmt: skip
def test_every_constant_changes_the_output(change):
    tokens = np.random.default_rng(0).integers(1, 97, (1, 24)).astype(np.int32)

    def rewards(config):
        model = RewardModel(config, HeadConfig(init=1.0))
        with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
            return jax.jit(lambda key: model.rewards(model.init(key), whole_rows(tokens)))(jax.random.key(1))

    assert abs(float((rewards(dataclasses.replace(CONFIG, **change)) - rewards(CONFIG))[0, 0, 0])) > 1e-4


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_the_head_is_float32_whatever_the_models_dtype(param_dtype):
    model = RewardModel(CONFIG, HeadConfig(init=1.0), dtype="bfloat16", param_dtype=param_dtype)
    tokens = np.random.default_rng(0).integers(1, 97, (1, 24)).astype(np.int32)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        params = model.init(jax.random.key(0))
        hidden, rewards = model.hidden(params, whole_rows(tokens)), model.rewards(params, whole_rows(tokens))
    assert params["head"]["kernel"].dtype == np.float32
    assert hidden.dtype == jax.numpy.bfloat16
    assert rewards.dtype == np.float32
    expected = np.asarray(hidden[0, -1], np.float32) @ np.asarray(params["head"]["kernel"])
    np.testing.assert_allclose(rewards[0, 0], expected, rtol=1e-6)
