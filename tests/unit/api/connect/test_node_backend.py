"""The node as KV Connect's backend: strong reads that the leader cannot answer in one message are made here."""

from __future__ import annotations

from typing import Any, cast

import pytest

from kvnode.api.connect.answers import refusal
from kvnode.api.connect.node_backend import NodeBackend
from kvnode.base.errors import KvError, Unavailable, VersionstampLost
from kvnode.proto.deno import datapath_pb2 as wire
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.api.connect.support import connected, data_headers, get_bytes, path, serving

STAMP = b"\x00\x01" + bytes(7) + b"\x05"
TOO_LARGE = KvError("RESPONSE_TOO_LARGE", "by the test", phase="read")


class Follower:
    """Its leader can send ten entries."""

    def __init__(self) -> None:
        self.asked: list[kv_pb2.ReadRequest] = []
        self.probe_error: KvError | None = None
        self.lost_count = 0  # local reads that name what was lost

    def _read(self, request: kv_pb2.ReadRequest) -> kv_pb2.ReadResponse:
        asked = kv_pb2.ReadRequest()
        asked.CopyFrom(request)
        self.asked.append(asked)
        strong = request.consistency == kv_pb2.CONSISTENCY_STRONG
        (wanted,) = request.ranges
        if strong and wanted.keys_only and self.probe_error is not None:
            raise self.probe_error
        if strong and wanted.limit > 10:
            raise TOO_LARGE
        if not strong and self.lost_count:
            self.lost_count -= 1
            raise VersionstampLost("by the test")
        entries = [kv_pb2.Entry(key=b"k")] * wanted.limit
        found = kv_pb2.ReadRangeResult(entries=entries)
        return kv_pb2.ReadResponse(ranges=[found], versionstamp=STAMP, strongly_consistent=strong)

    async def read(self, request: kv_pb2.ReadRequest, timeout_ms: int = 0, *, database: int = 1) -> kv_pb2.ReadResponse:
        assert timeout_ms > 0
        return self._read(request)


async def ask(node: Follower, way: str, limit: int, **rest: Any) -> kv_pb2.ReadResponse | str:
    """The answer, or an error's code: of a read as a whole, or once the leader has refused it."""
    backend = NodeBackend(cast(Any, node))
    request = kv_pb2.ReadRequest(ranges=[kv_pb2.ReadRange(start=b"k", end=b"l", limit=limit)], **rest)
    try:
        if way == "read":
            return await backend.read(request, database=7)
        return await backend.read_large(request, TOO_LARGE, database=7)
    except KvError as error:
        return error.code


@pytest.mark.parametrize("way", ["read", "read_large"])
@pytest.mark.parametrize("own_stamp", [b"", bytes(10), STAMP[:-1] + b"\x06"])
async def test_a_strong_read_too_large_for_a_message_is_made_here(way: str, own_stamp: bytes) -> None:
    node = Follower()
    response = await ask(node, way, 1_000, min_versionstamp=own_stamp)
    assert isinstance(response, kv_pb2.ReadResponse)
    assert len(response.ranges[0].entries) == 1_000 and response.strongly_consistent
    *_, probe, local = node.asked
    assert len(node.asked) == (3 if way == "read" else 2)
    assert probe.consistency == kv_pb2.CONSISTENCY_STRONG and probe.ranges[0].limit == 1
    assert local.consistency == kv_pb2.CONSISTENCY_EVENTUAL
    assert local.min_versionstamp == max(own_stamp, STAMP), "not as far as everything was acknowledged"


async def test_one_that_fits_is_the_leaders() -> None:
    node = Follower()
    assert isinstance(await ask(node, "read", 10), kv_pb2.ReadResponse)
    assert len(node.asked) == 1


@pytest.mark.parametrize("way", ["read", "read_large"])
async def test_without_a_leader_it_is_refused(way: str) -> None:
    node = Follower()
    node.probe_error = Unavailable("by the test", code="NO_LEADER")
    assert await ask(node, way, 1_000) == "NO_LEADER"


async def test_what_a_failover_cuts_off_meanwhile_is_asked_for_again() -> None:
    node = Follower()
    node.lost_count = 2
    response = await ask(node, "read_large", 1_000)
    assert isinstance(response, kv_pb2.ReadResponse) and response.strongly_consistent
    assert len(node.asked) == 6
    node.lost_count = 1
    assert await ask(node, "read_large", 1_000, min_versionstamp=STAMP[:-1] + b"\x06") == "VERSIONSTAMP_LOST"


@pytest.mark.parametrize("consistency", ["strong", "eventual"])
async def test_a_strong_read_that_no_message_carries_is_made_where_the_data_is(consistency: str) -> None:
    async with serving() as running:
        running.backend.rows[1, b"k"] = kv_pb2.Entry(key=b"k", value=b"v", encoding=1, versionstamp=STAMP)
        async with connected(running) as client:
            read, headers = path("snapshot_read", consistency), data_headers()
            await client.request(read, headers, get_bytes())
            running.backend.error = KvError("RESPONSE_TOO_LARGE", "by the test", phase="read")
            before = running.backend.begun
            answer = await client.request(read, headers, get_bytes())
            assert running.backend.begun == before + 1, "it was taken without a task"
        if consistency == "strong":
            found = wire.SnapshotReadOutput.FromString(answer.body)
            assert answer.status == 200 and found.ranges[0].values[0].value == b"v"
            assert found.read_is_strongly_consistent
        else:
            assert answer.status == 400
        assert running.stats.under_way == 0


def test_what_no_message_can_carry_is_not_sent_again() -> None:
    """A gateway without data has no state of its own to read."""
    assert refusal(TOO_LARGE).status == 400
