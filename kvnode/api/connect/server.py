"""KV Connect, versions 1 to 3: the protocol by which unmodified clients of Deno KV come.

    POST /, /<name>, /databases/<uuid>/connect      metadata exchange; with /eventual at the end, the opt-in URL
    POST /data/<uuid>/strong/<method>               snapshot_read, atomic_write, watch
    POST /data/<uuid>/eventual/<method>             reads what this node has; writes go on to the leader
    POST /data/<uuid>/local/<method>                the same, said to be strong (clients that know nothing else)

Queues have no place in the protocol; the same port serves them in a way of its own (kvnode.api.queue_http).

Further headers of reads, in both directions: read_headers.py.

Theory of operation. A token is judged before the body is read, so that a stranger costs no memory. An operation is
held by the backend while there is no leader. A write whose outcome cannot be known is never answered: an error would
make every client send it again, and the protocol has no request id. Its connection stays open until the client
gives up, which then knows as much as the server.

A request costs one task (through granian also two crossings between its threads and the loop), the parse, one submit
to the node, and one serialization. Most need neither the coroutines here nor a task: whole_requests.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
import time
from collections.abc import AsyncGenerator
from typing import NoReturn

from kvnode.api.connect import convert
from kvnode.api.connect.answers import refusal
from kvnode.api.connect.heads import bearer_token, is_data_path, wrong_version
from kvnode.api.connect.interruptions import with_interruptions
from kvnode.api.connect.metadata import Base, choose_version, exchange, parse_path
from kvnode.api.connect.metrics import ConnectStats
from kvnode.api.connect.ports import Access, Backend, DatabaseMode, Grant
from kvnode.api.connect.read_headers import apply_request_headers, response_headers, watch_headers
from kvnode.api.connect.whole_frames import WholeFrames
from kvnode.api.connect.whole_requests import PROTOBUF, WholeRequests
from kvnode.api.http import HttpError, HttpServer, Request, Response, Stream, Tls, Unanswered
from kvnode.api.queue_http.server import QueueHttp
from kvnode.base import limits
from kvnode.base.errors import KvError, NotFound, OutcomeUnknown, Unauthenticated, Unavailable
from kvnode.proto.kv.v1 import kv_pb2

_log = logging.getLogger(__name__)

_FRAMES = "application/octet-stream"
_LENGTH = struct.Struct("<I")
_PING = _LENGTH.pack(0)
_RETRY_S = 0.05
_NOT_POST = Response(
    405,
    b"KV Connect is spoken here, and all of it is POST; give this URL to Deno.openKv.\n",
    headers=(("allow", "POST"),),
)
_NOT_FOUND = Response(404, b"Resource not found.")


class ConnectServer:
    """Serves KV Connect.

    Args:
        backend: answers operations.
        access: judges tokens.
        address: host:port to listen on; port 0 = a free one.
        tls: serve https; None = http.
        stats: what is counted.
        queues: serves them; None = they are not served.
    """

    def __init__(
        self,
        backend: Backend,
        access: Access,
        address: str,
        *,
        tls: Tls | None = None,
        stats: ConnectStats,
        queues: QueueHttp | None = None,
    ) -> None:
        self._backend = backend
        self._access = access
        self._stats = stats
        whole = WholeRequests(backend, access, stats, self._leave_open)
        self._http = HttpServer(self._handle, address, tls, http2=True, take_whole=whole.take)
        self._queues = queues
        stats.connections_count = lambda: self._http.connections_count

    async def start(self) -> int:
        """Listen and serve; returns the port. Raises ConfigError when the address cannot be bound."""
        return await self._http.start()

    async def stop(self) -> None:
        """End listeners and watches, answer what is under way, stop."""
        if self._queues is not None:
            await self._queues.stop()
        await self._http.stop()

    async def _handle(self, request: Request) -> Response | Stream:
        kind = "" if self._queues is None else self._queues.kind(request.method, request.path)
        if self._queues is None or not kind:
            return await self._connect(request)
        return await self._queues.answer(request, kind)

    async def _connect(self, request: Request) -> Response | Stream:
        parts = request.path.split("/")
        is_data = is_data_path(parts)
        kind = parts[4] if is_data else "metadata"
        if request.method != "POST":
            return _NOT_POST
        stats = self._stats
        began = time.perf_counter()
        status = 0
        stats.under_way += 1
        try:
            try:
                response = await (self._data(request, parts) if is_data else self._metadata(request))
            except HttpError as error:
                response = Response(error.status, error.text.encode())
            except KvError as error:
                if not error.not_applied and kind == "atomic_write":
                    await self._leave_open(request, error)
                response = refusal(error)
            if isinstance(response, Stream):
                status = 200
            else:
                status = response.status
                stats.sent(kind, len(response.body))
            return response
        finally:
            stats.under_way -= 1
            stats.answered(kind, status, (time.perf_counter() - began) * 1_000)

    async def _leave_open(self, request: Request, error: KvError) -> NoReturn:
        self._stats.unknown(error)
        await request.client_gone()
        raise Unanswered

    async def _metadata(self, request: Request) -> Response:
        base = parse_path(request.path)
        if base is None:
            return _NOT_FOUND
        token = bearer_token(request)
        version = choose_version(await request.body(limits.MAX_METADATA_BODY_BYTES))
        give_up = time.monotonic() + limits.DEFAULT_OPERATION_TIMEOUT_MS / 1_000
        learned = False
        while True:
            try:
                return self._exchange(base, token, version, request.origin)
            except (Unauthenticated, NotFound):
                if learned:
                    raise
                await self._access.learn()  # the token or the database may be newer than what is known here
                learned = True
            except Unavailable:
                # A cluster that is just being made. Deno gives up at the first 503 of this exchange.
                if time.monotonic() > give_up:
                    raise
                await asyncio.sleep(_RETRY_S)

    def _exchange(self, base: Base, token: str, version: int, origin: str) -> Response:
        database = self._access.find(base.database)
        if database is None:
            raise NotFound("Resource not found.")
        return exchange(self._access, database, token, version, origin, local=base.local)

    async def _data(self, request: Request, parts: list[str]) -> Response | Stream:
        _, _, uuid, consistency, method = parts
        write = method == "atomic_write"
        declared = request.header("content-length")
        is_declared = declared.isdecimal()
        token = bearer_token(request)
        if not self._access.can_judge(token):
            await self._access.learn()
        grant = self._access.authorize(uuid, token, write=write, size_bytes=int(declared) if is_declared else 0)
        refused = wrong_version(request, uuid)
        if refused is not None:
            return refused
        body = await request.body(limits.MAX_CONNECT_BODY_BYTES)
        if not is_declared:
            self._access.charge(token, len(body))
        self._stats.received(method, len(body))
        if write:
            return await self._write(grant, body)
        if method == "snapshot_read":
            return await self._read(request, grant, body, consistency)
        return await self._watch(grant, token, body, strong=consistency == "strong")

    async def _read(self, request: Request, grant: Grant, body: bytes, consistency: str) -> Response:
        if grant.database.mode is DatabaseMode.DISABLED:
            return Response(200, convert.read_disabled(), PROTOBUF)
        read = convert.read_request(body, strong=consistency == "strong")
        apply_request_headers(request, read)
        response = await self._backend.read(read, database=grant.database.number)
        headers = () if consistency == "strong" else response_headers(response)  # before the response is used up
        return Response(200, convert.read_output(response, strong=consistency != "eventual"), PROTOBUF, headers)

    async def _write(self, grant: Grant, body: bytes) -> Response:
        if grant.database.mode is not DatabaseMode.ENABLED:
            return Response(200, convert.write_disabled(), PROTOBUF)
        write = convert.write_request(body)
        try:
            response = await self._backend.write(write, database=grant.database.number)
        except Exception as error:
            if isinstance(error, KvError):
                raise
            _log.exception("a write failed in a way that nobody foresaw")
            raise OutcomeUnknown(f"internal error: {error!r}", code="INTERNAL") from error
        return Response(200, convert.write_output(response), PROTOBUF)

    async def _watch(self, grant: Grant, token: str, body: bytes, *, strong: bool) -> Stream:
        """The first frame is made before the answer begins, so that a refusal is one."""
        if grant.database.mode is DatabaseMode.DISABLED:
            return Stream(self._disabled(), _FRAMES)
        watch = convert.watch_request(body, strong=strong)
        responses = self._backend.watch(watch, database=grant.database.number)
        try:
            first = await anext(responses)
        except BaseException:
            await responses.aclose()
            raise
        headers = watch_headers(first)
        return Stream(self._frames(first, responses, grant.database.uuid, token), _FRAMES, headers)

    async def _disabled(self) -> AsyncGenerator[bytes, None]:
        yield self._framed(convert.watch_disabled())

    async def _frames(
        self,
        first: kv_pb2.WatchResponse,
        responses: AsyncGenerator[kv_pb2.WatchResponse, None],
        uuid: str,
        token: str,
    ) -> AsyncGenerator[bytes, None]:
        """Framed outputs, for as long as token and database hold, the latter is readable, and the backend serves."""
        self._stats.watches += 1
        whole = WholeFrames()
        changed = asyncio.Event()
        end = self._access.follow(changed.set)
        try:
            yield self._framed(convert.watch_output(whole.fill(first)))
            async with contextlib.aclosing(with_interruptions(responses, changed)) as interrupted:
                async for response in interrupted:
                    if self._access.still_grants(uuid, token).database.mode is DatabaseMode.DISABLED:
                        yield self._framed(convert.watch_disabled())
                        return
                    if response is not None:
                        yield _PING if response.ping else self._framed(convert.watch_output(whole.fill(response)))
        except KvError as error:
            _log.info("a watch over KV Connect ends, its client will come again: %s", error)
        finally:
            end()
            self._stats.watches -= 1
            await responses.aclose()

    def _framed(self, output: bytes) -> bytes:
        self._stats.sent("watch", _LENGTH.size + len(output))
        return _LENGTH.pack(len(output)) + output
