"""Raft messages to one peer, and the measurement of its clock.

They leave by the peer's lane once it is open (lane.py), else by the stream itself.

Raft expects messages to get lost and copes; it copes badly with old ones and with a sender that blocks. So a
message that finds no open stream, or a full queue, is dropped and counted.

The clock: about once a second a batch carries our wall clock, and the peer answers at once with its own. The
peer's clock is taken to have been read in the middle of the round trip (NTP, RFC 5905 section 8), which errs
by at most half of it. Ten samples without an answer mean that the peer's loop is stuck, and the stream is cut;
a dead or frozen process is found sooner, by gRPC's keepalive (channels.py). Samples are counted rather than
seconds so that our own freeze is not held against the peer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from grpc import aio

from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.node.framing import frame_repeated
from kvnode.node.laned_stream import LanedStream
from kvnode.node.member_wire import member_to_wire
from kvnode.node.peer_stream import RawCall
from kvnode.node.ports import Freshness, Held, LeaseNews, PeerHandler
from kvnode.node.stats import Stats
from kvnode.node.wire import encode_freshness, encode_held, encode_lease, encode_message, message_size_bytes
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.raft.messages import Message

MESSAGES_METHOD = "/kv.internal.v1.Peer/Messages"
MAX_UNANSWERED_SAMPLES_COUNT = limits.PEER_SILENCE_TIMEOUT_MS // limits.PEER_CLOCK_SAMPLE_INTERVAL_MS


def hello_to(handler: PeerHandler, node_id: int) -> peer_pb2.Hello:
    """What this node says of itself when it opens a stream to `node_id`."""
    identity = handler.identity()
    return peer_pb2.Hello(
        cluster_id=identity.cluster_id,
        epoch=identity.epoch,
        node_id=identity.node_id,
        name=identity.name,
        to_node_id=node_id,
        established_epoch=identity.established_epoch,
        ballot=identity.ballot,
        member=None if identity.member is None else member_to_wire(identity.member),
        removed=handler.has_removed(node_id),
    )


class MessageStream(LanedStream):
    """The Messages stream to `node_id`, with its lane.

    Args:
        lane_host: where the peer's lane is looked for; empty = take none, whatever is offered.
    """

    def __init__(
        self,
        node_id: int,
        peer: str,
        channel: aio.Channel,
        handler: PeerHandler,
        clock: Clock,
        stats: Stats,
        lane_host: str = "",
    ) -> None:
        super().__init__(peer, MESSAGES_METHOD, channel, lane_host)
        self._node_id = node_id
        self._handler = handler
        self._clock = clock
        self._stats = stats
        self._queue: deque[tuple[Message, int]] = deque()
        self._queued_bytes = 0
        self._freshness: Freshness | None = None
        self._held: Sequence[Held] = ()
        self._lease: LeaseNews | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sample_due = False
        self._hello_due = False
        self._sampled_at: tuple[int, float] = (0, 0.0)  # wall clock sent, monotonic then
        self._unanswered_samples = 0

    def send(self, messages: Sequence[Message], freshness: Freshness | None) -> None:
        """Queue messages; what does not fit, or has no open stream, is dropped."""
        if not self._up:
            self._stats.messages_dropped += len(messages)
            return
        queue = self._queue
        for message in messages:
            size = message_size_bytes(message)
            if len(queue) >= limits.MAX_PEER_QUEUE_COUNT or self._queued_bytes + size > limits.MAX_PEER_QUEUE_BYTES:
                self._stats.messages_dropped += 1
            else:
                queue.append((message, size))
                self._queued_bytes += size
        if freshness is not None:
            self._freshness = freshness
        self._leave()

    def send_held(self, rows: Sequence[Held]) -> None:
        """Say how far replicas are, with the next batch; newer rows take the place of those not sent yet."""
        if self._up:
            self._held = rows
            self._leave()

    def send_lease(self, news: LeaseNews) -> None:
        """Tell of the primary lease, with the next batch; newer news take the place of those not sent yet."""
        if self._up:
            self._lease = news
            self._leave()

    def _leave(self) -> None:
        if self._lane is None:
            self._wake()
        else:
            self._fill_lane()

    def announce(self) -> None:
        """Say Hello again."""
        self._hello_due = True
        self._wake()

    @property
    def _has_batch(self) -> bool:
        return bool(self._queue or self._freshness is not None or self._held or self._lease is not None)

    def _hello(self) -> bytes:
        return peer_pb2.PeerBatch(hello=hello_to(self._handler, self._node_id)).SerializeToString()

    def _refusal(self, welcome: bytes) -> str:
        reply = peer_pb2.PeerReply.FromString(welcome)
        self._lane_offer = (reply.lane_port, reply.lane_token)
        if reply.refused and not reply.HasField("hello"):
            return reply.refused
        refused = self._handler.check_hello(reply.hello)  # which learns of a later epoch
        return reply.refused or refused

    def _went_up(self, call: RawCall) -> None:
        super()._went_up(call)
        self._unanswered_samples = 0
        self._hello_due = False
        self._sample()

    def _fill_lane(self) -> None:
        lane = self._lane
        while lane is not None and not lane.is_full and self._has_batch:
            lane.send(self._queued_batch(peer_pb2.PeerBatch()))

    def _discard(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._close_lane()
        self._stats.messages_dropped += len(self._queue)
        self._queue.clear()
        self._queued_bytes = 0
        self._freshness = None
        self._held = ()
        self._lease = None

    def _unreachable(self) -> None:
        self._handler.on_unreachable(self._node_id)

    def _next_batch(self) -> bytes | None:
        is_ours = self._lane is None and self._has_batch
        if not (is_ours or self._sample_due or self._hello_due):
            return None
        batch = peer_pb2.PeerBatch()
        if self._hello_due:
            self._hello_due = False
            batch.hello.CopyFrom(hello_to(self._handler, self._node_id))
        if self._sample_due:
            self._sample_due = False
            self._sampled_at = (self._clock.now_ms(), self._clock.monotonic_ms())
            batch.clock_ms = self._sampled_at[0]
        return self._queued_batch(batch) if is_ours else batch.SerializeToString()

    def _queued_batch(self, batch: peer_pb2.PeerBatch) -> bytes:
        """`batch` with what waits, up to MAX_PEER_BATCH_BYTES of it."""
        queue = self._queue
        freshness, self._freshness = self._freshness, None
        if freshness is not None:
            batch.freshness.CopyFrom(encode_freshness(freshness))
        if self._held:
            batch.held.extend(encode_held(self._held))
            self._held = ()
        if self._lease is not None:
            batch.lease.CopyFrom(encode_lease(self._lease))
            self._lease = None
        encoded: list[bytes] = []
        size = 0
        while queue and (not encoded or size + queue[0][1] <= limits.MAX_PEER_BATCH_BYTES):
            message, message_bytes = queue.popleft()
            encoded.append(encode_message(message).SerializeToString())
            size += message_bytes
        self._queued_bytes -= size
        # Protobuf merges concatenated messages, so the large part is never copied into the small one.
        framed = frame_repeated(peer_pb2.PeerBatch.MESSAGES_FIELD_NUMBER, encoded, limits.MAX_GRPC_MESSAGE_BYTES)
        return b"".join((batch.SerializeToString(), *framed))

    def _received(self, reply: bytes) -> None:
        sample = peer_pb2.PeerReply.FromString(reply)
        wall_ms, monotonic_ms = self._sampled_at
        if sample.echo_clock_ms != wall_ms:
            return  # of an older sample, whose time of sending is no longer known
        self._unanswered_samples = 0
        round_trip_ms = self._clock.monotonic_ms() - monotonic_ms
        # Against our monotonic clock: our wall clock may have been set while the sample was under way.
        theirs_ms = sample.clock_ms - (monotonic_ms + round_trip_ms / 2)
        self._handler.on_clock_sample(self._node_id, theirs_ms, round_trip_ms)

    def _sample(self) -> None:
        if self._call is None:
            return
        if self._unanswered_samples >= MAX_UNANSWERED_SAMPLES_COUNT:
            self._call.cancel()
            return
        self._unanswered_samples += 1
        self._sample_due = True
        self._wake()
        interval_s = limits.PEER_CLOCK_SAMPLE_INTERVAL_MS / 1_000
        self._timer = asyncio.get_running_loop().call_later(interval_s, self._sample)
