"""The WAN proxy as a process: what travels through it is whole, in order and late; what is cut waits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from cluster.processes import cpu_seconds
from cluster.wan.connections import MAX_UNDER_WAY_BYTES
from cluster.wan.wan import Wan, WanFailed

A, B = "127.93.0.1", "127.93.0.2"
KERNEL_BUFFERS_BYTES = 24 * 1_048_576  # of four sockets, and a read or two


@pytest.fixture
def wan(tmp_path: Path) -> Iterator[Wan]:
    wan = Wan(tmp_path / "wan.log")
    wan.start()
    yield wan
    wan.close()


@pytest.fixture
async def through(wan: Wan) -> str:
    """The address by which site a dials; a and b are 0 ms apart until a test says otherwise."""
    wan.add_site("b", [B])
    return wan.add_site("a", [A])


class Echo(asyncio.Protocol):
    """Sends back what it is sent."""

    open: ClassVar[dict[Echo, None]] = {}

    def connection_made(self, transport) -> None:
        self.open[self] = None
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        del self.open[self]


class Deaf(Echo):
    """Reads nothing."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        transport.pause_reading()


class Dying(Echo):
    """Ends at once."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        transport.abort()


@asynccontextmanager
async def listening(kind: type[Echo] = Echo) -> AsyncIterator[str]:
    """A server as site b; yields its host:port. Its connections are gone at the end."""
    server = await asyncio.get_running_loop().create_server(kind, B, 0)
    yield "{}:{}".format(*server.sockets[0].getsockname()[:2])
    server.close()
    for end in list(Echo.open):
        end.transport.abort()
    while Echo.open:
        await asyncio.sleep(0.01)


opened: list[asyncio.StreamWriter] = []


@pytest.fixture(autouse=True)
async def nothing_stays_open() -> AsyncIterator[None]:
    yield
    for writer in opened:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    opened.clear()


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(address: str) -> Connection:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    opened.append(writer)
    return reader, writer


async def dial(through: str, target: str) -> Connection:
    reader, writer = await connect(through)
    writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    return reader, writer


async def round_trip_ms(connection: Connection) -> float:
    reader, writer = connection
    began = time.monotonic()
    writer.write(b"x" * 100)
    await reader.readexactly(100)
    return (time.monotonic() - began) * 1_000


@pytest.mark.parametrize("one_way_ms", [0.7, 44.0])
async def test_a_round_trip_takes_twice_the_delay(wan: Wan, through: str, one_way_ms: float) -> None:
    wan.set_delay("a", "b", one_way_ms)
    async with listening() as target:
        began = time.monotonic()
        connection = await dial(through, target)
        assert time.monotonic() - began >= 2 * one_way_ms / 1_000
        trips = [await round_trip_ms(connection) for _ in range(20)]
    assert 2 * one_way_ms - 0.2 <= min(trips) < 2 * one_way_ms + 1.5  # the least: a busy machine adds to the others


async def test_bytes_arrive_whole_and_in_order(wan: Wan, through: str) -> None:
    wan.set_delay("a", "b", 3)
    sent = b"".join(number.to_bytes(4, "big") for number in range(2_000_000))
    async with listening() as target:
        reader, writer = await dial(through, target)

        async def send() -> None:
            for at in range(0, len(sent), 100_003):
                writer.write(sent[at : at + 100_003])
                await writer.drain()
            writer.write_eof()

        sending = asyncio.ensure_future(send())
        assert await reader.read(-1) == sent  # up to the end, which follows the last byte
        await sending
    assert wan.carried_bytes()["a", "b"] == wan.carried_bytes()["b", "a"] == len(sent)


async def test_a_cut_direction_holds_what_it_was_given_until_it_is_healed(wan: Wan, through: str) -> None:
    async with listening() as target:
        reader, writer = await dial(through, target)
        wan.cut([("b", "a")])
        writer.write(b"first")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(5), 0.2)
        assert wan.carried_bytes()["b", "a"] == 5  # the other direction stands
        wan.heal([("b", "a")])
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"first"


async def test_nobody_connects_over_a_cut_link_and_whoever_waits_does_once_it_is_healed(wan: Wan, through: str) -> None:
    async with listening() as target:
        pairs = wan.isolate("b")
        dialling = asyncio.ensure_future(dial(through, target))
        await asyncio.sleep(0.2)
        assert not dialling.done()
        wan.heal(pairs)
        await asyncio.wait_for(dialling, 5)


async def test_a_receiver_that_does_not_read_stops_the_sender(through: str) -> None:
    async with listening(Deaf) as target:
        _, writer = await dial(through, target)
        taken = 0

        async def flood() -> None:
            nonlocal taken
            while True:
                writer.write(b"x" * 65_536)
                await writer.drain()
                taken += 65_536

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flood(), 1.5)
        assert taken < MAX_UNDER_WAY_BYTES + KERNEL_BUFFERS_BYTES


async def test_who_is_not_there_refuses_and_who_is_not_known_too(through: str) -> None:
    for target, reason in ((f"{B}:1", b"Connection refused"), ("127.93.0.9:1", b"nobody is known at 127.93.0.9:1")):
        reader, writer = await connect(through)
        writer.write(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
        answer = await reader.read(-1)
        assert answer.startswith(b"HTTP/1.1 502 ") and reason in answer


async def test_a_peer_that_dies_is_gone_at_the_other_end_too(wan: Wan, through: str) -> None:
    wan.set_delay("a", "b", 20)

    async with listening(Dying) as target:
        reader, _ = await dial(through, target)
        try:
            assert await asyncio.wait_for(reader.read(-1), 5) == b""
        except ConnectionResetError:
            pass


async def test_a_client_that_cannot_connect_has_a_port_that_leads_there(wan: Wan, through: str) -> None:
    del through
    wan.set_delay("a", "b", 10)
    async with listening() as target:
        connection = await connect(wan.forward("a", target))
        assert await round_trip_ms(connection) >= 19.8


async def test_orders_that_make_no_sense_are_refused(wan: Wan, through: str) -> None:
    del through
    with pytest.raises(WanFailed, match="there is no link from a to nowhere"):
        wan.cut([("a", "nowhere")])
    with pytest.raises(WanFailed, match=r"127\.93\.0\.9"):
        wan.forward("a", "127.93.0.9:1")


async def test_it_rests_when_nothing_travels(wan: Wan, through: str) -> None:
    async with listening() as target:
        connection = await dial(through, target)
        await round_trip_ms(connection)
        wan.cut([("b", "a")])
        connection[1].write(b"held")
        await asyncio.sleep(0.1)
        before = cpu_seconds(wan.child.pid)
        await asyncio.sleep(0.5)
        assert cpu_seconds(wan.child.pid) - before <= 0.05
