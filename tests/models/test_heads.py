"""Reward heads in Hugging Face directories: names, files, biases, labels, normalization; rewards equal torch's."""

import json
import shlex

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.models import artifact, loading, start_head
from rmjax.models.architecture import HeadConfig
from tests.models.rows import whole_rows

torch = pytest.importorskip("torch")

SIZE = 64
TOKENS = np.random.default_rng(0).integers(1, 97, (3, 20)).astype(np.int32)
WEIGHT = np.random.default_rng(1).normal(size=(3, SIZE)).astype(np.float32)
BIAS = np.array([0.5, -1.25, 3.0], np.float32)
ONE = HeadConfig()
CAUSAL, SEQUENCE = transformers.LlamaForCausalLM, transformers.LlamaForSequenceClassification
TOKEN = transformers.LlamaForTokenClassification


def save(path, kind, head=(), **options):
    """Saves a tiny random Llama of the class `kind` by transformers, with the tensors `head` added; returns it."""
    values = {"vocab_size": 97, "hidden_size": SIZE, "intermediate_size": 96, "num_hidden_layers": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = kind(transformers.LlamaConfig(**values, **heads, **options)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.15)
    model.save_pretrained(path)
    if head:
        file = path / "model.safetensors"
        save_file(load_file(file) | dict(head), file, metadata={"format": "pt"})
    return model


def change_config(path, **values):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | values))


def load(path):
    return loading.load_model(str(path), mesh=make_mesh(devices=jax.devices()[:1]))


def rewards(loaded, batch=None):
    """Returns the rewards [B, R, A]; by default at the last of `TOKENS`."""
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        return np.asarray(jax.jit(loaded.model.rewards)(loaded.params, batch or whole_rows(TOKENS)))


def logits(model):
    """Returns the logits of a transformers classifier: [B, A], or [B, T, A] of a token classifier."""
    with torch.no_grad():
        return model(torch.tensor(TOKENS).long()).logits.numpy()


def read_by_torch(model, weight, bias=0.0):
    """Returns hidden · weightᵀ + bias [B, A] at the last token, computed by torch."""
    with torch.no_grad():
        hidden = model.model(torch.tensor(TOKENS).long()).last_hidden_state[:, -1]
        return (hidden @ torch.tensor(weight).T + torch.tensor(bias)).numpy()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_number_of_rewards_is_that_of_the_heads_rows(tmp_path, count):
    model = save(tmp_path, SEQUENCE, num_labels=count)
    config = json.loads((tmp_path / "config.json").read_text())
    assert ("id2label" in config) == (count != 2)  # transformers does not write its default
    loaded = load(tmp_path)
    np.testing.assert_allclose(rewards(loaded)[:, 0], logits(model), atol=1e-5)
    assert loaded.model.head.attributes == tuple(f"LABEL_{i}" for i in range(count))


NAMES = (
    "score", "v_head", "v_head.summary", "value_head", "reward_head", "regression_head", "classifier", "rm_head",
    "reward_model_head", "regression_layer", "out_proj", "critic_head",
)  # fmt: skip


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_head_is_found_under_another_name(tmp_path, name, with_bias):
    head = {f"{name}.weight": WEIGHT[:1]} | ({f"{name}.bias": BIAS[:1]} if with_bias else {})
    model = save(tmp_path, CAUSAL, head)
    loaded = load(tmp_path)
    expected = read_by_torch(model, WEIGHT[:1], BIAS[:1] if with_bias else 0.0)
    np.testing.assert_allclose(rewards(loaded)[:, 0], expected, atol=1e-5)
    assert loaded.model.head.attributes == ("reward",)
    assert loaded.metadata["reward_head"] == f"{name} [1, 64]" + (" with bias" if with_bias else "")


def test_a_language_modeling_head_of_one_row_is_the_reward_head(tmp_path):
    model = save(tmp_path, CAUSAL)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"lm_head.weight": WEIGHT[:1]}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_allclose(rewards(load(tmp_path))[:, 0], read_by_torch(model, WEIGHT[:1]), atol=1e-5)


def test_a_head_in_a_file_of_its_own_is_read(tmp_path):
    """As LLaMA-Factory writes it beside a causal LM."""
    model = save(tmp_path, CAUSAL)
    head = {"v_head.summary.weight": WEIGHT[:1], "v_head.summary.bias": BIAS[:1]}
    save_file(head, tmp_path / "value_head.safetensors")
    np.testing.assert_allclose(rewards(load(tmp_path))[:, 0], read_by_torch(model, WEIGHT[:1], BIAS[:1]), atol=1e-5)


