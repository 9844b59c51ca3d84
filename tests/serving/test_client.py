"""The Python client: arguments, connection failures, retries, errors."""

import asyncio
import concurrent.futures
import http.server
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

from rmjax.serving import AsyncClient, Client, ServerError
from rmjax.serving.app import Server
from rmjax.serving.client import retries
from rmjax.serving.client.http import _seconds
from rmjax.serving.security import Security
from tests.serving.test_faults import certificate, hold, until, waiting


def url(running):
    return f"http://127.0.0.1:{running.http_port}"


def total(text):
    return float(sum(text.encode()))


def test_texts_messages_and_prompts(fakes):
    running = fakes()
    with Client(url(running)) as client:
        texts = [f"text {i}" for i in range(150)]  # three requests
        assert client.rewards(texts).tolist() == [total(text) for text in texts]
        assert client.rewards([]).shape == (0,)
        chat = [{"role": "user", "content": "ab"}]
        assert client.rewards([[*chat, {"role": "assistant", "content": "c"}]]).tolist() == [total("abc")]
        # The EOS of the fake tokenizer is a byte 1; it renders messages by concatenating them.
        assert client.rewards(["c", "d"], prompts=["ab", "ab"]).tolist() == [total("abc") + 1, total("abd") + 1]
        assert client.rewards(["c", "d"], prompts="ab").tolist() == [total("abc") + 1, total("abd") + 1]
        assert client.rewards(["c", "d"], prompts=chat).tolist() == [total("abc"), total("abd")]
        assert client.rewards([], prompts=[]).shape == client.rewards([], prompts="ab").shape == (0,)
        assert client.rewards(np.array(["c", "d"])).tolist() == [total("c"), total("d")]
        assert client.rewards([np.array(chat)]).tolist() == [total("ab")]  # as Parquet files are read
        assert client.reward_function([chat], ["c"], labels=[1]) == [total("abc")]
        assert client.reward_function([chat], [[{"role": "assistant", "content": "c"}]]) == [total("abc")]
        with pytest.warns(UserWarning, match="1 of 1 conversations were longer than the model's maximum"):
            assert client.rewards(["a" * 300], truncate=True).tolist() == [total("a" * 256)]
        with pytest.raises(ServerError, match=r"400: .*300 tokens; expected at most 256"):
            client.rewards(["a" * 300])
        with pytest.raises(ServerError, match=r"answered 400 for conversations 64 to 99: .* row 6 has 300 tokens"):
            client.rewards(["a"] * 70 + ["a" * 300] + ["a"] * 29)


def test_closing_ends_the_calls_of_other_threads():
    client, ended = Client(f"http://127.0.0.1:{free_port()}", wait=600), concurrent.futures.Future()

    def call():
        try:
            client.rewards(["a"])
        except concurrent.futures.CancelledError:
            ended.set_result(None)

    threading.Thread(target=call, daemon=True).start()
    until(lambda: asyncio.all_tasks(client._loop))
    client.close()
    ended.result(60)


CHAT = [{"role": "user", "content": "ab"}]
INVALID = [
    (("A delight.",), TypeError, r"conversations is a str, 'A delight.'; .*: pass a list, \[conversation\]"),
    ((b"bytes",), TypeError, "conversations is a bytes, .*: pass a list"),
    ((CHAT[0],), TypeError, "conversations is a dict, .*: pass a list"),
    ((5,), TypeError, "conversations is a int, 5; .*: pass a list"),
    ((CHAT,), TypeError, r"conversations is one list of messages; .*: pass \[messages\]"),
    ((["a", b"b"],), TypeError, r"conversations\[1\] is b'b'; expected a string or a list of chat messages"),
    ((["a", None],), TypeError, r"conversations\[1\] is None"),
    ((["a", []],), TypeError, r"conversations\[1\] is \[\]"),
    ((["a", CHAT],), TypeError, "conversation 0 is a string, conversation 1 a list of messages"),
    ((["a", "b", "c"], ["p", "q"]), ValueError, "prompts has 2 entries, conversations has 3"),
    ((["a"], []), ValueError, "prompts has 0 entries, conversations has 1"),
    ((["a"], b"p"), TypeError, "prompts is a bytes, .*: pass a list"),
    ((["a"], CHAT[0]), TypeError, "prompts is a dict, .*: pass a list"),
    ((["a", "b"], ["p", CHAT]), TypeError, "conversation 0 is a string, conversation 1 a list of messages"),
    (([CHAT], ["p"]), TypeError, "prompt 0 is a string, its response a list of messages"),
    (("abc", "p"), TypeError, "conversations is a str, 'abc'"),
]


