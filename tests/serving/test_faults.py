"""Overload, deadlines, disconnects, limits, authentication, reloads and shutdown of a server.

Invalid requests are tested in http/test_server.py and grpc/test_server.py.
"""

import asyncio
import concurrent.futures
import contextlib
import pathlib
import shutil
import socket
import ssl
import subprocess
import threading
import time

import grpc
import httpx2
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from rmjax.core.errors import InputError
from rmjax.serving.grpc import server as grpc_server
from rmjax.serving.http import connection, server
from rmjax.serving.metrics import ModelMetrics
from rmjax.serving.security import Security
from tests.serving.conftest import Fake

INFER = "/v2/models/reward_model/infer"
CODE = grpc.StatusCode


def body(*texts, **parameters):
    return {
        "inputs": [{"name": "sentences", "datatype": "BYTES", "shape": [len(texts), 1], "data": list(texts)}],
        "parameters": parameters,
    }


def message(*texts, **parameters):
    request = service_pb2.ModelInferRequest(model_name="reward_model")
    tensor = request.inputs.add(name="sentences", datatype="BYTES", shape=[len(texts), 1])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    for name, value in parameters.items():
        request.parameters[name].int64_param = value
    return request


def stub(running):
    return service_pb2_grpc.GRPCInferenceServiceStub(running.channel)


