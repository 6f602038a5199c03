"""From what the nodes report to what a failover would do: pure, so that each case can be tested by itself.

The most advanced node is the one whose log is greatest by Raft's comparison, term before index; because terms tell
epochs apart, one of a later epoch always is. Its membership is the one that counts: whatever was committed after it
would be on a node that has answered, if enough of the old voters have.

Where they have not, what that log holds beyond its commit index may never have been committed, and something else may
have been in its place, acknowledged under the same versionstamps (Raft, section 5.4.1, needs a majority's votes to
exclude it). So the new epoch then begins behind the greatest entry that somebody knows to be committed.

*Fenced* means that no acknowledgement can come from the old side: a majority of every group of voters that may still
be alive has promised the new epoch. A majority of the old voters, and not only enough of them that the others have
none: a change of membership that is under way there could still lower what a majority is.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, KvError
from kvnode.codec.entry import Entry
from kvnode.codec.epoch import EpochStart, epoch_entry, epoch_of_term
from kvnode.codec.membership import Member, Membership, decode_membership
from kvnode.codec.versionstamp import versionstamp
from kvnode.node.failover.numbers import fenced_epoch, unfenced_epoch
from kvnode.node.failover.participant import failover_in_progress, move_in_progress
from kvnode.node.failover.start import epoch_start
from kvnode.proto.kv.internal.v1 import failover_pb2

Report = failover_pb2.FailoverReport
_LAST_ORDER = limits.MAX_ENTRY_TRANSACTIONS_COUNT - 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What a failover would do.

    Attributes:
        region: that is to be the primary one.
        epoch, ballot: that is to begin.
        source: the report of the node whose log is kept, up to `end`.
        membership: as it knows it.
        voters: who is to vote.
        silent: members that did not answer.
        unfenced: voters of a group that may go on acknowledging, because a majority of them did not answer; empty = all
            are fenced.
        lag_ms: by which the source's state is behind the newest word of a leader that anybody heard, at most where it
            has reached none since it started; -1 = unknown.
        age_ms: how old that state is now: what was acknowledged since is lost; -1 = unknown.
    """

    region: str
    epoch: int
    ballot: int
    source: Report
    membership: Membership
    voters: tuple[Member, ...]
    silent: tuple[Member, ...] = ()
    unfenced: tuple[Member, ...] = ()
    lag_ms: int = -1
    age_ms: int = -1
    warnings: tuple[str, ...] = field(default=())

    @property
    def last_versionstamp(self) -> bytes:
        """Of the last entry that is kept."""
        term, index = self.end
        return versionstamp(epoch_of_term(term) or 1, index, _LAST_ORDER)

    @property
    def end(self) -> tuple[int, int]:
        """(term, index) of the last entry that is kept: of the source's log, or of what it knows to be committed."""
        return _end(self.source, is_fenced=not self.unfenced)

    @property
    def start(self) -> EpochStart:
        """What begins the epoch."""
        wanted = self.source.wanted_commit_dcs
        return epoch_start(self.membership, self.voters, self.region, self.epoch, self.ballot, wanted)

    @property
    def entry(self) -> Entry:
        """The epoch's first entry."""
        return epoch_entry(self.start, self.end[1] + 1)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the operator asks for.

    Attributes:
        region: that is to be the primary one.
        force: although it lags, is small, or there is a primary.
        primary_is_down: the operator vouches that voters who cannot be fenced acknowledge nothing any more.
        automatic: no operator asks: a ballot decides, and the primary lease keeps the old side from answering.
    """

    region: str
    force: bool = False
    primary_is_down: bool = False
    automatic: bool = False


def new_ballot(random_source: Random | None = None) -> int:
    """A number that no other failover has, never 0."""
    draw = secrets.randbits if random_source is None else random_source.getrandbits
    return draw(63) | 1


def make_plan(reports: Sequence[Report], wishes: Wishes, ballot: int) -> Plan:
    """What a forced failover would do.

    Raises:
        KvError: why it may not be, with the code REGION_UNKNOWN, REGION_IS_PRIMARY, FAILOVER_PRIMARY_ALIVE,
            FAILOVER_IN_PROGRESS, FAILOVER_NOTHING_HELD, REGION_TOO_SMALL or FAILOVER_LAG_TOO_LARGE.
    """
    membership = decode_membership(most_advanced(reports).membership)
    answered = {report.node_id for report in reports}
    not_fenced = unfenced(membership, reports, answered)
    source = source_of(reports, is_fenced=not not_fenced)
    _check_region(membership, wishes.region)
    _check_primary(reports, membership, wishes)
    _check_alone(reports)
    _check_held(source, is_fenced=not not_fenced)
    voters = tuple(_candidates(reports, membership, source, wishes.region))
    _check_size(reports, membership, voters, source, wishes)
    lag_ms, age_ms = _lag_ms(reports, source), _age_ms(source)
    if lag_ms > limits.MAX_FAILOVER_LAG_MS and not wishes.force:
        raise InvalidRequest(
            "FAILOVER_LAG_TOO_LARGE",
            f"the most advanced node that answers, '{source.name}', lags {lag_ms / 1_000:.0f} s behind the newest word "
            f"of the primary: more than {limits.MAX_FAILOVER_LAG_MS // 1_000} s of writes would be lost. Start another "
            "node that has more, or say --force",
            phase="failover",
        )
    latest = latest_epoch_known(reports)
    return Plan(
        wishes.region,
        unfenced_epoch(latest, membership.members, voters) if not_fenced else fenced_epoch(latest),
        ballot,
        source,
        membership,
        voters,
        silent=tuple(m for m in membership.members if m.node_id not in answered),
        unfenced=not_fenced,
        lag_ms=lag_ms,
        age_ms=age_ms,
        warnings=(
            *_warnings(membership, voters),
            *_left_behind(reports, source),
            *_uncommitted(reports, source, is_fenced=not not_fenced),
        ),
    )


def latest_epoch_known(reports: Sequence[Report]) -> int:
    """The latest that anybody who answers is in, has promised, or knows to be sealed."""
    return max(max(r.state_epoch, r.log_epoch, r.promised_epoch, r.sealed_epoch) for r in reports)


def most_advanced(reports: Iterable[Report]) -> Report:
    """The node whose log is greatest."""
    return max(reports, key=lambda r: (r.last_term, r.last_index, r.commit_index, -r.node_id))


def source_of(reports: Iterable[Report], *, is_fenced: bool) -> Report:
    """The node whose log is kept: the most advanced one, or the one that knows most to be committed."""
    return max(reports, key=lambda r: (_end(r, is_fenced=is_fenced), r.commit_index, -r.node_id))


def _end(report: Report, *, is_fenced: bool) -> tuple[int, int]:
    return (report.last_term, report.last_index) if is_fenced else (report.commit_term, report.commit_index)


def unfenced(membership: Membership, reports: Sequence[Report], promised: Iterable[int]) -> tuple[Member, ...]:
    """The voters of a group of which too few have promised; empty when all that may be alive are fenced.

    Args:
        membership: that of the most advanced log.
        reports: tell of the groups that may begin, or have begun, an epoch of which that log knows nothing.
        promised: the ids of those that have promised, or are to.
    """
    fenced = frozenset(promised)
    latest = most_advanced(reports).log_epoch
    groups = [group for report in reports for group in report.groups if group.epoch > latest]
    if any(not group.voter_ids for group in groups):  # it may be anybody's
        silent = tuple(member for member in membership.members if member.node_id not in fenced)
        if silent:
            return silent
    voters = [voter.node_id for voter in membership.voters]
    for ids in (voters, *(group.voter_ids for group in groups if group.voter_ids)):
        if 2 * len(fenced.intersection(ids)) <= len(ids):
            return tuple(m for m in membership.members if m.node_id in ids and m.node_id not in fenced)
    return ()


def require_fenced(plan: Plan, wishes: Wishes) -> None:
    """Raise FAILOVER_NOT_FENCED unless nobody can acknowledge on the old side, or the operator vouches for it."""
    if not plan.unfenced or wishes.primary_is_down:
        return
    names = ", ".join(f"'{member.name}'" for member in plan.unfenced)
    raise InvalidRequest(
        "FAILOVER_NOT_FENCED",
        f"{names} did not answer, and without a majority of the old voters nobody can keep them from acknowledging "
        "writes that will be lost. If they are down for certain, say --primary-is-down: should they live after all, "
        "they may acknowledge until they hear of the new epoch from any node",
        phase="failover",
    )


def waits_in_vain(report: Report, epoch: int) -> bool:
    """Whether a node has promised an epoch that never began, while the cluster is in `epoch`: it follows nobody."""
    return report.promised_epoch > epoch >= max(report.state_epoch, report.log_epoch)


def make_move(reports: Sequence[Report], region: str, ballot: int) -> Plan:
    """What a planned move would do: its source is the leader, who ends the epoch.

    To the primary region itself it moves only for the sake of nodes that have promised an epoch which never began, in a
    failover that broke off: they take part in none but a later one, which then begins with the same voters.

    Raises:
        InvalidRequest: REGION_UNKNOWN, REGION_IS_PRIMARY, REGION_TOO_SMALL, or FAILOVER_NO_PRIMARY, nobody leads who
            could hand over.
        Unavailable: FAILOVER_IN_PROGRESS.
    """
    latest = max(report.state_epoch for report in reports)
    leader = next((r for r in reports if r.leads and r.state_epoch == latest), None)
    _check_region(decode_membership((leader or most_advanced(reports)).membership), region)
    _check_alone(reports)
    sealed = next((report for report in reports if report.sealed_epoch > latest), None)
    if leader is None and sealed is not None:
        raise move_in_progress(sealed.name, sealed.sealed_epoch)
    if leader is None:
        raise _no_primary(reports, decode_membership(most_advanced(reports).membership))
    if leader.region == region and any(waits_in_vain(report, latest) for report in reports):
        return make_renewal(reports, leader.node_id, ballot)
    _check_primary(reports, decode_membership(leader.membership), Wishes(region, force=True))
    membership = decode_membership(leader.membership)
    voters = tuple(_candidates(reports, membership, leader, region))
    _check_size(reports, membership, voters, leader, Wishes(region))
    answered = {report.node_id for report in reports}
    return Plan(
        region,
        fenced_epoch(latest_epoch_known(reports)),
        ballot,
        leader,
        membership,
        voters,
        silent=tuple(m for m in membership.members if m.node_id not in answered),
        lag_ms=0,
        age_ms=0,
        warnings=tuple(_warnings(membership, voters)),
    )


def make_renewal(reports: Sequence[Report], own_id: int, ballot: int) -> Plan:
    """What it would be to begin the next epoch in the region of the leader, with the voters that there are.

    Args:
        own_id: of the leader.

    Raises:
        Unavailable: FAILOVER_IN_PROGRESS.
    """
    _check_alone(reports)
    leader = next(report for report in reports if report.node_id == own_id)
    membership = decode_membership(leader.membership)
    epoch = fenced_epoch(latest_epoch_known(reports))
    return Plan(leader.region, epoch, ballot, leader, membership, membership.voters, lag_ms=0, age_ms=0)


def behind_count(plan: Plan, reports: Sequence[Report]) -> int:
    """By how many entries the slowest of the new voters lags behind the leader."""
    ids = {member.node_id for member in plan.voters}
    commits = [report.commit_index for report in reports if report.node_id in ids]
    return plan.source.commit_index - min(commits) if len(commits) == len(ids) else plan.source.commit_index


def _check_region(membership: Membership, region: str) -> None:
    regions = sorted({member.region for member in membership.members})
    if region not in regions:
        raise InvalidRequest(
            "REGION_UNKNOWN",
            f"no member stands in a region '{region}': the regions are {', '.join(regions)}",
            phase="failover",
        )


def _no_primary(reports: Sequence[Report], membership: Membership) -> InvalidRequest:
    answered = {report.node_id for report in reports}
    silent = [f"'{voter.name}'" for voter in membership.voters if voter.node_id not in answered]
    if 2 * len(silent) < len(membership.voters):
        why = "though most voters do: they may be electing one, so try again in some seconds. If they elect none"
    else:
        why = (
            f"and of the voters {', '.join(silent)} did not answer this node: start them, or if they live, say it to "
            "nodes that reach them (--endpoints). If they are gone"
        )
    return InvalidRequest(
        "FAILOVER_NO_PRIMARY",
        f"no leader answers that could hand over, {why}, leave --plan out: the region then takes over with what it has",
        phase="failover",
    )


def _check_primary(reports: Sequence[Report], membership: Membership, wishes: Wishes) -> None:
    latest = max(report.state_epoch for report in reports)
    leader = next((r for r in reports if r.leads and r.state_epoch == latest), None)
    if leader is None:
        return
    if leader.region == wishes.region:
        stuck = [report.name for report in reports if waits_in_vain(report, latest)]
        remedy = f"; --plan brings {', '.join(stuck)} back, of a failover that broke off" if stuck else ""
        raise InvalidRequest(
            "REGION_IS_PRIMARY",
            f"'{wishes.region}' is the primary region, and '{leader.name}' leads{remedy}",
            phase="failover",
        )
    if not wishes.force:
        raise InvalidRequest(
            "FAILOVER_PRIMARY_ALIVE",
            f"the primary region lives: '{leader.name}' in '{leader.region}' leads. Move it with --plan, which loses "
            "nothing; to cut it off all the same, say --force",
            phase="failover",
        )


def _check_alone(reports: Sequence[Report]) -> None:
    for report in reports:
        is_open = report.promised_epoch > max(report.state_epoch, report.log_epoch)
        if is_open and 0 <= report.promised_ago_ms < limits.FAILOVER_EXCLUSIVE_MS:
            raise failover_in_progress(
                report.name, report.promised_region, report.promised_epoch, report.promised_ago_ms
            )


def _check_held(source: Report, *, is_fenced: bool) -> None:
    """No force helps: the others would follow, and save of their state no more than the log still has."""
    if _end(source, is_fenced=is_fenced)[1] == 0:
        raise InvalidRequest(
            "FAILOVER_NOTHING_HELD",
            f"the most advanced node that answers, '{source.name}', holds nothing: it was taken in a moment ago, or "
            "begins anew after an earlier failover and has not caught up. All that was ever written would be lost. "
            "Start another node that has more",
            phase="failover",
        )


def _candidates(reports: Sequence[Report], membership: Membership, source: Report, region: str) -> Iterable[Member]:
    """The members of the region that have answered and can be brought to the source's end."""
    by_id = {report.node_id: report for report in reports}
    for member in membership.members:
        report = by_id.get(member.node_id)
        if member.region != region or report is None or is_forked(report, source):
            continue
        if report.commit_index + 1 >= source.first_index:
            yield member


