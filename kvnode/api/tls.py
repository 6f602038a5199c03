"""TLS on the gRPC port, for callers and between nodes (`grpc_tls_*` of the configuration)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import grpc

from kvnode.base.config import NodeConfig
from kvnode.base.errors import ConfigError, InvalidRequest
from kvnode.client.tls import check_files, tls_credentials


class GrpcTls(NamedTuple):
    """Both ends; None = plain text."""

    server: grpc.ServerCredentials | None = None
    peers: grpc.ChannelCredentials | None = None  # towards other nodes


def grpc_tls(config: NodeConfig) -> GrpcTls:
    """What a node or gateway serves with, and what it calls nodes with. Raises ConfigError: a file is unusable."""
    ca, cert, key = config.grpc_tls_ca, config.grpc_tls_cert, config.grpc_tls_key
    if not (ca or cert):
        return GrpcTls()
    try:
        check_files(ca, cert, key)
        peers = tls_credentials(ca, cert, key)
    except InvalidRequest as error:
        raise ConfigError(f"'grpc_tls_*': {error.message}") from None
    if not (cert and config.listen):  # a gateway that serves no gRPC
        return GrpcTls(peers=peers)
    chain = (Path(key).read_bytes(), Path(cert).read_bytes())
    judge = config.grpc_tls_client_auth
    server = grpc.ssl_server_credentials([chain], Path(ca).read_bytes() if judge else None, require_client_auth=judge)
    return GrpcTls(server, peers)
