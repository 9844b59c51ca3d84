"""Model families: the registry, config.json in both directions, tensor names."""

import copy
import dataclasses
import json

import chex
import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

import rmjax.models.families
from rmjax.core import pytree
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.models import artifact, loading
from rmjax.models.architecture import DecoderConfig, HeadConfig, LayerKind
from rmjax.models.decoder import RewardModel
from rmjax.models.families import FAMILIES, read_config
from rmjax.models.rope import Llama3Scaling
from tests.conftest import ROOT

SCALING = Llama3Scaling(8.0, 1.0, 4.0, 64)
CONFIG = DecoderConfig(97, 64, 96, 3, 4, 2, 16, 1e-5, 5e5, SCALING, True, True, 512, 0.02)


def write_config(path, values):
    (path / "config.json").write_text(json.dumps(values))
    return path / "config.json"


@pytest.mark.parametrize("scaling", [SCALING, None])
def test_config_round_trip(tmp_path, scaling):
    config = DecoderConfig(97, 64, 96, 3, 4, 2, 16, 1e-5, 5e5, scaling, True, False, 512, 0.02)
    path = write_config(tmp_path, FAMILIES["llama"].write_config(config))
    assert read_config(path) == ("llama", config)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"internlm2"}))  # which transformers does not have
def test_default_config_of_transformers_round_trip(tmp_path, family):
    """Its default configuration is read, and what is written is read equally by rmjax and by transformers."""
    original = transformers.AutoConfig.for_model(family)
    original.save_pretrained(tmp_path)
    name, config = read_config(tmp_path / "config.json")
    assert name == family
    write_config(tmp_path, FAMILIES[family].write_config(config))
    assert read_config(tmp_path / "config.json") == (family, config)
    again, expected = transformers.AutoConfig.from_pretrained(tmp_path).to_dict(), original.to_dict()
    if "head_dim" in FAMILIES[family].keys:
        expected["head_dim"] = expected.get("head_dim") or config.head_dim
    if "num_key_value_heads" in FAMILIES[family].keys:
        expected["num_key_value_heads"] = expected["num_key_value_heads"] or config.num_kv_heads
    if expected.get("activation_function", expected.get("hidden_act")) == "gelu_new":  # another name of the same
        expected["activation_function" if "activation_function" in expected else "hidden_act"] = "gelu_pytorch_tanh"
    assert {key: again.get(key) for key in expected if key != "_name_or_path"} == {
        key: value for key, value in expected.items() if key != "_name_or_path"
    }


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
        ({"model_type": "elephant"}, "model_type is 'elephant'; supported model families: arcee, cohere, cohere2, "),
        ({"model_type": "qwen3_next"}, "model_type is 'qwen3_next': it has recurrent layers, whose state responses"),
        ({"model_type": "deberta-v2"}, "model_type is 'deberta-v2': it attends to later tokens, so that responses"),
        ({"model_type": "deepseek_v3"}, "model_type is 'deepseek_v3': its attention projects keys and values to a"),
        ({"model_type": "gpt_oss"}, "model_type is 'gpt_oss': its attention has learnt sinks, and its experts biases"),
        ({"model_type": "bloom"}, "model_type is 'bloom': its norms or positions are not implemented"),
        ({"model_type": ["llama"]}, r"model_type is \['llama'\]"),
        ({"hidden_act": "elu"}, "hidden_act is 'elu'; implemented: silu, gelu, gelu_pytorch_tanh, relu, relu2"),
        ({"rope_scaling": {"type": "mrope"}}, "rope_type is 'mrope'; implemented: 'default', 'linear', 'dynamic', "),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1.0 is implemented for llama"),
        ({"rope_parameters": {"full_attention": {}}}, "expected the same settings for all layers"),
        (
            {"rope_parameters": {"rope_type": "longrope", "factor": 2, "short_factor": [1], "long_factor": [1] * 8}},
            "longrope: short_factor has 1 numbers; expected 8",
        ),
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
            r"quantization_config is bits 4: the weights are quantized; give the model in bfloat16",
        ),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True: .*only causal attention"),
        ({"gating_temperature": 10}, "gating_temperature is 10: the rewards of several objectives are combined by"),
        ({"num_objectives": 19, "a": 1}, "num_objectives is 19: the rewards of several .* gating network .ArmoRM"),
        ({"num_quantiles": 19}, r"num_quantiles is 19: the head predicts quantiles \(QRM\)"),
        ({"pooling": "max"}, "pooling is 'max': expected last or mean"),
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