def until(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 60 seconds")


def hold(running, pool):
    """Occupies the model with one request until its gate opens."""
    running.fake.gate.clear()
    running.fake.began.clear()
    future = pool.submit(running.http.post, INFER, json=body("held"))
    assert running.fake.began.wait(60)
    return future


def waiting(running):
    return running.metric("queue_sequences", model="reward_model")


@pytest.fixture
def pool():
    with concurrent.futures.ThreadPoolExecutor(64) as made:
        yield made


def test_overload_responses_have_a_retry_time(fakes, pool):
    running = fakes(queue_size=4)
    held = hold(running, pool)
    others = [pool.submit(running.http.post, INFER, json=body("a", "b")) for _ in range(2)]
    until(lambda: waiting(running) == 4)
    for path, given in ((INFER, body("c")), ("/get_reward", {"query": ["c"]})):
        answer = running.http.post(path, json=given)
        assert answer.status_code == 503
        assert "are queued" in answer.json()["error"]
        assert int(answer.headers["retry-after"]) >= 1
    with pytest.raises(grpc.RpcError) as raised:
        stub(running).ModelInfer(message("c"))
    assert raised.value.code() == CODE.RESOURCE_EXHAUSTED
    assert int(dict(raised.value.trailing_metadata())["grpc-retry-pushback-ms"]) >= 100
    running.fake.gate.set()
    assert [future.result().status_code for future in (held, *others)] == [200] * 3
    assert running.metric("refused_total", model="reward_model", reason="Overloaded") == 3
    assert b"c" not in running.fake.scored


def test_expired_requests_are_never_executed(fakes, pool):
    running = fakes()
    held = hold(running, pool)
    answer = running.http.post(INFER, json=body("late", timeout=20_000))
    assert answer.status_code == 504
    assert "deadline" in answer.json()["error"]
    for request, options in ((message("late", timeout=20_000), {}), (message("late"), {"timeout": 0.05})):
        with pytest.raises(grpc.RpcError) as raised:
            stub(running).ModelInfer(request, **options)
        assert raised.value.code() == CODE.DEADLINE_EXCEEDED
    until(lambda: waiting(running) == 0)
    running.fake.gate.set()
    assert held.result().status_code == 200
    assert running.fake.scored == [b"held"]
    # The label is read by dashboards and independent of the class name. gRPC may cancel the last call by itself.
    assert running.metric("refused_total", model="reward_model", reason="DeadlinePassed") in (2, 3)


def test_requests_of_cancelled_and_disconnected_clients_are_never_executed(fakes, pool):
    running = fakes()
    held = hold(running, pool)
    call = stub(running).ModelInfer.future(message("gone"))
    stream = stub(running).ModelStreamInfer(iter([message("gone"), message("gone")]))
    disconnecting = socket.create_connection(("127.0.0.1", running.http_port))
    content = b'{"query": ["gone"]}'
    head = b"POST /get_reward HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(content)
    disconnecting.sendall(head + content)
    until(lambda: waiting(running) == 4)
    call.cancel()
    stream.cancel()
    disconnecting.close()
    until(lambda: waiting(running) == 0)
    running.fake.gate.set()
    assert held.result().status_code == 200
    assert running.fake.scored == [b"held"]
    assert running.metric("refused_total", model="reward_model", reason="CancelledError") == 4


def test_of_32_requests_only_the_poisoned_one_fails(fakes, pool):
    running = fakes()
    held = hold(running, pool)
    texts = [f"text {i}" for i in range(31)]
    good = [pool.submit(running.http.post, INFER, json=body(text)) for text in texts]
    poisoned = pool.submit(running.http.post, INFER, json=body("nan\0"))
    until(lambda: waiting(running) == 32)
    running.fake.gate.set()
    held.result()
    for text, future in zip(texts, good, strict=True):
        assert future.result().json()["outputs"][0]["data"] == [sum(text.encode())]
    assert poisoned.result().status_code == 500
    assert "not finite" in poisoned.result().json()["error"]


def test_a_failing_model_leaks_nothing(fakes):
    running = fakes()
    secret = "the secret path of the server"

    def fail(*_):
        raise RuntimeError(secret)

    running.registry.get("reward_model").engine._score = fail
    answer = running.http.post(INFER, json=body("a"))
    assert answer.status_code == 500
    assert secret not in answer.text
    with pytest.raises(grpc.RpcError) as raised:
        stub(running).ModelInfer(message("a"))
    assert raised.value.code() == CODE.INTERNAL
    assert secret not in raised.value.details()


def test_large_and_slow_requests(fakes, monkeypatch):
    monkeypatch.setattr(server, "_BODY_SECONDS", 0.2)
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(server, "_MAX_BODY", 1000)
    running = fakes()

    def send(*parts, end=b""):
        with socket.create_connection(("127.0.0.1", running.http_port)) as client, contextlib.suppress(OSError):
            client.settimeout(10)
            for part in parts:
                client.sendall(part)
            return client.recv(1 << 16)
        return b"reset"

    post = b"POST /get_reward HTTP/1.1\r\nHost: localhost\r\n"
    assert b" 413 " in send(post + b"Content-Length: 1001\r\n\r\n")
    assert b" 413 " in send(post + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"a" * 1024 + b"\r\n")
    assert b" 408 " in send(post + b"Content-Length: 100\r\n\r\nnever")
    assert b" 408 " in send(b"POST /get_reward HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    assert b" 408 " in send()
    with socket.create_connection(("127.0.0.1", running.http_port), timeout=10) as client:
        for end, status in ((b"\r\n", b" 200 "), (b"X-Slow: ", b" 408 ")):  # the second request of a connection
            client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n" + end)
            assert status in client.recv(1 << 16)
    many = [b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(2000)]
    assert b" 431 " in (found := send(b"GET / HTTP/1.1\r\n", *many)) or found == b"reset"
    assert b" 400 " in (found := send(b"\x16\x03\x01 not HTTP\r\n\r\n"))
    assert b'{"error": ' in found
    assert running.http.post("/get_reward", json={"query": ["fine"]}).status_code == 200


def test_cross_site_requests_are_refused(fakes):
    running = fakes()
    load = "/v2/repository/models/reward_model/load"
    assert running.http.post(load, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert running.http.post(load, headers={"sec-fetch-site": "same-origin"}).status_code == 200
    assert running.http.post(load, json={"parameters": {"config": "{}"}}).status_code == 400


def test_bearer_token(fakes, tmp_path):
    (tmp_path / "token").write_text("0123456789abcdef\n")
    running = fakes(security=Security.read(str(tmp_path / "token")))
    good, bad = {"authorization": "Bearer 0123456789abcdef"}, {"authorization": "Bearer 0123456789abcdeF"}
    for headers in ({}, bad, {"authorization": "Basic 0123456789abcdef"}, {"authorization": "Bearer \xff"}):
        answer = running.http.post(INFER, json=body("a"), headers={k: v.encode("latin1") for k, v in headers.items()})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert running.http.get("/metrics").status_code == 401
    assert running.http.get("/v2/health/ready").status_code == running.http.get("/").status_code == 200
    assert running.http.post(INFER, json=body("a"), headers=good).status_code == 200
    infer = stub(running).ModelInfer
    for metadata in ((), tuple(bad.items())):
        with pytest.raises(grpc.RpcError, match="bearer token") as raised:
            infer(message("a"), metadata=metadata)
        assert raised.value.code() == CODE.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as raised:
            list(stub(running).ModelStreamInfer(iter([message("a")]), metadata=metadata))
        assert raised.value.code() == CODE.UNAUTHENTICATED
    assert len(infer(message("a"), metadata=tuple(good.items())).outputs) == 2
    assert not running.fake.scored[2:]
    for content, words in (("short", "5 characters"), (None, "cannot be read")):
        path = tmp_path / "other"
        path.unlink(missing_ok=True)
        if content:
            path.write_text(content)
        with pytest.raises(InputError, match=words):
            Security.read(str(path))


# The extensions that VERIFY_X509_STRICT requires, which Python 3.13 sets by default.
OPENSSL_CONFIG = """
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
[peer]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = IP:127.0.0.1, DNS:localhost
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
"""


def certificate(directory, name, authority=None):
    """Creates a key and a certificate: of a certificate authority, or signed by `authority`."""
    key, path, config = directory / f"{name}.key", directory / f"{name}.pem", directory / "openssl.cnf"
    config.write_text(OPENSSL_CONFIG)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(path), "-config", str(config)]
    command += ["-extensions", "peer" if authority else "authority"]
    if authority:
        command += ["-CA", str(directory / f"{authority}.pem"), "-CAkey", str(directory / f"{authority}.key")]
    subprocess.run(command, check=True, capture_output=True)
    return str(path), str(key)


@pytest.mark.skipif(not shutil.which("openssl"), reason="certificates are created with the program openssl")
def test_mutual_tls(fakes, tmp_path):
    authority, _ = certificate(tmp_path, "authority")
    own, mine, strange = (
        certificate(tmp_path, *names) for names in (("server", "authority"), ("client", "authority"), ("stranger",))
    )
    running = fakes(security=Security.read("", *own, authority))
    url = f"https://127.0.0.1:{running.http_port}"

    def http(pair):
        context = ssl.create_default_context(cafile=authority)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if pair:
            context.load_cert_chain(*pair)
        with httpx2.Client(verify=context, trust_env=False) as client:
            return client.post(url + INFER, json=body("a")).status_code

    def rpc(pair):
        read = lambda path: pathlib.Path(path).read_bytes()
        parts = [read(authority), *((read(pair[1]), read(pair[0])) if pair else (None, None))]
        with grpc.secure_channel(f"127.0.0.1:{running.grpc_port}", grpc.ssl_channel_credentials(*parts)) as channel:
            return len(service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message("a"), timeout=60).outputs)

    assert (http(mine), rpc(mine)) == (200, 2)
    for pair in (None, strange):
        with pytest.raises(httpx2.TransportError):
            http(pair)
        with pytest.raises(grpc.RpcError):
            rpc(pair)
    with pytest.raises(httpx2.TransportError):
        httpx2.get(url.replace("https", "http"), trust_env=False)
    for arguments, words in (
        (("", own[0]), "go together"),
        (("", "", "", authority), "needs --tls_cert"),
        (("", own[0], mine[1]), "cannot be used"),
        (("", "no", "no"), "cannot be used"),
    ):
        with pytest.raises(InputError, match=words):
            Security.read(*arguments)


def test_a_reload_loses_no_request(fakes, pool):
    running = fakes()
    first, second = running.fake, Fake()
    held = hold(running, pool)
    queued = [pool.submit(running.http.post, INFER, json=body(f"old {i}")) for i in range(8)]
    until(lambda: waiting(running) == 8)
    running.registry._loaders["reward_model"] = second.load
    assert running.http.post("/v2/repository/models/reward_model/load").status_code == 200
    assert running.http.post(INFER, json=body("new")).status_code == 200  # while the old model is still busy
    first.gate.set()
    assert [future.result().status_code for future in (held, *queued)] == [200] * 9
    assert len(first.scored) == 9
    assert second.scored == [b"new"]

    def broken(_):
        raise InputError("config.json is missing")

    running.registry._loaders["reward_model"] = broken
    answer = running.http.post("/v2/repository/models/reward_model/load")
    assert answer.status_code == 400
    assert "the old one continues to serve: config.json is missing" in answer.json()["error"]
    assert running.http.post(INFER, json=body("still")).status_code == 200
    assert running.http.post("/v2/repository/models/other/load").status_code == 404


@pytest.mark.parametrize("frontend", ["http", "grpc"])
def test_a_request_is_parsed_and_scored_by_one_model(fakes, pool, monkeypatch, frontend):
    """A model that is replaced between parsing and inference scores the request, and is closed only afterwards."""
    running, second = fakes(), Fake()
    first, registry = running.fake, running.registry
    old = registry._models["reward_model"]
    new = type(old)(second.load(ModelMetrics(registry.metrics, "reward_model")))
    running.call(new.model.start())
    module = server if frontend == "http" else grpc_server
    name = "read_infer" if frontend == "http" else "read_inputs"
    read = getattr(module, name)

    def read_and_replace(*arguments):
        found = read(*arguments)
        registry._models["reward_model"] = new
        return found

    monkeypatch.setattr(module, name, read_and_replace)
    first.gate.clear()
    infer = lambda text: (
        running.http.post(INFER, json=body(text)) if frontend == "http" else stub(running).ModelInfer(message(text))
    )
    response = pool.submit(infer, "a")
    assert first.began.wait(60)
    closing = asyncio.run_coroutine_threadsafe(old.close(), running.loop)
    infer("b")
    assert not closing.done()
    first.gate.set()
    response.result()
    closing.result(60)
    assert (first.scored, second.scored) == ([b"a"], [b"b"])
    assert running.metric("requests_total", model="reward_model") == 2


def test_grpc_cancels_none_of_1500_calls_at_once(fakes):
    running = fakes(queue_size=2048, queue_tokens=1 << 16)
    infer, request = stub(running).ModelInfer, message("abc")
    calls = [infer.future(request) for _ in range(1500)]
    assert all(len(call.result().outputs) == 2 for call in calls)


def test_draining_answers_200_requests_in_flight(fakes):
    running = fakes(queue_size=256)
    with (
        concurrent.futures.ThreadPoolExecutor(201) as pool,
        httpx2.Client(
            base_url=str(running.http.base_url), limits=httpx2.Limits(max_connections=200), timeout=60, trust_env=False
        ) as client,
    ):
        running.http = client
        held = hold(running, pool)
        http = [pool.submit(client.post, INFER, json=body(f"http {i}")) for i in range(100)]
        rpc = [stub(running).ModelInfer.future(message(f"grpc {i}")) for i in range(100)]
        until(lambda: waiting(running) == 200)
        stopping = pool.submit(running.stop)
        until(lambda: not accepts(running.http_port))
        running.fake.gate.set()
        stopping.result(30)
        assert [future.result().status_code for future in (held, *http)] == [200] * 101
        assert all(len(future.result().outputs) == 2 for future in rpc)


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_a_panic_of_the_tokenizer_fails_only_its_request(fakes):
    class Panic(BaseException):
        """As the tokenizers library's own, not a subclass of Exception."""

    running = fakes()
    encode = running.fake.encode

    def panics(texts, add_eos):
        if "bad" in texts:
            raise Panic
        return encode(texts, add_eos)

    running.fake.encode = panics
    assert running.http.post(INFER, json=body("bad")).status_code == 500
    assert running.http.post(INFER, json=body("good")).status_code == 200


def test_deadlines_apply_to_requests_queued_for_the_tokenizer(fakes):
    running, going = fakes(), threading.Event()
    encode = running.fake.encode
    running.fake.encode = lambda texts, add_eos: going.wait(10) and encode(texts, add_eos)
    assert running.http.post(INFER, json=body("late", timeout=20_000)).status_code == 504
    going.set()
    assert running.http.post(INFER, json=body("next")).status_code == 200
    assert b"late" not in running.fake.scored


def test_open_streams_and_health_watches_do_not_delay_shutdown(fakes):
    running, more = fakes(), threading.Event()

    def requests():
        yield message("a")
        more.wait(20)

    answers = stub(running).ModelStreamInfer(requests())
    assert not next(answers).error_message
    watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest())
    next(watch)
    began = time.monotonic()
    running.stop()
    assert time.monotonic() - began < 15
    more.set()


