"""The lease of a leader: until when it may answer.

It holds while a quorum (quorum.py) has granted it, counted from the sending of what was granted, less the margin by
which clocks may run apart. Whoever wins a ballot has the votes of a quorum, each given after the voter's own grant had
run out, so no answer under the lease is given once another epoch has begun.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvnode.base import limits
from kvnode.codec.membership import Membership
from kvnode.node.ports import LeaseGrant
from kvnode.node.promotion.quorum import digest_of, quorum_value


def usable_ms(lease_ms: int) -> int:
    """For how long after an ask the leader believes the lease."""
    return lease_ms - lease_ms // limits.PRIMARY_LEASE_MARGIN_PARTS


class PrimaryLease:
    """What the members have granted, as far as it was heard here. Times are of the leader's monotonic clock."""

    def __init__(self) -> None:
        self._grants: dict[int, LeaseGrant] = {}
        self._computed: tuple[Membership | None, int] = (None, 0)
        self._until_ms = 0

    def take(self, grants: Iterable[LeaseGrant]) -> None:
        """Members say what they have granted."""
        for grant in grants:
            known = self._grants.get(grant.node_id)
            if known is None or grant.ask >= known.ask:
                self._grants[grant.node_id] = grant
        self._computed = (None, 0)

    def of_term(self, term: int) -> list[LeaseGrant]:
        """The grants to the leader of a term, or of a later one."""
        return [grant for grant in self._grants.values() if grant.ask.term >= term]

    def until_ms(self, membership: Membership, term: int) -> int:
        """Until when the leader of a term may answer; 0 = it never could.

        Args:
            membership: the leader's newest, committed or not; it needs a lease.
        """
        if self._computed != (membership, term):
            lease_ms = membership.primary_lease_ms
            until = {
                node_id: grant.ask.asked_at_ms + usable_ms(lease_ms)
                for node_id, grant in self._grants.items()
                if grant.ask.term == term and grant.lease_ms == lease_ms
            }
            self._until_ms = quorum_value(membership, until)
            self._computed = (membership, term)
        return self._until_ms

    def holders(self, membership: Membership, term: int) -> list[int]:
        """The members that know this very membership to be committed, as they have told the leader of the term."""
        wanted = digest_of(membership)
        return [
            node_id
            for node_id, grant in self._grants.items()
            if grant.ask.term == term and grant.membership == wanted and membership.get(node_id) is not None
        ]

    def wishes(self, term: int) -> dict[int, int]:
        """By node id the lease that its configuration wants, of those that the leader of the term has heard of."""
        return {node_id: grant.wished_ms for node_id, grant in self._grants.items() if grant.ask.term == term}
