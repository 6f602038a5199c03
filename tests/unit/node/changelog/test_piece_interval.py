"""How a source spaces what it sends: what comes close together goes together, and nobody who is behind waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from kvnode.base import limits
from kvnode.codec.entry import Entry, EntryKind
from kvnode.node.changelog.pieces import take_entries
from kvnode.node.changelog.source import Source
from kvnode.proto.kv.internal.v1 import changelog_pb2
from tests.unit.node.changelog.test_follow import Peer
from tests.unit.node.changelog.test_held import sources_by
from tests.unit.node.fakes import HandClock

INTERVAL_MS = 60_000  # so long that a test which waited for it would never end


@pytest.fixture(autouse=True)
def _long_interval(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(limits, "CHANGELOG_PIECE_INTERVAL_MS", INTERVAL_MS)
    yield


def opened(peer: Peer, clock: HandClock) -> Source:
    return sources_by(peer, clock).open(changelog_pb2.FollowRequest(region="eu"))


def commit(peer: Peer, *indexes: int, size_bytes: int = 8) -> None:
    peer.commit(*(Entry(3, index, EntryKind.DATA, bytes(size_bytes)) for index in indexes))


async def sent(source: Source) -> list[int]:
    """The indexes of the next piece, which comes without a wait."""
    async with asyncio.timeout(5):
        return [entry.index for entry in take_entries(await source.next()).entries]


async def test_what_comes_close_behind_a_piece_goes_together_in_the_next() -> None:
    peer, clock = Peer(2), HandClock()
    commit(peer, 1)
    source = opened(peer, clock)
    assert await sent(source) == [1]
    waiting = asyncio.ensure_future(source.next())
    for index in (2, 3, 4):
        commit(peer, index)
        source.wake()
        await asyncio.sleep(0)
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert not done, "it went by itself"
    waiting.cancel()
    clock.pass_ms(INTERVAL_MS)
    assert await sent(source) == [2, 3, 4]


async def test_who_writes_less_often_waits_for_nothing() -> None:
    peer, clock = Peer(2), HandClock()
    commit(peer, 1)
    source = opened(peer, clock)
    for index in (2, 3, 4):
        assert await sent(source) == [index - 1]
        clock.pass_ms(INTERVAL_MS)
        commit(peer, index)


async def test_who_is_behind_is_sent_piece_after_piece() -> None:
    peer, clock = Peer(2), HandClock()
    size_bytes = limits.MAX_CHANGELOG_PIECE_BYTES // 2 + 1
    commit(peer, *range(1, 7), size_bytes=size_bytes)
    source = opened(peer, clock)
    found: list[int] = []
    while len(found) < 6:
        found += await sent(source)
    assert found == [1, 2, 3, 4, 5, 6]