def is_forked(report: Report, source: Report) -> bool:
    """Whether a node knows something to be committed that is not in the source's history: it has to begin anew.

    Inside one epoch nobody commits what others do not, so that the epochs of the source's log tell.
    """
    epoch = epoch_of_term(report.commit_term)
    epochs = [began.epoch for began in source.epochs]
    if epoch and epoch not in epochs:
        return True
    fork_index = next((began.fork_index for began in source.epochs if began.epoch > epoch), report.commit_index)
    return report.commit_index > fork_index


def _check_size(
    reports: Sequence[Report], membership: Membership, voters: Sequence[Member], source: Report, wishes: Wishes
) -> None:
    there = [member for member in membership.members if member.region == wishes.region]
    needed = min(max(1, source.wanted_commit_dcs), len({member.dc for member in there}))
    dcs = {member.dc for member in voters}
    if voters and (len(dcs) >= needed or wishes.force):
        return
    missing = [member for member in there if member not in voters]
    raise InvalidRequest(
        "REGION_TOO_SMALL",
        f"of the nodes in '{wishes.region}' too few can take over: they stand in {len(dcs)} data center(s), and "
        f"{needed} are needed; {'; '.join(_shortcomings(reports, missing, source))}"
        + (". Or say --force to go on with fewer" if voters else ""),
        phase="failover",
    )


