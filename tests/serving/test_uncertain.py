"""Several heads or models behind the server: rewards by their combination, and `reward_std`, over HTTP and gRPC."""

import dataclasses
import importlib

import numpy as np
import pytest

import rmjax
from rmjax.core.errors import InputError
from rmjax.serving import Client, ServerError


@pytest.fixture(scope="module")
def models(make_artifact):
    """Paths of artifacts with one head and with four."""
    return {members: make_artifact(members) for members in (1, 4)}


@pytest.fixture(scope="module")
def ensemble(make_artifact):
    """The paths of two models as one."""
    return f"{make_artifact(1, 1)},{make_artifact(1, 2)}"


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


@pytest.mark.parametrize("combination", ["mean", "mean_std", "quantile"])
def test_an_ensemble_is_served_as_it_is_loaded(ensemble, combination):
    texts = ["some text", "another one", "a third"]
    model = rmjax.load(ensemble, combination=combination, beta=0.5)
    expected = [np.array([function(text) for text in texts]) for function in (model.score, model.uncertainty)]
    assert expected[1].min() > 0
    with rmjax.serve(model) as server, server.client() as client:
        for found, values in zip(client.rewards_and_std(texts), expected, strict=True):
            np.testing.assert_allclose(found, values, atol=1e-5)
        card = client.model_card()
        assert card["ensemble"] == {"models": ensemble.split(","), "combination": combination, "beta": 0.5}
        assert "sha256" not in card  # of the first model alone


def test_the_program_reads_ensembles(ensemble):
    serve = importlib.import_module("rmjax.serve")  # the attribute of that name is a function
    assert serve._paths(ensemble.split(",")) == {"reward_model": ensemble}
    assert serve._paths(["a=x", "runs/rate=1", "b=z"]) == {"a": "x,runs/rate=1", "b": "z"}
    for wrong in (["a=x", "a=y"], ["a="], ["=x"], ["a=x", ""]):
        with pytest.raises(InputError, match="expected NAME=PATH for each model, with different names, or NAME=A,B,C"):
            serve._paths(wrong)


def test_models_with_other_tokens_are_not_served_together(ensemble):
    pipeline = rmjax.load(ensemble).pipeline
    other = pipeline.others[0]
    for change, words in (
        ({"tokenizer": dataclasses.replace(other.tokenizer, readout="conversation_mean")}, "must share tokens"),
        ({"max_length": 32}, "max_length 64 and 32"),
    ):
        with pytest.raises(InputError, match=words):
            dataclasses.replace(pipeline, others=(dataclasses.replace(other, **change),)).check_one_tokenizer()
