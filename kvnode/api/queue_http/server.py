"""Queues over HTTP, on the port of KV Connect, for whoever speaks no gRPC: the JavaScript module first of all.

    GET  /kvnode.js, /kvnode.d.ts                  the module and its types
    POST /queues/<database>/<queue>/messages       enqueue, all in one transaction
    POST /queues/<database>/<queue>/listen         messages under leases, one JSON object a line, until one side ends it
    POST /queues/<database>/<queue>/settle         ack, nack, release, extend: at any node

A database is its name or uuid, or `default`. The access token is the one that KV Connect takes, and is judged before
the body is read. docs/reference/queue-http.md is the reference.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from urllib.parse import unquote

from kvnode.api.auth.authority import Authority
from kvnode.api.auth.gate import DATABASE_METADATA, TOKEN_METADATA, Gate, Permit
from kvnode.api.connect.metrics import ConnectStats
from kvnode.api.http import HttpError, Request, Response, Stream
from kvnode.api.queue_http import lines
from kvnode.api.queue_http.answers import answered, http_refusal, refusal
from kvnode.api.queue_http.bodies import (
    TIMEOUT_HEADER,
    Settle,
    parse_enqueue,
    parse_listen,
    parse_settle,
    parse_timeout_ms,
)
from kvnode.api.queue_http.listener import Leases, Listener
from kvnode.api.queue_http.module import MODULE_PATH, TYPES_PATH, Module
from kvnode.api.queue_http.ports import QueueBackend
from kvnode.api.queue_listening import node_stopping
from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.base.errors import InvalidRequest, KvError, OutcomeUnknown, Unavailable
from kvnode.proto.kv.v1 import kv_pb2

_PREFIX = "/queues/"
_POLL_S = 0.01
_KINDS = {"messages": "enqueue", "listen": "listen", "settle": "settle"}

_Answer = Callable[[Request, Permit, str, bytes], Awaitable[Response | Stream]]


class QueueHttp:
    """Answers the requests above.

    Args:
        backend: has the queues.
        authority: judges tokens.
        clock: for limits, expiry and leases.
        stats: what is counted, with that of KV Connect.
    """

    def __init__(self, backend: QueueBackend, authority: Authority, clock: Clock, stats: ConnectStats) -> None:
        self._backend = backend
        self._gate = Gate(authority, clock, required=True)
        self._clock = clock
        self._stats = stats
        self._module = Module()
        self._leases = Leases()
        self._stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settling_count = 0
        self._answers: dict[str, tuple[int, _Answer]] = {
            "listen": (limits.MAX_LISTEN_BODY_BYTES, self._listen),
            "settle": (limits.MAX_SETTLE_BODY_BYTES, self._settle),
            "enqueue": (limits.MAX_ENQUEUE_BODY_BYTES, self._enqueue),
        }

    def kind(self, method: str, path: str) -> str:
        """What it is counted as: module, listen, settle, enqueue; "" = it is not for this part of the server."""
        if path in (MODULE_PATH, TYPES_PATH):
            return "module" if method in ("GET", "HEAD") else ""
        if not path.startswith(_PREFIX):
            return ""
        return _KINDS.get(path.rpartition("/")[2], "module")

    async def answer(self, request: Request, kind: str) -> Response | Stream:
        """The answer to a request of that kind; a failure is an answer too."""
        stats = self._stats
        began = time.perf_counter()
        status = 0
        stats.under_way += 1
        try:
            response = await self._answer(request, kind)
            if isinstance(response, Stream):
                status = 200
            else:
                status = response.status
                stats.sent(kind, len(response.body))
            return response
        finally:
            stats.under_way -= 1
            stats.answered(kind, status, (time.perf_counter() - began) * 1_000)

    async def _answer(self, request: Request, kind: str) -> Response | Stream:
        try:
            if request.path in (MODULE_PATH, TYPES_PATH):
                return self._module.response(request.path)
            return await self._serve(request, kind)
        except HttpError as error:
            return http_refusal(error)
        except KvError as error:
            return refusal(error)

    async def stop(self) -> None:
        """End every listener, with a line that says why; their clients take their leases along to another node."""
        if not self._stopping.done():
            self._stopping.set_result(None)
        deadline = asyncio.get_running_loop().time() + limits.LISTENERS_STOP_TIMEOUT_MS / 1_000
        while self._stats.listeners and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_POLL_S)

    async def _serve(self, request: Request, kind: str) -> Response | Stream:
        database, _, rest = request.path[len(_PREFIX) :].partition("/")
        queue, _, method = rest.rpartition("/")
        if not queue or method not in _KINDS:
            raise HttpError(404, "Queues are at /queues/<database>/<queue>/messages, listen and settle.")
        if request.method != "POST":
            raise HttpError(405, "This is asked for by POST.")
        if self._stopping.done():
            raise node_stopping()
        max_bytes, answer = self._answers[kind]
        permit = await self._gate.permit(_metadata(request, unquote(database)))
        declared = request.header("content-length")
        permit.use(int(declared) if declared.isdecimal() else max_bytes, write=True)
        body = await request.body(max_bytes)
        self._stats.received(kind, len(body))
        return await answer(request, permit, unquote(queue), body)

    async def _enqueue(self, request: Request, permit: Permit, queue: str, body: bytes) -> Response:
        timeout_ms = parse_timeout_ms(request.header(TIMEOUT_HEADER))
        write = parse_enqueue(queue, body)
        if timeout_ms is None:
            response = await self._backend.write(write, database=permit.database)
        else:
            try:
                async with asyncio.timeout((timeout_ms + limits.ENQUEUE_GRACE_MS) / 1_000):
                    response = await self._backend.write(write, timeout_ms, database=permit.database)
            except TimeoutError:
                late = f"what came of it is not known within the {timeout_ms} ms that its client gives it"
                raise OutcomeUnknown(late) from None
        stamp = response.versionstamp.hex()
        return answered({"versionstamp": stamp, "ids": [f"{stamp}{at:04x}" for at in range(len(write.enqueues))]})

    async def _listen(self, _request: Request, permit: Permit, queue: str, body: bytes) -> Stream:
        """The first line is made before the answer begins, so that a refusal is one."""
        wanted = parse_listen(queue, body)
        stream = await self._backend.listen(permit, self._gate, wanted.opening, self._stopping)
        held = wanted.opening.held
        listener = Listener(permit.database, stream, self._leases, held, wanted.credit, self._clock.monotonic_ms)
        try:
            first = await listener.open()
        except BaseException:
            await listener.close()
            raise
        chunks = listener.chunks(first)
        counted = self._counted(await anext(chunks), chunks)
        await anext(counted)  # both have begun: one that has not would close no listener when it is closed
        return Stream(counted, lines.NDJSON)

    async def _counted(self, first: bytes, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """What is sent, behind an empty chunk that is not."""
        self._stats.listeners += 1
        try:
            yield b""
            self._stats.sent("listen", len(first))
            yield first
            async for chunk in chunks:
                self._stats.sent("listen", len(chunk))
                yield chunk
        finally:
            self._stats.listeners -= 1
            await chunks.aclose()

    async def _settle(self, _request: Request, permit: Permit, queue: str, body: bytes) -> Response:
        settle = parse_settle(queue, body)
        count = len(settle.actions) + len(settle.extensions)
        if self._settling_count + count > limits.MAX_SETTLING_LEASES_COUNT:
            raise Unavailable("too many leases wait to be settled already; retry later", code="TOO_MANY_HELD")
        settled = [lease for lease, _ in settle.actions]
        if settle.leaving:
            self._leases.leave(permit.database, settled + settle.extensions)
        self._leases.settle(permit.database, settled, leaving=settle.leaving)
        extensions, refused = self._extensions(permit.database, settle)
        self._settling_count += count
        try:
            ended = refused + await self._settled(permit.database, settle.actions + extensions)
        finally:
            self._settling_count -= count
        lost = [lease for lease, error in ended if error is not None and error.code == "LEASE_LOST"]
        self._leases.settle(permit.database, lost, leaving=settle.leaving)  # of extensions
        done = [lease for lease, error in ended if error is None]
        return answered(lines.results(done, [(lease, error) for lease, error in ended if error is not None]))

    def _extensions(
        self, database: int, settle: Settle
    ) -> tuple[list[tuple[bytes, kv_pb2.QueueAction]], list[tuple[bytes, KvError | None]]]:
        """What is to be extended, by lease, and what cannot be: the rest of the request is done all the same."""
        actions: list[tuple[bytes, kv_pb2.QueueAction]] = []
        refused: list[tuple[bytes, KvError | None]] = []
        for lease in settle.extensions:
            lease_ms = self._leases.extend(database, lease, settle.lease_ms)
            if lease_ms:
                actions.append((lease, kv_pb2.QueueAction(extend=kv_pb2.QueueExtend(lease=lease, lease_ms=lease_ms))))
            else:
                refused.append((lease, _lease_time_not_known(lease)))
        return actions, refused

    async def _settled(
        self, database: int, actions: list[tuple[bytes, kv_pb2.QueueAction]]
    ) -> list[tuple[bytes, KvError | None]]:
        """How each ended; a node that stops waits a moment, and then for nothing more."""
        ends: list[asyncio.Future[KvError | None]] = []
        for _, action in actions:
            end: asyncio.Future[KvError | None] = asyncio.get_running_loop().create_future()
            self._backend.settler.settle(database, action, partial(_resolve, end))
            ends.append(end)
        whole = asyncio.gather(*ends)
        await asyncio.wait((whole, self._stopping), return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():
            await asyncio.wait((whole,), timeout=limits.LISTENERS_STOP_TIMEOUT_MS / 1_000)
        return [
            (lease, end.result() if end.done() and not end.cancelled() else node_stopping())
            for (lease, _), end in zip(actions, ends, strict=True)
        ]


def _lease_time_not_known(lease: bytes) -> InvalidRequest:
    """A default would be a guess, and one that is too short would have the message delivered again."""
    return InvalidRequest(
        "BAD_LEASE_TIME",
        f"No listener of this node holds the lease {lease.hex()}, so how long it is to last is not known here: it is "
        "lost, or its listener is at another node. Extend it with `lease_ms`.",
    )


def _resolve(end: asyncio.Future[KvError | None], error: KvError | None) -> None:
    if not end.done():
        end.set_result(error)


def _metadata(request: Request, database: str) -> list[tuple[str, str]]:
    """As a gRPC call would name it."""
    token = request.header("authorization")
    return [(DATABASE_METADATA, database), *([(TOKEN_METADATA, token)] if token else [])]
