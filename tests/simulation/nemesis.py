"""What befalls a cluster, drawn from the seed.

Each seed enables only some kinds of trouble (swarm testing: Groce and others, "Swarm Testing", ISSTA 2012), because
a run in which everything happens at once seldom gets far enough to show what one kind does.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable

from kvnode.base.errors import KvError
from kvnode.base.limits import MAX_CLOCK_OFFSET_MS
from kvnode.codec.membership import Member, MemberRole
from kvnode.node.node import Node
from tests.simulation.cluster import Cluster, Server
from tests.simulation.hunter import Hunter
from tests.simulation.loop import SimulatedLoop
from tests.simulation.network import Weather

HOUR_MS = 3_600_000.0


class Nemesis:
    """Hurts the cluster until told to stop, then heals everything."""

    def __init__(self, loop: SimulatedLoop, cluster: Cluster, random_source: random.Random) -> None:
        self._loop = loop
        self._cluster = cluster
        self._random = random_source
        self._tasks: list[asyncio.Task[None]] = []
        self._clock_steps_count = 0
        self._skewed: dict[int, float] = {}
        self._stop = False
        self._figure_8: random.Random | None = None
        self.done: list[str] = []
        kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "crash": self._crash,
            "kill": self._kill,
            "crash-all": self._crash_all,
            "freeze": self._freeze,
            "one-way": self._one_way,
            "isolate": self._isolate,
            "partition": self._partition,
            "slow-disk": self._slow_disk,
            "slow-link": self._slow_link,
            "clock": self._clock,
            "transfer": self._transfer,
            "snapshot": self._snapshot,
            "fsync": self._fsync,
            "full": self._full,
            "members": self._members,
        }
        count = random_source.choice((0, 1, 2, 3, 4, 5, 15))
        self._kinds = {name: kinds[name] for name in random_source.sample(list(kinds), count)}
        self.weather = Weather(
            loss=random_source.choice((0.0, 0.0, 0.01, 0.1)),
            doubling=random_source.choice((0.0, 0.02, 0.2)),
            straggling=random_source.choice((0.0, 0.02, 0.2)),
            straggle_ms=random_source.choice((30.0, 800.0, 4_000.0)),
            latency_ms=cluster.tuning.latency_ms,
        )
        own = random.Random(random_source.getrandbits(64))
        self._far = own.choice(list(cluster.servers))
        self._hunter = Hunter(loop, cluster, own, self._tasks, self.done) if cluster.tuning.hunts_leaders else None

    @property
    def kinds(self) -> list[str]:
        """The kinds of trouble that this seed has."""
        return list(self._kinds) if self._figure_8 is None else ["figure-8"]

    def leave_out(self, kind: str) -> None:
        """This kind of trouble does not go with what else the seed does."""
        self._kinds.pop(kind, None)

    def play_figure_8(self, random_source: random.Random) -> None:
        """Instead of all else, let leaders fall before their first entry is everywhere."""
        self._figure_8 = random_source
        self._kinds = {}

    async def run(self, duration_s: float) -> None:
        """Make trouble for `duration_s`, then heal."""
        if self._figure_8 is not None:
            self._tasks.append(self._loop.create_task(self._play_figure_8(self._figure_8), name="figure 8"))
        cluster = self._cluster
        cluster.network.weather = self.weather
        cluster.network.far[self._far] = cluster.tuning.far_factor
        if self._hunter is not None:
            cluster.observer.on_leader = self._hunter.on_leader
        end_s = self._loop.time() + duration_s
        while self._loop.time() < end_s:
            await asyncio.sleep(self._random.uniform(0.2, 2.0))
            if self._kinds:
                name = self._random.choice(list(self._kinds))
                self.done.append(f"{self._loop.time():.2f} {name}")
                cluster.observer.note(f"{name};")
                self._tasks.append(self._loop.create_task(self._attempt(self._kinds[name]), name=name))
        await self._heal()

    async def _attempt(self, kind: Callable[[], Awaitable[None]]) -> None:
        try:
            await kind()
        except KvError:
            pass

    async def _heal(self) -> None:
        cluster = self._cluster
        if self._hunter is not None:
            self._hunter.active = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        cluster.network.weather = Weather()
        cluster.network.cuts.clear()
        cluster.network.slow.clear()
        cluster.network.far.clear()
        cluster.network.mute.clear()
        for server in cluster.servers.values():
            server.disk_factor = 1.0
            server.disk.capacity_bytes = None
            if server.process.frozen:
                server.process.thaw()
            server.clock.step(-self._skewed.pop(server.member.node_id, 0.0))
        for server in cluster.servers.values():
            if not server.running:
                cluster.start(server)

    # Whom.

    def _victim(self) -> Server | None:
        """Mostly the leader: there is the most to break."""
        leader = self._cluster.leader()
        if leader is not None and self._random.random() < 0.5:
            return leader
        serving = self._cluster.serving
        return self._random.choice(serving) if serving else None

    async def _pause(self, low_s: float, high_s: float) -> None:
        await asyncio.sleep(self._random.uniform(low_s, high_s))

    def _revive(self, server: Server) -> None:
        if not server.running:
            self._cluster.start(server)

    # What.

    async def _play_figure_8(self, draw: random.Random) -> None:
        """Raft's figure 8, again and again: a leader falls with entries of its own term on its disk alone; another
        falls with nothing but its no-op; the first leads again, spreads what it had, and falls; the second is back.
        """
        while True:
            first = await self._leader_after(0)
            await asyncio.sleep(draw.uniform(0.0, 0.5))
            network = self._cluster.network
            network.mute.update(self._cluster.servers)  # from here on nobody's entries travel
            await asyncio.sleep(draw.uniform(0.02, 0.2))
            if first.node is None:
                continue
            inherited = first.node.raft.last_index
            cut = self._shut(first)
            second = await self._leader_after(first.node.raft.term)
            cut_second = self._shut(second)
            network.mute.clear()
            network.cuts -= cut - cut_second
            if await self._leads(first):
                await self._until_entry(first, inherited, draw.choice((0.0, 0.0, 0.002, 0.01)))
                cut = self._shut(first)
            else:
                cut = set()
            network.cuts -= cut_second - cut
            await asyncio.sleep(draw.uniform(2.0, 4.0))
            network.cuts -= cut

    async def _leads(self, server: Server) -> bool:
        """Whether it comes to lead anew within 4 s."""
        term = server.node.raft.term if server.node is not None else 0
        for _ in range(4_000):
            if server.node is not None and server.node.is_leader and server.node.raft.term > term:
                return True
            await asyncio.sleep(0.001)
        return False

    async def _leader_after(self, term: int) -> Server:
        """The next leader of a greater term, as soon as there is one; or, after 5 s, whoever serves."""
        for _ in range(5_000):
            leader = self._cluster.leader()
            if leader is not None and leader.node is not None and leader.node.raft.term > term:
                return leader
            await asyncio.sleep(0.001)
        return self._cluster.leader() or next(iter(self._cluster.servers.values()))

    async def _until_entry(self, leader: Server, index: int, more_s: float) -> None:
        """Until a peer of the leader has acknowledged that entry, and a moment more."""
        for _ in range(1_000):
            if leader.node is None or any(peer.match >= index for peer in leader.node.raft.progress()):
                break
            await asyncio.sleep(0.0005)
        await asyncio.sleep(more_s)

    def _shut(self, server: Server) -> set[tuple[int, int]]:
        """Cut a server off; returns what to take back."""
        own = server.member.node_id
        others = {other for other in self._cluster.servers if other != own}
        pairs = {pair for other in others for pair in ((own, other), (other, own))}
        self._cluster.network.cuts |= pairs
        return pairs

    async def _crash(self) -> None:
        server = self._victim()
        if server is not None:
            self._cluster.crash(server)
            await self._pause(0.05, 4.0)
            self._revive(server)

    async def _kill(self) -> None:
        server = self._victim()
        if server is not None:
            self._cluster.kill(server)
            await self._pause(0.05, 2.0)
            self._revive(server)

    async def _crash_all(self) -> None:
        servers = self._cluster.serving
        for server in servers:
            self._cluster.crash(server)
        for server in self._random.sample(servers, len(servers)):
            await self._pause(0.0, 1.0)
            self._revive(server)

    async def _freeze(self) -> None:
        server = self._victim()
        if server is None or server.process.frozen:
            return
        process = server.process
        process.freeze()
        try:
            await self._pause(0.3, 6.0)
        finally:
            if not process.dead and process.frozen:
                process.thaw()

    async def _cut(self, pairs: set[tuple[int, int]], low_s: float, high_s: float) -> None:
        self._cluster.network.cuts |= pairs
        await self._pause(low_s, high_s)
        self._cluster.network.cuts -= pairs

    async def _one_way(self) -> None:
        server = self._victim()
        if server is None:
            return
        own = server.member.node_id
        others = [node_id for node_id in self._cluster.servers if node_id != own]
        if self._random.random() < 0.3:
            others = self._random.sample(others, 1)
        outward = self._random.random() < 0.5
        await self._cut({(own, other) if outward else (other, own) for other in others}, 0.5, 6.0)

    async def _isolate(self) -> None:
        server = self._victim()
        if server is not None:
            own = server.member.node_id
            others = [node_id for node_id in self._cluster.servers if node_id != own]
            await self._cut({pair for other in others for pair in ((own, other), (other, own))}, 0.5, 6.0)

    async def _partition(self) -> None:
        nodes = list(self._cluster.servers)
        self._random.shuffle(nodes)
        at = self._random.randrange(1, len(nodes))
        pairs = {pair for one in nodes[:at] for two in nodes[at:] for pair in ((one, two), (two, one))}
        await self._cut(pairs, 0.5, 5.0)

    async def _slow_disk(self) -> None:
        server = self._victim()
        if server is not None:
            server.disk_factor = self._random.choice((10.0, 100.0, 400.0))
            await self._pause(0.5, 4.0)
            server.disk_factor = 1.0

    async def _slow_link(self) -> None:
        server = self._victim()
        if server is not None:
            self._cluster.network.slow[server.member.node_id] = self._random.choice((20.0, 200.0))
            await self._pause(0.5, 4.0)
            self._cluster.network.slow.pop(server.member.node_id, None)

    async def _clock(self) -> None:
        """At most a minority has a wrong clock at a time, and no two are wrong alike.

        A peer that has just been set right bears witness until it is asked again. A clock that is then wrong by as
        much would be believed, and that one is allowed to: a majority was wrong alike.
        """
        server = self._victim()
        voters = len(self._cluster.initial.voters)
        if server is None or (server.member.node_id not in self._skewed and len(self._skewed) >= (voters - 1) // 2):
            return
        by_ms = self._random.choice((HOUR_MS, -HOUR_MS, 300.0, -300.0, 2_000.0, -2_000.0))
        if abs(by_ms) > MAX_CLOCK_OFFSET_MS:
            by_ms += math.copysign(3 * MAX_CLOCK_OFFSET_MS * self._clock_steps_count, by_ms)
            self._clock_steps_count += 1
        server.clock.step(by_ms)
        self._skewed[server.member.node_id] = self._skewed.get(server.member.node_id, 0.0) + by_ms
        await self._pause(1.0, 5.0)
        server.clock.step(-self._skewed.pop(server.member.node_id, 0.0))

    async def _transfer(self) -> None:
        leader = self._cluster.leader()
        if leader is not None:
            voters = [member.node_id for member in self._cluster.initial.voters]
            to = self._random.choice((0, *voters))
            await self._cluster.administer(leader, lambda node: node.transfer_leadership(to))

    async def _snapshot(self) -> None:
        server = self._victim()
        if server is not None:
            await self._cluster.administer(server, lambda node: node.snapshot_now())

    async def _fsync(self) -> None:
        """A failed fsync ends the process; its disk works again after a restart."""
        server = self._victim()
        if server is not None:
            server.may_fail = True
            server.disk.fail_next_sync()
            await self._pause(0.5, 3.0)
            self._revive(server)

    async def _full(self) -> None:
        server = self._victim()
        if server is not None:
            server.may_fail = True
            server.disk.capacity_bytes = server.disk.used_bytes
            await self._pause(0.5, 4.0)
            server.disk.capacity_bytes = None
            self._revive(server)

    async def _members(self) -> None:
        """Add a learner, promote it, remove somebody; the leader refuses what is not safe."""
        leader = self._cluster.leader()
        if leader is None or leader.node is None:
            return
        members = leader.node.membership.members
        learners = [member for member in members if member.role is MemberRole.LEARNER]
        if learners:
            learner = self._random.choice(learners)
            await self._cluster.administer(leader, lambda node: node.members.promote(learner.node_id))
        elif len(members) - len(leader.node.membership.replicas) < 5 and len(self._cluster.servers) < 9:
            await self._add(leader)
        elif len(members) > 3:
            victim = self._random.choice(members)
            await self._cluster.administer(leader, lambda node: node.members.remove(victim.node_id, force=False))

    async def _add(self, leader: Server) -> None:
        cluster = self._cluster
        node_id = max(cluster.servers) + 1
        dc = self._random.choice([member.dc for member in cluster.initial.voters])
        member = Member(node_id, f"node{node_id}", "r1", dc, f"sim:{node_id}", MemberRole.LEARNER)
        server = cluster.add_server(member)
        server.joined = False
        cluster.start(server)
        await asyncio.sleep(0.01)

        async def add(node: Node) -> None:
            await node.members.add(member)

        await cluster.administer(leader, add)
