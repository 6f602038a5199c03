"""The transport over gRPC: the client side of everything between nodes.

Each peer has one connection with two long-lived streams on it, Messages (Raft, one way, batched) and Forward
(operations and their answers, batched), which open again for ever; a snapshot opens a connection of its own, and so
does the lane by which Raft's messages leave where it can be opened (lane.py).
The other side is kvnode/api/grpc_peer.py: it hands what arrives to the same PeerHandler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import grpc
from grpc import aio

from kvnode.base.clock import Clock
from kvnode.codec.membership import Member
from kvnode.node.changelog.stream import GrpcChangelogStream, NoStream
from kvnode.node.channels import open_channel
from kvnode.node.forward_stream import ForwardStream, OpenDeliver, deliver_safely, unreachable
from kvnode.node.message_stream import MessageStream, hello_to
from kvnode.node.peer_calls import adopt, ask_failover, identify
from kvnode.node.ports import (
    ChangelogStream,
    Deliver,
    Freshness,
    Held,
    LeaseNews,
    Origin,
    PeerHandler,
    SnapshotSource,
)
from kvnode.node.snapshot_stream import send_snapshot
from kvnode.node.stats import Stats
from kvnode.proto.kv.internal.v1 import changelog_pb2, failover_pb2, peer_pb2
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.raft.messages import Message


class _Peer(NamedTuple):
    """The open streams to one member."""

    member: Member
    channel: aio.Channel
    messages: MessageStream
    forwards: ForwardStream

    async def close(self) -> None:
        await self.messages.close()
        await self.forwards.close()
        await self.channel.close()


class GrpcTransport:
    """Implements ports.Transport.

    Args:
        handler: the node; its methods are called on the running loop.
        clock: the node's clocks, for clock samples.
        credentials: for TLS between nodes; None = plain text.
        stats: counts messages dropped.
    """

    def __init__(
        self,
        handler: PeerHandler,
        clock: Clock,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        stats: Stats | None = None,
    ) -> None:
        self._handler = handler
        self._clock = clock
        self._credentials = credentials
        self._stats = stats or Stats()
        self._peers: dict[int, _Peer] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def set_members(self, members: Sequence[Member]) -> None:
        """Connect to these, drop the others; one whose address changed is connected anew."""
        wanted = {member.node_id: member for member in members}
        for node_id, peer in list(self._peers.items()):
            if node_id not in wanted or wanted[node_id].address != peer.member.address:
                del self._peers[node_id]
                self._drop(peer)
        for node_id, member in wanted.items():
            if node_id not in self._peers:
                self._peers[node_id] = self._connect(member)

    def connected(self, node_id: int) -> bool:
        """Whether messages to that peer find an open stream."""
        peer = self._peers.get(node_id)
        return peer is not None and peer.messages.up

    def has_lane(self, node_id: int) -> bool:
        """Whether messages to that peer, and operations forwarded to it, leave by lanes."""
        peer = self._peers.get(node_id)
        return peer is not None and peer.messages.has_lane and peer.forwards.has_lane

    def send(self, to: int, messages: Sequence[Message], freshness: Freshness | None) -> None:
        """Queue messages to a peer; never blocks. What does not fit the bound, or has no stream, is dropped."""
        peer = self._peers.get(to)
        if peer is None:
            self._stats.messages_dropped += len(messages)
        else:
            peer.messages.send(messages, freshness)

    def send_held(self, to: int, rows: Sequence[Held]) -> None:
        """Tell a peer how far the replicas are that follow this node."""
        peer = self._peers.get(to)
        if peer is not None:
            peer.messages.send_held(rows)

    def send_lease(self, to: int, news: LeaseNews) -> None:
        """Tell a peer of the primary lease."""
        peer = self._peers.get(to)
        if peer is not None:
            peer.messages.send_lease(news)

    def forward(self, to: int, origin: Origin, operation: kv_pb2.Operation, deliver: Deliver) -> None:
        """Forward one operation; many of one loop pass travel in one message.

        `deliver` is called later, never from within; see forward_stream.py for the errors it may get.
        """
        peer = self._peers.get(to)
        if peer is not None:
            peer.forwards.forward(origin, operation, deliver)
        else:
            result = kv_pb2.OperationResult(id=operation.id, error=_not_a_member(to))
            asyncio.get_running_loop().call_soon(deliver_safely, deliver, result)

    def forward_open(self, to: int, owner: int, deliver: OpenDeliver) -> None:
        """Ask `to` for a fresh client id of that owner (machine/sessions.py)."""
        peer = self._peers.get(to)
        if peer is not None:
            peer.forwards.open_session(owner, deliver)
        else:
            asyncio.get_running_loop().call_soon(deliver, b"", _not_a_member(to))

    async def send_snapshot(self, to: int, source: SnapshotSource) -> bool:
        """Stream a snapshot, resuming at what the receiver holds; True once it is installed there.

        The source stays the caller's to close.
        """
        peer = self._peers.get(to)
        if peer is None:
            return False
        return await send_snapshot(peer.member.address, self._credentials, hello_to(self._handler, to), source)

    def follow(self, to: int, first: changelog_pb2.FollowRequest) -> ChangelogStream:
        """Follow the changelog of `to`, from where `first` says."""
        peer = self._peers.get(to)
        if peer is None:
            return NoStream()
        first.hello.CopyFrom(hello_to(self._handler, to))
        return GrpcChangelogStream(peer.channel, first)

    async def identify(self, address: str) -> peer_pb2.IdentifyResponse:
        """Ask whoever listens there who it is. Raises KvError(code PEER_UNREACHABLE)."""
        return await identify(address, self._credentials)

    async def adopt(self, address: str, request: peer_pb2.AdoptRequest) -> peer_pb2.AdoptResponse:
        """Ask an unjoined node to join. Raises KvError: PEER_UNREACHABLE, or what the node answered."""
        return await adopt(address, request, self._credentials)

    def announce(self) -> None:
        """Say Hello again on the open streams: what it says has changed."""
        for peer in self._peers.values():
            peer.messages.announce()

    async def ask_failover(
        self, address: str, request: failover_pb2.FailoverRequest, timeout_ms: int
    ) -> failover_pb2.FailoverResponse:
        """Ask whoever listens there about a failover. Raises KvError."""
        return await ask_failover(address, request, timeout_ms, self._credentials)

    async def close(self) -> None:
        """End every stream."""
        peers, self._peers = self._peers, {}
        for peer in peers.values():
            self._drop(peer)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _connect(self, member: Member) -> _Peer:
        channel = open_channel(member.address, self._credentials)
        lane_host = "" if self._credentials is not None else member.address.rpartition(":")[0].strip("[]")
        peer = _Peer(
            member,
            channel,
            MessageStream(member.node_id, member.name, channel, self._handler, self._clock, self._stats, lane_host),
            ForwardStream(member.node_id, member.name, channel, self._handler, lane_host),
        )
        peer.messages.start()
        peer.forwards.start()
        return peer

    def _drop(self, peer: _Peer) -> None:
        task = asyncio.get_running_loop().create_task(peer.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _not_a_member(node_id: int) -> kv_pb2.Error:
    return unreachable("it is not a member of this node's cluster", f"node {node_id}")
