"""The operator's port while a node belongs to no cluster yet."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kvnode.api import join
from kvnode.api.self_join import SelfJoin
from kvnode.api.serve import _join_observed, _member
from kvnode.api.tls import grpc_tls
from kvnode.base.config import load_config
from kvnode.codec.membership import Member, Membership, encode_membership
from kvnode.node import peer_calls
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.storage.identity import DataDirectory, Identity
from tests.simulation.disk import SimulatedDisk
from tests.unit.api.serving import until
from tests.unit.api.test_ops import get

NOBODY = "127.0.0.1:1"


class Waiting:
    """A node that waits, as `serve` has it."""

    def __init__(self, member: Member, ops_port: int, joining: asyncio.Task[Identity | None]) -> None:
        self.member = member
        self.ops_port = ops_port
        self.joining = joining

    async def ready(self) -> tuple[int, str]:
        status, _, text = await get(self.ops_port, "/readyz")
        return status, text

    async def says(self, words: str) -> None:
        async with asyncio.timeout(20):
            while words not in (await self.ready())[1]:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def waiting(port: Callable[[], int], path: Path, **settings: Any) -> AsyncIterator[Waiting]:
    ops_port = port()
    listen, ops = f"127.0.0.1:{port()}", f"127.0.0.1:{ops_port}"
    given = {"name": "n1", "dc": "a", "region": "r", "data_dir": str(path), "listen": listen, "ops_listen": ops}
    config = load_config(given | settings, {}).config
    directory = DataDirectory.open(SimulatedDisk(Random(1)), "data")
    identity = await directory.identity(name="n1", region="r", dc="a", random_source=Random(1))
    asking, stopping = SelfJoin(config, _member(config, identity)), asyncio.Event()
    joining = asyncio.ensure_future(
        _join_observed(config, directory, identity, stopping, grpc_tls(config), asking),
    )
    waits = Waiting(_member(config, identity), ops_port, joining)
    try:
        await until(lambda: joining.done() or _is_open(ops_port), 20)
        yield waits
    finally:
        stopping.set()
        await joining
        await asking.stop()


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_who_waits_to_be_adopted_lives_and_says_so(
    unused_tcp_port_factory: Callable[[], int], tmp_path: Path
) -> None:
    async with waiting(unused_tcp_port_factory, tmp_path) as node:
        assert (await get(node.ops_port, "/livez"))[::2] == (200, "ok\n")
        await node.says("to be adopted")
        status, text = await node.ready()
        assert status == 503 and f"kvnode member add {node.member.address}" in text
        assert (await get(node.ops_port, "/metrics"))[0] == 503
        assert (await get(node.ops_port, "/nothing"))[0] == 404
        membership = encode_membership(Membership((node.member,), 1))
        request = peer_pb2.AdoptRequest(cluster_id="c1", epoch=1, node_id=node.member.node_id, membership=membership)
        await peer_calls.adopt(node.member.address, request)
        found = await node.joining
        assert found is not None and found.cluster_id == "c1"
        assert not _is_open(node.ops_port), "the node itself listens there next"


async def test_who_founds_a_cluster_names_the_node_that_it_waits_for(
    unused_tcp_port_factory: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "IDENTIFY_RETRY_S", 0.01)
    async with waiting(unused_tcp_port_factory, tmp_path, bootstrap=True, peers=[NOBODY]) as node:
        await node.says(f"waiting for the node at {NOBODY}")
        assert (await node.ready())[0] == 503


async def test_who_asks_to_be_taken_in_gives_the_last_answer(
    unused_tcp_port_factory: Callable[[], int], tmp_path: Path
) -> None:
    async with waiting(unused_tcp_port_factory, tmp_path, join=[NOBODY]) as node:
        await node.says(f"asking to be taken in, of {NOBODY}; the last answer: ")
