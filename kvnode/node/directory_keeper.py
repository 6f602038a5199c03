"""What the leader does for the directory of its own accord: keys to sign with, and the removal of what was deleted.

Theory of operation. Every node runs a keeper; only the leader's acts. All it does is in the log and idempotent, so that
a leader that dies half way is followed by one that goes on: a purge has no place where it stands, it begins with what
is left.

A purge removes the rows of a deleted database in chunks, each a range delete of a bounded number of keys: first those
of its queues, because a lease that expires may write into the database itself; then its own. The last
chunk of each covers the whole key space, found or not: it is resolved after every write that was let in before
the deletion was applied (Directory.takes_write), those still on their way into the state included; so nothing is left
behind when it commits.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Protocol

from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.base.errors import KvError
from kvnode.machine.directory import changes
from kvnode.machine.directory.rows import PurgeRow
from kvnode.machine.directory.view import DirectoryView
from kvnode.machine.keyspace import DATABASE_PREFIX_BYTES, database_prefix
from kvnode.machine.queue.keys import queue_space
from kvnode.node.directory_changes import ChangingNode, change_directory
from kvnode.proto.kv.v1 import kv_pb2

_log = logging.getLogger(__name__)

SIGNING_KEY_BYTES = 32
_ABOVE_ALL = b"\xff" * limits.MAX_READ_KEY_BYTES  # a key that may be written has fewer bytes, so it is below


class Keys(Protocol):
    """Where the keys of a deleted database are listed (the state)."""

    def scan_keys(self, start: bytes, end: bytes, limit: int) -> list[bytes]:
        """See kvnode.machine.state_reader."""


class KeptNode(ChangingNode, Protocol):
    """The part of a node that is needed."""

    @property
    def is_leader(self) -> bool:
        """Whether it leads, as far as it knows."""


class DirectoryKeeper:
    """The duties of one node; they are done while it leads.

    Args:
        node: whose directory it is.
        keys: its applied state.
        clock: dates keys and expiry.
        random_source: of signing keys; the operating system's own.
    """

    def __init__(self, node: KeptNode, keys: Keys, clock: Clock, random_source: random.Random) -> None:
        self._node = node
        self._keys = keys
        self._clock = clock
        self._random = random_source
        self._timeout_ms = limits.DEFAULT_OPERATION_TIMEOUT_MS

    async def run(self) -> None:
        """Do the duties until cancelled."""
        while True:
            await asyncio.sleep(limits.DIRECTORY_DUTY_INTERVAL_MS / 1000)
            try:
                await self.do_duties()
            except KvError as error:
                _log.info("a duty for the directory is put off: %s", error)
            except Exception:
                _log.exception("a duty for the directory failed in a way that nobody foresaw; it is tried again")

    async def do_duties(self) -> None:
        """Whatever is due now, if this node leads. Raises KvError: what could not be done; it is tried again."""
        if not self._node.is_leader:
            return
        if self._signing_key_due(self._node.directory.view) is not None:
            await self._change(self._signing_key_due)
        if changes.drop_outlived(self._node.directory.view, now_ms=self._clock.now_ms()) is not None:
            await self._change(lambda view: changes.drop_outlived(view, now_ms=self._clock.now_ms()))
        for purge in list(self._node.directory.view.purges.values()):
            await self._purge(purge.number)

    async def _change(self, build: changes.Build) -> None:
        await change_directory(self._node, build, self._timeout_ms)

    def _signing_key_due(self, view: DirectoryView) -> kv_pb2.AtomicWriteRequest | None:
        newest_ms = max((key.created_ms for key in view.signing_keys.values()), default=None)
        now_ms = self._clock.now_ms()
        if newest_ms is not None and now_ms < newest_ms + limits.SIGNING_KEY_ROTATION_MS:
            return None
        return changes.add_signing_key(view, self._random.randbytes(SIGNING_KEY_BYTES), now_ms=now_ms)

    async def _purge(self, number: int) -> None:
        """Remove the rows of a deleted database, or as many as this node gets to as leader."""
        _log.info("removing the rows of the deleted database number %d", number)
        if await self._purge_space(number, queue_space(number)) and await self._purge_space(number, number):
            await self._change(lambda view: self._finished(view, number))
            _log.info("the deleted database number %d is gone", number)

    async def _purge_space(self, number: int, space: int) -> bool:
        """Remove the rows of one key space of the database; whether none is left."""
        start, end = database_prefix(space), database_prefix(space + 1)
        deleted = chunks = 0
        while self._node.is_leader:
            found = self._keys.scan_keys(start, end, limits.PURGE_CHUNK_KEYS_COUNT + 1)
            is_last = len(found) <= limits.PURGE_CHUNK_KEYS_COUNT
            bound = _ABOVE_ALL if is_last else found[-1][DATABASE_PREFIX_BYTES:]
            await self._delete_range(space, bound)
            deleted += len(found) - (not is_last)
            chunks += 1
            if is_last:
                return True
            if chunks % limits.PURGE_PROGRESS_CHUNKS_COUNT == 0:
                await self._change(lambda view, count=deleted: self._progress(view, number, count))  # type: ignore[misc]
                deleted = 0
            await asyncio.sleep(limits.PURGE_PAUSE_MS / 1000)
        return False

    async def _delete_range(self, number: int, bound: bytes) -> None:
        mutation = kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_DELETE_RANGE, key=b"", end_key=bound)
        await self._node.write(kv_pb2.AtomicWriteRequest(mutations=[mutation]), self._timeout_ms, database=number)

    @staticmethod
    def _finished(view: DirectoryView, number: int) -> kv_pb2.AtomicWriteRequest | None:
        purge = view.purges.get(number)
        return None if purge is None else changes.purge_finished(view, purge)

    @staticmethod
    def _progress(view: DirectoryView, number: int, deleted: int) -> kv_pb2.AtomicWriteRequest | None:
        purge: PurgeRow | None = view.purges.get(number)
        return None if purge is None else changes.purge_progress(view, purge, deleted)
