"""Every kind of file of a node, damaged or gone: an error that says so, or repair; never wrong data; the others go on.

One node is killed; its directory is set aside; then, for each case, it is started on a copy with that damage.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.launcher import LocalCluster, LocalNode
from tests.integration.conftest import MakeCluster
from tests.integration.helpers import a_follower, end_of_records, eventually, fill, flip, put

MIB = 1_048_576
SERVES, LOG_DAMAGED, STATE_DAMAGED = "serves", "LOG_DAMAGED", "STATE_DAMAGED"
IDENTITY_DAMAGED, IDENTITY_MISSING = "IDENTITY_DAMAGED", "IDENTITY_MISSING"


class Case(NamedTuple):
    """What is done to a data directory, and how that may end."""

    name: str
    damage: Callable[[Path], object]
    allowed: tuple[str, ...]


def segments(data_dir: Path) -> list[Path]:
    """Those that hold something, the oldest first."""
    return sorted(path for path in (data_dir / "log").glob("*.log") if end_of_records(path.read_bytes()))


def state(data_dir: Path, suffix: str) -> Path:
    (path,) = (data_dir / "state").glob(f"state-*{suffix}")
    return path


def flip_both_slots(path: Path) -> None:
    flip(path, 8)
    flip(path, 4_096 + 8)


FLIPS = [
    Case("the middle of the newest segment", lambda d: flip(segments(d)[-1]), (LOG_DAMAGED,)),
    Case("the middle of the oldest segment", lambda d: flip(segments(d)[0]), (LOG_DAMAGED,)),
    Case("the head of a segment", lambda d: flip(segments(d)[0], 9), (LOG_DAMAGED,)),
    Case("one slot of the log's mark", lambda d: flip(d / "log" / "mark", 8), (SERVES, LOG_DAMAGED)),
    Case("both slots of the log's mark", lambda d: flip_both_slots(d / "log" / "mark"), (LOG_DAMAGED,)),
    # What SQLite drops behind it had been durable, or the log still has it.
    Case("the state's -wal, early", lambda d: flip(state(d, ".db-wal"), 32 + 24 + 100), (STATE_DAMAGED, SERVES)),
    Case("the state's -wal, its middle", lambda d: flip(state(d, ".db-wal")), (STATE_DAMAGED, SERVES)),
    Case("the header of the state's -wal", lambda d: flip(state(d, ".db-wal"), 17), (STATE_DAMAGED, SERVES)),
    Case("the state's first page", lambda d: flip(state(d, ".db"), 2), (STATE_DAMAGED, SERVES)),
    Case("the state's -shm", lambda d: flip(state(d, ".db-shm"), 20), (SERVES,)),
    Case("the state's mark", lambda d: flip(state(d, ".mark"), 3), (SERVES,)),
    Case("CURRENT", lambda d: flip(d / "state" / "CURRENT", 0), (STATE_DAMAGED,)),
    Case("the checksum of CURRENT", lambda d: flip(d / "state" / "CURRENT", 4), (STATE_DAMAGED,)),
    Case("the identity", lambda d: flip(d / "identity.json"), (IDENTITY_DAMAGED,)),
    Case("the lock", lambda d: (d / "lock").write_bytes(b"garbage"), (SERVES,)),
]
LOSSES = [
    Case("the newest segment", lambda d: segments(d)[-1].unlink(), (LOG_DAMAGED,)),
    Case("the oldest segment", lambda d: segments(d)[0].unlink(), (LOG_DAMAGED,)),
    Case("the log's mark", lambda d: (d / "log" / "mark").unlink(), (LOG_DAMAGED,)),
    Case("the whole log", lambda d: shutil.rmtree(d / "log"), (LOG_DAMAGED,)),
    Case("a segment's bytes", lambda d: segments(d)[0].write_bytes(b""), (LOG_DAMAGED,)),
    Case("the state's -wal", lambda d: state(d, ".db-wal").unlink(), (STATE_DAMAGED, SERVES)),
    Case("the state's -shm", lambda d: state(d, ".db-shm").unlink(), (SERVES,)),
    Case("the state's file", lambda d: state(d, ".db").unlink(), (STATE_DAMAGED,)),
    Case("the state's bytes", lambda d: state(d, ".db").write_bytes(b""), (STATE_DAMAGED,)),
    Case("the state's mark", lambda d: state(d, ".mark").unlink(), (SERVES,)),
    Case("CURRENT", lambda d: (d / "state" / "CURRENT").unlink(), (STATE_DAMAGED,)),
    Case("the bytes of CURRENT", lambda d: (d / "state" / "CURRENT").write_bytes(b""), (STATE_DAMAGED,)),
    # The log reaches back to the beginning: it is all that is needed.
    Case("the whole state", lambda d: shutil.rmtree(d / "state"), (SERVES,)),
    Case("the identity", lambda d: (d / "identity.json").unlink(), (IDENTITY_MISSING,)),
    Case("the bytes of the identity", lambda d: (d / "identity.json").write_bytes(b""), (IDENTITY_DAMAGED,)),
    Case("the lock", lambda d: (d / "lock").unlink(), (SERVES,)),
]


class Ward:
    """A killed node of a running cluster, with a copy of its directory."""

    def __init__(self, cluster: LocalCluster, victim: str) -> None:
        self.cluster = cluster
        self.victim = victim
        self.node: LocalNode = cluster.nodes[victim]
        self.copy = self.node.data_dir.with_name("copy")
        self.others = [node.address for node in cluster.nodes.values() if node.name != victim]
        self.set_aside()

    def set_aside(self) -> None:
        """Kill it; its directory as it is now is what the next case begins with."""
        self.cluster.kill(self.victim)
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.node.data_dir, self.copy)

    async def run(self, case: Case) -> str:
        """Start it with the damage; returns what it came to."""
        shutil.rmtree(self.node.data_dir)
        shutil.copytree(self.copy, self.node.data_dir)
        case.damage(self.node.data_dir)
        log_bytes = len(self.node.child.log_text())
        self.cluster.restart(self.victim, wait=False)
        await put(self.others[0], f"during {case.name}")
        outcome = ""

        def has_outcome() -> bool:
            nonlocal outcome
            outcome = self.outcome(self.node.child.log_text()[log_bytes:])
            return bool(outcome)

        await eventually(has_outcome, f"{case.name}: neither served nor said why not", 15)
        if outcome == SERVES:
            await self.assert_right(case)
            self.set_aside()
        self.cluster.kill(self.victim)
        return outcome

    def outcome(self, said: str) -> str:
        """What it has come to; empty while that is open."""
        assert "Traceback" not in said and "fault of kvnode" not in said, said
        if self.node.child.running:
            ready, why = self.node.http("/readyz")
            damaged = ready == 503 and "the log" in why and LOG_DAMAGED in said
            return SERVES if ready == 200 else LOG_DAMAGED if damaged else ""
        assert self.node.child.exit_status, said
        known = (STATE_DAMAGED, IDENTITY_DAMAGED, IDENTITY_MISSING)
        return next((code for code in known if code in said), f"ended: {said}")

    async def assert_right(self, case: Case) -> None:
        """What it serves is what the others have."""
        leader = self.cluster.wait_leader()
        wanted = self.cluster.nodes[leader].status().commit_index
        await asyncio.to_thread(self.cluster.wait_applied, wanted)
        digests = await asyncio.to_thread(self.cluster.digests)
        assert len(set(digests.values())) == 1 and len(digests) == 3, (case.name, digests)
        scrubbed = await asyncio.to_thread(self.node.admin.digest, scrub=True)
        assert scrubbed.matches, case.name


@pytest.fixture
async def ward(make_cluster: MakeCluster) -> Iterator[Ward]:
    """With a log of several segments, and a -wal in use."""
    cluster = make_cluster(arguments=("--segment-bytes", str(MIB // 4)))
    await fill(cluster.addresses, MIB, value_bytes=8_192)
    victim = a_follower(cluster)
    await asyncio.to_thread(cluster.wait_applied, cluster.nodes[cluster.wait_leader()].status().commit_index)
    return Ward(cluster, victim)


async def assert_cases(ward: Ward, cases: list[Case]) -> None:
    wrong = []
    for case in cases:
        outcome = await ward.run(case)
        if outcome not in case.allowed:
            wrong.append(f"{case.name}: {outcome}, not {' or '.join(case.allowed)}")
    assert not wrong, "\n".join(wrong)
    shutil.rmtree(ward.node.data_dir)
    shutil.copytree(ward.copy, ward.node.data_dir)
    await asyncio.to_thread(ward.cluster.restart, ward.victim)
    await ward.assert_right(Case("none", str, ()))


async def test_a_flipped_bit_in_each_kind_of_file(ward: Ward) -> None:
    await assert_cases(ward, FLIPS)


async def test_each_kind_of_file_lost(ward: Ward) -> None:
    await assert_cases(ward, LOSSES)
