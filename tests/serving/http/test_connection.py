"""The internals of uvicorn that rmjax.serving.http.connection relies on."""

import asyncio
import functools
import inspect
import re
from unittest import mock

import pytest
import uvicorn
from uvicorn.protocols.http import httptools_impl
from uvicorn.server import ServerState

from tests.conftest import ROOT

FIX = "check rmjax/serving/http/connection.py against this version of uvicorn, or narrow its range in setup.cfg"


def version(text):
    return tuple(int(part) for part in text.split(".")[:2])


def test_the_installed_version_is_in_the_range_of_setup_cfg():
    low, high = re.search(r"uvicorn>=([\d.]+),<([\d.]+)", (ROOT / "setup.cfg").read_text()).groups()
    assert version(low) <= version(uvicorn.__version__) < version(high), FIX


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("connection_made", ["transport"]),
        ("connection_lost", ["exc"]),
        ("data_received", ["data"]),
        ("on_message_begin", []),
        ("on_headers_complete", []),
        ("send_400_response", ["msg"]),
    ],
)
def test_overridden_methods(name, parameters):
    method = getattr(httptools_impl.HttpToolsProtocol, name, None)
    assert method is not None, FIX
    assert list(inspect.signature(method).parameters) == ["self", *parameters], FIX


def test_attributes_and_the_task_of_a_request():
    calls = []

    async def app(scope, receive, send):
        calls.append((scope["path"], asyncio.current_task()))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answered"})

    async def body():
        config = uvicorn.Config("unused:app", http="httptools", ws="none", lifespan="off", log_config=None)
        config.loaded, config.loaded_app, config.interface, config.ws_protocol_class = True, app, "asgi3", None
        transport = mock.MagicMock(spec=asyncio.Transport)
        transport.get_extra_info.return_value = None
        transport.is_closing.return_value = False
        protocol = httptools_impl.HttpToolsProtocol(config, ServerState(), {})
        protocol.connection_made(transport)
        assert protocol.loop is asyncio.get_running_loop(), FIX
        assert (protocol.transport, protocol.app) == (transport, app), FIX
        protocol.app = functools.partial(app)  # `app` is read for each request
        protocol.data_received(b"GET /path HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0.01)
        ((path, task),) = calls
        assert (path, task is not asyncio.current_task()) == ("/path", True), FIX
        assert b"answered" in b"".join(call.args[0] for call in transport.write.call_args_list), FIX

    asyncio.run(body())


def test_status_lines_and_server_attributes():
    assert {status: httptools_impl.STATUS_LINE[status].split()[:2] for status in (400, 408, 431)} == {
        status: [b"HTTP/1.1", str(status).encode()] for status in (400, 408, 431)
    }, FIX
    config = uvicorn.Config(mock.Mock(), lifespan="off", log_config=None)
    config.load()
    assert config.ssl is None, FIX  # replaced by HttpServer after loading
    server = uvicorn.Server(config)
    assert (server.started, server.should_exit) == (False, False), FIX
    assert callable(server.capture_signals), FIX
