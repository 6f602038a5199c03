"""Single questions to a node at an address, before there is a stream to it."""

from __future__ import annotations

import grpc
from grpc import aio

from kvnode.base import limits
from kvnode.base.errors import KvError, Unavailable
from kvnode.client.status import ERROR_METADATA_KEY, error_from_proto
from kvnode.node.channels import open_channel
from kvnode.proto.kv.internal.v1 import failover_pb2, peer_pb2
from kvnode.proto.kv.v1 import kv_pb2

IDENTIFY_METHOD = "/kv.internal.v1.Peer/Identify"
FAILOVER_METHOD = "/kv.internal.v1.Failover/Ask"
ADOPT_METHOD = "/kv.internal.v1.Peer/Adopt"


async def identify(address: str, credentials: grpc.ChannelCredentials | None = None) -> peer_pb2.IdentifyResponse:
    """Ask whoever listens there who it is. Raises KvError(code PEER_UNREACHABLE)."""
    reply = await _call(address, credentials, IDENTIFY_METHOD, peer_pb2.IdentifyRequest().SerializeToString())
    return peer_pb2.IdentifyResponse.FromString(reply)


async def adopt(
    address: str, request: peer_pb2.AdoptRequest, credentials: grpc.ChannelCredentials | None = None
) -> peer_pb2.AdoptResponse:
    """Ask an unjoined node to join. Raises KvError: PEER_UNREACHABLE, or what the node answered."""
    return peer_pb2.AdoptResponse.FromString(
        await _call(address, credentials, ADOPT_METHOD, request.SerializeToString())
    )


async def ask_failover(
    address: str,
    request: failover_pb2.FailoverRequest,
    timeout_ms: int,
    credentials: grpc.ChannelCredentials | None = None,
) -> failover_pb2.FailoverResponse:
    """Ask about a failover (node/failover). Raises KvError: PEER_UNREACHABLE, or what the node answered."""
    reply = await _call(address, credentials, FAILOVER_METHOD, request.SerializeToString(), timeout_ms)
    return failover_pb2.FailoverResponse.FromString(reply)


async def _call(
    address: str,
    credentials: grpc.ChannelCredentials | None,
    method: str,
    request: bytes,
    timeout_ms: int = limits.PEER_CALL_TIMEOUT_MS,
) -> bytes:
    async with open_channel(address, credentials) as channel:
        try:
            reply: bytes = await channel.unary_unary(method)(request, timeout=timeout_ms / 1_000)
        except aio.AioRpcError as error:
            raise error_of_call(error, address) from error
    return reply


def error_of_call(error: aio.AioRpcError, address: str) -> KvError:
    """The error that the node itself gave, or PEER_UNREACHABLE when it never came to that."""
    carried = dict(error.trailing_metadata() or ()).get(ERROR_METADATA_KEY)
    if isinstance(carried, bytes):
        return error_from_proto(kv_pb2.Error.FromString(carried), address)
    text = f"{address} could not be reached: {error.code().name}: {error.details()}"
    unreached = Unavailable(text, code="PEER_UNREACHABLE", phase="dial")
    unreached.endpoint = address
    return unreached
