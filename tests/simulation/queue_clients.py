"""Simulated producers and consumers of queues, and the record of what they saw.

A producer is a client (workload.py) whose writes carry messages, and which sets and deletes crons. A consumer is what
kvnode/client/queue.py is to a real node: it opens a stream at some node, gives credit, handles what comes while it
extends the leases, and says how that ended; when the node dies it goes on at another with what it holds. It may die at
any moment, between claim and ack above all, and its handlers fail, hang beyond the lease and answer too late.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.history import Committed
from cluster.history import Outcome as Recorded
from kvnode.base.errors import KvError
from kvnode.codec.versionstamp import VERSIONSTAMP_BYTES
from kvnode.node.queue.consumer import Consumer
from kvnode.proto.kv.v1 import kv_pb2
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.network import Connection, Host, Network
from tests.simulation.queue_ledger import EFFECT, UNDELIVERED
from tests.simulation.workload import REGISTERS, Client, Journal

QUEUES = ("", "jobs")
LEASE_MS = (1_000, 2_000)
CREDIT = 4
SCHEDULES = ("* * * * *", "*/2 * * * *", "*/3 * * * *")
CRONS = {"every minute": ("* * * * *", True), "no overlap": ("* * * * *", False), "changing": ("", True)}
_FIRST_ID = -1_000  # of the network; clients have those from -1 down


@dataclass
class QueueRecord:
    """What producers and consumers know."""

    sent: list[tuple[bytes, bytes]] = field(default_factory=list)  # id and payload of every acknowledged message
    delays: dict[bytes, int] = field(default_factory=dict)  # ms, by the ids of such messages that were to be delayed
    delivered: list[tuple[bytes, bytes, bytes]] = field(default_factory=list)  # id, lease, payload
    handled: dict[bytes, None] = field(default_factory=dict)  # ids whose handler came to a good end
    nacked: dict[bytes, None] = field(default_factory=dict)  # leases whose handler failed
    early: list[str] = field(default_factory=list)  # what was delivered before its claim was committed


class Producer(Client):
    """A client that enqueues, and minds the crons.

    Args:
        record: what it adds to.
    """

    def __init__(
        self,
        number: int,
        loop: SimulatedLoop,
        network: Network,
        nodes: Callable[[], list[Host]],
        journal: Journal,
        random_source: random.Random,
        record: QueueRecord,
    ) -> None:
        super().__init__(number, loop, network, nodes, journal, random_source)
        self._record = record
        self._crons_to_set = list(CRONS)

    async def operate(self, operation: kv_pb2.Operation) -> Recorded:
        """As a client's; messages that were acknowledged are noted."""
        outcome = await super().operate(operation)
        if isinstance(outcome, Committed):
            for position, enqueue in enumerate(operation.write.enqueues):
                message_id = outcome.versionstamp + position.to_bytes(2, "big")
                self._record.sent.append((message_id, enqueue.payload.data))
                if enqueue.delay_ms:
                    self._record.delays[message_id] = enqueue.delay_ms
        return outcome

    def _next(self) -> kv_pb2.Operation:
        if self._crons_to_set:
            return kv_pb2.Operation(write=self._set_cron(self._crons_to_set.pop()))
        if self._random.random() < 0.06:
            return kv_pb2.Operation(write=self._change_cron())
        return kv_pb2.Operation(write=self._enqueue())

    def _enqueue(self) -> kv_pb2.AtomicWriteRequest:
        draw = self._random
        request = kv_pb2.AtomicWriteRequest()
        for _ in range(draw.choice((1, 1, 2))):
            made = request.enqueues.add(queue=draw.choice(QUEUES), payload=self._value())
            when = draw.random()
            if when < 0.3:
                made.delay_ms = draw.choice((1, 300, 2_000))
            elif when < 0.4:
                made.due_at_ms = int(self.now_ms() + draw.choice((-5_000, 50, 900)))
            retries = draw.random()
            if retries < 0.2:
                made.no_retries = True
            else:
                made.backoff_intervals_ms.extend(draw.choice(((20,), (50, 200), (5, 30, 400))))
            if draw.random() < 0.3:
                made.keys_if_undelivered.append(UNDELIVERED + made.payload.data)
        if draw.random() < 0.3:
            mutation = self._mutation(kv_pb2.MUTATION_TYPE_SET, draw.choice(REGISTERS), value=self._value())
            request.mutations.append(mutation)
        return request

    def _set_cron(self, name: str) -> kv_pb2.AtomicWriteRequest:
        schedule, allow_overlap = CRONS[name]
        made = kv_pb2.CronSet(name=name, schedule=schedule or self._random.choice(SCHEDULES))
        made.allow_overlap = allow_overlap
        made.message.payload.CopyFrom(self._value())
        made.message.queue = self._random.choice(QUEUES)
        made.message.backoff_intervals_ms.append(50)
        return kv_pb2.AtomicWriteRequest(actions=[kv_pb2.QueueAction(cron_set=made)])

    def _change_cron(self) -> kv_pb2.AtomicWriteRequest:
        if self._random.random() < 0.3:
            return kv_pb2.AtomicWriteRequest(actions=[{"cron_delete": {"name": "changing"}}])  # type: ignore[list-item]
        return self._set_cron(self._random.choice(list(CRONS)))


