"""What one node has granted, and from when on it may vote for a promotion.

Theory of operation. A leader's ask names the moment at which it was sent, on the leader's own clock. A node that
receives a newer ask than any before says so to the leader, which counts the lease from the *sending*; the node itself
counts from the *receipt*, which is later, and votes in no ballot until then. An ask that comes again grants nothing
anew. What was granted is not on disk: a node that starts, or that comes to know of a lease that it did not know of, may
have granted one a moment ago, and waits as if it had. Once it has promised a later epoch it heeds no ask of an earlier
one. Both clocks run through freezes (base/clock.py); the leader leaves a margin for what they may run apart.
"""

from __future__ import annotations

from math import ceil

from kvnode.codec.epoch import epoch_of_term
from kvnode.codec.membership import Membership
from kvnode.node.ports import LeaseAsk, LeaseGrant
from kvnode.node.promotion.quorum import digest_of

NO_PART = -1


class Granter:
    """One node's grants.

    Args:
        wished_ms: the lease that its configuration wants; 0 = no automatic promotion.
        now_ms: when the process started, on a monotonic clock, as all times here.
    """

    def __init__(self, node_id: int, wished_ms: int, now_ms: float) -> None:
        self.node_id = node_id
        self.wished_ms = wished_ms
        self.ask: LeaseAsk | None = None
        self._asked_at = now_ms
        self._lease_ms = 0  # that was in force at the last look
        self._in_force_at = now_ms

    def take(self, ask: LeaseAsk, term: int, epoch: int, now_ms: float) -> bool:
        """A leader asks. Whether that is news, which is then granted.

        Args:
            term, epoch: that the node is in; an epoch that it has promised counts.
        """
        if ask.term < term or epoch_of_term(ask.term) < epoch:
            return False
        if self.ask is not None and ask <= self.ask:
            return False
        self.ask = ask
        self._asked_at = now_ms
        return True

    def grant(self, committed: Membership) -> LeaseGrant | None:
        """What the leader is told; None while nobody has asked.

        Args:
            committed: the newest membership that this node knows to be committed.
        """
        if self.ask is None:
            return None
        return LeaseGrant(self.node_id, self.ask, committed.primary_lease_ms, self.wished_ms, digest_of(committed))

    def look(self, committed: Membership, now_ms: float) -> None:
        """Take note of the lease that is in force."""
        if committed.primary_lease_ms != self._lease_ms:
            self._lease_ms = committed.primary_lease_ms
            self._in_force_at = now_ms

    def wait_ms(self, committed: Membership, now_ms: float) -> int:
        """Until this node may vote for a promotion: 0 = now, NO_PART = it takes no part in ballots."""
        self.look(committed, now_ms)
        if not self.wished_ms or not self._lease_ms or committed.lease_ends:
            return NO_PART
        free_at = max(self._asked_at, self._in_force_at) + self._lease_ms
        return max(0, ceil(free_at - now_ms))
