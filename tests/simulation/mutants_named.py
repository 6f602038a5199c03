"""Planted bugs that a test of the core names, and that no whole cluster shows for certain.

Some do harm only together with a choice that is off by default (a lease), or only to availability, or in a moment too
rare for a few hundred seeds. Each is given to the tests that describe the rule; at least one must fail.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvnode.base.errors import InvalidRequest, StorageFailed
from kvnode.codec.membership import Membership
from kvnode.machine import resolve
from kvnode.machine.resolve import Batch
from kvnode.node.node import Node
from kvnode.raft import configuration, election, leader
from kvnode.raft.configuration import MembershipHistory
from kvnode.raft.core import Core
from kvnode.storage.log import Log
from tests.simulation.failover_mutants import FAILOVER_NAMED
from tests.simulation.lease_mutants import LEASE_NAMED
from tests.simulation.mutants_more import (
    believe_the_frozen,
    change_before_an_own_commit,
    forget_the_term_at_install,
    fresh_before_it_is_applied,
    fresh_since_the_acknowledgement,
    join_a_batch_that_was_sent,
    join_the_round_under_way,
    keep_a_truncated_membership,
    keep_the_tail_under_a_snapshot,
    take_a_fork,
)
from tests.simulation.mutants_queues import end_leases_while_nobody_leads, extend_what_has_ended
from tests.simulation.planting import Patch, replaced, replaced_handler
from tests.simulation.promotion_mutants import PROMOTION_NAMED

ROOT = Path(__file__).parents[2]


def campaign_without_pre_vote() -> Patch:
    """Who comes back from being cut off raises everybody's term."""
    return replaced(election, "campaign", election.campaign_for_real)


def leave_a_living_leader() -> Patch:
    """Votes are not sticky: whoever asks is heard, however lively the leader."""
    return replaced(election, "is_sticky", lambda core: False)


def lead_without_a_quorum() -> Patch:
    """A leader that nobody answers goes on believing itself."""
    return replaced(leader, "_has_quorum_contact", lambda core, lead: True)


def two_changes_at_once() -> Patch:
    """A membership is changed while the change before it is not committed."""
    original = leader.propose_membership

    def propose_membership(core: Any, new: Membership) -> int:
        commit, core.log.commit = core.log.commit, max(core.log.commit, core.history.latest_index)
        try:
            return original(core, new)
        finally:
            core.log.commit = commit

    return replaced(leader, "propose_membership", propose_membership)


def change_many_voters() -> Patch:
    """One change may alter any number of voters."""
    original = configuration.check_change

    def check_change(old: Membership, new: Membership) -> int:
        try:
            return original(old, new)
        except InvalidRequest as error:
            if error.code != "ONE_VOTER_AT_A_TIME":
                raise
            return 0

    return replaced(configuration, "check_change", check_change)


def membership_at_commit() -> Patch:
    """A leader goes by the new membership only when its entry is committed."""
    return replaced(MembershipHistory, "append", lambda self, entry: None)


def vote_with_a_damaged_log() -> Patch:
    """A node whose fsynced tail is damaged takes part in elections."""
    original = Node.start

    async def start(self: Node) -> None:
        self.log.damage = None
        await original(self)

    return replaced(Node, "start", start)


def take_damage_for_a_torn_tail() -> Patch:
    """A record that had been fsynced and is damaged is cut off like one that never was."""
    original = Log.open.__func__  # type: ignore[attr-defined]

    async def open_log(cls: Any, *arguments: Any, **named: Any) -> Any:
        log = await original(cls, *arguments, **named)
        log.damage = None
        return log

    return replaced(Log, "open", classmethod(open_log))


def forget_the_negative_outcome_of_a_resend() -> Patch:
    """A resend that is refused leaves no trace in the log: its first copy may still be executed."""
    original = Batch._check_failed

    def check_failed(self: Batch, failed: Any, request: Any, window: Any) -> Any:
        return original(self, failed, request and request._replace(resend=False), window)

    return replaced(Batch, "_check_failed", check_failed)


def expire_sessions_by_the_local_clock() -> Patch:
    """Whether a session lives is judged by the clock of whoever resolves."""
    original = resolve.admit

    def admit(window: Any, request: Any, log_time_ms: int, applied_index: int) -> Any:
        return original(window, request, int(time.time() * 1000), applied_index)

    return replaced(resolve, "admit", admit)


def take_writes_of_strangers() -> Patch:
    """Whoever names a session writes under it, whatever database it was opened for."""
    original = resolve.admit

    def admit(window: Any, request: Any, log_time_ms: int, applied_index: int) -> Any:
        named = request if window is None else request._replace(owner=window.owner)
        return original(window, named, log_time_ms, applied_index)

    return replaced(resolve, "admit", admit)


