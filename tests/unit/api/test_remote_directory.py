"""What a gateway without data says of the directory that it follows at a node."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from kvnode.api.remote_directory import RemoteDirectory
from kvnode.base import limits
from kvnode.base.errors import Unavailable
from kvnode.proto.kv.v1 import directory_pb2 as pb
from tests.unit.node.fakes import HandClock


class Scripted(RemoteDirectory):
    """Its streams are what `steps` says: each is an attempt that fails, or one that is followed and then breaks; and
    after each so many milliseconds pass."""

    def __init__(self, steps: list[tuple[str, int]]) -> None:
        self.hand = HandClock()
        super().__init__(["127.0.0.1:1"], clock=self.hand)
        self.steps = steps
        self.done = asyncio.Event()

    async def _follow(self, address: str) -> None:
        if not self.steps:
            self.done.set()
            await asyncio.Event().wait()
        step, after_ms = self.steps.pop(0)
        self.hand.pass_ms(after_ms)
        if step == "followed":
            self._take(pb.WatchDirectoryResponse(full=True, cluster_id="c"))
            self._take(pb.WatchDirectoryResponse(ping=True))
            return await self._follow(address)
        raise Unavailable(step, phase="dial")


async def said(
    steps: list[tuple[str, int]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What is logged on the way through the steps."""
    monkeypatch.setattr(limits, "MAX_CLIENT_BACKOFF_MS", 0)
    directory = Scripted(steps)
    with caplog.at_level(logging.INFO, "kvnode.api.remote_directory"):
        running = asyncio.ensure_future(directory.run())
        await asyncio.wait_for(directory.done.wait(), 10)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    return [record.getMessage() for record in caplog.records if record.name == "kvnode.api.remote_directory"]


async def test_an_outage_is_said_once_then_once_a_minute_and_its_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [("followed", 0), *[("nobody listens", 500)] * 300, ("followed", 500)]
    lines = await said(steps, caplog, monkeypatch)
    assert len(lines) == 4, lines
    assert "not followed" in lines[0] and "nobody listens" in lines[0]
    for minutes in (1, 2):
        assert f"{60 * minutes} s" in lines[minutes] and "nobody listens" in lines[minutes]
    assert "followed again at 127.0.0.1:1" in lines[3] and "150.0 s" in lines[3]


async def test_every_outage_is_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [("followed", 0), ("one", 100), ("followed", 100), ("another", 100), ("another", 1)]
    lines = await said(steps, caplog, monkeypatch)
    assert ["one" in lines[0], "again" in lines[1], "another" in lines[2], len(lines)] == [True, True, True, 3], lines


async def test_a_gateway_that_finds_no_node_at_its_start_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = await said([("nobody listens", 1)] * 5 + [("followed", 1)], caplog, monkeypatch)
    assert len(lines) == 2 and "nobody listens" in lines[0] and "followed" in lines[1]


async def test_a_start_without_trouble_says_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await said([("followed", 1)], caplog, monkeypatch) == []
