"""A changelog stream over gRPC, on the replica's side (ports.ChangelogStream)."""

from __future__ import annotations

import asyncio

from grpc import aio

from kvnode.node.peer_stream import RawCall
from kvnode.proto.kv.internal.v1 import changelog_pb2

FOLLOW_METHOD = "/kv.internal.v1.Changelog/Follow"
_BROKEN = (aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError)


class GrpcChangelogStream:
    """One stream.

    Args:
        channel: to the source; owned by the caller.
        first: the first request, with its Hello.
    """

    def __init__(self, channel: aio.Channel, first: changelog_pb2.FollowRequest) -> None:
        self._call: RawCall = channel.stream_stream(FOLLOW_METHOD)()
        self._first: changelog_pb2.FollowRequest | None = first

    async def read(self) -> changelog_pb2.FollowResponse | None:
        """See ports.ChangelogStream."""
        try:
            if self._first is not None:
                first, self._first = self._first, None
                await self._call.write(first.SerializeToString())
            raw = await self._call.read()
        except _BROKEN:
            return None
        except asyncio.CancelledError:
            # gRPC raises the same error for a channel that is closed and for a task that is cancelled.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return None
        return None if raw is aio.EOF else changelog_pb2.FollowResponse.FromString(raw)

    async def acknowledge(self, request: changelog_pb2.FollowRequest) -> None:
        """See ports.ChangelogStream."""
        try:
            await self._call.write(request.SerializeToString())
        except _BROKEN:
            return  # the next read says so

    async def close(self) -> None:
        """See ports.ChangelogStream."""
        self._call.cancel()


class NoStream:
    """Stands for a stream to somebody who is not connected."""

    async def read(self) -> changelog_pb2.FollowResponse | None:
        """See ports.ChangelogStream."""
        return None

    async def acknowledge(self, request: changelog_pb2.FollowRequest) -> None:
        """See ports.ChangelogStream."""
        del request

    async def close(self) -> None:
        """See ports.ChangelogStream."""
