"""From the nodes' reports to whether a node should call the ballot now, and whether it has won; pure.

Before anybody votes, the node that would coordinate asks all: what do you hold, and would you vote? A vote is a promise
(raft/epochs.py), durable and one for an epoch, and it ends the voter's part in the epoch before, so a ballot that
cannot be won is better not begun. Every node comes to about the same order of candidates from the reports: regions by
their most advanced log, in a region the lowest node id. The first goes at once, each further one a turn later, so that
two hardly ever split the votes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kvnode.base.errors import Unavailable
from kvnode.codec.membership import Membership, decode_membership
from kvnode.node.failover.plan import Report, latest_epoch_known, most_advanced
from kvnode.node.promotion.quorum import is_quorum


class Turn(NamedTuple):
    """That a ballot could be won.

    Attributes:
        rank: candidates before this node.
        willing: the reports of those who would vote.
        is_early: a leader answers that holds no lease and may be about to get it; or somebody who will vote in a moment
            holds more than those who would vote now.
    """

    rank: int
    willing: list[Report]
    is_early: bool = False


def turn_of(reports: Sequence[Report], node_id: int) -> Turn | None:
    """Whether a node could win a ballot for its region, and how many should try before it.

    Args:
        reports: of all who answered, its own included.
    """
    willing = [report for report in reports if report.ballot_wait_ms == 0]
    others = [report for report in reports if report.ballot_wait_ms != 0]
    if not has_won(willing) or any(report.holds_lease for report in reports):
        return None
    if others and latest_epoch_known(others) > latest_epoch_known(willing):
        return None
    order = _candidates(willing, {report.region for report in others if report.ballot_wait_ms > 0})
    ids = [report.node_id for report in order]
    is_early = any(report.leads for report in reports) or most_advanced(reports).ballot_wait_ms > 0
    return Turn(ids.index(node_id), willing, is_early) if node_id in ids else None


def has_won(voters: Sequence[Report]) -> bool:
    """Whether these are a quorum, by every membership that one of them knows."""
    ids = [report.node_id for report in voters]
    return bool(voters) and all(is_quorum(membership, ids) for membership in _memberships(voters))


def require_won(voters: Sequence[Report]) -> None:
    """Raise BALLOT_LOST unless these are a quorum."""
    if not has_won(voters):
        names = ", ".join(sorted(f"'{report.name}'" for report in voters)) or "nobody"
        raise Unavailable(
            f"{names} voted for the promotion: that is no majority of all nodes in two regions, so nothing is begun",
            code="BALLOT_LOST",
            phase="failover",
        )


def _memberships(reports: Iterable[Report]) -> list[Membership]:
    return [decode_membership(encoded) for encoded in dict.fromkeys(report.membership for report in reports)]


def _candidates(willing: Sequence[Report], hesitating: set[str]) -> list[Report]:
    """Who may coordinate, the best first: in regions that could take over whole."""
    source = most_advanced(willing)
    membership = decode_membership(source.membership)
    best: dict[str, tuple[int, int]] = {}
    dcs: dict[str, set[str]] = {}
    for report in willing:
        best[report.region] = max(best.get(report.region, (0, 0)), (report.last_term, report.last_index))
        dcs.setdefault(report.region, set()).add(report.dc)
    needed = {
        region: min(max(1, source.wanted_commit_dcs), len({m.dc for m in membership.members if m.region == region}))
        for region in best
    }
    standing = [r for r in willing if r.region not in hesitating and len(dcs[r.region]) >= needed[r.region]]
    return sorted(standing, key=lambda r: (-best[r.region][0], -best[r.region][1], r.region, r.node_id))
