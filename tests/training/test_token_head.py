"""Heads made of rows of a language modeling head: rewards equal transformers' logits; export, training, refusals."""

import json

import jax
import numpy as np
import pytest
import tokenizers
import transformers
from safetensors.numpy import load_file, save_file

import rmjax.export as program
from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.evaluation.evaluate import read_evaluation_data
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.models import loading
from rmjax.training.export import export
from tests.models.rows import whole_rows

torch = pytest.importorskip("torch")

VOCABULARY = {"<eos>": 0, "<pad>": 1, "+": 2, "-": 3, "a": 4, "b": 5} | {chr(256 + i): i for i in range(6, 40)}
TOKENS = np.random.default_rng(0).integers(2, 40, (3, 20)).astype(np.int32)
GOOD, BAD = VOCABULARY["+"], VOCABULARY["-"]
LLAMA = (transformers.LlamaConfig, transformers.LlamaForCausalLM)
PHI = (transformers.PhiConfig, transformers.PhiForCausalLM)  # its lm_head has a bias


@pytest.fixture(autouse=True)
def unset_flags():
    """Sets the flags of the program back after each test."""
    yield
    program.FLAGS.values.unparse_flags()


def save(path, kind=LLAMA, rows=40, **options):
    """Saves and returns a tiny random causal language model with a tokenizer."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config, model_class = kind
    torch.manual_seed(0)
    model = model_class(config(vocab_size=rows, bos_token_id=0, eos_token_id=0, pad_token_id=1, **sizes, **options))
    for name, parameter in model.eval().named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and "bias" not in name), std=0.15)
    model.save_pretrained(path)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=VOCABULARY, merges=[]))
    special = {"eos_token": "<eos>", "pad_token": "<pad>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)
    return model


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def rewards(path):
    loaded = loading.load_model(str(path), mesh=one_device())
    with jax.set_mesh(one_device()):
        return np.asarray(jax.jit(loaded.model.rewards)(loaded.params, whole_rows(TOKENS)))[:, 0, 0]


def logits(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS).long()).logits[:, -1].numpy()


@pytest.mark.parametrize(("kind", "tied"), [(LLAMA, False), (LLAMA, True), (PHI, False)])
@pytest.mark.parametrize("tokens", [["+"], ["+", "-"]])
def test_rewards_are_the_logits_of_the_tokens(tmp_path, kind, tied, tokens):
    model = save(tmp_path / "lm", kind, tie_word_embeddings=tied)
    assert ("lm_head.weight" in load_file(tmp_path / "lm" / "model.safetensors")) == (not tied)
    metadata = export(tmp_path / "lm", tmp_path / "rm", head_tokens=tokens)
    expected = logits(model)[:, GOOD] - (logits(model)[:, BAD] if len(tokens) == 2 else 0)
    np.testing.assert_allclose(rewards(tmp_path / "rm"), expected, atol=1e-5)
    assert expected.std() > 0.01
    assert metadata["head_tokens"] == tokens
    assert metadata["attributes"] == ["reward"]


def test_training_starts_from_the_rows(tmp_path):
    model = save(tmp_path / "lm")
    export(tmp_path / "lm", tmp_path / "rm", head_tokens=["+", "-"])
    config = configs.default().model
    config.path = str(tmp_path / "rm")
    start = loading.make_model(config, 0)
    kernel = loading.initial_params(config, start, one_device(), jax.random.key(0))["head"]["kernel"]
    expected = (model.lm_head.weight[GOOD] - model.lm_head.weight[BAD]).detach().numpy()
    np.testing.assert_array_equal(np.asarray(kernel)[:, 0], expected)


def test_a_process_model_is_read_at_the_separators(tmp_path):
    """As Math-Shepherd's, by the program; the rewards are transformers' log-odds there."""
    model = save(tmp_path / "lm")
    arguments = [f"--model={tmp_path / 'lm'}", "--head_tokens=+,-", "--step_separator=b", f"--output={tmp_path / 'rm'}"]
    program.FLAGS.parse(["export", *arguments])
    program.main([])
    metadata = json.loads((tmp_path / "rm" / "rmjax.json").read_text())
    assert metadata["attributes"] == ["correct"]
    record = {"prompt": "aa", "completions": ["a+", "-a-"], "labels": [True, False]}
    (tmp_path / "in.jsonl").write_text(json.dumps(record) + "\n")
    pipeline = load_pipeline(str(tmp_path / "rm"))
    (found,) = pipeline.rewards(read_evaluation_data(tmp_path / "in.jsonl", pipeline.options))
    tokens = [VOCABULARY[letter] for letter in "aaa+b-a-b"]
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0, [4, 8]].numpy()
    np.testing.assert_allclose(found[:, 0], expected[:, GOOD] - expected[:, BAD], atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["ab"], r"--head_tokens: 'ab' becomes 2 tokens of .* \('a', 'b'\); expected one known token"),
        (["+", "-", "a"], r"--head_tokens is \+,-,a; expected one token, or a good and a bad one"),
        (["+", "+"], r"--head_tokens is \+,\+; expected one token, or a good and a bad one"),
        ([chr(256 + 36)], r"'lm_head.weight' has 36 rows; there is none for the token id 36"),
    ],
)
def test_tokens_without_a_row_are_refused(tmp_path, tokens, message):
    save(tmp_path / "lm", rows=36)
    with pytest.raises(InputError, match=message):
        export(tmp_path / "lm", tmp_path / "rm", head_tokens=tokens)
    assert not (tmp_path / "rm").exists()


@pytest.mark.parametrize(
    ("tensors", "values", "message"),
    [
        ({"score.weight": np.ones((1, 32), np.float32)}, {}, r"there is a reward head already \(score \[1, 32\]\)"),
        ({"lm_head.weight": None}, {"tie_word_embeddings": False}, r"there is no output matrix \(lm_head.weight\)"),
        ({"lm_head.weight": np.full((40, 32), np.nan, np.float32)}, {}, r"rows \[2\] of 'lm_head.weight' have NaN"),
        ({}, {"final_logit_softcapping": 30.0}, r"final_logit_softcapping is 30.0, which changes the logits"),
    ],
)
def test_models_without_rows_that_make_a_head_are_refused(tmp_path, tensors, values, message):
    save(tmp_path / "lm")
    file, config = tmp_path / "lm" / "model.safetensors", tmp_path / "lm" / "config.json"
    found = {name: tensor for name, tensor in (load_file(file) | tensors).items() if tensor is not None}
    save_file(found, file, metadata={"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    with pytest.raises(InputError, match=message):
        export(tmp_path / "lm", tmp_path / "rm", head_tokens=["+"])


def test_a_language_model_that_is_given_as_a_reward_model_is_refused_with_the_flag(tmp_path):
    save(tmp_path / "lm")
    with pytest.raises(InputError, match=r"no reward head among .* \(rmjax.export --head_tokens\)"):
        rewards(tmp_path / "lm")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=lm", "--output=rm"], "--model, --head_tokens and --output are required"),
        (["--model=lm", "--head_tokens=+", "--output=rm", "--peft"], "do not go with --model"),
    ],
)
def test_flags_that_do_not_fit(arguments, message):
    program.FLAGS.parse(["export", *arguments])
    with pytest.raises(InputError, match=message):
        program.main([])
