"""One node's part in the primary lease, joined: it asks as the leader, grants as anybody, and says how that stands.

Where the news travel: the leader's ask to the voters and learners with the peer batches, and on with the changelog's
pieces and notices; the grants back with the changelog's acknowledgements, and from the nodes that are followed to the
leader. So a grant costs no message of its own on the WAN.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from kvnode.base.clock import Clock
from kvnode.base.errors import InvalidRequest, KvError, Unavailable
from kvnode.codec.membership import MemberRole, Membership
from kvnode.node.calls import Call
from kvnode.node.guard import Guard
from kvnode.node.ports import LeaseAsk, LeaseNews, Transport
from kvnode.node.promotion.gate import Gate
from kvnode.node.promotion.granter import NO_PART, Granter
from kvnode.node.promotion.lease import PrimaryLease
from kvnode.node.promotion.quorum import can_promote, is_quorum
from kvnode.node.promotion.setting import next_setting
from kvnode.node.settings import NodeSettings
from kvnode.raft.raft import Raft

_log = logging.getLogger(__name__)


class Promotion:
    """The lease, on one node.

    Args:
        take_back: see Gate.
        wake: tells the driver that the core has news.
        guard: around every entry into the core.
    """

    def __init__(
        self,
        settings: NodeSettings,
        raft: Raft,
        transport: Transport,
        clock: Clock,
        take_back: Callable[[list[Call], bool], None],
        wake: Callable[[], None],
        guard: Guard,
    ) -> None:
        self._raft = raft
        self._transport = transport
        self._clock = clock
        self._wake = wake
        self._guard = guard
        self._node_id = settings.node_id
        self._asks_since = (0, 0.0)  # in this term, since then
        self._interval_ticks = settings.heartbeat_ticks
        self._ticks = 0
        self.wished_ms = settings.primary_lease_ms if settings.automatic_promotion else 0
        self._granter = Granter(settings.node_id, self.wished_ms, clock.monotonic_ms())
        self._lease = PrimaryLease()
        self.gate = Gate(lambda: self.is_required, lambda: raft.is_leader, lambda: self.is_held, take_back)
        self.promotions_count = 0  # that this node has coordinated

    # What holds.

    @property
    def _committed(self) -> Membership:
        history, commit = self._raft.history, self._raft.log.commit
        return history.latest if history.latest_index <= commit else history.at(commit)

    @property
    def is_required(self) -> bool:
        """Whether a leader needs the lease to answer: from the append of that setting on."""
        return self._raft.history.latest.primary_lease_ms > 0

    @property
    def is_held(self) -> bool:
        """Whether this node leads and holds the lease at this moment."""
        return self._until_ms() > self._clock.monotonic_ms()

    def _until_ms(self) -> int:
        raft = self._raft
        return self._lease.until_ms(raft.membership, raft.term) if raft.is_leader else 0

    @property
    def remaining_ms(self) -> int:
        """Of the lease; 0 = it has run out, -1 = this node does not lead, or needs none."""
        if not self._raft.is_leader or not self.is_required:
            return -1
        return max(0, int(self._until_ms() - self._clock.monotonic_ms()))

    @property
    def vouches(self) -> bool:
        """Whether what this leader says is fresh may be believed: nobody else leads another epoch."""
        return not self.is_required or self.is_held

    def unleased(self) -> str:
        """Why a leader takes nothing strong in now; empty = it does."""
        if not self.is_required or self.is_held:
            return ""
        return (
            "the primary lease has run out: no majority of all nodes, in two regions, grants it, and another region "
            "may have been promoted"
        )

    def ballot_wait_ms(self) -> int:
        """Until this node may vote for a promotion: 0 = now, -1 = it takes no part."""
        if self._raft.is_leader:
            return NO_PART
        return self._granter.wait_ms(self._committed, self._clock.monotonic_ms())

    # News.

    @property
    def ask(self) -> LeaseAsk | None:
        """The newest ask that has reached this node, for those that follow it."""
        return self._granter.ask

    def take(self, news: LeaseNews) -> None:
        """News of a peer."""
        if news.ask is not None:
            self._take_ask(news.ask)
        if news.grants:
            self._lease.take(news.grants)
            self.gate.look()

    def _take_ask(self, ask: LeaseAsk) -> None:
        raft, now = self._raft, self._clock.monotonic_ms()
        self._granter.look(self._committed, now)
        self._granter.take(ask, raft.term, raft.epoch, now)

    def news_upward(self) -> LeaseNews | None:
        """What this node and those that follow it have granted; None while nobody has asked."""
        own = self._granter.grant(self._committed)
        if own is None:
            return None
        others = [grant for grant in self._lease.of_term(own.ask.term) if grant.node_id != self._node_id]
        return LeaseNews(None, [own, *others])

    def tick(self) -> None:
        """Time has passed: ask, or pass on what was granted."""
        raft = self._raft
        self._granter.look(self._committed, self._clock.monotonic_ms())
        self._ticks += 1
        if self._ticks % self._interval_ticks:
            return
        if raft.is_leader:
            # Behind a seal it answers nothing: if nobody takes over, a ballot is to find that out.
            if raft.own_term_committed and not raft.sealed and (self.wished_ms or self.is_required):
                self._ask()
                self._keep_setting()
            self.gate.look()
        elif raft.leader_id and not self._is_replica:
            news = self.news_upward()
            if news is not None and news.grants[0].ask.term == raft.term:
                self._transport.send_lease(raft.leader_id, news)

    @property
    def _is_replica(self) -> bool:
        """Whether the changelog carries this node's news."""
        own = self._raft.membership.get(self._node_id)
        return own is None or own.role is MemberRole.REPLICA

    def _ask(self) -> None:
        now = self._clock.monotonic_ms()
        ask = LeaseAsk(self._raft.term, int(now))
        if self._asks_since[0] != ask.term:
            self._asks_since = (ask.term, now)
        self._take_ask(ask)
        own = self._granter.grant(self._committed)
        if own is not None:
            self._lease.take([own])
        for member in self._raft.membership.members:
            if member.role is not MemberRole.REPLICA and member.node_id != self._node_id:
                self._transport.send_lease(member.node_id, LeaseNews(ask))

    # The setting.

    def _keep_setting(self) -> None:
        raft = self._raft
        if raft.history.latest_index > raft.log.commit or raft.sealed or raft.transferring:
            return
        membership = raft.membership
        holders = self._lease.holders(membership, raft.term)
        wanted = next_setting(membership, self.wished_ms, self._lease.wishes(raft.term), len(holders))
        if wanted is None:
            return
        try:
            with self._guard:
                raft.propose_membership(wanted)
        except KvError as error:
            _log.info("the setting of automatic promotion stays as it is for now: %s", error)
            return
        _log.warning(
            "automatic promotion is %s, with a primary lease of %d ms",
            "ending" if wanted.lease_ends else "on" if wanted.primary_lease_ms else "off",
            wanted.primary_lease_ms or membership.primary_lease_ms,
        )
        self._wake()

    def check_change(self, after: Membership) -> None:
        """Whether who belongs to the cluster may be changed now: any two memberships in use have to differ by one node.

        Raises:
            Unavailable: MEMBERSHIP_NOT_SPREAD, too few know of the present one yet.
        """
        raft = self._raft
        before = raft.membership
        ids = {member.node_id for member in before.members}
        if not self.is_required or ids == {member.node_id for member in after.members}:
            return
        if len(ids ^ {member.node_id for member in after.members}) > 1:
            raise InvalidRequest("ONE_MEMBER_AT_A_TIME", "under a primary lease a change adds or removes one node")
        if not is_quorum(before, self._lease.holders(before, raft.term)):
            raise Unavailable(
                "no majority of all nodes, in two regions, knows the present membership yet, which automatic promotion "
                "needs: try again; if nodes are gone for good, remove them with --force, which vouches that they are",
                code="MEMBERSHIP_NOT_SPREAD",
                phase="admin",
            )

    # For people.

    def problems(self) -> list[str]:
        """What is wrong with the lease and the setting, in sentences."""
        raft, membership = self._raft, self._raft.membership
        found = []
        if raft.is_leader and (unleased := self.unleased()):
            found.append(f"{unleased}: nothing strong is answered until one grants it again")
        if raft.is_leader and raft.own_term_committed and (self.wished_ms or self.is_required):
            found += self._differing(membership)
        if self.wished_ms and raft.leader_id and not self.is_required:
            found.append("automatic_promotion is on in this node's configuration, and not in force in the cluster")
        elif self.is_required and not self.wished_ms:
            found.append(
                "automatic_promotion is off in this node's configuration and in force in the cluster: it takes no part "
                "in ballots"
            )
        return found

    def _differing(self, membership: Membership) -> list[str]:
        wishes = self._lease.wishes(self._raft.term)
        wanted = membership.primary_lease_ms or self.wished_ms
        is_new = self._clock.monotonic_ms() - self._asks_since[1] < wanted
        found = []
        for member in membership.members:
            wished = wishes.get(member.node_id)
            if wished is None and is_new:
                continue  # its first word may be on its way
            if wished is None:
                found.append(f"node '{member.name}' grants no primary lease: nothing was heard of it")
            elif wished != wanted:
                has = f"primary_lease_ms = {wished}" if wished else "automatic_promotion off"
                found.append(f"node '{member.name}' is configured with {has}, this one wants a lease of {wanted} ms")
        if not can_promote(membership):
            found.append(
                "no region could be promoted: without the primary region the other nodes are no majority of all in two "
                "regions"
            )
        return found
