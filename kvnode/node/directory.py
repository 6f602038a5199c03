"""The directory as this node has applied it: read once at the start, then kept by the runs that change it.

Every change to the directory writes its version row (machine/directory/view.py), so a run of the log costs one look
into its writes, and only one that changes the directory costs more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from kvnode.base import limits
from kvnode.codec.row import Row
from kvnode.machine.directory.rows import DIRECTORY_END, DIRECTORY_PREFIX, VERSION_KEY
from kvnode.machine.directory.view import DirectoryView
from kvnode.machine.keyspace import DEFAULT_DATABASE
from kvnode.machine.queue.keys import database_of_space
from kvnode.proto.kv.v1 import kv_pb2

_DELETE_RANGE = int(kv_pb2.MUTATION_TYPE_DELETE_RANGE)

Changes = Mapping[bytes, Row | None]
Follower = Callable[[Changes | None], None]
"""Told of changes, by full key; None: everything may have changed."""


class Rows(Protocol):
    """Where the directory is read (the state)."""

    def get(self, key: bytes) -> Row | None:
        """See kvnode.machine.state_reader."""

    def scan(self, start: bytes, end: bytes, limit: int, *, reverse: bool = False) -> list[Row]:
        """See kvnode.machine.state_reader."""


class Directory:
    """One node's view of the directory.

    Attributes:
        view: at the applied state.

    Args:
        state: shows the applied state.
        cluster_id: of the cluster.
    """

    def __init__(self, state: Rows, cluster_id: str) -> None:
        self._state = state
        self._followers: list[Follower] = []
        self.view = DirectoryView(cluster_id)
        self.view.load(self.rows())

    def rows(self) -> list[Row]:
        """All rows of the directory."""
        found: list[Row] = []
        start = DIRECTORY_PREFIX
        while True:
            page = self._state.scan(start, DIRECTORY_END, limits.SCAN_PAGE_COUNT)
            found.extend(page)
            if len(page) < limits.SCAN_PAGE_COUNT:
                return found
            start = page[-1].key + b"\x00"

    def applied(self, writes: Changes) -> bool:
        """A run was applied that wrote these rows; returns whether some are the directory's."""
        if VERSION_KEY not in writes:
            return False
        changes = {key: row for key, row in writes.items() if key.startswith(DIRECTORY_PREFIX)}
        self.view.update(changes)
        self._tell(changes)
        return True

    def replaced(self) -> None:
        """A snapshot has replaced the state."""
        self.view.load(self.rows())
        self._tell(None)

    def refresh(self) -> None:
        """Read the directory anew if the state shows another one: a snapshot may have just come in.

        Between the moment in which the state is switched and `replaced` the log is reset, which waits for the disk.
        """
        row = self._state.get(VERSION_KEY)
        if (row.versionstamp if row else b"") != self.view.version:
            self.replaced()

    def takes_write(self, number: int, write: kv_pb2.AtomicWriteRequest) -> bool:
        """Whether the leader may resolve this write: its database exists, or the write only removes what is left of it.

        A purge removes whatever was resolved before it began. What comes later, from a node that has yet to hear of
        the deletion, must not be resolved, or it would stay for ever.
        """
        if number <= DEFAULT_DATABASE or number in self.view.databases:
            return True
        if write.enqueues or write.actions or database_of_space(number) not in self.view.purges:
            return False
        return all(mutation.type == _DELETE_RANGE for mutation in write.mutations)

    def follow(self, follower: Follower) -> Callable[[], None]:
        """Be told of changes from now on, on the loop, after the view has them; call the result to end it."""
        self._followers.append(follower)
        return lambda: self._followers.remove(follower)

    def _tell(self, changes: Changes | None) -> None:
        for follower in list(self._followers):
            follower(changes)
