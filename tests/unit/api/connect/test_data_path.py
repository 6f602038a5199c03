"""snapshot_read and atomic_write over real sockets, in both versions of HTTP."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.api.connect.ports import DatabaseMode
from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, OutcomeUnknown, Unavailable
from kvnode.proto.deno import datapath_pb2 as wire
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.api.connect.support import (
    OTHER,
    STAMP,
    UUID,
    connected,
    data_headers,
    eventually,
    get_bytes,
    path,
    serving,
    set_bytes,
)
from tests.unit.api.http.raw import Http1, Http2
from tests.unit.api.http.test_taken_requests import reset


async def test_set_and_get_over_http_1() -> None:
    async with serving() as running, connected(running) as client:
        answer = await client.request(path("atomic_write"), data_headers(), set_bytes(b"k", b"v"))
        assert (answer.status, answer.headers["content-type"]) == (200, "application/x-protobuf")
        written = wire.AtomicWriteOutput.FromString(answer.body)
        assert (written.status, written.versionstamp) == (wire.AW_SUCCESS, STAMP)
        answer = await client.request(path("snapshot_read"), data_headers(), get_bytes(b"k"))
        read = wire.SnapshotReadOutput.FromString(answer.body)
        assert (read.status, read.read_disabled, read.read_is_strongly_consistent) == (wire.SR_SUCCESS, False, True)
        assert [(e.key, e.value, e.encoding, e.versionstamp) for e in read.ranges[0].values] == [
            (b"k", b"v", wire.VE_BYTES, STAMP)
        ]


async def test_set_and_get_over_http_2() -> None:
    async with serving() as running:
        client = await Http2.open(running.port)
        answer = await client.request(path("atomic_write"), data_headers(), set_bytes())
        assert (answer.status, answer.headers["content-type"]) == (200, "application/x-protobuf")
        answer = await client.request(path("snapshot_read"), data_headers(), get_bytes())
        assert wire.SnapshotReadOutput.FromString(answer.body).ranges[0].values[0].value == b"v"
        await client.close()


async def test_the_url_says_how_consistent_a_read_is() -> None:
    async with serving() as running, connected(running) as client:
        for consistency, asked, said in (
            ("strong", kv_pb2.CONSISTENCY_STRONG, True),
            ("eventual", kv_pb2.CONSISTENCY_EVENTUAL, False),
            ("local", kv_pb2.CONSISTENCY_EVENTUAL, True),
        ):
            answer = await client.request(path("snapshot_read", consistency), data_headers(), get_bytes())
            assert running.backend.reads[-1][0].consistency == asked
            assert wire.SnapshotReadOutput.FromString(answer.body).read_is_strongly_consistent is said


async def test_another_database_is_another_number() -> None:
    async with serving() as running, connected(running) as client:
        headers = data_headers(f"data-{OTHER}", OTHER)
        assert (await client.request(path("atomic_write", uuid=OTHER), headers, set_bytes())).status == 200
        assert running.backend.writes[-1][1] == 7


async def test_failed_checks_are_named() -> None:
    async with serving() as running, connected(running) as client:
        running.backend.failed_checks = [0, 2]
        answer = await client.request(path("atomic_write"), data_headers(), set_bytes())
        output = wire.AtomicWriteOutput.FromString(answer.body)
        assert (output.status, list(output.failed_checks), output.versionstamp) == (wire.AW_CHECK_FAILURE, [0, 2], b"")


@pytest.mark.parametrize(
    ("token", "status"), [("wrong", 401), (f"data-{OTHER}", 401), ("read-only", 403), ("limited", 429)]
)
async def test_tokens_that_do_not_let_in(token: str, status: int) -> None:
    async with serving() as running, connected(running) as client:
        answer = await client.request(path("atomic_write"), data_headers(token), set_bytes())
        assert (answer.status, answer.headers["content-type"]) == (status, "text/plain; charset=utf-8")
        assert running.backend.writes == []


async def test_a_token_is_not_refused_before_its_key_is_known() -> None:
    async with serving() as running, connected(running) as client:
        running.access.late_tokens.add(f"data-{UUID}")
        for _ in range(2):
            answer = await client.request(path("atomic_write"), data_headers(), set_bytes(b"k", b"v"))
            assert (answer.status, running.access.learned) == (200, 1)


async def test_a_stranger_is_refused_before_its_body_is_there() -> None:
    async with serving() as running, connected(running) as client:
        head = f"POST {path('atomic_write')} HTTP/1.1\r\nauthorization: Bearer x\r\ncontent-length: 900000\r\n\r\n"
        client.send(head.encode())
        assert (await client.answer()).status == 401
        assert await client.closed()


async def test_a_request_counts_by_its_declared_size_or_by_what_came() -> None:
    """Against --bytes-per-second, where a MiB for 20 bytes would shut a client out for seconds."""
    body = get_bytes()
    async with serving() as running, connected(running) as client:
        await client.request(path("snapshot_read"), data_headers(), body)
        assert running.access.sizes == [len(body)]
        lines = [f"{name}: {value}" for name, value in data_headers().items()]
        head = [f"POST {path('snapshot_read')} HTTP/1.1", "host: test", "transfer-encoding: chunked", *lines, "", ""]
        client.send("\r\n".join(head).encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert (await client.answer()).status == 200
        assert running.access.sizes[1:] == [0, len(body)]
        other = await Http2.open(running.port)
        assert (await other.request(path("snapshot_read"), data_headers(), body)).status == 200
        assert running.access.sizes[3:] == [0, len(body)]
        await other.close()


async def test_versions_and_database_ids() -> None:
    async with serving() as running, connected(running) as client:

        async def status(headers: dict[str, str]) -> tuple[int, bytes]:
            answer = await client.request(path("snapshot_read"), headers, get_bytes())
            return answer.status, answer.body

        assert (await status(data_headers(version="2")))[0] == 200
        version_1 = {"authorization": f"Bearer data-{UUID}", "x-transaction-domain-id": UUID}
        assert (await status(version_1))[0] == 200
        assert (await status(data_headers(version="4")))[1].startswith(b"Expected protocol version")
        assert (await status({"authorization": f"Bearer data-{UUID}"}))[0] == 400
        assert await status(data_headers() | {"x-denokv-database-id": OTHER}) == (400, b"Invalid database id.")
        assert (await status(version_1 | {"x-transaction-domain-id": "x"}))[0] == 400


@pytest.mark.parametrize("method", ["snapshot_read", "atomic_write", "watch"])
async def test_torn_protobuf(method: str) -> None:
    async with serving() as running, connected(running) as client:
        answer = await client.request(path(method), data_headers(), b"\x0a\xff\xff")
        assert answer.status == 400
        assert answer.body.startswith(b"Request protobuf is invalid")
        assert (await client.request(path("snapshot_read"), data_headers(), get_bytes())).status == 200


@pytest.mark.parametrize("method", ["snapshot_read", "atomic_write", "watch"])
async def test_bodies_over_the_limit_in_both_versions_of_http(method: str) -> None:
    too_long = bytes(limits.MAX_CONNECT_BODY_BYTES + 1)
    async with serving() as running:
        client = await Http1.open(running.port)
        head = f"POST {path(method)} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in data_headers().items())
        client.send(f"{head}content-length: {len(too_long)}\r\n\r\n".encode())
        assert (await client.answer()).status == 413
        await client.close()
        client = await Http1.open(running.port)
        client.send(f"{head}transfer-encoding: chunked\r\n\r\n{len(too_long):x}\r\n".encode() + too_long)
        assert (await client.answer()).status == 413
        await client.close()
        second = await Http2.open(running.port)
        stream = second.begin(path(method), data_headers() | {"content-length": str(len(too_long))})
        assert (await second.answer(stream)).status == 413
        stream = second.begin(path(method), data_headers())
        sending = asyncio.ensure_future(second.send(stream, too_long))
        await asyncio.wait({sending}, timeout=5)
        assert (await second.answer(stream)).status == 413
        await asyncio.gather(sending, return_exceptions=True)
        assert (await second.request(path("snapshot_read"), data_headers(), get_bytes())).status == 200
        await second.close()


async def test_the_largest_body_arrives_whole() -> None:
    value = bytes(limits.MAX_CONNECT_BODY_BYTES - 100)
    async with serving() as running, connected(running) as client:
        assert (await client.request(path("atomic_write"), data_headers(), set_bytes(b"1", value))).status == 200
        second = await Http2.open(running.port)
        assert (await second.request(path("atomic_write"), data_headers(), set_bytes(b"2", value))).status == 200
        await second.close()
        assert [len(running.backend.rows[1, key].value) for key in (b"1", b"2")] == [len(value)] * 2


async def test_a_write_that_did_not_happen_is_a_503() -> None:
    async with serving() as running, connected(running) as client:
        running.backend.error = Unavailable("no leader")
        answer = await client.request(path("atomic_write"), data_headers(), set_bytes())
        assert answer.status == 503
        assert b"temporarily unavailable" in answer.body
        assert (await client.request(path("snapshot_read"), data_headers(), get_bytes())).status == 503


async def test_a_wrong_write_is_a_400_with_its_text() -> None:
    async with serving() as running, connected(running) as client:
        running.backend.error = InvalidRequest("VALUE_TOO_LARGE", "A value exceeds the value size limit.")
        answer = await client.request(path("atomic_write"), data_headers(), set_bytes())
        assert (answer.status, answer.body) == (400, b"A value exceeds the value size limit.")


@pytest.mark.parametrize("error", [OutcomeUnknown("the session has expired"), ZeroDivisionError("a bug")])
async def test_a_write_whose_outcome_is_unknown_is_never_answered(error: Exception) -> None:
    async with serving() as running:
        client = await Http1.open(running.port)
        running.backend.error = error
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.request(path("atomic_write"), data_headers(), set_bytes()), 0.2)
        await client.close()
        names = {sample.name: sample.value for family in running.stats.collect() for sample in family.samples}
        assert names["kvnode_connect_unknown_outcomes_total"] == 1
        await eventually(lambda: running.stats.under_way == 0)


async def test_modes_of_a_database() -> None:
    async with serving() as running, connected(running) as client:
        running.access.set_mode(DatabaseMode.READ_ONLY)
        answer = await client.request(path("atomic_write"), data_headers(), set_bytes())
        assert wire.AtomicWriteOutput.FromString(answer.body).status == wire.AW_WRITE_DISABLED
        assert (await client.request(path("snapshot_read"), data_headers(), get_bytes())).status == 200
        running.access.set_mode(DatabaseMode.DISABLED)
        answer = await client.request(path("snapshot_read"), data_headers(), get_bytes())
        output = wire.SnapshotReadOutput.FromString(answer.body)
        assert (output.status, output.read_disabled) == (wire.SR_READ_DISABLED, True)
        answer = await client.request(path("watch"), data_headers(), b"")
        assert wire.WatchOutput.FromString(answer.body[4:]).status == wire.SR_READ_DISABLED
        assert running.backend.writes == []


async def test_many_at_a_time_over_one_http_2_connection() -> None:
    async with serving() as running:
        client = await Http2.open(running.port)
        running.backend.go.clear()
        streams = []
        for number in range(100):
            stream = client.begin(path("atomic_write"), data_headers())
            await client.send(stream, set_bytes(b"%d" % number))
            streams.append(stream)
        await eventually(lambda: len(running.backend.writes) == 100)
        running.backend.go.set()
        assert {(await client.answer(stream)).status for stream in streams} == {200}
        await client.close()


async def test_a_request_is_under_way_until_its_outcome_is_known_though_its_connection_is_gone() -> None:
    async with serving() as running:
        client = await Http1.open(running.port)
        running.backend.go.clear()
        asked = asyncio.ensure_future(client.request(path("atomic_write"), data_headers(), set_bytes()))
        await eventually(lambda: len(running.backend.writes) == 1)
        reset(client)
        await eventually(lambda: running.stats.connections_count() == 0)
        assert running.stats.under_way == 1
        running.backend.go.set()
        await eventually(lambda: running.stats.under_way == 0)
        await asyncio.gather(asked, return_exceptions=True)


async def test_requests_and_durations_are_counted() -> None:
    async with serving() as running, connected(running) as client:
        await client.request(path("snapshot_read"), data_headers(), get_bytes())
        await client.request(path("snapshot_read"), data_headers("wrong"), get_bytes())
        samples = [sample for family in running.stats.collect() for sample in family.samples]
        counted = {
            (s.labels["method"], s.labels["status"]): s.value for s in samples if s.name.endswith("requests_total")
        }
        assert counted == {("snapshot_read", "200"): 1, ("snapshot_read", "401"): 1}
        bodies = {s.labels.get("method"): s.value for s in samples if s.name == "kvnode_connect_received_bytes_total"}
        assert bodies["snapshot_read"] == len(get_bytes())
        connections = [s.value for s in samples if s.name == "kvnode_connect_connections_count"]
        assert connections == [1]
