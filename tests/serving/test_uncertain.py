"""A model with several heads behind the server: rewards by its combination, and `reward_std`, over HTTP and gRPC."""

import dataclasses

import jax
import numpy as np
import pytest

import rmjax
from rmjax.models import artifact
from rmjax.serving import Client, ServerError


@pytest.fixture(scope="module")
def models(tiny_scorer, tmp_path_factory):
    """Paths of artifacts with one head and with four."""
    scorer, tokenizer = tiny_scorer
    paths = {}
    for members in (1, 4):
        head = dataclasses.replace(scorer.model.head, members=members)
        model = dataclasses.replace(scorer.model, head=head)
        paths[members] = tmp_path_factory.mktemp("models") / "artifact"
        paths[members].mkdir()
        tokenizer.save(paths[members])
        metadata = {"max_length": 64, "strings": "joined"}
        artifact.write(paths[members], model, model.init(jax.random.key(0)), tokenizer.base.pad_token_id, metadata)
    return paths


def test_rewards_and_std(models):
    texts = ["some text", "another one", "a third"]
    model = rmjax.load(models[4], combination="mean_std", beta=0.5)
    expected = [np.array([function(text) for text in texts]) for function in (model.score, model.uncertainty)]
    assert expected[1].min() > 0
    with rmjax.serve({"several": model, "one": str(models[1])}) as server:
        for url in (server.url, f"grpc://127.0.0.1:{server.grpc_port}"):
            with Client(url, "several", batch=2) as client:
                for found, values in zip(client.rewards_and_std(texts), expected, strict=True):
                    np.testing.assert_allclose(found, values, atol=1e-5)
                np.testing.assert_allclose(client.rewards(texts), expected[0], atol=1e-5)
                assert [values.shape for values in client.rewards_and_std([])] == [(0,), (0,)]
            with Client(url, "one") as client:
                assert client.rewards(texts).shape == (3,)
                with pytest.raises(ServerError, match=r"unknown output tensor 'reward_std'; the model's outputs"):
                    client.rewards_and_std(texts)
