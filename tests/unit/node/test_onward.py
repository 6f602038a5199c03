"""Eventual reads that another node answers: whom is asked, and what is made of the answers."""

from __future__ import annotations

import pytest

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.codec.membership import Member, MemberRole, Membership
from kvnode.node.calls import Call, error_message
from kvnode.node.onward import Onward
from kvnode.node.ports import Deliver, Origin
from kvnode.node.stats import Stats
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.node.cluster import read
from tests.unit.node.fakes import FakeRaft, KeptCall

VOTERS = tuple(Member(n, f"n{n}", "us-east", f"dc-{n}", f"h:{n}", MemberRole.VOTER) for n in (1, 2, 3, 4, 5))
OK = kv_pb2.OperationResult(id=1, read=kv_pb2.ReadResponse(age_ms=3))


class Bench:
    """Node 9, a replica, and what it sends."""

    def __init__(self, *, leader_id: int = 3, node_id: int = 9) -> None:
        self.now_ms = 0.0
        self.sent: list[tuple[int, kv_pb2.Operation, Deliver]] = []
        self.gave_up: list[str] = []
        self.stats = Stats()
        membership = Membership(VOTERS, 2)
        self.onward = Onward(
            node_id, FakeRaft(leader_id=leader_id), lambda: membership, self.forward, lambda: self.now_ms, self.stats
        )

    def forward(self, to: int, origin: Origin, operation: kv_pb2.Operation, deliver: Deliver) -> None:
        assert origin.client_id == b"client-id-"
        self.sent.append((to, operation, deliver))

    def go(self, *, timeout_ms: int = 5_000, forwarded: bool = False) -> KeptCall:
        call = KeptCall(read(b"k", eventual=True, max_staleness_ms=10), timeout_ms, forwarded=forwarded)
        self.onward.go(call, self.give_up)
        return call

    def give_up(self, call: Call, reasons: str) -> None:
        self.gave_up.append(reasons)

    def fail(self, at: int, code: str) -> None:
        error = error_message(KvError(code, f"by the test: {code}", phase="read"))
        self.sent[at][2](kv_pb2.OperationResult(id=1, error=error))


def test_the_leader_is_asked_first_and_its_answer_is_the_clients() -> None:
    bench = Bench()
    call = bench.go()
    (to, operation, deliver) = bench.sent[0]
    assert to == 3 and operation.read.max_staleness_ms == 10
    assert operation.timeout_ms == limits.READ_ONWARD_TIMEOUT_MS
    deliver(OK)
    deliver(OK)
    assert call.results == [OK] and not bench.gave_up
    assert bench.stats.reads_onward == 1


def test_one_that_cannot_answer_is_left_for_the_next_up_to_a_bound() -> None:
    bench = Bench(leader_id=0)
    call = bench.go()
    for at, code in enumerate(("PEER_UNREACHABLE", "TOO_STALE", "FORWARD_BROKEN")):
        bench.fail(at, code)
    assert [to for to, _, _ in bench.sent] == [1, 2, 3] and len(bench.sent) == limits.MAX_READ_ONWARD_ATTEMPTS_COUNT
    assert len(bench.gave_up) == 1 and "'n2': by the test: TOO_STALE" in bench.gave_up[0]
    assert not call.results, "what is said to the client is the reads' business"


def test_an_error_about_the_read_itself_is_the_answer() -> None:
    bench = Bench()
    call = bench.go()
    bench.fail(0, "COUNT_NOT_ALONE")
    assert call.error.code == "COUNT_NOT_ALONE" and len(bench.sent) == 1


def test_a_silent_one_is_left_and_may_still_answer() -> None:
    bench = Bench()
    call = bench.go()
    bench.now_ms = limits.READ_ONWARD_TIMEOUT_MS - 1
    bench.onward.sweep(bench.now_ms)
    assert len(bench.sent) == 1
    bench.now_ms += 1
    bench.onward.sweep(bench.now_ms)
    assert [to for to, _, _ in bench.sent] == [3, 1]
    bench.fail(0, "TOO_STALE")
    assert len(bench.sent) == 2, "the late refusal of one that was left already"
    bench.sent[0][2](OK)
    assert call.results == [OK]
    bench.fail(1, "TOO_STALE")
    assert call.results == [OK] and not bench.gave_up


def test_the_time_of_the_read_bounds_it_all() -> None:
    bench = Bench()
    bench.go(timeout_ms=300)
    assert bench.sent[0][1].timeout_ms == 300
    bench.now_ms = 300.0
    bench.onward.sweep(bench.now_ms)
    assert len(bench.sent) == 1 and len(bench.gave_up) == 1


def test_one_hop_and_no_further() -> None:
    bench = Bench()
    bench.go(forwarded=True)
    assert not bench.sent and bench.gave_up == [""]


def test_a_node_does_not_ask_itself() -> None:
    bench = Bench(node_id=3, leader_id=3)
    bench.go()
    assert bench.sent[0][0] == 1


def test_what_is_settled_elsewhere_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_READS_ONWARD_COUNT", 1)
    bench = Bench()
    call = bench.go()
    bench.go()
    assert len(bench.sent) == 1 and bench.gave_up == ["too many reads wait for other nodes already"]
    call.answer(OK)  # its deadline has passed, say; nobody will answer what was sent
    bench.onward.sweep(bench.now_ms)
    bench.go()
    assert len(bench.sent) == 2
