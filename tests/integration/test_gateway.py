"""Every node is a gateway, and so is a process without data: a failover seen from KV Connect is a pause."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h2.events
import pytest

from cluster.launcher import LocalCluster
from cluster.ports import free_ports
from cluster.processes import Child
from kvnode.proto.deno import datapath_pb2 as wire
from tests.integration.conftest import MakeCluster
from tests.integration.connect_client import ConnectClient, add, create
from tests.integration.test_connect import Remote
from tests.unit.api.connect.support import watch_bytes
from tests.unit.api.http.raw import Http2

TOKEN = "the-gateway-tests-own-token"
CALLERS_COUNT = 8
MAX_PAUSE_S = 5.0
MAX_STOP_S = 3.0  # of a process that serves watches, on two busy cores


class Gateway:
    """`kvnode serve --role gateway` in front of a cluster."""

    def __init__(self, cluster: LocalCluster, folder: Path, token: str = TOKEN) -> None:
        port, ops_port, grpc_port = free_ports(3)
        self.address = f"127.0.0.1:{port}"
        self.grpc_address = f"127.0.0.1:{grpc_port}"
        command = [sys.executable, "-m", "kvnode", "serve", "--role", "gateway", "--name", "gateway"]
        command += ["--peers", ",".join(cluster.addresses), "--connect-listen", self.address]
        command += ["--listen", self.grpc_address]
        command += ["--ops-listen", f"127.0.0.1:{ops_port}", "--access-token", token]
        environment = next(iter(cluster.nodes.values())).child.environment
        self.child = Child(command, folder / "gateway.log", environment)


@pytest.fixture
def nodes(make_cluster: MakeCluster) -> LocalCluster:
    return make_cluster(arguments=["--access-token", TOKEN])


@pytest.fixture
def gateway(nodes: LocalCluster, tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(nodes, tmp_path)
    made.child.start()
    yield made
    made.child.kill()


class Load:
    """Callers that count with sums and append records that must not exist yet, each as fast as it is answered."""

    def __init__(self, address: str) -> None:
        self.clients = [ConnectClient(address, TOKEN) for _ in range(CALLERS_COUNT)]
        self.stopping = False
        self.appended = 0
        self.summed = 0
        self.refused = 0
        self.longest_s = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        for client in self.clients:
            await opened(client)
        self._tasks = [asyncio.ensure_future(self._run(*each)) for each in enumerate(self.clients)]

    async def stop(self) -> None:
        self.stopping = True
        await asyncio.wait_for(asyncio.gather(*self._tasks), 30)

    def close(self) -> None:
        for client in self.clients:
            client.close()

    async def _run(self, number: int, client: ConnectClient) -> None:
        at = 0
        while not self.stopping:
            began = time.monotonic()
            assert (await client.write(add("sum"))).status == wire.AW_SUCCESS
            self.summed += 1
            output = await client.write(create("records", number, at))
            at += 1
            self.appended += output.status == wire.AW_SUCCESS
            self.refused += output.status != wire.AW_SUCCESS
            self.longest_s = max(self.longest_s, time.monotonic() - began)

    @property
    def statuses(self) -> set[int]:
        return {status for client in self.clients for status in client.statuses}

    @property
    def breaks(self) -> int:
        return sum(client.breaks for client in self.clients)


async def opened(client: ConnectClient) -> None:
    """The metadata exchange, once the server is there."""
    for _ in range(100):
        try:
            return await client.open()
        except (OSError, EOFError):
            await asyncio.sleep(0.1)
    raise TimeoutError("nobody serves KV Connect")


async def count_of(client: ConnectClient, *key: str) -> int:
    entry = await client.get(*key)
    return int.from_bytes(entry.value, "little") if entry is not None else 0


async def kill_leader_thrice(cluster: LocalCluster, spare: str = "") -> None:
    for _ in range(3):
        leader = await asyncio.to_thread(cluster.wait_leader)
        if leader == spare:  # the caller's own node must live
            others = [name for name in cluster.nodes if name != spare]
            await asyncio.to_thread(
                cluster.nodes[leader].admin.transfer_leadership, cluster.nodes[others[0]].status().self.node_id
            )
            leader = await asyncio.to_thread(cluster.wait_leader, other_than=spare)
        await asyncio.to_thread(cluster.kill, leader)
        await asyncio.sleep(2.0)
        await asyncio.to_thread(cluster.restart, leader)
        await asyncio.sleep(0.5)


async def assert_exact(load: Load) -> None:
    print(f"{load.summed} sums, longest pause {load.longest_s:.2f} s, statuses {load.statuses}")
    assert load.statuses == {200} and load.breaks == 0
    assert load.refused == 0, "a record was applied twice: its second copy failed its check"
    assert await count_of(load.clients[0], "sum") == load.summed > 100
    assert load.longest_s < MAX_PAUSE_S


async def test_three_dead_leaders_are_three_pauses_through_another_node(nodes: LocalCluster) -> None:
    leader = await asyncio.to_thread(nodes.wait_leader)
    near = next(name for name in nodes.nodes if name != leader)
    load = Load(nodes.nodes[near].connect_address)
    await load.start()
    await kill_leader_thrice(nodes, near)
    await load.stop()
    await assert_exact(load)
    load.close()


async def test_three_dead_leaders_are_three_pauses_through_a_gateway(nodes: LocalCluster, gateway: Gateway) -> None:
    load = Load(gateway.address)
    await load.start()
    await kill_leader_thrice(nodes)
    await load.stop()
    await assert_exact(load)
    load.close()


async def test_a_gateway_that_dies_leaves_a_doubt_that_a_check_dispels(nodes: LocalCluster, gateway: Gateway) -> None:
    load = Load(gateway.address)
    await load.start()
    for _ in range(3):
        await asyncio.sleep(0.7)
        await asyncio.to_thread(gateway.child.kill)
        gateway.child.start()
    await asyncio.sleep(1.0)
    await load.stop()
    assert load.breaks
    counted = await count_of(load.clients[0], "sum")
    assert load.summed <= counted <= load.summed + load.breaks, "a resend counted twice at most; nothing was lost"
    for number in range(CALLERS_COUNT):
        assert await load.clients[0].get("records", number, 0) is not None
    load.close()


async def test_without_a_majority_nothing_is_claimed(nodes: LocalCluster) -> None:
    leader = await asyncio.to_thread(nodes.wait_leader)
    others = [name for name in nodes.nodes if name != leader]
    client = ConnectClient(nodes.nodes[leader].connect_address, TOKEN)
    await opened(client)
    assert (await client.write(add("n"))).status == wire.AW_SUCCESS
    for name in others:
        await asyncio.to_thread(nodes.kill, name)
    waiting = asyncio.ensure_future(client.write(add("n")))
    await asyncio.sleep(4.0)
    assert not waiting.done() and set(client.statuses) == {200}, "it may have been applied: no answer is the only one"
    for name in others:
        await asyncio.to_thread(nodes.restart, name)
    assert (await asyncio.wait_for(waiting, 20)).status == wire.AW_SUCCESS
    assert await count_of(client, "n") == 2
    client.close()


async def test_a_gateway_without_nodes_says_so_and_recovers(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster(start=False, arguments=["--access-token", TOKEN])
    gateway = Gateway(cluster, tmp_path)
    gateway.child.start()
    try:
        await asyncio.sleep(1.0)
        assert gateway.child.running
        await asyncio.to_thread(cluster.start)
        client = ConnectClient(gateway.address, TOKEN)
        await opened(client)
        assert (await client.write(add("n"))).status == wire.AW_SUCCESS
        client.close()
        assert await asyncio.to_thread(gateway.child.terminate, 10), "it did not exit by itself"
        assert gateway.child.exit_status == 0
    finally:
        gateway.child.kill()


async def test_a_gateway_that_stops_refuses_what_no_node_has_and_claims_nothing_of_the_rest(
    nodes: LocalCluster, gateway: Gateway
) -> None:
    clients = [ConnectClient(gateway.address, TOKEN) for _ in range(3)]
    for client in clients:
        await opened(client)
    sent_on, never_sent, reading = clients
    assert (await sent_on.write(add("n"))).status == wire.AW_SUCCESS
    for name in nodes.nodes:
        nodes.pause(name)  # it takes what is sent, and says nothing
    unknown = asyncio.ensure_future(sent_on.once("atomic_write", add("n").SerializeToString()))
    await asyncio.sleep(0.3)
    for name in nodes.nodes:
        await asyncio.to_thread(nodes.kill, name)
    await asyncio.sleep(0.3)
    refused = [
        asyncio.ensure_future(never_sent.once("atomic_write", add("m").SerializeToString())),
        asyncio.ensure_future(reading.once("snapshot_read", wire.SnapshotRead().SerializeToString())),
    ]
    await asyncio.sleep(0.3)
    gateway.child.signal(signal.SIGTERM)
    assert [status for status, _ in await asyncio.wait_for(asyncio.gather(*refused), 4)] == [503, 503]
    with pytest.raises((OSError, EOFError)):
        await asyncio.wait_for(unknown, 10)
    for client in clients:
        client.close()
    await asyncio.to_thread(gateway.child.wait, 15)
    assert gateway.child.exit_status == 0


async def test_watches_over_http_2_end_cleanly_and_at_once_when_their_server_stops(
    nodes: LocalCluster, gateway: Gateway
) -> None:
    leader = await asyncio.to_thread(nodes.wait_leader)
    follower = next(node for name, node in nodes.nodes.items() if name != leader)
    for address, child in ((gateway.address, gateway.child), (follower.connect_address, follower.child)):
        caller = ConnectClient(address, TOKEN)
        await opened(caller)
        caller.close()
        remote = Remote(address, TOKEN)
        await remote.exchange()
        client = await Http2.open(remote.port)
        stream = client.begin(f"{remote.endpoints['strong']}/watch", remote.headers)
        await client.send(stream, watch_bytes(b"w"))
        await client.data_of(stream, 5)
        began = time.monotonic()
        child.signal(signal.SIGTERM)
        while await client.pump():
            pass
        await client.close()
        assert isinstance(client.events[stream][-1], h2.events.StreamEnded)
        await asyncio.to_thread(child.wait, 15)
        assert time.monotonic() - began < MAX_STOP_S
        assert child.exit_status == 0
