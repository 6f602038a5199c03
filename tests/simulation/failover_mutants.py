"""Planted bugs of failovers, each for the test that describes its rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvnode.base import limits
from kvnode.node.failover import plan
from kvnode.node.failover.groups import Groups
from kvnode.raft import epochs
from kvnode.raft.configuration import MembershipHistory
from kvnode.raft.core import Core
from kvnode.raft.raft import Raft
from tests.simulation.planting import Patch, replaced

_FAILOVER = "tests/unit/node/failover/test_failover.py"
_AT_ONCE = "tests/unit/node/failover/test_at_once.py"
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
}
