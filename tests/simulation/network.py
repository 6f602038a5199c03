"""A network that delays, loses, doubles, reorders and cuts; and the transport of nodes that live on it.

Raft messages are packets: each may get lost on its own, and may come late enough to surprise its receiver.
They pass through the wire's own encoding. Forwarded operations and calls travel on connections: in order,
once, until the connection breaks, because its peer died (soon noticed) or because the link was silent for
longer than keepalive bears (noticed late). What a broken connection had carried may still arrive and take
effect: only its answers are lost.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvnode.base import limits
from kvnode.base.errors import KvError, Unavailable
from kvnode.codec.membership import Member
from kvnode.node.changelog.stream import NoStream
from kvnode.node.message_stream import hello_to
from kvnode.node.ports import (
    ChangelogStream,
    Deliver,
    Freshness,
    Held,
    LeaseNews,
    Origin,
    PeerHandler,
    SnapshotSink,
    SnapshotSource,
)
from kvnode.node.wire import (
    decode_freshness,
    decode_held,
    decode_lease,
    decode_messages,
    encode_freshness,
    encode_held,
    encode_lease,
    encode_message,
)
from kvnode.proto.kv.internal.v1 import changelog_pb2, failover_pb2, peer_pb2
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.raft.messages import Message, MessageKind
from tests.simulation.clock import SimulatedClock
from tests.simulation.loop import Process, SimulatedLoop, current_process

KEEPALIVE_S = 3.0
WATCH_INTERVAL_S = 0.25
RETRANSMIT_S = 0.2
CHUNK_BYTES = 16_384


@dataclass
class Weather:
    """What the network does to a packet."""

    latency_ms: tuple[float, float] = (0.2, 1.5)
    loss: float = 0.0
    doubling: float = 0.0
    straggling: float = 0.0  # the fraction of packets that come much later than the rest
    straggle_ms: float = 800.0


@dataclass
class Host:
    """A process that others can reach. `handler` and `node` are set once its node runs."""

    node_id: int
    address: str
    process: Process
    clock: SimulatedClock
    handler: PeerHandler | None = None
    node: Any = None  # whose handler that is
    sink: Callable[[], SnapshotSink] | None = None
    identify: Callable[[], peer_pb2.IdentifyResponse] | None = None
    adopt: Callable[[peer_pb2.AdoptRequest], peer_pb2.AdoptResponse] | None = None


@dataclass
class Network:
    """All links. Directed: (from, to) may be cut while (to, from) is not."""

    loop: SimulatedLoop
    random: random.Random
    weather: Weather = field(default_factory=Weather)
    hosts: dict[int, Host] = field(default_factory=dict)
    cuts: set[tuple[int, int]] = field(default_factory=set)
    mute: set[int] = field(default_factory=set)  # whose appends get lost, and nothing else
    sent_count: int = 0
    lost_count: int = 0
    slow: dict[int, float] = field(default_factory=dict)  # node: latency is multiplied by this
    far: dict[int, float] = field(default_factory=dict)  # the same, for as long as the seed lasts
    on_send: Callable[[int, Message], None] = lambda sender, message: None

    def connected(self, source: int, target: int) -> bool:
        """Whether packets pass from one to the other."""
        return (source, target) not in self.cuts

    def alive(self, node_id: int) -> Host | None:
        """The host of that id, if its process lives."""
        host = self.hosts.get(node_id)
        return host if host is not None and not host.process.dead else None

    def at(self, address: str) -> Host | None:
        """Whoever lives at that address."""
        return next((h for h in self.hosts.values() if h.address == address and not h.process.dead), None)

    def latency_s(self, source: int, target: int) -> float:
        """The time of one packet."""
        low, high = self.weather.latency_ms
        slow, far = self.slow, self.far
        drawn_ms = low + (high - low) * self.random.random()
        if not slow and not far:
            return drawn_ms / 1000
        factor = max(slow.get(source, 1.0), slow.get(target, 1.0), far.get(source, 1.0), far.get(target, 1.0))
        return drawn_ms * factor / 1000

    def packet(self, source: int, target: int, arrive: Callable[[Host], None]) -> None:
        """Send one packet; `arrive(host)` runs in the target's process, never, once or twice."""
        self.sent_count += 1
        chance = self.random.random
        if not self.connected(source, target) or chance() < self.weather.loss:
            self.lost_count += 1
            return
        for _ in range(2 if chance() < self.weather.doubling else 1):
            delay_s = self.latency_s(source, target)
            if chance() < self.weather.straggling:
                delay_s += chance() * self.weather.straggle_ms / 1000
            self.loop.call_later(delay_s, self._arrive, source, target, arrive)

    def errand(self, source: int, target: int, arrive: Callable[[Host], None]) -> None:
        """A packet of what is said again soon: nothing is drawn for it, and its loss is that of the link."""
        if self.connected(source, target):
            self.loop.call_later(self.weather.latency_ms[1] / 1000, self._arrive, source, target, arrive)

    def _arrive(self, source: int, target: int, arrive: Callable[[Host], None]) -> None:
        host = self.alive(target)
        if host is None or not self.connected(source, target):
            self.lost_count += 1
            return
        host.process.call(arrive, host)


