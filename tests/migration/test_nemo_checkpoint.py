"""Conversion of .nemo archives: a tiny Llama with a reward head, written in NeMo's layouts, scores as the original."""

import gzip
import sys
import tarfile

import numpy as np
import pytest
import tensorstore
import transformers
import yaml

import rmjax
from rmjax.core.errors import InputError
from rmjax.data.tokens.byte_level import byte_level
from rmjax.migration import nemo_archive, nemo_checkpoint

torch = pytest.importorskip("torch")

HEADS, GROUPS, SIZE, WIDTH, MLP, LAYERS = 4, 2, 8, 32, 48, 2
CONFIG = {
    "num_layers": LAYERS, "hidden_size": WIDTH, "ffn_hidden_size": MLP, "num_attention_heads": HEADS,
    "num_query_groups": GROUPS, "layernorm_epsilon": 1e-5, "rotary_base": 5e4, "encoder_seq_length": 256,
    "normalization": "rmsnorm", "activation": "fast-swiglu", "position_embedding_type": "rope", "bias": False,
    "share_embeddings_and_output_weights": False, "regression": {"num_attributes": 1},
    "tokenizer": {"library": "huggingface", "type": "org/tokenizer"},
}  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The model, the bias of its head, its tensors by Megatron's names, and a directory with its tokenizer."""
    path, tokenizer = tmp_path_factory.mktemp("original"), byte_level()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=GROUPS, rms_norm_eps=1e-5, max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 5e4}, num_labels=1,
    )  # fmt: skip
    model = transformers.LlamaForSequenceClassification(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    tokenizer.save_pretrained(path)
    return model, 0.75, megatron(model.state_dict()), path


def megatron(state):
    """Returns the tensors of a Llama and of the head, with a bias of 0.75, as Megatron names and fuses them."""
    tensors = {
        "embedding.word_embeddings.weight": state["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": state["model.norm.weight"],
        "output_layer.weight": torch.zeros_like(state["model.embed_tokens.weight"]),
        "rm_head.weight": state["score.weight"],
        "rm_head.bias": torch.full((1,), 0.75),
    }
    for layer in range(LAYERS):
        get = lambda name, layer=layer: state[f"model.layers.{layer}.{name}.weight"]
        query, key, value = (get(f"self_attn.{part}_proj") for part in "qkv")
        rows = []
        for group in range(GROUPS):
            for head in range(group * HEADS // GROUPS, (group + 1) * HEADS // GROUPS):
                rows.append(query[head * SIZE : (head + 1) * SIZE])
            rows += [key[group * SIZE : (group + 1) * SIZE], value[group * SIZE : (group + 1) * SIZE]]
        tensors |= {
            f"decoder.layers.{layer}.{name}": tensor
            for name, tensor in {
                "self_attention.linear_qkv.weight": torch.cat(rows),
                "self_attention.linear_qkv.layer_norm_weight": get("input_layernorm"),
                "self_attention.linear_proj.weight": get("self_attn.o_proj"),
                "mlp.linear_fc1.weight": torch.cat([get("mlp.gate_proj"), get("mlp.up_proj")]),
                "mlp.linear_fc1.layer_norm_weight": get("post_attention_layernorm"),
                "mlp.linear_fc2.weight": get("mlp.down_proj"),
            }.items()
        }
    return {f"model.{name}": tensor.contiguous() for name, tensor in tensors.items()}


def stacked(tensors):
    """Returns the tensors with those of all layers in one, as in distributed checkpoints."""
    rest = {name: tensor for name, tensor in tensors.items() if ".layers." not in name}
    suffixes = {name.split(".", 4)[4] for name in tensors if ".layers." in name}
    return rest | {
        f"model.decoder.layers.{suffix}": torch.stack(
            [tensors[f"model.decoder.layers.{layer}.{suffix}"] for layer in range(LAYERS)]
        )
        for suffix in suffixes
    }


def write_torch(path, tensors):
    torch.save(tensors | {"model.rng_state_extra_state": None}, path / "model_weights.ckpt")


def write_zarr(path, tensors):
    for name, tensor in stacked(tensors).items():
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path / "model_weights" / name)}}
        store = tensorstore.open(spec, create=True, dtype=tensorstore.float32, shape=list(tensor.shape)).result()
        store.write(tensor.numpy()).result()


def write_distributed(path, tensors):
    from torch.distributed import checkpoint

    checkpoint.save(stacked(tensors), checkpoint_id=str(path / "model_weights"), no_dist=True)


