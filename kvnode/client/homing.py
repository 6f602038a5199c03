"""The way back: who had to leave the address that it prefers returns when that serves again.

Addresses are given in order of preference, and the first is mostly that of a node nearby. A client that lost it would
else read over an ocean until its process ends, long after the node is back. Now and then those before the one in use
are asked for a strong read: a node that answers one lives and knows a leader. An eventual read would not do, because a
node that is cut off from the leader answers those, and the client left it because of the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

import grpc
import grpc.aio

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.client import rpc
from kvnode.client.channel import dial
from kvnode.client.selection import CallMetadata
from kvnode.codec.keys import encode_key
from kvnode.proto.kv.v1 import kv_pb2

_KEY = encode_key(("",))
_QUESTION = kv_pb2.ReadRequest(
    ranges=[kv_pb2.ReadRange(start=_KEY, end=_KEY + b"\x00", limit=1, keys_only=True)],
    consistency=kv_pb2.CONSISTENCY_STRONG,
)


async def until_one_serves(
    addresses: Sequence[str], credentials: grpc.ChannelCredentials | None, metadata: CallMetadata, random: Random
) -> str:
    """Wait until a node at one of the addresses answers a strong read; returns the first that does.

    Args:
        addresses: host:port each, at least one, the most preferred first.
        credentials, metadata: as for every call of the client.
        random: spreads the questions of many clients over the interval.
    """
    while True:
        await asyncio.sleep(random.uniform(0.5, 1) * limits.CLIENT_RETURN_INTERVAL_MS / 1_000)
        for address in addresses:
            if await _serves(address, credentials, metadata):
                return address


async def _serves(address: str, credentials: grpc.ChannelCredentials | None, metadata: CallMetadata) -> bool:
    try:
        channel = await dial(address, credentials, limits.CLIENT_RETURN_TIMEOUT_MS)
    except KvError:
        return False
    try:
        call = channel.unary_unary(
            rpc.READ.path,
            request_serializer=kv_pb2.ReadRequest.SerializeToString,
            response_deserializer=kv_pb2.ReadResponse.FromString,
        )
        await call(_QUESTION, timeout=limits.CLIENT_RETURN_TIMEOUT_MS / 1_000, metadata=metadata)
    except grpc.aio.AioRpcError:
        return False
    finally:
        await channel.close()
    return True
