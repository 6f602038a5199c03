"""A node whose clock is an hour off does not lead, says why, and expires nothing early."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from cluster.launcher import ROOT, NodeSpec
from kvnode.client import open_kv
from tests.integration.conftest import MakeCluster
from tests.integration.helpers import eventually, put

OFFSETS = {"an hour ahead": 3_600, "an hour behind": -3_600}
# Python runs a module of this name at its start. SystemClock reads time_ns; gRPC, whose core reads the machine's clock
# by itself, counts its deadlines by time.time, and must go on to agree with itself. No library has to be installed.
SITE_CUSTOMIZE = """
import os, time

true_ns, offset_ns = time.time_ns, int(os.environ["WALL_CLOCK_OFFSET_S"]) * 1_000_000_000
time.time_ns = lambda: true_ns() + offset_ns
"""


@pytest.mark.parametrize("offset_s", OFFSETS.values(), ids=OFFSETS.keys())
async def test_an_hour_off(make_cluster: MakeCluster, tmp_path: Path, offset_s: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE_CUSTOMIZE)
    environment = (("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}"), ("WALL_CLOCK_OFFSET_S", str(offset_s)))
    specs = [NodeSpec(name, f"dc-{name}", environment=environment if name == "a" else ()) for name in "abc"]
    cluster = make_cluster(specs)
    await eventually(lambda: cluster.leader() not in (None, "a"), "the node with the wrong clock leads")
    wrong = cluster.nodes["a"]

    def says_why() -> bool:
        status = wrong.status()
        return status is not None and any("clock" in problem for problem in status.problems)

    await eventually(says_why, "it does not say that its clock is off")
    async with open_kv(cluster.addresses) as kv:
        await kv.set(("soon",), "here", expire_in=60_000)
        await kv.set(("gone",), "here", expire_in=300)
    # Even if the right ones die one after the other, the wrong one does not take over.
    for name in ("b", "c"):
        cluster.kill(name)
        await asyncio.sleep(2)
        assert cluster.leader() != "a"
        cluster.restart(name)
        await asyncio.to_thread(cluster.wait_leader)
    await put(cluster.addresses[1], "after")
    async with open_kv([wrong.address]) as kv:
        assert (await kv.get(("soon",), consistency="strong")).value == "here"
        assert (await kv.get(("soon",), consistency="eventual")).value == "here"
        assert (await kv.get(("gone",), consistency="strong")).value is None
    status = wrong.status()
    assert abs(status.clock_offset_ms - 1_000 * offset_s) < 5_000
    assert abs(status.log_time_ms - time.time() * 1_000) < 60_000
