"""Data requests with a known head: answered without a task, and as those that are parsed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from kvnode.api.auth.rate import RateLimit
from kvnode.api.connect.metrics import ConnectStats
from kvnode.api.connect.ports import Database, DatabaseMode, Grant
from kvnode.api.connect.server import ConnectServer
from kvnode.api.connect.whole_requests import WholeRequests
from kvnode.api.http import WholeRequest
from kvnode.api.remote_backend import RemoteBackend
from kvnode.base import limits
from kvnode.base.errors import (
    Forbidden,
    InvalidRequest,
    KvError,
    NotFound,
    OutcomeUnknown,
    RateLimited,
    StorageFailed,
    TooStale,
    Unauthenticated,
    Unavailable,
    VersionstampLost,
)
from kvnode.client.pending import Deliver as SessionDeliver
from kvnode.client.session import Request as SessionRequest
from kvnode.client.session import Session
from kvnode.machine.directory.view import DirectoryView
from kvnode.node.calls import error_message
from kvnode.node.ports import Deliver
from kvnode.proto.deno import datapath_pb2 as wire
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.api.connect.support import (
    METADATA_BODY,
    OTHER,
    STAMP,
    UUID,
    FakeBackend,
    Serving,
    connected,
    data_headers,
    eventually,
    get_bytes,
    metadata_headers,
    path,
    serving,
    set_bytes,
)
from tests.unit.api.http.raw import Answer, Http1

SET, GET = set_bytes(), get_bytes()
COLD = {"x-cold": "1"}  # makes a head that was never answered well, as long as no test sends it twice


@pytest.fixture(autouse=True)
def ways(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each request with a known head, whether it was taken."""
    seen: list[bool] = []
    take = WholeRequests.take

    def recorded(self: WholeRequests, request: WholeRequest) -> bool:
        seen.append(False)  # should it raise
        seen[-1] = take(self, request)
        return seen[-1]

    monkeypatch.setattr(WholeRequests, "take", recorded)
    return seen


def undated(answer: Answer) -> Answer:
    assert answer.headers.pop("date").endswith("gmt")
    return answer


def good_body(where: str, size: int) -> bytes:
    """One that is answered well."""

    def made(padding: int) -> bytes:
        if where.endswith("atomic_write"):
            return set_bytes(b"k", bytes(padding))
        bounds = [bytes(min(padding, 1_500)), bytes(max(0, padding - 1_500))]
        ranges = [wire.ReadRange(start=bound) for bound in bounds if bound]
        return wire.SnapshotRead(ranges=ranges).SerializeToString()

    return next(body for padding in range(size + 1) if len(body := made(padding) if size else b"") == size)


async def warm(client: Http1, where: str, headers: dict[str, str], size: int) -> None:
    """Make the head of a request known, whatever its body will be."""
    assert (await client.request(where, headers, good_body(where, size))).status == 200


class Case(NamedTuple):
    where: str
    body: bytes
    status: int
    error: KvError | None = None
    mode: DatabaseMode = DatabaseMode.ENABLED
    failed_checks: tuple[int, ...] = ()
    begun: bool = True  # it comes as far as the backend
    token: str = f"data-{UUID}"


def torn(body: bytes) -> bytes:
    return b"\x0a\xff\xff" + body[3:]


STRONG, EVENTUAL, LOCAL = (path("snapshot_read", consistency) for consistency in ("strong", "eventual", "local"))
WRITE, WRITE_HERE = path("atomic_write"), path("atomic_write", "local")
LARGE_BOUND = wire.SnapshotRead(ranges=[wire.ReadRange(start=bytes(limits.MAX_READ_KEY_BYTES + 1))]).SerializeToString()
KEYS_ONLY = kv_pb2.ReadRequest(ranges=[kv_pb2.ReadRange(start=b"abc", keys_only=True)]).SerializeToString()
NATIVE_ONLY = min(set(kv_pb2.MutationType.values()) - set(wire.MutationType.values()))
STRANGE = kv_pb2.AtomicWriteRequest(
    mutations=[kv_pb2.Mutation(key=b"abcdefghijklm", type=NATIVE_ONLY)]
).SerializeToString()
NATIVE_FIELDS = kv_pb2.ReadRequest(
    ranges=[kv_pb2.ReadRange(start=b"k")], min_versionstamp=STAMP, max_staleness_ms=5
).SerializeToString()

