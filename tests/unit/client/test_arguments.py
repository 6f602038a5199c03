"""Arguments that mean nothing are named, and harm no other operation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from kvnode.base.errors import InvalidRequest
from kvnode.client import Admin, Kv, open_kv
from kvnode.proto.kv.v1 import admin_pb2, kv_pb2
from tests.unit.client.fake_server import FakeServer

NO_TIMES = [float("nan"), float("inf"), -1, 0, 0.4, 2**32, 2**70, "5"]
NO_KEYS = ["users", b"users", 7, None, {"a": 1}, {"a"}]


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer() as running:
        yield running


@pytest.mark.parametrize("timeout_ms", NO_TIMES)
async def test_a_timeout_that_is_no_time_is_refused_and_the_client_lives_on(
    server: FakeServer, timeout_ms: int
) -> None:
    async with open_kv(server.address) as kv:
        await kv.set(("k",), 1)
        for refused in (
            kv.set(("k",), 2, timeout_ms=timeout_ms),
            kv.get(("k",), timeout_ms=timeout_ms),
            kv.get(("k",), consistency="eventual", timeout_ms=timeout_ms),
            kv.count(prefix=("k",), timeout_ms=timeout_ms),
            kv.session.read(kv_pb2.ReadRequest(), timeout_ms),
        ):
            with pytest.raises(InvalidRequest) as caught:
                await refused
            assert (caught.value.code, repr(timeout_ms) in caught.value.message) == ("BAD_TIMEOUT", True)
        async with asyncio.timeout(5):
            await kv.set(("k",), 3)  # the stream that all share still works
            assert (await kv.get(("k",))).value == 3


@pytest.mark.parametrize("timeout_ms", NO_TIMES)
def test_nor_does_a_client_begin_with_one(timeout_ms: int) -> None:
    for begin in (lambda: open_kv("127.0.0.1:1", timeout_ms=timeout_ms), lambda: Admin(["a:1"], timeout_ms=timeout_ms)):
        with pytest.raises(InvalidRequest, match="timeout_ms is"):
            begin()


@pytest.mark.parametrize("key", NO_KEYS, ids=repr)
async def test_what_is_no_key_is_named(key: tuple[str, ...]) -> None:
    async with open_kv("127.0.0.1:1") as kv:
        for call in (
            lambda: kv.get(key),
            lambda: kv.get_many([("a",), key]),
            lambda: kv.set(key, 1),
            lambda: kv.delete(key),
            lambda: kv.count(prefix=key) if key is not None else kv.get(key),
            lambda: kv.delete_prefix(key),
            lambda: kv.atomic().check(key).commit(),
            lambda: kv.atomic().sum(key, 1).commit(),
        ):
            with pytest.raises(InvalidRequest) as refused:
                await call()
            assert (refused.value.code, repr(key) in refused.value.message) == ("BAD_KEY", True)
        with pytest.raises(InvalidRequest, match="A key is"):
            kv.watch_prefix(key)


async def test_an_administrator_may_name_the_nodes_as_a_client_does() -> None:
    async with Admin("a:1, b") as admin:
        assert admin.endpoint == "a:1"
    with pytest.raises(InvalidRequest, match="no endpoint"):
        Admin("")


async def test_the_usual_slips_with_several_keys() -> None:
    async with open_kv("127.0.0.1:1") as kv:
        for slip in (lambda: kv.get_many(("users", "ada")), lambda: as_coroutine(kv.watch, ("users", "ada"))):
            with pytest.raises(InvalidRequest) as refused:
                await slip()
            assert refused.value.code == "BAD_KEY"


@pytest.mark.parametrize("number", [float("nan"), -1, "5", 2**70])
async def test_numbers_of_lists_and_reads(number: int) -> None:
    async with open_kv("127.0.0.1:1") as kv:
        for code, call in (
            ("BAD_LIMIT", lambda: as_coroutine(list_of, kv, "limit", number)),
            ("BAD_BATCH_SIZE", lambda: as_coroutine(list_of, kv, "batch_size", number)),
            ("BAD_MAX_STALENESS", lambda: kv.get(("a",), consistency="eventual", max_staleness_ms=number)),
            ("BAD_VERSIONSTAMP", lambda: kv.get(("a",), min_versionstamp=number)),  # type: ignore[arg-type]
            ("BAD_CURSOR", lambda: as_coroutine(list_of, kv, "cursor", 7)),
        ):
            with pytest.raises(InvalidRequest) as refused:
                await call()
            assert refused.value.code == code


@pytest.mark.parametrize("number", [float("nan"), -1, "5", 2**70])
async def test_numbers_that_an_administrator_gives(number: int) -> None:
    async with Admin(["127.0.0.1:1"]) as admin:
        for call in (
            admin.create_database("d", number),
            admin.set_database("d", "", number),
            admin.create_token(expires_in_ms=number),
            admin.create_token(requests_per_second=number),
            admin.create_token(bytes_per_second=number),
            admin.promote(number),
            admin.remove(number),
            admin.replace(number, admin_pb2.Member()),
            admin.transfer_leadership(number),
        ):
            with pytest.raises(InvalidRequest) as refused:
                await call
            assert (refused.value.code, repr(number) in refused.value.message) == ("BAD_COUNT", True)


def list_of(kv: Kv, name: str, value: object) -> None:
    kv.list(prefix=("a",), **{name: value})  # type: ignore[arg-type]


async def as_coroutine(function: Callable[..., object], *arguments: object) -> None:
    function(*arguments)
