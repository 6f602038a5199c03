"""A node that is told to stop under load: over HTTP/2 every request is answered, or said not to have been heard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import h2.events

from cluster.launcher import LocalCluster
from kvnode.api.http.http2_window import MIN_SHARED_BYTES
from kvnode.proto.deno import datapath_pb2 as wire
from tests.integration.connect_client import ConnectClient, add
from tests.integration.test_connect import TOKEN, Remote
from tests.unit.api.http.raw import Http2

AT_ONCE = 48
BEFORE_STOP_COUNT = 600
BODY = add("sum").SerializeToString()


class Adder:
    """Adds to a counter, many requests at a time on one connection, until the server says that it goes."""

    def __init__(self, client: Http2, remote: Remote) -> None:
        self.client = client
        self.path = f"{remote.endpoints['strong']}/atomic_write"
        self.headers = remote.headers | {"content-length": str(len(BODY))}
        self.under_way: set[int] = set()
        self.acknowledged = 0

    def begin(self) -> None:
        stream = self.client.begin(self.path, self.headers)
        self.client.h2.send_data(stream, BODY, end_stream=True)
        self.client.flush()
        self.under_way.add(stream)

    def goaways(self) -> list[h2.events.ConnectionTerminated]:
        return [event for event in self.client.others if isinstance(event, h2.events.ConnectionTerminated)]

    async def run(self, stop: Callable[[], None]) -> None:
        """Until the connection ends; `stop` is called on the way."""
        told = False
        for _ in range(AT_ONCE):
            self.begin()
        while await self.client.pump():
            for stream in [each for each in self.under_way if self.client.ended(each)]:
                await self.take(stream)
                if not self.goaways():
                    self.begin()
            if self.acknowledged >= BEFORE_STOP_COUNT and not told:
                told = True
                stop()

    async def take(self, stream: int) -> None:
        self.under_way.discard(stream)
        answer = await self.client.answer(stream)
        assert answer.status == 200, answer
        # Or its client would have sent it again by now, and it would be done twice.
        assert all(stream <= goaway.last_stream_id for goaway in self.goaways())
        assert wire.AtomicWriteOutput.FromString(answer.body).status == wire.AW_SUCCESS
        self.acknowledged += 1


async def test_a_node_that_stops_answers_what_it_has_begun(make_cluster) -> None:
    cluster: LocalCluster = await asyncio.to_thread(make_cluster, arguments=["--access-token", TOKEN])
    total = 0
    for leads in (False, True):
        leader = await asyncio.to_thread(cluster.wait_leader)
        name = leader if leads else next(each for each in cluster.nodes if each != leader)
        remote = Remote(cluster.nodes[name].connect_address)
        await remote.exchange()
        client = await Http2.open(remote.port)
        client.h2.increment_flow_control_window(MIN_SHARED_BYTES)
        client.flush()
        adder = Adder(client, remote)
        stopping: list[asyncio.Future[bool]] = []
        async with asyncio.timeout(60):
            await adder.run(
                lambda stopping=stopping, name=name: stopping.append(
                    asyncio.ensure_future(asyncio.to_thread(cluster.terminate, name))
                )
            )
            assert await stopping[0], "it had to be killed"
        await client.close()
        assert adder.acknowledged >= BEFORE_STOP_COUNT
        last = min(goaway.last_stream_id for goaway in adder.goaways())
        assert all(stream > last for stream in adder.under_way), "neither answered nor said to be unheard"
        total += adder.acknowledged
        await asyncio.to_thread(cluster.restart, name)
    reader = ConnectClient(next(iter(cluster.nodes.values())).connect_address, TOKEN)
    await reader.open()
    entry = await reader.get("sum")
    reader.close()
    assert entry is not None and int.from_bytes(entry.value, "little") == total
