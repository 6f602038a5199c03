"""Crons on three real nodes: a leader is killed right before a tick, the next right after; each tick fires once."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

from cluster.launcher import LocalCluster
from kvnode.client.kv import Kv, open_kv
from kvnode.client.queue import QueueMessage
from tests.unit.cli.conftest import Cli

MINUTE_MS = 60_000
COMMANDS_MS = 20_000  # that five commands may take before the tick, on a busy machine
CRONS = ("one", "two", "three")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def sleep_until(at_ms: float) -> None:
    await asyncio.sleep(max(0.0, (at_ms - now_ms()) / 1_000))


async def test_each_tick_is_fired_once_though_leaders_are_killed(cluster: LocalCluster) -> None:
    got: list[QueueMessage] = []

    async def handle(message: QueueMessage) -> None:
        got.append(message)

    async with open_kv(cluster.addresses) as kv:
        tick_ms = ((now_ms() + COMMANDS_MS) // MINUTE_MS + 1) * MINUTE_MS
        for name in CRONS:
            await kv.crons.set(name, "* * * * *", {"from": name}, queue="ticks", allow_overlap=True)
        await _commands(Cli(",".join(cluster.addresses)), kv)
        assert now_ms() < tick_ms - 500, "the commands took longer than they may"
        listening = asyncio.ensure_future(kv.listen_queue(handle, queue="ticks"))
        leader = await asyncio.to_thread(cluster.wait_leader)
        await sleep_until(tick_ms - 150)
        await asyncio.to_thread(cluster.kill, leader)
        second = await asyncio.to_thread(cluster.wait_leader, other_than=leader)
        async with asyncio.timeout(20):
            while len(_ticks(got).get(tick_ms, ())) < len(CRONS):
                await asyncio.sleep(0.01)
        await asyncio.to_thread(cluster.restart, leader)
        await asyncio.to_thread(cluster.kill, second)
        await asyncio.to_thread(cluster.wait_leader, other_than=second)
        await asyncio.sleep(1.0)
        statuses = {status.name: status for status in await kv.crons.status()}
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    late_ms = max(message.enqueued_at_ms - tick_ms for message in got)
    print(f"fired {late_ms} ms after the tick, {len(got)} deliveries")
    for at_ms, fired in _ticks(got).items():
        assert set(fired) == set(CRONS), (at_ms, fired)
        assert set(fired.values()) == {1}, f"the tick {at_ms} was fired twice: {fired}"
    for name in CRONS:
        fired_count = sum(name in fired for fired in _ticks(got).values())
        assert (statuses[name].fired_total, statuses[name].missed_total) == (fired_count, 0)
    assert all(message.value == {"from": message.cron} for message in got)


def _ticks(got: list[QueueMessage]) -> dict[int, Counter[str]]:
    """For each tick, how many different messages each cron made; a message that came twice is one."""
    made = {(message.id, message.scheduled_at_ms, message.cron) for message in got}
    ticks: dict[int, Counter[str]] = {}
    for _, at_ms, cron in sorted(made):
        ticks.setdefault(at_ms, Counter())[cron] += 1
    return ticks or {0: Counter()}


async def _commands(cli: Cli, kv: Kv) -> None:
    """What `kvnode cron` does, while there is time before the tick."""
    made = await cli("cron", "create", "never mind", "0 0 1 JAN *", '{"a": 1}', "--queue", "other", "-o", "json")
    assert (made.status, made.json["name"]) == (0, "never mind"), made.err
    again = await cli("cron", "create", "never mind", "0 0 1 JAN *")
    assert (again.status, "CRON_EXISTS" in again.err) == (2, True)
    shown = await cli("cron", "show", "never mind", "-o", "json")
    assert (shown.json["value"], shown.json["next_at_ms"]) == ({"a": 1}, made.json["next_at_ms"])
    listed = await cli("cron", "list", "-o", "json")
    assert {json.loads(line)["name"] for line in listed.out.splitlines()} == {*CRONS, "never mind"}
    assert (await cli("cron", "delete", "never mind")).out == "OK deleted\n"
    gone = await cli("cron", "delete", "never mind")
    assert (gone.status, "CRON_NOT_FOUND" in gone.err) == (6, True)  # as `cron show`
    assert await kv.crons.get("never mind") is None