def _shortcomings(reports: Sequence[Report], missing: Sequence[Member], source: Report) -> Iterable[str]:
    """Why those nodes cannot vote, and what to do about it."""
    by_id = {report.node_id: report for report in reports}
    for member in missing:
        report = by_id.get(member.node_id)
        if report is None:
            reason = "did not answer: start it, or say it to a node that reaches it"
        elif is_forked(report, source):
            reason = (
                f"holds what an earlier failover has left behind, and first has to follow '{source.name}' as a replica"
            )
        else:
            reason = f"lags behind what '{source.name}' still has in its log, and first has to follow it as a replica"
        yield f"'{member.name}' {reason}"


def _lag_ms(reports: Sequence[Report], source: Report) -> int:
    newest = max(reports, key=lambda r: (r.heard_sent_at_ms, r.heard_commit_index))
    if source.reached_sent_at_ms and newest.heard_sent_at_ms:
        return max(0, newest.heard_sent_at_ms - source.reached_sent_at_ms)
    if newest.heard_commit_index > source.commit_index:
        # It has reached no word since it started, and lacks what this one told of: written after its last entry.
        return max(0, newest.heard_sent_at_ms - source.log_time_ms)
    return -1


def _age_ms(source: Report) -> int:
    return max(0, source.now_ms - source.reached_sent_at_ms) if source.reached_sent_at_ms else -1


