"""Watches: a stream of consistent states that outlives its connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from random import Random

import grpc
import grpc.aio

from kvnode.base.errors import KvError, TooStale, Unavailable
from kvnode.base.watch_pace import silence_ms
from kvnode.client import rpc
from kvnode.client.channel import dial
from kvnode.client.endpoints import Endpoints
from kvnode.client.results import Entry, PrefixChanges
from kvnode.client.selection import CallMetadata
from kvnode.client.status import error_from_rpc, is_retryable
from kvnode.client.watch_order import WatchOrder
from kvnode.client.watch_reader import WatchReader
from kvnode.codec.keys import Key
from kvnode.proto.kv.v1 import kv_pb2


class WatchStream(AsyncIterator[tuple[kv_pb2.WatchResponse, bool]]):
    """The frames of one watch, from whichever endpoint serves it: (frame, whether it is the first of a stream).

    When a stream breaks, or not even a ping arrives for a while (silence_ms), the next endpoint is asked; its first
    frame is a full state again, so that nothing but intermediate states is missed. One that is older than what was
    shown is held back until its node has come so far (watch_order.py). Pings are left out, unless they are asked for.

    Where the request bounds the staleness, a node whose state grows too old refuses, and the next one is asked. When
    each has failed in turn, and the state that was shown last may be older than the bound by now, the iteration raises
    TooStale.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        request: kv_pb2.WatchRequest,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: CallMetadata = (),
        fail_fast: bool = False,
        random: Random | None = None,
        with_pings: bool = False,
    ) -> None:
        self._with_pings = with_pings
        self._request = request
        self._credentials = credentials
        self._metadata = metadata
        self._endpoints = Endpoints(addresses, random or Random(), fail_fast=fail_fast)
        self._order = WatchOrder(of_keys=bool(request.keys))
        self._fresh_until_s = 0.0  # of the loop's time: then what was shown last may be older than the bound
        self._frames = self._generate()

    async def __anext__(self) -> tuple[kv_pb2.WatchResponse, bool]:
        return await anext(self._frames)

    async def aclose(self) -> None:
        """End the watch."""
        await self._frames.aclose()

    async def _generate(self) -> AsyncGenerator[tuple[kv_pb2.WatchResponse, bool], None]:
        while True:
            address = self._endpoints.current
            try:
                stream = self._stream(address)
                try:
                    async for frame in stream:
                        yield frame
                finally:
                    await stream.aclose()
            except KvError as error:
                error.endpoint = error.endpoint or address
                pause_ms = self._endpoints.failed(error)
                if not (is_retryable(error) or error.phase == "read") or self._endpoints.hopeless() is not None:
                    raise
                if self._is_too_stale():
                    raise self._too_stale(error) from error
                await asyncio.sleep(pause_ms / 1000)

    def _is_too_stale(self) -> bool:
        is_over = asyncio.get_running_loop().time() >= self._fresh_until_s
        return bool(self._request.max_staleness_ms) and self._endpoints.exhausted and is_over

    def _too_stale(self, error: KvError) -> TooStale:
        if isinstance(error, TooStale):
            return error
        bound_ms = self._request.max_staleness_ms
        found = TooStale(f"no node shows a state at most {bound_ms} ms old, as the watch demands; the last: {error}")
        found.endpoint = error.endpoint
        return found

    def _heard(self, frame: kv_pb2.WatchResponse) -> None:
        self._endpoints.succeeded()
        left_ms = self._request.max_staleness_ms - frame.age_ms
        self._fresh_until_s = asyncio.get_running_loop().time() + left_ms / 1_000

    async def _stream(self, address: str) -> AsyncGenerator[tuple[kv_pb2.WatchResponse, bool], None]:
        """The frames of one connection. Always ends with a KvError."""
        channel = await dial(address, self._credentials)
        call = channel.unary_stream(
            rpc.WATCH.path,
            request_serializer=kv_pb2.WatchRequest.SerializeToString,
            response_deserializer=kv_pb2.WatchResponse.FromString,
        )(self._request, metadata=self._metadata)
        is_first = True
        self._order.begin()
        loop = asyncio.get_running_loop()
        patience_ms = silence_ms(self._request.max_staleness_ms)
        try:
            while True:
                async with asyncio.timeout(patience_ms / 1000):
                    frame = await call.read()
                if frame is grpc.aio.EOF:
                    raise Unavailable("the node ended the watch", phase="dial")
                self._heard(frame)
                order, now_s = self._order, loop.time()
                shown = order.release(now_s) if frame.ping else order.take(frame, now_s)
                if shown is not None:
                    yield shown, is_first
                    is_first = False
                elif frame.ping and self._with_pings:
                    yield frame, False
        except TimeoutError:
            raise Unavailable(f"nothing, not even a ping, arrived for {patience_ms} ms", phase="leader") from None
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, address) from None
        finally:
            call.cancel()
            await channel.close()


class KeysWatch(AsyncIterator[list[Entry]]):
    """Each item is one consistent state of the watched keys, in their order. See Kv.watch."""

    def __init__(self, stream: WatchStream, keys: Sequence[Key], encoded: Sequence[bytes]) -> None:
        self._reader = WatchReader(stream)
        self._entries = [Entry(None, key, data) for key, data in zip(keys, encoded, strict=True)]
        self._is_empty = True
        self._age_ms = -1

    async def __anext__(self) -> list[Entry]:
        while True:
            frame, _ = await self._reader.next()
            is_changed = self._is_empty
            self._is_empty = False
            for position, key in enumerate(frame.keys):
                if key.changed:
                    before = self._entries[position]
                    found = key.entry if key.HasField("entry") else None
                    entry = Entry(found, before.key, before.encoded_key, frame.age_ms)
                    is_changed |= entry.versionstamp != before.versionstamp
                    self._entries[position] = entry
            if is_changed:
                self._age_ms = frame.age_ms
                return list(self._entries)

    @property
    def age_ms(self) -> int:
        """How old the state may be that came last; -1 = not known."""
        return self._age_ms

    async def aclose(self) -> None:
        """End the watch, and the iteration of whoever waits for its next state."""
        await self._reader.aclose()


class PrefixWatch(AsyncIterator[PrefixChanges]):
    """Each item is what changed under the prefix. See Kv.watch_prefix."""

    def __init__(self, stream: WatchStream) -> None:
        self._reader = WatchReader(stream)

    async def __anext__(self) -> PrefixChanges:
        frame, is_first = await self._reader.next()
        entries = [
            Entry(key.entry if key.HasField("entry") else None, encoded_key=key.key, age_ms=frame.age_ms)
            for key in frame.keys
            if key.changed
        ]
        return PrefixChanges(entries, frame.versionstamp.hex(), frame.resync or is_first, frame.age_ms)

    async def aclose(self) -> None:
        """End the watch, and the iteration of whoever waits for its next changes."""
        await self._reader.aclose()