def test_the_requests_of_a_cancelled_stream_leave_the_queue(fakes):
    running = fakes(queue_size=256)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        held = hold(running, pool)
        stream = stub(running).ModelStreamInfer(iter([message(f"gone{i}") for i in range(100)]))
        until(lambda: waiting(running) == 64)
        stream.cancel()
        until(lambda: waiting(running) == 0)
        running.fake.gate.set()
        assert held.result().status_code == 200
    assert not any(text.startswith(b"gone") for text in running.fake.scored)


def test_announced_bodies_do_not_exclude_other_clients(fakes):
    running = fakes()
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), 128 << 20)
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", running.http_port), timeout=10))
            idle.sendall(head)
        assert running.http.post(INFER, json=body("a")).status_code == 200


def test_a_load_continues_after_its_client_timed_out(fakes):
    running, going, begun = fakes(), threading.Event(), []
    load, first = running.fake.load, running.fake

    def slow(metrics):
        begun.append(1)
        assert going.wait(20)
        return load(metrics)

    running.registry._loaders["reward_model"] = slow
    path, before = "/v2/repository/models/reward_model/load", running.registry.get("reward_model")
    for _ in range(2):
        with pytest.raises(httpx2.TimeoutException):
            running.http.post(path, timeout=0.2)
    going.set()
    until(lambda: running.registry.get("reward_model") is not before)
    assert begun == [1]
    assert first.gate.is_set()
