"""Changelog streams over the simulated network: in order, held back while the link is cut, ended by a dead peer."""

from __future__ import annotations

import asyncio
from typing import Any

from kvnode.node.changelog.source import Source
from kvnode.proto.kv.internal.v1 import changelog_pb2
from tests.simulation.loop import Process
from tests.simulation.network import Connection, Host, Network

WINDOW_COUNT = 64  # responses that travel and are not read yet; what a real connection's windows hold


class SimulatedFollow:
    """One stream (ports.ChangelogStream), seen from the replica.

    Args:
        peer: the incarnation of the source that is called.
        first: the first request, with its Hello.
    """

    def __init__(self, network: Network, own: Host, peer: Host, first: changelog_pb2.FollowRequest) -> None:
        self._peer = peer
        self._out = Connection(network, own.node_id, peer.process, peer.node_id)
        self._back = Connection(network, peer.node_id, own.process, own.node_id)
        self._arrived: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._under_way = 0
        self._room = asyncio.Event()
        self._source: Source | None = None
        self._pump: asyncio.Task[Any] | None = None
        self._closed = False
        self._out.write(self._serve, first.SerializeToString())
        self._peer_process: Process = peer.process

    async def read(self) -> changelog_pb2.FollowResponse | None:
        """See ports.ChangelogStream."""
        while True:
            try:
                raw = await asyncio.wait_for(self._arrived.get(), 0.25)
            except TimeoutError:
                if self._closed or self._peer_process.dead:
                    return None
                continue
            self._under_way -= 1
            self._room.set()
            return None if raw is None else changelog_pb2.FollowResponse.FromString(raw)

    async def acknowledge(self, request: changelog_pb2.FollowRequest) -> None:
        """See ports.ChangelogStream."""
        self._out.write(self._acknowledged, request.SerializeToString())

    async def close(self) -> None:
        """See ports.ChangelogStream."""
        self._closed = True
        self._out.write(self._end)

    # In the source's process.

    def _serve(self, raw: bytes) -> None:
        request = changelog_pb2.FollowRequest.FromString(raw)
        node: Any = self._peer.node
        if node is None:
            self._send(None)
            return
        refused = node.changelog.refuse(request, node.peers.check_hello(request.hello))
        if refused is not None:
            self._send(refused.SerializeToString())
            return
        self._source = node.changelog.open(request)
        self._pump = self._peer_process.spawn(self._run(self._source), "changelog")

    async def _run(self, source: Source) -> None:
        while True:
            response = await source.next()
            while self._under_way >= WINDOW_COUNT:
                self._room.clear()
                await self._room.wait()
            self._send(response.SerializeToString())
            if response.refused:
                self._send(None)
                return

    def _send(self, raw: bytes | None) -> None:
        self._under_way += 1
        self._back.write(self._arrived.put_nowait, raw)

    def _acknowledged(self, raw: bytes) -> None:
        if self._source is not None:
            self._source.acknowledge(changelog_pb2.FollowRequest.FromString(raw))

    def _end(self) -> None:
        node: Any = self._peer.node
        if self._pump is not None:
            self._pump.cancel()
        if self._source is not None and node is not None:
            node.changelog.close(self._source)
