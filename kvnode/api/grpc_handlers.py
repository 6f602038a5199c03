"""From typed methods to gRPC handlers.

Requests arrive as bytes and are parsed here, not by gRPC: a torn message is then an answer to its sender
(INVALID_ARGUMENT, MALFORMED_REQUEST), not an exception inside the server. Whatever else a method raises is an
answer too; the server lives on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import aio

from kvnode.api.calls_under_way import CallsUnderWay
from kvnode.api.grpc_status import abort
from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, KvError, Unavailable

_log = logging.getLogger(__name__)

_LEAVING_MS = 1_000

Request = TypeVar("Request", bound=Message)

Serve = Callable[[Request, aio.ServicerContext], Awaitable[Message]]
ServeStream = Callable[[Request, aio.ServicerContext], Awaitable[None]]
Admit = Callable[[Iterable[tuple[str, str | bytes]] | None], Awaitable[None]]
ServeStreams = Callable[[aio.ServicerContext], Awaitable[None]]


def parse(message_type: type[Request], data: bytes) -> Request:
    """The message. Raises InvalidRequest when the bytes are none."""
    try:
        return message_type.FromString(data)
    except DecodeError as error:
        name = message_type.DESCRIPTOR.full_name
        raise InvalidRequest(
            "MALFORMED_REQUEST",
            f"the {len(data)} bytes received are not a {name} ({error}); check the client's protobuf",
        ) from error


def timeout_ms(context: aio.ServicerContext) -> int:
    """What remains of the caller's deadline, within the server's own bound; the default without a deadline."""
    remaining_s = context.time_remaining()
    if remaining_s is None:
        return limits.DEFAULT_OPERATION_TIMEOUT_MS
    return max(1, min(limits.MAX_OPERATION_TIMEOUT_MS, int(remaining_s * 1_000)))


class Handlers:
    """Builds the handlers of one server.

    Args:
        endpoint: the name of this node, for errors; called when it is needed.
        admit: raises KvError when the caller may not make any of these calls; None = all may.
        calls: told of each call; shared by the handlers of one server.
    """

    def __init__(
        self, endpoint: Callable[[], str], admit: Admit | None = None, calls: CallsUnderWay | None = None
    ) -> None:
        self._endpoint = endpoint
        self._admit = admit
        self._calls = calls or CallsUnderWay()

    def unary(self, request_type: type[Request], serve: Serve[Request]) -> grpc.RpcMethodHandler:
        """One request, one response."""

        async def call(data: bytes, context: aio.ServicerContext) -> bytes:
            async def work() -> bytes:
                response = (await serve(parse(request_type, data), context)).SerializeToString()
                size_bytes = len(response)
                if size_bytes > limits.MAX_GRPC_MESSAGE_BYTES:
                    del response  # or it would live as long as the error's traceback
                    raise response_too_large(size_bytes)
                return response

            return await self._guard(context, work)

        return grpc.unary_unary_rpc_method_handler(call)

    def stream_out(
        self, request_type: type[Request], serve: ServeStream[Request], *, lasting: bool = False
    ) -> grpc.RpcMethodHandler:
        """One request; `serve` writes the responses to the context. `lasting`: see calls_under_way.py."""

        async def call(data: bytes, context: aio.ServicerContext) -> None:
            async def work() -> None:
                await serve(parse(request_type, data), context)

            await self._guard(context, self._lasting(context, work) if lasting else work, is_owed=not lasting)

        return grpc.unary_stream_rpc_method_handler(call)

    def streams(self, serve: ServeStreams, *, lasting: bool = False) -> grpc.RpcMethodHandler:
        """A stream each way; `serve` reads and writes bytes through the context. `lasting` as for stream_out."""

        async def call(_requests: object, context: aio.ServicerContext) -> None:
            work = partial(serve, context)
            await self._guard(context, self._lasting(context, work) if lasting else work, is_owed=not lasting)

        return grpc.stream_stream_rpc_method_handler(call)

    def _lasting(self, context: aio.ServicerContext, work: Callable[[], Awaitable[None]]) -> _Work:
        async def lasting() -> None:
            # Of their own: gRPC sends them once more, and fails, when the first write, which would carry them, is
            # cancelled on its way. A lasting call is cancelled whenever its node stops.
            await context.send_initial_metadata(())
            await self._calls.last(work)

        return lasting

    async def _guard(
        self, context: aio.ServicerContext, work: Callable[[], Awaitable[_Result]], *, is_owed: bool = True
    ) -> _Result:
        with self._calls.owed() if is_owed else nullcontext():
            return await self._answer(context, work)

    async def _answer(self, context: aio.ServicerContext, work: Callable[[], Awaitable[_Result]]) -> _Result:
        try:
            if self._admit is not None:
                await self._admit(context.invocation_metadata())
            return await work()
        except KvError as error:
            await abort(context, error, self._endpoint())
        except (aio.AbortError, aio.UsageError):
            raise
        except aio.InternalError:
            # A read or write failed, most often because the client has left: then gRPC cancels this task in a moment.
            await asyncio.sleep(_LEAVING_MS / 1_000)
            raise
        except Exception as error:
            _log.exception("a call failed in a way that nobody foresaw")
            message = f"{type(error).__name__}: {error}; the node's log has the traceback, please report it"
            await abort(context, KvError("INTERNAL", message, phase="storage", not_applied=False), self._endpoint())


_Result = TypeVar("_Result")
_Work = Callable[[], Awaitable[None]]


def response_too_large(size_bytes: int) -> KvError:
    """A result that no message can carry."""
    return KvError(
        "RESPONSE_TOO_LARGE",
        f"the answer has {size_bytes} bytes or more, one message carries {limits.MAX_GRPC_MESSAGE_BYTES}: "
        "lower the limit of the read and page",
        phase="read",
    )


def results_full() -> KvError:
    """A read whose result would be more than a stream may have unsent."""
    return Unavailable(
        f"more than {limits.MAX_SESSION_RESULT_BYTES} bytes of results wait on this stream: take them, and send this "
        "read again",
        code="SESSION_RESULTS_FULL",
        phase="read",
    )
