"""Making a change to the directory, from whichever node: look, judge, and write unless something came between."""

from __future__ import annotations

from typing import Protocol

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.machine.directory.changes import Build
from kvnode.machine.keyspace import SYSTEM_DATABASE
from kvnode.node.directory import Directory
from kvnode.node.strong_read import catch_up, reach
from kvnode.proto.kv.v1 import kv_pb2


class LearningNode(Protocol):
    """The part of a node that is needed to follow changes."""

    directory: Directory

    async def read(self, request: kv_pb2.ReadRequest, timeout_ms: int = 0) -> kv_pb2.ReadResponse:
        """One read."""


class ChangingNode(LearningNode, Protocol):
    """The part of a node that is needed to make them."""

    async def write(
        self, request: kv_pb2.AtomicWriteRequest, timeout_ms: int = 0, *, database: int = 1
    ) -> kv_pb2.AtomicWriteResponse:
        """One atomic write."""


async def learn_directory(node: LearningNode, timeout_ms: int) -> None:
    """Return once the node's view shows every change that was acknowledged before the call. Raises KvError."""
    await catch_up(node, timeout_ms)
    node.directory.refresh()


async def change_directory(node: ChangingNode, build: Build, timeout_ms: int) -> None:
    """Make the change that `build` makes of the directory as it is; afterwards this node's view shows it.

    Args:
        node: whose view is judged by, and which sends the write.
        build: makes the write (machine/directory/changes.py) or raises what is wrong; None = there is nothing to do.
            Called again when another change came first.
        timeout_ms: of each step.

    Raises:
        KvError: what `build` raises; what a write raises, an unknown outcome included; DIRECTORY_BUSY.
    """
    for _ in range(limits.MAX_DIRECTORY_ATTEMPTS_COUNT):
        await learn_directory(node, timeout_ms)
        request = build(node.directory.view)
        if request is None:
            return
        response = await node.write(request, timeout_ms, database=SYSTEM_DATABASE)
        if response.status == kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS:
            await reach(node, response.versionstamp, timeout_ms)
            node.directory.refresh()
            return
    raise KvError(
        "DIRECTORY_BUSY",
        "other changes to databases or tokens came first again and again; nothing was changed, try again",
        phase="admin",
    )
