"""Scoring with sharded parameters: the same rewards on every mesh of eight devices, in less memory of each."""

import jax
import numpy as np
import pytest

import rmjax
from rmjax.api.model import Model
from rmjax.core import pytree
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.models import artifact
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import RewardModel
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
        ("tensor=8", "mesh.tensor is 8, which does not divide the model's 4 query heads"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(model, mesh, message):
    with pytest.raises(InputError, match=message) as raised:
        load_pipeline(model, mesh=mesh)
    assert "config" not in str(raised.value)
