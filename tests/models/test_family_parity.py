"""Parity of every model family and its switches with transformers, on tiny random weights.

transformers computes one conversation per row, rmjax packed prefix trees: hidden states, rewards and the gradients of a
Bradley-Terry loss must agree. Queries are large, so that a missing window, soft cap or rotation shows.
"""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from rmjax.core.mesh import make_mesh
from rmjax.data.packing.rows import fill_rows, pack
from rmjax.data.schema import Edge, packed_spec
from rmjax.data.tokens.trees import make_tree
from rmjax.models import artifact, loading
from rmjax.models.architecture import LayerKind
from rmjax.models.families import FAMILIES
from rmjax.models.layers import Block
from rmjax.models.weights import named_tensors
from rmjax.training.losses import bradley_terry

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402  # needs torch

SIZES = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
WIDE = {"head_dim": 16}
WINDOW = {"sliding_window": 5}
QWEN_WINDOW = {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}
YARN = {"rope_type": "yarn", "rope_theta": 1e3, "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"short_factor": [1.0, 1.2, 1.5, 2.0], "long_factor": [1.1, 2.0, 4.0, 7.0], "rope_theta": 1e3}
LONG |= {"rope_type": "longrope", "factor": 4.0}
GEMMA2 = {**WIDE, **WINDOW, "query_pre_attn_scalar": 9, "attn_logit_softcapping": 3.0}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e3, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
GEMMA3 = {**WIDE, **WINDOW, "query_pre_attn_scalar": 9, "rope_parameters": GEMMA3_ROPE}
GEMMA3 |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
OLMO3 = {**WINDOW, "rope_parameters": {"full_attention": YARN}}
OLMO3 |= {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
GRANITE = {"embedding_multiplier": 6.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2}
EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2}
QWEN_MOE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
QWEN2_MOE = {**QWEN_MOE, "shared_expert_intermediate_size": 40}
NO_KINDS = {"kinds": (LayerKind(),)}
NEOX_ROPE = {"rope_type": "default", "rope_theta": 1e3, "partial_rotary_factor": 0.5}


def llama(**rope):
    return "llama", {"rope_parameters": {"rope_theta": 1e3, **rope}}, {"rope_scaling": None}


# {name: (family, values of config.json, *fields of DecoderConfig, each of which must change the result)}
CASES = {
    "llama linear": llama(rope_type="linear", factor=4.0),
    "llama llama3": llama(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
    ),
    "llama yarn": llama(**YARN),
    "llama longrope short": llama(**LONG, original_max_position_embeddings=48),
    "llama longrope long": llama(**LONG, original_max_position_embeddings=4),
    "llama dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e3}}),
    "llama gelu": ("llama", {"hidden_act": "gelu"}, {"activation": "silu"}),
    "mistral": ("mistral", WINDOW, NO_KINDS),
    "mistral without": ("mistral", {"sliding_window": None, **WIDE}),
    "ministral": (
        "ministral",
        {**WIDE, **WINDOW, "layer_types": ["full_attention"] + ["sliding_attention"] * 2},
        NO_KINDS,
    ),
    "qwen2": ("qwen2", {}),
    "qwen2 window": ("qwen2", QWEN_WINDOW, NO_KINDS),
    "qwen3": ("qwen3", WIDE),
    "qwen3 window": ("qwen3", {**WIDE, **QWEN_WINDOW, "attention_bias": True}, NO_KINDS),
    "qwen2_moe": ("qwen2_moe", {**QWEN2_MOE, **QWEN_WINDOW}, NO_KINDS),
    "qwen3_moe": ("qwen3_moe", {**WIDE, **QWEN_MOE, "norm_topk_prob": True}, {"normalize_experts": False}),
    "mixtral": ("mixtral", {**EXPERTS, **WINDOW}, NO_KINDS),
    "gemma": ("gemma", {**WIDE, "hidden_act": "gelu"}, {"embedding_scale": 1.0}),
    "gemma2": ("gemma2", GEMMA2, NO_KINDS, {"attention_softcap": 0.0}, {"attention_scale": 0.0}),
    "gemma2 uncapped": ("gemma2", GEMMA2 | {"attn_logit_softcapping": None}, {"attention_scale": 0.0}),
    "gemma3": (
        *("gemma3_text", GEMMA3, NO_KINDS, {"rope_scaling": None}),
        *({"kinds": (LayerKind(5), LayerKind())}, {"kinds": (LayerKind(0, True, 100.0), LayerKind())}),
    ),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", OLMO3, NO_KINDS, {"rope_scaling": None}),
    "phi3": ("phi3", {}),
    "phi3 window": ("phi3", WINDOW, NO_KINDS),
    "phi3 longrope": (
        "phi3",
        {"original_max_position_embeddings": 4, "partial_rotary_factor": 0.5}
        | {"rope_parameters": {**LONG, "short_factor": [1.0, 1.2], "long_factor": [1.5, 4.0]}},
        {"rope_scaling": None},
    ),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1]}, NO_KINDS),
    "smollm3 window": ("smollm3", {"no_rope_layers": [1, 1, 0], "use_sliding_window": True, **WINDOW}, NO_KINDS),
    "granite": ("granite", GRANITE, {"residual_scale": 1.0}, {"embedding_scale": 1.0}, {"attention_scale": 0.0}),
    "glm": ("glm", WIDE, {"rotary_interleaved": False}, {"rotary_dim": 0}),
    "glm4": ("glm4", WIDE),
    "seed_oss": ("seed_oss", {**WIDE, "attention_out_bias": True}),
    "arcee": ("arcee", {}, {"activation": "relu"}),
    "exaone4": ("exaone4", {**WINDOW, "sliding_window_pattern": 2}, {"kinds": (LayerKind(5), LayerKind())}),
    "exaone4 without": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 3}),
}
CASES |= {
    "gpt_neox": ("gpt_neox", {"rope_parameters": NEOX_ROPE}, {"parallel": ""}, {"rotary_dim": 2}),
    "gpt_neox sequential": ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    "gpt2": ("gpt2", {"n_inner": 48}, {"learned_positions": False}, {"position_offset": 1}),
    "gpt2 unscaled": ("gpt2", {"scale_attn_weights": False, "activation_function": "relu"}, {"attention_scale": 0.0}),
    "opt": ("opt", {"ffn_dim": 48}, {"position_offset": 0}),
    "opt without biases": ("opt", {"ffn_dim": 48, "enable_bias": False}),
    "gptj": ("gptj", {"n_inner": 48, "rotary_dim": 4}, {"rotary_dim": 0}, {"rotary_interleaved": False}),
    "cohere": ("cohere", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e3}}),
    "cohere2": ("cohere2", {**WINDOW, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]}, NO_KINDS),
    "nemotron": ("nemotron", {}, {"rotary_dim": 0}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm parallel": ("stablelm", {"use_parallel_residual": True}),
    "phi": ("phi", {}),
    "starcoder2": ("starcoder2", WINDOW, NO_KINDS),
}
KERNELS = {"mistral": "triton", "gemma2": "triton", "gemma2 uncapped": "blocks", "gemma3": "blocks"}


