"""A watch that moves from node to node does not go back."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from kvnode.base import limits
from kvnode.base.errors import Unavailable
from kvnode.client import open_kv
from kvnode.client.watch_order import WatchOrder
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.client.fake_server import FakeServer, Store

BEHIND_S = limits.CLIENT_WATCH_BEHIND_MS / 1_000
GOES_BACK_S = limits.CLIENT_WATCH_GOES_BACK_MS / 1_000


def frame(stamp: int, *changed: int | None, resync: bool = False, names: str = "ab") -> kv_pb2.WatchResponse:
    """A state of keys a and b; None = as before."""
    response = kv_pb2.WatchResponse(versionstamp=stamp.to_bytes(10, "big"), resync=resync)
    for name, value in zip(names, changed, strict=False):
        key = response.keys.add(key=name.encode(), changed=value is not None)
        if value is not None:
            key.entry.value = b"%d" % value
    return response


def values(response: kv_pb2.WatchResponse | None) -> list[bytes]:
    assert response is not None
    return [key.entry.value if key.changed else b"-" for key in response.keys]


def test_what_is_older_than_what_was_shown_is_gathered_until_it_comes_there() -> None:
    order = WatchOrder(of_keys=True)
    order.begin()
    assert values(order.take(frame(5, 50, 51), 0.0)) == [b"50", b"51"]
    order.begin()
    assert order.take(frame(3, 30, 31), 1.0) is None
    assert order.take(frame(4, 40, None), 1.1) is None
    assert values(order.take(frame(6, None, 61), 1.2)) == [b"40", b"61"], "one frame, with all that changed"
    assert values(order.take(frame(7, 70, None), 1.3)) == [b"70", b"-"], "from here on as they come"


def test_the_same_state_again_is_shown() -> None:
    order = WatchOrder(of_keys=True)
    order.take(frame(5, 50, 51), 0.0)
    order.begin()
    assert values(order.take(frame(5, 50, 51), 1.0)) == [b"50", b"51"]


def test_a_range_is_still_to_be_read_anew_and_names_what_changed() -> None:
    order = WatchOrder(of_keys=False)
    order.take(frame(5, resync=True), 0.0)
    order.begin()
    assert order.take(frame(3, resync=True), 1.0) is None
    assert order.take(frame(4, 41, names="x"), 1.1) is None
    shown = order.take(frame(6, 61, 62, names="xy"), 1.2)
    assert shown is not None and shown.resync and values(shown) == [b"61", b"62"]
    order.begin()
    assert order.take(frame(2, 1, names="q"), 2.0) is None
    dropped = order.take(frame(8, resync=True), 2.1)
    assert dropped is not None and dropped.resync and not dropped.keys


def test_who_stays_behind_is_left_and_where_nobody_is_further_the_watch_goes_back() -> None:
    order = WatchOrder(of_keys=True)
    order.take(frame(9, 90, 91), 0.0)
    order.begin()
    assert order.take(frame(3, 30, 31), 1.0) is None
    assert order.release(1.0 + BEHIND_S - 0.1) is None
    with pytest.raises(Unavailable, match="behind what the watch has shown"):
        order.release(1.0 + BEHIND_S)
    order.begin()
    assert order.take(frame(3, 30, 31), 7.0) is None, "the next one is no further"
    assert values(order.release(1.0 + GOES_BACK_S)) == [b"30", b"31"]
    assert order.release(60.0) is None
    assert values(order.take(frame(4, 40, None), 61.0)) == [b"40", b"-"]


async def test_a_watch_of_another_node_that_is_behind_waits_for_it() -> None:
    ahead, behind = Store(), Store()
    async with (
        FakeServer(ahead) as one,
        FakeServer(behind) as two,
        open_kv([one.address], random=Random(1)) as first,
        open_kv([two.address], random=Random(1)) as second,
        open_kv([one.address, two.address], random=Random(1)) as kv,
    ):
        for number in range(3):
            await first.set(("a",), number)
        await second.set(("a",), 0)
        watch = kv.watch([("a",)], consistency="eventual")
        assert (await anext(watch))[0].value == 2
        await one.stop()
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0.5)
        await second.set(("a",), 1)
        await asyncio.sleep(0.3)
        assert not waiting.done(), "it went back"
        await second.set(("a",), 2)
        await second.set(("a",), 3)
        assert (await asyncio.wait_for(waiting, 10))[0].value in (2, 3)
        await watch.aclose()
