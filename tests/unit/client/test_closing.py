"""What a closed client does, and what iterations do that are broken off, shared or closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kvnode.base.errors import InvalidRequest, Unavailable
from kvnode.client import Entry, PrefixChanges, open_kv
from tests.unit.client.fake_server import FakeServer


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer() as running:
        yield running


async def test_after_close_nothing_is_begun(server: FakeServer) -> None:
    kv = open_kv(server.address)
    await kv.set(("a",), 1)
    await kv.close()
    asked_count = server.unary_count
    for call in (
        kv.get(("a",)),
        kv.get(("a",), consistency="eventual"),
        anext(kv.list(("a",))),
        kv.count(("a",)),
        kv.set(("a",), 2),
        kv.delete_prefix(("a",)),
    ):
        with pytest.raises(Unavailable) as caught:
            await call
        assert caught.value.code == "CLIENT_CLOSED"
    for begin in (lambda: kv.watch([("a",)]), lambda: kv.watch_prefix(("a",))):
        with pytest.raises(Unavailable, match="the client is closed"):
            begin()
    assert server.unary_count == asked_count


async def test_what_is_under_way_ends_with_the_client(server: FakeServer) -> None:
    server.faults.hang = True
    kv = open_kv(server.address, timeout_ms=60_000)
    calls = [asyncio.ensure_future(kv.get(("a",), consistency="eventual"))]
    await asyncio.sleep(0.2)
    other = open_kv("127.0.0.1:1", timeout_ms=60_000)
    calls.append(asyncio.ensure_future(other.get(("a",), consistency="eventual")))
    await asyncio.sleep(0)  # it dials
    await asyncio.gather(kv.close(), other.close())
    ends = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
    assert [getattr(end, "code", end) for end in ends] == ["CLIENT_CLOSED"] * 2


async def test_watches_end_with_the_client(server: FakeServer) -> None:
    kv = open_kv(server.address)
    seen: list[object] = []

    async def follow(watch: AsyncIterator[list[Entry]] | AsyncIterator[PrefixChanges]) -> None:
        async for item in watch:
            seen.append(item)  # noqa: PERF401  # one by one: it never ends by itself

    following = [asyncio.ensure_future(follow(watch)) for watch in (kv.watch([("a",)]), kv.watch_prefix(("a",)))]
    async with asyncio.timeout(10):
        while len(seen) < 2:
            await asyncio.sleep(0.01)
        await kv.close()
        await asyncio.gather(*following)


async def test_a_wait_for_the_next_state_may_be_broken_off(server: FakeServer) -> None:
    async with open_kv(server.address) as kv:
        watch, changes = kv.watch([("a", 1)]), kv.watch_prefix(("a",))
        assert not (await anext(watch))[0].exists and (await anext(changes)).resync
        for waiting in (anext(watch), anext(changes)):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(waiting, 0.05)
        await kv.set(("a", 1), 7)
        async with asyncio.timeout(10):
            assert (await anext(watch))[0].value == 7
            assert [entry.value for entry in (await anext(changes)).entries] == [7]


async def test_tasks_that_share_a_list_get_each_entry_once(server: FakeServer) -> None:
    async with open_kv(server.address) as kv:
        await asyncio.gather(*(kv.set(("n", number), number) for number in range(30)))
        shared = kv.list(("n",), limit=25, batch_size=10)
        taken: list[object] = []

        async def take() -> None:
            async for entry in shared:
                taken.append(entry.value)
                await asyncio.sleep(0)

        await asyncio.gather(*(take() for _ in range(4)))
        assert taken == list(range(25))


async def test_a_client_belongs_to_one_loop(server: FakeServer) -> None:
    """On another one an operation waited for ever, whatever its timeout."""
    async with open_kv(server.address) as kv:
        await kv.set(("a",), 1)

        async def elsewhere() -> None:
            for call in (kv.get(("a",)), kv.set(("a",), 2)):
                with pytest.raises(InvalidRequest) as caught:
                    await asyncio.wait_for(call, 5)
                assert caught.value.code == "OTHER_LOOP"

        await asyncio.to_thread(asyncio.run, elsewhere())
        assert (await kv.get(("a",))).value == 1
