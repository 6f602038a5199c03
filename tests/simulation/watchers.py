"""Simulated watches: readers beside the nodes, and what must hold of every state that they are shown.

A reader sits in its node's process, so that nothing lies between the hub and what is recorded. Each frame, put together
with those before it, is recorded as an eventual read of what is watched, at the versionstamp and with the age that the
frame claims: the checker then says whether it was one state of the history, and no older than it said. In between, what
a reader with a bound has been shown counts as read again every now and then: it may be no older than the bound for as
long as the watch goes on. At the end each reader must hold the last state.

Nothing is drawn for them and they take no time, so that the seeds stay as they were.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from cluster.history import Operation, Range, Read, Seen, SeenEntry, SeenRange
from kvnode.base.errors import KvError, TooStale
from kvnode.codec.row import Row
from kvnode.node.node import Node
from kvnode.node.watch import DATABASE_PREFIX_BYTES, DEFAULT_DATABASE, Watch
from kvnode.proto.kv.v1 import kv_pb2
from tests.simulation.clock import EPOCH_MS
from tests.simulation.cluster import Cluster, Server
from tests.simulation.loop import SimulatedLoop
from tests.simulation.observer import Violation
from tests.simulation.workload import EXPIRING, NUMBERS, REGISTERS, STALENESS_BOUNDS_MS, SWEPT, Journal, Record

SHARE = 3  # every third seed has watches
LOOK_S = 0.25
AGAIN_S = 0.5  # after a watch ended with TooStale
KEYS = [*REGISTERS[:4], *NUMBERS[:2], *SWEPT[:2], *EXPIRING[:2]]
RANGE = (b"r", b"u")  # registers, rows under stamps, rows that expire
_MAX_ROWS = 1_000
_PREFIX = DEFAULT_DATABASE.to_bytes(DATABASE_PREFIX_BYTES, "big")


def has_watches(seed: int) -> bool:
    """Whether a seed has readers; nothing is drawn for it."""
    return seed % SHARE == 0


class Reader:
    """One watch after the other at one incarnation of a node.

    Args:
        bound_ms: on staleness; 0 = none.
        of_range: watch RANGE, not KEYS.
    """

    def __init__(
        self, loop: SimulatedLoop, server: Server, node: Node, journal: Journal, bound_ms: int, *, of_range: bool
    ) -> None:
        self._loop = loop
        self._server = server
        self._node = node
        self._journal = journal
        self._bound_ms = bound_ms
        self._of_range = of_range
        self._shown: dict[bytes, SeenEntry] = {}
        self._watch: Watch | None = None
        self._has_begun = False
        self._process = server.process
        self._process.spawn(self._run(), "watch")

    @property
    def belongs(self) -> bool:
        """Whether its node still runs."""
        return self._server.process is self._process and self._server.serving and self._server.node is self._node

    @property
    def name(self) -> str:
        """Of its node."""
        return self._server.member.name

    async def _run(self) -> None:
        request = kv_pb2.WatchRequest(max_staleness_ms=self._bound_ms)
        if self._of_range:
            request.prefix_start, request.prefix_end = RANGE
        else:
            request.keys.extend(KEYS)
        while True:
            try:
                await self._follow(self._node.watches.watch(request))
            except TooStale:
                self._has_begun = False
                await asyncio.sleep(AGAIN_S)
            except KvError:
                return  # the node stops

    async def _follow(self, watch: Watch) -> None:
        self._watch, self._shown, self._has_begun = watch, {}, False
        async for frame in watch:
            if frame.ping:
                continue
            if frame.resync:
                self._shown = dict(self._rows())
            for item in frame.keys:
                if item.changed and item.HasField("entry"):
                    self._shown[item.key] = SeenEntry(item.key, item.entry.value, item.entry.versionstamp)
                elif item.changed:
                    self._shown.pop(item.key, None)
            self._has_begun = True
            self._record(frame.versionstamp, frame.age_ms)

    def look(self) -> None:
        """While nothing changes, what was shown is the node's state, and may be no older than the bound."""
        watch = self._watch
        if watch is not None and watch.open and self._has_begun and self._bound_ms and self._is_at_rest:
            self._record(self._node.watches.stamp(), self._bound_ms)

    @property
    def _is_at_rest(self) -> bool:
        return self._node.watches.is_told and not self._process.frozen and not self._has_expired

    @property
    def _has_expired(self) -> bool:
        """Whether a row's time has come and no tick has deleted it yet: till then nobody may be told."""
        state = self._node.state
        rows = [state.get(_PREFIX + key) for key in self._shown]
        return any(row is not None and 0 < row.expire_at_ms <= state.meta.log_time_ms for row in rows)

    def holds_the_last(self) -> bool:
        """Whether the reader has been shown the node's state, or has none to show."""
        return not self._has_begun or self._shown == dict(self._rows())

    def _rows(self) -> Iterator[tuple[bytes, SeenEntry]]:
        """What is watched, as the node's state has it."""
        for key in self._keys():
            row: Row | None = self._node.watches.row(_PREFIX + key)
            if row is not None:
                yield key, SeenEntry(key, row.value, row.versionstamp)

    def _keys(self) -> list[bytes]:
        if not self._of_range:
            return KEYS
        rows = self._node.state.scan(_PREFIX + RANGE[0], _PREFIX + RANGE[1], _MAX_ROWS)
        return [row.key[DATABASE_PREFIX_BYTES:] for row in rows]

    def _record(self, stamp: bytes, age_ms: int) -> None:
        ranges = [Range(*RANGE, limit=_MAX_ROWS)] if self._of_range else [Range(key, key + b"\x00") for key in KEYS]
        seen = tuple(_within(asked, self._shown) for asked in ranges)
        now_ms = EPOCH_MS + self._loop.time() * 1_000
        read = Read(tuple(ranges), strong=False, max_staleness_ms=self._bound_ms)
        label = f"watch of {'a range' if self._of_range else 'keys'} at {self.name}"
        operation = Operation(now_ms, now_ms, read, Seen(stamp, seen, age_ms), label)
        self._journal.records.append(Record(operation, b"", 0, is_write=False))


class Watchers:
    """The readers of one seed: at every node of every third seed.

    Args:
        seed: without watches when it is not one of them.
    """

    def __init__(self, seed: int, loop: SimulatedLoop, cluster: Cluster, journal: Journal) -> None:
        self._loop = loop
        self._cluster = cluster
        self._journal = journal
        self._active = has_watches(seed)
        self._readers: dict[int, Reader] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """From now on whoever serves has a reader."""
        if self._active:
            self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        while True:
            for number, server in enumerate(self._cluster.servers.values()):
                reader = self._readers.get(number)
                if reader is not None and reader.belongs:
                    reader.look()
                elif server.serving and server.node is not None and not server.process.frozen:
                    bound_ms = (0, *STALENESS_BOUNDS_MS)[number % 4]
                    self._readers[number] = Reader(
                        self._loop, server, server.node, self._journal, bound_ms, of_range=number % 2 == 1
                    )
            await asyncio.sleep(LOOK_S)

    def stop(self) -> None:
        """At the end, with all nodes at rest: every reader holds the last state. Raises Violation."""
        if self._task is not None:
            self._task.cancel()
        for reader in self._readers.values():
            if reader.belongs and not reader.holds_the_last():
                raise Violation("watch", f"a reader at {reader.name} was not shown the last state")


def _within(asked: Range, rows: Mapping[bytes, SeenEntry]) -> SeenRange:
    return SeenRange(tuple(rows[key] for key in sorted(rows) if asked.start <= key < asked.end))
