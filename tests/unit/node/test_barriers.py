"""ReadIndex barriers, one rule at a time."""

from __future__ import annotations

from kvnode.node.barriers import MAX_OPEN_ROUNDS_COUNT, Barriers, Item
from kvnode.node.proposals import deadline_error
from kvnode.node.stats import Stats
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.node.cluster import read
from tests.unit.node.fakes import FakeRaft, KeptCall


class FakeLease:
    """A lease that a test holds."""

    held = False

    def holds(self) -> bool:
        return self.held


class Bench:
    """Barriers with what they hand out."""

    def __init__(self) -> None:
        self.raft = FakeRaft()
        self.served: list[Item] = []
        self.lost: list[Item] = []
        self.lease = FakeLease()
        self.nudged = 0
        self.stats = Stats()
        self.barriers = Barriers(
            self.raft,  # type: ignore[arg-type]
            self.lease,  # type: ignore[arg-type]
            self.stats,
            self.served.extend,
            self.lost.extend,
            self.nudge,
        )

    def nudge(self) -> None:
        self.nudged += 1

    def add(self, min_index: int = 0, negative: kv_pb2.OperationResult | None = None) -> KeptCall:
        call = KeptCall(read(b"k"))
        self.barriers.add(call, min_index, negative)
        return call

    def calls(self) -> list[object]:
        return [item.call for item in self.served]


def test_one_round_serves_all_that_came_before_it_and_none_that_came_later() -> None:
    bench = Bench()
    early = [bench.add(), bench.add()]
    bench.barriers.flush()
    late = bench.add()
    bench.barriers.confirmed(1, 5)
    bench.barriers.applied(5)
    assert bench.calls() == early
    assert bench.barriers.waiting and len(bench.barriers) == 1
    bench.barriers.flush()
    bench.barriers.confirmed(2, 5)
    bench.barriers.applied(5)
    assert bench.calls() == [*early, late]
    assert bench.raft.contexts == [1, 2]


def test_a_confirmed_read_waits_for_the_rounds_index_to_be_applied() -> None:
    bench = Bench()
    bench.add()
    bench.barriers.flush()
    bench.barriers.confirmed(1, 7)
    bench.barriers.applied(6)
    assert not bench.served
    bench.barriers.applied(7)
    assert len(bench.served) == 1
    bench.barriers.applied(8)
    assert len(bench.served) == 1


def test_a_negative_answer_waits_for_the_prefix_it_was_judged_on() -> None:
    bench = Bench()
    bench.add(min_index=9, negative=kv_pb2.OperationResult(id=1))
    bench.barriers.flush()
    bench.barriers.confirmed(1, 7)
    bench.barriers.applied(8)
    assert not bench.served, "the entries it was judged on are not committed yet"
    bench.barriers.applied(9)
    assert bench.served[0].negative is not None


def test_few_rounds_are_open_at_once() -> None:
    bench = Bench()
    for _ in range(MAX_OPEN_ROUNDS_COUNT + 3):
        bench.add()
        bench.barriers.flush()
    assert len(bench.raft.contexts) == MAX_OPEN_ROUNDS_COUNT
    bench.barriers.confirmed(1, 0)
    bench.barriers.flush()
    assert len(bench.raft.contexts) == MAX_OPEN_ROUNDS_COUNT + 1
    bench.barriers.confirmed(MAX_OPEN_ROUNDS_COUNT + 1, 0)
    bench.barriers.applied(0)
    assert len(bench.served) == 5 - 1  # all but the item of round 2


def test_nothing_is_begun_by_one_who_does_not_lead() -> None:
    bench = Bench()
    bench.add()
    bench.raft.is_leader = False
    bench.barriers.flush()
    assert not bench.raft.contexts and bench.barriers.waiting


def test_a_lost_leadership_hands_everything_back_and_late_confirmations_say_nothing() -> None:
    bench = Bench()
    confirmed = bench.add()
    bench.barriers.flush()
    bench.barriers.confirmed(1, 100)
    under_way = bench.add()
    bench.barriers.flush()
    unsent = bench.add()
    bench.barriers.drop_rounds()
    assert [item.call for item in bench.lost] == [confirmed, under_way, unsent]
    bench.barriers.confirmed(2, 0)
    bench.barriers.applied(1_000)
    assert not bench.served and not len(bench.barriers)


def test_what_waits_beyond_its_deadline_is_answered_so_wherever_it_waits() -> None:
    bench = Bench()
    confirmed = bench.add(min_index=9)
    bench.barriers.flush()
    bench.barriers.confirmed(1, 5)
    sent = bench.add()
    bench.barriers.flush()
    unsent = bench.add()
    bench.barriers.sweep(999.0, deadline_error)
    assert not any(call.done for call in (confirmed, sent, unsent))
    bench.barriers.sweep(1_000.0, deadline_error)
    bench.barriers.sweep(1_050.0, deadline_error)
    for call in (confirmed, sent, unsent):
        assert [result.error.code for result in call.results] == ["DEADLINE_EXCEEDED"]


def test_under_a_lease_no_round_is_needed_and_what_is_committed_is_waited_for() -> None:
    bench = Bench()
    bench.lease.held, bench.raft.commit = True, 7
    reading, judging = bench.add(), bench.add(9, kv_pb2.OperationResult(id=2))
    bench.barriers.flush()
    assert not bench.raft.contexts and bench.stats.reads_leased == 2
    bench.barriers.applied(6)
    assert not bench.served, "what is committed is not applied yet"
    bench.barriers.applied(7)
    assert bench.calls() == [reading] and reading.leased
    bench.barriers.applied(9)
    assert bench.calls() == [reading, judging]


def test_an_answer_under_a_lease_that_has_run_out_is_taken_back_and_confirmed_by_a_round() -> None:
    bench = Bench()
    bench.lease.held = True
    reading, judging = bench.add(), bench.add()
    bench.barriers.flush()
    bench.barriers.applied(0)
    assert bench.barriers.answers_under_lease(reading)
    bench.lease.held = False  # the process stood still, or the rows took long to read
    assert not bench.barriers.answers_under_lease(reading) and not reading.leased
    refusal = kv_pb2.OperationResult(id=2)
    assert not bench.barriers.answers_under_lease(judging, refusal)
    assert bench.nudged == 2 and not bench.lost
    bench.served.clear()
    bench.barriers.flush()
    bench.barriers.confirmed(1, 3)
    bench.barriers.applied(3)
    assert bench.calls() == [reading, judging] and [item.negative for item in bench.served] == [None, refusal]
    assert not reading.leased and not judging.leased


def test_what_a_leader_may_answer_no_more_is_handed_back_when_another_leads() -> None:
    bench = Bench()
    bench.lease.held = True
    reading = bench.add()
    bench.barriers.flush()
    bench.barriers.applied(0)
    bench.raft.is_leader = bench.lease.held = False
    assert not bench.barriers.answers_under_lease(reading)
    assert [item.call for item in bench.lost] == [reading] and not len(bench.barriers)
