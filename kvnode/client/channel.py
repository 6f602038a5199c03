"""Opening a connection to one endpoint, quickly or with a clear error."""

from __future__ import annotations

import asyncio
from typing import Final

import grpc
import grpc.aio

from kvnode.base import egress, limits
from kvnode.base.errors import InvalidRequest, KvError, Unavailable
from kvnode.client import rpc
from kvnode.client.status import error_from_rpc
from kvnode.client.texts import sendable
from kvnode.proto.kv.v1 import kv_pb2

DEFAULT_PORT: Final = 4510

_OPTIONS: Final = (
    ("grpc.max_send_message_length", limits.MAX_GRPC_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", limits.MAX_GRPC_MESSAGE_BYTES),
    # Each dial is judged by itself: a shared subchannel would bring along the back-off of an earlier one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    # A host that died while nothing was asked of it is found before the next operation waits for it.
    ("grpc.keepalive_time_ms", limits.CLIENT_KEEPALIVE_INTERVAL_MS),
    ("grpc.keepalive_timeout_ms", limits.CLIENT_KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", limits.CLIENT_KEEPALIVE_TIMEOUT_MS),  # the one that counts; its default is 60 s
    ("grpc.http2.max_pings_without_data", 0),
)


def parse_endpoints(endpoints: str | list[str] | tuple[str, ...]) -> list[str]:
    """Addresses as host:port, in the order given.

    Args:
        endpoints: one string, its addresses separated by commas, or a list of them; the port may be left out.

    Raises:
        InvalidRequest: there is none, or one is not an address.
    """
    given = endpoints.split(",") if isinstance(endpoints, str) else endpoints
    addresses = [_parse_address(text.strip()) for text in given if text.strip()]
    if not addresses:
        raise InvalidRequest("ENDPOINT_INVALID", "no endpoint was given; name at least one as host:port", phase="dial")
    return addresses


def _parse_address(text: str) -> str:
    sendable("an endpoint", text, "ENDPOINT_INVALID")
    if "/" in text:
        raise InvalidRequest(
            "ENDPOINT_INVALID", f"'{text}' is not an endpoint; write host:port, without a scheme or path", phase="dial"
        )
    host, separator, port = text.rpartition(":")
    if not separator or text.endswith("]"):
        return f"{text}:{DEFAULT_PORT}"
    if not port.isascii() or not port.isdigit() or not host or not 0 < int(port) < 65_536:
        raise InvalidRequest("ENDPOINT_INVALID", f"'{text}' is not an endpoint; write host:port", phase="dial")
    return text


async def dial(
    address: str, credentials: grpc.ChannelCredentials | None = None, timeout_ms: int = limits.CLIENT_DIAL_TIMEOUT_MS
) -> grpc.aio.Channel:
    """A connected channel; the caller closes it.

    Args:
        address: host:port.
        credentials: for TLS; None = plain text.
        timeout_ms: how long connecting may take, handshakes included.

    Raises:
        KvError: phase dial or tls; it names the address and what to do.
    """
    options = (*_OPTIONS, *egress.grpc_options())
    if credentials is None:
        channel = grpc.aio.insecure_channel(address, options=options)
    else:
        channel = grpc.aio.secure_channel(address, credentials, options=options)
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            if await _connected(channel):
                return channel
            raise await _reason(channel, address)
    except TimeoutError:
        await channel.close()
        raise _dial_timeout(address, timeout_ms) from None
    except BaseException:
        await channel.close()
        raise


async def _connected(channel: grpc.aio.Channel) -> bool:
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in {grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN}:
            return False
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
    return True


async def _reason(channel: grpc.aio.Channel, address: str) -> KvError:
    """Why the channel failed: only the status of a call on it tells."""
    call = channel.unary_unary(rpc.READ.path, request_serializer=kv_pb2.ReadRequest.SerializeToString)
    try:
        await call(kv_pb2.ReadRequest())
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error, address)
    return Unavailable("the connection failed once and then came up", phase="dial")


def _dial_timeout(address: str, timeout_ms: int) -> KvError:
    error = Unavailable(
        f"no connection within {timeout_ms} ms; check that the host is up and that no firewall drops the port",
        phase="dial",
    )
    error.endpoint = address
    return error
