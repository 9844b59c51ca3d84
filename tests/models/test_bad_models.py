"""Models that cannot be used, with one clear error each, whichever program reads them."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rmjax.core.errors import InputError
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.models import artifact, peft_adapters
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import RewardModel
from rmjax.models.lora import LoraConfig
from rmjax.models.quantized import find_packed
from rmjax.training.experiment import train
from rmjax.training.export import export
from tests.training.conftest import tiny as tiny_config

QUERY = "model.layers.0.self_attn.q_proj.weight"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A Hugging Face directory of a tiny reward model (`model`), and an adapter on it (`adapter`)."""
    path, tokenizer = tmp_path_factory.mktemp("good"), Tokenizer.load("")
    decoder = DecoderConfig(len(tokenizer), 16, 24, 2, 2, 1, 8, 1e-5, 1e4, None, False, False, 64, 0.2)
    for name in ("model", "adapter"):
        (path / name).mkdir()
    tokenizer.save(path / "model")
    model = RewardModel(decoder, HeadConfig(init=1.0), lora=LoraConfig(2, 4.0, targets="query"))
    params = model.init(jax.random.key(0))
    base = RewardModel(decoder, HeadConfig(init=1.0))
    artifact.write(path / "model", base, base.init(jax.random.key(0)), 0, {"max_length": 64})
    peft_adapters.write(path / "adapter", model, params, str(path / "model"))
    (path / "model" / artifact.METADATA_FILE).unlink()
    return path


def change_tensors(change):
    """Returns a function that applies `change` to {name: array} of a directory."""

    def apply(path):
        tensors = load_file(path / WEIGHTS)
        change(tensors)
        save_file(tensors, path / WEIGHTS)

    return apply


def set_tensor(name, make):
    return change_tensors(lambda tensors: tensors.update({name: make(tensors.get(name))}))


def set_config(**values):
    """Returns a function that sets keys of config.json; None removes one."""

    def apply(path):
        config = json.loads((path / "config.json").read_text()) | values
        kept = {key: value for key, value in config.items() if value is not None}
        (path / "config.json").write_text(json.dumps(kept))

    return apply


def shard(change=lambda weight_map: None):
    """Returns a function that gives the weights an index, in which `change` is made."""

    def apply(path):
        (path / WEIGHTS).rename(path / "model-00001-of-00001.safetensors")
        weight_map = dict.fromkeys(
            load_file(path / "model-00001-of-00001.safetensors"), "model-00001-of-00001.safetensors"
        )
        change(weight_map)
        (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return apply


def truncate(name, size):
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:size])


def remove(pattern):
    return lambda path: [file.unlink() for file in path.glob(pattern)]


def only_bin(path):
    (path / WEIGHTS).unlink()
    for number in (1, 2):
        (path / f"pytorch_model-0000{number}-of-00002.bin").touch()


