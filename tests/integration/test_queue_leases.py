"""How long a listener may listen, and how long its leases last, wherever they are extended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from cluster.launcher import LocalCluster
from kvnode.client import Admin, open_kv
from tests.integration.helpers import three_nodes
from tests.integration.queue_client import TOKEN, close_all, payload
from tests.integration.test_queue_bad_input import Stream, opening
from tests.integration.test_queue_http import client

TOKEN_LIFE_MS = 2_000
END_TIMEOUT_S = 4.0  # with messages all the time a listener ends at the next one, and waits for no ping


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with three_nodes(tmp_path_factory.mktemp("cluster"), "--access-token", TOKEN) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
async def _left() -> AsyncIterator[None]:
    yield
    await close_all()


@contextlib.asynccontextmanager
async def again_and_again(work) -> AsyncIterator[None]:  # type: ignore[no-untyped-def]
    """Do it five times a second, beside what the test does."""

    async def repeat() -> None:
        while True:
            await work()
            await asyncio.sleep(0.2)

    repeating = asyncio.ensure_future(repeat())
    try:
        yield
        assert not repeating.done(), repeating.exception()
    finally:
        repeating.cancel()
        await asyncio.gather(repeating, return_exceptions=True)


async def test_a_token_that_expires_ends_a_busy_listener_over_http(nodes: LocalCluster) -> None:
    async with Admin(nodes.addresses) as admin, open_kv(nodes.addresses) as kv:
        made = await admin.create_token(expires_in_ms=TOKEN_LIFE_MS)
        listener = await client(nodes, queue="busy", token=made.secret).listen(credit=1_000, lease_ms=60_000)
        async with again_and_again(lambda: kv.enqueue(1, queue="busy")), asyncio.timeout(END_TIMEOUT_S):
            while (line := await listener.line())["type"] == "message":
                pass
        assert (line["type"], line["code"], line["retry"]) == ("end", "ACCESS_TOKEN_EXPIRED", False)


async def test_a_token_that_expires_ends_a_busy_listener_over_grpc(nodes: LocalCluster) -> None:
    async with Admin(nodes.addresses) as admin, open_kv(nodes.addresses) as kv:
        made = await admin.create_token(expires_in_ms=TOKEN_LIFE_MS)
        async with Stream(nodes.addresses[0], made.secret) as stream:
            first = opening(lease_ms=60_000)
            first.credit = 1_000
            await stream.say(first)
            async with again_and_again(lambda: kv.enqueue(1, queue="other")):
                error = await asyncio.wait_for(stream.end(), END_TIMEOUT_S)
            assert error.code == "ACCESS_TOKEN_EXPIRED"


async def test_a_lease_lasts_as_long_as_it_was_extended_for_at_any_node(nodes: LocalCluster) -> None:
    one, other = client(nodes), client(nodes, 1)
    listener = await one.listen(credit=3, lease_ms=1_000)
    await one.enqueue(b"here", b"elsewhere")
    here, elsewhere = [message["lease"] for message in await listener.messages(2)]
    assert (await one.settle(extend=[here], lease_ms=60_000))["failed"] == []

    async def extend() -> None:
        assert (await other.settle(extend=[elsewhere], lease_ms=1_000))["failed"] == []

    async with again_and_again(extend):
        await listener.nothing(6.5)  # one lease and 5 s: its node asks the leader about what it has not heard of
        await one.enqueue(b"third")
        assert payload((await listener.messages(1))[0]) == b"third"
        await listener.nothing(0.5)  # neither was called lost, and the third has taken the last place
    assert sorted((await one.settle(ack=[here, elsewhere]))["settled"]) == sorted([here, elsewhere])


async def test_a_listeners_node_shortens_no_lease_that_was_extended_elsewhere(nodes: LocalCluster) -> None:
    one, other = client(nodes, queue="longer"), client(nodes, 1, queue="longer")
    listener = await one.listen(credit=2, lease_ms=1_000)
    await one.enqueue(b"long")
    (lease,) = [message["lease"] for message in await listener.messages(1)]
    assert (await other.settle(extend=[lease], lease_ms=60_000))["failed"] == []
    await listener.nothing(13.0)  # its node asks with the second ping; then one lease more, and a margin
    assert (await other.settle(ack=[lease]))["settled"] == [lease]


async def test_a_node_that_does_not_know_the_listener_asks_how_long_a_lease_is_to_last(nodes: LocalCluster) -> None:
    one, other = client(nodes, queue="default-time"), client(nodes, 1, queue="default-time")
    listener = await one.listen(credit=2, lease_ms=60_000)
    await one.enqueue(b"1", b"2")
    first, second = [message["lease"] for message in await listener.messages(2)]
    done = await other.settle(extend=[first], ack=[second])
    assert (done["settled"], [(each["lease"], each["code"]) for each in done["failed"]]) == (
        [second],  # what else was asked for is done
        [(first, "BAD_LEASE_TIME")],
    )
    assert "`lease_ms`" in done["failed"][0]["message"]
    assert (await other.settle(extend=[first], lease_ms=60_000))["settled"] == [first]
    assert (await one.settle(extend=[first]))["settled"] == [first]