@pytest.mark.parametrize(("arguments", "kind", "words"), INVALID, ids=range(len(INVALID)))
def test_invalid_arguments_are_refused_before_a_request(arguments, kind, words):
    with Client("http://127.0.0.1:1") as client:
        with pytest.raises(kind, match=words):
            client.rewards(*arguments)
        if len(arguments) == 2:
            with pytest.raises(kind, match=words):
                client.reward_function(arguments[1], arguments[0])

    async def rewards():
        async with AsyncClient("http://127.0.0.1:1") as client:
            await client.rewards(*arguments)

    with pytest.raises(kind, match=words):
        asyncio.run(rewards())


def test_names_and_metadata_of_models(fakes):
    running = fakes()
    with Client(url(running)) as client:
        assert repr(client) == f"Client('{url(running)}', 'reward_model')"
        assert client.models() == ["reward_model"]
        assert client.model_card() == {"attributes": ["reward"], "max_length": 256}
    with Client(url(running), "oth/er") as client:
        for call in (client.model_card, lambda: client.rewards(["a"])):
            with pytest.raises(ServerError, match=r"not served|unknown model"):
                call()
    words = r"answered 404: unknown model 'other'; this server has reward_model \(.* argument `model`\)"
    with Client(url(running), "other") as client:
        for call in (client.model_card, lambda: client.rewards(["a"])):
            with pytest.raises(ServerError, match=words):
                call()

    async def body():
        async with AsyncClient(url(running)) as client:
            assert repr(client) == f"AsyncClient('{url(running)}', 'reward_model')"
            assert await client.models() == ["reward_model"]
            assert (await client.model_card())["max_length"] == 256
            assert await client.reward_function("a", ["b"]) == [total("ab") + 1]

    asyncio.run(body())


def test_the_client_imports_neither_jax_nor_data_libraries():
    program = "import sys; from rmjax.serving import Client; Client('http://127.0.0.1:1').close(); print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert not {"jax", "transformers", "datasets", "matplotlib", "grpc", "msgspec"} & set(ended.stdout.split())


def test_concurrent_calls_of_one_event_loop(fakes):
    running = fakes()

    async def body():
        async with AsyncClient(url(running), batch=3, concurrency=4) as client:
            found = await asyncio.gather(*(client.rewards([f"{i} {j}" for j in range(10)]) for i in range(8)))
        np.testing.assert_array_equal(found, [[total(f"{i} {j}") for j in range(10)] for i in range(8)])

    asyncio.run(body())


@pytest.mark.parametrize("address", ["http://127.0.0.1:{.http_port}", "grpc://127.0.0.1:{.grpc_port}"])
def test_overloaded_requests_are_retried(fakes, address):
    running = fakes(queue_size=4)
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        Client(address.format(running), batch=2, timeout=60) as client,
    ):
        held = hold(running, pool)
        texts = [f"text {i}" for i in range(20)]
        rewards = pool.submit(client.rewards, texts)
        until(lambda: running.metric("refused_total", model="reward_model", reason="Overloaded"))
        assert waiting(running) <= 4
        running.fake.gate.set()
        assert rewards.result().tolist() == [total(text) for text in texts]
        held.result()


def test_retries_end_at_the_timeout(fakes, monkeypatch):
    monkeypatch.setattr(retries, "WARN_SECONDS", 0.1)
    running = fakes()
    with Client(url(running), timeout=1.5) as made:
        assert made.rewards(["a"]).tolist() == [97]
        running.stop()
        ends = lambda: pytest.raises(ServerError, match=r"within 1.5 seconds; .*Connect")
        with ends(), pytest.warns(UserWarning, match="retrying for 0 of at most 1.5 seconds; .*the connection failed"):
            made.rewards(["a"])
        with ends(), warnings.catch_warnings():
            warnings.simplefilter("error")  # only one warning per client
            made.rewards(["a"])


