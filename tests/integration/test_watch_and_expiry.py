"""Watches and expiry of the native API on three real nodes: through a dead leader, and at the same moment for all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from cluster.launcher import LocalCluster
from kvnode.client import Kv, open_kv
from kvnode.client.watch import KeysWatch
from tests.integration.helpers import a_follower

EXPIRE_IN_MS = 1_500
MAX_LATE_MS = 2_500  # some 20 ms on a machine with nothing else to do; Deno's own file takes up to a minute
MAX_EARLY_MS = 5  # two readings of one machine's clock


class Seen:
    """What a watch of one key has shown last."""

    def __init__(self, watch: KeysWatch) -> None:
        self.value: object = None
        self.times_ms: list[float] = []
        self._watch = watch
        self._task = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        async for (entry,) in self._watch:
            self.value = entry.value if entry.exists else None
            self.times_ms.append(time.time() * 1_000)

    async def until(self, value: object, timeout_s: float = 15) -> None:
        async with asyncio.timeout(timeout_s):
            while self.value != value or not self.times_ms:
                assert not self._task.done(), self._task.exception()
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._watch.aclose()


async def test_watches_survive_their_leader_and_their_node(cluster: LocalCluster) -> None:
    leader = await asyncio.to_thread(cluster.wait_leader)
    follower = a_follower(cluster)
    first = {"leader": leader, "follower": follower}
    async with open_kv(cluster.addresses, timeout_ms=20_000) as writer:
        clients, watches = [], []
        for name in first.values():  # prefers that node
            addresses = [
                cluster.nodes[name].address,
                *(a for a in cluster.addresses if a != cluster.nodes[name].address),
            ]
            client = open_kv(addresses)
            clients.append(client)
            watches.append(Seen(client.watch([("k",)])))
        alone = open_kv([cluster.nodes[follower].address])  # has nowhere else to go: this node lives
        clients.append(alone)
        watches.append(Seen(alone.watch([("k",)])))
        await writer.set(("k",), 0)
        for watch in watches:
            await watch.until(0)
        for number in (1, 2):
            leader = await asyncio.to_thread(cluster.wait_leader)
            if leader == follower:
                await asyncio.to_thread(cluster.nodes[leader].admin.transfer_leadership)
                leader = await asyncio.to_thread(cluster.wait_leader, other_than=follower)
            await asyncio.to_thread(cluster.kill, leader)
            await writer.set(("k",), number)
            for watch in watches:
                await watch.until(number)
            await asyncio.to_thread(cluster.restart, leader)
        for watch in watches:
            await watch.close()
        for client in clients:
            await client.close()


async def gone(there: Callable[[], Awaitable[bool]]) -> float:
    """When it was first not there after it had been, milliseconds since 1970: an eventual read of a node that has
    not applied the write yet misses a key that has not come, and says nothing about one that goes."""
    while not await there():
        await asyncio.sleep(0.01)
    while await there():
        await asyncio.sleep(0.02)
    return time.time() * 1_000


async def test_an_expiry_is_seen_on_time_by_everybody_and_never_early(cluster: LocalCluster) -> None:
    key = ("short", "lived")
    nodes = [open_kv([address]) for address in cluster.addresses]
    kv = nodes[0]
    watch = Seen(nodes[1].watch([key]))
    began_ms = time.time() * 1_000
    await kv.set(key, "here", expire_in=EXPIRE_IN_MS)
    expires_ms = (began_ms + EXPIRE_IN_MS, time.time() * 1_000 + EXPIRE_IN_MS)  # between these two
    await watch.until("here")

    async def exists(at: Kv, consistency: str) -> bool:
        return (await at.get(key, consistency=consistency)).exists

    async def counted(at: Kv, consistency: str) -> bool:
        return await at.count(prefix=("short",), consistency=consistency) > 0

    async def listed(at: Kv) -> bool:
        return bool([entry async for entry in at.list(prefix=("short",))])

    async def checked() -> bool:
        return not (await kv.atomic().check(key).set(("absent",), 1).commit()).ok

    looks: dict[str, Callable[[], Awaitable[bool]]] = {"check": checked, "list": lambda: listed(kv)}
    for number, node in enumerate(nodes):
        for consistency in ("strong", "eventual"):
            looks[f"get {consistency} {number}"] = lambda node=node, c=consistency: exists(node, c)
            looks[f"count {consistency} {number}"] = lambda node=node, c=consistency: counted(node, c)
    async with asyncio.timeout(30):
        times = dict(zip(looks, await asyncio.gather(*(gone(look) for look in looks.values())), strict=True))
    await watch.until(None)
    times["watch"] = watch.times_ms[-1]
    late = {name: round(at_ms - expires_ms[1]) for name, at_ms in times.items()}
    print("milliseconds after the expiry:", late)
    assert min(times.values()) >= expires_ms[0] - MAX_EARLY_MS, late
    assert max(late.values()) <= MAX_LATE_MS, late
    await watch.close()
    for node in nodes:
        await node.close()
