"""One long-lived stream to a peer, opened again for ever.

Theory of operation. A stream is always in one of three states:

    down ──(back-off over)──► opening ──(the peer welcomed our Hello)──► up
      ▲                          │                                      │
      └───(refused, timed out)───┴──────────(broken, silent)────────────┘

While it is up, a writer task and a reader share it. The writer sleeps on a future; whoever queues something
wakes it, and since a woken task runs in the loop's next pass, all that was queued in this pass leaves in one
message. While a write is under way (the peer's flow control decides how long) more gathers for the next:
batches grow by themselves exactly when messages are dear. gRPC allows one write at a time anyway.

Each time that a stream leaves `opening` or `up`, `_discard` tells the subclass why. The back-off doubles
from MIN_PEER_BACKOFF_MS to MAX_PEER_BACKOFF_MS and starts afresh after a stream that was up.

Cost, loopback and uvloop: 70 us from write to read for a message of up to 16 KiB, and 100 us of CPU for both
ends together; a unary call costs 600 us alone and 190 us with 32 under way. Hence streams.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import TypeAlias

import grpc
from grpc import aio

from kvnode.base import limits

_log = logging.getLogger(__name__)

RawCall: TypeAlias = "aio.StreamStreamCall"  # of bytes and bytes: (de)serialization is ours, so that it can be batched


class PeerStream(ABC):
    """The stream's life; subclasses say what travels on it.

    Args:
        peer: the peer's name, for messages.
        method: the full gRPC method, for example /kv.internal.v1.Peer/Messages.
        channel: to the peer; owned by the caller.
    """

    def __init__(self, peer: str, method: str, channel: aio.Channel) -> None:
        self._peer = peer
        self._open_call = channel.stream_stream(method)
        self._method = method
        self._up = False
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._last_reason = ""

    @property
    def up(self) -> bool:
        """Whether the peer has welcomed us and the stream has not broken since."""
        return self._up

    def start(self) -> None:
        """Begin to connect, on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"{self._method} to {self._peer}")

    async def close(self) -> None:
        """End the stream; what waits is discarded."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._up = False
        self._discard("this node is stopping or the peer was removed")

    # What a subclass says.

    @abstractmethod
    def _hello(self) -> bytes:
        """The first message."""

    @abstractmethod
    def _refusal(self, welcome: bytes) -> str:
        """Why the peer refused, from its first answer; empty = welcome."""

    @abstractmethod
    def _next_batch(self) -> bytes | None:
        """What to send now, or None when nothing waits."""

    @abstractmethod
    def _received(self, reply: bytes) -> None:
        """An answer arrived."""

    async def _ended(self) -> None:  # noqa: B027  likewise
        """The peer has ended the stream in good order."""

    def _went_up(self, call: RawCall) -> None:  # noqa: B027  a hook that most streams leave empty
        """The stream is open."""

    @abstractmethod
    def _discard(self, reason: str) -> None:
        """The stream is not open (any more): let go of what waits."""

    def _unreachable(self) -> None:  # noqa: B027  only one of the streams reports it
        """The stream broke or could not be opened."""

    # The machinery.

    def _wake(self) -> None:
        """Something was queued."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _run(self) -> None:
        backoff_ms = limits.MIN_PEER_BACKOFF_MS
        while True:
            reason = await self._stream_once()
            was_up, self._up = self._up, False
            if was_up:
                backoff_ms = limits.MIN_PEER_BACKOFF_MS
            if was_up or reason != self._last_reason:  # a dead peer is worth one line, not two a second
                _log.info("%s to %s is down: %s", self._method, self._peer, reason)
            self._last_reason = reason
            self._discard(reason)
            self._unreachable()
            await asyncio.sleep(backoff_ms / 1_000)
            backoff_ms = min(limits.MAX_PEER_BACKOFF_MS, backoff_ms * 2)

    async def _stream_once(self) -> str:
        """Open the stream and serve it until it ends; returns why it ended."""
        call: RawCall = self._open_call()
        writer: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(limits.PEER_CONNECT_TIMEOUT_MS / 1_000):
                await call.write(self._hello())
                welcome = await call.read()
            if welcome is aio.EOF:
                return await _why(call)
            if refused := self._refusal(welcome):
                return f"refused: {refused}"
            self._up = True
            self._last_reason = ""
            _log.info("%s to %s is up", self._method, self._peer)
            self._went_up(call)
            writer = asyncio.get_running_loop().create_task(self._write_loop(call))
            while (reply := await call.read()) is not aio.EOF:
                self._received(reply)
            await self._ended()
            return await _why(call)
        except aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        except TimeoutError:
            return f"no answer within {limits.PEER_CONNECT_TIMEOUT_MS} ms"
        except asyncio.InvalidStateError:
            return "the stream ended"
        except asyncio.CancelledError:
            # gRPC raises the same error for a call that we cancelled (silence) and for a cancelled task (close).
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return "the stream was cut"
        except Exception as error:
            _log.exception("%s to %s: an answer could not be taken", self._method, self._peer)
            return f"{type(error).__name__}: {error}"
        finally:
            if writer is not None:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
            call.cancel()

    async def _write_loop(self, call: RawCall) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                batch = self._next_batch()
                if batch is None:
                    self._waiter = loop.create_future()
                    await self._waiter
                else:
                    await call.write(batch)
        except (aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError):
            pass  # the reader learns why
        except Exception:
            _log.exception("%s to %s: a batch could not be built", self._method, self._peer)
        finally:
            self._waiter = None
            call.cancel()


async def _why(call: RawCall) -> str:
    """Why a call ended; to be asked once it has."""
    code = await call.code()
    return "the peer ended the stream" if code is grpc.StatusCode.OK else f"{code.name}: {await call.details()}"
