"""How late delayed messages come, and what those that wait cost in memory.

A Python client is enough here: a hundred messages a second are no load. Lateness is counted from the moment that the
producer meant, its clock before the enqueue plus the delay, so it holds the commit of the enqueue if that outlasts the
delay, the claim, and the way to the consumer.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

from bench.build import LOADGEN
from bench.kvnode import KvnodeGroup
from cluster.processes import resident_bytes
from kvnode.client import Kv, open_kv

QUEUE = "bench"
MIN_DELAY_MS, MAX_DELAY_MS = 300, 3_000
RATE_PER_SECOND = 100
RECEIVE_TIMEOUT_S = 60.0
SETTLE_S = 5.0


async def lateness(addresses: list[str], count: int) -> dict[str, Any]:
    """Of `count` messages with random delays, in milliseconds: quantiles."""
    async with open_kv(addresses) as kv:
        late: list[float] = []
        receiving = asyncio.ensure_future(_receive(kv, count, late))
        begun_at = time.monotonic()
        for number in range(count):
            await asyncio.sleep(max(0.0, begun_at + number / RATE_PER_SECOND - time.monotonic()))
            delay_ms = random.randint(MIN_DELAY_MS, MAX_DELAY_MS)
            await kv.enqueue({"due_ms": time.time() * 1000 + delay_ms}, queue=QUEUE, delay=delay_ms)
        async with asyncio.timeout(RECEIVE_TIMEOUT_S):
            await receiving
    late.sort()
    at = {"p50": 0.50, "p90": 0.90, "p99": 0.99}
    found = {f"{name}_ms": late[min(count - 1, int(count * share))] for name, share in at.items()}
    return {"messages": count, **found, "max_ms": late[-1], "min_ms": late[0]}


async def _receive(kv: Kv, count: int, late: list[float]) -> None:
    """No message waits here for the ack of the one before: that would be counted as late."""
    async with kv.messages(QUEUE, concurrency=100) as messages, asyncio.TaskGroup() as acks:
        async for message in messages:
            value = message.value
            assert isinstance(value, dict)
            late.append(time.time() * 1000 - value["due_ms"])
            acks.create_task(message.ack())
            if len(late) == count:
                break


def memory(group: KvnodeGroup) -> list[dict[str, int]]:
    """Of each node."""
    both = [resident_bytes(pid) for pid in group.pids]
    return [{"resident_bytes": resident, "anonymous_bytes": anonymous} for resident, anonymous in both]


def load_command(endpoint: str, count: int, payload_bytes: int) -> list[str]:
    """Enqueues `count` messages that fall due in a day and later."""
    command = [str(LOADGEN), "-system", "kvnode", "-transport", "session", "-endpoint", endpoint, "-modes", "delayed"]
    return [*command, "-keys", str(count), "-value-bytes", str(payload_bytes)]


async def allow(addresses: list[str], count: int) -> None:
    """Raise the queue's bound."""
    async with open_kv(addresses) as kv:
        await kv.queues.configure(QUEUE, max_messages=count)


def state_bytes(folder: Path) -> int:
    """Of all files of all nodes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
