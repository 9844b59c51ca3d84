"""Unmodified clients of other projects, in the interpreters that have them installed."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from rmjax.data.tokens.trees import make_tree
from tests.serving.peer_clients import TEXTS

# Interpreters with nvidia-pytriton, separated by colons; also this one if it has the HTTP client of tritonclient.
INTERPRETERS = [path for path in os.environ.get("RMJAX_PEERS", "").split(":") if path]
if importlib.util.find_spec("geventhttpclient"):
    INTERPRETERS.append(sys.executable)


@pytest.mark.parametrize("interpreter", INTERPRETERS or [""])
def test_unmodified_clients_get_the_rewards_of_the_scorer(running, interpreter):
    if not interpreter:
        pytest.skip("no interpreter with tritonclient[http]; name some with nvidia-pytriton in RMJAX_PEERS")
    program = pathlib.Path(__file__).with_name("peer_clients.py")
    command = [interpreter, str(program), str(running.http_port), str(running.grpc_port)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert not ended.returncode, ended.stderr
    trees = [make_tree([tokens]) for tokens in running.tokenizer.encode(TEXTS, False)]
    expected = np.concatenate(running.scorer.score(trees))[:, 0]
    for client, rewards in json.loads(ended.stdout.splitlines()[-1]).items():
        np.testing.assert_allclose(rewards, expected, atol=1e-5, err_msg=client)
