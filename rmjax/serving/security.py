"""Who may ask: a bearer token, TLS, and clients' certificates."""

import dataclasses
import hmac
import pathlib
import ssl

import grpc

from rmjax.core.errors import InputError
from rmjax.serving.errors import Unauthenticated

_SHORTEST_TOKEN = 16  # characters


@dataclasses.dataclass(frozen=True)
class Security:
    """What a client must show.

    Attributes:
      token: the bearer token; empty lets everybody in.
      certificate, key: PEM files for TLS; empty serves plain text.
      client_ca: PEM file of the authority that signed the clients' certificates; empty asks for none.
    """

    token: str = ""
    certificate: str = ""
    key: str = ""
    client_ca: str = ""

    @classmethod
    def read(cls, token_file: str = "", certificate: str = "", key: str = "", client_ca: str = "") -> "Security":
        """Reads and checks the files.

        Raises:
          InputError: a file is missing or unusable, or another is needed beside it.
        """
        if bool(certificate) != bool(key):
            raise InputError("--tls_cert and --tls_key go together; give both, or neither")
        if client_ca and not certificate:
            raise InputError("--tls_client_ca needs --tls_cert and --tls_key: only TLS shows a client's certificate")
        security = cls(_read(token_file).strip() if token_file else "", certificate, key, client_ca)
        if token_file and len(security.token) < _SHORTEST_TOKEN:
            raise InputError(
                f"--token_file={token_file} holds {len(security.token)} characters; expected at least {_SHORTEST_TOKEN}"
            )
        security.context()
        return security

    def context(self) -> ssl.SSLContext | None:
        """Returns what TLS needs; None for plain text."""
        if not self.certificate:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:  # ssl.SSLError is one
            raise InputError(
                f"--tls_cert={self.certificate}, --tls_key={self.key}, --tls_client_ca={self.client_ca}: "
                f"cannot be used ({error}); expected PEM files of one pair"
            ) from error
        return context

    def grpc_credentials(self) -> grpc.ServerCredentials | None:
        """Returns the same for gRPC."""
        if not self.certificate:
            return None
        pair = (_read(self.key).encode(), _read(self.certificate).encode())
        authority = _read(self.client_ca).encode() if self.client_ca else None
        return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)

    def check(self, authorization: str) -> None:
        """Raises Unauthenticated unless the header `authorization` shows the token."""
        kind, _, token = authorization.partition(" ")
        if not self.token:
            return
        # Compared in constant time: how long a refusal takes must not tell how much of the token was right.
        right = hmac.compare_digest(token.strip().encode(), self.token.encode())
        if kind.lower() != "bearer" or not right:
            raise Unauthenticated("the bearer token is missing or wrong; send 'authorization: Bearer TOKEN'")


def _read(path: str) -> str:
    try:
        return pathlib.Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