def set_raw_dtype(dtype, size):
    """Returns a function that gives QUERY a dtype that NumPy lacks."""

    def apply(path):
        content = (path / WEIGHTS).read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        tensors = {
            name: content[8 + length :][slice(*entry.get("data_offsets", (0, 0)))] for name, entry in header.items()
        }
        header[QUERY]["dtype"] = dtype
        tensors[QUERY] = (2 * tensors[QUERY])[: 16 * 16 * size]
        position = 0
        for name in sorted(name for name in header if name != "__metadata__"):
            header[name]["data_offsets"] = [position, position := position + len(tensors[name])]
        head = json.dumps(header).encode()
        data = b"".join(tensors[name] for name in sorted(name for name in header if name != "__metadata__"))
        (path / WEIGHTS).write_bytes(len(head).to_bytes(8, "little") + head + data)

    return apply


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
CASES = {
    "missing tensor": (change_tensors(lambda t: t.pop(QUERY)), f"the tensor '{QUERY}' is missing; check that config"),
    "extra tensor": (
        set_tensor("model.extra.weight", lambda _: np.ones(3, np.float32)),
        r"'model.extra.weight' \(3,\) is not known",
    ),
    "misshapen": (set_tensor(QUERY, lambda x: x[:8].copy()), rf"'{QUERY}' has shape \(8, 16\); expected \(16, 16\) by"),
    "integers": (
        set_tensor(QUERY, lambda x: x.astype(np.int32)),
        f"'{QUERY}' has the dtype I32; expected one of F64, F32",
    ),
    "integers in the head": (
        set_tensor("score.weight", lambda x: x.astype(np.int8)),
        "'score.weight' has the dtype I8; exp",
    ),
    "float8": (
        set_tensor(QUERY, lambda x: x.astype(ml_dtypes.float8_e4m3fn)),
        f"'{QUERY}' has the dtype F8_E4M3; expected",
    ),
    "complex": (set_raw_dtype("C64", 8), f"'{QUERY}' has the dtype C64; expected one of"),
    "unknown key": (
        set_config(attention_sinks=4),
        "the key 'attention_sinks' = 4 is not known for the model family 'llama'",
    ),
    "GPTQ": (
        set_config(quantization_config=GPTQ),
        "quantization_config is quant_method 'gptq', bits 4: the weights are quan",
    ),
    "AWQ": (
        set_config(quantization_config={"quant_method": "awq", "w_bit": 4}),
        "quant_method 'awq', w_bit 4: the weights",
    ),
    "bitsandbytes": (
        set_config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "quantization_config is quant_method 'bitsandbytes', load_in_4bit: the weights are quantized; give the",
    ),
    "FP8": (
        set_config(quantization_config={"quant_method": "fp8", "fmt": "e4m3"}),
        "'fp8', fmt 'e4m3': the weights are",
    ),
    "MXFP4": (
        set_config(quantization_config={"quant_method": "mxfp4"}),
        "quant_method 'mxfp4': the weights are quantized",
    ),
    "packed": (
        set_tensor(QUERY.replace("weight", "qweight"), lambda _: np.ones((2, 2), np.int32)),
        "q_proj.qweight' is of quantized weights; give the model in bfloat16 or float32 that it was made from",
    ),
    "remote code": (
        set_config(model_type="my_model", auto_map={"AutoModel": "modeling.MyModel"}),
        r"model_type is 'my_model': its model is Python code beside the weights \(auto_map\), which rmjax never",
    ),
    "no model type": (set_config(model_type=None), "model_type is None; supported model families: "),
    ".bin files": (
        only_bin,
        "model.safetensors: missing; .* convert pytorch_model-00001-of-00002.bin: python -c 'import",
    ),
    "GGUF": (
        lambda path: (path / WEIGHTS).rename(path / "m.gguf"),
        "missing; .* m.gguf is a GGUF model; give the Hugging",
    ),
    "no weights": (
        remove(WEIGHTS),
        "model.safetensors: missing; a model's weights must be in safetensors: copy the dir",
    ),
    "missing shard": (
        shard(lambda names: names.update({QUERY: "model-00002-of-00002.safetensors"})),
        f"model-00002-of-00002.safetensors: missing, and {INDEX} names it; copy the directory again",
    ),
    "index names another tensor": (
        shard(lambda names: names.update({"model.other": "model-00001-of-00001.safetensors"})),
        "the tensor 'model.other' is only in the index or only in the files",
    ),
    "index lacks a tensor": (
        shard(lambda names: names.pop(QUERY)),
        f"the tensor '{QUERY}' is only in the index or only",
    ),
    "index with numbers": (shard(lambda names: names.update({QUERY: 3})), "index.json: not a safetensors index"),
    "index cut": (lambda path: (shard()(path), truncate(INDEX, 40)(path)), "index.json: not a safetensors index"),
    "weights cut": (truncate(WEIGHTS, -100), "model.safetensors: truncated or not a safetensors file"),
    "header cut": (truncate(WEIGHTS, 100), "model.safetensors: truncated or not a safetensors file"),
    "empty weights": (truncate(WEIGHTS, 0), "model.safetensors: truncated or not a safetensors file"),
    "config cut": (truncate("config.json", 50), "config.json: not valid JSON"),
    "config missing": (remove("config.json"), "config.json: missing; a model directory must have it"),
    "tokenizer missing": (remove("*token*"), "the directory has no tokenizer.json; copy the tokenizer's files into it"),
    "tokenizer cut": (truncate("tokenizer.json", 1000), "tokenizer '.*' could not be loaded"),
    "no head": (change_tensors(lambda t: t.pop("score.weight")), "there is no reward head among the tensors"),
}


