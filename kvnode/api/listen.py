"""Whether an address can be listened on, and if not, why: the servers themselves do not say."""

from __future__ import annotations

import errno
import socket

import grpc
from grpc import aio

from kvnode.base.errors import ConfigError


def free_address(address: str) -> tuple[str, int]:
    """(IP address, port) on which nobody listens; port 0 becomes a free one.

    Raises:
        ConfigError: the address is in use, not of this machine, or no host:port.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot listen on {address}: it is not host:port of this machine ({error})") from error
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            probe.listen(1)
            bound = probe.getsockname()
    except OSError as error:
        raise ConfigError(_not_bound_text(address, port, error)) from error
    return str(bound[0]), int(bound[1])


def _not_bound_text(address: str, port: str, error: OSError) -> str:
    """What was wrong with the address, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"cannot listen on {address}: port {port} is in use; stop what listens there "
            f"(`ss -ltnp 'sport = :{port}'` names it) or choose another port"
        )
    return f"cannot listen on {address}: {error.strerror or error}"


def bind(server: aio.Server, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
    """Let `server` listen on `address`; returns the port.

    Raises:
        ConfigError: with the reason, which gRPC itself does not give, and the remedy.
    """
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError:
        free_address(address)  # raises with the reason
        raise ConfigError(f"cannot listen on {address}") from None
