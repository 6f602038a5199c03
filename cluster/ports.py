"""Free loopback ports for processes that may be restarted on them."""

from __future__ import annotations

import random
import socket

# Below the range from which Linux takes the ports of outgoing connections (32,768 and up): a port that is
# free for a moment, because its node is dead, must not be taken by somebody's connection.
_FIRST_PORT, _LAST_PORT = 15_000, 32_000
_TRIES_COUNT = 1_000


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` different ports that nobody listens on just now. Raises OSError when there are not so many."""
    found: list[int] = []
    for port in random.sample(range(_FIRST_PORT, _LAST_PORT), _TRIES_COUNT):
        if len(found) == count:
            return found
        if _is_free(host, port):
            found.append(port)
    raise OSError(f"no {count} free ports between {_FIRST_PORT} and {_LAST_PORT} on {host}")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