def layers(family, **values):
    """Returns the kinds of four layers that a family's config.json describes."""
    needed = {
        "num_hidden_layers": 4,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 9,
        "rms_norm_eps": 1e-6,
    }
    needed |= {"intermediate_size": 8, "max_position_embeddings": 64}
    config = FAMILIES[family].read_config({"model_type": family, **needed, **values}, "config.json")
    return tuple(config.kind(i) for i in range(4))


FULL, WINDOW = LayerKind(), LayerKind(7)
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}


@pytest.mark.parametrize(
    ("family", "values", "expected"),
    [
        ("mistral", {}, (LayerKind(4096),) * 4),  # as transformers, whose default is a window
        ("mistral", {"sliding_window": None}, (FULL,) * 4),
        ("mistral", {"sliding_window": 7, "layer_types": ["full_attention"] * 4}, (WINDOW,) * 4),
        ("ministral", {"sliding_window": 7}, (WINDOW,) * 4),
        ("qwen2", {"sliding_window": 7}, (FULL,) * 4),
        ("qwen2", {"sliding_window": 7, "use_sliding_window": True}, (FULL,) * 4),  # from layer 28 on
        ("qwen3", {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 3}, (FULL,) * 3 + (WINDOW,)),
        ("gemma2", {"sliding_window": 7}, (WINDOW, FULL) * 2),
        (
            "gemma3_text",
            {"sliding_window": 7, "sliding_window_pattern": 3},
            (LayerKind(7, rope_theta=1e4),) * 2 + (FULL, LayerKind(7, rope_theta=1e4)),
        ),
        (
            "gemma3_text",
            {"sliding_window": 7, "sliding_window_pattern": 2, "rope_local_base_freq": 50.0},
            (LayerKind(7, rope_theta=50.0), FULL) * 2,
        ),
        ("olmo3", {"sliding_window": 7}, (LayerKind(7, rope_theta=5e5),) * 3 + (FULL,)),
        ("smollm3", {}, (FULL,) * 3 + (LayerKind(rotary=False),)),
        (
            "smollm3",
            {"use_sliding_window": True, "sliding_window": 7, "no_rope_layer_interval": 2},
            (FULL, LayerKind(7, rotary=False)) * 2,
        ),
        ("exaone4", {"sliding_window": 7}, (WINDOW,) * 3 + (LayerKind(rotary=False),)),
        ("qwen3_moe", {**EXPERTS, "sliding_window": 7, "max_window_layers": 2}, (FULL,) * 4),
        ("qwen3_moe", {**EXPERTS, "sliding_window": 7, "use_sliding_window": True}, (WINDOW,) * 4),
        (
            "qwen2_moe",
            {**EXPERTS, "sliding_window": 7, "use_sliding_window": True, "shared_expert_intermediate_size": 8},
            (WINDOW, FULL) * 2,
        ),
        ("mixtral", {"num_experts_per_tok": 2, "sliding_window": 7}, (WINDOW,) * 4),
    ],
)
def test_kinds_of_layers(family, values, expected):
    assert layers(family, **values) == expected


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("gemma2", {"layer_types": ["chunked_attention"] * 4}, "layer_types is .*; expected 4 of 'full_attention' and"),
        ("gemma2", {"layer_types": ["full_attention"] * 3}, "layer_types is .*; expected 4 of"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "layer_types has .* but there is no sliding_window"),
        ("smollm3", {"no_rope_layers": [1, 1]}, "no_rope_layers has 2 entries; expected 4"),
        ("exaone4", {"sliding_window_pattern": "LLLG"}, "sliding_window_pattern is 'LLLG'; expected a number"),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "rope_type of sliding_attention is 'linear'; only 'default'",
        ),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("qwen3_moe", EXPERTS | {"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\], so that the layers \[0\]"),
        ("qwen3_moe", EXPERTS | {"decoder_sparse_step": 2}, r"decoder_sparse_step is 2 .* the layers \[0, 2\] have no"),
        ("qwen3_moe", EXPERTS | {"num_experts": 1}, "experts_per_token is 2; expected a number from 1 to 1"),
        ("mixtral", {}, "the key 'num_experts_per_tok' is missing"),
    ],
)
def test_kinds_of_layers_that_are_refused(family, values, message):
    with pytest.raises(InputError, match=message):
        layers(family, **values)


