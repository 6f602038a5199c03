"""What a round trip to the primary region takes beside the calls that are measured: eight bytes over TCP, and back.

The proxy, the loop of the drill and the machine's scheduler add to the delays of the topology, and add to every call
alike. What a call takes beyond a round trip is what the database adds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from cluster.drill.stage import Stage
from cluster.workload import now_ms

_PING = bytes(8)


class RoundTrips:
    """Asks for an echo in the primary region, from each of some regions, at a fixed pace. Use as a context manager.

    Args:
        stage: started.
        regions: whose clients ask.
        per_second: how often.

    Attributes:
        taken_ms: by region.
    """

    def __init__(self, stage: Stage, regions: Iterable[str], per_second: float) -> None:
        self._stage = stage
        self._interval_s = 1 / per_second
        self.taken_ms: dict[str, list[float]] = {region: [] for region in regions}
        self._server: asyncio.Server | None = None
        self._asking: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        home = self._stage.cluster.nodes[self._stage.nodes_in(self._stage.home)[0]].spec.host
        self._server = await asyncio.start_server(_echo, home, 0)
        target = f"{home}:{self._server.sockets[0].getsockname()[1]}"
        for region in self.taken_ms:
            way = await asyncio.to_thread(self._stage.cluster.clients_way_to_address, region, target)
            self._asking.append(asyncio.ensure_future(self._ask(region, way)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        if self._server is not None:
            self._server.close()

    async def _ask(self, region: str, way: str) -> None:
        host, _, port = way.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            await _ping(reader, writer)  # connecting takes a round trip of its own
            loop = asyncio.get_running_loop()
            due = loop.time()
            while True:
                self.taken_ms[region].append(await _ping(reader, writer))
                # From beginning to beginning, as the calls beside it: a busy moment is to count as much here as there.
                due = max(due + self._interval_s, loop.time())
                await asyncio.sleep(due - loop.time())
        finally:
            writer.close()


async def _ping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    began = now_ms()
    writer.write(_PING)
    await reader.readexactly(len(_PING))
    return now_ms() - began


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(len(_PING)):
            writer.write(data)
    writer.close()
