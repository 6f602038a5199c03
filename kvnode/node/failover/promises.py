"""How a coordinator collects the promises: from one member after the other, in an order that all coordinators share.

A node that has promised lets no other failover in for a while. Were all asked together, each of two coordinators could
win some of them, and both would break off after nodes had left the primary for their sake. So each asks in the order
of the node ids and stops at the first one that another failover has taken. For any number of coordinators, each of
which may reach other members than the rest: one that is refused at a node was not refused there by somebody who is
refused at an earlier one, because whoever holds that node has all the earlier ones behind him. So the refusals form no
circle, and at least one coordinator is refused by nobody (ordered acquisition: Havender, Avoiding deadlock in
multitasking systems, 1968). Where both reach the first member, the loser has changed nothing at all.

It is about who comes through, never about safety, which rests on the promises (docs/design/failover.md). So a node that
is slow may be passed over after a turn, and is waited for while the next ones are asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.codec.membership import Member
from kvnode.node.failover.plan import Report
from kvnode.proto.kv.internal.v1.failover_pb2 import FailoverResponse

_Answer = asyncio.Task[FailoverResponse]
_OTHERS = frozenset({"FAILOVER_IN_PROGRESS", "FAILOVER_SUPERSEDED", "EPOCH_PROMISED"})  # another failover is in the way
_REFUSED = frozenset({"FAILOVER_IN_PROGRESS", "EPOCH_PROMISED", "BALLOT_REFUSED"})  # the node has promised nothing


@dataclass(frozen=True, slots=True)
class Promises:
    """What came of it.

    Attributes:
        reports: of those that have promised, as of then.
        hindrance: who keeps the failover from going on, and why; None = nobody.
        may_stand: whether somebody has promised, or may have.
    """

    reports: list[Report]
    hindrance: tuple[Member, KvError] | None
    may_stand: bool


async def collect(
    members: Iterable[Member],
    required: Collection[int],
    ask: Callable[[Member], Coroutine[Any, Any, FailoverResponse]],
) -> Promises:
    """Ask the members to promise, one after the other.

    Args:
        required: the ids of those without whose promise nothing is begun.
        ask: asks one; what it raises beside KvError is raised here.
    """
    asked: dict[Member, _Answer] = {}
    try:
        for member in sorted(members, key=lambda member: member.node_id):
            asked[member] = asyncio.ensure_future(ask(member))
            await asyncio.wait([asked[member]], timeout=limits.FAILOVER_PROMISE_TURN_MS / 1_000)
            if _hindrance(asked, required) is not None:
                break
        else:
            await asyncio.gather(*asked.values(), return_exceptions=True)
        return Promises(_reports(asked), _hindrance(asked, required), any(map(_may_stand, asked.values())))
    finally:
        for answer in asked.values():
            answer.cancel()


def _error(answer: _Answer) -> KvError | None:
    if not answer.done():
        return None
    error = answer.exception()
    if error is not None and not isinstance(error, KvError):
        raise error
    return error


def _hindrance(asked: dict[Member, _Answer], required: Collection[int]) -> tuple[Member, KvError] | None:
    for member, answer in asked.items():
        error = _error(answer)
        if error is not None and (member.node_id in required or error.code in _OTHERS):
            return member, error
    return None


def _reports(asked: dict[Member, _Answer]) -> list[Report]:
    return [answer.result().report for answer in asked.values() if answer.done() and _error(answer) is None]


def _may_stand(answer: _Answer) -> bool:
    error = _error(answer)
    return error is None or error.code not in _REFUSED
