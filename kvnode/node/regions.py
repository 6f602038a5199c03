"""A node's part in what spans regions: the changelog, which it gives and follows, and failovers; joined.

An epoch that begins or ends, here or elsewhere, is news to all of these at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from kvnode.codec.membership import MemberRole
from kvnode.node.address_book import AddressBook
from kvnode.node.changelog.follower import ChangelogFollower
from kvnode.node.changelog.source import Sources
from kvnode.node.context import NodeContext
from kvnode.node.epochs import Epochs
from kvnode.node.failover.coordinator import Coordinator
from kvnode.node.failover.fork import ForkKeeper, Forks
from kvnode.node.failover.participant import Participant
from kvnode.node.message_stream import hello_to
from kvnode.node.ports import PeerHandler, Transport
from kvnode.node.promotion.granter import NO_PART
from kvnode.node.promotion.promoter import Promoter
from kvnode.node.promotion.promotion import Promotion
from kvnode.node.replication import Replication
from kvnode.node.snapshots import Snapshots


class Regions:
    """Those parts of one node.

    Args:
        context: the node.
        transport: to the other nodes.
        peers: takes what they say.
        epochs: the node's view of epochs.
        book: whom it knows.
        promotion: the primary lease.
        replication: how far the regions are, while this node leads.
        snapshots: sent to a replica that is too far behind, and coming to one.
        sealed: told when this node, leading, takes nothing in any more.
        withdrawn: why nobody is to follow this node; empty = who wants to may.
        fork_keeper: where it saves what a failover has cut off; without it, such a node stays as it is.
    """

    def __init__(
        self,
        context: NodeContext,
        transport: Transport,
        peers: PeerHandler,
        epochs: Epochs,
        book: AddressBook,
        promotion: Promotion,
        replication: Replication,
        snapshots: Snapshots,
        sealed: Callable[[], None],
        withdrawn: Callable[[], str],
        fork_keeper: ForkKeeper | None,
    ) -> None:
        self._context = context
        self._transport = transport
        self._epochs = epochs
        self._book = book
        self._promotion = promotion
        self._replication = replication
        self._withdrawn = withdrawn
        self.forks = Forks(
            context.settings, context.raft, context.epoch, context.clock, fork_keeper, context.wake, context.fail
        )
        self._join_changelog(peers, snapshots)
        self._join_failovers(sealed)

    def _join_changelog(self, peers: PeerHandler, snapshots: Snapshots) -> None:
        context, epochs, promotion = self._context, self._epochs, self._promotion
        settings, raft = context.settings, context.raft
        self.changelog = Sources(
            raft,
            context.freshness,
            context.epoch,
            snapshots.send,
            region=settings.region,
            own_id=settings.node_id,
            epochs=lambda: epochs.table,
            hello=partial(hello_to, peers),
            lease_ask=lambda: promotion.ask,
            on_lease=promotion.take,
            awaited=lambda: snapshots.coming if self.follower.awaits_snapshot else None,
            withdrawn=self._withdrawn,
            monotonic_ms=context.clock.monotonic_ms,
        )
        self.follower = ChangelogFollower(
            settings.node_id,
            settings.region,
            self._book.reachable,
            lambda: epochs.latest,
            raft,
            context.freshness,
            context.applied_index,
            self._transport,
            context.clock,
            context.wake,
            is_active=self._follows,
            learn=peers.check_hello,
            forked=self.forks.meet,
            begun=epochs.of_log,
            heard_from=lambda: epochs.heard_from,
            lease_news=promotion.news_upward,
            on_lease=promotion.take,
            coming=lambda: snapshots.coming,
        )

    def _join_failovers(self, sealed: Callable[[], None]) -> None:
        context, epochs, promotion = self._context, self._epochs, self._promotion
        settings, raft, log = context.settings, context.raft, context.log
        self.failover = Participant(
            settings,
            raft,
            epochs,
            context.meta,
            context.freshness,
            self._transport,
            context.clock,
            self.epoch_heard,
            context.guard,
            sealed,
            lambda: promotion.ballot_wait_ms() if log.damage is None else NO_PART,
            lambda: promotion.vouches,
            self.forks.keep_tail,
        )
        self.coordinator = Coordinator(
            settings,
            raft,
            epochs,
            self.failover,
            self._transport,
            context.clock,
            context.random_source,
            self._book.known,
        )
        self.promoter = Promoter(
            settings, raft, promotion, self.coordinator, context.clock, context.random_source, context.epoch
        )

    def epoch_heard(self) -> None:
        """An epoch has begun elsewhere, or is promised to somebody."""
        self.follower.look()
        self._context.wake()

    def epochs_applied(self) -> None:
        """An epoch began or was sealed in the state, or a snapshot may have brought one."""
        self._epochs.applied()
        if self._epochs.seal is not None and not self._context.raft.sealed:
            self._context.raft.stands_at_seal(self._epochs.seal[1])
        self._transport.announce()
        self.follower.look()
        self.take_up_seal()

    def take_up_seal(self) -> None:
        """If the state stands at a seal, the next epoch begins with it; not from within an apply."""
        seal = self._epochs.seal
        if seal is not None:
            asyncio.get_running_loop().call_soon(self.failover.take_up, *seal)

    def tell_held(self) -> None:
        """The leader learns how far the replicas are that follow this node, which may be itself."""
        raft, rows = self._context.raft, self.changelog.held()
        if raft.is_leader:
            self._replication.take(rows)
        elif rows and raft.leader_id and not self._is_replica:
            self._transport.send_held(raft.leader_id, rows)
        self._replication.tick()

    @property
    def _is_replica(self) -> bool:
        return self._book.own.role is MemberRole.REPLICA

    def _follows(self) -> bool:
        """Whether it follows the changelog: as a replica, or as what was a voter in an epoch that has ended."""
        raft = self._context.raft
        return self._is_replica or raft.promised_epoch > raft.history.epoch
