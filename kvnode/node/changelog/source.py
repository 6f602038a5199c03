"""The serving side of the changelog: what one replica is sent.

Theory of operation. A source sends what its core has handed out as committed, read from its own log; it keeps nothing
in memory for a replica but a position. The position moves as pieces are sent and, when the replica got past it by a
snapshot, by what the replica acknowledges. No more than MAX_CHANGELOG_UNACKNOWLEDGED_BYTES are under way, so a replica
with a slow disk slows its stream and nobody else. With nothing to send, a notice goes out every
CHANGELOG_NOTICE_INTERVAL_MS: it says who leads and how fresh the source is, and that the source lives.

Behind a piece that held all there was comes none for CHANGELOG_PIECE_INTERVAL_MS: whether a piece holds one entry or
ten, it costs the replica, and those behind it, a message, an fsync and an apply. A piece is held up by that only if
entries come faster than one an interval, and a replica that is behind is sent one after another.

Where the log no longer reaches back far enough, a snapshot is sent by the way on which voters get theirs, and the
stream goes on with notices until the replica holds it. A replica that leaves it to a neighbour to fetch one has it held
back (snapshot_wait.py). Whoever awaits a snapshot itself says so to those that would follow it, also with a refusal: it
may be too old to know them. A transfer that has ended is followed by another only once the replica has said that it
still lacks what comes next: it has installed a snapshot before its source learns of that.

Who is removed from the cluster is fed no more from the moment at which this node has applied that: the last thing that
is said on its stream is a refusal, with the Hello that tells it why. And a source that learns of its own removal gets
nothing new any more: it refuses everybody, so that those who followed it go on elsewhere at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Container, Sequence

from kvnode.base import limits
from kvnode.codec.epoch import epoch_of_term
from kvnode.codec.membership import encode_membership
from kvnode.machine.epochs import EpochRow, parting
from kvnode.node.changelog.pieces import put_entries
from kvnode.node.freshness import FreshnessTracker
from kvnode.node.ports import Awaited, Held, LeaseAsk, LeaseNews
from kvnode.node.removal import removal_sentence
from kvnode.node.wire import decode_lease, encode_awaited, encode_freshness, encode_lease
from kvnode.proto.kv.internal.v1 import changelog_pb2, peer_pb2
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.raft import Raft

SendSnapshot = Callable[[Message], "asyncio.Future[None] | None"]


class Source:
    """One replica's stream, on the side of the node that it follows.

    Args:
        raft: this node's core.
        freshness: how fresh this node is.
        epoch: of this node's state.
        send_snapshot: given the message that goes with a snapshot; a transfer under way to the same node goes on.
            Returns what is done when the transfer has ended, however it did; None = at once.
        request: the first one.
        compress: whether the way is long.
        own_id: this node's.
        lease_ask: the newest that has reached this node.
        on_lease: told what the replica and those behind it have granted.
        awaited: the snapshot that this node awaits itself.
        withdrawn: why this node is of no use to anybody any more; empty = it is.
        monotonic_ms: the clock by which it is told for how long the replica has been silent.
    """

    def __init__(
        self,
        raft: Raft,
        freshness: FreshnessTracker,
        epoch: Callable[[], int],
        send_snapshot: SendSnapshot,
        request: changelog_pb2.FollowRequest,
        *,
        compress: bool,
        own_id: int,
        lease_ask: Callable[[], LeaseAsk | None] = lambda: None,
        on_lease: Callable[[LeaseNews], None] = lambda _news: None,
        awaited: Callable[[], Awaited | None] = lambda: None,
        withdrawn: Callable[[], str] = lambda: "",
        monotonic_ms: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._lease_ask = lease_ask
        self._on_lease = on_lease
        self._awaited = awaited
        self._withdrawn = withdrawn
        self._monotonic_ms = monotonic_ms
        self.heard_at_ms = monotonic_ms()
        self._holds_snapshot = request.hold_snapshot
        self.node_id = request.hello.node_id
        self._raft = raft
        self._freshness = freshness
        self._epoch = epoch
        self._send_snapshot = send_snapshot
        self._compress = compress
        self._own_id = own_id
        self._next = request.index + 1
        self._unacknowledged: deque[tuple[int, int]] = deque()  # (last index, bytes) of each piece
        self._unacknowledged_bytes = 0
        self._something = asyncio.Event()
        self._begun = False
        self._rested_at_ms = 0.0  # no piece goes before then
        self._transfer: asyncio.Future[None] | None = None  # the last one
        self._farewell: changelog_pb2.FollowResponse | None = None
        self.durable_index = request.index
        self.applied_index = request.applied_index
        self.held_at_ms = request.held_at_ms
        self.region = request.region
        self.name = request.hello.name

    def wake(self) -> None:
        """More is committed."""
        self._something.set()

    def dismiss(self, farewell: changelog_pb2.FollowResponse) -> None:
        """Send nothing more but this refusal."""
        self._farewell = farewell
        self._something.set()

    def acknowledge(self, request: changelog_pb2.FollowRequest) -> None:
        """The replica says what it holds."""
        self.heard_at_ms = self._monotonic_ms()
        self.durable_index = max(self.durable_index, request.index)
        self.applied_index = max(self.applied_index, request.applied_index)
        self.held_at_ms = max(self.held_at_ms, request.held_at_ms)
        self._holds_snapshot = request.hold_snapshot
        if self._transfer is not None and self._transfer.done():
            self._transfer = None
        while self._unacknowledged and self._unacknowledged[0][0] <= request.index:
            self._unacknowledged_bytes -= self._unacknowledged.popleft()[1]
        if request.index >= self._next:
            self._next = request.index + 1
        if request.HasField("lease"):
            self._on_lease(decode_lease(request.lease))
        self._something.set()

    async def next(self) -> changelog_pb2.FollowResponse:
        """The next thing to send; waits until there is one. The first comes at once: it shows that the source lives.

        After a refusal comes nothing more: the stream is to be closed.
        """
        interval_s = limits.CHANGELOG_NOTICE_INTERVAL_MS / 1_000
        if not self._begun:
            self._begun = True
            return self._take() or self._notice()
        rest_ms = self._rested_at_ms - self._monotonic_ms()
        if rest_ms > 0:
            await asyncio.sleep(rest_ms / 1_000)
        while True:
            piece = self._farewell or self._take()
            if piece is not None:
                return piece
            self._something.clear()
            try:
                async with asyncio.timeout(interval_s):
                    await self._something.wait()
            except TimeoutError:
                return self._notice()

    def _take(self) -> changelog_pb2.FollowResponse | None:
        """The next piece, if there is one and it may be sent."""
        log = self._raft.log
        if self._next > log.delivered or self._unacknowledged_bytes >= limits.MAX_CHANGELOG_UNACKNOWLEDGED_BYTES:
            return None
        previous_term = log.term(self._next - 1)
        if previous_term is None:
            return None  # the next notice says so
        entries = log.entries(self._next, log.delivered + 1, limits.MAX_CHANGELOG_PIECE_BYTES)
        if not entries:
            return None
        response = self._about_us()
        response.previous_index, response.previous_term = self._next - 1, previous_term
        size_bytes = put_entries(response, entries, compress=self._compress)
        self._next = entries[-1].index + 1
        self._unacknowledged.append((entries[-1].index, size_bytes))
        self._unacknowledged_bytes += size_bytes
        if self._next > log.delivered:  # while more is there already, it goes at once
            self._rested_at_ms = self._monotonic_ms() + limits.CHANGELOG_PIECE_INTERVAL_MS
        return response

    def _notice(self) -> changelog_pb2.FollowResponse:
        withdrawn = self._withdrawn()
        if withdrawn:
            return changelog_pb2.FollowResponse(refused=withdrawn, epoch=self._epoch())
        response = self._about_us()
        log = self._raft.log
        if self._next <= log.delivered and (log.term(self._next - 1) is None or not self._holds(self._next)):
            response.snapshot = True
            if not self._holds_snapshot and self._transfer is None:
                sender = self._raft.leader_id or self._own_id
                message = Message(MessageKind.SNAPSHOT, self.node_id, sender, self._raft.term)
                self._transfer = self._send_snapshot(message)
        return response

    def _holds(self, index: int) -> bool:
        return bool(self._raft.log.entries(index, index + 1, 1))

    def _about_us(self) -> changelog_pb2.FollowResponse:
        raft = self._raft
        response = changelog_pb2.FollowResponse(
            epoch=self._epoch(), term=raft.term, leader_id=raft.leader_id, committed_index=raft.log.delivered
        )
        freshness = self._freshness.latest
        if freshness is not None:
            response.freshness.CopyFrom(encode_freshness(freshness))
        ask = self._lease_ask()
        if ask is not None:
            response.lease.CopyFrom(encode_lease(LeaseNews(ask)))
        put_awaited(response, self._awaited())
        return response


def put_awaited(response: changelog_pb2.FollowResponse, awaited: Awaited | None) -> None:
    """Say of the source which snapshot it awaits itself, if it does."""
    if awaited is not None:
        response.awaited.CopyFrom(encode_awaited(awaited))


class Sources:
    """All replicas that follow this node.

    Args:
        region: where this node stands.
        epochs: the table of epochs, as applied.
        hello: what this node says of itself to the node of that id.
        Others: see Source.
    """

    def __init__(
        self,
        raft: Raft,
        freshness: FreshnessTracker,
        epoch: Callable[[], int],
        send_snapshot: SendSnapshot,
        *,
        region: str,
        own_id: int,
        epochs: Callable[[], Sequence[EpochRow]] = tuple,
        hello: Callable[[int], peer_pb2.Hello] = lambda _node_id: peer_pb2.Hello(),
        lease_ask: Callable[[], LeaseAsk | None] = lambda: None,
        on_lease: Callable[[LeaseNews], None] = lambda _news: None,
        awaited: Callable[[], Awaited | None] = lambda: None,
        withdrawn: Callable[[], str] = lambda: "",
        monotonic_ms: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._lease_ask = lease_ask
        self._on_lease = on_lease
        self._awaited = awaited
        self._withdrawn = withdrawn
        self._monotonic_ms = monotonic_ms
        self._epochs = epochs
        self._hello = hello
        self._raft = raft
        self._freshness = freshness
        self._epoch = epoch
        self._send_snapshot = send_snapshot
        self._region = region
        self._own_id = own_id
        self._gone: dict[int, Source] = {}  # the last streams of those that follow this node no more
        self._open: dict[Source, None] = {}  # in the order of their coming: what runs is the same in each run of a seed

    @property
    def following(self) -> list[Source]:
        """The streams that are open, for status and metrics."""
        return list(self._open)

    def held(self) -> list[Held]:
        """How far the replicas are that follow this node, and were that did: a new leader must not believe them new."""
        open_now = {source.node_id: source for source in self._open}
        self._forget()
        self._gone = {node_id: source for node_id, source in self._gone.items() if node_id not in open_now}
        now_ms = self._monotonic_ms()
        return [
            Held(source.node_id, source.durable_index, source.held_at_ms, max(0, int(now_ms - source.heard_at_ms)))
            for source in (*open_now.values(), *self._gone.values())
        ]

    def refusal(self, request: changelog_pb2.FollowRequest) -> str:
        """Why a replica that begins there cannot be fed from here; empty = it can."""
        if self._raft.membership.get(request.hello.node_id) is None:
            return f"MEMBER_UNKNOWN: '{request.hello.name}' is no member of this cluster (any more, or yet)"
        own = self._raft.log.term(request.index) if request.index <= self._raft.log.delivered else None
        fork_index = self._fork_of(request)
        if fork_index is not None and request.index > fork_index:
            return (
                f"CHANGELOG_FORKED: the log of '{request.hello.name}' ends at {request.index}, in an epoch of which "
                f"this history has what came up to {fork_index}"
            )
        if own is not None and own != request.term:
            return (
                f"CHANGELOG_FORKED: entry {request.index} is of term {own} here and of term {request.term} at "
                f"'{request.hello.name}': one of the two belongs to a history that a failover has ended"
            )
        return ""

    def refuse(self, request: changelog_pb2.FollowRequest, refused: str = "") -> changelog_pb2.FollowResponse | None:
        """The one answer to a replica that cannot be fed from here; None = it can.

        Args:
            refused: why its Hello was, if it was.
        """
        refused = refused or self._withdrawn()
        reason = refused or self.refusal(request)
        if not reason:
            return None
        response = self._refused(request.hello.node_id, reason)
        if not refused and self._raft.membership.get(request.hello.node_id) is not None:
            response.forked = True
            response.membership = encode_membership(self._raft.membership)
            fork_index = self._fork_of(request)
            if fork_index is not None:
                response.fork_known, response.fork_index = True, fork_index
        return response

    def _refused(self, node_id: int, reason: str) -> changelog_pb2.FollowResponse:
        response = changelog_pb2.FollowResponse(refused=reason, epoch=self._epoch(), hello=self._hello(node_id))
        put_awaited(response, self._awaited())
        return response

    def _fork_of(self, request: changelog_pb2.FollowRequest) -> int | None:
        """Up to which index the replica's log is part of this history; None while its last epoch goes on."""
        begun = ((each.epoch, each.fork_index) for each in request.begun)
        return parting(self._epochs(), epoch_of_term(request.term), begun)

    def open(self, request: changelog_pb2.FollowRequest) -> Source:
        """A stream; `close` ends it."""
        source = Source(
            self._raft,
            self._freshness,
            self._epoch,
            self._send_snapshot,
            request,
            compress=request.region != self._region,
            own_id=self._own_id,
            lease_ask=self._lease_ask,
            on_lease=self._on_lease,
            awaited=self._awaited,
            withdrawn=self._withdrawn,
            monotonic_ms=self._monotonic_ms,
        )
        before = self._gone.get(source.node_id)
        if before is not None:  # after a restart it has yet to learn what its log holds
            source.held_at_ms = max(source.held_at_ms, before.held_at_ms)
        self._open[source] = None
        return source

    def close(self, source: Source) -> None:
        """The stream is over."""
        self._open.pop(source, None)
        self._gone[source.node_id] = source
        self._forget()

    def _forget(self) -> None:
        """Of those that left, keep replicas only: who has voted since then holds more than was known of it."""
        replicas = {member.node_id for member in self._raft.membership.replicas}
        self._gone = {node_id: source for node_id, source in self._gone.items() if node_id in replicas}

    def dismiss(self, removed: Container[int]) -> None:
        """End the streams of those who were removed from the cluster; to be told of every membership that is in force.

        Args:
            removed: has their ids.
        """
        self._forget()
        for source in [source for source in self._open if source.node_id in removed]:
            del self._open[source]
            source.dismiss(self._refused(source.node_id, f"MEMBER_REMOVED: {removal_sentence(source.name)}"))

    def committed(self) -> None:
        """The core has handed out more."""
        for source in self._open:
            source.wake()
