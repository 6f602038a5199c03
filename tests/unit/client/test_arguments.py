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


LISTENER_SLIPS = [
    ("lease_ms", 999, "1000", "BAD_LEASE_TIME"),
    ("lease_ms", 600_001, "600000", "BAD_LEASE_TIME"),
    ("lease_ms", -1, "1000", "BAD_LEASE_TIME"),
    ("lease_ms", "5", "1000", "BAD_LEASE_TIME"),
    ("concurrency", 0, "1000", "BAD_CONCURRENCY"),
    ("concurrency", 1_001, "1000", "BAD_CONCURRENCY"),
    ("queue", "no name", "100", "BAD_QUEUE_NAME"),
    ("queue", "q" * 101, "100", "BAD_QUEUE_NAME"),
    ("queue", 7, "str", "BAD_QUEUE_NAME"),
    ("consumer", "ü" * 51, "100", "CONSUMER_NAME_TOO_LONG"),
    ("consumer", b"c", "str", "BAD_TEXT"),
]


@pytest.mark.parametrize(("name", "value", "limit", "code"), LISTENER_SLIPS)
async def test_a_listener_that_no_node_would_serve_is_refused_at_the_call(
    name: str, value: object, limit: str, code: str
) -> None:
    """Not at the first iteration, which may be far from the mistake: nothing is listening at the endpoint here."""
    async with open_kv("127.0.0.1:1") as kv:
        for call in (
            lambda: as_coroutine(lambda: kv.messages(**{name: value})),  # type: ignore[arg-type]
            lambda: kv.listen_queue(print, **{name: value}),  # type: ignore[arg-type]
        ):
            with pytest.raises(InvalidRequest) as refused:
                await asyncio.wait_for(call(), 1)
            text = refused.value.message
            assert (refused.value.code, name in text, repr(value) in text, limit in text) == (code, True, True, True)


async def test_the_bounds_themselves_are_taken() -> None:
    async with open_kv("127.0.0.1:1") as kv:
        for lease_ms in (0, 1_000, 600_000):
            kv.messages("q" * 100, lease_ms=lease_ms, concurrency=1_000, consumer="c" * 100)


@pytest.mark.parametrize("wrong", [b"x" * 12, "00" * 12, None, 7, {"lease": "x"}], ids=repr)
async def test_an_ack_of_what_is_no_message_says_what_to_pass(wrong: object) -> None:
    async with open_kv("127.0.0.1:1") as kv:
        with pytest.raises(TypeError, match=r"ack\(\) takes the QueueMessage .*messages.*, not ") as refused:
            kv.atomic().ack(wrong)  # type: ignore[arg-type]
        assert repr(wrong)[:20] in str(refused.value)


@pytest.mark.parametrize("wrong", ["00" * 12, b"x", 7, None, [], "", bytes(13)], ids=repr)
async def test_what_is_no_dead_letter_is_named_and_does_not_stand_for_all_of_them(wrong: object) -> None:
    async with open_kv("127.0.0.1:1") as kv:
        for name, call in (
            ("dead_letter", kv.queues.requeue("mail", wrong)),  # type: ignore[arg-type]
            ("dead_letter", kv.queues.purge("mail", dead_letter=wrong)),  # type: ignore[arg-type]
            ("after", kv.queues.dead_letters("mail", after=wrong)),  # type: ignore[arg-type]
        ):
            with pytest.raises(InvalidRequest, match=f"^{name} is .*12 bytes") as refused:
                await call
            assert (refused.value.code, repr(wrong) in refused.value.message) == ("BAD_DEAD_LETTER_ID", True)


@pytest.mark.parametrize("wrong", ["false", None, 0.5], ids=repr)
async def test_a_flag_that_is_none_is_named(wrong: object) -> None:
    async with open_kv("127.0.0.1:1") as kv:
        for name, call in (
            ("dead_letters", lambda: kv.queues.purge("mail", dead_letters=wrong)),  # type: ignore[arg-type]
            ("allow_overlap", lambda: kv.crons.set("c", "* * * * *", allow_overlap=wrong)),  # type: ignore[arg-type]
            ("must_be_new", lambda: kv.crons.set("c", "* * * * *", must_be_new=wrong)),  # type: ignore[arg-type]
        ):
            with pytest.raises(TypeError, match=f"{name} is {wrong!r}: give True or False"):
                await call()


@pytest.mark.parametrize("wrong", [5, 5.0, "100", b"1"], ids=repr)
async def test_a_schedule_that_is_no_list_is_named(wrong: object) -> None:
    async with open_kv("127.0.0.1:1") as kv:
        with pytest.raises(InvalidRequest, match="backoff_schedule is") as refused:
            await kv.enqueue(1, backoff_schedule=wrong)  # type: ignore[arg-type]
        assert (refused.value.code, repr(wrong) in refused.value.message) == ("BAD_BACKOFF_SCHEDULE", True)


def list_of(kv: Kv, name: str, value: object) -> None:
    kv.list(prefix=("a",), **{name: value})  # type: ignore[arg-type]


async def as_coroutine(function: Callable[..., object], *arguments: object) -> None:
    function(*arguments)
