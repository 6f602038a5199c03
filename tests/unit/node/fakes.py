"""A clock to be set by hand, and calls whose answers are kept."""

from __future__ import annotations

from kvnode.base.errors import NotLeader
from kvnode.node.calls import Call
from kvnode.node.ports import Origin
from kvnode.proto.kv.v1 import kv_pb2


class HandClock:
    """base.clock.Clock, moved by the test."""

    def __init__(self, wall_ms: int = 1_000_000, monotonic_ms: float = 50_000.0) -> None:
        self.wall_ms = wall_ms
        self.at_ms = monotonic_ms

    def now_ms(self) -> int:
        """See Clock."""
        return self.wall_ms

    def monotonic_ms(self) -> float:
        """See Clock."""
        return self.at_ms

    def pass_ms(self, by_ms: int) -> None:
        """Time goes by."""
        self.wall_ms += by_ms
        self.at_ms += by_ms

    def step_ms(self, by_ms: int) -> None:
        """Somebody sets the wall clock."""
        self.wall_ms += by_ms


class FakeRaft:
    """The little of the core that gateway and barriers look at."""

    def __init__(self, *, is_leader: bool = True, leader_id: int = 1) -> None:
        self.is_leader = is_leader
        self.leader_id = leader_id
        self.sealed = False
        self.commit = 0
        self.contexts: list[int] = []

    def request_read(self, context: int) -> None:
        """Notes the round."""
        if not self.is_leader:
            raise NotLeader
        self.contexts.append(context)


class KeptCall(Call):
    """A call whose results are kept in `results`."""

    __slots__ = ("results",)

    def __init__(self, operation: kv_pb2.Operation, timeout_ms: int = 1_000, *, forwarded: bool = False) -> None:
        self.results: list[kv_pb2.OperationResult] = []
        origin = Origin(b"client-id-", 1)
        super().__init__(operation, origin, self.results.append, None, 0.0, timeout_ms, forwarded=forwarded)

    @property
    def error(self) -> kv_pb2.Error:
        """Of its only result."""
        assert len(self.results) == 1, self.results
        return self.results[0].error