class Connection:
    """One direction of a connection: in order, once, held back while the link is cut."""

    def __init__(self, network: Network, source: int, target: Process, target_id: int) -> None:
        self._network = network
        self._source = source
        self._target = target
        self._target_id = target_id
        self._queue: deque[tuple[float, Callable[..., object], tuple[Any, ...]]] = deque()

    def write(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Run `callback` in the target's process once this has travelled there."""
        due_s = self._network.loop.time() + self._network.latency_s(self._source, self._target_id)
        if self._queue:
            due_s = max(due_s, self._queue[-1][0])
        else:
            self._network.loop.call_at(due_s, self._travel)
        self._queue.append((due_s, callback, arguments))

    def _travel(self) -> None:
        now_s = self._network.loop.time()
        if self._target.dead:
            self._queue.clear()
            return
        if not self._network.connected(self._source, self._target_id):
            self._network.loop.call_at(now_s + RETRANSMIT_S, self._travel)
            return
        while self._queue and self._queue[0][0] <= now_s + 1e-9:
            _, callback, arguments = self._queue.popleft()
            self._target.call(callback, *arguments)
        if self._queue:
            self._network.loop.call_at(self._queue[0][0], self._travel)


class _Stream:
    """A pair of connections to one incarnation of a peer, for forwarded operations."""

    def __init__(self, network: Network, own: Host, peer: Host) -> None:
        self.peer = peer
        self.out = Connection(network, own.node_id, peer.process, peer.node_id)
        self.back = Connection(network, peer.node_id, own.process, own.node_id)
        self.broken = False


@dataclass
class _Peer:
    member: Member
    stream: _Stream | None = None
    silent_since_s: float | None = None
    queue: list[tuple[Any, ...]] = field(
        default_factory=list
    )  # not yet sent: (origin, operation, deliver, open_deliver)
    outstanding: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    sample: tuple[int, float] = (0, 0.0)


class SimulatedTransport:
    """Implements ports.Transport.

    Args:
        handler: the node.
        own: the host that the node runs on.
    """

    def __init__(self, network: Network, own: Host, handler: PeerHandler) -> None:
        self._network = network
        self._own = own
        self._handler = handler
        self._peers: dict[int, _Peer] = {}
        self._calls = 0
        self._closed = False
        self._unheard: dict[int, None] = {}  # of a Hello that was said again
        self._hellos: dict[int, tuple[object, peer_pb2.Hello]] = {}
        own.process.call_later(WATCH_INTERVAL_S, self._watch)

    def set_members(self, members: Sequence[Member]) -> None:
        """See ports.Transport."""
        wanted = {member.node_id: member for member in members}
        for node_id in [node_id for node_id in self._peers if node_id not in wanted]:
            self._break(self._peers.pop(node_id))
        for node_id, member in wanted.items():
            if node_id not in self._peers:
                self._peers[node_id] = _Peer(member)
                self._own.process.call(self._sample, node_id)

    def send(self, to: int, messages: Sequence[Message], freshness: Freshness | None) -> None:
        """See ports.Transport. Most calls travel as one packet, some message by message."""
        if to not in self._peers or self._closed:
            return
        messages = list(messages)
        if self._own.node_id in self._network.mute:
            messages = [message for message in messages if message.kind is not MessageKind.APPEND]
        for message in messages:
            self._network.on_send(self._own.node_id, message)
        groups = [messages]
        if len(messages) > 1 and self._network.random.random() < 0.2:
            groups = [[message] for message in messages]
        for group in groups:
            batch = peer_pb2.PeerBatch(messages=[encode_message(message) for message in group])
            if freshness is not None:
                batch.freshness.CopyFrom(encode_freshness(freshness))
            self._network.packet(
                self._own.node_id, to, _Batch(self._own.node_id, self._hello(to), batch, self._refused).arrive
            )

    def send_held(self, to: int, rows: Sequence[Held]) -> None:
        """See ports.Transport."""
        if to in self._peers and not self._closed:
            batch = peer_pb2.PeerBatch(held=encode_held(rows))
            packet = _Batch(self._own.node_id, self._hello(to), batch, self._refused)
            self._network.errand(self._own.node_id, to, packet.arrive)

    def send_lease(self, to: int, news: LeaseNews) -> None:
        """See ports.Transport."""
        if to in self._peers and not self._closed:
            batch = peer_pb2.PeerBatch(lease=encode_lease(news))
            packet = _Batch(self._own.node_id, self._hello(to), batch, self._refused)
            self._network.packet(self._own.node_id, to, packet.arrive)

    def _hello(self, to: int) -> peer_pb2.Hello:
        """What goes with every packet here, and on a real stream only once: made anew when it says something else."""
        said = (self._handler.identity(), self._handler.has_removed(to))
        kept = self._hellos.get(to)
        if kept is None or kept[0] != said:
            kept = self._hellos[to] = (said, hello_to(self._handler, to))
        return kept[1]

    def announce(self) -> None:
        """See ports.Transport."""
        for node_id in self._peers:
            packet = _Batch(self._own.node_id, self._hello(node_id), peer_pb2.PeerBatch(), self._refused)
            self._network.packet(self._own.node_id, node_id, packet.arrive)
            if not self._network.connected(self._own.node_id, node_id):
                self._unheard[node_id] = None  # on a real stream it comes through once the link is whole again

    def _announce_again(self) -> None:
        for node_id in [node_id for node_id in self._unheard if self._network.connected(self._own.node_id, node_id)]:
            del self._unheard[node_id]
            packet = _Batch(self._own.node_id, self._hello(node_id), peer_pb2.PeerBatch(), self._refused)
            self._network.errand(self._own.node_id, node_id, packet.arrive)

    def _refused(self, host: Host) -> None:
        """A packet was refused by a host, whose Hello comes back with the refusal."""
        if host.handler is None:
            return
        hello = hello_to(host.handler, self._own.node_id)

        def back(own: Host) -> None:
            if own.handler is not None:
                own.handler.check_hello(hello)

        self._network.packet(host.node_id, self._own.node_id, back)

    # Forwarding.

    def forward(self, to: int, origin: Origin, operation: kv_pb2.Operation, deliver: Deliver) -> None:
        """See ports.Transport."""
        self._enqueue(to, (origin, operation, deliver, None))

    def forward_open(self, to: int, owner: int, deliver: Callable[[bytes, kv_pb2.Error | None], None]) -> None:
        """See ports.Transport."""
        self._enqueue(to, (owner, None, None, deliver))

    def _enqueue(self, to: int, item: tuple[Any, ...]) -> None:
        peer = self._peers.get(to)
        if peer is None or self._closed:
            self._own.process.call(_fail, item, "PEER_UNREACHABLE", True)
            return
        if peer.stream is None:
            self._open(peer)
        if peer.stream is None:
            peer.queue.append(item)  # until the attempt has ended; see _watch
            return
        self._call(peer, peer.stream, item)

    def _call(self, peer: _Peer, stream: _Stream, item: tuple[Any, ...]) -> None:
        self._calls += 1
        number = self._calls
        peer.outstanding[number] = item
        origin, operation, _, _ = item  # or an owner, and no operation
        if operation is None:
            stream.out.write(self._serve_open, stream, peer, number, origin)
        else:
            stream.out.write(self._serve, stream, peer, number, origin, operation.SerializeToString())

    def _serve(self, stream: _Stream, peer: _Peer, number: int, origin: Origin, raw: bytes) -> None:
        """Runs in the peer's process."""
        handler = stream.peer.handler
        if handler is None:
            return

        def deliver(result: kv_pb2.OperationResult) -> None:
            stream.back.write(self._answered, stream, peer, number, result.SerializeToString())

        handler.on_forwarded(origin, kv_pb2.Operation.FromString(raw), deliver)

    def _serve_open(self, stream: _Stream, peer: _Peer, number: int, owner: int) -> None:
        """Runs in the peer's process."""
        handler = stream.peer.handler
        if handler is None:
            return

        def deliver(client_id: bytes, error: kv_pb2.Error | None) -> None:
            stream.back.write(self._opened, stream, peer, number, client_id, error)

        handler.on_forwarded_open(owner, deliver)

    def _answered(self, stream: _Stream, peer: _Peer, number: int, raw: bytes) -> None:
        item = peer.outstanding.pop(number, None)
        if item is not None and not stream.broken:
            item[2](kv_pb2.OperationResult.FromString(raw))

    def _opened(self, stream: _Stream, peer: _Peer, number: int, client_id: bytes, error: kv_pb2.Error | None) -> None:
        item = peer.outstanding.pop(number, None)
        if item is not None and not stream.broken:
            item[3](client_id, error)

    # Life of the streams.

    def _open(self, peer: _Peer) -> None:
        host = self._network.alive(peer.member.node_id)
        if host is None or host.handler is None or not self._reachable(host):
            return
        if host.handler.check_hello(self._hello(host.node_id)):
            self._refused(host)
            return
        peer.stream = _Stream(self._network, self._own, host)
        peer.silent_since_s = None

    def _reachable(self, host: Host) -> bool:
        there = self._network.connected(self._own.node_id, host.node_id)
        back = self._network.connected(host.node_id, self._own.node_id)
        return there and back and not host.process.frozen

    def _watch(self) -> None:
        """Now and then: break what is dead, open what is not, give up what waits for neither."""
        if self._closed:
            return
        self._announce_again()
        for node_id, peer in list(self._peers.items()):
            if peer.stream is None:
                self._open(peer)
                queue, peer.queue = peer.queue, []
                if peer.stream is None:
                    for item in queue:
                        _fail(item, "PEER_UNREACHABLE", True)
                    self._handler.on_unreachable(node_id)
                else:
                    for item in queue:
                        self._call(peer, peer.stream, item)
            elif self._is_lost(peer, peer.stream):
                self._break(peer)
                self._handler.on_unreachable(node_id)
        self._own.process.call_later(WATCH_INTERVAL_S, self._watch)

    def _is_lost(self, peer: _Peer, stream: _Stream) -> bool:
        if stream.peer.process.dead:
            return True
        if self._reachable(stream.peer):
            peer.silent_since_s = None
            return False
        now_s = self._network.loop.time()
        peer.silent_since_s = now_s if peer.silent_since_s is None else peer.silent_since_s
        return now_s - peer.silent_since_s > KEEPALIVE_S

    def _break(self, peer: _Peer) -> None:
        if peer.stream is not None:
            peer.stream.broken = True
            peer.stream = None
        outstanding, peer.outstanding = peer.outstanding, {}
        queue, peer.queue = peer.queue, []
        for item in outstanding.values():
            self._own.process.call(_fail, item, "FORWARD_BROKEN", False)
        for item in queue:
            self._own.process.call(_fail, item, "PEER_UNREACHABLE", True)

    # Clocks.

    def _sample(self, node_id: int) -> None:
        peer = self._peers.get(node_id)
        if peer is None or self._closed:
            return
        clock = self._own.clock
        sample = (clock.now_ms(), clock.monotonic_ms())
        peer.sample = sample

        def there(host: Host) -> None:
            theirs_ms = host.clock.now_ms()
            self._network.packet(node_id, self._own.node_id, lambda _: back(theirs_ms))

        def back(theirs_ms: int) -> None:
            if peer.sample == sample and not self._closed and current_process() is self._own.process:
                round_trip_ms = clock.monotonic_ms() - sample[1]
                self._handler.on_clock_sample(node_id, theirs_ms - (sample[1] + round_trip_ms / 2), round_trip_ms)

        self._network.packet(self._own.node_id, node_id, there)
        self._own.process.call_later(limits.PEER_CLOCK_SAMPLE_INTERVAL_MS / 1000, self._sample, node_id)

    # Calls.

    async def _remote(self, host: Host, work: Callable[[], Awaitable[Any]], timeout_s: float) -> Any:
        """Run `work` in the other's process and bring back what it returns or raises."""
        loop, own = self._network.loop, self._own
        future: asyncio.Future[Any] = loop.create_future()
        out = Connection(self._network, own.node_id, host.process, host.node_id)
        back = Connection(self._network, host.node_id, own.process, own.node_id)

        def settle(result: Any, error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        async def run() -> None:
            try:
                result = await work()
            except Exception as error:
                back.write(settle, None, error)
            else:
                back.write(settle, result, None)

        out.write(lambda: host.process.spawn(run(), "call"))
        end_s, silent_since_s = loop.time() + timeout_s, loop.time()
        while not future.done():
            await asyncio.wait((future,), timeout=WATCH_INTERVAL_S)
            now_s = loop.time()
            if self._reachable(host):
                silent_since_s = now_s
            if not future.done() and (host.process.dead or now_s > end_s or now_s - silent_since_s > KEEPALIVE_S):
                future.cancel()
                raise TimeoutError
        return future.result()

    async def send_snapshot(self, to: int, source: SnapshotSource) -> bool:
        """See ports.Transport."""
        try:
            for attempt in range(limits.MAX_SNAPSHOT_ATTEMPTS_COUNT):
                if attempt:
                    await asyncio.sleep(limits.MAX_PEER_BACKOFF_MS / 1000)
                host = self._network.alive(to)
                if to not in self._peers or host is None or host.sink is None or not self._reachable(host):
                    continue
                try:
                    return await self._send_snapshot(host, source)
                except TimeoutError:
                    continue
                except KvError:
                    return False
            return False
        finally:
            source.close()

    async def _send_snapshot(self, host: Host, source: SnapshotSource) -> bool:
        header = peer_pb2.SnapshotHeader()
        header.CopyFrom(source.header)
        header.hello.CopyFrom(self._hello(host.node_id))
        if host.sink is None or host.handler is None or host.handler.check_hello(header.hello):
            return False
        sink = host.sink()
        offset = await self._remote(host, lambda: sink.open(header), KEEPALIVE_S)
        while offset < header.size_bytes:
            data = await source.read(offset, CHUNK_BYTES)
            offset = await self._remote(host, lambda at=offset, data=data: sink.write(at, data), KEEPALIVE_S)  # type: ignore[misc]
        await self._remote(host, sink.finish, 60.0)
        return True

    def follow(self, to: int, first: changelog_pb2.FollowRequest) -> ChangelogStream:
        """See ports.Transport."""
        from tests.simulation.changelog import SimulatedFollow  # it needs connections, which are made here

        host = self._network.alive(to)
        if to not in self._peers or host is None or not self._reachable(host):
            return NoStream()
        first.hello.CopyFrom(self._hello(to))
        return SimulatedFollow(self._network, self._own, host, first)

    async def identify(self, address: str) -> peer_pb2.IdentifyResponse:
        """See ports.Transport."""
        host = self._network.at(address)
        if host is None or host.identify is None:
            raise _unreachable(address)
        answer = host.identify

        async def work() -> peer_pb2.IdentifyResponse:
            return answer()

        return await self._unary(host, address, work)  # type: ignore[no-any-return]

    async def adopt(self, address: str, request: peer_pb2.AdoptRequest) -> peer_pb2.AdoptResponse:
        """See ports.Transport."""
        host = self._network.at(address)
        if host is None or host.adopt is None:
            raise _unreachable(address)
        answer = host.adopt

        async def work() -> peer_pb2.AdoptResponse:
            return answer(request)

        return await self._unary(host, address, work)  # type: ignore[no-any-return]

    async def ask_failover(
        self, address: str, request: failover_pb2.FailoverRequest, timeout_ms: int
    ) -> failover_pb2.FailoverResponse:
        """See ports.Transport."""
        host = self._network.at(address)
        node: Any = None if host is None else host.node
        if host is None or node is None or not self._reachable(host):
            raise _unreachable(address)
        raw = request.SerializeToString()

        async def work() -> bytes:
            answer = await node.failover.answer(failover_pb2.FailoverRequest.FromString(raw))
            return bytes(answer.SerializeToString())

        try:
            answer = await self._remote(host, work, timeout_ms / 1000)
        except TimeoutError:
            raise _unreachable(address) from None
        return failover_pb2.FailoverResponse.FromString(answer)

    async def _unary(self, host: Host, address: str, work: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await self._remote(host, work, limits.PEER_CALL_TIMEOUT_MS / 1000)
        except TimeoutError:
            raise _unreachable(address) from None

    async def close(self) -> None:
        """See ports.Transport."""
        self._closed = True
        for peer in self._peers.values():
            self._break(peer)


class _Batch(NamedTuple):
    """A packet of Raft messages, encoded."""

    sender: int
    hello: peer_pb2.Hello
    batch: peer_pb2.PeerBatch
    refused: Callable[[Host], None]

    def arrive(self, host: Host) -> None:
        """Runs in the receiver's process."""
        if host.handler is None:
            return
        if host.handler.check_hello(self.hello):
            self.refused(host)
            return
        batch = peer_pb2.PeerBatch.FromString(self.batch.SerializeToString())
        if batch.held:
            host.handler.on_held(decode_held(batch))
            return
        if batch.HasField("lease"):
            host.handler.on_lease(decode_lease(batch.lease))
            return
        host.handler.on_messages(self.sender, decode_messages(batch.messages), decode_freshness(batch))


def _fail(item: tuple[Any, ...], code: str, not_applied: bool) -> None:
    _, operation, deliver, open_deliver = item
    error = kv_pb2.Error(code=code, message="simulated", phase="commit", not_applied=not_applied)
    if open_deliver is not None:
        open_deliver(b"", error)
    else:
        deliver(kv_pb2.OperationResult(id=operation.id, error=error))


def _unreachable(address: str) -> Unavailable:
    return Unavailable(f"{address} could not be reached", code="PEER_UNREACHABLE", phase="dial")
