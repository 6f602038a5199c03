"""Sending one snapshot to a peer.

The header names the snapshot; the receiver answers how many bytes of it are already there, and the rest
follows in chunks. A broken transfer starts over with the header and thus resumes. Flow control paces the
chunks, so that one chunk at a time is in memory; they travel on a connection of their own, so that they
do not stand in front of heartbeats.
"""

from __future__ import annotations

import asyncio
import logging

import grpc
from grpc import aio

from kvnode.base import limits
from kvnode.node.channels import open_channel
from kvnode.node.ports import SnapshotSource
from kvnode.proto.kv.internal.v1 import peer_pb2

_log = logging.getLogger(__name__)

INSTALL_SNAPSHOT_METHOD = "/kv.internal.v1.Peer/InstallSnapshot"
_BROKEN = (aio.AioRpcError, asyncio.InvalidStateError, TimeoutError)


async def send_snapshot(
    address: str, credentials: grpc.ChannelCredentials | None, hello: peer_pb2.Hello, source: SnapshotSource
) -> bool:
    """Send `source` to the node at `address`; True once it is installed there.

    A broken transfer is resumed up to MAX_SNAPSHOT_ATTEMPTS_COUNT times; a receiver's refusal is final.
    """
    header = peer_pb2.SnapshotHeader()
    header.CopyFrom(source.header)
    header.hello.CopyFrom(hello)
    async with open_channel(address, credentials) as channel:
        for attempt in range(limits.MAX_SNAPSHOT_ATTEMPTS_COUNT):
            if attempt:
                await asyncio.sleep(limits.MAX_PEER_BACKOFF_MS / 1_000)
            try:
                return await _attempt(channel, header, source)
            except _BROKEN as error:
                _log.warning("snapshot %s to %s broke: %s", header.snapshot_id, address, _text(error))
    return False


async def _attempt(channel: aio.Channel, header: peer_pb2.SnapshotHeader, source: SnapshotSource) -> bool:
    call = channel.stream_stream(INSTALL_SNAPSHOT_METHOD)(wait_for_ready=True)
    try:
        stall_s = limits.SNAPSHOT_STALL_TIMEOUT_MS / 1_000
        async with asyncio.timeout(stall_s):
            await call.write(peer_pb2.SnapshotChunk(header=header).SerializeToString())
            progress = await _progress(call)
        offset = progress.held_bytes
        while not (progress.error or progress.installed):
            data = await source.read(offset, limits.SNAPSHOT_CHUNK_BYTES)
            last = not data or offset + len(data) >= header.size_bytes
            async with asyncio.timeout(stall_s):
                chunk = peer_pb2.SnapshotChunk(offset=offset, data=data, last=last)
                await call.write(chunk.SerializeToString())
            offset += len(data)
            if last:
                await call.done_writing()
                async with asyncio.timeout(limits.MAX_SNAPSHOT_INSTALL_MS / 1_000):
                    progress = await _progress(call)
                break
        if progress.error:
            _log.error("snapshot %s was refused: %s", header.snapshot_id, progress.error)
        return progress.installed
    finally:
        call.cancel()


async def _progress(call: aio.StreamStreamCall) -> peer_pb2.SnapshotProgress:
    """The receiver's next word. Raises AioRpcError or InvalidStateError when the stream ended."""
    raw = await call.read()
    if raw is aio.EOF:
        raise asyncio.InvalidStateError(f"{(await call.code()).name}: {await call.details()}")
    return peer_pb2.SnapshotProgress.FromString(raw)


def _text(error: BaseException) -> str:
    if isinstance(error, aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
