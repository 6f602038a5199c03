"""How gRPC connections are tuned, on both sides; every option says why.

The aim is that a dead peer is noticed in about three seconds, a returning one is found in about half a
second, and that nothing is retried behind the caller's back: who may send an operation again, and under
which id, is decided in the gateway alone.
"""

from __future__ import annotations

import grpc
from grpc import aio

from kvnode.base import egress, limits

Options = tuple[tuple[str, int | str], ...]

KEEPALIVE_INTERVAL_MS = 1_000
KEEPALIVE_TIMEOUT_MS = 2_000
_RECEIVE_WINDOW_BYTES = 4 * 1_048_576  # what a WAN of 100 ms at 40 MB/s holds in flight

_SHARED: Options = (
    ("grpc.max_send_message_length", limits.MAX_GRPC_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", limits.MAX_GRPC_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),  # the one that counts: its default of 60 s hides the above
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # 0 = keepalive goes on over a silent stream
    ("grpc.http2.lookahead_bytes", _RECEIVE_WINDOW_BYTES),
)

CHANNEL_OPTIONS: Options = (
    *_SHARED,
    ("grpc.use_local_subchannel_pool", 1),  # channels to one peer do not share a connection: bulk has its own
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", limits.MIN_PEER_BACKOFF_MS),
    ("grpc.min_reconnect_backoff_ms", limits.PEER_CONNECT_TIMEOUT_MS),  # is also how long one attempt may take
    ("grpc.max_reconnect_backoff_ms", limits.MAX_PEER_BACKOFF_MS),
)

SERVER_OPTIONS: Options = (
    *_SHARED,
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a silent half of the connections
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_INTERVAL_MS // 2),
    ("grpc.http2.max_ping_strikes", 0),  # a client that pings often is not worth a broken session
)


def open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> aio.Channel:
    """A channel of its own connection to `address`, through the egress proxy if there is one; without credentials in
    plain text."""
    options = (*CHANNEL_OPTIONS, *egress.grpc_options())
    if credentials is None:
        return aio.insecure_channel(address, options=options)
    return aio.secure_channel(address, credentials, options=options)
