"""Headers of our own: how old a read may be, which commit it must hold, and how old it was."""

from __future__ import annotations

import pytest

from kvnode.base.errors import TooStale, VersionstampLost
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.api.connect.support import (
    STAMP,
    connected,
    data_headers,
    frame,
    get_bytes,
    path,
    serving,
    watch_bytes,
)
from tests.unit.api.http.raw import Http1, Http2


async def test_a_request_says_how_old_a_read_may_be_and_what_it_must_hold() -> None:
    async with serving() as running, connected(running) as client:
        headers = {**data_headers(), "x-kvnode-max-staleness-ms": "1500", "x-kvnode-min-versionstamp": STAMP.hex()}
        assert (await client.request(path("snapshot_read", "eventual"), headers, get_bytes())).status == 200
        asked = running.backend.reads[-1][0]
        assert (asked.max_staleness_ms, asked.min_versionstamp) == (1_500, STAMP)
        assert (await client.request(path("snapshot_read", "eventual"), data_headers(), get_bytes())).status == 200
        asked = running.backend.reads[-1][0]
        assert (asked.max_staleness_ms, asked.min_versionstamp) == (0, b"")


async def test_a_body_cannot_say_it_in_fields_that_the_protocol_does_not_have() -> None:
    async with serving() as running, connected(running) as client:
        native = kv_pb2.ReadRequest(min_versionstamp=STAMP, max_staleness_ms=7).SerializeToString()
        await client.request(path("snapshot_read", "eventual"), data_headers(), get_bytes() + native)
        asked = running.backend.reads[-1][0]
        assert (asked.max_staleness_ms, asked.min_versionstamp) == (0, b"")


@pytest.mark.parametrize(
    ("name", "value"),
    [("x-kvnode-max-staleness-ms", value) for value in ("0", "-1", "1.5", "soon", "9" * 16)]
    + [("x-kvnode-min-versionstamp", value) for value in ("12", "xyz", STAMP.hex() + "00")],
)
async def test_what_makes_no_sense_is_refused_by_name(name: str, value: str) -> None:
    async with serving() as running, connected(running) as client:
        answer = await client.request(path("snapshot_read", "eventual"), {**data_headers(), name: value}, get_bytes())
        assert answer.status == 400 and name in answer.body.decode() and not running.backend.reads


@pytest.mark.parametrize("make", [Http1.open, Http2.open])
async def test_an_eventual_answer_says_how_old_it_is(make) -> None:
    async with serving() as running:
        client = await make(running.port)
        running.backend.answer = kv_pb2.ReadResponse(age_ms=612, versionstamp=STAMP)
        for consistency in ("eventual", "local"):
            answer = await client.request(path("snapshot_read", consistency), data_headers(), get_bytes())
            assert answer.headers["x-kvnode-age-ms"] == "612"
            assert answer.headers["x-kvnode-versionstamp"] == STAMP.hex()
        answer = await client.request(path("snapshot_read", "strong"), data_headers(), get_bytes())
        assert "x-kvnode-age-ms" not in answer.headers
        await client.close()


async def test_a_watch_says_it_of_its_first_frame() -> None:
    async with serving() as running:
        client = await Http1.open(running.port)
        first = frame(b"k", b"1")
        first.age_ms, first.versionstamp = 612, STAMP
        running.backend.frames.put_nowait(first)
        body = watch_bytes(b"k")
        head = f"POST {path('watch', 'eventual')} HTTP/1.1\r\n"
        head += "".join(f"{k}: {v}\r\n" for k, v in data_headers().items())
        client.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        status, headers = await client.head()
        assert (status, headers["content-type"]) == (200, "application/octet-stream")
        assert (headers["x-kvnode-age-ms"], headers["x-kvnode-versionstamp"]) == ("612", STAMP.hex())
        await client.close()


async def test_what_is_lost_is_not_asked_for_again_and_what_is_late_may_be() -> None:
    async with serving() as running, connected(running) as client:
        running.backend.error = VersionstampLost("it is lost")
        answer = await client.request(path("snapshot_read", "eventual"), data_headers(), get_bytes())
        assert answer.status == 409 and b"VERSIONSTAMP_LOST" in answer.body
        running.backend.error = TooStale("nobody is fresh enough")
        answer = await client.request(path("snapshot_read", "eventual"), data_headers(), get_bytes())
        assert answer.status == 503 and b"TOO_STALE" in answer.body


async def test_a_number_of_thousands_of_digits_is_refused_as_any_other() -> None:
    """int() raises beyond 4,300 digits: an answer of 500, which clients repeat for ever, and a traceback in the log."""
    name = "x-kvnode-max-staleness-ms"
    async with serving() as running, connected(running) as client:
        headers = {**data_headers(), name: "9" * 5_000}
        answer = await client.request(path("snapshot_read", "eventual"), headers, get_bytes())
        assert answer.status == 400 and name in answer.body.decode()
