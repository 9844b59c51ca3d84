"""The Python client over gRPC: the same rewards and errors as over HTTP; retries are tested with those over HTTP."""

import concurrent.futures
import shutil

import numpy as np
import pytest

from rmjax.serving import Client, ServerError
from rmjax.serving.app import Server
from rmjax.serving.security import Security
from tests.serving.test_client import CHAT, fails, free_port, total
from tests.serving.test_faults import certificate


def url(running):
    return f"grpc://127.0.0.1:{running.grpc_port}"


def test_rewards_and_metadata_are_those_over_http(fakes):
    running = fakes()
    with Client(url(running)) as client, Client(f"http://127.0.0.1:{running.http_port}") as http:
        texts = [f"text {i} ä" for i in range(150)]  # three requests
        for arguments in ((texts,), ([],), (["c", "d"], "ab"), (["c", "d"], CHAT), ([CHAT],)):
            np.testing.assert_array_equal(client.rewards(*arguments), http.rewards(*arguments))
        assert client.reward_function([CHAT], ["c"]) == [total("abc")]
        with pytest.warns(UserWarning, match="1 of 1 conversations were longer than the model's maximum"):
            assert client.rewards(["a" * 300], truncate=True).tolist() == [total("a" * 256)]
        assert client.models() == http.models()
        assert client.model_card() == http.model_card()


def test_refused_requests(fakes):
    running = fakes(security=Security(token="0123456789abcdef"))
    with Client(url(running), token="0123456789abcdef") as client:
        assert client.rewards(["a"]).tolist() == [97]
        words = r"INVALID_ARGUMENT for conversations 64 to 99: .* row 6 has 300 tokens"
        with pytest.raises(ServerError, match=words):
            client.rewards(["a"] * 70 + ["a" * 300] + ["a"] * 29)
    with Client(url(running), "other", token="0123456789abcdef") as client:
        for call in (client.model_card, lambda: client.rewards(["a"])):
            with pytest.raises(ServerError, match=r"NOT_FOUND: unknown model 'other'; .* argument `model`\)"):
                call()
    with Client(url(running)) as client, pytest.raises(ServerError, match=r"the bearer token .*pass token="):
        client.rewards(["a"])


def test_servers_that_cannot_be_reached_are_errors_at_once(fakes):
    running = fakes()
    fails(f"grpc://127.0.0.1:{free_port()}", r"the connection failed .*is the server running, .*wait=SECONDS")
    fails(f"grpc://127.0.0.1:{running.http_port}", r"the connection failed .*is this its gRPC port\?")
    with pytest.raises(
        ValueError, match=r"unknown options \['limits'\] of a client over gRPC; expected verify and cert"
    ):
        Client(url(running), limits=1)


def test_a_client_waits_for_a_server_that_is_starting(fakes):
    running, port = fakes(), free_port()
    with concurrent.futures.ThreadPoolExecutor() as pool, Client(f"grpc://127.0.0.1:{port}", wait=60) as client:
        rewards = pool.submit(client.rewards, ["a"] * 9)

        async def start():
            server = Server(running.registry, "127.0.0.1", port, 0)
            await server.start()
            return server

        server = running.call(start())
        assert rewards.result(60).tolist() == [97] * 9
        running.call(server.http.stop())
        running.call(server.grpc.stop())


@pytest.mark.skipif(not shutil.which("openssl"), reason="certificates are created with the program openssl")
def test_tls(fakes, tmp_path):
    authority, _ = certificate(tmp_path, "authority")
    running = fakes(security=Security.read("", *certificate(tmp_path, "server", "authority")))
    address = f"127.0.0.1:{running.grpc_port}"
    with Client(f"grpcs://{address}", verify=str(authority)) as client:
        assert client.rewards(["a"]).tolist() == [97]
    fails(f"grpcs://{address}", "the connection failed")
    fails(f"grpc://{address}", "the connection failed .*use grpcs://")
