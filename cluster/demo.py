"""The demo: seven data centers on this machine, real input, a killed leader, every write accounted for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cluster.demo_input import Character, named_characters
from cluster.demo_ledger import Ledger
from cluster.demo_load import Loader, now_ms
from cluster.demo_nodes import NodeSight, NodeWatcher
from cluster.demo_rows import ExpectedRow, expected_rows
from cluster.demo_verify import Findings, verify
from cluster.demo_view import DemoView
from cluster.launcher import LocalNode
from cluster.topology import load_topology
from cluster.wan.cluster import WanCluster
from kvnode.client import Session, open_kv

DEFAULT_CALLERS_COUNT = 512
DEFAULT_OPERATION_TIMEOUT_MS = 60_000
_CAUGHT_UP_TIMEOUT_S = 60.0
_PROGRESS_POLL_S = 0.1
_LOOK_INTERVAL_S = 1.0
_MIN_ROUNDS_COUNT = 8


class DemoOptions(NamedTuple):
    """What a user may choose.

    Args:
        limit_count: load only so many characters; 0 = all.
        callers_count: transactions under way at a time.
        folder: where the data goes; a temporary folder when None.
        keep: leave the cluster up.
    """

    limit_count: int = 0
    callers_count: int = DEFAULT_CALLERS_COUNT
    folder: Path | None = None
    keep: bool = False


@dataclass(slots=True)
class Summary:
    """What a person wants to know at the end; the keys of --json."""

    acknowledged: int = 0
    lost: int = 0
    duplicated: int = 0
    unanswered: int = 0
    refused: int = 0
    transactions_per_second: float = 0.0
    gap_ms: float = 0.0
    killed: str = ""
    leader: str = ""
    applied: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    digests_equal: bool = False
    lag_ms: dict[str, float] = field(default_factory=dict)
    rows_read: int = 0
    seconds: float = 0.0
    ok: bool = False

    def as_json(self) -> dict[str, object]:
        """For --json."""
        values = {name: round(value, 1) if isinstance(value, float) else value for name, value in asdict(self).items()}
        return {**values, "lag_ms": {name: round(value, 1) for name, value in self.lag_ms.items()}}


class Demo:
    """One run. The cluster is the caller's to close."""

    def __init__(self, cluster: WanCluster, options: DemoOptions, view: DemoView) -> None:
        self.cluster = cluster
        self.options = options
        self.view = view
        self.summary = Summary()
        self._home = cluster.names_in(cluster.topology.primary.name)
        self._lags_ms: dict[str, list[float]] = {name: [] for name in cluster.nodes}

    async def run(self) -> Summary:
        """Start, load, kill, go on, restart, verify."""
        started = time.monotonic()
        characters = list(named_characters())
        characters = characters[: self.options.limit_count or len(characters)]
        self.view.starting(self.cluster.topology)
        await asyncio.to_thread(self.cluster.start)
        await self._show_cluster()
        ledger = await self._load(characters)
        await self._catch_up()
        findings = await self._verify(characters, ledger)
        await self._conclude(ledger, findings)
        self.summary.seconds = time.monotonic() - started
        self.view.conclude(self.summary)
        return self.summary

    async def _show_cluster(self) -> None:
        self.summary.leader = await asyncio.to_thread(self.cluster.wait_leader)
        self.view.started(list(self.cluster.nodes.values()), self.summary.leader)

    # Load, with the kill half way.

    async def _load(self, characters: list[Character]) -> Ledger:
        addresses = [self.cluster.nodes[name].address for name in self._home]  # the client is in the primary region
        async with open_kv(addresses, timeout_ms=DEFAULT_OPERATION_TIMEOUT_MS) as kv:
            # Few enough that transactions are still to come when half of a small input is acknowledged.
            callers_count = max(1, min(self.options.callers_count, len(characters) // _MIN_ROUNDS_COUNT))
            loader = Loader(kv, characters, callers_count, lambda: self._kill_leader(loader))
            with self.view.loading(len(characters)):
                async with self._watching(loader.ledger, during_load=True):
                    await loader.run()
                self.view.loaded(loader.ledger)
        self.summary.lag_ms = {name: max(lags) for name, lags in self._lags_ms.items() if lags}
        return loader.ledger

    @asynccontextmanager
    async def _watching(self, ledger: Ledger, *, during_load: bool = False) -> AsyncIterator[None]:
        """Show meanwhile how far the load is and what the nodes do."""
        watchers = [asyncio.ensure_future(self._look(ledger, during_load))]
        if during_load:
            watchers.append(asyncio.ensure_future(self._report_load(ledger)))
        try:
            yield
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

    async def _report_load(self, ledger: Ledger) -> None:
        while True:
            self.view.loaded(ledger)
            await asyncio.sleep(_PROGRESS_POLL_S)

    async def _look(self, ledger: Ledger, during_load: bool) -> None:
        watcher = NodeWatcher(self.cluster.nodes.values(), ledger.timeline)
        while True:
            sights = await watcher.look()
            self.view.seen(sights)
            if during_load and ledger.settled_count:
                self._note_lags(sights)
            await asyncio.sleep(_LOOK_INTERVAL_S)

    def _note_lags(self, sights: list[NodeSight]) -> None:
        for sight in sights:
            if sight.applied:
                self._lags_ms[sight.name].append(sight.lag_ms)

    async def _kill_leader(self, loader: Loader) -> None:
        ledger = loader.ledger
        victim = await asyncio.to_thread(self.cluster.wait_leader)
        ledger.watch_gap(now_ms())
        before = len(ledger.acknowledged)
        await asyncio.to_thread(self.cluster.kill, victim)
        self.summary.killed = victim
        self.view.killed(victim, before)
        successor = await asyncio.to_thread(self.cluster.wait_leader, other_than=victim)
        await loader.next_acknowledgement()  # so that the gap is over and known
        self.summary.leader = successor
        self.view.writes_again(ledger.longest_gap_ms, successor)
        await asyncio.to_thread(self.cluster.restart, victim)
        self.view.restarted(victim)

    # Afterwards.

    async def _catch_up(self) -> None:
        self.summary.leader = await asyncio.to_thread(self.cluster.wait_leader)
        status = await asyncio.to_thread(self.cluster.nodes[self.summary.leader].admin.status)
        await asyncio.to_thread(self.cluster.wait_applied, status.commit_index, _CAUGHT_UP_TIMEOUT_S)

    async def _verify(self, characters: list[Character], ledger: Ledger) -> list[Findings]:
        """All nodes at once: a page from the other side of the world takes its time."""
        expected = expected_rows(characters, ledger.acknowledged)
        with self.view.verifying(2 * len(self.cluster.nodes) * len(expected)):
            async with self._watching(ledger), asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._verify_node(node, expected, ledger.newest, strong=strong))
                    for node in self.cluster.nodes.values()
                    for strong in (True, False)
                ]
        return [task.result() for task in tasks]

    async def _verify_node(
        self, node: LocalNode, expected: Mapping[bytes, ExpectedRow], newest: bytes, *, strong: bool
    ) -> Findings:
        async with Session([node.address]) as session:
            read = partial(session.read, timeout_ms=DEFAULT_OPERATION_TIMEOUT_MS)
            findings = await verify(node.name, read, expected, newest, strong=strong, progress=self.view.verified_rows)
        self.view.verified(findings)
        return findings

    async def _conclude(self, ledger: Ledger, found: list[Findings]) -> None:
        summary = self.summary
        summary.acknowledged = len(ledger.acknowledged)
        summary.unanswered, summary.refused = len(ledger.unanswered), len(ledger.refused)
        summary.lost = len(set[str]().union(*(findings.lost for findings in found)))
        summary.duplicated = max(findings.duplicated_count for findings in found)
        summary.rows_read = sum(findings.rows_count for findings in found)
        summary.transactions_per_second = ledger.per_second()
        summary.gap_ms = ledger.longest_gap_ms
        summary.leader = await asyncio.to_thread(self.cluster.wait_leader)
        digests = await asyncio.to_thread(self.cluster.digests)
        summary.applied = {name: index for name, (index, _) in digests.items()}
        summary.digests = {name: digest for name, (_, digest) in digests.items()}
        complete = len(digests) == len(self.cluster.nodes)
        summary.digests_equal = complete and len(set(digests.values())) == 1
        summary.ok = (
            summary.digests_equal
            and summary.acknowledged > 0
            and not summary.refused
            and all(findings.ok for findings in found)
        )


async def run_demo(options: DemoOptions, view: DemoView) -> Summary:
    """Run the demo; the cluster is gone afterwards unless it is to be kept and all went well to its end."""
    cluster = WanCluster(load_topology(), options.folder)
    kept = False
    try:
        summary = await Demo(cluster, options, view).run()
        kept = options.keep
        if kept:
            pids = [*cluster.pids, cluster.wan.child.pid]
            cluster.release()
            view.kept(list(cluster.nodes.values()), pids, cluster.folder)
        else:
            await asyncio.to_thread(cluster.stop)
        return summary
    finally:
        if not kept:
            cluster.close()