def test_text_part_of_a_gemma_3_with_images(tmp_path):
    values = {"model_type": "gemma3", "vision_config": {"model_type": "siglip"}, "text_config": {"hidden_size": 2560}}
    family, config = read_config(write_config(tmp_path, values))
    expected = transformers.Gemma3TextConfig(hidden_size=2560)
    assert family == "gemma3_text"
    assert (config.vocab_size, config.num_layers, config.head_dim) == (expected.vocab_size, 26, 256)
    assert (config.embedding_scale, config.attention_scale) == (2560**0.5, 256**-0.5)
    assert [kind.window for kind in config.kinds] == [4096] * 5 + [0]
    with pytest.raises(InputError, match=r"quantization_config is .* the weights are quantized"):
        read_config(write_config(tmp_path, values | {"quantization_config": {"bits": 4}}))


@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_theta": 5e5, "rope_local_base_freq": 2e4},
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3e3}},  # ignored
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 3e3}}},
    ],
)
def test_rope_settings_by_layer_type_are_read_as_transformers_reads_them(tmp_path, rope):
    values = {"model_type": "gemma3_text", "sliding_window_pattern": 2}
    found = read_config(write_config(tmp_path, values | rope))[1]
    expected = transformers.Gemma3TextConfig(**copy.deepcopy(values | rope)).rope_parameters
    assert found.rope_theta == expected["full_attention"]["rope_theta"]
    assert found.kinds[0].rope_theta == expected["sliding_attention"]["rope_theta"]
    assert (found.rope_scaling is None) == (expected["full_attention"]["rope_type"] == "default")


def test_artifact_round_trip(tmp_path):
    """Every parameter has a tensor name, and what an artifact holds is read back unchanged."""
    family = "llama"
    model = RewardModel(CONFIG, HeadConfig(("a", "b"), init=1.0), family=family)
    params = model.init(jax.random.key(0))
    paths = {row.path for row in FAMILIES[family].tensors}
    assert set(pytree.flatten(params)) == {path for path in paths if not path.endswith("norm/bias")}  # of LayerNorms
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


@pytest.fixture
def families(monkeypatch):
    """Registers no family beyond this test."""
    monkeypatch.setattr("rmjax.models.families.FAMILIES", FAMILIES.copy())
    for module in ("artifact", "weights"):
        monkeypatch.setattr(f"rmjax.models.{module}.FAMILIES", rmjax.models.families.FAMILIES)
    return rmjax.models.families.FAMILIES


