"""Where an operation goes, and what is done with it while nobody leads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from unittest.mock import patch

import pytest

from kvnode.base import limits
from kvnode.base.errors import KvError, OutcomeUnknown, Unavailable
from kvnode.client.status import error_from_proto
from kvnode.node.calls import Call, error_message
from kvnode.node.gateway import Gateway
from kvnode.node.ports import Deliver, Origin
from kvnode.node.stats import Stats
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.node.cluster import SUCCESS, Trio, on_trio, put, read, until, write
from tests.unit.node.fakes import FakeRaft, KeptCall


class Bench:
    """A gateway on node 1 with noted neighbours."""

    def __init__(self, *, is_leader: bool = False, leader_id: int = 0) -> None:
        self.raft = FakeRaft(is_leader=is_leader, leader_id=leader_id)
        self.proposed: list[Call] = []
        self.reading: list[Call] = []
        self.sent: list[tuple[int, bool, Deliver]] = []  # to whom, was it marked as a resend, the answer's way
        self.opening: list[Callable[[bytes, kv_pb2.Error | None], None]] = []
        self.stall = ""
        self.unleased = ""
        self.removed = ""
        self.in_log: set[int] = set()  # ids of operations
        self.gateway = Gateway(
            1,
            self.raft,
            self,
            self,
            self,
            Stats(),
            lambda: None,
            self.add,
            lambda: self.stall,  # type: ignore[arg-type]
            lambda: self.unleased,
            lambda: self.removed,
        )

    def add(self, call: Call) -> None:
        """Proposals and barriers both."""
        is_read = call.operation is not None and call.operation.HasField("read")
        (self.reading if is_read else self.proposed).append(call)

    def knows(self, call: Call) -> bool:
        """The proposals."""
        return call.operation is not None and call.operation.id in self.in_log

    def forward(self, to: int, origin: Origin, operation: kv_pb2.Operation, deliver: Deliver) -> None:
        """The transport."""
        self.sent.append((to, operation.resend, deliver))

    def forward_open(self, to: int, owner: int, deliver: Callable[[bytes, kv_pb2.Error | None], None]) -> None:
        """The transport."""
        self.opening.append(deliver)

    def led_by(self, leader_id: int) -> None:
        """An election is over, or on."""
        self.raft.leader_id, self.raft.is_leader = leader_id, leader_id == 1
        self.gateway.leader_changed(leader_id)

    def route(self, timeout_ms: int = 1_000, *, forwarded: bool = False) -> KeptCall:
        """One write."""
        call = KeptCall(write(put(b"k")), timeout_ms, forwarded=forwarded)
        self.gateway.route(call)
        return call


def failure(code: str, *, not_applied: bool) -> kv_pb2.OperationResult:
    error = KvError(code, "by the test", not_applied=not_applied)
    return kv_pb2.OperationResult(id=1, error=error_message(error))


OK = kv_pb2.OperationResult(id=1, write=kv_pb2.AtomicWriteResponse(status=SUCCESS))


def test_the_leader_takes_its_own() -> None:
    bench = Bench(is_leader=True, leader_id=1)
    call = bench.route()
    reading = KeptCall(read(b"k"))
    bench.gateway.route(reading)
    assert bench.proposed == [call] and bench.reading == [reading] and not bench.sent


def test_one_hop_and_no_further() -> None:
    bench = Bench(leader_id=2)
    call = bench.route(forwarded=True)
    assert call.error.code == "NOT_LEADER" and call.error.not_applied and "node 2" in call.error.message
    assert not bench.sent
    nobody = Bench().route(forwarded=True)
    assert nobody.error.code == "NOT_LEADER", "what a peer forwarded is not held here"


def test_a_removed_node_refuses_what_it_is_given_and_what_it_holds() -> None:
    bench = Bench()
    held, maybe_applied = bench.route(), bench.route()
    maybe_applied.mark_resend()
    bench.removed = "it was removed"
    given = bench.route()
    bench.gateway.tick(0)
    assert [call.error.code for call in (given, held, maybe_applied)] == ["MEMBER_REMOVED"] * 3
    assert [call.error.not_applied for call in (given, held, maybe_applied)] == [True, True, False]
    forwarded = bench.route(forwarded=True)
    assert forwarded.error.code == "NOT_LEADER", "who forwarded it knows better whom to ask"


def test_a_leader_that_is_being_removed_serves_until_it_has_handed_over() -> None:
    bench = Bench(is_leader=True, leader_id=1)
    bench.removed = "it was removed"
    assert bench.proposed == [bench.route()]


def test_held_while_nobody_leads_and_sent_on_in_order() -> None:
    bench = Bench()
    calls = [bench.route() for _ in range(3)]
    assert bench.gateway.held_count == 3 and not bench.sent
    bench.led_by(3)
    assert [to for to, _, _ in bench.sent] == [3, 3, 3] and not bench.gateway.held_count
    for _, _, deliver in bench.sent:
        deliver(OK)
    assert [len(call.results) for call in calls] == [1, 1, 1]


def test_what_is_held_goes_here_when_this_node_wins() -> None:
    bench = Bench()
    call = bench.route()
    bench.led_by(1)
    assert bench.proposed == [call]


def test_an_unanswered_one_is_sent_to_the_new_leader_as_a_resend_and_the_old_answer_ignored() -> None:
    bench = Bench(leader_id=2)
    call = bench.route()
    bench.led_by(0)
    assert len(bench.sent) == 1, "the old leader may still answer while the election is on"
    bench.led_by(3)
    assert [(to, resend) for to, resend, _ in bench.sent] == [(2, False), (3, True)]
    bench.sent[0][2](failure("CHECK", not_applied=True))
    assert not call.results, "a negative answer about a copy that the new leader may still apply"
    bench.sent[1][2](OK)
    bench.sent[1][2](OK)
    assert [result.write.status for result in call.results] == [SUCCESS]


@pytest.mark.parametrize(
    ("code", "not_applied", "resend"),
    [("FORWARD_BROKEN", False, True), ("LEADERSHIP_LOST", False, True), ("PEER_UNREACHABLE", True, False),
     ("NOT_LEADER", True, False)],
)  # fmt: skip
def test_errors_between_nodes_are_retried_and_marked_when_it_may_have_been_applied(
    code: str, not_applied: bool, resend: bool
) -> None:
    bench = Bench(leader_id=2)
    call = bench.route()
    bench.sent[0][2](failure(code, not_applied=not_applied))
    assert not call.results and bench.gateway.held_count == 1
    assert len(bench.sent) == 1, "not at once: that would spin against a dying stream"
    bench.gateway.tick(10.0)
    assert (bench.sent[1][0], bench.sent[1][1]) == (2, resend)


def test_other_errors_are_the_clients() -> None:
    bench = Bench(leader_id=2)
    call = bench.route()
    bench.sent[0][2](failure("KEY_TOO_LARGE", not_applied=True))
    assert call.error.code == "KEY_TOO_LARGE"


def test_deadlines_say_what_is_known() -> None:
    bench = Bench()
    held = bench.route(500)
    bench.raft.leader_id = 2
    sent = bench.route(500)
    bench.raft.leader_id = 0
    bench.gateway.tick(499.0)
    assert not held.results and not sent.results
    bench.gateway.tick(500.0)
    assert held.error.code == sent.error.code == "DEADLINE_EXCEEDED"
    assert held.error.not_applied and "no leader could take the operation" in held.error.message
    assert not sent.error.not_applied and "may still be applied" in sent.error.message
    bench.sent[0][2](OK)
    assert len(sent.results) == 1 and not bench.gateway.held_count


def test_the_waiting_room_is_bounded_by_count_but_never_drops_what_may_have_been_applied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_HELD_REQUESTS_COUNT", 2)
    bench = Bench(leader_id=2)
    forwarded = bench.route()
    bench.led_by(0)
    kept = [bench.route(), bench.route()]
    refused = bench.route()
    assert refused.error.code == "UNAVAILABLE" and refused.error.not_applied
    assert "too many requests wait" in refused.error.message
    bench.sent[0][2](failure("FORWARD_BROKEN", not_applied=False))
    assert bench.gateway.held_count == 3 and not forwarded.results
    assert not any(call.results for call in kept)


def test_the_waiting_room_is_bounded_by_bytes_and_empties(monkeypatch: pytest.MonkeyPatch) -> None:
    one = write(put(b"k")).ByteSize()
    monkeypatch.setattr(limits, "MAX_HELD_REQUEST_BYTES", 2 * one)
    bench = Bench()
    assert not bench.route(100).results and not bench.route().results
    assert bench.route().error.code == "UNAVAILABLE"
    bench.gateway.tick(100.0)
    assert not bench.route().results, "one was answered at its deadline: there is room again"
    bench.led_by(2)
    bench.led_by(0)
    assert not bench.route().results


def test_calls_taken_back_are_held_or_returned_to_who_forwarded_them() -> None:
    bench = Bench()
    own, foreign = KeptCall(write(put(b"k"))), KeptCall(write(put(b"k")), forwarded=True)
    bench.gateway.take_back([own, foreign], True)
    assert bench.gateway.held_count == 1 and own.operation is not None and own.operation.resend
    assert foreign.error.code == "LEADERSHIP_LOST" and not foreign.error.not_applied
    queued = KeptCall(write(put(b"k")), forwarded=True)
    bench.gateway.take_back([queued], False)
    assert queued.error.not_applied


def test_the_opening_of_a_session_is_tried_again_and_answered_once() -> None:
    bench = Bench(leader_id=2)
    answers: list[tuple[bytes, kv_pb2.Error | None]] = []
    call = Call(None, Origin(b"", 0), None, lambda *answer: answers.append(answer), 0.0, 1_000)
    bench.gateway.route(call)
    bench.opening[0](b"", error_message(Unavailable("gone", code="FORWARD_BROKEN")))
    bench.gateway.tick(1.0)
    bench.opening[1](b"id", None)
    bench.opening[0](b"late", None)
    assert answers == [(b"id", None)]


def test_at_the_end_everything_is_answered() -> None:
    bench = Bench(leader_id=2)
    sent = bench.route()
    bench.led_by(0)
    held = bench.route()
    bench.gateway.fail_all(RuntimeError("shutdown"))
    assert sent.error.code == held.error.code == "NODE_STOPPING"


@on_trio
async def test_clients_feel_an_election_as_a_pause(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    trio.kill(leader)
    await until(lambda: not trio.node(one).leader_id, 20, "the follower kept its dead leader")
    asked = [trio.ask(one, write(put(b"k%d" % n))) for n in range(3)] + [trio.ask(one, read(b"k0"))]
    assert trio.node(one).gateway.held_count == 4
    for each in asked[:3]:
        assert (await each.write()).status == SUCCESS
    await asked[3].read()
    assert trio.leader() in (one, other)


@on_trio
async def test_a_group_without_a_majority_answers_at_the_deadline(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    trio.kill(leader)
    trio.kill(other)
    await until(lambda: not trio.node(one).leader_id, 20)
    started_s = asyncio.get_running_loop().time()
    writing = trio.ask(one, write(put(b"k"), timeout_ms=2_000))
    opening = await trio.refused(one, trio.node(one).open_session(2_000))
    error = await writing.error()
    assert 2.0 <= asyncio.get_running_loop().time() - started_s < 2.5
    assert error.code == opening.code == "DEADLINE_EXCEEDED"
    assert error.not_applied and error.phase == "leader"


async def test_a_stopping_node_does_not_say_that_what_it_sent_on_was_not_applied() -> None:
    bench = Bench(leader_id=2)
    sent = bench.route()
    bench.led_by(0)
    held = bench.route()
    bench.gateway.fail_all(RuntimeError("shutdown"))
    assert sent.error.code == held.error.code == "NODE_STOPPING"
    assert not sent.error.not_applied and held.error.not_applied


STALL = "writes are held: every replica region is more than 45 s behind"


def test_a_stalled_leader_holds_writes_and_serves_what_reads() -> None:
    bench = Bench(is_leader=True, leader_id=1)
    bench.stall = STALL
    call = bench.route(1_000)
    reading = KeptCall(read(b"k"))
    bench.gateway.route(reading)
    opening = Call(None, Origin(b"", 0), None, lambda *_: None, 0.0, 1_000)
    bench.gateway.route(opening)
    assert bench.reading == [reading] and bench.proposed == [opening] and bench.gateway.held_count == 1
    bench.gateway.tick(500.0)
    assert bench.proposed == [opening] and not call.results
    bench.stall = ""
    bench.gateway.tick(550.0)
    assert bench.proposed == [opening, call], "a region has caught up"


def test_a_held_write_is_told_why_so_early_that_its_sender_still_hears_it() -> None:
    bench = Bench(is_leader=True, leader_id=1)
    bench.stall = STALL
    calls = [bench.route(1_000), bench.route(1_000, forwarded=True), bench.route(60_000)]
    bench.gateway.tick(749.0)
    assert not any(call.results for call in calls)
    bench.gateway.tick(750.0)
    for call in calls[:2]:
        assert call.error.code == "REPLICATION_STALLED" and call.error.not_applied
        assert STALL in call.error.message and "on_replication_stall" in call.error.message
    bench.gateway.tick(58_999.0)
    assert not calls[2].results
    bench.gateway.tick(59_000.0)
    assert calls[2].error.code == "REPLICATION_STALLED"


def test_without_the_primary_lease_everything_is_held_and_told_why() -> None:
    bench = Bench(is_leader=True, leader_id=1)
    bench.unleased = "the primary lease has run out"
    calls = [bench.route(1_000), KeptCall(read(b"k"))]
    bench.gateway.route(calls[1])
    assert not bench.proposed and not bench.reading and bench.gateway.held_count == 2
    bench.gateway.tick(750.0)
    for call in calls:
        assert call.error.code == "PRIMARY_LEASE_LOST" and call.error.not_applied
        assert "automatic_promotion" in call.error.message


def test_what_was_held_for_the_lease_goes_on_with_it_and_writes_wait_for_the_regions() -> None:
    bench = Bench(is_leader=True, leader_id=1)
    bench.unleased, bench.stall = "the primary lease has run out", STALL
    writing, reading = bench.route(9_000), KeptCall(read(b"k"), 9_000)
    bench.gateway.route(reading)
    bench.unleased = ""
    bench.gateway.tick(50.0)
    assert bench.reading == [reading] and not bench.proposed and bench.gateway.held_count == 1
    bench.stall = ""
    bench.gateway.tick(100.0)
    assert bench.proposed == [writing] and bench.gateway.held_count == 0


def test_a_held_resend_may_have_been_applied_before() -> None:
    bench = Bench(is_leader=True, leader_id=1)
    bench.stall = STALL
    call = KeptCall(write(put(b"k"), resend=True), 1_000)
    bench.gateway.route(call)
    bench.gateway.tick(1_000.0)
    assert call.error.code == "REPLICATION_STALLED" and not call.error.not_applied
    assert isinstance(error_from_proto(call.error), OutcomeUnknown), "status 5 of the command line"
    assert "sent before" in call.error.message and "read the key" in call.error.message


def test_a_resend_whose_first_copy_is_in_the_log_does_not_wait_for_the_regions() -> None:
    bench = Bench(is_leader=True, leader_id=1)
    bench.stall = STALL
    known, late = (KeptCall(write(put(b"k"), number=number, resend=True), 9_000) for number in (1, 2))
    bench.in_log = {1}
    for call in (known, late):
        bench.gateway.route(call)
    assert bench.proposed == [known] and bench.gateway.held_count == 1
    bench.in_log = {1, 2}
    bench.gateway.tick(100.0)
    assert bench.proposed == [known, late]


@on_trio
async def test_a_stalled_leader_says_what_became_of_what_was_sent_before(trio: Trio) -> None:
    leader = await trio.leading()
    node = trio.node(leader)
    client_id = await trio.within(leader, node._own_session.open(1))
    first = await trio.ask(leader, write(put(b"k"), number=7), Origin(client_id, 7)).write()
    with patch.object(node.gateway, "_stalled", lambda: STALL):
        again = await trio.ask(leader, write(put(b"k"), number=7, resend=True), Origin(client_id, 7)).write()
        assert again.versionstamp == first.versionstamp
        other = trio.ask(leader, write(put(b"k"), number=8, resend=True, timeout_ms=500), Origin(client_id, 7))
        assert (await other.error()).code == "REPLICATION_STALLED"


def test_what_a_stalled_leader_held_goes_on_to_the_next_leader() -> None:
    bench = Bench(is_leader=True, leader_id=1)
    bench.stall = STALL
    bench.route()
    bench.led_by(2)
    bench.gateway.tick(10.0)
    assert [to for to, _, _ in bench.sent] == [2]
