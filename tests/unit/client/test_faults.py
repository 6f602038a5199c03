"""Random faults from a seed: every write that was acknowledged is applied exactly once, none is applied twice."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.client.session import Session
from kvnode.codec.keys import encode_key
from tests.unit.client.fake_server import FakeServer, Store, free_port
from tests.unit.client.test_session import add, error

SECONDS = 1.5


async def torment(servers: list[FakeServer], addresses: list[str], random: Random, until: float) -> None:
    """One fault after another; afterwards every server is up and sound."""
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        position = random.randrange(len(servers))
        server, kind = servers[position], random.randrange(6)
        if kind == 0:
            await server.stop()
            await asyncio.sleep(random.uniform(0, 0.1))
            await server.start(addresses[position])
        elif kind == 1:
            server.faults.hang = True
            await asyncio.sleep(random.uniform(0, 0.4))
            server.faults.hang = False
        elif kind == 2:
            server.faults.drop_after_apply_count = random.randrange(3)
        elif kind == 3:
            server.faults.drop_before_apply_count = random.randrange(3)
        elif kind == 4:
            server.faults.errors = [error("NOT_LEADER")] * random.randrange(20)
        else:
            server.faults.answer_twice = not server.faults.answer_twice
        await asyncio.sleep(random.uniform(0, 0.05))


@pytest.mark.parametrize("seed", range(4))
async def test_every_acknowledged_write_is_applied_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "CLIENT_PROBE_AFTER_MS": 60,
        "CLIENT_PROBE_TIMEOUT_MS": 100,
        "CLIENT_HANG_TIMEOUT_MS": 200,
        "CLIENT_DIAL_TIMEOUT_MS": 300,
        "CLIENT_BACKOFF_MS": 5,
    }.items():
        monkeypatch.setattr(limits, name, value)
    random, store = Random(seed), Store()
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    servers = [await FakeServer(store, name).start(address) for name, address in zip("abc", addresses, strict=True)]
    until = asyncio.get_running_loop().time() + SECONDS
    acknowledged: list[bytes] = []
    unknown: list[bytes] = []

    async def work(session: Session, worker: int) -> None:
        number = 0
        while asyncio.get_running_loop().time() < until:
            number += 1
            key = encode_key((worker, number))
            try:
                await session.write(add(key), timeout_ms=3_000)
                acknowledged.append(key)
            except KvError as failure:
                if not failure.not_applied:
                    unknown.append(key)

    async with asyncio.timeout(20), Session(addresses, random=random) as session:
        workers = [work(session, worker) for worker in range(8)]
        await asyncio.gather(torment(servers, addresses, random, until), *workers)
        assert session.unanswered_count == 0
    await asyncio.gather(*(server.stop() for server in servers))

    counts = {key: int.from_bytes(row.value, "little") for key, row in store.rows.items()}
    assert set(counts.values()) <= {1}
    assert set(acknowledged) <= set(counts)
    assert set(counts) <= set(acknowledged) | set(unknown)
    assert len(acknowledged) > 20
