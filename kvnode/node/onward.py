"""Eventual reads that this node's own state is too old for: another node answers them, one hop away.

Whom to ask: the leader, whose state is the newest that there is; without its answer the other voters. Each gets
READ_ONWARD_TIMEOUT_MS, so that one that is silent does not use up the read's time. Whoever is asked answers from its
own state or refuses; it asks nobody else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from kvnode.base import limits
from kvnode.codec.membership import Membership
from kvnode.node.calls import Call
from kvnode.node.ports import Deliver, Origin
from kvnode.node.stats import Stats
from kvnode.proto.kv.v1 import kv_pb2

# What another node may answer better, or this one after all. Every other error is about the read itself.
_TRY_ANOTHER_CODES = frozenset({
    "TOO_STALE", "PEER_UNREACHABLE", "FORWARD_BROKEN", "DEADLINE_EXCEEDED", "NODE_STOPPING"
})  # fmt: skip

GaveUp = Callable[[Call, str], None]
"""Told, with the reasons, when nobody answered."""


class Leading(Protocol):
    """What is looked at of the core."""

    @property
    def leader_id(self) -> int:
        """0 = unknown."""


class _Forward(Protocol):
    def __call__(self, to: int, origin: Origin, operation: kv_pb2.Operation, deliver: Deliver) -> None: ...


class _Asking:
    """One read on its way."""

    __slots__ = ("attempt", "candidates", "gave_up", "reasons", "until_ms")

    def __init__(self, candidates: list[tuple[int, str]], gave_up: GaveUp) -> None:
        self.candidates = candidates
        self.gave_up = gave_up
        self.attempt = 0
        self.until_ms = 0.0
        self.reasons: list[str] = []


class Onward:
    """The reads that are with others.

    Args:
        node_id: this node's.
        raft: knows the leader.
        membership: the members, as of now.
        forward: the transport's.
        now_ms: a monotonic clock.
        stats: counts what is sent.
    """

    def __init__(
        self,
        node_id: int,
        raft: Leading,
        membership: Callable[[], Membership],
        forward: _Forward,
        now_ms: Callable[[], float],
        stats: Stats,
    ) -> None:
        self._node_id = node_id
        self._raft = raft
        self._membership = membership
        self._forward = forward
        self._now_ms = now_ms
        self._stats = stats
        self._asking: dict[Call, _Asking] = {}

    def go(self, call: Call, gave_up: GaveUp) -> None:
        """Have another node answer a read; `gave_up` is called, perhaps at once, when none does."""
        if call.forwarded:
            gave_up(call, "")
        elif len(self._asking) >= limits.MAX_READS_ONWARD_COUNT:
            gave_up(call, "too many reads wait for other nodes already")
        elif call not in self._asking:
            asking = self._asking[call] = _Asking(self._candidates(), gave_up)
            self._next(call, asking)

    def sweep(self, now_ms: float) -> None:
        """Go on to the next where one is silent, and forget what is settled."""
        for call, asking in list(self._asking.items()):
            if call.done:
                del self._asking[call]
            elif now_ms >= asking.until_ms:
                asking.reasons.append(f"silent for {limits.READ_ONWARD_TIMEOUT_MS} ms")
                self._next(call, asking)

    def _candidates(self) -> list[tuple[int, str]]:
        leader_id = self._raft.leader_id
        voters = sorted(self._membership().voters, key=lambda m: (m.node_id != leader_id, m.node_id))
        others = [(member.node_id, member.name) for member in voters if member.node_id != self._node_id]
        return others[: limits.MAX_READ_ONWARD_ATTEMPTS_COUNT]

    def _next(self, call: Call, asking: _Asking) -> None:
        if not asking.candidates or self._now_ms() >= call.deadline_ms:
            self._asking.pop(call, None)
            asking.gave_up(call, "; ".join(asking.reasons))
            return
        assert call.operation is not None
        node_id, name = asking.candidates.pop(0)
        asking.attempt += 1
        now = self._now_ms()
        asking.until_ms = min(call.deadline_ms, now + limits.READ_ONWARD_TIMEOUT_MS)
        operation = kv_pb2.Operation(id=call.operation.id, read=call.operation.read)
        operation.timeout_ms = max(1, int(asking.until_ms - now))
        self._stats.reads_onward += 1
        self._forward(node_id, call.origin, operation, partial(self._answered, call, asking, asking.attempt, name))

    def _answered(self, call: Call, asking: _Asking, attempt: int, name: str, result: kv_pb2.OperationResult) -> None:
        if call.done:
            self._asking.pop(call, None)
        elif not (result.HasField("error") and result.error.code in _TRY_ANOTHER_CODES):
            self._asking.pop(call, None)
            call.answer(result)
        elif asking.attempt == attempt and self._asking.get(call) is asking:
            asking.reasons.append(f"'{name}': {result.error.message}")
            self._next(call, asking)
