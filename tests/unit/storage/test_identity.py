"""Whose a data directory is."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any
from zlib import crc32

import pytest

from kvnode.base.errors import ConfigError, StorageFailed
from kvnode.storage.identity import IDENTITY_NAME, DataDirectory, Identity
from tests.simulation.disk import DiskStopped, SimulatedDisk

PATH = "/data"
FILE = f"{PATH}/{IDENTITY_NAME}"


async def read(directory: DataDirectory, seed: int = 5, **changes: str) -> Identity:
    fields = {"name": "n1", "region": "us-east", "dc": "us-east-a"} | changes
    return await directory.identity(**fields, random_source=Random(seed))


@pytest.fixture
def disk() -> SimulatedDisk:
    return SimulatedDisk(Random(1))


async def test_an_identity_is_minted_once_and_comes_back(disk: SimulatedDisk) -> None:
    directory = DataDirectory.open(disk, PATH)
    minted = await read(directory)
    assert 0 < minted.node_id < 1 << 63
    assert minted == Identity(minted.node_id, "n1", "us-east", "us-east-a")
    directory.close()
    again = DataDirectory.open(disk.crash(), PATH)
    assert await read(again, seed=6) == minted


async def test_a_cluster_is_bound_once_with_its_first_membership(disk: SimulatedDisk) -> None:
    directory = DataDirectory.open(disk, PATH)
    bound = await directory.bind(await read(directory), "c1", 3, b"\x00members\xff")
    assert (bound.cluster_id, bound.epoch, bound.initial_membership) == ("c1", 3, b"\x00members\xff")
    assert await directory.bind(bound, "c1", 4, b"") == bound
    with pytest.raises(StorageFailed, match="cluster c1") as caught:
        await directory.bind(bound, "c2", 3, b"")
    assert caught.value.code == "CLUSTER_MISMATCH"
    created = await directory.confirm_storage(bound)
    assert created.storage_created
    assert await read(DataDirectory.open(disk.crash(), PATH)) == created


async def test_a_second_process_is_told_which_directory_and_what_to_do(disk: SimulatedDisk) -> None:
    held = DataDirectory.open(disk, PATH)
    with pytest.raises(StorageFailed, match=r"/data.*--data-dir") as caught:
        DataDirectory.open(disk, PATH)
    assert caught.value.code == "DATA_DIRECTORY_IN_USE"
    held.close()
    DataDirectory.open(disk, PATH).close()


@pytest.mark.parametrize("change", [{"name": "n2"}, {"region": "asia"}, {"dc": "us-east-b"}])
async def test_another_nodes_directory_is_refused(disk: SimulatedDisk, change: dict[str, str]) -> None:
    directory = DataDirectory.open(disk, PATH)
    await read(directory)
    with pytest.raises(ConfigError, match="belongs to node 'n1' in us-east/us-east-a"):
        await read(directory, **change)


async def test_any_flipped_bit_is_a_clear_error(disk: SimulatedDisk) -> None:
    directory = DataDirectory.open(disk, PATH)
    await directory.bind(await read(directory), "c1", 3, b"members")
    size = len(disk.contents(FILE))
    for offset in range(size):
        for bit in range(8):
            disk.flip_bit(FILE, offset, bit)
            with pytest.raises(StorageFailed, match="identity") as caught:
                await read(directory)
            assert caught.value.code == "IDENTITY_DAMAGED"
            disk.flip_bit(FILE, offset, bit)
    assert (await read(directory)).cluster_id == "c1"


@pytest.mark.parametrize("cut", [0, 1, 50, -1])
async def test_a_cut_off_file_is_a_clear_error(disk: SimulatedDisk, cut: int) -> None:
    directory = DataDirectory.open(disk, PATH)
    await read(directory)
    disk.open(FILE).truncate(len(disk.contents(FILE)) + cut if cut < 0 else cut)
    with pytest.raises(StorageFailed, match="damaged"):
        await read(directory)


def rewrite(disk: SimulatedDisk, change: Callable[[dict[str, Any]], object]) -> None:
    """Another program's file: whole, with a checksum that holds."""
    fields = json.loads(disk.contents(FILE).partition(b"\n")[0])
    change(fields)
    body = json.dumps(fields).encode()
    file = disk.open(FILE)
    file.truncate(0)
    file.write(0, b"%s\n%08x\n" % (body, crc32(body)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda fields: fields.update(zone="z1", rack="r1"), "unknown to this version of kvnode: rack, zone"),
        (lambda fields: fields.pop("dc"), "lacks fields that this version of kvnode needs: dc"),
        (lambda fields: fields.update(format=2, zone="z1"), "has format 2; this version of kvnode reads 1"),
        (lambda fields: fields.pop("format"), "has format None; this version of kvnode reads 1"),
    ],
)
async def test_a_file_of_another_version_names_what_is_strange(
    disk: SimulatedDisk, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    directory = DataDirectory.open(disk, PATH)
    await read(directory)
    rewrite(disk, change)
    before = disk.contents(FILE)
    with pytest.raises(StorageFailed, match=FILE) as caught:
        await read(directory)
    assert caught.value.code == "IDENTITY_UNKNOWN_FORMAT" and said in caught.value.message
    assert "version of kvnode" in caught.value.message
    assert disk.contents(FILE) == before


@pytest.mark.parametrize("owned", ["log", "state"])
async def test_data_without_an_identity_is_refused(disk: SimulatedDisk, owned: str) -> None:
    directory = DataDirectory.open(disk, PATH)
    disk.make_directory(f"{PATH}/{owned}")
    disk.open(f"{PATH}/{owned}/file", create=True)
    with pytest.raises(StorageFailed, match=f"holds {owned}/ but no identity.json") as caught:
        await read(directory)
    assert caught.value.code == "IDENTITY_MISSING"
    assert not disk.exists(FILE)


async def test_a_crash_at_any_step_leaves_the_old_identity_or_the_new() -> None:
    for seed in range(60):
        for step in range(1, 12):
            disk = SimulatedDisk(Random(seed))
            directory = DataDirectory.open(disk, PATH)
            minted = await read(directory)
            disk.stop_at = disk.operations_count + step
            try:
                expected = {await directory.bind(minted, "c1", 3, b"members" * 200)}
            except DiskStopped:
                expected = {minted, Identity(minted.node_id, "n1", "us-east", "us-east-a", "c1", 3, b"members" * 200)}
            assert await read(DataDirectory.open(disk.crash(), PATH)) in expected


async def test_a_failing_disk_is_named(disk: SimulatedDisk) -> None:
    directory = DataDirectory.open(disk, PATH)
    disk.fail_next_sync(IDENTITY_NAME)
    with pytest.raises(StorageFailed, match="identity in /data"):
        await read(directory)
    minted = await read(directory)
    disk.fail_next_sync(IDENTITY_NAME)
    with pytest.raises(StorageFailed, match="identity in /data"):
        await directory.bind(minted, "c1", 1, b"")
    assert await read(directory) == minted
