from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from random import Random

import pytest

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, TooStale, Unavailable
from kvnode.client import BigInt, Entry, Kv, KvU64, open_kv
from kvnode.codec.keys import encode_key
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.client.fake_server import FakeServer, Store, free_port


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer() as running:
        yield running


@pytest.fixture
async def kv(server: FakeServer) -> AsyncIterator[Kv]:
    async with open_kv([server.address], random=Random(1)) as client:
        yield client


@pytest.mark.parametrize(
    "value", [{"a": [1, 2.5, None, True]}, "text", b"\x00\xff", KvU64(2**64 - 1), BigInt(2**70), None]
)
async def test_a_value_comes_back_as_it_went(kv: Kv, value: object) -> None:
    result = await kv.set(("k", 1), value)
    entry = await kv.get(("k", 1))
    assert entry.value == value
    assert type(entry.value) is type(value)
    assert entry.key == ("k", 1)
    assert entry.exists
    assert entry.versionstamp == result.versionstamp
    assert len(result.versionstamp or "") == 20


async def test_a_missing_key_has_neither_value_nor_versionstamp(kv: Kv) -> None:
    entry = await kv.get(("missing",))
    assert (entry.key, entry.value, entry.versionstamp, entry.exists) == (("missing",), None, None, False)


async def test_get_many_keeps_the_order(kv: Kv) -> None:
    await kv.set(("b",), 2)
    await kv.set(("a",), 1)
    assert [entry.value for entry in await kv.get_many([("b",), ("x",), ("a",)])] == [2, None, 1]


async def test_delete(kv: Kv) -> None:
    await kv.set(("a",), 1)
    assert (await kv.delete(("a",))).ok
    assert not (await kv.get(("a",))).exists


async def test_an_expiry_is_set_and_removed_without_the_value(kv: Kv) -> None:
    await kv.set(("a",), {"large": "value"})
    result = await kv.set_expiry(("a",), expire_in=60_000)
    entry = await kv.get(("a",))
    assert (entry.value, entry.versionstamp) == ({"large": "value"}, result.versionstamp)
    assert 59_000 < (entry.expires_in() or 0) <= 60_000
    assert entry.expires_in(now_ms=(entry.expire_at_ms or 0) - 7) == 7
    assert entry.expires_in(now_ms=(entry.expire_at_ms or 0) + 7) == 0
    await kv.set_expiry(("a",), expire_at_ms=4_000_000_000_000)
    assert (await kv.get(("a",))).expire_at_ms == 4_000_000_000_000
    await kv.clear_expiry(("a",))
    assert (await kv.get(("a",))).expires_in() is None
    assert await kv.atomic().check(("b",)).set_expiry(("b",), expire_in=1).commit()
    assert not (await kv.get(("b",))).exists
    with pytest.raises(InvalidRequest, match="one of the two"):
        kv.atomic().set_expiry(("a",))
    with pytest.raises(InvalidRequest, match="one of the two"):
        kv.atomic().set_expiry(("a",), expire_in=1, expire_at_ms=1)


async def test_a_look_at_keys_alone(kv: Kv) -> None:
    await kv.set(("a",), "value", expire_in=60_000)
    await kv.set(("b",), KvU64(1))
    first, second = await kv.get_many([("a",), ("b",)], keys_only=True)
    assert (first.exists, first.value, first.raw) == (True, None, (b"", 0))
    assert first.expires_in() and second.value is None
    assert [entry.value async for entry in kv.list((), keys_only=True)] == [None, None]


async def test_a_check_decides(kv: Kv) -> None:
    missing = await kv.get(("a",))
    assert (await kv.atomic().check(missing).set(("a",), 1).commit()).ok
    refused = await kv.atomic().check(("b",)).check(missing).set(("a",), 2).commit()
    assert (bool(refused), refused.versionstamp, refused.failed_checks) == (False, None, (1,))
    entry = await kv.get(("a",))
    assert await kv.atomic().check(("a",), entry.versionstamp).set(("a",), 3).commit()
    assert (await kv.get(("a",))).value == 3


async def test_numbers(kv: Kv) -> None:
    await kv.atomic().sum(("n",), 5).sum(("n",), KvU64(2)).max(("m",), 4).max(("m",), 9).min(("m",), 6).commit()
    assert [entry.value for entry in await kv.get_many([("n",), ("m",)])] == [KvU64(7), KvU64(6)]


