"""Which queues this node pushes: all that name a URL, while it leads.

A node that leads looks at one row, PUSH_VERSION_KEY, which whoever changes a push writes too; only when it or the list
of databases is another one than before are the pushes themselves read. A pusher whose URL, key or limits have changed
is stopped, and one with the new ones is started beside it.

When leadership is lost the pushers stop, and the new leader's begin: for as long as requests that are under way take,
two nodes call the same URL. Leases keep them from pushing the same message, as they do with any two consumers.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import NamedTuple, Protocol

from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.base.errors import KvError
from kvnode.codec.row import Row
from kvnode.machine.queue import keys
from kvnode.machine.queue.arrivals import QueueId
from kvnode.machine.queue.push_url import parse_push_url
from kvnode.node.directory import Directory
from kvnode.node.push.addresses import AddressPolicy
from kvnode.node.push.client import PushClient
from kvnode.node.push.pusher import Pusher
from kvnode.node.push.request import Signer
from kvnode.node.push.stats import PushStats
from kvnode.node.queue.queues import Queues
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows
from kvnode.proto.kv.v1 import kv_pb2

_log = logging.getLogger(__name__)


class PushingNode(Protocol):
    """The part of a node that is needed."""

    directory: Directory

    @property
    def is_leader(self) -> bool:
        """Whether it leads, as far as it knows."""

    @property
    def queues(self) -> Queues:
        """Its part in queues."""

    async def write(
        self, request: kv_pb2.AtomicWriteRequest, timeout_ms: int = 0, *, database: int
    ) -> kv_pb2.AtomicWriteResponse:
        """One atomic write."""


class Rows(Protocol):
    """The applied state."""

    def get(self, key: bytes) -> Row | None:
        """See kvnode.machine.state_reader."""

    def scan(self, start: bytes, end: bytes, limit: int) -> list[Row]:
        """See kvnode.machine.state_reader."""


class _Wanted(NamedTuple):
    """How a queue is to be pushed."""

    url: str
    key: bytes
    concurrency: int
    timeout_ms: int
    database: str  # its name


class _Running(NamedTuple):
    wanted: _Wanted
    pusher: Pusher
    task: asyncio.Task[None]


class Pushers:
    """The pushers of one node.

    Args:
        node: the node.
        state: its applied state.
        policy: which addresses may be called.
        stats: where they count.
        clock: dates requests.
    """

    def __init__(self, node: PushingNode, state: Rows, policy: AddressPolicy, stats: PushStats, clock: Clock) -> None:
        self._node = node
        self._state = state
        self._policy = policy
        self._stats = stats
        self._clock = clock
        self._room = asyncio.Semaphore(limits.MAX_PUSH_REQUESTS_COUNT)
        self._running: dict[QueueId, _Running] = {}
        self._ending: dict[asyncio.Task[None], None] = {}
        self._notes: dict[asyncio.Task[None], None] = {}
        self._seen: tuple[bytes, int] | None = None  # the pushes that were read last

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            try:
                self.look()
            except Exception:
                _log.exception("the pushes of queues could not be looked at; it is tried again")
            await asyncio.sleep(limits.PUSH_DUTY_INTERVAL_MS / 1_000)

    def look(self) -> None:
        """Start and stop what is to be."""
        for queue in [queue for queue, running in self._running.items() if running.task.done()]:
            del self._running[queue]
            self._seen = None
        if not self._node.is_leader:
            self._seen = None
            self._stop(list(self._running))
            return
        version = self._state.get(keys.PUSH_VERSION_KEY)
        seen = (b"" if version is None else version.versionstamp, self._node.directory.view.generation)
        if seen != self._seen:
            self._seen = seen
            self._compare(self._read() if version is not None else {})

    async def close(self) -> None:
        """The node stops: a moment for requests under way, then they are broken off and their messages given back."""
        self._stop(list(self._running))
        if self._ending:
            await asyncio.wait(self._ending, timeout=limits.PUSH_CLOSE_TIMEOUT_MS / 1_000)
        tasks = [*self._ending, *self._notes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _read(self) -> dict[QueueId, _Wanted]:
        wanted: dict[QueueId, _Wanted] = {}
        databases = self._node.directory.view.databases
        self._stats.forget_all_but(set(databases))
        for database in databases.values():
            bound = limits.MAX_PUSHERS_COUNT - len(wanted)
            for row in self._state.scan(*keys.push_bounds(database.number), bound):
                push = rows.PushRow.FromString(row.value)
                wanted[database.number, keys.queue_of_key(row.key)] = _Wanted(
                    push.url,
                    push.key,
                    push.concurrency or limits.DEFAULT_PUSH_CONCURRENCY_COUNT,
                    push.timeout_ms or limits.DEFAULT_PUSH_TIMEOUT_MS,
                    database.name,
                )
            if len(wanted) >= limits.MAX_PUSHERS_COUNT:
                _log.warning("%d queues are pushed, and no more; others wait", limits.MAX_PUSHERS_COUNT)
                break
        return wanted

    def _compare(self, wanted: dict[QueueId, _Wanted]) -> None:
        self._stop([queue for queue, running in self._running.items() if wanted.get(queue) != running.wanted])
        for queue, found in wanted.items():
            if queue not in self._running:
                self._start(queue, found)

    def _start(self, queue: QueueId, wanted: _Wanted) -> None:
        url = parse_push_url(wanted.url)
        database, name = queue
        pusher = Pusher(
            self._node.queues,
            database,
            name,
            Signer(url, wanted.key, wanted.database),
            PushClient(url, self._policy, wanted.timeout_ms),
            wanted.concurrency,
            self._room,
            partial(self._note, queue),
            self._stats.of(queue),
            self._clock.now_ms,
        )
        task = asyncio.get_running_loop().create_task(pusher.run(), name=f"push:{name}")
        task.add_done_callback(_tell)
        self._running[queue] = _Running(wanted, pusher, task)

    def _stop(self, queues: list[QueueId]) -> None:
        for queue in queues:
            running = self._running.pop(queue)
            running.pusher.stop()
            self._ending[running.task] = None
            running.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.pop(task, None)

    def _note(self, queue: QueueId, error: str) -> None:
        """Have the queue's row say why nothing is pushed, if it does not yet."""
        row = self._state.get(keys.push_key(*queue))
        if row is None or rows.PushRow.FromString(row.value).error == error or not self._node.is_leader:
            return
        if error:
            _log.warning("queue '%s' is not pushed: %s", queue[1], error)
        task = asyncio.get_running_loop().create_task(self._write_note(queue, error))
        self._notes[task] = None
        task.add_done_callback(lambda task: self._notes.pop(task, None))

    async def _write_note(self, queue: QueueId, error: str) -> None:
        database, name = queue
        note = kv_pb2.QueueAction(push_note=kv_pb2.QueuePushNote(queue=name, error=error))
        try:
            await self._node.write(kv_pb2.AtomicWriteRequest(actions=[note]), database=database)
        except KvError as failure:
            _log.info("why queue '%s' is not pushed was not noted: %s", name, failure)


def _tell(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a pusher failed in a way that nobody foresaw; it is started anew", exc_info=error)
