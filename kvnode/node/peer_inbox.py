"""What peers send a node, handed to the part that it is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kvnode.base.errors import LogDamaged
from kvnode.base.invariant import InvariantViolation
from kvnode.node.calls import OpenDeliver
from kvnode.node.clock_guard import ClockGuard
from kvnode.node.context import NodeContext
from kvnode.node.handshake import Handshake
from kvnode.node.introductions import Introductions
from kvnode.node.ports import Deliver, Freshness, Held, LeaseNews, NodeIdentity, Origin
from kvnode.node.removal import Removal
from kvnode.node.replication import Replication
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.raft.messages import Message


class _Submit(Protocol):
    def __call__(
        self, operations: Sequence[kv_pb2.Operation], origin: Origin, deliver: Deliver, *, forwarded: bool
    ) -> None: ...


class PeerInbox:
    """One node's ports.PeerHandler.

    Args:
        context: the node.
        handshake: says who may speak.
        removal: who was removed.
        introductions: the strangers among those who speak.
        clock_guard: takes samples of the others' clocks.
        replication: hears how far the replicas are.
        take_lease: takes news of the primary lease.
        submit: Node.submit; takes what was forwarded.
        open_session: has a session of an owner opened for a peer.
    """

    def __init__(
        self,
        context: NodeContext,
        handshake: Handshake,
        removal: Removal,
        introductions: Introductions,
        clock_guard: ClockGuard,
        replication: Replication,
        take_lease: Callable[[LeaseNews], None],
        submit: _Submit,
        open_session: Callable[[int, OpenDeliver], None],
    ) -> None:
        self._log = context.log
        self._raft = context.raft
        self._state = context.state
        self._stats = context.stats
        self._freshness = context.freshness
        self._failed = context.failed
        self._fail = context.fail
        self._wake = context.wake
        self._handshake = handshake
        self._removal = removal
        self._introductions = introductions
        self._clock_guard = clock_guard
        self._replication = replication
        self._take_lease = take_lease
        self._submit = submit
        self._open_session = open_session

    def identity(self) -> NodeIdentity:
        """See ports.PeerHandler."""
        return self._handshake.identity()

    def check_hello(self, hello: peer_pb2.Hello) -> str:
        """See ports.PeerHandler."""
        return self._handshake.check(hello)

    def has_removed(self, node_id: int) -> bool:
        """See ports.PeerHandler."""
        return node_id in self._removal

    def on_messages(self, sender: int, messages: Sequence[Message], freshness: Freshness | None) -> None:
        """See ports.PeerHandler."""
        if self._log.damage is not None or self._failed.done():
            return
        self._stats.messages_received += len(messages)
        if self._introductions:
            self._introductions.spoke(sender)
        raft = self._raft
        try:
            for message in messages:
                if message.sender == sender:
                    raft.step(message)
            if raft.lost_through:
                self._log.condemn(raft.lost_through)
            if freshness is not None and sender == raft.leader_id:
                self._freshness.heard(freshness, self._state.meta.applied_index, self._clock_guard.now_of(sender))
            self._wake()
        except (InvariantViolation, LogDamaged) as error:
            self._fail(error)

    def on_held(self, rows: Sequence[Held]) -> None:
        """See ports.PeerHandler."""
        self._replication.take(rows)

    def on_lease(self, news: LeaseNews) -> None:
        """See ports.PeerHandler."""
        if self._log.damage is None and not self._failed.done():
            self._take_lease(news)

    def on_clock_sample(self, sender: int, theirs_ms: float, round_trip_ms: float) -> None:
        """See ports.PeerHandler."""
        self._clock_guard.sample(sender, theirs_ms, round_trip_ms)

    def on_unreachable(self, node_id: int) -> None:
        """See ports.PeerHandler."""
        try:
            self._raft.report_unreachable(node_id)
        except InvariantViolation as error:
            self._fail(error)  # and no further: the stream that reports it opens again for ever
        self._wake()

    def on_forwarded(self, origin: Origin, operation: kv_pb2.Operation, deliver: Deliver) -> None:
        """See ports.PeerHandler."""
        self._stats.forwarded_served += 1
        self._submit((operation,), origin, deliver, forwarded=True)

    def on_forwarded_open(self, owner: int, deliver: OpenDeliver) -> None:
        """See ports.PeerHandler."""
        self._open_session(owner, deliver)
