"""TLS towards the nodes: the authority that vouches for them, and a certificate of one's own where they ask for it."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from kvnode.base.errors import InvalidRequest


def tls_credentials(ca: str | Path = "", cert: str | Path = "", key: str | Path = "") -> grpc.ChannelCredentials:
    """Credentials for `open_kv`, `Admin` and `Session`.

    Args:
        ca: PEM file of the authorities that may vouch for a node; none = those of the system.
        cert: PEM file of the caller's certificate and its chain, where the nodes want one (`grpc_tls_client_auth`).
        key: PEM file of that certificate's private key.

    Raises:
        InvalidRequest: TLS_FILE_UNUSABLE, phase tls: a file cannot be read, or is not what it should be.
    """
    check_files(ca, cert, key)
    return grpc.ssl_channel_credentials(
        root_certificates=_read(ca) if ca else None,
        private_key=_read(key) if key else None,
        certificate_chain=_read(cert) if cert else None,
    )


def check_files(ca: str | Path, cert: str | Path, key: str | Path) -> None:
    """Raise InvalidRequest for files that gRPC would take, and fail with at every handshake without a word of why."""
    if bool(cert) != bool(key):
        raise InvalidRequest("TLS_FILE_UNUSABLE", "a certificate and its key are given together", phase="tls")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if ca:
            context.load_verify_locations(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise _unusable(f"cannot use {ca} as the authority", error) from None
    try:
        if cert:
            context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise _unusable(f"cannot use {cert} with the key {key}", error) from None


def _unusable(what: str, error: Exception) -> InvalidRequest:
    return InvalidRequest(
        "TLS_FILE_UNUSABLE", f"{what}: {error}; name PEM files, the key that of the certificate", phase="tls"
    )


def _read(path: str | Path) -> bytes:
    return Path(path).read_bytes()