def start(path, head=ONE):
    """Returns the model and its parameters at the start of training from `path`."""
    config = configs.default().model
    config.path = str(path)
    model = loading.make_model(config, 0, start_head.continue_head(config, head))
    params = loading.initial_params(config, model, make_mesh(devices=jax.devices()[:1]), jax.random.key(0))
    return loading.LoadedModel(model, params, path, 0, {})


def test_a_head_in_pytorchs_format_is_refused_also_as_the_start_of_training(tmp_path):
    tmp_path /= "a user's model"
    tmp_path.mkdir()
    save(tmp_path, CAUSAL)
    torch.save({"v_head.summary.weight": torch.tensor(WEIGHT[:1])}, tmp_path / "value_head.bin")
    for read in (load, start):
        with pytest.raises(
            InputError, match=r"value_head.bin: the reward head is in PyTorch's format; convert it: "
        ) as e:
            read(tmp_path)
    (code,) = shlex.split(str(e.value).split("python -c ")[1])
    exec(code)
    np.testing.assert_array_equal(load(tmp_path).params["head"]["kernel"], WEIGHT[:1].T)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            {"score.weight": WEIGHT[:1], "v_head.weight": WEIGHT[:1]},
            r"several reward heads \(score.weight, v_head.weight\); remove all but one",
        ),
        (
            {"v_head.weight": WEIGHT[:1].T.copy()},
            r"'v_head.weight' has shape \(64, 1\); expected \[rewards, 64\] .*: transpose it",
        ),
        ({"score.weight": WEIGHT[:1, :60]}, r"'score.weight' has shape \(1, 60\); .*check that the head belongs to"),
        ({"score.weight": WEIGHT[0]}, r"'score.weight' has shape \(64,\); expected \[rewards, 64\]"),
        ({"score.bias": BIAS[:1]}, r"the tensor 'score.weight' is missing; the head's bias is there"),
        ({"score.weight": WEIGHT[:1], "score.bias": BIAS}, r"'score.bias' has shape \(3,\); expected \(1,\)"),
        (
            {"score.0.weight": np.eye(SIZE, dtype=np.float32), "score.3.weight": WEIGHT[:1]},
            r"the reward head 'score' is not one linear layer, or two .* \(tensor 'score.3.weight' \(1, 64\)\)",
        ),
        ({"v_head.summary.1.weight": WEIGHT[:1]}, r"the reward head 'v_head.summary' is not one linear layer"),
        (
            {"judge.weight": WEIGHT[:1]},
            r"no reward head among .*; if 'judge.weight' \(1, 64\) is the reward head, rename it",
        ),
        (
            {"regression_layer.weight": WEIGHT, "gating.layers.0.weight": WEIGHT},
            r"the tensor 'gating.layers.0.weight' \(3, 64\) is of a gating network .*\(ArmoRM; .*QRM, .*URM\)",
        ),
        (
            {"regression_layer.weight": WEIGHT, "reward_transform_matrix": np.eye(3, dtype=np.float32)},
            r"the tensor 'reward_transform_matrix' \(3, 3\) is of a gating network",
        ),
    ],
)
def test_other_heads_are_named_in_the_error(tmp_path, head, message):
    save(tmp_path, CAUSAL, head)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["score.weight", "score.bias"])
def test_a_head_that_is_not_finite_is_refused(tmp_path, name, value):
    head = {"score.weight": WEIGHT[:1].copy(), "score.bias": BIAS[:1].copy()}
    head[name][..., 0] = value
    save(tmp_path, CAUSAL, head)
    size = SIZE if name == "score.weight" else 1
    with pytest.raises(
        InputError, match=rf"{tmp_path}/model\.safetensors: the tensor '{name}' .* in 1 of {size} values"
    ):
        load(tmp_path)


def test_an_unknown_tensor_like_a_head_is_not_replaced_by_a_new_head(tmp_path):
    save(tmp_path, CAUSAL, {"judge.weight": WEIGHT[:1]})
    with pytest.raises(InputError, match=r"'judge.weight' \(1, 64\) is the reward head, rename it to 'score.weight'"):
        start(tmp_path)


@pytest.mark.parametrize(
    ("labels", "attributes"),
    [
        ({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"0": "LABEL_0", "1": "LABEL_1"}, ("LABEL_0", "LABEL_1", "LABEL_2")),  # a default that says nothing
        ({"2": "c", "0": "a", "1": "b"}, ("a", "b", "c")),
        ({"0": "good", "1": "bad"}, r"names 2 rewards \(good, bad\); the reward head 'score' has 3 rows"),
        ({"first": "a"}, r"id2label is {'first': 'a'}; expected an object {index: name}"),
        (["a", "b"], r"id2label is \['a', 'b'\]; expected an object"),
    ],
)
def test_label_names(tmp_path, labels, attributes):
    save(tmp_path, SEQUENCE, num_labels=3)
    change_config(tmp_path, id2label=labels)
    if isinstance(attributes, tuple):
        assert load(tmp_path).model.head.attributes == attributes
        return
    with pytest.raises(InputError, match=attributes):
        load(tmp_path)


