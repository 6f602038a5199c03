"""A network namespace for each node, joined by a bridge, so that single directions can be cut. Needs root.

The nodes' addresses are reachable from the caller's own namespace. A cut sends packets to a hardware address that
nobody has, acknowledgements of TCP included: what it carries is lost without an error, as on a broken route. That
takes iproute2 alone: no packet filter has to be installed.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from types import TracebackType
from typing import Self

_SUBNET = "10.213.{number}"
_MAX_NODES_COUNT = 200
_NOBODY = "02:00:00:00:00:01"  # a hardware address that no interface here has
_serials = itertools.count()  # the kernel takes a moment to remove what was there before


class NamespacesUnavailable(Exception):
    """This machine, or this user, cannot make network namespaces; the message says what was tried."""


class Namespaces:
    """Use as a context manager: everything is removed at the end.

    Args:
        names: of the nodes.
    """

    def __init__(self, names: list[str]) -> None:
        serial = next(_serials)
        number = (os.getpid() + serial) % 250
        self._tag = f"kv{os.getpid() % 100_000}{serial}"
        self._subnet = _SUBNET.format(number=number)
        self.hosts = {name: f"{self._subnet}.{index + 1}" for index, name in enumerate(names[:_MAX_NODES_COUNT])}

    def __enter__(self) -> Self:
        if os.geteuid() != 0 or not shutil.which("ip"):
            raise NamespacesUnavailable("root and ip (iproute2) are needed")
        try:
            self._build()
        except NamespacesUnavailable:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def prefix(self, name: str) -> tuple[str, ...]:
        """Runs a command in the node's namespace."""
        return ("ip", "netns", "exec", self._namespace(name))

    def cut(self, source: str, target: str) -> None:
        """From now on nothing from `source` arrives at `target`; the other direction stays."""
        self._ip(source, f"neigh replace {self.hosts[target]} lladdr {_NOBODY} dev eth0 nud permanent")

    def heal(self) -> None:
        """Everything arrives again."""
        for name in self.hosts:
            self._ip(name, "neigh flush dev eth0 nud permanent")

    def _build(self) -> None:
        _run("ip", "link", "add", self._tag, "type", "bridge")
        _run("ip", "address", "add", f"{self._subnet}.254/24", "dev", self._tag)
        _run("ip", "link", "set", self._tag, "up")
        for index, (name, host) in enumerate(self.hosts.items()):
            namespace, inside, outside = self._namespace(name), "eth0", f"{self._tag}n{index}"
            _run("ip", "netns", "add", namespace)
            _run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", namespace)
            _run("ip", "link", "set", outside, "master", self._tag, "up")
            for command in ("link set lo up", f"address add {host}/24 dev {inside}", f"link set {inside} up"):
                self._ip(name, command)

    def _remove(self) -> None:
        for name in self.hosts:
            _run("ip", "netns", "del", self._namespace(name), check=False)
        _run("ip", "link", "del", self._tag, check=False)

    def _namespace(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def _ip(self, name: str, command: str) -> None:
        _run("ip", "-n", self._namespace(name), *command.split())


def _run(*command: str, check: bool = True) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise NamespacesUnavailable(f"{' '.join(command)}: {done.stderr.strip()}")