def loads(path):
    """Raises what the programs that need a trained model raise."""
    load_pipeline(str(path))


@pytest.mark.parametrize("case", CASES)
def test_a_bad_model_is_one_clear_error(good, tmp_path, case):
    change, message = CASES[case]
    shutil.copytree(good / "model", tmp_path / "model")
    change(tmp_path / "model")
    with pytest.raises(InputError, match=message) as raised:
        loads(tmp_path / "model")
    assert str(tmp_path / "model") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("case", ["misshapen", "float8", "MXFP4", "tokenizer missing", "weights cut"])
def test_every_program_raises_it(good, tmp_path, run_main, case):
    change, message = CASES[case]
    path = tmp_path / "model"
    shutil.copytree(good / "model", path)
    change(path)
    config = tiny_config.__wrapped__()
    config.model.path, config.data.synthetic_train = str(path), 20
    config.data.max_length = 64
    with pytest.raises(InputError, match=message):
        train(config, tmp_path / "run")
    with pytest.raises(InputError, match=message):
        export(path, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    data, output = str(tmp_path / "data.jsonl"), f"--output={tmp_path / 'out'}"
    for name, flags in (
        ("evaluate", [f"--data={data}", output]),
        ("score", [f"--input={data}", output]),
        ("serve", ["--grpc_port=0", "--http_port=0"]),
    ):
        with pytest.raises(InputError, match=message):
            run_main(name, f"--model={path}", *flags)


def test_the_command_that_converts_bin_files_does(good, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a model"
    shutil.copytree(good / "model", path)
    tensors = {name: torch.from_numpy(value) for name, value in load_file(path / WEIGHTS).items()}
    expected = load_file(path / WEIGHTS)
    (path / WEIGHTS).unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[:5], names[5:]), 1):
        torch.save({name: tensors[name] for name in part}, path / f"pytorch_model-0000{number}-of-00002.bin")
    torch.save({"lr": 1.0}, path / "training_args.bin")
    with pytest.raises(InputError, match=r"convert pytorch_model-00001-of-00002\.bin") as raised:
        loads(path)
    command = re.search(r"python (-c .*)", str(raised.value))[1]
    subprocess.run([sys.executable, *shlex.split(command)], check=True, timeout=120)
    found = load_file(path / WEIGHTS)
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found[QUERY], expected[QUERY])
    loads(path)


def test_packed_tensors_are_recognized_by_name():
    for name in ("a.qweight", "a.weight.absmax", "a.weight.quant_state.bitsandbytes__nf4", "a.weight_scale_inv",
                 "model.layers.0.mlp.experts.gate_up_proj_blocks", "a.weight_packed", "a.SCB"):  # fmt: skip
        assert find_packed(["a.weight", name]) == name
    assert not find_packed(
        ["a.weight", "a.bias", "model.layers.0.post_attention_layernorm.weight", "v_head.summary.weight"]
    )


def adapted(good, tmp_path):
    shutil.copytree(good / "model", tmp_path / "model")
    shutil.copytree(good / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "model")}))
    return tmp_path / "adapter"


def test_an_adapter_of_another_base_model(good, tmp_path):
    path = adapted(good, tmp_path)
    set_tensor(QUERY, lambda x: np.ones((8, 16), np.float32))(tmp_path / "model")
    with pytest.raises(InputError, match=rf"the adapter is of another base model: .* {QUERY} has the shape \(8, 16\)"):
        loads(path)


def test_an_adapter_with_another_vocabulary(good, tmp_path):
    path = adapted(good, tmp_path)
    tensors = load_file(path / "adapter_model.safetensors")
    tensors["base_model.model.model.embed_tokens.weight"] = np.ones((300, 16), np.float32)
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(
        InputError, match=r"adapter's 'model.embed_tokens.weight' has 300 tokens, that of the base model .* 260: "
    ):
        loads(path)
