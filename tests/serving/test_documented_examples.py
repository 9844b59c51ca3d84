"""The Python examples of the documentation run, against a server and an artifact of a tiny random model."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.core import config as configs
from rmjax.training import objectives
from tests.conftest import ROOT


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE)


def run(code, **names):
    exec(compile(code, "documentation", "exec"), names)
    return names


@pytest.fixture
def run_against_server(running):
    """Runs a block with the ports of the running server."""
    ports = {"127.0.0.1:8000": f"127.0.0.1:{running.http_port}", "127.0.0.1:8001": f"127.0.0.1:{running.grpc_port}"}

    def run_block(code):
        return run(re.sub("|".join(map(re.escape, ports)), lambda match: ports[match[0]], code))

    return run_block


def test_examples_of_clients_agree_on_the_rewards(run_against_server):
    own, trl, plain, openrlhf, verl, triton = map(run_against_server, python_blocks("howto/clients.md"))
    assert own["same"].shape == (2,)
    assert "attributes" in own["card"]
    with_eos = [*trl["rewards"], openrlhf["found"]["rewards"][0], *plain["rewards"]]
    np.testing.assert_allclose(with_eos, own["same"][0], atol=1e-5)
    np.testing.assert_allclose([verl["score"], triton["rewards"][0, 0]], own["whole"][0], atol=1e-5)


@pytest.fixture
def with_artifact(make_artifact, tmp_path, monkeypatch):
    """Makes runs/first/artifact in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "artifact").symlink_to(make_artifact(1))


def test_the_page_for_assistants(with_artifact, run_against_server):
    model, config, client = python_blocks("llms.md")
    found = run(model)
    assert found["rewards"].shape == (2,)
    assert found["many"][0].shape == (2,)
    assert found["accuracy"] in (0.0, 1.0)
    assert run(config)["config"].lora.rank == 16
    assert run_against_server(client)["rewards"].shape == (2,)


def test_the_example_of_troubleshooting(with_artifact, capsys):
    (code,) = python_blocks("troubleshooting.md")
    run(code)
    assert "⟦" in capsys.readouterr().out


def test_the_example_of_an_objective(monkeypatch):
    monkeypatch.setattr(objectives, "TERMS", dict(objectives.TERMS))
    function, record, _ = python_blocks("howto/objective.md")
    run(record, hinge=run(function)["hinge"])
    config = configs.default().objective
    config.name = "hinge"
    _, loss = objectives.make_objective(config).losses["hinge"]
    rewards = jnp.array([0.5, 0.25, 3.0, 1.0]).reshape(1, 4, 1)
    batch = {"edge_winner": jnp.array([[0, 2, 0]]), "edge_loser": jnp.array([[1, 3, 0]])}
    total, weight = loss(rewards, batch | {"edge_weight": jnp.array([[1.0, 1.0, 0.0]])})
    assert (float(total), float(weight)) == (0.75, 2.0)


def test_the_examples_of_data_formats():
    _, edges = python_blocks("howto/data_format.md")
    found = run(edges)["parse"]({"prompt": "p", "texts": ["a", "b", "c"]})
    assert found.conversations == ("pa", "pb", "pc")
    assert [edge.margin for edge in found.edges] == [0.0, 1.0]