async def test_an_operand_that_is_no_kvu64_travels_as_a_number(kv: Kv) -> None:
    operation = kv.atomic().sum(("n",), 1.5, minimum=0, maximum=9, clamp=True).sum(("b",), BigInt(3))
    number, bigint = operation.request.mutations
    assert number.value.encoding == bigint.value.encoding == kv_pb2.VALUE_ENCODING_V8
    assert number.sum_min and number.sum_max and number.sum_clamp
    with pytest.raises(InvalidRequest, match="KvU64"):
        kv.atomic().sum(("n",), -1)


async def test_the_commit_versionstamp_becomes_the_last_part(kv: Kv) -> None:
    result = await kv.set(("log", kv.commit_versionstamp()), "x")
    assert [entry.key async for entry in kv.list(prefix=("log",))] == [("log", result.versionstamp)]
    with pytest.raises(InvalidRequest):
        await kv.set((kv.commit_versionstamp(), "log"), "x")


async def test_expire_in_is_an_absolute_time_on_the_wire(kv: Kv) -> None:
    await kv.set(("t",), 1, expire_in=60_000)
    entry = await kv.get(("t",))
    assert entry.expire_at_ms is not None
    with pytest.raises(InvalidRequest, match="expire_in"):
        await kv.set(("t",), 1, expire_in=-1)


async def test_list_pages_through_everything(kv: Kv, server: FakeServer) -> None:
    await asyncio.gather(*(kv.set(("n", number), number) for number in range(25)))
    await kv.set(("other",), 0)
    assert [entry.value async for entry in kv.list(prefix=("n",), batch_size=10)] == list(range(25))
    assert [entry.value async for entry in kv.list(prefix=("n",), batch_size=10, reverse=True)] == list(
        range(24, -1, -1)
    )
    assert [entry.value async for entry in kv.list(prefix=("n",), limit=12, batch_size=5)] == list(range(12))
    assert [entry.value async for entry in kv.list(start=("n", 3), end=("n", 6))] == [3, 4, 5]
    assert [entry.value async for entry in kv.list(prefix=("n",), start=("n", 23))] == [23, 24]
    assert [entry.value async for entry in kv.list(prefix=("n",), end=("n", 2))] == [0, 1]


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_cursor_goes_on_where_the_list_stopped(kv: Kv, reverse: bool) -> None:
    await asyncio.gather(*(kv.set(("n", number), number) for number in range(9)))
    whole = [entry.value async for entry in kv.list(prefix=("n",), reverse=reverse)]
    first = kv.list(prefix=("n",), limit=4, reverse=reverse)
    head = [entry.value async for entry in first]
    tail = [entry.value async for entry in kv.list(prefix=("n",), cursor=first.cursor, reverse=reverse)]
    assert head + tail == whole
    assert kv.list(prefix=("n",)).cursor == ""