def test_a_token_classifier_of_two_classes_is_a_process_model(tmp_path):
    """The logistic function of the reward is the probability of class 1 at every token, as in TRL's PRMTrainer."""
    model = save(tmp_path, TOKEN, num_labels=2)
    with torch.no_grad():
        model.score.bias.copy_(torch.tensor([0.5, -1.25]))
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.model.head == HeadConfig(("correct",), shift=(-1.75,))
    positions = np.array([[2, 9, 19]] * 3, np.int32)
    found = rewards(loaded, whole_rows(TOKENS) | {"readout_index": positions})
    probability = torch.softmax(torch.tensor(logits(model)), -1)[..., 1].numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-found[..., 0])), probability[:, positions[0]], atol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_the_rewards_of_other_token_classifiers_are_their_logits(tmp_path, count):
    model = save(tmp_path, TOKEN, num_labels=count)
    found = rewards(load(tmp_path))
    np.testing.assert_allclose(found[:, 0], logits(model)[:, -1], atol=1e-5)


@pytest.mark.parametrize(
    ("values", "attributes"),
    [
        ({"problem_type": "single_label_classification"}, ("reward",)),
        ({"problem_type": "regression"}, ("LABEL_0", "LABEL_1")),
        ({"problem_type": "single_label_classification", "id2label": {"0": "a", "1": "b"}}, ("a", "b")),
    ],
)
def test_two_classes_without_names_make_one_reward(tmp_path, values, attributes):
    model = save(tmp_path, SEQUENCE, num_labels=2)
    change_config(tmp_path, **values)
    loaded, expected = load(tmp_path), logits(model)
    assert loaded.model.head.attributes == attributes
    expected = expected[:, 1:] - expected[:, :1] if len(attributes) == 1 else expected
    np.testing.assert_allclose(rewards(loaded)[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("given", [{}, {"normalize_reward": True}, {"normalize_reward": None}])
def test_normalization_in_config_json_is_applied(tmp_path, given):
    """As in OpenRLHF: (reward - mean) / std."""
    model = save(tmp_path, CAUSAL, {"value_head.weight": WEIGHT[:1], "value_head.bias": BIAS[:1]})
    change_config(tmp_path, mean=1.5, std=0.25, **given)
    loaded = load(tmp_path)
    expected = (read_by_torch(model, WEIGHT[:1], BIAS[:1]) - 1.5) / 0.25
    np.testing.assert_allclose(rewards(loaded)[:, 0], expected, rtol=1e-5, atol=1e-5)
    assert "normalized by config.json's mean [1.5] and std [0.25]" in loaded.metadata["reward_head"]
    np.testing.assert_allclose(rewards(start(tmp_path))[:, 0], expected, rtol=1e-5, atol=1e-5)


def test_normalization_that_is_off_is_stored_only(tmp_path):
    model = save(tmp_path, CAUSAL, {"value_head.weight": WEIGHT[:1]})
    change_config(tmp_path, mean=1.5, std=0.25, normalize_reward=False)
    loaded = load(tmp_path)
    np.testing.assert_allclose(rewards(loaded)[:, 0], read_by_torch(model, WEIGHT[:1]), atol=1e-5)
    assert (loaded.metadata["reward_mean"], loaded.metadata["reward_std"]) == (1.5, 0.25)


@pytest.mark.parametrize(
    "values",
    [{"mean": 1.0}, {"std": 1.0}, {"mean": 0.0, "std": 0.0}, {"mean": "a", "std": 1}, {"mean": [1, 2], "std": 1}],
)
def test_incomplete_normalization_is_refused(tmp_path, values):
    save(tmp_path, SEQUENCE, num_labels=1)
    change_config(tmp_path, **values)
    with pytest.raises(InputError, match=r"config.json: the reward's normalization is {.*}; expected"):
        load(tmp_path)


def test_training_starts_from_the_rewards_of_the_head_with_its_bias(tmp_path):
    save(tmp_path, CAUSAL, {"v_head.weight": WEIGHT, "v_head.bias": BIAS})
    expected = rewards(load(tmp_path))
    found = start(tmp_path, HeadConfig(("a", "b", "c"), scale=(2.0, 0.5, 1.0)))
    assert found.model.head.shift == tuple(BIAS.tolist())
    np.testing.assert_allclose(rewards(found), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (ONE, r"predicts LABEL_0, LABEL_1, LABEL_2; the objective expects reward: .*rmjax.export --merge"),
        (HeadConfig(("a", "b", "c"), shift=(1.0, 1.0, 1.0)), r"has the shift \[0.5, -1.25, 3.0\]; .*standardize needs"),
    ],
)
def test_training_does_not_start_from_a_head_that_does_not_fit(tmp_path, head, message):
    save(tmp_path, CAUSAL, {"v_head.weight": WEIGHT, "v_head.bias": BIAS})
    with pytest.raises(InputError, match=message):
        start(tmp_path, head)


def test_names_of_attributes_must_agree_at_the_start_of_training(tmp_path):
    save(tmp_path, SEQUENCE, num_labels=2)
    change_config(tmp_path, id2label={"0": "helpfulness", "1": "verbosity"})
    assert start(tmp_path, HeadConfig(("helpfulness", "verbosity"))).model.head.attributes[1] == "verbosity"
    with pytest.raises(
        InputError, match="predicts helpfulness, verbosity; the objective expects verbosity, helpfulness"
    ):
        start(tmp_path, HeadConfig(("verbosity", "helpfulness")))


def two_layers(name, outputs, width=SIZE, bias=True):
    """Returns the tensors of a head of two layers by torch.nn.Sequential."""
    rng = np.random.default_rng(2)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32) / 8
    tensors = {f"{name}.0.weight": draw(width, SIZE), f"{name}.2.weight": draw(outputs, width)}
    return tensors | ({f"{name}.0.bias": draw(width), f"{name}.2.bias": draw(outputs)} if bias else {})


