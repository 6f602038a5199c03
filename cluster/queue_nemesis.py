"""What befalls a queue in its drill: the leader is killed, consumers are killed, a data center is cut off."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from cluster.launcher import LocalCluster, NodeSpec
from cluster.namespaces import Namespaces, NamespacesUnavailable
from cluster.queue_consumers import ConsumerProcess

NAMES = ("a", "b", "c")
_POLL_S = 0.1
_READY_TIMEOUT_S = 120.0

Say = Callable[[str], None]


class Times(NamedTuple):
    """When what happens, in seconds; 0 = never.

    Args:
        leader_every: between kills of the leader.
        leader_down: until it is started again.
        consumer_every: between kills of a consumer process, which is started again at once.
        cut_at: when the data center that leads is cut off, and again after as long a time.
        cut_for: how long it is cut off.
    """

    leader_every: float = 10.0
    leader_down: float = 1.0
    consumer_every: float = 7.0
    cut_at: float = 25.0
    cut_for: float = 12.0


class Places:
    """Where the three nodes stand, and how one is cut off from the others.

    With namespaces no packet passes between it and the others, and clients still reach it. Without, it is frozen.
    """

    def __init__(self, namespaces: Namespaces | None, why_not: str = "") -> None:
        self._namespaces = namespaces
        self.how = "network namespaces" if namespaces else f"SIGSTOP, since {why_not}"

    def specs(self) -> list[NodeSpec]:
        """One node a data center."""
        if self._namespaces is None:
            return [NodeSpec(name, f"dc-{name}") for name in NAMES]
        hosts, prefix = self._namespaces.hosts, self._namespaces.prefix
        return [NodeSpec(name, f"dc-{name}", host=hosts[name], prefix=prefix(name)) for name in NAMES]

    def cut(self, cluster: LocalCluster, name: str) -> None:
        """Cut a node off."""
        if self._namespaces is None:
            cluster.pause(name)
            return
        for other in NAMES:
            if other != name:
                self._namespaces.cut(name, other)
                self._namespaces.cut(other, name)

    def heal(self, cluster: LocalCluster, name: str) -> None:
        """Join it again."""
        if self._namespaces is None:
            cluster.resume(name)
        else:
            self._namespaces.heal()


@contextmanager
def places(*, apart: bool = True) -> Iterator[Places]:
    """Namespaces where they can be made and are wanted, otherwise one loopback for all."""
    with contextlib.ExitStack() as stack:
        if not apart:
            yield Places(None, "namespaces were not asked for")
            return
        try:
            made = stack.enter_context(Namespaces(list(NAMES)))
        except NamespacesUnavailable as error:
            yield Places(None, f"network namespaces cannot be made ({error})")
            return
        yield Places(made)


class QueueNemesis:
    """Disturbs until it is stopped, and heals everything then.

    Args:
        cluster: the nodes.
        where: how one is cut off.
        consumers: the processes.
        times: when what happens.
        say: told what happens.
    """

    def __init__(
        self, cluster: LocalCluster, where: Places, consumers: Sequence[ConsumerProcess], times: Times, say: Say
    ) -> None:
        self._cluster = cluster
        self._where = where
        self._consumers = consumers
        self._times = times
        self._say = say
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._cut = ""
        self.leader_kills_count = 0
        self.cuts_count = 0

    @property
    def consumer_kills_count(self) -> int:
        """Consumer processes that were killed."""
        return sum(consumer.kills_count for consumer in self._consumers)

    def start(self) -> None:
        """Begin."""
        times = self._times
        plan = ((times.leader_every, self._kill_leaders), (times.consumer_every, self._kill_consumers))
        for every, disturb in (*plan, (times.cut_at, self._cut_off)):
            if every:
                self._tasks.append(asyncio.ensure_future(disturb()))

    async def stop(self) -> None:
        """No more: what is under way is brought to its end, and then everything runs and is joined.

        Raises:
            ClusterFailed: a node does not come back.
        """
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        await asyncio.to_thread(self._cluster.wait_ready, (), _READY_TIMEOUT_S)

    async def abandon(self) -> None:
        """No more, and nothing is healed: everything is about to be ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _over(self, after_s: float) -> bool:
        """Wait; True when no more is to be disturbed, at once then."""
        try:
            async with asyncio.timeout(after_s):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    async def _kill_leaders(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = self._times.leader_every
        while not await self._over(pause_s):
            begun_at = loop.time()
            victim = await self._leader()
            if victim:
                await asyncio.to_thread(self._cluster.kill, victim)
                self.leader_kills_count += 1
                self._say(f"kill -9 of {victim}, which led")
                await self._over(self._times.leader_down)
                self._cluster.restart(victim, wait=False)
            pause_s = max(0.0, self._times.leader_every - (loop.time() - begun_at))

    async def _kill_consumers(self) -> None:
        for victim in itertools.cycle(self._consumers):
            if await self._over(self._times.consumer_every):
                return
            await asyncio.to_thread(victim.kill)
            self._say(f"kill -9 of the consumers in {victim.name}")
            victim.start()

    async def _cut_off(self) -> None:
        while not await self._over(self._times.cut_at):
            victim = await self._leader()
            if victim:
                self._cut = victim
                self._where.cut(self._cluster, victim)
                self.cuts_count += 1
                self._say(f"data center dc-{victim}, which led, is cut off ({self._where.how})")
                await self._over(self._times.cut_for)
                self._where.heal(self._cluster, victim)
                self._cut = ""
                self._say(f"data center dc-{victim} is joined again")

    async def _leader(self) -> str:
        """Whoever leads those that are not cut off, waited for; "" when it is over meanwhile."""
        while not self._stopping.is_set():
            leader = await asyncio.to_thread(self._cluster.leader)
            if leader and leader != self._cut:
                return leader
            await self._over(_POLL_S)
        return ""