class Listener:
    """One incarnation of a consumer: a process that lives until it is killed.

    Args:
        number: tells it from others, over all incarnations.
        queue: that it listens to.
        is_committed: whether the entry of a versionstamp is.
        is_calm: whether handlers shall do well from now on.
        dies: called when it is to be killed now.
    """

    def __init__(
        self,
        number: int,
        loop: SimulatedLoop,
        network: Network,
        nodes: Callable[[], list[Host]],
        journal: Journal,
        random_source: random.Random,
        record: QueueRecord,
        queue: str,
        is_committed: Callable[[bytes], bool],
        is_calm: Callable[[], bool],
        dies: Callable[[], None],
    ) -> None:
        self.process = Process(loop, f"consumer{number}")
        self._number = number
        self._loop = loop
        self._network = network
        self._nodes = nodes
        self._random = random_source
        self._record = record
        self._is_committed = is_committed
        self._is_calm = is_calm
        self._dies = dies
        self._queue = queue
        self._lease_ms = random_source.choice(LEASE_MS)
        self._held: dict[bytes, None] = {}  # leases that are extended
        self._settling: dict[bytes, kv_pb2.QueueAction] = {}
        self._stream: _Stream | None = None
        # For acks with a write; its operations are in this process too.
        self._session = Client(number, loop, network, nodes, journal, random.Random(random_source.getrandbits(64)))
        self._session.process = self.process
        self._writing = False

    async def run(self) -> None:
        """Listen at one node after the other, for ever."""
        extended_s = 0.0
        while True:
            stream = self._stream
            if stream is None or stream.host.process.dead or stream.failed:
                self._open()
            await asyncio.sleep(0.2)
            if self._loop.time() - extended_s > self._lease_ms / 3_000:
                extended_s = self._loop.time()
                if self._stream is not None:
                    self._stream.extend(list(self._held))

    def _open(self) -> None:
        hosts = self._nodes()
        if not hosts:
            return
        host = self._random.choice(hosts)
        source = _FIRST_ID - self._number
        self._stream = _Stream(self, self._network, host, source, self._random.choice((0.02, 0.3, 5.0)))
        opening = (self._queue, self._lease_ms, f"consumer{self._number}")
        self._stream.open(opening, list(self._held), CREDIT - len(self._held))
        for lease, action in self._settling.items():
            self._stream.settle(lease, action)

    # In this process, from the node.

    def arrived(self, raw: bytes) -> None:
        """A message."""
        message = kv_pb2.QueueMessage.FromString(raw)
        if not self._is_committed(message.lease[:VERSIONSTAMP_BYTES]):
            self._record.early.append(f"message {message.id.hex()} under lease {message.lease.hex()}")
        self._record.delivered.append((message.id, message.lease, message.payload.data))
        self._held[message.lease] = None
        self.process.spawn(self._handle(message), "handler")

    def confirmed(self, lease: bytes) -> None:
        """What was decided about a lease has come to its end, one way or the other."""
        self._settling.pop(lease, None)

    # Handling.

    async def _handle(self, message: kv_pb2.QueueMessage) -> None:
        draw, calm = self._random, self._is_calm()
        fate = 1.0 if calm else draw.random()
        if fate < 0.04:
            self.process.call_later(draw.uniform(0.0, 0.05), self._dies)
        if fate < 0.08:  # it hangs, nobody extends its lease, and it answers all the same
            del self._held[message.lease]
            await asyncio.sleep(self._lease_ms / 1_000 * draw.uniform(0.8, 1.4))
        elif fate < 0.2:
            await asyncio.sleep(draw.uniform(0.5, 2.5))
        else:
            await asyncio.sleep(draw.uniform(0.001, 0.05))
        verdict = 0.0 if calm else draw.random()
        if verdict < 0.75:
            self._record.handled[message.id] = None
            if not calm and draw.random() < 0.2 and await self._ack_with_a_write(message):
                if self._stream is not None:
                    self._stream.forget(message.lease)
                self._over(message.lease)
                return
            self._settle(message.lease, kv_pb2.QueueAction(ack=kv_pb2.QueueAck(lease=message.lease)))
        elif verdict < 0.95:
            self._record.nacked[message.lease] = None
            nack = kv_pb2.QueueNack(lease=message.lease)
            if draw.random() < 0.3:
                nack.delay_ms = draw.choice((0, 100))
            self._settle(message.lease, kv_pb2.QueueAction(nack=nack))
        else:
            self._settle(message.lease, kv_pb2.QueueAction(release=kv_pb2.QueueRelease(lease=message.lease)))

    async def _ack_with_a_write(self, message: kv_pb2.QueueMessage) -> bool:
        """Acknowledge in a transaction of its own, with an effect; False when the session is not to be had."""
        if self._writing:
            return False
        self._writing = True
        try:
            if not self._session.client_id:
                await self._session._open()
            if not self._session.client_id:
                return False
            write = kv_pb2.AtomicWriteRequest(actions=[kv_pb2.QueueAction(ack=kv_pb2.QueueAck(lease=message.lease))])
            operand = kv_pb2.Value(data=(1).to_bytes(8, "little"), encoding=kv_pb2.VALUE_ENCODING_LE64)
            write.mutations.add(type=kv_pb2.MUTATION_TYPE_SUM, key=EFFECT + message.id, value=operand)
            await self._session.operate(kv_pb2.Operation(write=write))
        finally:
            self._writing = False
        return True

    def _settle(self, lease: bytes, action: kv_pb2.QueueAction) -> None:
        self._settling[lease] = action
        if self._stream is not None:
            self._stream.settle(lease, action)
        self._over(lease)

    def _over(self, lease: bytes) -> None:
        self._held.pop(lease, None)
        if self._stream is not None:
            self._stream.grant(1)


