"""Planted bugs of the primary lease and of ballots: for seeds that have promotions, and some for a test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from kvnode.node.failover import coordinator
from kvnode.node.ports import LeaseNews
from kvnode.node.promotion import ballot, lease
from kvnode.node.promotion.gate import Gate
from kvnode.node.promotion.granter import NO_PART, Granter
from kvnode.node.promotion.promotion import Promotion
from tests.simulation.planting import Patch, replaced

_LONG_AGO_MS = -1e12


def count_the_lease_from_the_receipt() -> Patch:
    """A leader believes what was granted from the moment at which it hears of it."""
    original = Promotion.take

    def take(self: Promotion, news: LeaseNews) -> None:
        if self._raft.is_leader and news.grants:
            now = int(self._clock.monotonic_ms())
            own_term = self._raft.term
            grants = [
                grant._replace(ask=grant.ask._replace(asked_at_ms=now)) if grant.ask.term == own_term else grant
                for grant in news.grants
            ]
            news = news._replace(grants=grants)
        original(self, news)

    return replaced(Promotion, "take", take)


def vote_while_the_grant_lives() -> Patch:
    """Whoever takes part in ballots votes at any time."""

    def wait_ms(self: Granter, committed: Any, now_ms: float) -> int:
        return 0 if self.wished_ms and committed.primary_lease_ms and not committed.lease_ends else NO_PART

    return replaced(Granter, "wait_ms", wait_ms)


def vote_at_once_after_a_restart() -> Patch:
    """A node that starts knows of no grant, and takes that for having given none."""
    original = Granter.__init__

    def init(self: Granter, node_id: int, wished_ms: int, now_ms: float) -> None:
        original(self, node_id, wished_ms, now_ms)
        self._asked_at = _LONG_AGO_MS
        self._lease_ms, self._in_force_at = wished_ms, _LONG_AGO_MS

    return replaced(Granter, "__init__", init)


def look_at_the_lease_before_the_commit() -> Patch:
    """A lease that was held when an operation came in is not looked at again when it is answered."""

    def pass_(self: Gate, call: Any, deliver: Callable[[], None]) -> None:
        deliver()

    return replaced(Gate, "_pass", pass_)


def answer_without_a_lease() -> Patch:
    """Leaders answer as if there were no promotions."""
    return replaced(Promotion, "is_held", property(lambda self: self._raft.is_leader))


def the_primarys_own_majority_is_enough() -> Patch:
    """The lease is granted by a majority of the voters, as elections are."""

    def quorum_value(membership: Any, values: Any) -> int:
        ids = [voter.node_id for voter in membership.voters]
        return sorted((values.get(node_id, 0) for node_id in ids), reverse=True)[len(ids) // 2]

    return replaced(lease, "quorum_value", quorum_value)


def promote_by_a_minority() -> Patch:
    """A ballot is won by whoever votes."""

    @contextmanager
    def both() -> Any:
        with (
            replaced(ballot, "has_won", lambda voters: True),
            replaced(coordinator, "require_won", lambda voters: None),
        ):
            yield

    return both()


def fresh_without_a_lease() -> Patch:
    """A leader vouches for the freshness of its state whether or not another region may have been promoted."""
    return replaced(Promotion, "vouches", property(lambda self: True))


def change_members_before_all_know() -> Patch:
    """Members come and go although few know of those that there are."""
    return replaced(Promotion, "check_change", lambda self, after: None)


def settle_by_the_own_log() -> Patch:
    """A leader that was deposed answers by its own log what it had proposed."""

    def pass_(self: Gate, call: Any, deliver: Callable[[], None]) -> None:
        if not self._leads() or self._holds():
            deliver()
        else:
            self._waiting.append((call, deliver))

    return replaced(Gate, "_pass", pass_)


PROMOTION_MUTANTS: tuple[Callable[[], Patch], ...] = (
    count_the_lease_from_the_receipt,
    vote_while_the_grant_lives,
    vote_at_once_after_a_restart,
    look_at_the_lease_before_the_commit,
    answer_without_a_lease,
    the_primarys_own_majority_is_enough,
    promote_by_a_minority,
)
_TESTS = "tests/unit/node/promotion"
PROMOTION_NAMED: dict[Callable[[], Patch], str] = {
    fresh_without_a_lease: f"{_TESTS}/test_promotion.py::test_a_primary_that_is_cut_off_stops_within_the_lease",
    change_members_before_all_know: f"{_TESTS}/test_promotion.py"
    "::test_a_second_change_of_members_waits_until_the_first_is_known",
    settle_by_the_own_log: f"{_TESTS}/test_gate.py::test_who_does_not_lead_settles_nothing_by_itself",
}