CASES = {
    "a strong get": Case(STRONG, GET, 200),
    "an eventual get": Case(EVENTUAL, GET, 200),
    "a local get": Case(LOCAL, GET, 200),
    "a get of nothing": Case(STRONG, b"", 200),
    "a get with fields of our own": Case(STRONG, NATIVE_FIELDS, 200),
    "a get with a token that may only read": Case(STRONG, GET, 200, token="read-only"),
    "a get in a database that is read-only": Case(STRONG, GET, 200, mode=DatabaseMode.READ_ONLY),
    "a get in a database that is disabled": Case(STRONG, GET, 200, mode=DatabaseMode.DISABLED, begun=False),
    "an eventual get in one": Case(EVENTUAL, GET, 200, mode=DatabaseMode.DISABLED, begun=False),
    "a torn get": Case(STRONG, torn(GET), 400, begun=False),
    "a torn get in a disabled database": Case(STRONG, torn(GET), 200, mode=DatabaseMode.DISABLED, begun=False),
    "a get of keys only": Case(STRONG, KEYS_ONLY, 400, begun=False),
    "a get with a large bound": Case(LOCAL, LARGE_BOUND, 400, begun=False),
    "a set": Case(WRITE, SET, 200),
    "a set by another region": Case(WRITE_HERE, SET, 200),
    "an empty write": Case(WRITE, b"", 200),
    "failed checks": Case(WRITE, SET, 200, failed_checks=(0, 2)),
    "a torn write": Case(WRITE, torn(SET), 400, begun=False),
    "a mutation that is not known": Case(WRITE, STRANGE, 400, begun=False),
    "a set in a database that is read-only": Case(WRITE, SET, 200, mode=DatabaseMode.READ_ONLY, begun=False),
    "a set in a database that is disabled": Case(WRITE, SET, 200, mode=DatabaseMode.DISABLED, begun=False),
    "a wrong get": Case(STRONG, GET, 400, InvalidRequest("KEY_TOO_LARGE", "A key exceeds the key size limit.")),
    "a wrong set": Case(WRITE, SET, 400, InvalidRequest("VALUE_TOO_LARGE", "A value exceeds the value size limit.")),
    "a get without leader": Case(STRONG, GET, 503, Unavailable("no leader")),
    "a set without leader": Case(WRITE, SET, 503, Unavailable("no leader")),
    "a get whose disk failed": Case(STRONG, GET, 503, StorageFailed("by the test")),
    "a get that is too stale": Case(EVENTUAL, GET, 503, TooStale("by the test")),
    "a get of a lost state": Case(EVENTUAL, GET, 409, VersionstampLost("by the test")),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_both_ways_answer_the_same(case: Case, ways: list[bool]) -> None:
    headers = data_headers(case.token)
    async with serving() as running, connected(running) as client:
        backend = running.backend
        backend.answer = kv_pb2.ReadResponse(age_ms=612, versionstamp=STAMP, strongly_consistent=True)
        await client.request(WRITE, data_headers(), set_bytes(b"k", b"a value"))
        await warm(client, case.where, headers, len(case.body))
        running.access.set_mode(case.mode)
        backend.error, backend.failed_checks = case.error, list(case.failed_checks)
        assert (backend.begun, ways) == (0, [])
        parsed = undated(await client.request(case.where, headers | COLD, case.body))
        assert (parsed.status, backend.begun, ways) == (case.status, 0, [])
        authorized = len(running.access.sizes)
        for count in (1, 2, 3):
            assert undated(await client.request(case.where, headers, case.body)) == parsed
            assert ways == [True] * count
            assert backend.begun == (count if case.begun else 0)
        assert running.access.sizes[authorized:] == [len(case.body)] * 3
        assert running.stats.under_way == 0
        got = [request for request, _ in (backend.writes if "atomic" in case.where else backend.reads)][-4:]
        if case.begun:
            assert got[1:] == got[:-1]  # the backend was asked the same


async def test_the_answers_say_what_they_should() -> None:
    async with serving() as running, connected(running) as client:
        running.backend.answer = kv_pb2.ReadResponse(age_ms=612, versionstamp=STAMP)
        for value in (b"1", b"2", b"3"):
            answer = await client.request(WRITE, data_headers(), set_bytes(b"k", value))
            written = wire.AtomicWriteOutput.FromString(answer.body)
            assert (written.status, written.versionstamp) == (wire.AW_SUCCESS, STAMP)
            for where, strong, age in ((STRONG, True, None), (EVENTUAL, False, "612"), (LOCAL, True, "612")):
                answer = await client.request(where, data_headers(), GET)
                read = wire.SnapshotReadOutput.FromString(answer.body)
                assert [entry.value for entry in read.ranges[0].values] == [value]
                assert read.read_is_strongly_consistent is strong
                assert answer.headers.get("x-kvnode-age-ms") == age
                assert answer.headers.get("x-kvnode-versionstamp") == (age and STAMP.hex())
                asked = kv_pb2.CONSISTENCY_STRONG if where == STRONG else kv_pb2.CONSISTENCY_EVENTUAL
                assert running.backend.reads[-1][0].consistency == asked
        assert running.backend.begun == 8


async def test_each_database_has_its_number() -> None:
    async with serving() as running, connected(running) as client:
        for _ in range(2):
            for uuid, number in ((UUID, 1), (OTHER, 7)):
                headers = data_headers(f"data-{uuid}", uuid)
                assert (await client.request(path("atomic_write", uuid=uuid), headers, SET)).status == 200
                assert running.backend.writes[-1][1] == number
                assert (await client.request(path("snapshot_read", uuid=uuid), headers, GET)).status == 200
                assert running.backend.reads[-1][1] == number
        assert running.backend.begun == 4


@pytest.mark.parametrize("version", ["1", "2", "3"])
async def test_every_version_is_taken(version: str) -> None:
    headers = data_headers(version=version)
    if version == "1":
        headers = {"authorization": headers["authorization"], "x-transaction-domain-id": UUID}
    async with serving() as running, connected(running) as client:
        for _ in range(2):
            assert (await client.request(STRONG, headers, GET)).status == 200
        assert running.backend.begun == 1


# What goes the general way.


@pytest.mark.parametrize(
    ("where", "headers", "body"),
    [
        (STRONG, data_headers(version="4"), GET),
        (STRONG, data_headers(uuid=OTHER), GET),
        (STRONG, data_headers("wrong"), GET),
        (path("snapshot_read", uuid=OTHER), data_headers(uuid=OTHER), GET),
        (STRONG, {**data_headers(), "authorization": "Basic x"}, GET),
        (WRITE, data_headers("read-only"), SET),
        (WRITE, data_headers("limited"), SET),
        (path("nonsense"), data_headers(), GET),
        ("/nonsense/at/all", metadata_headers(), METADATA_BODY),
        ("/", metadata_headers("wrong"), METADATA_BODY),
    ],
)
async def test_what_is_refused_is_parsed_each_time(
    where: str, headers: dict[str, str], body: bytes, ways: list[bool]
) -> None:
    async with serving() as running, connected(running) as client:
        answers = [undated(await client.request(where, headers, body)) for _ in range(3)]
        assert answers[0].status >= 400
        assert answers[0] == answers[1] == answers[2]
        assert (running.backend.begun, ways, running.backend.reads, running.backend.writes) == (0, [], [], [])


async def test_a_metadata_exchange_goes_the_general_way(ways: list[bool]) -> None:
    async with serving() as running, connected(running) as client:
        answers = [undated(await client.request("/", metadata_headers(), METADATA_BODY)) for _ in range(3)]
        assert answers[0].status == 200
        assert answers[0] == answers[1] == answers[2]
        assert ways == [False, False]
        assert sum(counted(running.stats).values()) == 3


@pytest.mark.parametrize(
    ("name", "value"), [("x-kvnode-max-staleness-ms", "2000"), ("x-kvnode-min-versionstamp", STAMP.hex())]
)
async def test_reads_with_headers_of_our_own_go_the_general_way(name: str, value: str, ways: list[bool]) -> None:
    async with serving() as running, connected(running) as client:
        for _ in range(3):
            assert (await client.request(EVENTUAL, data_headers() | {name: value}, GET)).status == 200
            read = running.backend.reads[-1][0]
            assert read.max_staleness_ms == 2_000 or read.min_versionstamp == STAMP
        assert (running.backend.begun, ways) == (0, [False, False])
        assert len(running.access.sizes) == 3


async def test_without_an_open_session_a_write_goes_the_general_way_and_is_counted_once(ways: list[bool]) -> None:
    async with serving() as running, connected(running) as client:
        running.backend.is_open = False
        for _ in range(3):
            assert (await client.request(WRITE, data_headers(), SET)).status == 200
            assert (await client.request(STRONG, data_headers(), GET)).status == 200
        assert ways == [False, True, False, True]
        assert running.backend.begun == 2
        assert len(running.access.sizes) == 6
        assert counted(running.stats) == {("atomic_write", "200"): 3, ("snapshot_read", "200"): 3}
        running.backend.is_open = True
        assert (await client.request(WRITE, data_headers(), SET)).status == 200
        assert ways[-1] and running.backend.begun == 3


async def test_a_token_that_cannot_be_judged_yet_goes_the_general_way(ways: list[bool]) -> None:
    async with serving() as running, connected(running) as client:
        await client.request(WRITE, data_headers(), SET)
        running.access.late_tokens.add(f"data-{UUID}")
        for learned, way in ((1, False), (1, True)):
            assert (await client.request(WRITE, data_headers(), SET)).status == 200
            assert (running.access.learned, ways[-1]) == (learned, way)


@pytest.mark.parametrize(
    ("error", "status"),
    [(Unauthenticated("revoked"), 401), (Forbidden("no longer"), 403), (NotFound("deleted"), 404)],
)
async def test_a_token_that_is_revoked_between_two_requests(
    error: KvError, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as running, connected(running) as client:
        for _ in range(2):
            assert (await client.request(WRITE, data_headers(), SET)).status == 200

        def refuse(*_: object, **__: object) -> Grant:
            raise error

        written = len(running.backend.writes)
        with monkeypatch.context() as patch:
            patch.setattr(running.access, "authorize", refuse)
            parsed = undated(await client.request(WRITE, data_headers() | COLD, SET))
            assert parsed.status == status
            assert undated(await client.request(WRITE, data_headers(), SET)) == parsed
        assert len(running.backend.writes) == written
        assert (await client.request(WRITE, data_headers(), SET)).status == 200
        assert counted(running.stats)["atomic_write", str(status)] == 2


async def test_a_database_that_is_deleted_between_two_requests() -> None:
    async with serving() as running, connected(running) as client:
        for _ in range(2):
            assert (await client.request(STRONG, data_headers(), GET)).status == 200
        del running.access.databases[UUID]
        assert (await client.request(STRONG, data_headers(), GET)).status == 404


async def test_a_rate_limit_counts_each_request_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as running, connected(running) as client:
        rate = RateLimit(5, 0, 0.0)
        authorize = running.access.authorize

        def limited(uuid: str, data_token: str, *, write: bool, size_bytes: int) -> Grant:
            grant = authorize(uuid, data_token, write=write, size_bytes=size_bytes)
            rate.take(size_bytes, 0.0)
            return grant

        monkeypatch.setattr(running.access, "authorize", limited)
        statuses = [(await client.request(WRITE, data_headers(), SET)).status for _ in range(7)]
        assert statuses == [200] * 5 + [429] * 2
        assert running.backend.begun == 4
        assert counted(running.stats) == {("atomic_write", "200"): 5, ("atomic_write", "429"): 2}


async def test_an_access_that_fails_in_a_way_that_nobody_foresaw(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as running, connected(running) as client:
        assert (await client.request(WRITE, data_headers(), SET)).status == 200

        def fail(*_: object, **__: object) -> Grant:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(running.access, "authorize", fail)
        for headers in (data_headers() | COLD, data_headers()):
            assert (await client.request(WRITE, headers, SET)).status == 500
        assert running.stats.under_way == 0


# Writes whose outcome is unknown, and what nobody foresaw.


class Manual(FakeBackend):
    """A backend that delivers, or fails, when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.delivers: list[tuple[kv_pb2.Operation, Deliver]] = []
        self.on_begin: Callable[[kv_pb2.Operation, Deliver], None] = lambda operation, deliver: self.delivers.append(
            (operation, deliver)
        )

    def begin(self, operation: kv_pb2.Operation, *, database: int, deliver: Deliver) -> None:
        self.begun += 1
        self.on_begin(operation, deliver)

    def deliver(self, at: int = -1) -> None:
        operation, deliver = self.delivers[at]
        deliver(done(operation))


def done(operation: kv_pb2.Operation) -> kv_pb2.OperationResult:
    if operation.HasField("write"):
        success = kv_pb2.AtomicWriteResponse(status=kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS, versionstamp=STAMP)
        return kv_pb2.OperationResult(id=operation.id, write=success)
    return kv_pb2.OperationResult(id=operation.id, read=kv_pb2.ReadResponse())


@asynccontextmanager
async def served(backend: FakeBackend | RemoteBackend) -> AsyncIterator[Serving]:
    running = Serving(None)
    if isinstance(backend, FakeBackend):
        running.backend = backend
    running.server = ConnectServer(backend, running.access, "127.0.0.1:0", stats=running.stats)
    running.port = await running.server.start()
    try:
        yield running
    finally:
        await running.server.stop()


@asynccontextmanager
async def under_way(running: Serving, backend: Manual, where: str, count: int = 1) -> AsyncIterator[list[Http1]]:
    """Clients whose requests were begun by the backend."""
    body = SET if where == WRITE else GET
    clients = [await Http1.open(running.port) for _ in range(count)]
    assert (await clients[0].request(where, data_headers(), body)).status == 200
    for client in clients:
        begun = backend.begun
        head = f"POST {where} HTTP/1.1\r\nhost: test\r\ncontent-length: {len(body)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in data_headers().items())
        client.send(head.encode() + b"\r\n" + body)
        await eventually(lambda begun=begun: backend.begun == begun + 1)  # type: ignore[misc]
    try:
        yield clients
    finally:
        for client in clients:
            await client.close()


def counted(stats: ConnectStats) -> dict[tuple[str, str], float]:
    samples = [sample for family in stats.collect() for sample in family.samples]
    return {
        (sample.labels["method"], sample.labels["status"]): sample.value
        for sample in samples
        if sample.name == "kvnode_connect_requests_total"
    }


def unknown_count(stats: ConnectStats) -> float:
    samples = [sample for family in stats.collect() for sample in family.samples]
    return next(sample.value for sample in samples if sample.name == "kvnode_connect_unknown_outcomes_total")


async def is_silent(client: Http1) -> bool:
    try:
        await asyncio.wait_for(client.reader.read(1), 0.2)
    except TimeoutError:
        return True
    return False


async def test_a_write_whose_outcome_is_unknown_is_never_answered() -> None:
    async with serving() as running, connected(running) as client:
        assert (await client.request(WRITE, data_headers(), SET)).status == 200
        running.backend.error = OutcomeUnknown("the session has expired")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.request(WRITE, data_headers(), SET), 0.2)
        assert running.backend.begun == 1
        assert unknown_count(running.stats) == 1
        await client.close()
        await eventually(lambda: running.stats.connections_count() == 0)
        await eventually(lambda: running.stats.under_way == 0)
        assert counted(running.stats) == {("atomic_write", "200"): 1, ("atomic_write", "0"): 1}


async def test_a_write_left_open_is_under_way_until_its_client_goes() -> None:
    for headers in (data_headers() | COLD, data_headers()):
        async with serving() as running, connected(running) as client:
            assert (await client.request(WRITE, data_headers(), SET)).status == 200
            running.backend.error = OutcomeUnknown("the session has expired")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.request(WRITE, headers, SET), 0.2)
            assert running.stats.under_way == 1, headers
            assert ("atomic_write", "0") not in counted(running.stats)
            await client.close()
            await eventually(lambda: running.stats.under_way == 0)
            assert counted(running.stats) == {("atomic_write", "200"): 1, ("atomic_write", "0"): 1}


async def test_a_write_left_open_does_not_hold_up_a_stop() -> None:
    async with serving() as running, connected(running) as client:
        assert (await client.request(WRITE, data_headers(), SET)).status == 200
        running.backend.error = OutcomeUnknown("the session has expired")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.request(WRITE, data_headers(), SET), 0.2)
        await asyncio.wait_for(running.server.stop(), 10)
        assert await client.closed()


async def test_a_read_whose_outcome_is_unknown_is_a_503() -> None:
    async with serving() as running, connected(running) as client:
        assert (await client.request(STRONG, data_headers(), GET)).status == 200
        running.backend.error = OutcomeUnknown("no answer within the deadline")
        for headers in (data_headers() | COLD, data_headers()):
            assert (await client.request(STRONG, headers, GET)).status == 503
        assert (running.backend.begun, unknown_count(running.stats)) == (1, 0)


def refusing(error: Exception, *, delivers: bool = False) -> Callable[[kv_pb2.Operation, Deliver], None]:
    def begin(operation: kv_pb2.Operation, deliver: Deliver) -> None:
        if delivers:
            deliver(done(operation))
        raise error

    return begin


async def test_a_backend_that_refuses_to_begin() -> None:
    backend = Manual()
    async with served(backend) as running, connected(running) as client:
        backend.on_begin = refusing(Unavailable("too many requests", code="TOO_MANY_HELD"))
        for where, body in ((STRONG, GET), (WRITE, SET)):
            backend.error = None
            assert (await client.request(where, data_headers(), body)).status == 200
            backend.error = Unavailable("too many requests", code="TOO_MANY_HELD")
            parsed = undated(await client.request(where, data_headers() | COLD, body))
            assert parsed.status == 503
            assert undated(await client.request(where, data_headers(), body)) == parsed
        assert (backend.begun, running.stats.under_way) == (2, 0)


@pytest.mark.parametrize("delivers", [False, True])
async def test_a_backend_that_fails_to_begin_a_read(delivers: bool) -> None:
    backend = Manual()
    async with served(backend) as running, connected(running) as client:
        assert (await client.request(STRONG, data_headers(), GET)).status == 200
        backend.error = ZeroDivisionError("a bug")
        backend.on_begin = refusing(ZeroDivisionError("a bug"), delivers=delivers)
        parsed = undated(await client.request(STRONG, data_headers() | COLD, GET))
        assert parsed.status == 500
        assert undated(await client.request(STRONG, data_headers(), GET)) == parsed
        assert await is_silent(client)
        assert (backend.begun, running.stats.under_way) == (1, 0)
        backend.error = None
        assert (await client.request(LOCAL, data_headers(), GET)).status == 200


@pytest.mark.parametrize("delivers", [False, True])
async def test_a_backend_that_fails_to_begin_a_write(delivers: bool) -> None:
    backend = Manual()
    backend.on_begin = refusing(ZeroDivisionError("a bug"), delivers=delivers)
    async with served(backend) as running, under_way(running, backend, WRITE) as (client,):
        assert await is_silent(client)
        assert unknown_count(running.stats) == 1
        await client.close()
        await eventually(lambda: running.stats.connections_count() == 0)
        assert running.stats.under_way == 0


@pytest.mark.parametrize("where", [STRONG, WRITE])
async def test_a_backend_that_delivers_before_it_returns(where: str) -> None:
    backend = Manual()
    backend.on_begin = lambda operation, deliver: deliver(done(operation))
    async with served(backend) as running, under_way(running, backend, where, 3) as clients:
        assert [(await client.answer()).status for client in clients] == [200] * 3
        assert running.stats.under_way == 0


async def test_a_backend_that_delivers_twice_is_heard_once() -> None:
    backend = Manual()
    async with served(backend) as running, under_way(running, backend, WRITE) as (client,):
        for _ in range(2):
            backend.deliver()
        assert (await client.answer()).status == 200
        backend.deliver()
        assert await is_silent(client)
        assert running.stats.under_way == 0
        assert counted(running.stats) == {("atomic_write", "200"): 2}


@pytest.mark.parametrize("where", [STRONG, WRITE])
async def test_a_result_that_cannot_be_converted_harms_no_other(where: str) -> None:
    backend = Manual()
    async with served(backend) as running, under_way(running, backend, where, 3) as clients:
        backend.deliver(0)
        backend.delivers[1][1](object())  # type: ignore[arg-type]
        backend.deliver(2)
        assert [(await clients[at].answer()).status for at in (0, 2)] == [200, 200]
        if where == STRONG:
            assert (await clients[1].answer()).status == 500
            assert running.stats.under_way == 0
        else:
            assert await is_silent(clients[1])
            assert unknown_count(running.stats) == 1
        await clients[1].close()
        await eventually(lambda: running.stats.under_way == 0 and running.stats.connections_count() == 2)


# Clients and servers that go while the backend works.


async def test_the_answer_to_a_client_that_has_left_is_counted() -> None:
    backend = Manual()
    async with served(backend) as running, under_way(running, backend, WRITE) as (client,):
        assert running.stats.under_way == 1
        await client.close()
        await asyncio.sleep(0.05)
        backend.deliver()
        await eventually(lambda: running.stats.connections_count() == 0)
        assert running.stats.under_way == 0
        assert counted(running.stats) == {("atomic_write", "200"): 2}


async def test_a_stop_waits_for_what_the_backend_holds() -> None:
    backend = Manual()
    async with served(backend) as running, under_way(running, backend, WRITE, 2) as clients:
        stopping = asyncio.ensure_future(running.server.stop())
        await asyncio.sleep(0.1)
        assert not stopping.done()
        for at in range(2):
            backend.deliver(at)
        for client in clients:
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
        await asyncio.wait_for(stopping, 10)
        assert running.stats.under_way == 0


async def test_what_the_backend_delivers_together_is_answered_in_that_order() -> None:
    backend = Manual()
    async with served(backend) as running, under_way(running, backend, STRONG, 3) as clients:
        for at in (2, 0, 1):
            backend.deliver(at)
        assert [(await client.answer()).status for client in clients] == [200] * 3


# Counting.


async def test_both_ways_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[dict[tuple[str, ...], float]] = []
    for known_bytes in (limits.MAX_KNOWN_HEAD_BYTES, 0):
        monkeypatch.setattr(limits, "MAX_KNOWN_HEAD_BYTES", known_bytes)
        async with serving() as running, connected(running) as client:
            backend = running.backend
            for error in (None, None, Unavailable("no leader"), InvalidRequest("KEY_TOO_LARGE", "by the test"), None):
                backend.error = error
                for where, body in (
                    (WRITE, SET),
                    (STRONG, GET),
                    (EVENTUAL, GET),
                    (STRONG, torn(GET)),
                    (WRITE, torn(SET)),
                ):
                    await client.request(where, data_headers(), body)
            for mode in DatabaseMode:
                running.access.set_mode(mode)
                for where, body in ((WRITE, SET), (STRONG, GET), (LOCAL, GET)):
                    await client.request(where, data_headers(), body)
            assert (backend.begun > 10) is (known_bytes > 0)
            assert running.stats.under_way == 0
            samples = [sample for family in running.stats.collect() for sample in family.samples]
            counts.append(
                {
                    (sample.name, *sorted(sample.labels.values())): sample.value
                    for sample in samples
                    if not sample.name.endswith(("_bucket", "_ms_sum", "_created"))
                }
            )
    assert counts[0] == counts[1]
    assert sum(value for key, value in counts[0].items() if key[0].endswith("requests_total")) == 34


async def test_what_is_held_is_under_way() -> None:
    backend = Manual()
    async with served(backend) as running, under_way(running, backend, STRONG, 3):
        assert running.stats.under_way == 3
        assert counted(running.stats) == {("snapshot_read", "200"): 1}
        for at in range(3):
            backend.deliver(at)
        await eventually(lambda: running.stats.under_way == 0)
        assert counted(running.stats) == {("snapshot_read", "200"): 4}


# A gateway.


class Answering(Session):
    """A session whose operations end as the test says."""

    error: KvError | None = None

    def submit(
        self, request: SessionRequest, deliver: SessionDeliver, timeout_ms: int = 0, *, settle: bool = False
    ) -> int:
        assert settle and timeout_ms == limits.CONNECT_HOLD_TIMEOUT_MS
        operation = kv_pb2.Operation(id=1)
        if isinstance(request, kv_pb2.ReadRequest):
            operation.read.CopyFrom(request)
        else:
            operation.write.CopyFrom(request)
        result = (
            done(operation) if self.error is None else kv_pb2.OperationResult(id=1, error=error_message(self.error))
        )
        asyncio.get_running_loop().call_soon(deliver, result)
        return 1


@asynccontextmanager
async def gateway() -> AsyncIterator[tuple[Serving, Answering]]:
    view = DirectoryView()
    view.load([], cluster_id="c")
    backend = RemoteBackend("gateway", ["127.0.0.1:1"], view)
    session = Answering(["127.0.0.1:1"])
    backend._sessions[view.databases[1].uuid] = session
    async with served(backend) as running:
        yield running, session


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, 200),
        (Unavailable("no leader"), 503),
        (InvalidRequest("KEY_TOO_LARGE", "A key exceeds the key size limit."), 400),
        (NotFound("The database was deleted."), 404),
        (Unauthenticated("Invalid access token."), 401),
        (Forbidden("The database is read-only.", code="DATABASE_READ_ONLY"), 403),
        (RateLimited("This token has used up its requests."), 429),
    ],
)
@pytest.mark.parametrize(("where", "body"), [(STRONG, GET), (WRITE, SET)], ids=("get", "set"))
async def test_a_gateway_answers_the_same_both_ways(
    error: KvError | None, status: int, where: str, body: bytes, ways: list[bool]
) -> None:
    async with gateway() as (running, session), connected(running) as client:
        assert (await client.request(where, data_headers(), body)).status == 200
        session.error = error
        parsed = undated(await client.request(where, data_headers() | COLD, body))
        assert (parsed.status, ways) == (status, [])
        assert undated(await client.request(where, data_headers(), body)) == parsed
        assert ways == [True]


async def test_a_gateway_whose_database_is_not_known_any_more() -> None:
    async with gateway() as (running, _), connected(running) as client:
        running.access.databases[OTHER] = Database(1, OTHER, "orders", DatabaseMode.ENABLED, 65_536)
        where, headers = path("snapshot_read", uuid=OTHER), data_headers(f"data-{OTHER}", OTHER)
        assert (await client.request(where, headers, GET)).status == 200
        running.access.databases[OTHER] = Database(9, OTHER, "orders", DatabaseMode.ENABLED, 65_536)
        parsed = undated(await client.request(where, headers | COLD, GET))
        assert parsed.status == 404
        assert undated(await client.request(where, headers, GET)) == parsed


async def test_a_gateway_with_too_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async with gateway() as (running, _), connected(running) as client:
        assert (await client.request(WRITE, data_headers(), SET)).status == 200
        monkeypatch.setattr(Answering, "is_full", property(lambda session: True))
        parsed = undated(await client.request(WRITE, data_headers() | COLD, SET))
        assert parsed.status == 503 and b"TOO_MANY_HELD" in parsed.body
        assert undated(await client.request(WRITE, data_headers(), SET)) == parsed
        assert running.stats.under_way == 0
