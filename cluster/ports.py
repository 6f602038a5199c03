"""Free loopback ports for processes that may be restarted on them."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Sequence
from itertools import islice

# Below the range from which Linux takes the ports of outgoing connections (32,768 and up): a port that is
# free for a moment, because its node is dead, must not be taken by somebody's connection.
_FIRST_PORT, _LAST_PORT = 15_000, 32_000
_TRIES_COUNT = 1_000
SHARE_VARIABLE = "CLUSTER_PORTS_SHARE"
"""For those who start clusters beside each other: "1/3" takes the second third. A port that was found is free until its
node has begun to listen, and whenever that node is down; another one might find it, too."""

_given: set[int] = set()  # by this process, to nodes that may be down just now and return


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` different ports that nobody listens on just now, none given before while there are others.

    Raises OSError when there are not so many.
    """
    share = _share()
    new = [port for port in share if port not in _given]
    found = _free_among(new, count, host)
    if len(found) < count:
        _given.difference_update(share)
        found = _free_among(share, count, host)
    if len(found) < count:
        raise OSError(f"no {count} free ports among {share} on {host}")
    _given.update(found)
    return found


def _free_among(ports: Sequence[int], count: int, host: str) -> list[int]:
    candidates = random.sample(ports, min(_TRIES_COUNT, len(ports)))
    return list(islice((port for port in candidates if _is_free(host, port)), count))


def _share() -> range:
    number, _, count = os.environ.get(SHARE_VARIABLE, "0/1").partition("/")
    size = (_LAST_PORT - _FIRST_PORT) // int(count)
    first = _FIRST_PORT + int(number) * size
    return range(first, first + size)


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
