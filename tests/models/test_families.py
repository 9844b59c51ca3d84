"""Model families: the registry, config.json in both directions, tensor names."""

import copy
import dataclasses
import json

import chex
import jax
import pytest
import transformers

from rmjax.core import pytree
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.models import artifact, loading
from rmjax.models.architecture import DecoderConfig, HeadConfig, RopeScaling
from rmjax.models.decoder import RewardModel
from rmjax.models.families import FAMILIES, read_config

SCALING = RopeScaling(8.0, 1.0, 4.0, 64)
CONFIG = DecoderConfig(97, 64, 96, 3, 4, 2, 16, 1e-5, 5e5, SCALING, True, True, 512, 0.02)


def write_config(path, values):
    (path / "config.json").write_text(json.dumps(values))
    return path / "config.json"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scaling", [SCALING, None])
def test_config_round_trip(tmp_path, family, scaling):
    config = DecoderConfig(97, 64, 96, 3, 4, 2, 16, 1e-5, 5e5, scaling, True, False, 512, 0.02)
    path = write_config(tmp_path, FAMILIES[family].write_config(config))
    assert read_config(path) == (family, config)


def test_config_of_transformers_4_and_default_values(tmp_path):
    values = FAMILIES["llama"].write_config(CONFIG)
    scaling = {key: value for key, value in values.pop("rope_parameters").items() if key != "rope_theta"}
    for key in ("num_key_value_heads", "head_dim", "attention_bias", "mlp_bias", "initializer_range"):
        del values[key]
    values |= {"rope_scaling": scaling, "rope_theta": 10000, "torch_dtype": "bfloat16", "rms_norm_eps": 1}
    expected = DecoderConfig(97, 64, 96, 3, 4, 4, 16, 1.0, 1e4, SCALING, False, False, 512, 0.02)
    found = read_config(write_config(tmp_path, values))[1]
    assert found == expected
    assert isinstance(found.rope_theta, float)
    assert isinstance(found.norm_eps, float)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_theta": 5e5},
        {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_scaling": LLAMA3},
        {"rope_theta": 2e6, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64}},
        {"rope_scaling": LLAMA3 | {"rope_theta": 3e6}},
        {"rope_scaling": None, "rope_parameters": LLAMA3 | {"rope_theta": 3e6}},
    ],
)
def test_rope_settings_are_read_as_transformers_reads_them(tmp_path, rope):
    values = FAMILIES["llama"].write_config(CONFIG)
    del values["rope_parameters"], values["rope_theta"]
    found = read_config(write_config(tmp_path, values | rope))[1]
    expected = transformers.LlamaConfig(**copy.deepcopy(values | rope)).rope_parameters
    assert found.rope_theta == expected["rope_theta"]
    scaled = expected["rope_type"] == "llama3"
    assert (found.rope_scaling is not None) == scaled
    if found.rope_scaling is not None:
        original = expected.get("original_max_position_embeddings", CONFIG.max_positions)
        assert found.rope_scaling.original_max_position_embeddings == original


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'; supported model families: llama"),
        ({"model_type": ["llama"]}, r"model_type is \['llama'\]"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' is implemented"),
        ({"rope_interleaved": True}, "rope_interleaved is True; only False is implemented"),
        ({"hidden_size": None}, "the key 'hidden_size' is missing"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "the key 'low_freq_factor' is missing"),
        ({"sliding_window": 7}, "the key 'sliding_window' = 7 is not known for the model family 'llama'"),
    ],
)
def test_errors_name_the_key(tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        read_config(write_config(tmp_path, FAMILIES["llama"].write_config(CONFIG) | values))


# As in published config.json files: of transformers 4 and 5, unsloth, TRL, OpenRLHF, and authors' own classes.
MEANINGLESS = {
    "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "use_mrope": False, "auto_map": {},
    "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "logits_scaling": 8.0, "logit_scale": 0.06,
    "end_token_id": 2, "attn_implementation": "sdpa", "bias": False, "is_decoder": False, "router_aux_loss_coef": 0.001,
    "output_router_logits": False, "router_jitter_noise": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "max_length": 20,
    "hidden_dropout": 0.0, "mean": 0.5, "std": 2.0, "normalize_reward": True, "vhead_layer_type": "mlp", "top_k": 50,
    "vhead_num_neurons": 1024, "temperature": 1.0, "pruned_heads": {}, "unsloth_version": "2025.11", "top_p": 1.0,
    "unsloth_fixed": True, "_attn_implementation_autoset": True, "torchscript": False, "add_cross_attention": False,
    "task_specific_params": None, "quantization_config": None, "layer_types": ["full_attention"] * 3, "id2label": {},
}  # fmt: skip


def test_keys_without_a_meaning_are_ignored(tmp_path):
    values = FAMILIES["llama"].write_config(CONFIG)
    assert read_config(write_config(tmp_path, values | MEANINGLESS)) == ("llama", CONFIG)
    assert read_config(write_config(tmp_path, values | {"sliding_window": None, "max_window_layers": 28}))[1] == CONFIG


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"quantization_config": {"bits": 4}},
            r"quantization_config is {'bits': 4}: the weights are quantized; save them dequantized",
        ),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True: .*only causal attention"),
        ({"gating_temperature": 10}, "gating_temperature is 10: the rewards of several objectives are combined by"),
        ({"num_objectives": 19, "a": 1}, "num_objectives is 19: the rewards of several objectives"),
        ({"num_quantiles": 19}, "num_quantiles is 19: the head predicts quantiles"),
        ({"pooling": "mean"}, "pooling is 'mean': the reward is not read at the last token"),
        ({"reward_token_id": 92527}, "reward_token_id is 92527: the reward is read at a token added after"),
        ({"clip_qkv": 8.0}, "clip_qkv is 8.0: queries, keys and values are clipped"),
        ({"alibi": True}, r"alibi is True: positions are linear biases of the attention \(ALiBi\)"),
        ({"use_sliding_window": True}, "the key 'use_sliding_window' = True is not known"),
        ({"use_mrope": True}, "the key 'use_mrope' = True is not known"),
        ({"layer_types": ["sliding_attention"] * 3}, "the key 'layer_types' = .* is not known"),
        ({"layer_types": 3}, "the key 'layer_types' = 3 is not known"),
        ({"embedding_multiplier": 12.0, "unsloth_fixed": True}, r"'embedding_multiplier' = 12.0 .* \(1 unknown keys\)"),
    ],
)
def test_other_keys_are_refused(tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        read_config(write_config(tmp_path, FAMILIES["llama"].write_config(CONFIG) | values))


@pytest.mark.parametrize("family", FAMILIES)
def test_artifact_round_trip(tmp_path, family):
    """Every parameter has a tensor name, and what an artifact holds is read back unchanged."""
    model = RewardModel(CONFIG, HeadConfig(("a", "b"), init=1.0), family=family)
    params = model.init(jax.random.key(0))
    assert set(pytree.flatten(params)) == {row.path for row in FAMILIES[family].tensors}
    artifact.write(tmp_path, model, params, 0, {"reading": {"strings": "chat"}})
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == [FAMILIES[family].classifier]
    assert read_config(tmp_path / "config.json") == (family, CONFIG)
    metadata = artifact.read_metadata(tmp_path)
    assert metadata["data_options"] == {"strings": "chat"}  # "reading" in files until version 0.1.0
    assert HeadConfig.from_json(metadata).attributes == ("a", "b")
    loaded = loading.load_model(str(tmp_path), mesh=make_mesh(devices=jax.devices()[:1]))
    assert dataclasses.replace(loaded.model, head=model.head) == model
    chex.assert_trees_all_equal(loaded.params, params)
