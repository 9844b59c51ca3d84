"""Access: a bearer token, TLS, client certificates, and the host names that the server answers to."""

import dataclasses
import functools
import hmac
import ipaddress
import pathlib
import re
import ssl
from collections.abc import Sequence

import grpc

from rmjax.core.errors import InputError
from rmjax.serving.errors import Forbidden, Unauthenticated

_MIN_TOKEN_LENGTH = 16  # characters
_HOST = re.compile(r"[^\s:/]+|[\da-fA-F:]+")  # a name or an address, of IPv6 too
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True)
class Security:
    """Credentials that clients must present, and the server's own.

    Attributes:
      token: the bearer token; empty: none is required.
      certificate, key: PEM files for TLS; empty: no encryption.
      client_ca: PEM file of the certificate authority of client certificates; empty: none are required.
      allowed_hosts: names that requests may address the server by, besides its own; see `known_hosts`.
    """

    token: str = ""
    certificate: str = ""
    key: str = ""
    client_ca: str = ""
    allowed_hosts: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        token_file: str = "",
        certificate: str = "",
        key: str = "",
        client_ca: str = "",
        allowed_hosts: Sequence[str] = (),
    ) -> "Security":
        """Reads and checks the files.

        Raises:
          InputError: a file is missing or invalid, or requires another one.
        """
        if bool(certificate) != bool(key):
            raise InputError("--tls_cert and --tls_key go together; give both, or neither")
        if client_ca and not certificate:
            raise InputError("--tls_client_ca needs --tls_cert and --tls_key: client certificates are a part of TLS")
        for name in allowed_hosts:
            if not _HOST.fullmatch(name):
                raise InputError(f"--allowed_hosts has {name!r}; expected the names of hosts, without scheme and port")
        token = _read(token_file).strip() if token_file else ""
        security = cls(token, certificate, key, client_ca, tuple(allowed_hosts))
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

    def known_hosts(self, given: str, address: str) -> frozenset[str] | None:
        """Returns the host names that HTTP requests may be addressed to; None: any.

        A page of another site can have its own name resolved to the loopback address (DNS rebinding); the browser then
        takes this server for that site. A server on the loopback interface therefore has a list of names in any case.

        Args:
          given: name or address of the option --host.
          address: the IP address that was bound.
        """
        if not (self.allowed_hosts or ipaddress.ip_address(address).is_loopback):
            return None
        return frozenset((*_LOOPBACK, address, given.lower(), *(name.lower() for name in self.allowed_hosts)))


def check_host(header: str, known: frozenset[str]) -> None:
    """Raises Forbidden unless the header `host` of a request names one of the `known` hosts."""
    if (name := _host_name(header)) not in known:
        raise Forbidden(
            f"the request is for the host {name!r:.200}, which this server does not know; if it is right, add it to "
            "--allowed_hosts"
        )


@functools.lru_cache(256)
def _host_name(header: str) -> str:
    """Returns the name in the header `host`, without the port, in lower case.

    >>> _host_name("LocalHost:8000"), _host_name("[::1]:8000"), _host_name("::1"), _host_name("localhost.")
    ('localhost', '::1', '::1', 'localhost')
    """
    match = re.fullmatch(r"\[(.+)\](:\d*)?|([^:/]+)(:\d*)?|([\da-fA-F:]+)", header.strip())
    return (match[1] or match[3] or match[5]).lower().removesuffix(".") if match else header


def _read(path: str) -> str:
    try:
        return pathlib.Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
