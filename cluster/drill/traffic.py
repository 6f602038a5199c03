"""An open loop of calls from every region: they begin at a fixed pace, whatever becomes of those before.

Clients of different regions know nothing of one another. So their calls do not all begin at once either: each kind of
call of each client has a phase of its own, or the clients, which share a process, would wait for each other.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.drill.clients import Client
from cluster.drill.record import Call, Kind, Record
from cluster.history import Outcome, Unknown, error_outcome, read_from, read_outcome, write_from, write_outcome
from cluster.workload import now_ms
from kvnode.base.errors import KvError
from kvnode.codec.keys import encode_key, prefix_range
from kvnode.proto.kv.v1 import kv_pb2

MAX_UNDER_WAY_COUNT = 8_192
GOLDEN_RATIO = 0.618033988749895  # multiples of it, modulo 1, lie as evenly as can be, however many there are
_ONE = (1).to_bytes(8, "little")


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a client makes a call of a kind; 0 = never."""

    writes_per_second: float = 0
    eventual_reads_per_second: float = 0
    strong_reads_per_second: float = 0


class Traffic:
    """Calls of clients within one space of keys, which nobody else uses.

    Args:
        clients: with the pace of each.
        space: the first part of every key.
    """

    def __init__(self, clients: Sequence[tuple[Client, Pace]], space: str) -> None:
        self.record = Record()
        self.space = space
        self._clients = clients
        self._serials = itertools.count(1)
        self._under_way: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        for client, pace in self._clients:
            rates: dict[Kind, float] = {
                "write": pace.writes_per_second,
                "eventual": pace.eventual_reads_per_second,
                "strong": pace.strong_reads_per_second,
            }
            for kind, rate in rates.items():
                if rate:
                    drive = self._drive(client, kind, 1 / rate, phase(len(self._loops)))
                    self._loops.append(asyncio.ensure_future(drive))

    async def stop(self) -> None:
        """Begin no more calls, and wait until each has its answer or its error."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        while self._under_way:
            await asyncio.gather(*self._under_way)

    async def read_back(self, node: Client, *, least: bytes = b"") -> dict[bytes, bytes]:
        """Versionstamps of all rows that writes left, by key, as a node shows them to a strong read.

        Args:
            node: who is asked.
            least: read eventually instead, a state at least this new.
        """
        found: dict[bytes, bytes] = {}
        start, end = prefix_range((self.space, "row"))
        while True:
            request = kv_pb2.ReadRequest(ranges=[kv_pb2.ReadRange(start=start, end=end, limit=1_000)])
            if least:
                request.consistency = kv_pb2.CONSISTENCY_EVENTUAL
                request.min_versionstamp = least
            began = now_ms()
            response = await node.read(request)
            self.record.history.add(began, now_ms(), read_from(request), read_outcome(response), f"back {node.name}")
            entries = response.ranges[0].entries
            found.update((entry.key, entry.versionstamp) for entry in entries)
            if len(entries) < 1_000:
                return found
            start = entries[-1].key + b"\x00"

    async def _drive(self, client: Client, kind: Kind, interval_s: float, begin: float) -> None:
        loop = asyncio.get_running_loop()
        next_at = loop.time() - (1 - begin) * interval_s  # the first call begins `begin` of an interval from now
        while True:
            next_at += interval_s
            await asyncio.sleep(max(0.0, next_at - loop.time()))
            if len(self._under_way) < MAX_UNDER_WAY_COUNT:
                work = self._write(client) if kind == "write" else self._read(client, kind)
                task = asyncio.ensure_future(work)
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)

    async def _write(self, client: Client) -> None:
        serial = next(self._serials)
        key = encode_key((self.space, "row", f"{serial:08d}"))
        request = kv_pb2.AtomicWriteRequest(
            mutations=[
                _mutation(kv_pb2.MUTATION_TYPE_SET, key, f"row {serial:08d} of {self.space}".encode()),
                _mutation(kv_pb2.MUTATION_TYPE_SUM, encode_key((self.space, "count")), _ONE),
            ]
        )
        began, code, stamp = now_ms(), "", b""
        outcome: Outcome
        try:
            response = await client.write(request)
        except KvError as error:
            code, outcome = error.code, error_outcome(error.not_applied, error.code)
        else:
            stamp, outcome = response.versionstamp, write_outcome(response)
        ended = now_ms()
        self.record.calls.append(Call(client.name, client.region, client.via, "write", began, ended, stamp, code, key))
        answered = None if isinstance(outcome, Unknown) else ended
        self.record.history.add(began, answered, write_from(request), outcome, client.name)

    async def _read(self, client: Client, kind: Kind) -> None:
        key = encode_key((self.space, "count"))
        consistency = kv_pb2.CONSISTENCY_STRONG if kind == "strong" else kv_pb2.CONSISTENCY_EVENTUAL
        wanted = kv_pb2.ReadRange(start=key, end=key + b"\x00", limit=1)
        request = kv_pb2.ReadRequest(ranges=[wanted], consistency=consistency)
        began, code, stamp = now_ms(), "", b""
        try:
            response = await client.read(request)
        except KvError as error:
            code = error.code
        else:
            stamp = response.versionstamp
            if stamp:
                seen = read_outcome(response)
                self.record.history.add(began, now_ms(), read_from(request), seen, client.name)
        self.record.calls.append(Call(client.name, client.region, client.via, kind, began, now_ms(), stamp, code))


def phase(number: int) -> float:
    """At which part of its interval a loop begins its calls, so that those of any two lie apart."""
    return number * GOLDEN_RATIO % 1


def _mutation(kind: kv_pb2.MutationType, key: bytes, value: bytes) -> kv_pb2.Mutation:
    encoding = kv_pb2.VALUE_ENCODING_LE64 if kind == kv_pb2.MUTATION_TYPE_SUM else kv_pb2.VALUE_ENCODING_BYTES
    return kv_pb2.Mutation(type=kind, key=key, value=kv_pb2.Value(data=value, encoding=encoding))