FAST = {"xla_backend_optimization_level": 0}  # halves the time of compilation


class Classifier(torch.nn.Module):
    """A decoder of transformers with a linear head, for families without a classifier there."""

    def __init__(self, config):
        super().__init__()
        self.model = transformers.AutoModel.from_config(config, attn_implementation="eager")
        self.score = torch.nn.Linear(config.hidden_size, 1, bias=False)

    @property
    def base_model(self):
        return self.model

    def save_pretrained(self, path):
        self.model.config.save_pretrained(path)
        save_file(self.state_dict(), path / "model.safetensors")


def make_reference(family, values):
    """Returns a torch model with random parameters; those of queries are large."""
    sizes = {key: value for key, value in SIZES.items() if hasattr(transformers.AutoConfig.for_model(family), key)}
    config = transformers.AutoConfig.for_model(family, **sizes | copy.deepcopy(values), num_labels=1)
    torch.manual_seed(0)
    if FAMILIES[family].classifier is None:
        model = Classifier(config)
    else:
        kind = transformers.AutoModelForSequenceClassification
        model = kind.from_config(config, attn_implementation="eager")
        assert type(model).__name__ == FAMILIES[family].classifier
    for name, parameter in model.named_parameters():
        one = float(("norm" in name or "ln_" in name) and not family.startswith(("gemma", "nemotron")))
        has_queries = any(part in name for part in ("q_proj", "qkv", "query_key_value", "c_attn"))
        torch.nn.init.normal_(parameter, one, 0.5 if has_queries else 0.2)
    return model.eval()


