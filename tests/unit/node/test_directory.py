"""The directory on three nodes: every node follows it, changes meet, and what is deleted is removed to the last row."""

from __future__ import annotations

import asyncio
import random
import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.machine.directory import changes
from kvnode.machine.directory.rows import Right, TokenRow
from kvnode.machine.keyspace import DEFAULT_DATABASE, database_prefix
from kvnode.machine.queue.keys import queue_space
from kvnode.node.directory_changes import change_directory
from kvnode.node.directory_keeper import DirectoryKeeper
from kvnode.node.ports import Origin
from kvnode.proto.kv.v1 import kv_pb2
from tests.simulation.cluster import Server
from tests.unit.node.cluster import Trio, on_trio, put, until, write
from tests.unit.node.fakes import HandClock

TIMEOUT_MS = 10_000


async def create(trio: Trio, server: Server, name: str, **more: int) -> int:
    """Create a database through a node; returns its number."""
    values = {"max_value_bytes": 0, "now_ms": 1, **more}
    fresh = str(uuid.uuid4())
    node = trio.node(server)
    await trio.within(
        server, change_directory(node, lambda v: changes.create_database(v, name, uuid=fresh, **values), TIMEOUT_MS)
    )
    found = node.directory.view.find(name)
    assert found is not None and found.uuid == fresh
    return found.number


async def drop(trio: Trio, server: Server, name: str) -> None:
    node = trio.node(server)
    await trio.within(server, change_directory(node, lambda v: changes.delete_database(v, name, now_ms=2), TIMEOUT_MS))


def keep(trio: Trio, server: Server) -> DirectoryKeeper:
    """Run a keeper in the server's process."""
    node = trio.node(server)
    keeper = DirectoryKeeper(node, node.state, node.clock, random.Random(5))
    server.process.spawn(keeper.run())
    return keeper


def keys_of(trio: Trio, server: Server, number: int) -> int:
    start, end = database_prefix(number), database_prefix(number + 1)
    return len(trio.node(server).state.scan_keys(start, end, 100_000))


async def fill(trio: Trio, server: Server, number: int, count: int) -> None:
    """Write so many keys into a database."""
    for start in range(0, count, 500):
        mutations = [put(b"k%06d" % key) for key in range(start, min(count, start + 500))]
        await trio.ask(server, write(*mutations), Origin(b"", 0, number)).write()


async def error_of(trio: Trio, server: Server, number: int) -> kv_pb2.Error:
    return await trio.ask(server, write(put(b"late")), Origin(b"", 0, number)).error()


@on_trio
async def test_a_node_that_is_killed_has_not_forgotten_what_it_refused(trio: Trio) -> None:
    """Alone behind a kill -9 it would take a revoked token for eventual reads, until it hears of a leader."""
    servers = await trio.leader_and_followers()
    await trio.put(servers[0], b"what was before is committed with it")
    await trio.put(servers[0], b"or begins another half second")
    await create(trio, servers[0], "orders")
    for server in servers:
        node = trio.node(server)
        await until(lambda node=node: node.directory.view.find("orders") is not None)
        assert node.state._tables.is_committed, server.member.name


