"""Adapters as tensors of PEFT: of matrices that files store apart, and of those that they store in one tensor."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rmjax.core import pytree
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.models import artifact, heads, lora, paths, peft_adapters, weights
from rmjax.models.architecture import DecoderConfig, HeadConfig, LayerKind
from rmjax.models.decoder import RewardModel
from rmjax.models.families import FAMILIES
from rmjax.models.lora import LoraConfig
from tests.models.rows import whole_rows

DECODER = DecoderConfig(53, 32, 48, 2, 4, 2, 8, 1e-5, 1e4, None, False, False, 64, 0.2)
TOKENS = np.random.default_rng(0).integers(1, 53, (2, 16)).astype(np.int32)
LAYER = "base_model.model.model.layers.1."


def make_model(family="phi3", **options):
    """Returns a model with adapters, and parameters in which none of them is zero."""
    known = FAMILIES[family]
    fields = {"rotary_dim": int(8 * (known.partial_rotary or 1.0)) % 8, **known.fields}
    if known.rope is None:
        fields["kinds"] = (LayerKind(rotary=False),)
    if "num_key_value_heads" not in known.keys:
        fields["num_kv_heads"] = DECODER.num_heads
    decoder = dataclasses.replace(DECODER, **fields)
    model = RewardModel(decoder, HeadConfig(init=1.0), family=family, lora=LoraConfig(2, 6.0, **options))
    noise = lambda path, leaf: leaf + 0.1 * jax.random.normal(jax.random.key(len(path)), leaf.shape, leaf.dtype)
    params = pytree.map_with_path(
        lambda path, leaf: noise(path, leaf) if lora.is_adapter(path) else leaf, model.init(jax.random.key(0))
    )
    return model, params


def save(path, model, params):
    """Writes the base model and its adapter; returns the adapter's directory."""
    plain, _ = pytree.split(params, lambda name: not lora.is_adapter(name))
    base = plain | {"head": {"kernel": 0 * plain["head"]["kernel"]}}
    for name in ("base", "adapter"):
        (path / name).mkdir()
    artifact.write(path / "base", dataclasses.replace(model, lora=None), base, 0, {})
    peft_adapters.write(path / "adapter", model, params, str(path / "base"))
    return path / "adapter"


def test_the_parts_of_a_tensor_are_blocks_of_one_adapter(tmp_path):
    model, params = make_model(rslora=True)
    path = save(tmp_path, model, params)
    tensors, config = (
        load_file(path / "adapter_model.safetensors"),
        json.loads((path / "adapter_config.json").read_text()),
    )
    leaves = {name: np.asarray(leaf)[1] for name, leaf in pytree.flatten(params).items() if "layers" in name}
    a, b = (tensors[f"{LAYER}self_attn.qkv_proj.lora_{kind}.weight"] for kind in "AB")
    assert (a.shape, b.shape) == ((6, 32), (32 + 16 + 16, 6))
    expected = np.zeros_like(b)
    for i, (name, rows) in enumerate({"query": slice(0, 32), "key": slice(32, 48), "value": slice(48, 64)}.items()):
        matrix = f"decoder/layers/attention/{name}/"
        np.testing.assert_array_equal(a[2 * i : 2 * i + 2], leaves[matrix + lora.A].T)
        expected[rows, 2 * i : 2 * i + 2] = leaves[matrix + lora.B].T
    np.testing.assert_array_equal(b, expected)
    assert config["rank_pattern"] == {"self_attn.qkv_proj": 6, "mlp.gate_up_proj": 4}
    assert config["alpha_pattern"] == {"self_attn.qkv_proj": 6 * 3**0.5, "mlp.gate_up_proj": 6 * 2**0.5}
    assert config["target_modules"] == ["mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj", "self_attn.qkv_proj"]