def _warnings(membership: Membership, voters: Sequence[Member]) -> Iterable[str]:
    dcs_count = len({member.dc for member in voters})
    if dcs_count < 3:
        yield (
            f"after this the voters stand in {dcs_count} data center(s): none of them can be lost without stopping "
            "writes until a third is added (`kvnode member add`, then `promote`)"
        )
    behind = [m.name for m in membership.members if m.region == voters[0].region and m not in voters]
    if behind:
        yield f"{', '.join(behind)} in the same region will not vote: promote them when they have caught up"


def _left_behind(reports: Sequence[Report], source: Report) -> Iterable[str]:
    names = [report.name for report in reports if is_forked(report, source)]
    if names:
        yield (
            f"{', '.join(names)}: what an earlier failover has left behind is committed there. It is saved in forks/ "
            f"under the data directory, and not kept: '{source.name}' is in a later epoch"
        )


def _uncommitted(reports: Sequence[Report], source: Report, *, is_fenced: bool) -> Iterable[str]:
    """Of what an unfenced failover leaves behind, although somebody who answers holds it."""
    most = most_advanced(reports)
    if not is_fenced and most.last_index > source.commit_index:
        yield (
            f"'{most.name}' holds entries {source.commit_index + 1} to {most.last_index}, and nobody who answers knows "
            "whether they were committed: they are saved there, in forks/ under its data directory, and not kept"
        )


__all__ = ["KvError", "Plan", "Report", "Wishes", "make_plan"]
