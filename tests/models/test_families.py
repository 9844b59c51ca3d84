"""Model families: the registry, config.json in both directions, tensor names."""

import copy
import json

import chex
import jax
import pytest
import transformers

from rmjax.core import pytree
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.models import artifact, weights
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
    chex.assert_trees_all_equal(weights.load(tmp_path, model, make_mesh(devices=jax.devices()[:1])), params)