def archive(directory, write, tensors, config=CONFIG):
    """Returns the path of a .nemo archive."""
    content = directory / "content"
    content.mkdir()
    (content / "model_config.yaml").write_text(yaml.safe_dump(config))
    write(content, tensors)
    with tarfile.open(directory / "model.nemo", "w") as file:
        file.add(content, ".")
    return directory / "model.nemo"


@pytest.mark.parametrize("write", [write_torch, write_zarr, write_distributed])
def test_scores_of_a_converted_archive_are_those_of_the_original(original, tmp_path, write):
    model, bias, tensors, tokenizer = original
    lines = nemo_checkpoint.convert(archive(tmp_path, write, tensors), tmp_path / "hf", str(tokenizer))
    assert "reward head reward, 2 layers" in lines[0]
    assert not list(tmp_path.glob(".nemo-*"))
    found = rmjax.load(tmp_path / "hf").score("What is 2 + 2?", [" 4", " It may be five."])
    base = byte_level()
    expected = []
    for text in ("What is 2 + 2? 4", "What is 2 + 2? It may be five."):
        ids = torch.tensor([[*base(text)["input_ids"], base.eos_token_id]])
        with torch.no_grad():
            expected.append(float(model.model(ids).last_hidden_state[0, -1] @ model.score.weight[0]) + bias)
    assert abs(expected[0] - expected[1]) > 1e-2
    np.testing.assert_allclose(found, expected, atol=2e-5)


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if not key.endswith(name)}


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ({"activation": "gelu"}, dict, r"activation is 'gelu' in model_config\.yaml; .* 'fast-swiglu' or 'swiglu'"),
        ({}, without("1.mlp.linear_fc2.weight"), r"nothing gives the tensor model\.layers\.1\.mlp\.down_proj\.weight"),
        ({"num_layers": 1}, dict, r"there is the tensor decoder\.layers\.1\..*num_layers is 1"),
        ({"ffn_hidden_size": MLP // 2}, dict, r"linear_fc1\.weight gives \(96, 32\); expected \(24, 32\)"),
        ({"encoder_seq_length": None}, dict, r"encoder_seq_length is missing from model_config\.yaml"),
        ({"num_query_groups": 1}, dict, r"linear_qkv\.weight gives \(64, 32\); expected \(32, 32\)"),
        ({}, lambda t: t | {"model.decoder.extra.weight": torch.ones(2)}, r"extra\.weight is not one of a Llama"),
    ],
)  # fmt: skip
def test_other_models_are_refused_and_nothing_is_written(original, tmp_path, config, change, message):
    path = archive(tmp_path, write_torch, change(original[2]), CONFIG | config)
    with pytest.raises(InputError, match=message):
        nemo_checkpoint.convert(path, tmp_path / "hf", str(original[3]))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["content", "model.nemo"]


def test_what_is_missing_is_named(original, tmp_path, monkeypatch):
    path = archive(tmp_path, write_torch, original[2])
    with pytest.raises(InputError, match=r"--tokenizer is missing; .*org/tokenizer"):
        nemo_checkpoint.convert(path, tmp_path / "hf", "")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="PyTorch is not installed: pip install torch"):
        nemo_archive.read_tensors(tmp_path / "content")
    (tmp_path / "broken.nemo").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="not a complete tar archive"):
        nemo_checkpoint.convert(tmp_path / "broken.nemo", tmp_path / "hf", "x")


@pytest.mark.parametrize("count", [LAYERS - 1, LAYERS + 1])
def test_a_stack_of_another_number_of_layers_is_refused(original, tmp_path, count):
    path = archive(tmp_path, write_zarr, original[2], CONFIG | {"num_layers": count})
    with pytest.raises(InputError, match=rf"holds {LAYERS} layers; num_layers is {count}"):
        nemo_checkpoint.convert(path, tmp_path / "hf", str(original[3]))


def test_a_file_without_named_tensors_and_a_damaged_compressed_archive(original, tmp_path):
    path = archive(tmp_path, lambda content, _: torch.save([torch.ones(2)], content / "model_weights.ckpt"), {})
    with pytest.raises(InputError, match=r"holds list; expected \{name: tensor\}"):
        nemo_checkpoint.convert(path, tmp_path / "hf", str(original[3]))
    packed = bytearray(gzip.compress(path.read_bytes()))
    packed[40:80] = bytes(40)
    (tmp_path / "damaged.nemo").write_bytes(packed)
    with pytest.raises(InputError, match="not a complete tar archive"):
        nemo_archive.extract(tmp_path / "damaged.nemo", tmp_path / "there")
