"""A disk that fills up, fails, forgets or lies: the node stops with a clear error, the others go on."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.launcher import LocalCluster, NodeSpec
from tests.integration.conftest import MakeCluster
from tests.integration.helpers import (
    a_follower,
    assert_equal_digests,
    end_of_records,
    eventually,
    fill,
    flip,
    get,
    judge,
    newest_segment,
    put,
    under_load,
)

MIB = 1_048_576
TMPFS_BYTES = 96 * MIB
SHIM_SOURCE = Path(__file__).with_name("fsync_fault.c")
SMALL_SEGMENTS = ("--segment-bytes", str(MIB))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small enough to fill."""
    mount = tmp_path / "small"
    mount.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a disk that fills up is a tmpfs of its own, and to mount one needs root: run the tests as root")
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(mount)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this root may mount no tmpfs (a container without CAP_SYS_ADMIN?): {mounted.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    """The preloaded library that makes fsync fail."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("what makes fsync fail is compiled first: on Debian 'apt install gcc libc6-dev'")
    library = tmp_path / "fsync_fault.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM_SOURCE), "-ldl"], check=True)
    return library


def with_special(name: str, **options) -> list[NodeSpec]:
    """Three nodes, one of them with something particular."""
    return [NodeSpec(each, f"dc-{each}", **(options if each == name else {})) for each in "abc"]


async def wait_for_end(cluster: LocalCluster, name: str) -> str:
    """Wait until a node has stopped by itself, with an error; returns its log."""
    child = cluster.nodes[name].child
    await eventually(lambda: not child.running, f"node {name} goes on", 30)
    assert child.exit_status not in (0, None), "it must say by its exit status that something is wrong"
    return child.log_text()


async def test_failing_fsync_of_the_leader(make_cluster: MakeCluster, shim: Path, tmp_path: Path) -> None:
    trigger = tmp_path / "fault"
    environment = (("LD_PRELOAD", str(shim)), ("FSYNC_FAULT", str(trigger)))
    cluster = make_cluster(with_special("a", environment=environment), start=True)
    leader = await asyncio.to_thread(cluster.wait_leader)
    if leader != "a":
        wanted = cluster.nodes["a"].status().self.node_id
        await asyncio.to_thread(cluster.nodes[leader].admin.transfer_leadership, wanted)
    await eventually(lambda: cluster.leader() == "a", "a does not lead")
    async with under_load(cluster) as workload:
        trigger.touch()
        log = await wait_for_end(cluster, "a")
        await asyncio.to_thread(cluster.wait_leader)
        trigger.unlink()
        await asyncio.sleep(1)
        await asyncio.to_thread(cluster.restart, "a")
    await judge(cluster, workload)
    assert "STORAGE_FAILED" in log, log[-2_000:]


async def test_full_disk(make_cluster: MakeCluster, small_disk: Path) -> None:
    cluster = make_cluster(with_special("b", data_dir=small_disk / "data"), arguments=SMALL_SEGMENTS)
    await put(cluster.addresses[0], "before")
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(MIB))
                file.flush()
        except OSError:
            pass
    others = [node.address for node in cluster.nodes.values() if node.name != "b"]
    await fill(others, 8 * MIB)
    log = await wait_for_end(cluster, "b")
    assert "DISK_FULL" in log, log[-2_000:]  # whichever of log and state has met it first
    assert await get(others[0], "before") == b"value"
    filler.unlink()
    await asyncio.to_thread(cluster.restart, "b")
    await assert_equal_digests(cluster)
    assert await get(cluster.nodes["b"].address, "fill-000000", strong=False) is not None


async def test_torn_tail_that_was_never_fsynced_is_cut(cluster: LocalCluster) -> None:
    await put(cluster.addresses[0], "kept")
    victim = a_follower(cluster)
    await asyncio.to_thread(cluster.wait_applied, cluster.nodes[victim].status().commit_index)
    cluster.kill(victim)
    segment = newest_segment(cluster.nodes[victim].data_dir)
    data = bytearray(segment.read_bytes())
    end = end_of_records(data)
    # What a write that was under way when the power went may leave: a record without its end.
    data[end : end + 40] = bytes(range(1, 41))
    segment.write_bytes(data)
    await asyncio.to_thread(cluster.restart, victim)
    await put(cluster.nodes[victim].address, "after")
    await assert_equal_digests(cluster)


async def test_flipped_bit_in_the_fsynced_log_takes_the_node_out(cluster: LocalCluster) -> None:
    for number in range(20):
        await put(cluster.addresses[0], f"key-{number}")
    victim = a_follower(cluster)
    await asyncio.to_thread(cluster.wait_applied, cluster.nodes[victim].status().commit_index)
    cluster.kill(victim)
    flip(newest_segment(cluster.nodes[victim].data_dir))
    cluster.restart(victim, wait=False)
    child = cluster.nodes[victim].child
    await eventually(lambda: "LOG_DAMAGED" in child.log_text() or "damaged" in child.log_text(), child.log_text(), 20)
    assert not cluster.nodes[victim].ready()
    others = [node.address for node in cluster.nodes.values() if node.name != victim]
    await put(others[0], "without it")
    leader = await asyncio.to_thread(cluster.wait_leader)
    assert leader != victim


async def test_flipped_bits_in_the_state_are_seen(cluster: LocalCluster) -> None:
    count = await fill(cluster.addresses, 2 * MIB)
    assert count == 64
    victim = a_follower(cluster)
    await asyncio.to_thread(cluster.wait_applied, cluster.nodes[victim].status().commit_index)
    assert await asyncio.to_thread(cluster.terminate, victim)
    (database,) = (cluster.nodes[victim].data_dir / "state").glob("state-*.db")
    data = bytearray(database.read_bytes())
    # The inside of a value that fill wrote, long enough for an overflow page: elsewhere may be stale copies.
    needle = (7).to_bytes(8, "big") * 400
    position = data.find(needle)
    assert position > 0, "the row is not in the database file"
    data[position + 8] ^= 0x10
    database.write_bytes(data)
    cluster.restart(victim, wait=False)
    node = cluster.nodes[victim]

    def seen() -> bool:
        if not node.child.running:
            return "STATE_DAMAGED" in node.child.log_text()
        if not node.ready():
            return "STATE_DAMAGED" in node.child.log_text()
        answer = node.admin.digest(scrub=True)
        return answer.scrubbed and not answer.matches

    await eventually(seen, "a flipped bit went unnoticed")


async def test_emptied_data_directory_does_not_come_back_under_its_old_id(cluster: LocalCluster) -> None:
    await put(cluster.addresses[0], "kept")
    victim = a_follower(cluster)
    old_id = cluster.nodes[victim].status().self.node_id
    cluster.kill(victim)
    shutil.rmtree(cluster.nodes[victim].data_dir)
    cluster.restart(victim, wait=False)
    node = cluster.nodes[victim]
    await asyncio.sleep(3)
    status = node.status()
    assert status is None or status.self.node_id != old_id
    assert not node.ready(), "it must wait to be added under its new id"
    others = [each.address for each in cluster.nodes.values() if each.name != victim]
    await put(others[0], "without it")
