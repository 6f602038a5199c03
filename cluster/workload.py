"""An open loop of reads and writes that writes down what it was told, for the checker.

Open loop: operations begin at a fixed rate whatever becomes of those before, as the users of a service do;
a closed loop would fall silent exactly while the cluster is in trouble. Each operation's key space is small,
so that checks conflict, and each write leaves a row of its own, so that a lost answer can be settled.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Sequence

from cluster.history import History, Outcome, Read, Unknown, error_outcome, read_from, read_outcome, write_from
from cluster.history import write_outcome as outcome_of_write
from kvnode.base.errors import KvError
from kvnode.base.limits import MAX_READ_ENTRIES_COUNT
from kvnode.client.session import Session
from kvnode.codec.keys import encode_key, prefix_range
from kvnode.proto.kv.v1 import kv_pb2

REGISTERS_COUNT = 8
MAX_UNDER_WAY_COUNT = 4_096
_COUNTER = encode_key(("counter",))
_REGISTERS = [encode_key(("register", str(number))) for number in range(REGISTERS_COUNT)]
_JOURNAL = ("journal",)


class Workload:
    """Writes, checks, sums, strong and eventual reads against every node.

    Args:
        addresses: of the nodes. Each gets a session that prefers it but may go elsewhere, and one that may not
            (so that what a node says while it is cut off or deposed is recorded, too).
        rate_per_second: how many operations begin a second.
        seed: for the choice of operations.
        timeout_ms: after which an operation counts as unanswered.
    """

    def __init__(
        self, addresses: Sequence[str], *, rate_per_second: float = 300, seed: int = 0, timeout_ms: int = 20_000
    ) -> None:
        self.history = History()
        self.acknowledged_at_ms: list[float] = []
        self._addresses = list(addresses)
        self._rate = rate_per_second
        self._random = random.Random(seed)
        self._timeout_ms = timeout_ms
        self._serial = 0
        self._known: dict[bytes, bytes] = {}
        self._sessions: list[Session] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._driver: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to issue operations."""
        for number in range(len(self._addresses)):
            rotated = self._addresses[number:] + self._addresses[:number]
            self._sessions += [Session(rotated), Session(rotated[:1])]
        self._driver = asyncio.ensure_future(self._drive())

    async def stop(self) -> None:
        """Issue no more, and wait until all that is under way has an answer or has timed out."""
        if self._driver is not None:
            self._driver.cancel()
            await asyncio.gather(self._driver, return_exceptions=True)
            self._driver = None
        while self._under_way:
            await asyncio.gather(*self._under_way)
        for session in self._sessions:
            await session.close()
        self._sessions = []

    async def read_back(self) -> None:
        """Read everything from every node, strong, page by page: settles what had no answer."""
        for address in self._addresses:
            async with Session([address]) as session:
                for prefix in (("counter",), ("register",), _JOURNAL):
                    start, end = prefix_range(prefix)
                    await self._read_pages(session, start if prefix != ("counter",) else _COUNTER, end)

    def longest_gap_ms(self, since_ms: float, until_ms: float) -> float:
        """The longest time without an acknowledged write between two moments."""
        inside = [at for at in self.acknowledged_at_ms if since_ms <= at <= until_ms]
        marks = [since_ms, *inside, until_ms]
        return max(later - earlier for earlier, later in itertools.pairwise(marks))

    # Issuing.

    async def _drive(self) -> None:
        loop = asyncio.get_running_loop()
        next_at = loop.time()
        while True:
            next_at += self._random.expovariate(self._rate)
            await asyncio.sleep(max(0.0, next_at - loop.time()))
            if len(self._under_way) < MAX_UNDER_WAY_COUNT:
                task = asyncio.ensure_future(self._issue())
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)

    async def _issue(self) -> None:
        number = self._random.randrange(len(self._sessions))
        session, kind = self._sessions[number], self._random.random()
        label = f"session {number} of {self._addresses[number // 2]}"
        if kind < 0.5:
            await self._write(session, self._make_write(), label)
        else:
            await self._read(session, self._make_read(strong=kind < 0.85), label)

    def _make_write(self) -> kv_pb2.AtomicWriteRequest:
        self._serial += 1
        value = b"write %08d of this run" % self._serial
        journal = encode_key((*_JOURNAL, f"{self._serial:08d}"))
        register = self._random.choice(_REGISTERS)
        request = kv_pb2.AtomicWriteRequest(
            mutations=[
                _mutation(kv_pb2.MUTATION_TYPE_SET, journal, value),
                _mutation(kv_pb2.MUTATION_TYPE_SET, register, value),
                _mutation(kv_pb2.MUTATION_TYPE_SUM, _COUNTER, (1).to_bytes(8, "little")),
            ]
        )
        if self._random.random() < 0.5:
            stamp = self._known.get(register, b"")
            request.checks.append(kv_pb2.Check(key=register, versionstamp=stamp))
        return request

    def _make_read(self, *, strong: bool) -> kv_pb2.ReadRequest:
        keys = [_COUNTER, *self._random.sample(_REGISTERS, 3)]
        return kv_pb2.ReadRequest(
            ranges=[kv_pb2.ReadRange(start=key, end=key + b"\x00", limit=1) for key in keys],
            consistency=kv_pb2.CONSISTENCY_STRONG if strong else kv_pb2.CONSISTENCY_EVENTUAL,
        )

    # One operation, written down.

    async def _write(self, session: Session, request: kv_pb2.AtomicWriteRequest, label: str) -> None:
        invoked = now_ms()
        outcome: Outcome = Unknown()
        try:
            response = await session.write(request, self._timeout_ms)
        except KvError as error:
            outcome = error_outcome(error.not_applied, error.code)
        else:
            outcome = outcome_of_write(response)
            if response.versionstamp:
                self.acknowledged_at_ms.append(now_ms())
                self._known.update({mutation.key: response.versionstamp for mutation in request.mutations[1:2]})
        completed = None if isinstance(outcome, Unknown) else now_ms()
        self.history.add(invoked, completed, write_from(request), outcome, label)

    async def _read(self, session: Session, request: kv_pb2.ReadRequest, label: str) -> kv_pb2.ReadResponse | None:
        invoked = now_ms()
        try:
            response = await session.read(request, self._timeout_ms)
        except KvError as error:
            self.history.add(invoked, now_ms(), read_from(request), error_outcome(True, error.code), label)
            return None
        self.history.add(invoked, now_ms(), read_from(request), read_outcome(response), label)
        for result in response.ranges:
            self._known.update({entry.key: entry.versionstamp for entry in result.entries})
        return response

    async def _read_pages(self, session: Session, start: bytes, end: bytes) -> None:
        while True:
            wanted = kv_pb2.ReadRange(start=start, end=end, limit=MAX_READ_ENTRIES_COUNT)
            response = await self._read(session, kv_pb2.ReadRequest(ranges=[wanted]), "read back")
            if response is None:
                raise RuntimeError(f"the cluster does not answer at {session.endpoint} after the run")
            entries = response.ranges[0].entries
            if len(entries) < MAX_READ_ENTRIES_COUNT:
                return
            start = entries[-1].key + b"\x00"


def error_counts(history: History) -> dict[str, int]:
    """How often each error code was answered; for a test's message."""
    counts: dict[str, int] = {}
    for operation in history.operations:
        code = getattr(operation.outcome, "code", "")
        if code:
            counts[code] = counts.get(code, 0) + 1
    return counts


def strong_reads_count(history: History) -> int:
    """How many strong reads the history holds."""
    return sum(isinstance(item.request, Read) and item.request.strong for item in history.operations)


def now_ms() -> float:
    """The history's clock."""
    return time.monotonic() * 1_000


def _mutation(kind: kv_pb2.MutationType, key: bytes, value: bytes) -> kv_pb2.Mutation:
    encoding = kv_pb2.VALUE_ENCODING_LE64 if kind == kv_pb2.MUTATION_TYPE_SUM else kv_pb2.VALUE_ENCODING_BYTES
    return kv_pb2.Mutation(type=kind, key=key, value=kv_pb2.Value(data=value, encoding=encoding))
