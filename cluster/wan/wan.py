"""A WAN: the proxy's process, and orders to it."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.keeper import Keeper
from cluster.processes import Child

_START_TIMEOUT_S = 15.0
_ORDER_TIMEOUT_S = 15.0
_POLL_S = 0.02

Pair = tuple[str, str]


class WanFailed(Exception):
    """The proxy did not start, or refused an order."""


class Wan:
    """The caller's end. Blocks, briefly; may be used from any thread.

    Args:
        log: where the process's output goes.
        environment: its variables.
        keeper: ends it with the caller's process.
    """

    def __init__(self, log: Path, environment: Mapping[str, str] | None = None, keeper: Keeper | None = None) -> None:
        # The path of a socket has at most 107 bytes: a folder of its own with a short name.
        self._folder = Path(tempfile.mkdtemp(prefix="wan-"))
        self._socket = self._folder / "orders"
        command = [sys.executable, "-m", "cluster.wan.process", str(self._socket)]
        self.child = Child(command, log, environment, keeper)
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._lines: Any = None
        self._sites: dict[str, None] = {}

    def start(self) -> None:
        """Start the process and wait until it takes orders. Raises WanFailed."""
        self.child.start()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(_ORDER_TIMEOUT_S)
            try:
                connection.connect(str(self._socket))
            except OSError:
                connection.close()
                if not self.child.running or time.monotonic() > deadline:
                    raise WanFailed(f"the WAN proxy did not start\n{self.child.log_text()[-2_000:]}") from None
                time.sleep(_POLL_S)
            else:
                self._connection, self._lines = connection, connection.makefile("rb")
                return

    def close(self) -> None:
        """End the process."""
        self.release()
        self.child.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def release(self) -> None:
        """Give no more orders; the process lives on."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._lines.close()
                self._connection.close()
            self._connection = None

    def add_site(self, name: str, addresses: Sequence[str] = ()) -> str:
        """A site; returns the host:port of the proxy (HTTP's CONNECT) through which it dials.

        Args:
            name: unique.
            addresses: by which others reach it: hosts, or host:ports.
        """
        self._sites[name] = None
        return str(self._order("site", name=name, addresses=list(addresses))["address"])

    def forward(self, site: str, target: str) -> str:
        """A host:port which leads from a site to an address."""
        return str(self._order("forward", site=site, target=target)["address"])

    def set_delay(self, one: str, other: str, one_way_ms: float) -> None:
        """The delay between two sites, in both directions."""
        self._order("delay", pairs=[(one, other), (other, one)], one_way_ms=one_way_ms)

    def cut(self, pairs: Iterable[Pair]) -> None:
        """Cut these links, one direction each."""
        self._order("cut", pairs=list(pairs))

    def heal(self, pairs: Iterable[Pair] | None = None) -> None:
        """Heal these links; all by default."""
        self._order("heal", **({} if pairs is None else {"pairs": list(pairs)}))

    def cut_between(self, some: Iterable[str], others: Iterable[str]) -> list[Pair]:
        """Cut both directions between each of `some` and each of `others`; returns the pairs, for heal()."""
        pairs = both_ways(some, others)
        self.cut(pairs)
        return pairs

    def isolate(self, *sites: str) -> list[Pair]:
        """Cut sites off from all others, not from one another; returns the pairs, for heal()."""
        return self.cut_between(sites, [name for name in self._sites if name not in sites])

    def carried_bytes(self) -> dict[Pair, int]:
        """What each link has carried."""
        return {(source, target): count for source, target, count in self._order("carried")["carried"]}

    def _order(self, kind: str, **details: Any) -> dict[str, Any]:
        line = json.dumps({"order": kind, **details}).encode() + b"\n"
        with self._lock:
            if self._connection is None:
                raise WanFailed("the WAN proxy takes no orders: it was not started, or was released")
            try:
                self._connection.sendall(line)
                answer: dict[str, Any] = json.loads(self._lines.readline() or b'{"error": "it has ended"}')
            except OSError as error:
                raise WanFailed(f"the WAN proxy does not answer: {error}") from None
        if "error" in answer:
            raise WanFailed(f"{kind}: {answer['error']}")
        return answer


def both_ways(some: Iterable[str], others: Iterable[str]) -> list[Pair]:
    """Every pair of one of `some` and one of `others`, in both orders."""
    there = [(one, other) for one in some for other in others if one != other]
    return [*there, *((other, one) for one, other in there)]
