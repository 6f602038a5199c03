"""The composition root: how log and state are fitted together at a start, and waiting to be joined."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvnode.api import serve, shutdown
from kvnode.api.serve import _check_place, _fit_together, _look_at_address, _shut_down, _unless_stopped
from kvnode.base import limits
from kvnode.base.errors import ConfigError, StateDamaged
from kvnode.codec.entry import Entry, EntryKind, HardState
from kvnode.codec.membership import Member, MemberRole, Membership, decode_membership, encode_membership
from kvnode.storage.identity import Identity
from kvnode.storage.log import Log
from tests.simulation.disk import SimulatedDisk
from tests.simulation.state import SimulatedState
from tests.unit.node.fakes import HandClock

MEMBERSHIP = encode_membership(Membership((Member(1, "n1", "r", "a", "x:1"),), 1))
IDENTITY = Identity(1, "n1", "r", "a", "cluster", epoch=4, initial_membership=MEMBERSHIP)


async def open_log(disk: SimulatedDisk) -> Log:
    disk.make_directory("data")
    return await Log.open("data/log", disk, segment_bytes=8_192)


@pytest.fixture
def disk() -> SimulatedDisk:
    return SimulatedDisk(random.Random(1))


@pytest.fixture
def state(tmp_path: Path) -> SimulatedState:
    return SimulatedState(tmp_path, clock=HandClock(), latency_s=lambda: 0.0)


def applied(state: SimulatedState, index: int, term: int) -> None:
    state.apply({}, applied_index=index, applied_term=term, log_time_ms=5, epoch=4, membership=MEMBERSHIP)


def entries(first: int, last: int, term: int) -> list[Entry]:
    return [Entry(term, index, EntryKind.DATA, b"") for index in range(first, last + 1)]


async def test_a_new_state_is_founded_durably(disk: SimulatedDisk, state: SimulatedState) -> None:
    log = await open_log(disk)
    await _fit_together(log, state, IDENTITY, 2)  # type: ignore[arg-type]
    assert state.meta.membership == MEMBERSHIP
    assert state.meta.epoch == 1, "it holds nothing yet, whatever the epoch in which the cluster took the node in"
    after_power_loss = state.crash(random.Random(0))
    assert after_power_loss.meta.membership == MEMBERSHIP
    assert (log.first_index(), log.last_index()) == (1, 0)


async def test_without_an_initial_membership_nobody_is_a_member_yet(disk: SimulatedDisk, state: SimulatedState) -> None:
    identity = Identity(1, "n1", "r", "a", "cluster", epoch=1)
    await _fit_together(await open_log(disk), state, identity, 2)  # type: ignore[arg-type]
    assert decode_membership(state.meta.membership) == Membership((), 2)


async def test_a_state_that_fits_its_log_changes_neither(disk: SimulatedDisk, state: SimulatedState) -> None:
    log = await open_log(disk)
    await log.append(entries(1, 9, 3), HardState(3, 1, 9))
    applied(state, 5, 3)
    await _fit_together(log, state, IDENTITY, 2)  # type: ignore[arg-type]
    assert (log.first_index(), log.last_index(), state.meta.applied_index) == (1, 9, 5)


async def test_a_state_behind_its_log_is_damaged(disk: SimulatedDisk, state: SimulatedState) -> None:
    log = await open_log(disk)
    await log.reset(10, 2)
    await log.append(entries(11, 12, 2), HardState(2, 0, 12))
    applied(state, 9, 2)
    with pytest.raises(StateDamaged, match="the state ends at 9 and the log begins at 11"):
        await _fit_together(log, state, IDENTITY, 2)  # type: ignore[arg-type]
    applied(state, 10, 2)
    await _fit_together(log, state, IDENTITY, 2)  # type: ignore[arg-type]
    assert log.last_index() == 12


async def test_a_lost_state_beside_a_compacted_log_is_damaged(disk: SimulatedDisk, state: SimulatedState) -> None:
    log = await open_log(disk)
    await log.reset(10, 2)
    with pytest.raises(StateDamaged):
        await _fit_together(log, state, IDENTITY, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("last", [0, 3, 60])
async def test_a_log_that_does_not_hold_what_is_applied_begins_behind_it(
    disk: SimulatedDisk, state: SimulatedState, last: int
) -> None:
    log = await open_log(disk)
    await log.append(entries(1, last, 1), HardState(7, 2, last))
    applied(state, 50, 6)
    await _fit_together(log, state, IDENTITY, 2)  # type: ignore[arg-type]
    assert (log.first_index(), log.last_index(), log.term(50)) == (51, 50, 6)
    assert (log.hard_state.term, log.hard_state.vote) == (7, 2), "a forgotten vote could be cast again"
    await log.close()
    again = await open_log(disk.crash())
    assert (again.first_index(), again.term(50), again.hard_state.term) == (51, 6, 7)
    assert again.damage is None


async def test_a_damaged_log_is_left_as_it_is(disk: SimulatedDisk, state: SimulatedState) -> None:
    log = await open_log(disk)
    await log.append(entries(1, 3, 1), HardState(1, 0, 3))
    log.damage = "by the test"
    applied(state, 50, 6)
    await _fit_together(log, state, IDENTITY, 2)  # type: ignore[arg-type]
    assert log.last_index() == 3


async def test_a_stop_ends_the_wait_to_be_joined() -> None:
    stopping = asyncio.Event()
    forever: asyncio.Future[Identity] = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(_unless_stopped(forever, stopping))
    await asyncio.sleep(0)
    assert not waiting.done()
    stopping.set()
    assert await waiting is None and forever.cancelled()

    joined: asyncio.Future[Identity] = asyncio.get_running_loop().create_future()
    joined.set_result(IDENTITY)
    assert await _unless_stopped(joined, asyncio.Event()) is IDENTITY


class Steps:
    """What is shut down, in the order in which that was done; a step may fail or hang."""

    def __init__(self, *, failing: str = "", hanging: str = "") -> None:
        self.taken: list[str] = []
        self._failing = failing
        self._hanging = hanging

    def part(self, *names: str) -> Any:
        return SimpleNamespace(**{name.rpartition(".")[2]: partial(self._take, name) for name in names})

    async def _take(self, name: str, *_: object) -> None:
        self.taken.append(name)
        if name == self._failing:
            raise RuntimeError("by the test")
        if name == self._hanging:
            await asyncio.sleep(60)

    async def run(self) -> None:
        node, server = self.part("node.hand_over", "node.stop"), self.part("server.stop")
        parts = self.part("ops.stop"), self.part("connect.stop"), self.part("pushers.close")
        await _shut_down(node, server, *parts)


ORDER = ["node.hand_over", "pushers.close", "connect.stop", "server.stop", "ops.stop", "node.stop"]


async def test_leadership_goes_first_and_the_storage_last() -> None:
    steps = Steps()
    await steps.run()
    assert steps.taken == ORDER


@pytest.mark.parametrize("failing", ORDER[:-1])
async def test_a_step_that_fails_does_not_keep_the_storage_open(failing: str) -> None:
    steps = Steps(failing=failing)
    await steps.run()
    assert steps.taken == ORDER


async def test_an_error_of_the_storage_is_the_processs_own() -> None:
    with pytest.raises(RuntimeError, match="by the test"):
        await Steps(failing="node.stop").run()


@pytest.mark.parametrize("hanging", ORDER)
async def test_a_shutdown_that_hangs_ends_the_process_in_time(hanging: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(shutdown, "end_process", ended.append)
    monkeypatch.setattr(limits, "SHUTDOWN_TIMEOUT_MS", 50)
    await asyncio.wait_for(Steps(hanging=hanging).run(), 2)
    assert ended == [serve.EXIT_FAILED]


def test_a_directory_that_was_moved_says_where_the_cluster_looks_for_it(
    state: SimulatedState, caplog: pytest.LogCaptureFixture
) -> None:
    membership = encode_membership(Membership((Member(1, "n1", "r", "a", "h:1", MemberRole.VOTER),), 1))
    state.apply({}, applied_index=0, applied_term=0, log_time_ms=0, epoch=1, membership=membership)
    _look_at_address(state, Identity(1, "n1", "r", "a", "cluster"), "h:1")  # type: ignore[arg-type]
    _look_at_address(state, Identity(2, "n2", "r", "a", "cluster"), "h:2")  # type: ignore[arg-type]  # no member yet
    assert not caplog.records
    _look_at_address(state, Identity(1, "n1", "r", "a", "cluster"), "h:3")  # type: ignore[arg-type]
    assert "at h:1, and its configuration says h:3" in caplog.text
    assert "kvnode member replace n1 h:3" in caplog.text


@pytest.mark.parametrize("place", [("asia", "a"), ("r", "b")])
def test_a_node_stands_where_the_cluster_has_it(state: SimulatedState, place: tuple[str, str]) -> None:
    member = Member(1, "n1", "r", "a", "h:1", MemberRole.VOTER)
    membership = encode_membership(Membership((member,), 1))
    state.apply({}, applied_index=0, applied_term=0, log_time_ms=0, epoch=1, membership=membership)
    _check_place(state, Identity(1, "n1", "r", "a", "cluster"))  # type: ignore[arg-type]
    _check_place(state, Identity(2, "n2", *place, "cluster"))  # type: ignore[arg-type]  # no member yet
    with pytest.raises(ConfigError, match=rf"knows node 'n1' in r/a, but this node says {place[0]}/{place[1]}"):
        _check_place(state, Identity(1, "n1", *place, "cluster"))  # type: ignore[arg-type]
