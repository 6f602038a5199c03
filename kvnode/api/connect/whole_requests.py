"""Reads and writes that come whole, answered without a task.

Most requests of a client are small, come in one piece, and have the head of the one before (kvnode.api.http's known
heads). What such a head asks for is worked out once, and kept with it. Of the rest a request costs: judging its
token, parsing its body, one call into the node, and one callback with the result. A task, and the coroutines from the
connection down to the node's session, would cost as much again.

Whatever is out of the ordinary is left to ConnectServer, and nothing is decided here that is not decided there: a
token that cannot be judged or is refused, a request of another version, a watch, headers of our own, a session that is
not open yet. A write whose outcome cannot be known is left open by it too.

Results come from within the node's own work, so they are answered in the loop's next pass, all in one go.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, NoReturn

from kvnode.api.connect import convert
from kvnode.api.connect.answers import refusal
from kvnode.api.connect.heads import bearer_token, is_data_path, wrong_version
from kvnode.api.connect.metrics import ConnectStats
from kvnode.api.connect.ports import RESPONSE_TOO_LARGE, Access, Backend, DatabaseMode, Grant
from kvnode.api.connect.read_headers import MAX_STALENESS, MIN_VERSIONSTAMP, response_headers
from kvnode.api.http import INTERNAL_ERROR, HttpError, Request, Response, WholeRequest
from kvnode.base.errors import KvError, OutcomeUnknown
from kvnode.client.status import error_from_proto
from kvnode.proto.kv.v1 import kv_pb2

_log = logging.getLogger(__name__)

PROTOBUF = "application/x-protobuf"
_WRITE = "atomic_write"
_METHODS = frozenset(("snapshot_read", _WRITE))
_new = tuple.__new__  # a NamedTuple in half the time


class _Plan(NamedTuple):
    """What a head asks for."""

    uuid: str
    token: str
    method: str
    is_write: bool
    strong: bool  # reads the leader's state
    called_strong: bool  # is said to


class WholeRequests:
    """Answers what needs no task.

    Args:
        backend: answers operations.
        access: judges tokens.
        stats: what is counted.
        leave_open: given a write whose outcome cannot be known: returns when its client has gone, by raising.
    """

    def __init__(
        self,
        backend: Backend,
        access: Access,
        stats: ConnectStats,
        leave_open: Callable[[Request, KvError], Awaitable[NoReturn]],
    ) -> None:
        self._backend = backend
        self._access = access
        self._stats = stats
        self._leave_open = leave_open
        self._results: list[tuple[_UnderWay, kv_pb2.OperationResult]] = []

    def take(self, request: WholeRequest) -> bool:
        """Answer a request, now or later; False = nothing was done or counted, and ConnectServer is to."""
        plan = request.head.note
        if plan is None:
            plan = request.head.note = _plan_of(request) or False
        if not isinstance(plan, _Plan):
            return False
        try:
            grant = self._judge(plan, len(request.content))
        except Exception:  # a refusal, or what nobody foresaw
            return False
        if grant is None:
            return False
        self._stats.under_way += 1
        self._stats.received(plan.method, len(request.content))
        under_way = _UnderWay(self, request, plan, grant.database.number)
        try:
            self._begin(under_way, grant)
        except KvError as error:
            self._finish(under_way, refusal(error))
        except Exception as error:
            self._unforeseen(under_way, error)
        return True

    def _judge(self, plan: _Plan, size_bytes: int) -> Grant | None:
        """What the sender may do; None = it takes a task to begin. Raises KvError, and then has counted nothing.

        A token that this node cannot judge yet is refused here, and looked into by ConnectServer.
        """
        if plan.is_write and not self._backend.can_begin(write=True):
            return None
        return self._access.authorize(plan.uuid, plan.token, write=plan.is_write, size_bytes=size_bytes)

    def _begin(self, under_way: _UnderWay, grant: Grant) -> None:
        """Raises KvError: it is refused."""
        plan, mode = under_way.plan, grant.database.mode
        operation = kv_pb2.Operation()
        if not plan.is_write:
            if mode is DatabaseMode.DISABLED:
                self._finish(under_way, Response(200, convert.read_disabled(), PROTOBUF))
                return
            convert.read_into(operation.read, under_way.request.content, strong=plan.strong)
        else:
            if mode is not DatabaseMode.ENABLED:
                self._finish(under_way, Response(200, convert.write_disabled(), PROTOBUF))
                return
            write = operation.write
            convert.write_into(write, under_way.request.content)
            write.SetInParent()  # it may be empty
        self._backend.begin(operation, database=grant.database.number, deliver=under_way.deliver)

    def delivered(self, under_way: _UnderWay, result: kv_pb2.OperationResult) -> None:
        """A result is there."""
        if not self._results:
            asyncio.get_running_loop().call_soon(self._answer_all)
        self._results.append((under_way, result))

    def _answer_all(self) -> None:
        results, self._results = self._results, []
        for under_way, result in results:
            if under_way.done:
                continue
            try:
                self._answer(under_way, result)
            except Exception as error:
                self._unforeseen(under_way, error)

    def _answer(self, under_way: _UnderWay, result: kv_pb2.OperationResult) -> None:
        plan = under_way.plan
        headers: tuple[tuple[str, str], ...] = ()
        if result.HasField("error"):
            self._fail(under_way, error_from_proto(result.error))
            return
        if plan.is_write:
            body = convert.write_output(result.write)
        else:
            if not plan.strong:
                headers = response_headers(result.read)  # before it is used up
            body = convert.read_output(result.read, strong=plan.called_strong)
        self._finish(under_way, _new(Response, (200, body, PROTOBUF, headers, None)))

    def _fail(self, under_way: _UnderWay, error: KvError) -> None:
        if error.code == RESPONSE_TOO_LARGE and under_way.plan.strong and not under_way.plan.is_write:
            self._read_large(under_way, error)
            return
        if error.not_applied or not under_way.plan.is_write:
            self._finish(under_way, refusal(error))
            return
        under_way.done = True

        async def leave_open(request: Request) -> NoReturn:
            try:
                await self._leave_open(request, error)
            finally:
                self._count(under_way, 0)

        under_way.request.serve_by(leave_open)

    def _read_large(self, under_way: _UnderWay, refused: KvError) -> None:
        under_way.done = True

        async def read_large(request: Request) -> Response:
            status = 0
            try:
                response = await self._large(under_way, refused)
                status = response.status
                self._stats.sent(under_way.plan.method, len(response.body))
                return response
            finally:
                self._count(under_way, status)

        under_way.request.serve_by(read_large)

    async def _large(self, under_way: _UnderWay, refused: KvError) -> Response:
        try:
            read = convert.read_request(under_way.request.content, strong=True)
            found = await self._backend.read_large(read, refused, database=under_way.database)
        except KvError as error:
            return refusal(error)
        return Response(200, convert.read_output(found, strong=under_way.plan.called_strong), PROTOBUF)

    def _unforeseen(self, under_way: _UnderWay, error: Exception) -> None:
        """Of a write nobody knows what became of it."""
        _log.exception("%s failed in a way that nobody foresaw", under_way.plan.method)
        if under_way.plan.is_write:
            self._fail(under_way, OutcomeUnknown(f"internal error: {error!r}", code="INTERNAL"))
        else:
            self._finish(under_way, INTERNAL_ERROR)

    def _finish(self, under_way: _UnderWay, response: Response) -> None:
        under_way.done = True
        self._stats.sent(under_way.plan.method, len(response.body))
        self._count(under_way, response.status)
        under_way.request.respond(response)

    def _count(self, under_way: _UnderWay, status: int) -> None:
        self._stats.under_way -= 1
        self._stats.answered(under_way.plan.method, status, (time.perf_counter() - under_way.began) * 1_000)


class _UnderWay:
    """A request that was taken."""

    __slots__ = ("_whole_requests", "began", "database", "done", "plan", "request")

    def __init__(self, whole_requests: WholeRequests, request: WholeRequest, plan: _Plan, database: int) -> None:
        self._whole_requests = whole_requests
        self.request = request
        self.plan = plan
        self.database = database
        self.began = time.perf_counter()
        self.done = False

    def deliver(self, result: kv_pb2.OperationResult) -> None:
        """The node's answer."""
        self._whole_requests.delivered(self, result)


def _plan_of(request: WholeRequest) -> _Plan | None:
    """What a head asks for; None = it is left to ConnectServer."""
    parts = request.path.split("/")
    if not is_data_path(parts) or request.header(MAX_STALENESS) or request.header(MIN_VERSIONSTAMP):
        return None
    _, _, uuid, consistency, method = parts
    if method not in _METHODS or wrong_version(request, uuid) is not None:
        return None
    try:
        token = bearer_token(request)
    except HttpError:
        return None
    return _Plan(uuid, token, method, method == _WRITE, consistency == "strong", consistency != "eventual")
