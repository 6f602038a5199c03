"""Single calls, to whichever endpoint answers: administration, and reads outside of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from functools import partial
from random import Random
from typing import TypeVar

import grpc
import grpc.aio

from kvnode.base import limits
from kvnode.base.clock import Clock, SystemClock
from kvnode.base.deadline import answer_margin_ms
from kvnode.base.errors import DeadlineExceeded, KvError, OutcomeUnknown, Unavailable
from kvnode.client.channel import dial
from kvnode.client.endpoints import Endpoints
from kvnode.client.numbers import parse_timeout_ms
from kvnode.client.outcome import client_closed
from kvnode.client.rpc import Method
from kvnode.client.selection import CallMetadata
from kvnode.client.status import error_from_rpc, is_retryable

Request = TypeVar("Request")
Response = TypeVar("Response")


class UnaryCaller:
    """Calls one method at a time, on to the next endpoint when one fails or hangs.

    Args:
        addresses: host:port of nodes of one cluster, in order of preference.
        credentials: for TLS; None = plain text.
        metadata: sent with each call: database and token (client.selection).
        fail_fast: raise when no address could be reached, rather than wait until the deadline.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: CallMetadata = (),
        fail_fast: bool = False,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        self._credentials = credentials
        self._metadata = metadata
        self._clock = clock or SystemClock()
        self._endpoints = Endpoints(addresses, random or Random(), fail_fast=fail_fast)
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._dials: dict[str, asyncio.Task[grpc.aio.Channel]] = {}  # under way, shared by all who wait
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def endpoint(self) -> str:
        """The address in use, or the one that is tried next."""
        return self._endpoints.current

    def turn(self) -> None:
        """Ask the next endpoint from now on: the one in use answers, but another may know more."""
        self._endpoints.turn()

    async def call(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout_ms: int,
        *,
        repeatable: bool = True,
        final_codes: Collection[str] = (),
    ) -> Response:
        """The answer of the first endpoint that gives one.

        Args:
            method: one of rpc.py.
            request: its message.
            timeout_ms: for all attempts together.
            repeatable: the call may be made twice without harm. If not, it goes to another endpoint only when it
                is known to have changed nothing at the first.
            final_codes: errors of a node that no other endpoint could better.

        Raises:
            KvError: it names endpoint, phase and remedy. OutcomeUnknown and NotLeader only if it is not repeatable.
                InvalidRequest: BAD_TIMEOUT. Unavailable: CLIENT_CLOSED, after close().
        """
        timeout_ms = parse_timeout_ms(timeout_ms)
        deadline_ms = self._clock.monotonic_ms() + timeout_ms
        hang_timeout_ms: float = limits.CLIENT_HANG_TIMEOUT_MS
        while True:
            if self._is_closed:
                raise client_closed()
            address = self._endpoints.current
            until_ms = deadline_ms
            left_ms = deadline_ms - self._clock.monotonic_ms()
            attempt_ms = min(left_ms, hang_timeout_ms) if repeatable and len(self._endpoints) > 1 else left_ms
            try:
                response = await self._attempt(method, request, address, max(1.0, attempt_ms))
            except KvError as error:
                error.endpoint = error.endpoint or address
                if error.code in final_codes:
                    raise
                if isinstance(error, DeadlineExceeded):
                    if attempt_ms < left_ms:
                        hang_timeout_ms = min(limits.MAX_CLIENT_HANG_TIMEOUT_MS, hang_timeout_ms * 2)
                    else:
                        until_ms -= answer_margin_ms(attempt_ms)  # what is left was for the answer's way
                await self._next(error, address, repeatable, until_ms, timeout_ms)
            else:
                self._endpoints.succeeded()
                return response

    async def close(self) -> None:
        """Close all connections. What is under way ends as an error."""
        self._is_closed = True
        for dialing in list(self._dials.values()):
            dialing.cancel()
            await asyncio.gather(dialing, return_exceptions=True)
        channels, self._channels = list(self._channels.values()), {}
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, *(channel.close() for channel in channels), return_exceptions=True)

    async def _next(self, error: KvError, address: str, repeatable: bool, until_ms: float, timeout_ms: int) -> None:
        """Prepare another attempt after `error`, to begin before `until_ms`, or raise what the caller shall see."""
        may_be_repeated = is_retryable(error) or error.code == "DEADLINE_EXCEEDED"
        if repeatable:
            error.not_applied = True
        elif not error.not_applied and may_be_repeated:
            unknown = OutcomeUnknown(
                f"the request was sent and not answered ({error.message}), so it may or may not have been carried out;"
                " look before you send it again"
            )
            unknown.endpoint = error.endpoint
            raise unknown from error
        elif error.code == "NOT_LEADER":
            raise error
        if not may_be_repeated:
            raise error
        pause_ms = self._endpoints.failed(error) if address == self._endpoints.current else 0.0
        if self._endpoints.hopeless() is not None:
            raise error
        if self._clock.monotonic_ms() + pause_ms >= until_ms:
            raise DeadlineExceeded(
                f"no answer within {timeout_ms} ms (last: {error.message})", phase=error.phase, endpoint=error.endpoint
            ) from error
        await asyncio.sleep(pause_ms / 1000)

    async def _attempt(
        self, method: Method[Request, Response], request: Request, address: str, timeout_ms: float
    ) -> Response:
        began_ms = self._clock.monotonic_ms()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                channel = await self._channel(address)
        except TimeoutError:
            raise DeadlineExceeded(f"no connection within {timeout_ms:.0f} ms", phase="dial") from None
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise client_closed() from None
        left_ms = timeout_ms - (self._clock.monotonic_ms() - began_ms)
        return await self._ask(channel, method, request, address, max(1.0, left_ms))

    async def _ask(
        self,
        channel: grpc.aio.Channel,
        method: Method[Request, Response],
        request: Request,
        address: str,
        timeout_ms: float,
    ) -> Response:
        call = channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,  # type: ignore[attr-defined]
            response_deserializer=method.response.FromString,  # type: ignore[attr-defined]
        )
        try:
            response: Response = await call(request, timeout=timeout_ms / 1000, metadata=self._metadata)
            return response
        except grpc.aio.AioRpcError as failure:
            error = error_from_rpc(failure, address)
            if error.phase in {"dial", "tls"}:
                self._retire(address, channel)
            raise error from None
        except asyncio.CancelledError:
            # gRPC raises the same error for a call whose channel another caller retired. Only a cancelled task ends.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            cut = Unavailable("the connection was cut on this side", phase="dial")
            cut.not_applied = False
            raise cut from None

    async def _channel(self, address: str) -> grpc.aio.Channel:
        """The channel to an address. Raises what the dial does; all who wait for one dial share its end."""
        channel = self._channels.get(address)
        if channel is not None:
            return channel
        dialing = self._dials.get(address)
        if dialing is None:
            dialing = asyncio.get_running_loop().create_task(dial(address, self._credentials))
            self._dials[address] = dialing
            dialing.add_done_callback(partial(self._dialed, address))
        return await asyncio.shield(dialing)

    def _dialed(self, address: str, dialing: asyncio.Task[grpc.aio.Channel]) -> None:
        self._dials.pop(address, None)
        if not dialing.cancelled() and dialing.exception() is None:
            self._channels[address] = dialing.result()

    def _retire(self, address: str, channel: grpc.aio.Channel) -> None:
        """Dial anew next time; other calls on the old channel may still see how they end."""
        if address in self._channels and self._channels[address] is channel:
            self._channels.pop(address, None)
            task = asyncio.get_running_loop().create_task(channel.close(grace=limits.CLIENT_DIAL_TIMEOUT_MS / 1000))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