@on_trio
async def test_every_node_sees_a_change_made_through_any(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    assert await create(trio, one, "orders", max_value_bytes=100) == 2
    assert await create(trio, leader, "bills") == 3
    await trio.everywhere()
    views = [trio.node(server).directory.view for server in (leader, one, other)]
    assert len({tuple(sorted(view.databases.values())) for view in views}) == 1
    assert views[2].find("").uuid == views[0].find("default").uuid
    for server in (leader, one, other):
        assert (
            await trio.ask(server, write(put(b"k", bytes(101))), Origin(b"", 0, 2)).error()
        ).code == "VALUE_TOO_LARGE"
        await trio.ask(server, write(put(b"k", bytes(101))), Origin(b"", 0, 3)).write()
    await trio.everywhere()
    assert keys_of(trio, other, 3) == 1


@on_trio
async def test_large_values_go_on_to_the_leader(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    large = bytes(limits.HARD_MAX_VALUE_BYTES)
    number = await create(trio, one, "photos", max_value_bytes=limits.HARD_MAX_VALUE_BYTES)
    for server in (one, leader):
        await trio.ask(server, write(put(b"k", large)), Origin(b"", 0, number)).write()
        refused = await trio.ask(server, write(put(b"k", large + b"!")), Origin(b"", 0, number)).error()
        assert refused.code == "VALUE_TOO_LARGE"


@on_trio
async def test_changes_that_meet_are_judged_one_after_the_other(trio: Trio) -> None:
    servers = await trio.leader_and_followers()
    outcomes: list[str] = []

    async def attempt(server: Server) -> None:
        try:
            await create(trio, server, "same")
            outcomes.append("made")
        except KvError as error:
            outcomes.append(error.code)

    tasks = [servers[number % 3].process.spawn(attempt(servers[number % 3])) for number in range(6)]
    for task in tasks:
        await task
    assert sorted(outcomes) == ["DATABASE_EXISTS"] * 5 + ["made"]


@on_trio
async def test_the_leader_alone_makes_keys_and_a_new_one_does_not_make_another(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    for server in (leader, one, other):
        keep(trio, server)
    await until(lambda: bool(trio.node(one).directory.view.signing_keys), 5.0)
    await trio.everywhere()
    keys = trio.node(other).directory.view.signing_keys
    assert list(keys) == [1] and len(keys[1].secret) == 32
    trio.kill(leader)
    await trio.leading()
    await create(trio, one, "later")
    assert trio.node(one).directory.view.signing_keys == keys


@on_trio
async def test_a_deleted_database_is_removed_in_chunks(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    number = await create(trio, one, "orders")
    await create(trio, one, "next")
    count = 3 * limits.PURGE_CHUNK_KEYS_COUNT + 7
    await fill(trio, one, number, count)
    await fill(trio, one, number + 1, 5)
    await fill(trio, one, DEFAULT_DATABASE, 5)
    await drop(trio, one, "orders")
    assert trio.node(one).directory.view.find("orders") is None
    assert (await error_of(trio, one, number)).code == "DATABASE_NOT_FOUND"
    before = trio.node(leader).applied_index
    keep(trio, leader)
    await until(lambda: not trio.node(leader).directory.view.purges, 60.0)
    await trio.everywhere()
    for server in (leader, one, other):
        assert keys_of(trio, server, number) == 0
        assert keys_of(trio, server, number + 1) == keys_of(trio, server, DEFAULT_DATABASE) == 5
    assert trio.node(leader).applied_index >= before + 4, "one giant entry"
    assert (await error_of(trio, one, number)).code == "DATABASE_NOT_FOUND"
    assert await create(trio, one, "orders") == number + 2


@on_trio
async def test_a_purge_goes_on_under_the_next_leader(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    number = await create(trio, one, "orders")
    await fill(trio, one, number, 15 * limits.PURGE_CHUNK_KEYS_COUNT)
    await drop(trio, one, "orders")
    for server in (leader, one, other):
        keep(trio, server)
    await until(lambda: 0 < keys_of(trio, one, number) < 8 * limits.PURGE_CHUNK_KEYS_COUNT, 60.0)
    trio.crash(leader)
    await trio.leading()
    await until(lambda: not trio.node(one).directory.view.purges, 60.0)
    trio.start(leader)
    await until(lambda: leader.node is not None, 30.0)
    await trio.everywhere()
    assert [keys_of(trio, server, number) for server in (leader, one, other)] == [0, 0, 0]
    assert not trio.node(leader).directory.view.purges, "what it reads at its start is old"


@on_trio
async def test_progress_is_told(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    number = await create(trio, one, "orders")
    chunks = limits.PURGE_PROGRESS_CHUNKS_COUNT + 2
    await fill(trio, one, number, chunks * limits.PURGE_CHUNK_KEYS_COUNT)
    await drop(trio, one, "orders")
    seen: set[int] = set()
    trio.node(one).directory.view.follow(
        lambda: seen.update(p.deleted_keys for p in trio.node(one).directory.view.purges.values())
    )
    keep(trio, leader)
    await until(lambda: not trio.node(one).directory.view.purges, 60.0)
    assert limits.PURGE_PROGRESS_CHUNKS_COUNT * limits.PURGE_CHUNK_KEYS_COUNT in seen


@on_trio
async def test_a_write_that_hears_late_of_the_deletion_leaves_nothing(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    number = await create(trio, one, "orders")
    await fill(trio, one, number, 3)
    keep(trio, leader)
    asked = []

    dropping = asyncio.ensure_future(drop(trio, one, "orders"))
    for key in range(400):
        asked.append(trio.ask(leader, write(put(b"late%d" % key)), Origin(b"", 0, number)))
        asked.append(trio.ask(one, write(put(b"later%d" % key)), Origin(b"", 0, number)))
        await asyncio.sleep(0.002)
    await dropping
    results = [await each.result() for each in asked]
    await until(lambda: not trio.node(leader).directory.view.purges, 60.0)
    await trio.everywhere()
    assert keys_of(trio, one, number) == 0
    codes = {result.error.code for result in results if result.HasField("error")}
    assert codes == {"DATABASE_NOT_FOUND"}
    assert any(result.HasField("write") for result in results)


@on_trio
async def test_a_node_reads_the_directory_at_its_start(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    number = await create(trio, one, "orders")
    row = TokenRow("abcdefgh", bytes(32), "wxyz", number, Right.READ, "", 1, 0, 0, 0)
    await trio.within(leader, change_directory(trio.node(leader), lambda v: changes.create_token(v, row), TIMEOUT_MS))
    await trio.everywhere()
    view = trio.node(one).directory.view
    trio.kill(one)
    trio.start(one)
    await until(lambda: one.node is not None, 30.0)
    again = trio.node(one).directory.view
    assert again is not view
    await trio.everywhere()
    assert (again.databases, again.tokens, again.version) == (view.databases, view.tokens, view.version)


@on_trio
async def test_a_snapshot_brings_the_directory(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    told: list[int] = []
    trio.node(one).directory.view.follow(lambda: told.append(1))
    trio.cut(one)
    number = await create(trio, other, "orders")
    for key in range(80):
        await trio.put(leader, b"%d" % key, bytes(1_000))
    for server in (leader, other):
        await trio.within(server, trio.node(server).snapshot_now())
    assert not told
    trio.heal()
    await until(lambda: trio.node(one).stats.snapshots_installed == 1, 20, "no snapshot was installed")
    assert told
    await trio.everywhere()
    assert trio.node(one).directory.view.databases == trio.node(leader).directory.view.databases
    await fill(trio, one, number, 1)


async def test_the_queues_of_a_deleted_database_go_before_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that runs out may write a dead letter into the database: what is cleared last stays clear."""
    cleared: list[int] = []
    changed: list[object] = []

    async def wrote(request: object, timeout_ms: int, *, database: int) -> None:
        cleared.append(database)

    async def noted(build: object) -> None:
        changed.append(build)

    node: Any = SimpleNamespace(is_leader=True, write=wrote)
    keys: Any = SimpleNamespace(scan_keys=lambda start, end, limit: [])
    keeper = DirectoryKeeper(node, keys, HandClock(), random.Random(5))
    monkeypatch.setattr(keeper, "_change", noted)
    await keeper._purge(7)
    assert cleared == [queue_space(7), 7] and len(changed) == 1