@pytest.mark.parametrize(
    ("architecture", "name", "outputs", "width", "bias"),
    [
        ("Qwen2ForRewardModel", "score", 1, SIZE, True),  # Qwen2.5-Math-RM
        ("INFORMForSequenceClassification", "score", 1, SIZE, True),
        ("Qwen2ForProcessRewardModel", "score", 2, SIZE, True),  # Qwen2.5-Math-PRM
        ("LlamaForCausalLM", "v_head.summary", 1, 24, True),  # GRM
        ("LlamaForCausalLM", "v_head.summary", 1, 24, False),
    ],
)
def test_heads_of_two_layers(tmp_path, architecture, name, outputs, width, bias):
    """Published heads: Linear, ReLU, Linear; they survive export, and the result is the same."""
    head = two_layers(name, outputs, width, bias)
    causal = save(tmp_path / "a", CAUSAL, head)
    change_config(tmp_path / "a", architectures=[architecture], auto_map={"AutoModel": "x.Y"}, num_labels=outputs)
    loaded = load(tmp_path / "a")
    with torch.no_grad():
        states = (
            causal.model(torch.from_numpy(TOKENS).long(), use_cache=False).last_hidden_state[:, -1].double().numpy()
        )
    tensors = {key.removeprefix(name + "."): value.astype(np.float64) for key, value in head.items()}
    hidden = np.maximum(states @ tensors["0.weight"].T + tensors.get("0.bias", 0), 0)
    expected = hidden @ tensors["2.weight"].T + tensors.get("2.bias", 0)
    expected = expected[:, 1:] - expected[:, :1] if outputs == 2 else expected
    np.testing.assert_allclose(rewards(loaded)[:, 0], expected, atol=1e-4)
    assert loaded.model.head.hidden == width
    assert "hidden layer" in loaded.metadata["reward_head"]
    process = {"step_readout": "separator", "step_separator": "<extra_0>"} if outputs == 2 else {}
    assert loaded.metadata["data_options"] == process

    (tmp_path / "b").mkdir()
    metadata = artifact.write(
        tmp_path / "b", loaded.model, loaded.params, 0, {"max_length": 64, "data_options": process}
    )
    assert metadata["transformers_class"] is None
    assert set(load_file(tmp_path / "b" / "model.safetensors")) >= {"score.0.weight", "score.0.bias", "score.2.weight"}
    again = load(tmp_path / "b")
    assert again.model.head == loaded.model.head
    np.testing.assert_array_equal(rewards(again), rewards(loaded))


@pytest.mark.parametrize("missing", ["0.weight", "2.weight"])
def test_heads_of_two_layers_must_be_complete(tmp_path, missing):
    head = two_layers("score", 1)
    del head[f"score.{missing}"]
    save(tmp_path, CAUSAL, head)
    with pytest.raises(InputError, match=rf"score\.{missing}"):
        load(tmp_path)