async def test_lists_refuse_what_makes_no_sense(kv: Kv) -> None:
    for wrong in ({"limit": 0}, {"batch_size": 1001}, {"cursor": "???"}, {"start": ("a",), "end": ("b",)}):
        with pytest.raises(InvalidRequest):
            kv.list(prefix=("n",), **wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        kv.list()
    with pytest.raises(InvalidRequest):
        await kv.get(("a",), consistency="weak")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        await kv.get(("a",), min_versionstamp="12")


async def test_count_and_delete_by_prefix(kv: Kv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_READ_ENTRIES_COUNT", 10)
    await asyncio.gather(*(kv.set(("n", number), number) for number in range(25)))
    await kv.set(("n",), "the prefix itself")
    assert await kv.count(prefix=("n",)) == 25
    steps: list[int] = []
    assert await kv.delete_prefix(("n",), progress=steps.append) == 25
    assert steps == [10, 20, 25]
    assert await kv.count(prefix=()) == 1
    await kv.atomic().set(("r", 1), 1).set(("r", 2), 1).delete_range(("r", 1), ("r", 2)).commit()
    assert await kv.count(prefix=("r",)) == 1
    await kv.atomic().delete_prefix(("r",)).commit()
    assert await kv.count(prefix=("r",)) == 0


async def test_a_prefix_without_keys_is_deleted_by_one_write(kv: Kv, server: FakeServer) -> None:
    """It is for the node to say whether the caller may write, also where there is nothing to delete."""
    await kv.set(("e",), "the prefix itself")
    before = server.store.applied_count
    assert await kv.delete_prefix(("e",)) == 0
    assert server.store.applied_count == before + 1
    assert (await kv.get(("e",))).value == "the prefix itself"


async def test_a_client_that_only_reads_opens_no_session(kv: Kv, server: FakeServer) -> None:
    await kv.get(("a",))
    await kv.get(("a",), consistency="eventual")
    assert (server.sessions_count, server.unary_count) == (0, 2)
    await asyncio.gather(*(kv.get(("a",)) for _ in range(100)))
    assert server.sessions_count == 1
    assert server.unary_count <= 2 + limits.MAX_CLIENT_UNARY_READS_COUNT


async def test_an_eventual_read_does_not_wait_for_a_leader(server: FakeServer, kv: Kv) -> None:
    server.faults.refuse_open = kv_pb2.Error(code="UNAVAILABLE", message="no leader", phase="leader", not_applied=True)
    writing = asyncio.ensure_future(kv.set(("a",), 1, timeout_ms=400))
    await asyncio.sleep(0.05)
    entry = await kv.get(("a",), consistency="eventual", timeout_ms=300)
    assert not entry.exists
    with pytest.raises(Exception, match="no leader"):
        await writing


async def test_a_unary_read_moves_on_from_a_hanging_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENT_HANG_TIMEOUT_MS", 150)
    store = Store()
    async with FakeServer(store) as one, FakeServer(store) as two:
        one.faults.hang = True
        async with open_kv([f"127.0.0.1:{free_port()}", one.address, two.address]) as kv:
            await kv.get(("a",), timeout_ms=3_000)
        assert two.unary_count == 1


async def test_a_unary_read_survives_a_restart() -> None:
    server = await FakeServer().start()
    address = server.address
    async with open_kv(address, random=Random(1)) as kv:
        await kv.get(("a",))
        await server.stop()
        reading = asyncio.ensure_future(kv.get(("a",)))
        await asyncio.sleep(0.1)
        await server.start(address)
        await reading
        await kv.close()
    await server.stop()


async def test_watch_yields_states_and_outlives_its_node() -> None:
    store = Store()
    one, two = await FakeServer(store).start(), await FakeServer(store).start()
    async with open_kv([one.address, two.address], random=Random(1)) as kv:
        watch = kv.watch([("a",), ("b",)])
        assert [entry.exists for entry in await anext(watch)] == [False, False]
        await kv.set(("a",), 1)
        assert [entry.value for entry in await anext(watch)] == [1, None]
        await one.stop()
        waiting = asyncio.ensure_future(anext(watch))
        await kv.set(("b",), 2)
        assert [entry.value for entry in await waiting] == [1, 2]
        await kv.delete(("a",))
        states = await anext(watch)
        assert [(entry.key, entry.exists) for entry in states] == [(("a",), False), (("b",), True)]
        await watch.aclose()
    await two.stop()


async def test_watch_prefix_tells_when_to_list_again(kv: Kv, server: FakeServer) -> None:
    await kv.set(("p", 0), 0)
    watch = kv.watch_prefix(("p",))
    first = await anext(watch)
    assert first.resync
    await kv.set(("p", 1), "x")
    changes = await anext(watch)
    assert not changes.resync
    assert [(entry.key, entry.value) for entry in changes.entries] == [(("p", 1), "x")]
    await kv.delete(("p", 0))
    assert [(entry.key, entry.exists) for entry in (await anext(watch)).entries] == [(("p", 0), False)]
    await watch.aclose()
    with pytest.raises(InvalidRequest):
        kv.watch([])


async def test_a_silent_watch_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENT_WATCH_SILENCE_MS", 150)
    store = Store()
    async with FakeServer(store) as one, FakeServer(store) as two:
        one.faults.hang = True
        async with open_kv([one.address, two.address], random=Random(1)) as kv:
            watch = kv.watch([("a",)])
            assert not (await anext(watch))[0].exists
            await watch.aclose()


async def test_a_watch_with_a_bound_goes_on_at_a_fresher_node_although_nothing_changes() -> None:
    store = Store()
    async with (
        FakeServer(store) as one,
        FakeServer(store) as two,
        open_kv([one.address, two.address], random=Random(1)) as kv,
    ):
        watch = kv.watch([("a",)], consistency="eventual", max_staleness_ms=1_000)
        changes = kv.watch_prefix(("p",), consistency="eventual", max_staleness_ms=1_000)
        assert not (await anext(watch))[0].exists and (await anext(changes)).resync
        one.faults.age_ms = 1_001
        waiting = asyncio.ensure_future(anext(watch))
        assert (await anext(changes)).resync, "a range is to be read anew where the watch goes on"
        await one.stop()  # nobody watches there any more
        await kv.set(("a",), 1)
        assert (await waiting)[0].value == 1
        await watch.aclose()
        await changes.aclose()


async def test_a_watch_with_a_bound_ends_when_no_node_is_fresh_enough() -> None:
    store = Store()
    async with (
        FakeServer(store) as one,
        FakeServer(store) as two,
        open_kv([one.address, two.address], random=Random(1)) as kv,
    ):
        one.faults.age_ms = two.faults.age_ms = 300
        with pytest.raises(TooStale, match="may be 300 ms old") as caught:
            await anext(kv.watch([("a",)], max_staleness_ms=200))
        assert caught.value.endpoint == two.address, "both were asked"
        one.faults.age_ms = two.faults.age_ms = 0
        watch = kv.watch([("a",)], max_staleness_ms=200)
        await anext(watch)
        one.faults.age_ms = two.faults.age_ms = 201
        began = time.monotonic()
        with pytest.raises(TooStale):
            await anext(watch)
        assert 0.15 < time.monotonic() - began < 3, "what was shown is still new enough for a while"
        await watch.aclose()


async def test_a_watch_with_a_bound_ends_when_its_only_node_is_gone() -> None:
    async with FakeServer() as only, open_kv(only.address, random=Random(1)) as kv:
        watch = kv.watch([("a",)], consistency="eventual", max_staleness_ms=300)
        await anext(watch)
        await only.stop()
        with pytest.raises(TooStale, match=r"at most 300 ms old.*the last:"):
            await asyncio.wait_for(anext(watch), 10)


@pytest.mark.parametrize("bound_ms", [0, -5])
async def test_a_bound_that_is_none_is_refused(kv: Kv, bound_ms: int) -> None:
    with pytest.raises(InvalidRequest, match="is no bound"):
        kv.watch([("a",)], max_staleness_ms=bound_ms)
    with pytest.raises(InvalidRequest, match="is no bound"):
        kv.watch_prefix(("a",), max_staleness_ms=bound_ms)


async def test_a_watch_of_nobody_fails_fast() -> None:
    async with open_kv(f"127.0.0.1:{free_port()}", fail_fast=True) as kv:
        with pytest.raises(Unavailable) as caught:
            await anext(kv.watch([("a",)]))
    assert caught.value.phase == "dial"


@pytest.mark.parametrize("endpoints", ["", "http://a:1", "a:b", ":1", "a:70000", []])
async def test_wrong_endpoints_are_refused(endpoints: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        open_kv(endpoints)
    assert caught.value.code == "ENDPOINT_INVALID"


async def test_an_entry_of_a_foreign_key_can_be_passed_on() -> None:
    entry = Entry(
        kv_pb2.Entry(key=b"\xee", value=b"x", encoding=kv_pb2.VALUE_ENCODING_BYTES, versionstamp=b"\x00" * 10)
    )
    assert entry.encoded_key == b"\xee"
    with pytest.raises(InvalidRequest):
        _ = entry.key
    assert Entry(None, ("a",), encode_key(("a",))) == Entry(None, ("a",), encode_key(("a",)))


async def test_pages_shrink_until_large_values_fit(kv: Kv, server: FakeServer) -> None:
    await asyncio.gather(*(kv.set(("n", number), number) for number in range(9)))
    too_large = kv_pb2.Error(code="RESPONSE_TOO_LARGE", message="too large", phase="read", not_applied=True)
    server.faults.errors = [too_large, too_large]
    assert [entry.value async for entry in kv.list(prefix=("n",), batch_size=8)] == list(range(9))
