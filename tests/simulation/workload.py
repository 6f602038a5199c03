"""Simulated clients: sessions, operations with resends, and the record of what they were told.

A client behaves as the real one does. It sends an operation through some node under its session's request id;
when no answer comes in time, or one that settles nothing, it sends it again, marked as a resend, mostly
through another node; it heeds only the answers to its latest copy; at its deadline it gives up and the
outcome is unknown to it. It never guesses: what may have been applied is recorded as such.

The keys are few, so that operations meet:

    r0..r7  registers: set, delete, check-and-set, several in one transaction
    n0..n3  numbers: sum (and, for the error of a sum on what is no number, registers)
    s/...   rows under a versionstamped suffix
    d/00..  rows that delete-range sweeps away
    t0..t3  rows that expire
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.history import (
    CheckFailed,
    Committed,
    Operation,
    Rejected,
    Unknown,
    error_outcome,
    read_from,
    read_outcome,
    write_from,
    write_outcome,
)
from cluster.history import Outcome as Recorded
from kvnode.client.status import SESSION_REFUSED_CODES, is_retryable
from kvnode.node.ports import Origin
from kvnode.proto.kv.v1 import kv_pb2
from tests.simulation.clock import EPOCH_MS
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.network import Connection, Host, Network

DEADLINE_MS = 12_000
REGISTERS = [b"r%d" % number for number in range(8)]
NUMBERS = [b"n%d" % number for number in range(4)]
SWEPT = [b"d/%02d" % number for number in range(12)]
EXPIRING = [b"t%d" % number for number in range(4)]
EVERYTHING = (b"a", b"z")
STALENESS_BOUNDS_MS = (600, 1_500, 5_000)  # what a follower can just, and what it can easily, be sure of

SUCCESS = kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS


@dataclass
class Record:
    """One operation of a client, with what only the client knows: its request id."""

    operation: Operation
    client_id: bytes
    sequence: int
    is_write: bool


@dataclass
class Journal:
    """What all clients recorded."""

    records: list[Record] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def acknowledged_count(self) -> int:
        """Writes that were answered with success."""
        return sum(isinstance(record.operation.outcome, Committed) for record in self.records)


class Client:
    """One client process.

    Args:
        nodes: the hosts that it may try just now.
        database: that it uses.
    """

    def __init__(
        self,
        number: int,
        loop: SimulatedLoop,
        network: Network,
        nodes: Callable[[], list[Host]],
        journal: Journal,
        random_source: random.Random,
    ) -> None:
        self.number = number
        self.process = Process(loop, f"client{number}")
        self.client_id = b""
        self.stopped = False
        self._loop = loop
        self._network = network
        self._nodes = nodes
        self._journal = journal
        self._random = random_source
        self._sequence = 0
        self._values = 0
        self._eventual_count = 0
        self._unanswered: dict[int, None] = {}
        self._busy = 0
        self._known: dict[bytes, bytes] = {}  # key: versionstamp last seen
        self._favourite: Host | None = None
        self._lost_session = False

    @property
    def idle(self) -> bool:
        """Whether no operation of it is under way."""
        return self._busy == 0

    def now_ms(self) -> float:
        """True time."""
        return EPOCH_MS + self._loop.time() * 1000

    async def run(self, pause_ms: tuple[float, float], width: int) -> None:
        """Go on until stopped: up to `width` operations at once, with pauses between them."""
        workers = [self.process.spawn(self._work(pause_ms), f"client{self.number}.{i}") for i in range(width)]
        await asyncio.gather(*workers)

    async def _work(self, pause_ms: tuple[float, float]) -> None:
        while not self.stopped:
            if self._lost_session and not self._unanswered:
                self.client_id, self._lost_session = b"", False
            if not self.client_id:
                await self._open()
                continue
            if self._lost_session:
                await asyncio.sleep(0.1)
                continue
            await self.operate(self._next())
            await asyncio.sleep(self._random.uniform(*pause_ms) / 1000)

    # What to do.

    def _next(self) -> kv_pb2.Operation:
        pick = self._random.random()
        if pick < 0.35:
            return kv_pb2.Operation(read=self._read())
        return kv_pb2.Operation(write=self._write())

    def _read(self) -> kv_pb2.ReadRequest:
        chance = self._random.random
        if chance() < 0.1:
            kinds = [kv_pb2.ReadRange(start=EVERYTHING[0], end=EVERYTHING[1], limit=1000)]
        elif chance() < 0.1:
            kinds = [kv_pb2.ReadRange(start=b"d/", end=b"d0", count_only=True)]
        else:
            kinds = [self._range() for _ in range(self._random.choice((1, 1, 2, 3)))]
        strong = chance() < 0.6
        request = kv_pb2.ReadRequest(ranges=kinds)
        request.consistency = kv_pb2.CONSISTENCY_STRONG if strong else kv_pb2.CONSISTENCY_EVENTUAL
        if not strong and self._known and chance() < 0.2:
            request.min_versionstamp = max(self._known.values())
        if not strong:
            self._eventual_count += 1
            if self._eventual_count % 3 == 0:  # nothing is drawn for it
                request.max_staleness_ms = STALENESS_BOUNDS_MS[self._eventual_count // 3 % len(STALENESS_BOUNDS_MS)]
        return request

    def _range(self) -> kv_pb2.ReadRange:
        if self._random.random() < 0.7:
            key = self._random.choice((*REGISTERS, *NUMBERS, *EXPIRING, *SWEPT[:4]))
            return kv_pb2.ReadRange(start=key, end=key + b"\x00", limit=1)
        prefix = self._random.choice((b"r", b"d", b"s", b"n"))
        return kv_pb2.ReadRange(
            start=prefix,
            end=bytes([prefix[0] + 1]),
            limit=self._random.choice((3, 20)),
            reverse=self._random.random() < 0.3,
            keys_only=self._random.random() < 0.2,
        )

    def _write(self) -> kv_pb2.AtomicWriteRequest:
        kinds = (self._set, self._set, self._delete, self._sum, self._sum, self._check_and_set, self._check_and_set,
                 self._suffix, self._sweep, self._fill, self._expiring, self._several, self._bad_sum)  # fmt: skip
        return self._random.choice(kinds)()

    def _value(self) -> kv_pb2.Value:
        self._values += 1
        data = b"value %d of client %d" % (self._values, self.number)
        return kv_pb2.Value(data=data, encoding=kv_pb2.VALUE_ENCODING_BYTES)

    def _mutation(self, kind: int, key: bytes, **fields: object) -> kv_pb2.Mutation:
        return kv_pb2.Mutation(type=kind, key=key, **fields)  # type: ignore[arg-type]

    def _set(self) -> kv_pb2.AtomicWriteRequest:
        key = self._random.choice(REGISTERS)
        return _write_of(self._mutation(kv_pb2.MUTATION_TYPE_SET, key, value=self._value()))

    def _delete(self) -> kv_pb2.AtomicWriteRequest:
        return _write_of(self._mutation(kv_pb2.MUTATION_TYPE_DELETE, self._random.choice(REGISTERS)))

    def _sum(self) -> kv_pb2.AtomicWriteRequest:
        operand = kv_pb2.Value(data=self._random.randrange(1, 9).to_bytes(8, "little"))
        operand.encoding = kv_pb2.VALUE_ENCODING_LE64
        kind = self._random.choice((kv_pb2.MUTATION_TYPE_SUM, kv_pb2.MUTATION_TYPE_SUM, kv_pb2.MUTATION_TYPE_MAX))
        return _write_of(self._mutation(kind, self._random.choice(NUMBERS), value=operand))

    def _bad_sum(self) -> kv_pb2.AtomicWriteRequest:
        request = self._sum()
        if self._random.random() < 0.3:
            request.mutations[0].key = REGISTERS[0]
        return request

    def _check_and_set(self) -> kv_pb2.AtomicWriteRequest:
        key = self._random.choice(REGISTERS)
        request = _write_of(self._mutation(kv_pb2.MUTATION_TYPE_SET, key, value=self._value()))
        request.checks.add(key=key, versionstamp=self._known.get(key, b""))
        if self._random.random() < 0.2:
            other = self._random.choice(REGISTERS)
            request.checks.add(key=other, versionstamp=self._known.get(other, b""))
        return request

    def _suffix(self) -> kv_pb2.AtomicWriteRequest:
        kind = kv_pb2.MUTATION_TYPE_SET_SUFFIX_VERSIONSTAMPED_KEY
        return _write_of(self._mutation(kind, b"s/", value=self._value()))

    def _fill(self) -> kv_pb2.AtomicWriteRequest:
        keys = self._random.sample(SWEPT, 3)
        return _write_of(*(self._mutation(kv_pb2.MUTATION_TYPE_SET, key, value=self._value()) for key in keys))

    def _sweep(self) -> kv_pb2.AtomicWriteRequest:
        start, end = sorted(self._random.sample(SWEPT, 2))
        sweep = self._mutation(kv_pb2.MUTATION_TYPE_DELETE_RANGE, start, end_key=end)
        if self._random.random() < 0.5:
            return _write_of(sweep)
        back = self._mutation(kv_pb2.MUTATION_TYPE_SET, start, value=self._value())
        return _write_of(sweep, back)

    def _expiring(self) -> kv_pb2.AtomicWriteRequest:
        expire_at_ms = int(self.now_ms() + self._random.uniform(500, 6_000))
        key = self._random.choice(EXPIRING)
        return _write_of(self._mutation(kv_pb2.MUTATION_TYPE_SET, key, value=self._value(), expire_at_ms=expire_at_ms))

    def _several(self) -> kv_pb2.AtomicWriteRequest:
        keys = self._random.sample(REGISTERS, 3)
        request = _write_of(*(self._mutation(kv_pb2.MUTATION_TYPE_SET, key, value=self._value()) for key in keys[:2]))
        request.mutations.append(self._mutation(kv_pb2.MUTATION_TYPE_DELETE, keys[2]))
        return request

    # How to do it.

    async def _open(self) -> None:
        host = self._choose()
        if host is None or host.node is None:
            await asyncio.sleep(0.2)
            return
        node = host.node
        future: asyncio.Future[bytes] = self._loop.create_future()
        out, back = self._connect(host)

        def settle(client_id: bytes) -> None:
            if not future.done():
                future.set_result(client_id)

        async def ask() -> None:
            try:
                back.write(settle, await node.open_session(2_000))
            except Exception:
                back.write(settle, b"")

        out.write(lambda: host.process.spawn(ask(), "open session"))
        try:
            client_id = await asyncio.wait_for(future, 3)
        except TimeoutError:
            client_id = b""
        if client_id and not self.client_id:
            self.client_id, self._sequence = client_id, 0
        elif not client_id:
            await asyncio.sleep(0.2)

    def _choose(self) -> Host | None:
        hosts = self._nodes()
        if not hosts:
            return None
        if self._favourite not in hosts or self._random.random() < 0.1:
            self._favourite = self._random.choice(hosts)
        return self._favourite

    def _connect(self, host: Host) -> tuple[Connection, Connection]:
        out = Connection(self._network, -1 - self.number, host.process, host.node_id)
        back = Connection(self._network, host.node_id, self.process, -1 - self.number)
        return out, back

    async def operate(self, operation: kv_pb2.Operation) -> Recorded:
        """Run one operation to its end and record it."""
        self._busy += 1
        self._sequence += 1
        operation.id = self._sequence
        client_id, is_write = self.client_id, operation.HasField("write")
        self._unanswered[operation.id] = None
        invoked_ms = self.now_ms()
        try:
            outcome = await self._settle(operation, client_id, invoked_ms + DEADLINE_MS)
        finally:
            self._busy -= 1
            self._unanswered.pop(operation.id, None)
        completed_ms = None if isinstance(outcome, Unknown) else self.now_ms()
        request = write_from(operation.write) if is_write else read_from(operation.read)
        label = f"client {self.number} operation {operation.id}"
        recorded = Operation(invoked_ms, completed_ms, request, outcome, label)
        self._journal.records.append(Record(recorded, client_id, operation.id, is_write))
        self._learn(operation, outcome)
        return outcome

    async def _settle(self, operation: kv_pb2.Operation, client_id: bytes, deadline_ms: float) -> Recorded:
        is_write = operation.HasField("write")
        sends = 0
        while (left_ms := deadline_ms - self.now_ms()) > 0:
            host = self._choose()
            if host is None:
                await asyncio.sleep(0.2)
                continue
            operation.resend = sends > 0
            operation.timeout_ms = int(max(1, left_ms))
            sends += 1
            patience_s = min(left_ms, self._random.uniform(400, 4_000)) / 1000
            result = await self._send(host, operation, client_id, patience_s)
            if result is None:
                self._favourite = None
                continue
            if result.HasField("write"):
                return write_outcome(result.write)
            if result.HasField("read"):
                return read_outcome(result.read)
            error = result.error
            self._journal.errors[error.code] = self._journal.errors.get(error.code, 0) + 1
            if error.code in SESSION_REFUSED_CODES:
                self._lost_session = True
                return Rejected(error.code) if not is_write or error.not_applied else Unknown()
            if not is_retryable(error):
                return error_outcome(error.not_applied or not is_write, error.code)
            if error.not_applied and sends == 1:
                sends = 0
            await asyncio.sleep(self._random.uniform(0.02, 0.2))
        return Unknown() if is_write and sends else Rejected("DEADLINE_EXCEEDED")

    async def _send(
        self, host: Host, operation: kv_pb2.Operation, client_id: bytes, patience_s: float
    ) -> kv_pb2.OperationResult | None:
        """One copy through one node; None when no answer comes in time."""
        future: asyncio.Future[bytes] = self._loop.create_future()
        out, back = self._connect(host)
        raw, origin = operation.SerializeToString(), Origin(client_id, next(iter(self._unanswered)))

        def settle(answer: bytes) -> None:
            if not future.done():
                future.set_result(answer)

        def submit() -> None:
            node = host.node
            if node is not None:
                copy = kv_pb2.Operation.FromString(raw)
                node.submit((copy,), origin, lambda result: back.write(settle, result.SerializeToString()))

        out.write(submit)
        try:
            return kv_pb2.OperationResult.FromString(await asyncio.wait_for(future, patience_s))
        except TimeoutError:
            return None

    def _learn(self, operation: kv_pb2.Operation, outcome: Recorded) -> None:
        """Remember versionstamps, so that checks may hold."""
        if isinstance(outcome, Committed):
            for mutation in operation.write.mutations:
                self._known[mutation.key] = outcome.versionstamp
                if mutation.type == kv_pb2.MUTATION_TYPE_DELETE:
                    del self._known[mutation.key]
        elif isinstance(outcome, CheckFailed):
            for check in operation.write.checks:
                self._known.pop(check.key, None)
        elif hasattr(outcome, "ranges"):
            for seen in outcome.ranges:
                for entry in seen.entries:
                    self._known[entry.key] = entry.versionstamp


def _write_of(*mutations: kv_pb2.Mutation) -> kv_pb2.AtomicWriteRequest:
    return kv_pb2.AtomicWriteRequest(mutations=mutations)