def pairs():
    """Returns comparisons, each with two token sequences that share a prompt."""
    rng = np.random.default_rng(0)
    draw = lambda low, high: rng.integers(1, 53, rng.integers(low, high))
    return [[np.concatenate([prompt, draw(2, 14)]) for _ in range(2)] for prompt in (draw(3, 20) for _ in range(4))]


def packed():
    """Returns the packed rows, and the row and group of each comparison."""
    trees = [make_tree(sequences, (Edge(0, 1),)) for sequences in pairs()]
    rows = pack([tree.length for tree in trees], 64)
    batch = fill_rows([[trees[i] for i in row] for row in rows], packed_spec(len(rows), 64, 8, 4, 1))
    return batch, {i: (r, g) for r, row in enumerate(rows) for g, i in enumerate(row, 1)}


def of_conversation(batch, where, values):
    """Returns values [B, T, ...] at the tokens of each conversation, in the order of `pairs`."""
    found = []
    for i in sorted(where):
        row, group = where[i]
        for branch in (1, 2):
            mine = (batch["group"][row] == group) & np.isin(batch["branch"][row], (0, branch))
            found.append(np.asarray(values)[row][mine])
    return found


def compare(found, expected, tolerance=1e-4):
    """Checks the greatest difference, relative to the greatest value."""
    assert np.abs(np.asarray(found) - expected).max() < tolerance * np.abs(expected).max()


def as_in_files(family, tensors):
    """Returns {name: array} with tensors of each expert, as in files, for transformers' tensors of all experts."""
    found, mixtral = {}, family == "mixtral"
    for name, array in tensors.items():
        layer, _, fused = name.partition(".mlp.experts.")
        if not fused:
            found[name.replace("mlp.gate.weight", "block_sparse_moe.gate.weight") if mixtral else name] = array
            continue
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[fused]
        for part, of_experts in zip(parts, np.split(array, len(parts), axis=1), strict=True):
            part = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}[part] if mixtral else part
            prefix = f"{layer}.block_sparse_moe.experts" if mixtral else f"{layer}.mlp.experts"
            found |= {f"{prefix}.{e}.{part}.weight": values for e, values in enumerate(of_experts)}
    return found