def test_bearer_token(fakes):
    running = fakes(security=Security(token="0123456789abcdef"))
    with Client(url(running), token="0123456789abcdef") as client:
        assert client.rewards(["a"]).tolist() == [97]
    with Client(url(running)) as client, pytest.raises(ServerError, match=r"401: the bearer token .*pass token="):
        client.rewards(["a"])
    words = "401: the bearer token .*the token of this client is not the server's"
    with Client(url(running), token="another token") as client, pytest.raises(ServerError, match=words):
        client.rewards(["a"])


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as made:
        return made.getsockname()[1]


class Pages(http.server.BaseHTTPRequestHandler):
    """A web server other than rmjax.serve: an HTML page for any request."""

    status = 200

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.status)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>Jupyter</html>")

    def log_message(self, *_):
        pass


@pytest.fixture
def pages():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def fails(url, words, **options):
    """Asserts that requests fail with these words, and returns the seconds until they do."""
    began = time.monotonic()
    with Client(url, **options) as client:
        for call in (lambda: client.rewards(["a"]), client.models):
            with pytest.raises(ServerError, match=words):
                call()
    return time.monotonic() - began


def test_servers_that_cannot_be_reached_are_errors_at_once(running):
    port = free_port()
    words = rf"^http://127.0.0.1:{port}: the connection failed \(ConnectionRefusedError: .*is the server running\? "
    assert fails(f"http://127.0.0.1:{port}", words + "Start it with python -m rmjax.serve .*wait=SECONDS") < 20
    assert fails("http://no-such-host.invalid:8000", "the host is unknown .*check the URL") < 30
    assert fails(f"https://127.0.0.1:{running.http_port}", "the TLS connection failed .*use http://") < 20
    words = "ended the connection without an HTTP response .*use the server's HTTP port, not its gRPC port"
    assert fails(f"http://127.0.0.1:{running.grpc_port}", words) < 20
    for bad in ("127.0.0.1:8000", "localhost:8000", "ftp://localhost", "grpc://"):
        with pytest.raises(ValueError, match=rf"url is '{bad}'; expected http://HOST:PORT"):
            Client(bad)


@pytest.mark.skipif(not shutil.which("openssl"), reason="certificates are created with the program openssl")
def test_tls_errors_are_raised_at_once(fakes, tmp_path):
    authority, _ = certificate(tmp_path, "authority")
    running = fakes(security=Security.read("", *certificate(tmp_path, "server", "authority")))
    address = f"127.0.0.1:{running.http_port}"
    assert fails(f"https://{address}", r"the TLS connection failed \(SSLCertVerificationError: .*pass verify=") < 20
    assert fails(f"http://{address}", "ended the connection without an HTTP response .*https:// for a server with") < 20
    with Client(f"https://{address}", verify=ssl.create_default_context(cafile=authority)) as client:
        assert client.rewards(["a"]).tolist() == [97]


@pytest.mark.parametrize("status", [200, 404, 501])
def test_other_servers_on_the_port_are_recognized(pages, monkeypatch, status):
    monkeypatch.setattr(Pages, "status", status)
    words = rf"127.0.0.1:{pages} answered {status} with text/html, '<html>Jupyter</html>'.* is another server"
    assert fails(f"http://127.0.0.1:{pages}", words) < 20


def test_a_client_waits_for_a_server_that_is_starting(fakes):
    running, port = fakes(), free_port()
    address = f"http://127.0.0.1:{port}"
    assert 0.4 < fails(address, "no success within 0.5 seconds; .*the connection failed", wait=0.5, timeout=0.1) < 20
    with concurrent.futures.ThreadPoolExecutor() as pool, Client(address, wait=30, batch=2) as client:
        rewards = pool.submit(client.rewards, ["a"] * 9)
        time.sleep(0.5)
        assert not rewards.done()

        async def start():
            server = Server(running.registry, "127.0.0.1", 0, port)
            await server.start()
            return server

        server = running.call(start())
        assert rewards.result(60).tolist() == [97] * 9
        running.call(server.http.stop())
        running.call(server.grpc.stop())


def test_retry_after_with_a_date_is_ignored():
    assert _seconds("3") == 3
    assert _seconds("Wed, 21 Oct 2026 07:28:00 GMT") == _seconds("") == 0
