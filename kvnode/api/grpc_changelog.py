"""The service kv.internal.v1.Changelog: the serving side of node/changelog."""

from __future__ import annotations

import asyncio

import grpc
from grpc import aio

from kvnode.api.grpc_handlers import Handlers, parse
from kvnode.api.ports import ServedNode
from kvnode.node.changelog.source import Source
from kvnode.proto.kv.internal.v1 import changelog_pb2

SERVICE = "kv.internal.v1.Changelog"


class ChangelogService:
    """Lets replicas follow the node.

    Args:
        node: the node that serves.
    """

    def __init__(self, node: ServedNode) -> None:
        self._node = node

    def handlers(self, build: Handlers) -> dict[str, grpc.RpcMethodHandler]:
        """Method names to handlers."""
        return {"Follow": build.streams(self._follow, lasting=True)}

    async def _follow(self, context: aio.ServicerContext) -> None:
        raw = await context.read()
        if raw is aio.EOF:
            return
        request = parse(changelog_pb2.FollowRequest, raw)
        node = self._node
        refused = node.changelog.refuse(request, node.peers.check_hello(request.hello))
        if refused is not None:
            await context.write(refused.SerializeToString())
            return
        source = node.changelog.open(request)
        loop = asyncio.get_running_loop()
        both = loop.create_task(_write(source, context)), loop.create_task(_read(source, context))
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # First: gRPC cancels a call that its client has left, and any await may end so.
            node.changelog.close(source)
            for one in both:
                one.cancel()
            await asyncio.gather(*both, return_exceptions=True)  # each ends with an error when the server stops


async def _write(source: Source, context: aio.ServicerContext) -> None:
    while True:
        response = await source.next()
        await context.write(response.SerializeToString())
        if response.refused:
            return


async def _read(source: Source, context: aio.ServicerContext) -> None:
    while (raw := await context.read()) is not aio.EOF:
        source.acknowledge(parse(changelog_pb2.FollowRequest, raw))