def test_a_family_of_the_user(tmp_path, monkeypatch, families):
    values = FAMILIES["llama"].write_config(CONFIG) | {"model_type": "my_llama", "attention_bias": False}
    values = {key: value for key, value in values.items() if key not in ("attention_bias", "mlp_bias")}
    path = write_config(tmp_path, values)
    with pytest.raises(InputError, match="model_type is 'my_llama'; supported model families"):
        read_config(path)
    monkeypatch.setenv("RMJAX_FAMILY_FILES", str(ROOT / "docs/my_family.py"))
    family, config = read_config(path)
    assert (family, config.qk_norm, config.head_dim) == ("my_llama", "head", 16)
    model = RewardModel(config, HeadConfig(init=1.0), family=family)
    params = model.init(jax.random.key(0))
    assert artifact.write(tmp_path, model, params, 0, {})["transformers_class"] is None
    assert "architectures" not in json.loads((tmp_path / "config.json").read_text())
    loaded = loading.load_model(str(tmp_path), mesh=make_mesh(devices=jax.devices()[:1]))
    chex.assert_trees_all_equal(loaded.params, params)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "FileNotFoundError"),
        ("x = 1", "defines no FAMILY of type"),
        ("\nFAMILY = Family()", "line 2: NameError: name 'Family' is not defined"),
    ],
)
def test_errors_of_a_users_file(tmp_path, monkeypatch, families, text, message):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    monkeypatch.setenv("RMJAX_FAMILY_FILES", str(tmp_path / "mine.py"))
    with pytest.raises(InputError, match=f"RMJAX_FAMILY_FILES: .*mine.py: .*{message}"):
        read_config(write_config(tmp_path, {"model_type": "mine"}))


def test_names_of_tensors_of_a_gemma_3_with_images(tmp_path):
    """The text part of a model with images is read; the rest is ignored, as is the language modeling head."""
    kinds = (LayerKind(4, rope_theta=1e4), LayerKind())
    config = dataclasses.replace(CONFIG, rope_scaling=None, attention_bias=False, mlp_bias=False, kinds=kinds)
    config = dataclasses.replace(config, qk_norm="head", post_norms=True, norm_offset=1.0, norm_float32=True)
    config = dataclasses.replace(config, activation="gelu_pytorch_tanh", embedding_scale=8.0, attention_scale=0.25)
    model = RewardModel(config, HeadConfig(init=1.0), family="gemma3_text")
    params = model.init(jax.random.key(0))
    artifact.write(tmp_path, model, params, 0, {})
    tensors = load_file(tmp_path / "model.safetensors")
    text = json.loads((tmp_path / "config.json").read_text())
    for prefix in ("language_model.model.", "model.language_model."):
        directory = tmp_path / prefix
        directory.mkdir()
        renamed = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
        others = ("vision_tower.a.weight", "multi_modal_projector.b.weight", "language_model.lm_head.weight")
        renamed |= dict.fromkeys(others, np.zeros((97, 64), np.float32))
        save_file(renamed, directory / "model.safetensors")
        write_config(directory, {"model_type": "gemma3", "text_config": text})
        loaded = loading.load_model(str(directory), mesh=make_mesh(devices=jax.devices()[:1]))
        assert (loaded.model.family, loaded.model.decoder) == ("gemma3_text", config)
        chex.assert_trees_all_equal(loaded.params, params)


def test_longrope_is_fixed_by_the_maximum_length_of_training_or_of_use(tmp_path):
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    values = FAMILIES["phi3"].write_config(dataclasses.replace(CONFIG, rope_scaling=None))
    values |= {"rope_parameters": rope, "original_max_position_embeddings": 64}
    config = FAMILIES["phi3"].read_config(values, tmp_path)
    model = RewardModel(config, HeadConfig(init=1.0), family="phi3")
    params = model.init(jax.random.key(0))
    mesh = make_mesh(devices=jax.devices()[:1])
    length = lambda **options: loading.load_model(str(tmp_path), mesh=mesh, **options).model.decoder.rope_length
    artifact.write(tmp_path, model, params, 0, {"max_length": 48})
    assert (length(), length(max_length=96)) == (48, 48)
    (tmp_path / artifact.METADATA_FILE).unlink()
    assert (length(), length(max_length=96)) == (0, 96)
