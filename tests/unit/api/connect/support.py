"""A KV Connect server over a backend and an access of dictionaries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

from kvnode.api.connect.metrics import ConnectStats
from kvnode.api.connect.ports import Database, DatabaseMode, Grant
from kvnode.api.connect.server import ConnectServer
from kvnode.api.http import Tls
from kvnode.base.errors import Forbidden, KvError, NotFound, RateLimited, Unauthenticated, Unavailable
from kvnode.node.calls import error_message
from kvnode.node.ports import Deliver
from kvnode.proto.deno import datapath_pb2 as wire
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.api.http.raw import Http1

UUID = "11111111-2222-4333-8444-555555555555"
OTHER = "99999999-2222-4333-8444-555555555555"
STAMP = b"\x00\x01" + bytes(7) + b"\x05"
METADATA_BODY = b'{"supportedVersions":[1,2,3]}'


class FakeAccess:
    def __init__(self) -> None:
        self.databases = {UUID: Database(1, UUID, "", DatabaseMode.ENABLED, 65_536)}
        self.databases[OTHER] = Database(7, OTHER, "orders", DatabaseMode.ENABLED, 65_536)
        self.followers: list[Callable[[], None]] = []
        self.learned = 0
        self.late: Database | None = None  # known only after learning
        self.late_tokens: set[str] = set()  # signed with a key that is known only after learning
        self.unavailable = 0
        self.sizes: list[int] = []

    def find(self, name_or_uuid: str) -> Database | None:
        by_name = {database.name: database for database in self.databases.values()}
        return self.databases.get(name_or_uuid) or by_name.get(name_or_uuid)

    async def learn(self) -> None:
        self.learned += 1
        if self.late is not None:
            self.databases[self.late.uuid] = self.late
        self.late_tokens.clear()

    def can_judge(self, data_token: str) -> bool:
        return data_token not in self.late_tokens

    def exchange(self, database: Database, access_token: str) -> tuple[str, int]:
        if self.unavailable:
            self.unavailable -= 1
            raise Unavailable("no signing key yet", code="NO_SIGNING_KEY")
        if access_token != "access":
            raise Unauthenticated("Invalid access token.")
        return f"data-{database.uuid}", 1_893_456_000_000

    def authorize(self, uuid: str, data_token: str, *, write: bool, size_bytes: int) -> Grant:
        self.sizes.append(size_bytes)
        if data_token == "limited":
            raise RateLimited("This token has used up its requests.")
        if data_token == "read-only" and write:
            raise Forbidden("This token may read and not write.")
        if data_token not in (f"data-{uuid}", "read-only") or data_token in self.late_tokens:
            raise Unauthenticated("Invalid access token.")
        if uuid not in self.databases:
            raise NotFound("there is no such database")
        return Grant("t", self.databases[uuid], data_token != "read-only")

    def charge(self, data_token: str, size_bytes: int) -> None:
        self.sizes.append(size_bytes)

    def still_grants(self, uuid: str, data_token: str) -> Grant:
        return self.authorize(uuid, data_token, write=False, size_bytes=0)

    def follow(self, changed: Callable[[], None]) -> Callable[[], None]:
        self.followers.append(changed)
        return lambda: self.followers.remove(changed)

    def set_mode(self, mode: DatabaseMode) -> None:
        self.databases[UUID] = self.databases[UUID]._replace(mode=mode)
        for changed in list(self.followers):
            changed()


class FakeBackend:
    name = "fake"

    def __init__(self) -> None:
        self.rows: dict[tuple[int, bytes], kv_pb2.Entry] = {}
        self.reads: list[tuple[kv_pb2.ReadRequest, int]] = []
        self.writes: list[tuple[kv_pb2.AtomicWriteRequest, int]] = []
        self.error: BaseException | None = None
        self.answer = kv_pb2.ReadResponse()  # what a read's answer has besides its ranges
        self.failed_checks: list[int] = []
        self.frames: asyncio.Queue[kv_pb2.WatchResponse | KvError] = asyncio.Queue()
        self.watching = 0
        self.go = asyncio.Event()
        self.go.set()
        self.is_open = True  # takes writes without a task
        self.begun = 0
        self._running: set[asyncio.Task[None]] = set()

    def can_begin(self, *, write: bool) -> bool:
        return self.is_open or not write

    def begin(self, operation: kv_pb2.Operation, *, database: int, deliver: Deliver) -> None:
        self.begun += 1
        task = asyncio.ensure_future(self._run(operation, database, deliver))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, operation: kv_pb2.Operation, database: int, deliver: Deliver) -> None:
        result = kv_pb2.OperationResult(id=operation.id)
        try:
            if operation.HasField("write"):
                result.write.CopyFrom(await self.write(operation.write, database=database))
            else:
                result.read.CopyFrom(await self.read(operation.read, database=database))
        except KvError as error:
            result.error.CopyFrom(error_message(error))
        deliver(result)

    async def read(self, request: kv_pb2.ReadRequest, *, database: int) -> kv_pb2.ReadResponse:
        self.reads.append((request, database))
        await self.go.wait()
        if self.error is not None:
            raise self.error
        response = kv_pb2.ReadResponse()
        response.CopyFrom(self.answer)
        for wanted in request.ranges:
            row = self.rows.get((database, wanted.start))
            response.ranges.add(entries=[row] if row else [])
        return response

    async def read_large(self, request: kv_pb2.ReadRequest, refused: KvError, *, database: int) -> kv_pb2.ReadResponse:
        self.error = None
        return await self.read(request, database=database)

    async def write(self, request: kv_pb2.AtomicWriteRequest, *, database: int) -> kv_pb2.AtomicWriteResponse:
        self.writes.append((request, database))
        await self.go.wait()
        if self.error is not None:
            raise self.error
        if self.failed_checks:
            status = kv_pb2.ATOMIC_WRITE_STATUS_CHECK_FAILED
            return kv_pb2.AtomicWriteResponse(status=status, failed_checks=self.failed_checks)
        for mutation in request.mutations:
            value = mutation.value
            self.rows[database, mutation.key] = kv_pb2.Entry(
                key=mutation.key, value=value.data, encoding=value.encoding, versionstamp=STAMP
            )
        return kv_pb2.AtomicWriteResponse(status=kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS, versionstamp=STAMP)

    async def watch(self, request: kv_pb2.WatchRequest, *, database: int) -> AsyncGenerator[kv_pb2.WatchResponse, None]:
        self.watching += 1
        try:
            if self.error is not None:
                raise self.error
            while True:
                frame = await self.frames.get()
                if isinstance(frame, KvError):
                    raise frame
                yield frame
        finally:
            self.watching -= 1


class Serving:
    def __init__(self, tls: Tls | None) -> None:
        self.backend = FakeBackend()
        self.access = FakeAccess()
        self.stats = ConnectStats()
        self.server = ConnectServer(self.backend, self.access, "127.0.0.1:0", tls=tls, stats=self.stats)
        self.port = 0


@asynccontextmanager
async def serving(tls: Tls | None = None) -> AsyncIterator[Serving]:
    running = Serving(tls)
    running.port = await running.server.start()
    try:
        yield running
    finally:
        running.backend.go.set()
        await running.server.stop()


@asynccontextmanager
async def connected(running: Serving) -> AsyncIterator[Http1]:
    client = await Http1.open(running.port)
    try:
        yield client
    finally:
        await client.close()


def data_headers(token: str = f"data-{UUID}", uuid: str = UUID, version: str = "3") -> dict[str, str]:
    return {
        "authorization": f"Bearer {token}",
        "content-type": "application/x-protobuf",
        "x-denokv-version": version,
        "x-denokv-database-id": uuid,
    }


def metadata_headers(token: str = "access") -> dict[str, str]:
    return {"authorization": f"Bearer {token}", "content-type": "application/json"}


def path(method: str, consistency: str = "strong", uuid: str = UUID) -> str:
    return f"/data/{uuid}/{consistency}/{method}"


def set_bytes(key: bytes = b"k", value: bytes = b"v") -> bytes:
    mutation = wire.Mutation(key=key, value=wire.KvValue(data=value, encoding=wire.VE_BYTES), mutation_type=wire.M_SET)
    return wire.AtomicWrite(mutations=[mutation]).SerializeToString()


def get_bytes(key: bytes = b"k") -> bytes:
    return wire.SnapshotRead(ranges=[wire.ReadRange(start=key, end=key + b"\xff", limit=1)]).SerializeToString()


def watch_bytes(*keys: bytes) -> bytes:
    return wire.Watch(keys=[wire.WatchKey(key=key) for key in keys]).SerializeToString()


def frame(key: bytes, value: bytes | None) -> kv_pb2.WatchResponse:
    changed = kv_pb2.WatchKey(key=key, changed=True)
    if value is not None:
        changed.entry.CopyFrom(
            kv_pb2.Entry(key=key, value=value, encoding=kv_pb2.VALUE_ENCODING_BYTES, versionstamp=STAMP)
        )
    return kv_pb2.WatchResponse(keys=[changed])


async def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def loads(body: bytes):
    return json.loads(body)
