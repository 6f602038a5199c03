"""How this process reaches others: directly, or through an HTTP proxy (CONNECT) that stands at the edge of its network.

A process dials in one way, so this is said once, at its start, and not to every caller. Three kinds of connections obey
it: gRPC between nodes, gRPC of a gateway, and the lanes of consensus messages.
"""

from __future__ import annotations

_proxy = ""


def use_proxy(address: str) -> None:
    """From now on connections are opened through the proxy at host:port; empty = directly."""
    global _proxy  # noqa: PLW0603
    _proxy = address


def proxy() -> str:
    """host:port of the proxy; empty = there is none."""
    return _proxy


def grpc_options() -> tuple[tuple[str, int | str], ...]:
    """The channel options that make gRPC dial so. An http_proxy of the environment is never meant for nodes."""
    if not _proxy:
        return (("grpc.enable_http_proxy", 0),)
    return (("grpc.http_proxy", f"http://{_proxy}"),)


def connect_request(host: str, port: int) -> bytes:
    """What asks the proxy for a tunnel."""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode()


def is_connected(head: bytes) -> bool:
    """Whether the proxy's answer, up to its empty line, says that the tunnel stands."""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    return len(words) >= 2 and words[0].startswith(b"HTTP/1.") and words[1] == b"200"
