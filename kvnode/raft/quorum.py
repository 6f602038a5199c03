"""The arithmetic of majorities, and the commit rule over data centers.

An index is committed when it is on a majority of the voters *and* in `min_commit_dcs` data centers, that is
at min(majority index, the min_commit_dcs-th highest of the data centers' best matches). Election needs only
the majority: any two majorities intersect, so a new leader has every entry that ever met the stricter rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvnode.codec.membership import Membership


def majority_value(values: Sequence[int]) -> int:
    """The highest value that a majority of `values` has reached; 0 for none."""
    if not values:
        return 0
    return sorted(values)[(len(values) - 1) // 2]


def data_center_value(values: Sequence[int], dcs: Sequence[str], min_dcs: int) -> int:
    """The highest value reached in at least `min_dcs` (1 or more) of the data centers; 0 when there are too few."""
    best: dict[str, int] = {}
    for value, dc in zip(values, dcs, strict=True):
        if value > best.get(dc, -1):
            best[dc] = value
    if len(best) < min_dcs:
        return 0
    return sorted(best.values(), reverse=True)[min_dcs - 1]


class Quorum:
    """The voters of one membership. Values are given in the order of `voter_ids`."""

    __slots__ = ("_dcs", "_majority_spans_dcs", "_min_dcs", "majority", "voter_ids")

    def __init__(self, membership: Membership) -> None:
        voters = membership.voters
        self.voter_ids = tuple(voter.node_id for voter in voters)
        self.majority = len(voters) // 2 + 1
        self._dcs = tuple(voter.dc for voter in voters)
        self._min_dcs = max(1, membership.min_commit_dcs)
        self._majority_spans_dcs = self._every_majority_spans()

    def _every_majority_spans(self) -> bool:
        """Whether no majority fits into min_dcs - 1 data centers: then the majority alone decides."""
        sizes = sorted((self._dcs.count(dc) for dc in set(self._dcs)), reverse=True)
        return sum(sizes[: self._min_dcs - 1]) < self.majority

    def commit_index(self, matches: Sequence[int]) -> int:
        """The highest index that may be committed, given each voter's persisted match."""
        index = majority_value(matches)
        if self._majority_spans_dcs:
            return index
        return min(index, data_center_value(matches, self._dcs, self._min_dcs))

    def tally(self, votes: Mapping[int, bool]) -> bool | None:
        """True when a majority of the voters granted, False when it can no longer, None while open."""
        granted = refused = 0
        for voter_id in self.voter_ids:
            vote = votes.get(voter_id)
            if vote is True:
                granted += 1
            elif vote is False:
                refused += 1
        if granted >= self.majority:
            return True
        return False if len(self.voter_ids) - refused < self.majority else None
