"""The program rmjax.serve: flags, ports, signals."""

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time

import httpx2
import jax
import pytest

from rmjax.core.errors import InputError
from rmjax.models import artifact
from rmjax.serving import Client
from tests.serving.test_client import free_port
from tests.serving.test_faults import body


@pytest.fixture(scope="module")
def model(tiny_scorer, tmp_path_factory):
    """An artifact of the tiny model."""
    scorer, tokenizer = tiny_scorer
    path = tmp_path_factory.mktemp("model") / "artifact"
    path.mkdir()
    tokenizer.save(path)
    params = scorer.model.init(jax.random.key(0))
    artifact.write(path, scorer.model, params, tokenizer.base.pad_token_id, {"max_length": 64, "strings": "joined"})
    return str(path)


@pytest.fixture
def programs():
    """Starts servers: `programs(*flags)` returns (process, gRPC port, HTTP port) after warm-up."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with contextlib.ExitStack() as stack:

        def run(*flags):
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            process = subprocess.Popen(
                [sys.executable, "-m", "rmjax.serve", *flags],
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            lines = []
            while not (lines and lines[-1].startswith("HTTP on ")):
                if not (line := process.stdout.readline()):
                    log.seek(0)
                    pytest.fail(log.read())
                lines.append(line)
            grpc, http = (int(line.rsplit(":", 1)[1]) for line in lines[-2:])
            return process, grpc, http

        yield run


@pytest.mark.filterwarnings("ignore:.* retrying for")  # a slow machine takes longer to start the server
def test_clients_wait_for_a_starting_server_and_survive_a_restart(programs, model, tmp_path):
    port, texts = free_port(), [f"text {i}" for i in range(200)]
    address = f"http://127.0.0.1:{port}"
    with concurrent.futures.ThreadPoolExecutor() as pool, Client(address, batch=2, wait=120) as client:
        early = pool.submit(client.rewards, texts)
        first, _, _ = programs(f"--model={model}", "--grpc_port=0", f"--http_port={port}")
        expected = early.result(120)
        rewards = pool.submit(client.rewards, texts * 4)
        time.sleep(0.05)
        first.kill()
        first.wait()
        assert not rewards.done()
        models = f"--model=reward_model={model},two={model}"
        critic = (f"--critic={model}", f"--critic_dir={tmp_path}", "--combine_rm_and_critic")
        second, _, _ = programs(models, "--grpc_port=0", f"--http_port={port}", "--truncate", *critic)
        assert rewards.result(120).reshape(4, -1) == pytest.approx(expected[None].repeat(4, 0), abs=1e-5)

    # The second server has several models, and runs with --truncate.
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http:
        metadata = http.get("/v2/models/two").json()
        assert metadata["parameters"]["max_length"] == 64
        assert [output["name"] for output in metadata["outputs"]] == ["rewards", "exceeded"]
        answer = http.post("/v2/models/two/infer", json=body("a" * 99)).json()
        assert {output["name"]: output["data"] for output in answer["outputs"]}["exceeded"] == [1]
        found = http.post("/v2/models/critic_infer/infer", json=body("abc", "a")).json()
        assert {output["name"]: output["shape"] for output in found["outputs"]} == {
            "values": [2, 3],
            "rewards": [2, 1],
            "exceeded": [2, 1],
        }
        assert http.post("/v2/repository/models/two/load").status_code == 200
        assert http.post("/v2/models/two/infer", json=body("a")).status_code == 200
        assert 'compilations_after_warm_up_total{model="two"} 0.0' in http.get("/metrics").text
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 0
    assert "draining" in second.stdout.read()


def test_a_bad_model_is_a_one_line_error():
    command = [sys.executable, "-m", "rmjax.serve", "--model=/no/such/place"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "no such directory" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_critic_needs_a_directory(run_main):
    with pytest.raises(InputError, match="--critic needs --critic_dir"):
        run_main("serve", "--critic=x")
