"""Snapshots between nodes: made on demand, streamed in chunks, resumable, installed between two cycles.

A snapshot that arrives is its sender's until the core has accepted it, and the driver's from there on: the core will
name it in its next Ready, so neither the end of the sender's patience nor that of its stream may take the file away.
While one is being verified or waits for the driver, no other transfer begins, because that would delete it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

from kvnode.base import limits
from kvnode.base.errors import KvError, StorageFailed, Unavailable
from kvnode.codec.membership import decode_membership
from kvnode.node.guard import Guard
from kvnode.node.ports import Awaited, Transport
from kvnode.node.stats import Stats
from kvnode.node.wire import decode_message, encode_message
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.raft.messages import Message
from kvnode.raft.raft import Raft
from kvnode.raft.types import SnapshotMeta
from kvnode.storage.log import Log
from kvnode.storage.snapshot import SnapshotFile
from kvnode.storage.snapshot_transfer import SnapshotReader, SnapshotReceiver
from kvnode.storage.state import State

_log = logging.getLogger(__name__)


class Transfer(NamedTuple):
    """A snapshot on its way, for people to see."""

    incoming: bool
    node_id: int  # the other end
    name: str  # empty = as the membership has it
    snapshot_index: int
    moved_bytes: int
    size_bytes: int


class FileSource:
    """A snapshot file as the transport wants it (ports.SnapshotSource)."""

    def __init__(self, snapshot: SnapshotFile, message: Message, stats: Stats) -> None:
        self.moved_bytes = 0
        self._stats = stats
        self._reader = SnapshotReader(snapshot)
        self._header = peer_pb2.SnapshotHeader(
            snapshot_id=snapshot.snapshot_id,
            index=snapshot.index,
            term=snapshot.term,
            size_bytes=snapshot.size_bytes,
            digest=snapshot.file_digest.hex(),
            membership=snapshot.membership,
            raft_message=encode_message(message).SerializeToString(),
        )

    @property
    def header(self) -> peer_pb2.SnapshotHeader:
        """See ports.SnapshotSource."""
        return self._header

    async def read(self, offset: int, size: int) -> bytes:
        """See ports.SnapshotSource."""
        data = await self._reader.read(offset, size)
        self.moved_bytes = offset + len(data)
        self._stats.snapshot_sent_bytes += len(data)
        return data

    def close(self) -> None:
        """See ports.SnapshotSource."""
        self._reader.close()


class _Accepted(NamedTuple):
    """A verified snapshot that the core has accepted. `installed` is done once the driver has installed it."""

    path: Path
    size_bytes: int
    installed: asyncio.Future[None]


class Snapshots:
    """Both ends of a transfer on one node.

    Args:
        wake: tells the driver that the core has news.
        guard: around every entry into the core.
    """

    def __init__(
        self,
        raft: Raft,
        log: Log,
        state: State,
        transport: Transport,
        stats: Stats,
        wake: Callable[[], None],
        guard: Guard,
    ) -> None:
        self._raft = raft
        self._log = log
        self._state = state
        self._transport = transport
        self._stats = stats
        self._wake = wake
        self._guard = guard
        self._making: asyncio.Task[SnapshotFile] | None = None
        self._latest: SnapshotFile | None = None
        self._sending: dict[int, asyncio.Task[None]] = {}
        self._accepted: dict[int, _Accepted] = {}  # by index; the driver will ask for it when it comes to it
        self._verifying = 0
        self._sinks: dict[str, SnapshotReceiver] = {}
        self._spent: WeakSet[SnapshotReceiver] = WeakSet()  # brought to their end; two senders may share one
        self._headers: dict[str, peer_pb2.SnapshotHeader] = {}  # of the sinks
        self._sources: dict[int, FileSource] = {}  # to whom
        self._failure = 0, ""  # index of the snapshot that could not be stored here last, and why

    def transfers(self) -> list[Transfer]:
        """What comes in and goes out at present."""
        incoming = [
            Transfer(
                True,
                header.hello.node_id,
                header.hello.name,
                header.index,
                self._sinks[name].held_bytes,
                header.size_bytes,
            )
            for name, header in self._headers.items()
            if name in self._sinks
        ]
        outgoing = [
            Transfer(False, node_id, "", source.header.index, source.moved_bytes, source.header.size_bytes)
            for node_id, source in self._sources.items()
        ]
        return incoming + outgoing

    @property
    def coming(self) -> Awaited:
        """How much is here of the one that comes in, until it is installed."""
        for accepted in self._accepted.values():
            return Awaited(accepted.size_bytes, accepted.size_bytes)
        for name, header in self._headers.items():
            if name in self._sinks:
                return Awaited(self._sinks[name].held_bytes, header.size_bytes)
        return Awaited(0, 0)

    @property
    def failure(self) -> str:
        """Why the snapshot that comes in cannot be stored here; empty = it can, or none is needed any more."""
        index, why = self._failure
        return why if index > self._raft.log.commit else ""

    # Sending.

    def send(self, message: Message) -> asyncio.Future[None]:
        """The core says that a peer needs a snapshot; the core is told how it ended.

        Returns:
            The transfer to that peer, which may have begun before.
        """
        running = self._sending.get(message.to)
        if running is None or running.done():
            running = self._sending[message.to] = asyncio.get_running_loop().create_task(self._send(message))
        return running

    async def make(self) -> SnapshotFile:
        """Make a snapshot of the state as it is now; concurrent callers share one."""
        if self._making is None or self._making.done():
            self._making = asyncio.get_running_loop().create_task(self._state.create_snapshot())
        snapshot = await asyncio.shield(self._making)
        if snapshot is not self._latest:
            self._latest = snapshot
            self._stats.snapshots_created += 1
        return snapshot

    async def _send(self, message: Message) -> None:
        delivered = False
        source: FileSource | None = None
        try:
            snapshot = self._latest
            if snapshot is None or snapshot.index + 1 < self._log.first_index():
                snapshot = await self.make()
            sent = message._replace(index=snapshot.index, log_term=snapshot.term, context=snapshot.membership)
            self._sources[message.to] = source = FileSource(snapshot, sent, self._stats)
            delivered = await self._transport.send_snapshot(message.to, source)
            self._stats.snapshots_sent += int(delivered)
        except KvError as error:
            # The state itself says when its disk has failed; here only a copy could not be made or read.
            _log.warning("the snapshot for node %d was not sent: %s", message.to, error)
            self._latest = None
        finally:
            self._sources.pop(message.to, None)
            if source is not None:
                source.close()
            with self._guard:
                self._raft.report_snapshot(message.to, delivered)
            self._wake()

    # Receiving.

    def sink(self) -> Sink:
        """For one incoming transfer."""
        return Sink(self)

    async def receive_open(self, header: peer_pb2.SnapshotHeader) -> SnapshotReceiver:
        """The receiver of that snapshot, with what it already holds.

        Raises:
            Unavailable: another one is complete and not yet installed (SNAPSHOT_UNDER_WAY): this would delete it.
        """
        if self._accepted or self._verifying:
            raise Unavailable("another snapshot is being installed; send this one later", code="SNAPSHOT_UNDER_WAY")
        receiver = self._sinks.get(header.snapshot_id)
        if receiver is None:
            for stale in self._sinks.values():
                self._spent.add(stale)  # its sender is told so with its next chunk
                stale.close()
            self._sinks.clear()
            self._headers.clear()
            receiver = SnapshotReceiver(
                self._state.incoming_directory,
                snapshot_id=header.snapshot_id,
                size_bytes=header.size_bytes,
                file_digest=bytes.fromhex(header.digest),
            )
            self._sinks[header.snapshot_id] = receiver
        self._headers[header.snapshot_id] = header
        if receiver.held_bytes:
            self._stats.snapshot_resumed_bytes += receiver.held_bytes
            _log.info(
                "snapshot %s goes on at byte %d of %d", header.snapshot_id, receiver.held_bytes, header.size_bytes
            )
        return receiver

    async def receive_finish(self, header: peer_pb2.SnapshotHeader, receiver: SnapshotReceiver) -> None:
        """All bytes are there: verify them, hand the core its message, wait until the driver has installed it.

        Raises:
            Unavailable: the core does not want it (SNAPSHOT_STALE): it is of a deposed leader, or the node has caught
                up otherwise. Whoever sent it is told at once, so that it may send a newer one. Or the install takes
                longer than MAX_SNAPSHOT_INSTALL_MS (SNAPSHOT_UNDER_WAY): it goes on.
        """
        self.check_open(receiver)
        self._spent.add(receiver)
        self._verifying += 1
        try:
            await receiver.finish()
            installed = self._hand_over(header, receiver)
        finally:
            self._verifying -= 1
            self._sinks.pop(header.snapshot_id, None)
            self._headers.pop(header.snapshot_id, None)
            receiver.close()
        try:
            await asyncio.wait_for(asyncio.shield(installed), timeout=limits.MAX_SNAPSHOT_INSTALL_MS / 1_000)
        except TimeoutError:
            raise Unavailable("the snapshot is still being installed", code="SNAPSHOT_UNDER_WAY") from None

    def note_failure(self, header: peer_pb2.SnapshotHeader, error: StorageFailed | None) -> None:
        """Keep why a part of a snapshot could not be stored, for people to see; None = one was."""
        self._failure = (header.index, error.message) if error is not None else (0, "")

    def check_open(self, receiver: SnapshotReceiver) -> None:
        """Raise Unavailable (SNAPSHOT_STALE) when another sender has brought the same snapshot to its end."""
        if receiver in self._spent:
            raise Unavailable("another sender has brought this snapshot", code="SNAPSHOT_STALE")

    def _hand_over(self, header: peer_pb2.SnapshotHeader, receiver: SnapshotReceiver) -> asyncio.Future[None]:
        message = decode_message(peer_pb2.RaftMessage.FromString(header.raft_message))
        with self._guard:
            self._raft.step(message)
        self._wake()
        wanted = self._raft.log.snapshot
        if wanted is None or wanted.index != header.index or header.index in self._accepted:
            raise Unavailable("the snapshot was not wanted any more", code="SNAPSHOT_STALE")
        installed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._accepted[header.index] = _Accepted(receiver.path, header.size_bytes, installed)
        return installed

    async def install(self, meta: SnapshotMeta) -> None:
        """Called by the driver for Ready.snapshot: switch the state, then begin the log behind it."""
        accepted = self._accepted.get(meta.index)
        if accepted is None:
            raise KvError("SNAPSHOT_MISSING", f"no received snapshot at index {meta.index}", phase="storage")
        await self._state.install_snapshot(accepted.path, index=meta.index, term=meta.term)
        await self._log.reset(self._state.meta.applied_index, self._state.meta.applied_term)
        self._stats.snapshots_installed += 1
        for index in [index for index in self._accepted if index <= meta.index]:
            # An older one that this replaced is no longer needed either.
            self._accepted.pop(index).installed.set_result(None)

    async def close(self) -> None:
        """End every transfer."""
        tasks = [*self._sending.values()]
        if self._making is not None:
            tasks.append(self._making)  # type: ignore[arg-type]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for receiver in self._sinks.values():
            receiver.close()
        for accepted in self._accepted.values():
            accepted.installed.cancel()


class Sink:
    """One incoming transfer (ports.SnapshotSink)."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._header: peer_pb2.SnapshotHeader | None = None
        self._receiver: SnapshotReceiver | None = None

    async def open(self, header: peer_pb2.SnapshotHeader) -> int:
        """See ports.SnapshotSink."""
        decode_membership(header.membership)
        self._header = header
        with self._noting():
            self._receiver = await self._snapshots.receive_open(header)
        return self._receiver.held_bytes

    async def write(self, offset: int, data: bytes) -> int:
        """See ports.SnapshotSink."""
        assert self._receiver is not None and self._header is not None
        self._snapshots.check_open(self._receiver)
        with self._noting():
            await self._receiver.write(offset, data)
        self._snapshots.note_failure(self._header, None)
        return self._receiver.held_bytes

    async def finish(self) -> None:
        """See ports.SnapshotSink."""
        assert self._receiver is not None and self._header is not None
        with self._noting():
            await self._snapshots.receive_finish(self._header, self._receiver)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        assert self._header is not None
        try:
            yield
        except StorageFailed as error:
            self._snapshots.note_failure(self._header, error)
            raise
