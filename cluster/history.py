"""What a recorder writes down about a run: operations with their intervals, requests and answers.

Nothing here touches a clock, a file or the network. Times are milliseconds on the one clock of the
recorder. Where keys expire, that clock must be the one that `expire_at_ms` was computed from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from kvnode.proto.kv.v1 import kv_pb2


class MutationKind(IntEnum):
    """As MutationType of the protocol."""

    SET = 1
    DELETE = 2
    SUM = 3
    MAX = 4
    MIN = 5
    DELETE_RANGE = 6
    SET_SUFFIX_VERSIONSTAMPED_KEY = 9


class Check(NamedTuple):
    """The key must have exactly this versionstamp; empty = it must not exist."""

    key: bytes
    versionstamp: bytes = b""


class Mutation(NamedTuple):
    """One change. `end_key` belongs to DELETE_RANGE; `expire_at_ms` 0 = never."""

    kind: MutationKind
    key: bytes
    value: bytes = b""
    end_key: bytes = b""
    expire_at_ms: int = 0


class Range(NamedTuple):
    """One range of a read: [start, end). A count has no limit."""

    start: bytes
    end: bytes
    limit: int = 1
    reverse: bool = False
    keys_only: bool = False
    count_only: bool = False


class SeenEntry(NamedTuple):
    """A row as a read answered it."""

    key: bytes
    value: bytes
    versionstamp: bytes


@dataclass(frozen=True, slots=True)
class SeenRange:
    """One range's answer."""

    entries: tuple[SeenEntry, ...]
    count: int = 0


@dataclass(frozen=True, slots=True)
class Write:
    """An atomic write."""

    checks: tuple[Check, ...] = ()
    mutations: tuple[Mutation, ...] = ()


@dataclass(frozen=True, slots=True)
class Read:
    """A read of several ranges in one snapshot."""

    ranges: tuple[Range, ...]
    strong: bool = True
    min_versionstamp: bytes = b""
    max_staleness_ms: int = 0


@dataclass(frozen=True, slots=True)
class Committed:
    """The write was applied at this versionstamp."""

    versionstamp: bytes


@dataclass(frozen=True, slots=True)
class CheckFailed:
    """The write changed nothing because these of its checks (by index) did not hold."""

    failed_checks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """A read's answer. `age_ms` is the node's own bound on its staleness; negative = not known."""

    versionstamp: bytes
    ranges: tuple[SeenRange, ...]
    age_ms: int = -1


@dataclass(frozen=True, slots=True)
class Rejected:
    """An error that says that nothing was changed, or any error of a read."""

    code: str = ""


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer, or one that leaves open whether the write was applied."""


Request = Write | Read
Outcome = Committed | CheckFailed | Seen | Rejected | Unknown


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a client.

    Args:
        invoked_ms: when the client began; resends under the same request id belong to the same operation.
        completed_ms: when it had the answer; None where there was none.
        request: what it asked for.
        outcome: what it was told.
        label: who asked, and where, for messages about it.
    """

    invoked_ms: float
    completed_ms: float | None
    request: Request
    outcome: Outcome
    label: str = ""


@dataclass(slots=True)
class History:
    """Operations in any order."""

    operations: list[Operation] = field(default_factory=list)

    def add(
        self, invoked_ms: float, completed_ms: float | None, request: Request, outcome: Outcome, label: str = ""
    ) -> None:
        """Write one operation down."""
        self.operations.append(Operation(invoked_ms, completed_ms, request, outcome, label))


def write_from(request: kv_pb2.AtomicWriteRequest) -> Write:
    """The write that a protocol message asks for."""
    return Write(
        tuple(Check(check.key, check.versionstamp) for check in request.checks),
        tuple(
            Mutation(MutationKind(item.type), item.key, item.value.data, item.end_key, max(item.expire_at_ms, 0))
            for item in request.mutations
        ),
    )


def read_from(request: kv_pb2.ReadRequest) -> Read:
    """The read that a protocol message asks for."""
    return Read(
        tuple(
            Range(item.start, item.end, item.limit, item.reverse, item.keys_only, item.count_only)
            for item in request.ranges
        ),
        request.consistency == kv_pb2.CONSISTENCY_STRONG,
        request.min_versionstamp,
        request.max_staleness_ms,
    )


def write_outcome(response: kv_pb2.AtomicWriteResponse) -> Outcome:
    """What an answer to a write says."""
    if response.status == kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS:
        return Committed(response.versionstamp)
    if response.status == kv_pb2.ATOMIC_WRITE_STATUS_CHECK_FAILED:
        return CheckFailed(tuple(response.failed_checks))
    return Unknown()


def read_outcome(response: kv_pb2.ReadResponse) -> Seen:
    """What an answer to a read says."""
    return Seen(response.versionstamp, tuple(_seen_range(item) for item in response.ranges), response.age_ms)


def error_outcome(not_applied: bool, code: str) -> Outcome:
    """What an error says."""
    return Rejected(code) if not_applied else Unknown()


def _seen_range(result: kv_pb2.ReadRangeResult) -> SeenRange:
    entries: Sequence[kv_pb2.Entry] = result.entries
    return SeenRange(tuple(SeenEntry(item.key, item.value, item.versionstamp) for item in entries), result.count)
