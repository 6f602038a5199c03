"""The directory as a gateway without data knows it: followed over gRPC at whichever node answers.

While no node answers, the last picture stays in force: a revoked token is then refused by the nodes' own judgement
only where they ask for one. Requests cannot be answered in that time anyway, because they need a node too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from random import Random

import grpc
import grpc.aio

from kvnode.base import limits
from kvnode.base.clock import Clock, SystemClock
from kvnode.base.errors import KvError, Unavailable
from kvnode.client import rpc
from kvnode.client.channel import dial
from kvnode.client.endpoints import Endpoints
from kvnode.client.selection import call_metadata
from kvnode.client.status import error_from_rpc
from kvnode.codec.row import Row
from kvnode.machine.directory.view import DirectoryView
from kvnode.proto.kv.v1 import directory_pb2 as pb
from kvnode.proto.kv.v1 import kv_pb2

_log = logging.getLogger(__name__)


class RemoteDirectory:
    """Keeps a view up to date.

    Attributes:
        view: what is known; empty until `known` is set.
        known: whether it was ever received.
        trouble: why it is not followed just now; empty while it is.

    Args:
        addresses: host:port of nodes' gRPC.
        token: shown to the nodes, where they ask for one.
        credentials: for TLS; None = plain text.
        clock: how long it is not followed.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        token: str = "",
        credentials: grpc.ChannelCredentials | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.view = DirectoryView()
        self.known = asyncio.Event()
        self.trouble = "no node has answered yet"
        self._endpoints = Endpoints(addresses, Random())
        self._metadata = call_metadata(token=token)
        self._credentials = credentials
        self._heard = asyncio.Event()  # set and renewed with every message
        self._outage = _Outage(clock or SystemClock())

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self._follow(self._endpoints.current)
            except KvError as error:
                self.trouble = str(error)
                self._outage.goes_on(error)
                await asyncio.sleep(self._endpoints.failed(error) / 1000)

    async def learn(self) -> None:
        """Wait for the first picture, or for the next message if there is one. Raises Unavailable."""
        waiting = self._heard.wait() if self.known.is_set() else self.known.wait()
        try:
            async with asyncio.timeout(limits.GATEWAY_LEARN_TIMEOUT_MS / 1000):
                await waiting
        except TimeoutError:
            if not self.known.is_set():
                text = f"this gateway has not reached a node of the cluster yet ({self.trouble})"
                raise Unavailable(text, phase="dial") from None

    async def _follow(self, address: str) -> None:
        """One stream; always ends with a KvError."""
        channel = await dial(address, self._credentials)
        call = channel.unary_stream(
            rpc.WATCH_DIRECTORY.path,
            request_serializer=pb.WatchDirectoryRequest.SerializeToString,
            response_deserializer=pb.WatchDirectoryResponse.FromString,
        )(pb.WatchDirectoryRequest(), metadata=self._metadata)
        try:
            while True:
                async with asyncio.timeout(limits.CLIENT_WATCH_SILENCE_MS / 1000):
                    message = await call.read()
                if message is grpc.aio.EOF:
                    raise Unavailable("the node ended the stream", phase="dial")
                self._take(message)
        except TimeoutError:
            text = f"nothing, not even a ping, arrived for {limits.CLIENT_WATCH_SILENCE_MS} ms"
            raise Unavailable(text, phase="dial") from None
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, address) from None
        finally:
            call.cancel()
            await channel.close()

    def _take(self, message: pb.WatchDirectoryResponse) -> None:
        self._endpoints.succeeded()
        self.trouble = ""
        self._outage.ends(self._endpoints.current)
        if message.full:
            rows = [row for _, row in map(_row, message.rows) if row is not None]
            self.view.load(rows, cluster_id=message.cluster_id)
            self.known.set()
        elif not message.ping:
            self.view.update(dict(map(_row, message.rows)))
        self._heard.set()
        self._heard = asyncio.Event()


class _Outage:
    """Says when the directory is followed no more, why, and when it is again; in between once in a while."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_ms: float | None = None
        self._said_ms = 0.0
        self._attempts_count = 0

    def goes_on(self, error: KvError) -> None:
        """Another attempt has failed, or the first."""
        now_ms = self._clock.monotonic_ms()
        self._attempts_count += 1
        if self._began_ms is None:
            self._began_ms = self._said_ms = now_ms
            _log.warning("the directory is not followed, and what is known of it stays in force: %s", error)
        elif now_ms - self._said_ms >= limits.TROUBLE_REMINDER_MS:
            self._said_ms = now_ms
            _log.warning(
                "the directory is not followed for %.0f s now, after %d attempts: %s",
                (now_ms - self._began_ms) / 1000,
                self._attempts_count,
                error,
            )

    def ends(self, address: str) -> None:
        """A node has answered. Nothing is said where nothing was wrong."""
        if self._began_ms is not None:
            lasted_s = (self._clock.monotonic_ms() - self._began_ms) / 1000
            _log.info("the directory is followed again at %s, after %.1f s", address, lasted_s)
            self._began_ms, self._attempts_count = None, 0


def _row(wire: pb.DirectoryRow) -> tuple[bytes, Row | None]:
    if wire.gone:
        return wire.key, None
    return wire.key, Row(
        key=wire.key, value=wire.value, encoding=kv_pb2.VALUE_ENCODING_BYTES, versionstamp=wire.versionstamp
    )
