"""Planted bugs of failovers, each for the test that describes its rule."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kvnode.base import limits
from kvnode.base.errors import OutcomeUnknown, Unavailable
from kvnode.node.failover import plan
from kvnode.node.failover.groups import Groups
from kvnode.node.failover.participant import Participant
from kvnode.raft import epochs
from kvnode.raft.configuration import MembershipHistory
from kvnode.raft.core import Core
from kvnode.raft.raft import Raft
from tests.simulation.planting import Patch, replaced

_FAILOVER = "tests/unit/node/failover/test_failover.py"
_AT_ONCE = "tests/unit/node/failover/test_at_once.py"
_SEAL = "tests/unit/node/failover/test_seal.py"
_EPOCHS = "tests/unit/raft/test_epochs.py"


def forget_the_promise() -> Patch:
    """A restarted node does not know what it has promised."""
    original = Raft.__init__

    def init(self: Raft, config: Any, log: Any, hard_state: Any, *rest: Any, **named: Any) -> None:
        original(self, config, log, hard_state._replace(epoch=0, ballot=0), *rest, **named)

    return replaced(Raft, "__init__", init)


def acknowledge_in_an_ended_epoch() -> Patch:
    """Who has promised still takes part in what came before."""
    return replaced(epochs, "admits", lambda core, message: True)


def serve_behind_the_seal() -> Patch:
    """The old leader serves strong reads after its epoch is sealed."""
    return replaced(Raft, "sealed", property(lambda self: False))


def commit_behind_the_seal() -> Patch:
    """A successor's no-op behind the seal is committed like any entry."""
    return replaced(MembershipHistory, "sealed_at", property(lambda self: 0))


def answer_for_a_seal_by_the_leadership() -> Patch:
    """Who wrote the seal, and leads no more before it can apply it, says that it is not known to be committed."""

    async def settled(self: Participant, index: int, term: int) -> None:
        while self._meta().applied_index < index and self._raft.is_leader and self._raft.term == term:
            await asyncio.sleep(0.002)
        if self._meta().applied_index < index:
            raise OutcomeUnknown("leadership was lost", code="FAILOVER_INCOMPLETE", phase="failover")

    return replaced(Participant, "_seal_committed", settled)


def settle_a_seal_by_what_stands_there() -> Patch:
    """What another leader has put in the seal's place counts before it is committed."""

    async def settled(self: Participant, index: int, term: int) -> None:
        while self._raft.log.commit < index and self._raft.log.term(index) == term:
            await asyncio.sleep(0.002)
        if self._raft.log.term(index) != term:
            raise Unavailable("leadership was lost", code="LEADERSHIP_LOST", phase="failover")

    return replaced(Participant, "_seal_committed", settled)


def campaign_in_an_ended_epoch() -> Patch:
    """A voter of the epoch before stands for election after it has promised the next."""
    return replaced(Core, "fenced", property(lambda self: False))


def any_fence_will_do() -> Patch:
    """Nobody asks whether enough of the old voters have promised."""
    return replaced(plan, "unfenced", lambda membership, reports, promised: ())


def keep_what_may_not_be_committed() -> Patch:
    """Without a fence, too, the whole of the most advanced log goes on."""
    return replaced(plan, "_end", lambda report, is_fenced: (report.last_term, report.last_index))


def number_by_what_is_known() -> Patch:
    """Without a fence, too, an epoch takes the next number."""
    return replaced(plan, "unfenced_epoch", lambda latest, members, voters: latest + 1)


def have_anybody_vote() -> Patch:
    """Who has committed what an earlier failover left behind is to vote with the others."""
    return replaced(plan, "is_forked", lambda report, source: False)


def forget_who_was_promised_before() -> Patch:
    """A node that promises anew does not tell whom it has promised an epoch before."""
    return replaced(Groups, "above", lambda self, log_epoch, latest, known=(): [])


def ask_all_to_promise_at_once() -> Patch:
    """A coordinator does not wait for one promise before it asks for the next."""
    return replaced(limits, "FAILOVER_PROMISE_TURN_MS", 0)


FAILOVER_NAMED: dict[Callable[[], Patch], str] = {
    forget_the_promise: f"{_EPOCHS}::test_a_promise_is_durable_and_survives_a_restart",
    acknowledge_in_an_ended_epoch: f"{_EPOCHS}::test_who_has_promised_takes_no_part_in_what_came_before",
    serve_behind_the_seal: f"{_FAILOVER}::test_behind_the_seal_the_old_group_serves_nothing_strong",
    commit_behind_the_seal: f"{_EPOCHS}::test_a_successor_commits_the_seal_and_nothing_more",
    campaign_in_an_ended_epoch: f"{_EPOCHS}::test_a_promise_is_durable_and_survives_a_restart",
    keep_what_may_not_be_committed: (
        f"{_FAILOVER}::test_without_a_fence_nothing_goes_on_that_may_never_have_been_committed"
    ),
    number_by_what_is_known: (
        "tests/unit/node/failover/test_plan.py::test_who_cannot_fence_takes_a_number_that_nobody_else_takes"
    ),
    have_anybody_vote: (
        "tests/unit/node/failover/test_plan.py::test_who_has_committed_what_an_earlier_failover_left_behind_does_not_vote"
    ),
    forget_who_was_promised_before: (
        f"{_AT_ONCE}::test_a_coordinator_that_is_slow_and_not_dead_begins_nothing_beside_another"
    ),
    ask_all_to_promise_at_once: (
        f"{_AT_ONCE}::test_of_two_failovers_to_one_region_one_goes_through_and_the_other_changes_nothing"
    ),
    any_fence_will_do: f"{_FAILOVER}::test_too_few_old_voters_are_no_fence",
    answer_for_a_seal_by_the_leadership: (
        f"{_SEAL}::test_a_leader_whose_disk_is_slower_than_the_next_epoch_is_elected_has_sealed"
    ),
    settle_a_seal_by_what_stands_there: (
        f"{_SEAL}::test_what_another_leader_puts_in_its_place_counts_once_it_is_committed"
    ),
}