class _Stream:
    """A listener's stream at one incarnation of a node.

    Args:
        notice_s: after how long the node notices that the listener's process is dead.
    """

    def __init__(self, listener: Listener, network: Network, host: Host, source: int, notice_s: float) -> None:
        self.host = host
        self.failed = False
        self._listener = listener
        self._notice_s = notice_s
        self._out = Connection(network, source, host.process, host.node_id)
        self._back = Connection(network, host.node_id, listener.process, source)
        self._consumer: Consumer | None = None

    def open(self, opening: tuple[str, int, str], held: list[bytes], credit: int) -> None:
        """Begin."""
        self._out.write(self._at_node_open, opening, held, credit)

    def grant(self, count: int) -> None:
        """The listener takes that many more."""
        self._out.write(lambda: self._consumer and self._consumer.grant(count))

    def forget(self, lease: bytes) -> None:
        """The listener has acknowledged it by itself."""
        self._out.write(lambda: self._consumer and self._consumer.forget([lease]))

    def extend(self, leases: list[bytes]) -> None:
        """Keep what is held."""
        self._out.write(self._at_node_extend, leases)

    def settle(self, lease: bytes, action: kv_pb2.QueueAction) -> None:
        """Say how it ended."""
        self._out.write(self._at_node_settle, lease, action.SerializeToString())

    # In the node's process.

    def _at_node_open(self, opening: tuple[str, int, str], held: list[bytes], credit: int) -> None:
        node = self.host.node
        if node is None:
            self._fail()
            return
        self._consumer = node.queues.listen(1, opening, self._deliver, self._at_node_end)
        self._consumer.hold(held)
        self._consumer.grant(max(0, credit))
        self.host.process.call_later(self._notice_s, self._watch)

    def _at_node_end(self, error: KvError) -> None:
        """No message will come from here: the listener goes on elsewhere, its leases with it."""
        self._leave(give_back=error.code != "NODE_CUT_OFF")
        self._fail()

    def _leave(self, *, give_back: bool) -> None:
        if self._consumer is not None:
            self.host.node.queues.leave(self._consumer, give_back=give_back)
            self._consumer = None

    def _watch(self) -> None:
        """A broken connection is noticed, sooner or later, and what it held is given back."""
        if not self._listener.process.dead:
            self.host.process.call_later(self._notice_s, self._watch)
        else:
            self._leave(give_back=True)

    def _at_node_extend(self, leases: list[bytes]) -> None:
        for lease in leases:
            if self._consumer is not None:
                self._consumer.extend(lease, lambda error: None)

    def _at_node_settle(self, lease: bytes, raw: bytes) -> None:
        if self._consumer is not None:
            self._consumer.settle(lease, kv_pb2.QueueAction.FromString(raw), lambda error: self._settled(lease, error))

    def _settled(self, lease: bytes, error: KvError | None) -> None:
        if error is None or error.code == "LEASE_LOST":
            self._back.write(self._listener.confirmed, lease)
        else:
            self._fail()  # a stream that cannot settle is opened again, and says it once more

    def _deliver(self, messages: list[kv_pb2.QueueMessage]) -> None:
        for message in messages:
            self._back.write(self._listener.arrived, message.SerializeToString())

    def _fail(self) -> None:
        self._back.write(setattr, self, "failed", True)
