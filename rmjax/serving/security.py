"""Authentication and encryption: a bearer token, TLS, and client certificates."""

import dataclasses
import hmac
import pathlib
import ssl

import grpc

from rmjax.core.errors import InputError
from rmjax.serving.errors import Unauthenticated

_MIN_TOKEN_LENGTH = 16  # characters


@dataclasses.dataclass(frozen=True)
class Security:
    """Credentials that clients must present, and the server's own.

    Attributes:
      token: the bearer token; empty: none is required.
      certificate, key: PEM files for TLS; empty: no encryption.
      client_ca: PEM file of the certificate authority of client certificates; empty: none are required.
    """

    token: str = ""
    certificate: str = ""
    key: str = ""
    client_ca: str = ""

    @classmethod
    def read(cls, token_file: str = "", certificate: str = "", key: str = "", client_ca: str = "") -> "Security":
        """Reads and checks the files.

        Raises:
          InputError: a file is missing or invalid, or requires another one.
        """
        if bool(certificate) != bool(key):
            raise InputError("--tls_cert and --tls_key go together; give both, or neither")
        if client_ca and not certificate:
            raise InputError("--tls_client_ca needs --tls_cert and --tls_key: client certificates are a part of TLS")
        security = cls(_read(token_file).strip() if token_file else "", certificate, key, client_ca)
        if token_file and (length := len(security.token)) < _MIN_TOKEN_LENGTH:
            raise InputError(
                f"--token_file={token_file} has {length} characters; expected at least {_MIN_TOKEN_LENGTH}"
            )
        security.context()
        return security

    def context(self) -> ssl.SSLContext | None:
        """Returns the TLS context of the HTTP server; None without TLS."""
        if not self.certificate:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:  # includes ssl.SSLError
            raise InputError(
                f"--tls_cert={self.certificate}, --tls_key={self.key}, --tls_client_ca={self.client_ca}: "
                f"cannot be used ({error}); expected PEM files, and the key of the certificate"
            ) from error
        return context

    def grpc_credentials(self) -> grpc.ServerCredentials | None:
        """Returns the TLS credentials of the gRPC server; None without TLS."""
        if not self.certificate:
            return None
        pair = (_read(self.key).encode(), _read(self.certificate).encode())
        authority = _read(self.client_ca).encode() if self.client_ca else None
        return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)

    def check(self, authorization: str) -> None:
        """Raises Unauthenticated unless the header `authorization` has the token."""
        kind, _, token = authorization.partition(" ")
        if not self.token:
            return
        # Constant time: the duration of a refusal must not show how much of the token was right.
        equal = hmac.compare_digest(token.strip().encode(), self.token.encode())
        if kind.lower() != "bearer" or not equal:
            raise Unauthenticated("the bearer token is missing or wrong; send 'authorization: Bearer TOKEN'")


def _read(path: str) -> str:
    try:
        return pathlib.Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
