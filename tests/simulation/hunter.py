"""A nemesis that hits leaders in the first moments of their term, and brings them back when others have led.

Most of what Raft's proof has to exclude happens there: an entry that only its leader holds, an old entry on a
majority whose leader dies before its own no-op follows, a log with a higher term that comes back (Ongaro and
Ousterhout, "In Search of an Understandable Consensus Algorithm", 2014, figure 8). A nemesis that strikes at any time
meets such a moment once in thousands of seeds.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation.cluster import ELECTION_TICKS, Cluster, Server
from tests.simulation.loop import SimulatedLoop

SPARED = 0.25  # of the new leaders: else nothing would ever be committed


class Hunter:
    """Strikes whenever a term's leader first speaks.

    Args:
        tasks: where the strikes under way are kept, for whoever ends them.
        done: the log of what befell the cluster.
    """

    def __init__(
        self,
        loop: SimulatedLoop,
        cluster: Cluster,
        random_source: random.Random,
        tasks: list[asyncio.Task[None]],
        done: list[str],
    ) -> None:
        self._loop = loop
        self._cluster = cluster
        self._random = random_source
        tuning = cluster.tuning
        self._moment_s = (2 * tuning.latency_ms[1] + 4) / 1000  # about an entry's way to a follower's disk and back
        self._election_s = tuning.tick_ms * ELECTION_TICKS / 1000
        self._tasks = tasks
        self._done = done
        self._down: list[Server] = []
        self._context = contextvars.copy_context()  # outside of all processes
        self.active = True

    def on_leader(self, term: int, node_id: int) -> None:
        """A node speaks as the leader of a term; called before its first message leaves."""
        if not self.active or self._random.random() < SPARED:
            return
        draw = self._random
        delay_s = draw.choice((0.0, draw.uniform(0, self._moment_s), draw.uniform(0, 6 * self._moment_s)))
        server = self._cluster.servers[node_id]
        strike = draw.choice((self._crash, self._kill, self._mute, self._mute, self._deafen, self._freeze))
        if strike == self._mute and draw.random() < 0.7:
            self._cluster.network.cuts |= self._links(server)  # not even its first word is heard
            delay_s = 0.0
        self._loop.call_later(delay_s, self._begin, term, server, strike, context=self._context)

    def _begin(self, term: int, server: Server, strike: Callable[[Server], Coroutine[Any, Any, None]]) -> None:
        if self.active and server.serving:
            self._done.append(f"{self._loop.time():.3f} leader of term {term}: {strike.__name__} {server.member.name}")
            self._tasks.append(self._loop.create_task(strike(server)))

    def _links(self, server: Server, *, inward: bool = False) -> set[tuple[int, int]]:
        own = server.member.node_id
        others = [node_id for node_id in self._cluster.servers if node_id != own]
        return {(other, own) if inward else (own, other) for other in others}

    async def _away(self) -> None:
        """For as long as another takes to be elected, or much longer."""
        await asyncio.sleep(self._random.choice((0.2, 1.5, 4.0)) * self._random.uniform(0.5, 1.5) * self._election_s)

    async def _crash(self, server: Server) -> None:
        self._cluster.crash(server)
        await self._return(server)

    async def _kill(self, server: Server) -> None:
        self._cluster.kill(server)
        await self._return(server)

    async def _return(self, server: Server) -> None:
        """It comes back after a while; or with the next victim's fall, when it was the last but one."""
        self._cluster.network.cuts -= self._links(server)
        self._down.append(server)
        if len(self._down) > 1:
            self._revive(self._down[0])
        await self._away()
        self._revive(server)

    def _revive(self, server: Server) -> None:
        if server in self._down:
            self._down.remove(server)
        if not server.running:
            self._cluster.start(server)

    async def _mute(self, server: Server) -> None:
        """It writes what nobody hears; then it dies, or is heard again."""
        links = self._links(server)
        self._cluster.network.cuts |= links
        await asyncio.sleep(self._random.uniform(0.5, 10) * self._moment_s)
        if self._random.random() < 0.7 and server.serving:
            await self._kill(server)
        else:
            await self._away()
            self._cluster.network.cuts -= links

    async def _deafen(self, server: Server) -> None:
        links = self._links(server, inward=True)
        self._cluster.network.cuts |= links
        await self._away()
        self._cluster.network.cuts -= links

    async def _freeze(self, server: Server) -> None:
        process = server.process
        if process.frozen:
            return
        process.freeze()
        try:
            await self._away()
        finally:
            if not process.dead and process.frozen:
                process.thaw()
