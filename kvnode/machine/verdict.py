"""What the leader's judgement of one request can be."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from kvnode.base.errors import KvError
from kvnode.proto.kv.v1 import kv_pb2


class Accepted(NamedTuple):
    """The transaction is in the batch as its transaction `order`; it holds once the entry commits.

    `results`: one for each of its queue actions.
    """

    versionstamp: bytes
    order: int
    results: tuple[kv_pb2.QueueActionResult, ...] = ()


class CheckFailed(NamedTuple):
    """A check does not hold on the prefix up to Batch.judged_index.

    This is a strong read: answer it when that prefix is committed and a ReadIndex round begun after the judgement
    has confirmed leadership. `logged`: the outcome itself is in the batch, so the entry's commit settles it.
    """

    failed_checks: tuple[int, ...]
    logged: bool


class Rejected(NamedTuple):
    """The transaction cannot be applied to what it found (sum of a non-number, range too large). As CheckFailed."""

    error: KvError
    logged: bool


class Settled(NamedTuple):
    """A resend of what was applied before; the outcome is in the state.

    `kind` is an OutcomeKind of the log, `lost_actions` the positions of the queue actions whose leases were lost.
    """

    kind: int
    versionstamp: bytes
    failed_checks: tuple[int, ...]
    error: KvError | None
    lost_actions: tuple[int, ...] = ()


class InFlight(NamedTuple):
    """A resend whose first copy is transaction `order` of the entry at `index`, not yet applied: join its future."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    order: int


class Refused(NamedTuple):
    """The request id says nothing that this database can vouch for; never executed."""

    error: KvError


Verdict: TypeAlias = Accepted | CheckFailed | Rejected | Settled | InFlight | Refused
