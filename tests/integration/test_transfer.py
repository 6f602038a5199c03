"""Export and import on three real nodes: both are killed and go on, the leader dies meanwhile, every row arrives."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from cluster.launcher import ROOT, LocalCluster
from kvnode.client import Kv, KvU64, open_kv

ROWS_COUNT = 12_000
DENO_FILE = ROOT / "tests" / "unit" / "client" / "transfer" / "fixtures" / "deno_kv.sqlite"
PER_COMMIT_COUNT = 400
ATTEMPTS_COUNT = 5


def value_of(number: int) -> object:
    """Of each kind in turn."""
    kinds = ({"n": number, "text": "é" * 20}, number.to_bytes(4, "big"), KvU64(number), [None, True, number / 3])
    return kinds[number % len(kinds)]


async def start(cluster: LocalCluster, *arguments: str) -> asyncio.subprocess.Process:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KVNODE_")}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kvnode", *arguments, "--endpoints", ",".join(cluster.addresses), "-o", "json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**clean, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


async def finish(cluster: LocalCluster, *arguments: str) -> dict[str, object]:
    process = await start(cluster, *arguments)
    out, errors = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, errors.decode()
    summary: dict[str, object] = json.loads(out.splitlines()[-1])
    return summary


async def kill_midway(
    cluster: LocalCluster, *arguments: str, file: Path, least_bytes: int, longer: Callable[[], None] = lambda: None
) -> None:
    """Start a command and SIGKILL it when so much stands in a file; if it was over too soon, a longer one."""
    for _ in range(ATTEMPTS_COUNT):
        process = await start(cluster, *arguments)
        while process.returncode is None and (not file.exists() or file.stat().st_size < least_bytes):
            await asyncio.sleep(0.002)
        if process.returncode is None:
            process.kill()
        await process.wait()
        if process.returncode == -9:
            return
        file.unlink(missing_ok=True)
        longer()
    raise AssertionError("it was always over before it could be killed")


async def rows_of(kv: Kv) -> dict[bytes, tuple[bytes, int]]:
    return {entry.encoded_key: (entry.raw, entry.expire_at_ms or 0) async for entry in kv.list(prefix=("rows",))}


async def test_killed_transfers_go_on_through_a_dead_leader(cluster: LocalCluster, tmp_path: Path) -> None:
    file = tmp_path / "rows.ndjson"
    async with open_kv(cluster.addresses, timeout_ms=30_000) as kv:
        for begin in range(0, ROWS_COUNT, PER_COMMIT_COUNT):
            commit = kv.atomic()
            for number in range(begin, begin + PER_COMMIT_COUNT):
                expiry = 3_600_000 if number % 7 == 0 else None
                commit.set(("rows", number), value_of(number), expire_in=expiry)
            assert (await commit.commit()).ok
        before = await rows_of(kv)
    assert len(before) == ROWS_COUNT

    await kill_midway(cluster, "export", str(file), file=file, least_bytes=200_000)
    summary = await finish(cluster, "export", str(file), "--resume")
    lines = file.read_text().splitlines()
    assert len(lines) == len({json.dumps(json.loads(line)["key"]) for line in lines}) == ROWS_COUNT, summary

    await finish(cluster, "database", "create", "copy")
    noted = file.with_name(f"{file.name}.import-progress")

    def longer() -> None:
        """Its place is noted each second, and a fast machine imports all of it in less: the same rows, once again."""
        file.write_text(file.read_text() * 2)

    await kill_midway(cluster, "import", str(file), "--database", "copy", file=noted, least_bytes=1, longer=longer)
    leader = await asyncio.to_thread(cluster.wait_leader)
    resumed = asyncio.ensure_future(finish(cluster, "import", str(file), "--resume", "--database", "copy"))
    await asyncio.sleep(0.5)
    await asyncio.to_thread(cluster.kill, leader)
    await resumed
    await asyncio.to_thread(cluster.restart, leader)
    async with open_kv(cluster.addresses, database="copy", timeout_ms=30_000) as kv:
        assert await rows_of(kv) == before


async def test_the_file_of_a_deno_kv(cluster: LocalCluster) -> None:
    summary = await finish(cluster, "import", "--sqlite", str(DENO_FILE))
    async with open_kv(cluster.addresses) as kv:
        assert await kv.count(prefix=()) == summary["written"] > 0, summary
