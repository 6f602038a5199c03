"""Planted bugs of the leader lease: for seeds that have one, and most for a test that names the rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kvnode.node.barriers import Barriers
from kvnode.node.failover.participant import Participant
from kvnode.node.leader_lease import LeaderLease
from kvnode.raft import holds, leader
from kvnode.raft.core import Core
from kvnode.raft.leadership import Leadership
from tests.simulation.planting import Patch, replaced


def lease_for_ever() -> Patch:
    """Once elected, a leader reads by itself, and believes itself as long as nobody tells it otherwise."""

    def remaining_ms(self: LeaderLease) -> float:
        return 1.0 if self._raft.own_term_committed else 0.0

    @contextmanager
    def both() -> Iterator[None]:
        with (
            replaced(LeaderLease, "remaining_ms", remaining_ms),
            replaced(leader, "_has_quorum_contact", lambda core, lead: True),
        ):
            yield

    return both()


def hold_no_vote() -> Patch:
    """Voters say that they hold their votes, and hear every candidate that is not kept away otherwise."""
    return replaced(holds, "refuses", lambda core, message: False)


def count_the_lease_from_its_answer() -> Patch:
    """A round counts from when a majority had answered it."""
    original = LeaderLease._learn

    def learn(self: LeaderLease) -> None:
        now = self._now_ms()
        for at, each in enumerate(self._sent):
            self._sent[at] = each._replace(sent_at_ms=now)
        original(self)

    return replaced(LeaderLease, "_learn", learn)


def forget_the_hold_at_a_restart() -> Patch:
    """Who starts anew hears every candidate."""
    original = Core.__init__

    def init(self: Core, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        self.hold_ticks = 0

    return replaced(Core, "__init__", init)


def forget_the_hold_in_a_later_term() -> Patch:
    """Who hears of a later term, or whose clock has a gap, is free to vote."""
    original = Core.become_follower

    def become_follower(self: Core, term: int, leader_id: int, reason: str = "") -> None:
        if term > self.term and not leader_id:
            self.hold_ticks = 0
        original(self, term, leader_id, reason)

    return replaced(Core, "become_follower", become_follower)


def look_at_the_lease_before_the_rows_alone() -> Patch:
    """The answer is given whatever has happened since."""
    return replaced(Barriers, "answers_under_lease", lambda self, call, negative=None: True)


def lease_of_another_membership() -> Patch:
    """What a majority granted that is none any more counts on."""
    original = LeaderLease.remaining_ms

    def remaining_ms(self: LeaderLease) -> float:
        latest = self._raft.history.latest_index
        self._round = self._round._replace(membership_index=latest)
        for at, each in enumerate(self._sent):
            self._sent[at] = each._replace(membership_index=latest)
        return original(self)

    return replaced(LeaderLease, "remaining_ms", remaining_ms)


def lease_beside_a_handover() -> Patch:
    """A leader that has told a voter to campaign goes on reading by itself."""
    original = holds.may_lease

    def may_lease(core: Core) -> bool:
        lead: Leadership | None = core.lead
        if lead is not None:
            lead.lease_given_up = False
        return original(core)

    return replaced(holds, "may_lease", may_lease)


def promise_while_the_vote_is_held() -> Patch:
    """A failover's fence stands before the old leader's lease has run out."""
    original = Participant._until

    async def until(self: Participant, until_holds: Callable[[], bool], timeout_ms: int) -> None:
        held, self._raft.hold_ticks = self._raft.hold_ticks, 0
        try:
            await original(self, until_holds, timeout_ms)
        finally:
            self._raft.hold_ticks = held

    return replaced(Participant, "_until", until)


LEASE_MUTANTS: tuple[Callable[[], Patch], ...] = (lease_for_ever,)
_CORE, _NODE = "tests/unit/raft/test_holds.py", "tests/unit/node/test_leader_lease.py"
LEASE_NAMED: dict[Callable[[], Patch], str] = {
    hold_no_vote: f"{_CORE}::test_a_gap_in_its_clock_does_not_break_a_hold",
    count_the_lease_from_its_answer: f"{_NODE}::test_it_is_counted_from_the_sending_and_ends_early_by_the_margin",
    forget_the_hold_at_a_restart: f"{_CORE}::test_a_restart_does_not_break_a_hold",
    forget_the_hold_in_a_later_term: f"{_CORE}::test_a_later_term_that_it_hears_of_does_not_break_a_hold",
    look_at_the_lease_before_the_rows_alone: f"{_NODE}::test_a_freeze_between_the_rows_and_the_answer_is_noticed",
    lease_of_another_membership: f"{_NODE}::test_another_membership_or_term_has_no_part_in_it",
    lease_beside_a_handover: f"{_CORE}::test_a_handover_breaks_the_hold_and_ends_the_lease_for_good",
    promise_while_the_vote_is_held: f"{_NODE}::test_a_failovers_promise_is_given_when_the_hold_has_run_out",
}
