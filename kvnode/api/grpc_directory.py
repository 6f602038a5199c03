"""The part of kv.v1.Admin that is about databases and tokens. Any node answers: changes go through the log."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from typing import TypeAlias

import grpc
from grpc import aio

from kvnode.api.auth import access_token
from kvnode.api.auth.gate import Gate
from kvnode.api.grpc_handlers import Handlers, timeout_ms
from kvnode.api.ports import ServedNode
from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.base.errors import InvalidRequest, KvError, Unavailable
from kvnode.codec.row import Row
from kvnode.machine.directory import changes
from kvnode.machine.directory.changes import Build
from kvnode.machine.directory.rows import ALL_DATABASES, DatabaseRow, PurgeRow, Right, TokenRow
from kvnode.machine.directory.view import DirectoryView
from kvnode.node.directory import Changes
from kvnode.node.directory_changes import change_directory, learn_directory
from kvnode.proto.kv.v1 import directory_pb2 as pb
from kvnode.proto.kv.v1 import kv_pb2

Context: TypeAlias = "aio.ServicerContext"


class DirectoryService:
    """Databases and tokens.

    Args:
        node: the node that serves.
        gate: judges followers again as the directory changes.
        clock: dates what is created, and judges expiry.
        random_source: of uuids and tokens; the operating system's own.
        stopping: done when the node is about to stop.
    """

    def __init__(
        self,
        node: ServedNode,
        gate: Gate,
        clock: Clock,
        random_source: random.Random,
        stopping: asyncio.Future[None],
    ) -> None:
        self._node = node
        self._gate = gate
        self._clock = clock
        self._random = random_source
        self._stopping = stopping

    def handlers(self, build: Handlers) -> dict[str, grpc.RpcMethodHandler]:
        """Method names to handlers."""
        unary = build.unary
        return {
            "DatabaseList": unary(pb.DatabaseListRequest, self._database_list),
            "DatabaseCreate": unary(pb.DatabaseCreateRequest, self._database_create),
            "DatabaseShow": unary(pb.DatabaseShowRequest, self._database_show),
            "DatabaseRename": unary(pb.DatabaseRenameRequest, self._database_rename),
            "DatabaseDelete": unary(pb.DatabaseDeleteRequest, self._database_delete),
            "DatabaseSet": unary(pb.DatabaseSetRequest, self._database_set),
            "TokenList": unary(pb.TokenListRequest, self._token_list),
            "TokenCreate": unary(pb.TokenCreateRequest, self._token_create),
            "TokenRevoke": unary(pb.TokenRevokeRequest, self._token_revoke),
            "WatchDirectory": build.stream_out(pb.WatchDirectoryRequest, self._watch_directory),
        }

    async def _database_list(self, _request: pb.DatabaseListRequest, context: Context) -> pb.DatabaseListResponse:
        await learn_directory(self._node, timeout_ms(context))
        view = self._node.directory.view
        return pb.DatabaseListResponse(
            databases=[database_to_wire(row) for _, row in sorted(view.databases.items())],
            purges=[purge_to_wire(purge) for _, purge in sorted(view.purges.items())],
        )

    async def _database_create(self, request: pb.DatabaseCreateRequest, context: Context) -> pb.DatabaseResponse:
        fresh = str(uuid.UUID(bytes=self._random.randbytes(16), version=4))
        await self._change(
            lambda view: changes.create_database(
                view,
                request.name,
                uuid=fresh,
                max_value_bytes=request.max_value_bytes,
                now_ms=self._clock.now_ms(),
            ),
            context,
        )
        return self._database(fresh)

    async def _database_show(self, request: pb.DatabaseShowRequest, context: Context) -> pb.DatabaseShowResponse:
        await learn_directory(self._node, timeout_ms(context))
        view = self._node.directory.view
        purge = view.purge_of(request.database)
        row = view.find(request.database)
        if row is None and purge is not None:
            return pb.DatabaseShowResponse(purge=purge_to_wire(purge))
        row = changes.require(view, request.database)
        response = pb.DatabaseShowResponse(database=database_to_wire(row), tokens=len(view.tokens_of(row.number)))
        if request.count_keys:
            response.keys = await self._count(row.number, timeout_ms(context))
        return response

    async def _database_rename(self, request: pb.DatabaseRenameRequest, context: Context) -> pb.DatabaseResponse:
        await self._change(lambda view: changes.rename_database(view, request.database, request.name), context)
        return self._database(request.name)

    async def _database_delete(self, request: pb.DatabaseDeleteRequest, context: Context) -> pb.DatabaseResponse:
        deleted: list[DatabaseRow] = []

        def build(view: DirectoryView) -> kv_pb2.AtomicWriteRequest:
            deleted[:] = [changes.require(view, request.database)]
            return changes.delete_database(view, request.database, now_ms=self._clock.now_ms())

        await self._change(build, context)
        return pb.DatabaseResponse(database=database_to_wire(deleted[0]))

    async def _database_set(self, request: pb.DatabaseSetRequest, context: Context) -> pb.DatabaseResponse:
        await self._change(
            lambda view: changes.set_database(
                view, request.database, mode=request.mode, max_value_bytes=request.max_value_bytes
            ),
            context,
        )
        return self._database(request.database)

    async def _token_list(self, _request: pb.TokenListRequest, context: Context) -> pb.TokenListResponse:
        await learn_directory(self._node, timeout_ms(context))
        rows = sorted(self._node.directory.view.tokens.values(), key=lambda row: (row.created_ms, row.token_id))
        return pb.TokenListResponse(tokens=[self._token(row) for row in rows])

    async def _token_create(self, request: pb.TokenCreateRequest, context: Context) -> pb.TokenCreateResponse:
        right = _right(request.right)
        if request.expires_in_ms < 0:
            raise InvalidRequest("TOKEN_INVALID", "a token cannot expire in the past: give a longer life, or 0")
        fresh = access_token.mint(self._random)
        now_ms = self._clock.now_ms()

        def build(view: DirectoryView) -> kv_pb2.AtomicWriteRequest:
            number = ALL_DATABASES if request.all_databases else changes.require(view, request.database).number
            row = TokenRow(
                fresh.token_id,
                fresh.secret_hash,
                fresh.last_characters,
                number,
                right,
                request.label,
                now_ms,
                now_ms + request.expires_in_ms if request.expires_in_ms else 0,
                request.requests_per_second,
                request.bytes_per_second,
            )
            return changes.create_token(view, row)

        await self._change(build, context)
        return pb.TokenCreateResponse(
            token=self._token(self._node.directory.view.tokens[fresh.token_id]), secret=fresh.text
        )

    async def _token_revoke(self, request: pb.TokenRevokeRequest, context: Context) -> pb.TokenRevokeResponse:
        revoked: list[TokenRow] = []

        def build(view: DirectoryView) -> kv_pb2.AtomicWriteRequest:
            write = changes.revoke_token(view, request.token_id)
            revoked[:] = [view.tokens[request.token_id]]
            return write

        await self._change(build, context)
        return pb.TokenRevokeResponse(token=self._token(revoked[0]))

    async def _watch_directory(self, _request: pb.WatchDirectoryRequest, context: Context) -> None:
        """All rows, then changes as they are applied here. What has not been sent yet is sent in one message.

        A follower that moves here from another node must not see older rows than before: the first message waits for
        what is acknowledged, and a node that has lost its leader sends its followers on to others.
        """
        with contextlib.suppress(KvError):
            await learn_directory(self._node, limits.PEER_CALL_TIMEOUT_MS)
        news = News()
        end = self._node.directory.follow(news.changed)
        try:
            while not self._stopping.done():
                await self._gate.require_admin(context.invocation_metadata())
                await context.write(self._what_changed(news).SerializeToString())
                await self._wait_for(news)
        finally:
            end()
        raise Unavailable("the node is stopping; follow the directory at another one", code="NODE_STOPPING")

    def _what_changed(self, news: News) -> pb.WatchDirectoryResponse:
        is_full, rows = news.take()
        if is_full:
            rows = {row.key: row for row in self._node.directory.rows()}
            response = pb.WatchDirectoryResponse(full=True, cluster_id=self._node.cluster_id)
        else:
            response = pb.WatchDirectoryResponse(ping=not rows)
        response.rows.extend(_row_to_wire(key, row) for key, row in rows.items())
        return response

    async def _wait_for(self, news: News) -> None:
        """Until there are news, a ping is due, or the node stops. Raises Unavailable: it has no leader any more."""
        for _ in range(limits.WATCH_PING_INTERVAL_MS // limits.DIRECTORY_CHECK_INTERVAL_MS):
            if await news.wait(limits.DIRECTORY_CHECK_INTERVAL_MS / 1000) or self._stopping.done():
                return
            if not self._node.leader_id:
                raise Unavailable("this node knows of no leader, so what it knows of the directory may be old")

    async def _change(self, build: Build, context: Context) -> None:
        await change_directory(self._node, build, timeout_ms(context))

    async def _count(self, number: int, within_ms: int) -> int:
        everything = kv_pb2.ReadRange(start=b"", end=b"\xff" * limits.MAX_READ_KEY_BYTES, count_only=True)
        request = kv_pb2.ReadRequest(ranges=[everything], consistency=kv_pb2.CONSISTENCY_EVENTUAL)
        response = await self._node.read(request, within_ms, database=number)
        return response.ranges[0].count

    def _database(self, name_or_uuid: str) -> pb.DatabaseResponse:
        row = changes.require(self._node.directory.view, name_or_uuid)
        return pb.DatabaseResponse(database=database_to_wire(row))

    def _token(self, row: TokenRow) -> pb.Token:
        database = self._node.directory.view.databases.get(row.database)
        return pb.Token(
            token_id=row.token_id,
            last_characters=row.last_characters,
            database=database.name if database else "",
            database_uuid=database.uuid if database else "",
            right=row.right.value,
            label=row.label,
            created_ms=row.created_ms,
            expires_ms=row.expires_ms,
            requests_per_second=row.requests_per_second,
            bytes_per_second=row.bytes_per_second,
            expired=0 < row.expires_ms <= self._clock.now_ms(),
        )


def database_to_wire(row: DatabaseRow) -> pb.Database:
    """A database as the Admin service names it."""
    return pb.Database(**{**row._asdict(), "mode": row.mode.value})


def purge_to_wire(purge: PurgeRow) -> pb.Purge:
    """A purge as the Admin service names it."""
    return pb.Purge(**purge._asdict())


def _row_to_wire(key: bytes, row: Row | None) -> pb.DirectoryRow:
    if row is None:
        return pb.DirectoryRow(key=key, gone=True)
    return pb.DirectoryRow(key=key, value=row.value, versionstamp=row.versionstamp)


def _right(text: str) -> Right:
    try:
        return Right(text)
    except ValueError:
        rights = ", ".join(right.value for right in Right)
        raise InvalidRequest("TOKEN_INVALID", f"'{text}' is no right of a token: {rights}") from None


class News:
    """What has changed in the directory since it was last taken; at first, everything."""

    def __init__(self) -> None:
        self._is_full = True
        self._rows: dict[bytes, Row | None] = {}
        self._arrived = asyncio.Event()

    def changed(self, applied: Changes | None) -> None:
        """Some rows have changed, or with None all may have."""
        if applied is None:
            self._is_full = True
        else:
            self._rows.update(applied)
        self._arrived.set()

    def take(self) -> tuple[bool, dict[bytes, Row | None]]:
        """(whether everything may have changed, the rows that have), and from here on anew."""
        taken = self._is_full, self._rows
        self._is_full, self._rows = False, {}
        self._arrived.clear()
        return taken

    async def wait(self, within_s: float) -> bool:
        """Whether something changes within that time."""
        try:
            await asyncio.wait_for(self._arrived.wait(), within_s)
        except TimeoutError:
            return False
        return True
