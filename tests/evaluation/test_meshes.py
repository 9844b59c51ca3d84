"""Scoring with sharded parameters: the same rewards on every mesh of eight devices, in less memory of each."""

import jax
import numpy as np
import pytest

import rmjax
from rmjax.api.model import Model
from rmjax.core import pytree
from rmjax.core.errors import InputError
from rmjax.core.memory import Available, gib
from rmjax.core.mesh import make_mesh
from rmjax.core.option_names import flag
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.models import artifact
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import RewardModel
from rmjax.models.int8 import quantize
from rmjax.models.loading import load_model
from rmjax.models.sharding import bytes_per_device

RECORDS = [
    {"prompt": "1 + 1 =", "responses": [" 2", " 3, I think", " two"]},
    {"prompt": "2 * 3 =", "responses": [" 6"]},
]
MESHES = ["data=8", "fsdp=8", "tensor=4,fsdp=2", "sequence=2,tensor=2,fsdp=2", "sequence=4,data=2", "tensor=2"]


def save(path, **fields):
    """Saves an artifact of a tiny random model with these fields of DecoderConfig."""
    tokenizer = Tokenizer.load("").with_separate_pad()
    decoder = DecoderConfig(len(tokenizer), 64, 96, 2, 4, 4, 16, 1e-5, 1e4, None, False, False, 100, 0.2, **fields)
    head = HeadConfig(init=1.0, hidden=8 if not fields else 0)
    model = RewardModel(decoder, head, family="qwen3_moe" if fields else "llama")
    with jax.set_mesh(make_mesh()):
        params = model.init(jax.random.key(0))
    path.mkdir()
    tokenizer.save(path)
    artifact.write(path, model, params, tokenizer.base.pad_token_id, {"max_length": 100})
    return str(path)


@pytest.fixture(scope="module", params=["llama, two layers", "experts"])
def model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model"
    experts = {"num_experts": 4, "experts_per_token": 2, "expert_size": 32, "normalize_experts": True}
    return save(path, **({"qk_norm": "head"} | experts if request.param == "experts" else {}))


def rewards(pipeline):
    return np.concatenate(Model("", pipeline).score_batch(RECORDS))


@pytest.mark.parametrize("int8", [False, True])
def test_rewards_are_the_same_on_every_mesh(model, int8):
    whole = load_pipeline(model, int8=int8)
    expected = rewards(whole)
    for mesh in MESHES[3:4] if int8 else MESHES:
        np.testing.assert_allclose(rewards(load_pipeline(model, mesh=mesh, int8=int8)), expected, atol=1e-5, rtol=1e-5)


def test_a_server_of_sharded_parameters(model):
    whole = Model("", load_pipeline(model))
    texts = ["1 + 1 = 2", "1 + 1 = 3, I think"]
    with rmjax.serve(rmjax.load(model, mesh="tensor=4,fsdp=2")) as server, server.client() as client:
        found = client.rewards(texts)
    expected = [whole.score_batch([{"text": text}])[0][0] for text in texts]
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_a_device_holds_its_shard_of_the_matrices(model):
    whole, sharded = load_pipeline(model), load_pipeline(model, mesh="tensor=4,fsdp=2")
    assert bytes_per_device(sharded.scorer.params["decoder"]) < 0.2 * bytes_per_device(whole.scorer.params["decoder"])
    for path, leaf in pytree.flatten(sharded.scorer.params).items():
        shards = {shard.data.shape for shard in leaf.addressable_shards}
        assert len(shards) == 1
        if path.endswith("kernel") and "head" not in path and "router" not in path:
            assert 8 * np.prod(shards.pop()) == leaf.size, path


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("tensor", "mesh is 'tensor'; expected sizes of data, fsdp, tensor, sequence, such as tensor=4,fsdp=2"),
        ("model=2", "mesh is 'model=2'; expected sizes of"),
        ("tensor=2,tensor=4", "expected sizes of"),
        ("tensor=x", "expected sizes of"),
        ("tensor=0", "mesh is .*'tensor': 0.*; sizes must be positive"),
        ("tensor=-1,fsdp=-1", "at most one may be -1"),
        ("tensor=3", "fixed sizes multiply to 3, but there are 8 devices"),
        ("tensor=8", "mesh: tensor is 8, which does not divide the model's 4 query heads"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(model, mesh, message):
    with pytest.raises(InputError, match=message) as raised:
        load_pipeline(model, mesh=mesh)
    assert "config" not in str(raised.value)
    with pytest.raises(InputError, match=message.replace("mesh", "--mesh", 1)) as raised:
        load_pipeline(model, mesh=mesh, option=flag)
    assert "config" not in str(raised.value)


def test_matrices_become_int8_while_they_are_read(model):
    """The values and scales are those of the loaded matrices; each column is read once for all of its shards."""
    expected = pytree.flatten(quantize(load_pipeline(model).scorer.params))
    for mesh in ("", "tensor=4,fsdp=2"):
        found = pytree.flatten(load_pipeline(model, mesh=mesh, int8=True).scorer.params)
        assert found.keys() == expected.keys()
        for path, leaf in found.items():
            np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
            assert leaf.dtype == expected[path].dtype


@pytest.fixture
def left(monkeypatch):
    """Sets the memory that seems to be left on the host."""
    return lambda size: monkeypatch.setattr("rmjax.core.memory.host_memory", lambda: Available(int(size), "a test"))


def test_a_model_that_does_not_fit_names_the_options_with_which_it_would(model, left):
    def size(**options):  # on the eight devices, which share the host
        return 8 * bytes_per_device(load_pipeline(model, **options).scorer.params)

    whole, half = size(), size(dtype="bfloat16")
    left(whole - 1)
    with pytest.raises(InputError, match=rf"loading {model} needs about .*; it would fit with ") as raised:
        load_pipeline(model, option=flag)
    shown = f"--mesh=tensor=2 ({gib(size(mesh='tensor=2'))}) or --dtype=bfloat16 ({gib(half)}) or --int8 ("
    assert shown in str(raised.value)
    left(half - 1)
    with pytest.raises(InputError, match=r"fit with mesh='tensor=\d.*' \(.*\) or int8=True \("):
        load_pipeline(model, dtype="bfloat16")
    smallest = size(dtype="bfloat16", int8=True)
    left(smallest - 1)
    with pytest.raises(InputError, match=rf"needs about {gib(smallest)} .*fit with --mesh=tensor=\d[^ ]* \([^)]*\)\."):
        load_pipeline(model, dtype="bfloat16", int8=True, option=flag)
    left(5 * whole - 1)  # with two moments and two sets of gradients of the critic, which is float32
    with pytest.raises(InputError, match=r"moments .*, gradients .*fit with --mesh=[^ ]* \([^)]*\)\. "):
        load_model(model, mesh=make_mesh((-1, 1, 1, 1)), trained=True, option=flag)
    left(100)
    with pytest.raises(InputError, match=r"; use a device with more memory, or a smaller model\."):
        load_pipeline(model, option=flag)
    left(smallest / 0.8)
    load_pipeline(model, dtype="bfloat16", int8=True)