def go_on_after_a_failed_fsync() -> Patch:
    """What follows a failed fsync is acknowledged; the kernel has forgotten what it could not write."""
    original = Log.append

    async def append(self: Log, *arguments: Any, **named: Any) -> None:
        try:
            await original(self, *arguments, **named)
        except StorageFailed:
            self._failure = None

    return replaced(Log, "append", append)


def vote_from_an_old_pre_vote() -> Patch:
    """A pre-vote that was granted for an earlier term counts."""
    original = election.on_pre_vote_response

    def on_pre_vote_response(core: Core, message: Any) -> None:
        election.on_vote_response(core, message)

    return replaced_handler(original, on_pre_vote_response)


PAPER = "tests/raft/test_paper.py"
RESOLVE = "tests/unit/machine/test_resolve.py"
NAMED: dict[Callable[[], Patch], str] = {
    **FAILOVER_NAMED,
    **LEASE_NAMED,
    **PROMOTION_NAMED,
    take_a_fork: "tests/unit/raft/test_changelog.py::test_a_fork_is_refused",
    campaign_without_pre_vote: f"{PAPER}::test_t96_pre_vote_keeps_the_term_of_who_is_cut_off",
    leave_a_living_leader: f"{PAPER}::test_t423_votes_are_sticky",
    lead_without_a_quorum: f"{PAPER}::test_t62_check_quorum",
    two_changes_at_once: f"{PAPER}::test_t41_one_change_at_a_time_and_none_before_an_own_commit",
    change_before_an_own_commit: f"{PAPER}::test_t41_one_change_at_a_time_and_none_before_an_own_commit",
    change_many_voters: "tests/unit/raft/test_configuration.py::test_refused",
    membership_at_commit: f"{PAPER}::test_t41_a_membership_is_in_force_when_appended_and_goes_when_truncated",
    keep_a_truncated_membership: f"{PAPER}::test_t41_a_membership_is_in_force_when_appended_and_goes_when_truncated",
    forget_the_term_at_install: "tests/unit/storage/test_log_model.py",
    keep_the_tail_under_a_snapshot: "tests/unit/raft/test_log.py::test_a_snapshot_takes_along_the_tail_beyond_it",
    join_the_round_under_way: f"{PAPER}::test_t64_read_index_waits_for_a_round_that_began_after_it",
    join_a_batch_that_was_sent: "tests/unit/node/test_read_batch.py::test_a_read_does_not_join_a_round_that_was_sent",
    believe_the_frozen: f"{PAPER}::test_t64_a_clock_gap_voids_what_was_sent_before",
    vote_from_an_old_pre_vote: f"{PAPER}::test_t96_a_late_pre_vote_is_worth_nothing_in_the_next_term",
    fresh_since_the_acknowledgement: "tests/unit/node/test_freshness.py"
    "::test_the_leaders_age_counts_from_the_sending_of_the_acknowledged_round",
    fresh_before_it_is_applied: "tests/unit/node/test_freshness.py"
    "::test_a_round_counts_once_what_was_committed_at_its_sending_is_applied",
    forget_the_negative_outcome_of_a_resend: f"{RESOLVE}::test_negative_outcomes_of_a_resend_are_logged",
    expire_sessions_by_the_local_clock: f"{RESOLVE}::test_a_session_expires_by_log_time",
    take_writes_of_strangers: "tests/unit/node/test_session_owners.py"
    "::test_a_session_takes_writes_for_its_database_alone_whatever_node_it_was_opened_at",
    go_on_after_a_failed_fsync: "tests/unit/node/test_node.py"
    "::test_a_failed_fsync_stops_the_node_and_acknowledges_nothing",
    vote_with_a_damaged_log: "tests/unit/node/test_node.py"
    "::test_a_node_whose_log_is_damaged_stays_up_says_so_and_takes_no_part",
    take_damage_for_a_torn_tail: "tests/unit/storage/test_log_damage.py",
    end_leases_while_nobody_leads: "tests/unit/machine/queue/test_transactions.py",
    extend_what_has_ended: "tests/unit/machine/queue/test_against_model.py::test_queues_are_the_model",
}


def failed_test(plant: Callable[[], Patch], tests: str) -> str:
    """Run tests with the bug in force; the name of the first that fails, or nothing."""
    failed: list[str] = []

    class Listener:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                failed.append(report.nodeid)

    said = io.StringIO()
    # A folder of its own: several of these run side by side, and each cleans up what it takes for its predecessors'.
    with (
        tempfile.TemporaryDirectory(prefix="kvnode-mutant-") as folder,
        plant(),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        options = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/tests"]
        code = pytest.main([*options, f"{ROOT}/{tests}"], plugins=[Listener()])
    assert code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), said.getvalue()
    return failed[0] if failed else ""