CASES = [
    ("llama", {}),
    ("phi3", {}),
    ("phi3", {"rslora": True, "targets": "attention/(query|value)|gate"}),  # not all parts of a tensor
    ("phi3", {"dora": True}),
    ("glm", {"rslora": True}),
    ("gpt2", {"rslora": True}),  # [inputs, outputs]
    ("gpt_neox", {"dora": True}),  # the parts of each head apart
    ("internlm2", {"targets": "attention/(key|value)"}),  # the parts of each head apart; transformers has no class
]


@pytest.mark.parametrize(("family", "options"), CASES)
def test_peft_computes_the_same_rewards_and_its_own_directory_is_read(tmp_path, family, options):
    model, params = make_model(family, **options)
    path = save(tmp_path, model, params)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        expected = np.asarray(model.rewards(params, whole_rows(TOKENS)))[:, 0]
        plain = dataclasses.replace(model, lora=None)
        without = np.asarray(plain.rewards(pytree.split(params, lora.is_adapter)[1], whole_rows(TOKENS)))[:, 0]
        assert abs(expected - without).max() > 1e-2
        directories = [path]
        if FAMILIES[family].classifier:
            peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
            theirs = peft.AutoPeftModelForSequenceClassification.from_pretrained(str(path), num_labels=1).eval()
            with torch.no_grad():
                found = theirs(torch.from_numpy(TOKENS).long()).logits.numpy()
            np.testing.assert_allclose(found, expected, atol=2e-5)
            theirs.save_pretrained(tmp_path / "saved")
            directories.append(tmp_path / "saved")
        for directory in directories:
            files = paths.tensors(directory)
            head = heads.read(files, model.decoder, {})
            merged = weights.load(files, plain, mesh, head.params, head.tensors)
            np.testing.assert_allclose(plain.rewards(merged, whole_rows(TOKENS))[:, 0], expected, atol=2e-5)
            adapters = pytree.flatten(pytree.split(params, lora.is_adapter)[0])
            read = peft_adapters.read(directory, model, head.tensors)
            assert read.keys() == adapters.keys()
            for name, leaf in read.items():
                np.testing.assert_array_equal(leaf, adapters[name])


def test_dora_on_some_of_the_parts_of_a_tensor_is_refused(tmp_path):
    model, params = make_model(dora=True, targets="attention/query|down")
    with pytest.raises(InputError, match=r"the family phi3 stores key, value in one tensor .*self_attn\.qkv_proj"):
        peft_adapters.write(tmp_path, model, params, "base")


def change_tensors(path, change):
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def share(tensors):
    tensors[f"{LAYER}self_attn.qkv_proj.lora_B.weight"][40, 0] = 1.0  # a key's row, of the query's adapter


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            None,
            {"rank": 4},
            r"their rank is 6 in 'model.layers.0.self_attn.qkv_proj', that of config.lora 12 \(3 matri",
        ),
        (None, {"alpha": 7.0}, "their scale is 3 in .*qkv_proj', that of config.lora .* 3.5"),
        (None, {"dora": True}, "their use_dora is False, config.lora.dora is True"),
        (
            None,
            {"targets": "down"},
            r"they have the tensor 'model.layers.0.mlp.gate_up_proj.lora_A.weight', which is no",
        ),
        (
            share,
            {},
            "the matrices of 'model.layers.{}.self_attn.qkv_proj' share one adapter, and here each has its own",
        ),
        (
            lambda tensors: tensors.pop(f"{LAYER}mlp.down_proj.lora_A.weight"),
            {},
            r"they have none for 'model.layers.1.mlp.down_proj', and config.lora.targets is ''",
        ),
        (
            lambda tensors: tensors.update({"base_model.model.model.norm.weight": np.ones(32, np.float32)}),
            {},
            r"they have the tensor 'model.norm.weight', which is none",
        ),
    ],
)
def test_other_adapters_are_told_apart(tmp_path, change, options, message):
    model, params = make_model()
    path = save(tmp_path, model, params)
    if change:
        change_tensors(path, change)
    changed = dataclasses.replace(model, lora=dataclasses.replace(model.lora, **options))
    with pytest.raises(peft_adapters.OtherAdapters, match=message):
        peft_adapters.read(path, changed, {"score.weight"})
