"""Small strong reads that come together are one call on their way through the leader.

What a strong read costs beyond its row is its call: made, queued at the barrier, confirmed, judged and answered. Reads
that come between two rounds are confirmed by the same round and see the same state, so they share all of that. A read
may join a batch for only as long as the batch's round has not been sent (barriers.py says why); then another is begun.

A batch exists between the intake and its answer on the leader alone; where it holds too much for one pass of the loop,
it is answered in pieces (read_turns.py). Whatever else becomes of it (leadership lost, a
gate that an answer has to pass), it is taken apart into ordinary calls, each with its own deadline. Measured in turns
at 64 callers over HTTP/1.1: 0.88 of the leader's processor time a get with a call of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.node.barriers import Barriers
from kvnode.node.calls import Call, error_message
from kvnode.node.ports import Deliver, Origin
from kvnode.proto.kv.v1 import kv_pb2

_JOIN_WITHIN_MS = 2.0  # so that the batch's deadline is that of each of its reads, but for this
_NOBODY = Origin(b"", 0)


class Lane(NamedTuple):
    """What reads that have to wait have in common (read_turns.py)."""

    client_id: bytes
    database: int
    is_small: bool


def lane_of(operation: kv_pb2.Operation, origin: Origin) -> Lane:
    """That of a read: the small are those that ask for no more entries than a read may have ranges."""
    entries_count = sum([wanted.limit for wanted in operation.read.ranges])
    return Lane(origin.client_id, origin.database, entries_count <= limits.MAX_READ_RANGES_COUNT)


class BatchedRead(NamedTuple):
    """One of them."""

    operation: kv_pb2.Operation
    origin: Origin
    deliver: Deliver
    started_ms: float


class ReadBatch(Call):
    """Reads that share a call. Each is answered once.

    Args:
        started_ms: when the first of them came.
        timeout_ms: the time that each of them has.
        forwarded: they come from other nodes and must not be forwarded again.
        generation: of the barrier that they wait at.
    """

    __slots__ = ("generation", "reads", "timeout_ms")

    def __init__(self, started_ms: float, timeout_ms: int, *, forwarded: bool, generation: int) -> None:
        super().__init__(None, _NOBODY, None, None, started_ms, timeout_ms, forwarded=forwarded)
        self.timeout_ms = timeout_ms
        self.generation = generation
        self.reads: list[BatchedRead] = []

    @property
    def reads_count(self) -> int:
        """See Call."""
        return len(self.reads)

    def fail(self, error: KvError) -> None:
        """Deliver the error to each of them, once."""
        if self.done:
            return
        self.done = True
        message = error_message(error)
        for read in self.reads:
            read.deliver(kv_pb2.OperationResult(id=read.operation.id, error=message))

    def calls(self) -> list[Call]:
        """Take it apart: an ordinary call for each; this one is done with."""
        if self.done:
            return []
        self.done = True
        return [self.call(read) for read in self.reads]

    def call(self, read: BatchedRead) -> Call:
        """An ordinary call for one of them."""
        return Call(
            read.operation,
            read.origin,
            read.deliver,
            None,
            read.started_ms,
            self.timeout_ms,
            forwarded=self.forwarded,
        )

    def split(self, count: int) -> ReadBatch:
        """Take the first reads out, as a batch of their own."""
        first = self._with(self.reads[:count])
        self.reads = self.reads[count:]
        return first

    def by_lane(self) -> list[tuple[Lane, ReadBatch]]:
        """A batch for each lane that has reads in this one, which is done with."""
        if self.done:
            return []
        reads: dict[Lane, list[BatchedRead]] = {}
        for read in self.reads:
            reads.setdefault(lane_of(read.operation, read.origin), []).append(read)
        self.done = True
        return [(lane, self._with(of_lane)) for lane, of_lane in reads.items()]

    def _with(self, reads: list[BatchedRead]) -> ReadBatch:
        batch = ReadBatch(self.started_ms, self.timeout_ms, forwarded=self.forwarded, generation=self.generation)
        batch.leased = self.leased
        batch.reads = reads
        return batch


class ReadBatches:
    """Gathers reads into batches, and adds these to the barrier.

    Args:
        barriers: the leader's.
        nudge: tells the driver that a round is wanted.
    """

    def __init__(self, barriers: Barriers, nudge: Callable[[], None]) -> None:
        self._barriers = barriers
        self._nudge = nudge
        self._open: ReadBatch | None = None

    def join(self, read: BatchedRead, timeout_ms: int, *, forwarded: bool) -> None:
        """Let a read wait with the others that came just now. This node leads; the read is small and valid."""
        batch = self._open
        if (
            batch is None
            or batch.done
            or batch.generation != self._barriers.generation
            or batch.timeout_ms != timeout_ms
            or batch.forwarded != forwarded
            or read.started_ms - batch.started_ms > _JOIN_WITHIN_MS
            or len(batch.reads) >= limits.MAX_READ_BATCH_COUNT
        ):
            generation = self._barriers.generation
            batch = self._open = ReadBatch(read.started_ms, timeout_ms, forwarded=forwarded, generation=generation)
            batch.reads.append(read)
            self._barriers.add(batch)
            self._nudge()
        else:
            batch.reads.append(read)


def apart(calls: Iterable[Call]) -> list[Call]:
    """Those calls, batches taken apart."""
    found: list[Call] = []
    for call in calls:
        if isinstance(call, ReadBatch):
            found.extend(call.calls())
        else:
            found.append(call)
    return found
