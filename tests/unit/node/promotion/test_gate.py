"""The last door before an answer."""

from __future__ import annotations

from kvnode.node.calls import Call
from kvnode.node.ports import Origin
from kvnode.node.promotion.gate import Gate
from kvnode.node.proposals import deadline_error
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.node.cluster import put, write
from tests.unit.node.fakes import KeptCall


class Bench:
    """A gate whose conditions the test sets."""

    def __init__(self) -> None:
        self.is_required = self.leads = self.holds = True
        self.taken_back: list[tuple[list[Call], bool]] = []
        self.gate = Gate(
            lambda: self.is_required,
            lambda: self.leads,
            lambda: self.holds,
            lambda calls, unknown: self.taken_back.append((calls, unknown)),
        )

    def answer(self, timeout_ms: int = 1_000) -> KeptCall:
        call = KeptCall(write(put(b"k")), timeout_ms)
        self.gate.answer(call, kv_pb2.OperationResult(id=1, write=kv_pb2.AtomicWriteResponse()))
        return call


def test_an_answer_leaves_under_the_lease_and_waits_without() -> None:
    bench = Bench()
    assert bench.answer().results
    bench.holds = False
    waiting = [bench.answer(), bench.answer()]
    bench.gate.look()
    assert not any(call.results for call in waiting) and bench.gate.waiting_count == 2
    bench.holds = True
    bench.gate.look()
    assert all(call.results[0].HasField("write") for call in waiting) and bench.gate.waiting_count == 0


def test_where_no_lease_is_needed_nothing_waits() -> None:
    bench = Bench()
    bench.holds = False
    waiting = bench.answer()
    bench.is_required = bench.leads = False
    assert bench.answer().results, "nor does it matter who leads"
    bench.gate.look()
    assert waiting.results


def test_who_does_not_lead_settles_nothing_by_itself() -> None:
    """The present leader is asked under the same request id: a group may commit without a lease."""
    bench = Bench()
    bench.leads = False
    call = bench.answer()
    assert not call.results and bench.taken_back == [([call], True)]


def test_with_the_leadership_the_waiting_go_back_as_unknown() -> None:
    bench = Bench()
    bench.holds = False
    waiting = [bench.answer(), bench.answer()]
    bench.gate.lose_leadership()
    assert bench.taken_back == [(waiting, True)] and bench.gate.waiting_count == 0


def test_past_its_deadline_a_waiting_write_is_of_unknown_outcome() -> None:
    bench = Bench()
    bench.holds = False
    call = bench.answer(500)
    bench.gate.sweep(499.0, deadline_error)
    assert not call.results
    bench.gate.sweep(500.0, deadline_error)
    assert call.error.code == "DEADLINE_EXCEEDED" and not call.error.not_applied
    assert bench.gate.waiting_count == 0


def test_the_opening_of_a_session_is_an_answer_too() -> None:
    bench = Bench()
    bench.holds = False
    opened: list[bytes] = []
    call = Call(None, Origin(b"", 0), None, lambda client_id, _: opened.append(client_id), 0.0, 1_000)
    bench.gate.opened(call, b"client")
    assert not opened
    bench.holds = True
    bench.gate.look()
    assert opened == [b"client"]
