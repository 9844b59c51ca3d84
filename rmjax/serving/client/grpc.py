"""The client's requests over gRPC."""

import json
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from google.protobuf import message
from tritonclient.grpc import service_pb2

from rmjax.serving.client.retries import Failure, ServerError
from rmjax.serving.client.transport import START, Answer, refusal_fix

_SERVICE = "/inference.GRPCInferenceService/"
_MAX_MESSAGE = 128 << 20  # bytes, as the server's
_STATUS = {grpc.StatusCode.UNAUTHENTICATED: 401, grpc.StatusCode.NOT_FOUND: 404}
_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)
_PUSHBACK = "grpc-retry-pushback-ms"
_SERVER = "rmjax-server"  # metadata of the server's errors; errors without it are of the connection


class GrpcTransport:
    """A channel to a server's gRPC port; see `Transport`.

    Args:
      address: HOST:PORT.
      tls: whether the server has TLS.
      verify: PEM file of the CA that signed the server's certificate; True: the system's.
      cert: PEM files of the client's certificate and its key (mutual TLS).
    """

    def __init__(
        self,
        address: str,
        model: str,
        token: str,
        tls: bool,
        verify: str | bool = True,
        cert: Sequence[str] | None = None,
    ):
        self._address, self._model, self._token = address, model, token
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        read = lambda path: pathlib.Path(path).read_bytes()
        roots = read(verify) if isinstance(verify, str) else None
        chain, key = (read(cert[0]), read(cert[1])) if cert else (None, None)
        self._credentials = grpc.ssl_channel_credentials(roots, key, chain) if tls else None
        self._channel: grpc.aio.Channel | None = None

    def _connected(self) -> grpc.aio.Channel:
        """Returns the channel, which is made in the event loop that uses it."""
        if self._channel is None:
            options = [
                ("grpc.max_receive_message_length", _MAX_MESSAGE),
                ("grpc.max_send_message_length", _MAX_MESSAGE),
                ("grpc.initial_reconnect_backoff_ms", 100),  # a server that is starting is found soon
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.enable_http_proxy", 0),
            ]
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(self._address, options)
            else:
                self._channel = grpc.aio.secure_channel(self._address, self._credentials, options)
        return self._channel

    async def infer(
        self, name: str, data: list[str], parameters: dict[str, bool], std: bool, left: float, rows: str = ""
    ) -> Answer:
        """Returns the rewards of the strings in the input tensor `name`; see `Transport`."""
        request = service_pb2.ModelInferRequest(model_name=self._model)
        request.inputs.add(name=name, datatype="BYTES", shape=[len(data), 1])
        texts = [text.encode() for text in data]
        request.raw_input_contents.append(b"".join(struct.pack("<I", len(text)) + text for text in texts))
        for output in ("rewards", "exceeded", *(["reward_std"] if std else [])):
            request.outputs.add(name=output)
        for key, value in parameters.items():
            request.parameters[key].bool_param = value
        found = await self._call("ModelInfer", request, service_pb2.ModelInferResponse, left, rows)
        rewards, exceeded, *deviations = found.raw_output_contents
        read = lambda raw: np.frombuffer(raw, "<f4").reshape(found.outputs[0].shape)
        return Answer(
            read(rewards),
            np.frombuffer(exceeded, "<i4").astype(bool),
            found.parameters["left_out"].string_param if "left_out" in found.parameters else "",
            read(deviations[0]) if std else None,
        )

    async def model_card(self, left: float) -> dict[str, Any]:
        """Returns the model's metadata."""
        request = service_pb2.ModelConfigRequest(name=self._model)
        found = await self._call("ModelConfig", request, service_pb2.ModelConfigResponse, left)
        return json.loads(found.config.parameters["metadata"].string_value)

    async def models(self, left: float) -> list[str]:
        """Returns the names of the server's models."""
        request = service_pb2.RepositoryIndexRequest()
        found = await self._call("RepositoryIndex", request, service_pb2.RepositoryIndexResponse, left)
        return [entry.name for entry in found.models]

    async def close(self) -> None:
        """Closes the channel."""
        if self._channel is not None:
            await self._channel.close()

    async def _call(
        self, method: str, request: message.Message, response: type[message.Message], left: float, rows: str = ""
    ) -> Any:
        function = self._connected().unary_unary(
            _SERVICE + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        try:
            return await function(request, timeout=left, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            self._raise(error, rows)

    def _raise(self, error: grpc.aio.AioRpcError, rows: str) -> None:
        """Raises `Failure` or `ServerError` for a call that failed."""
        code, details = error.code(), error.details()
        trailing = {key: str(value) for key, value in error.trailing_metadata() or ()}
        answered = _SERVER in trailing
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and not answered:
            raise Failure("the server did not answer in time", "; pass a larger timeout=") from error
        if code in _RETRIED and answered:
            pause = float(trailing.get(_PUSHBACK, 0)) / 1000
            raise Failure(f"it answered {code.name}{rows}: {details}", answered=True, retry_after=pause) from error
        if code is grpc.StatusCode.UNAVAILABLE:
            fix = (
                f"; is the server running, and is this its gRPC port? Start it with {START} --grpc_port=PORT, or pass "
                "wait=SECONDS for one that is starting; use grpcs:// for a server with TLS"
            )
            raise Failure(f"the connection failed ({details})", fix, reached=False) from error
        if not answered:
            raise ServerError(
                f"grpc://{self._address} answered {code.name} ({details}): not a response of rmjax.serve; is another "
                f"server on this port? Use the server's gRPC port, or start one with {START} --grpc_port=PORT"
            ) from error
        fix = refusal_fix(_STATUS.get(code, 0), self._token)
        raise ServerError(f"grpc://{self._address} answered {code.name}{rows}: {details}{fix}") from error