def check_artifact(directory, model, params, reference):
    """Checks that transformers loads the exported model, unchanged and as the family's class, with the same output."""
    output = directory / "artifact"
    output.mkdir()
    metadata = artifact.write(output, model, params, 0, {})
    assert metadata["transformers_class"] == FAMILIES[model.family].classifier
    if metadata["transformers_class"] is None:
        base, score = transformers.AutoModel.from_pretrained(output), load_file(output / "model.safetensors")
        found = {f"model.{name}": tensor for name, tensor in base.state_dict().items()}
        found["score.weight"] = score["score.weight"]
    else:
        exported = transformers.AutoModelForSequenceClassification.from_pretrained(output)
        assert type(exported) is type(reference)
        found, base = exported.state_dict(), exported.base_model
    expected = reference.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    tokens = torch.tensor(pairs()[0][0])[None]
    with torch.no_grad():
        states, expected = (decoder(tokens).last_hidden_state for decoder in (base, reference.base_model))
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture
def layer_outputs(monkeypatch):
    """The output of each layer of a decoder, in their order, after a call of the compiled function."""
    found, call = [], Block.__call__

    def record(self, *args):
        y = call(self, *args)
        jax.debug.callback(lambda y: found.append(np.asarray(y)), y, ordered=True)
        return y

    monkeypatch.setattr(Block, "__call__", record)
    return found


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_rewards_and_gradients_equal_transformers(tmp_path, mesh, layer_outputs, name):
    family, values, *changes = CASES[name]
    reference = make_reference(family, values)
    reference.save_pretrained(tmp_path)
    loaded = loading.load_model(str(tmp_path), mesh=mesh)
    decoder = loaded.model.decoder.for_length(40)  # of these conversations
    model = dataclasses.replace(loaded.model, decoder=decoder, attention=KERNELS.get(name, "dense"), remat="none")
    assert model.family == family
    batch, where = packed()

    def loss(params, model):
        hidden = model.hidden(params, batch)
        read = jnp.take_along_axis(hidden, batch["readout_index"][..., None], axis=1)  # as `model.rewards`, in one pass
        rewards = read @ params["head"]["kernel"]
        return bradley_terry(rewards, batch)[0], (hidden, rewards)

    with jax.set_mesh(mesh):
        compute = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1, compiler_options=FAST)
        (_, (hidden, rewards)), gradients = compute(loaded.params, model)
        jax.effects_barrier()
    expected, in_layers = [], []
    for sequence in (sequence for pair in pairs() for sequence in pair):
        # Padding up to the longest conversation would change the frequencies of longrope.
        tokens = torch.tensor(sequence)[None]
        output = reference.base_model(tokens, use_cache=False, output_hidden_states=True)
        expected.append(output.last_hidden_state[0])
        in_layers.append([states[0].detach().numpy() for states in output.hidden_states[1:-1]])  # without the last norm
    scores = torch.stack([reference.score(states[-1]) for states in expected]).reshape(-1, 2)
    (-torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1])).sum().backward()
    found = of_conversation(batch, where, hidden)
    states = [states.detach().numpy() for states in expected]
    for mine, theirs in zip(found, states, strict=True):
        compare(mine, theirs)
    assert len(layer_outputs) == decoder.num_layers
    for layer, outputs in enumerate(layer_outputs[:-1]):
        for mine, theirs in zip(of_conversation(batch, where, outputs), in_layers, strict=True):
            compare(mine, theirs[layer])
    used = batch["readout_group"] > 0
    order = [i for i, _ in sorted(where.items(), key=lambda item: item[1])]
    compare(np.asarray(rewards)[used].reshape(-1, 2), scores.detach().numpy()[order])
    gradients_there = {name: parameter.grad.numpy() for name, parameter in reference.named_parameters()}
    tensors = as_in_files(family, gradients_there)
    found = {tensor: make() for tensor, make, _ in named_tensors(model, gradients)}
    assert found.keys() == tensors.keys()
    largest = max(np.abs(gradient).max() for gradient in tensors.values())
    for tensor, gradient in tensors.items():
        difference = np.abs(found[tensor] - gradient).max()
        assert difference < 1e-4 * largest, tensor
    check_artifact(tmp_path, model, loaded.params, reference)
    for change in changes:
        other = dataclasses.replace(model, attention="dense", decoder=dataclasses.replace(decoder, **change))
        with jax.set_mesh(mesh):
            compute = jax.jit(other.hidden, compiler_options=FAST)
            changed = of_conversation(batch, where, compute(loaded.params, batch))
        assert max(np.abs(a - b).max() for a, b in zip(changed, states, strict=True)) > 1e-2, f"{change} shows nothing"


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gemma3", "olmo3", "granite"])
def test_bfloat16_rounds_no_more_than_transformers(tmp_path, mesh, name):
    family, values, *_ = CASES[name]
    reference = make_reference(family, values).to(torch.bfloat16)
    reference.save_pretrained(tmp_path)
    loaded = loading.load_model(str(tmp_path), mesh=mesh, dtype="bfloat16")
    batch, where = packed()
    with jax.set_mesh(mesh):
        compute = jax.jit(loaded.model.hidden)
        found = of_conversation(batch, where, compute(loaded.params, batch))
    sequences = [torch.tensor(sequence)[None] for pair in pairs() for sequence in pair]

    def states():
        with torch.no_grad():
            return [reference.model(tokens).last_hidden_state[0].float().numpy() for tokens in sequences]

    rounded = states()
    reference.float()
    errors = [
        np.concatenate([(np.asarray(a, np.float32) - b).ravel() for a, b in zip(values, states(), strict=True)]).std()
        for values in (found, rounded)
    ]
    assert errors[0] < 1.2 * errors[1], errors
