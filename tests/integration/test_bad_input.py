"""Malformed and forbidden requests: each has its own error, changes nothing, and stops no node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

import grpc
import pytest
from grpc import aio

from kvnode.base import limits
from kvnode.client.session import Session
from kvnode.codec.keys import encode_key
from kvnode.proto.kv.v1 import kv_pb2
from tests.integration.conftest import MakeCluster
from tests.integration.helpers import error_of

KEY = encode_key(("probe",))
TEXT = encode_key(("text",))


class Endpoint(NamedTuple):
    """One node, over unary calls and over a session."""

    address: str
    session: Session


@pytest.fixture
async def endpoint(make_cluster: MakeCluster) -> AsyncIterator[Endpoint]:
    cluster = make_cluster()
    async with Session([cluster.addresses[0]]) as session:
        await session.write(kv_pb2.AtomicWriteRequest(mutations=[put(TEXT, b"text")]))
        yield Endpoint(cluster.addresses[0], session)
        # Whatever was sent, nothing changed and everybody lives.
        assert await read(session, KEY) is None
        assert await read(session, TEXT) == b"text"
        assert all(node.child.running for node in cluster.nodes.values())


def put(key: bytes, value: bytes = b"x", encoding: int = kv_pb2.VALUE_ENCODING_BYTES, **more) -> kv_pb2.Mutation:
    value_message = kv_pb2.Value(data=value, encoding=encoding)
    return kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_SET, key=key, value=value_message, **more)


def number(kind: int, key: bytes, data: bytes = bytes(8)) -> kv_pb2.Mutation:
    return kv_pb2.Mutation(type=kind, key=key, value=kv_pb2.Value(data=data, encoding=kv_pb2.VALUE_ENCODING_LE64))


async def read(session: Session, key: bytes) -> bytes | None:
    wanted = kv_pb2.ReadRange(start=key, end=key + b"\x00", limit=1)
    response = await session.read(kv_pb2.ReadRequest(ranges=[wanted]))
    entries = response.ranges[0].entries
    return entries[0].value if entries else None


def write(*mutations: kv_pb2.Mutation, checks: list[kv_pb2.Check] | None = None) -> kv_pb2.AtomicWriteRequest:
    # The good one in front shows that a transaction with one bad part changes nothing.
    return kv_pb2.AtomicWriteRequest(checks=checks or [], mutations=[put(KEY), *mutations])


def ranges(*items: kv_pb2.ReadRange) -> kv_pb2.ReadRequest:
    return kv_pb2.ReadRequest(ranges=items)


def one_range(start: bytes = b"a", end: bytes = b"b", limit: int = 1) -> kv_pb2.ReadRange:
    return kv_pb2.ReadRange(start=start, end=end, limit=limit)


BIG_KEY = b"k" * (limits.MAX_WRITE_KEY_BYTES + 1)
BAD_WRITES = {
    "key too large": write(put(BIG_KEY)),
    "value too large": write(put(b"k", bytes(limits.MAX_VALUE_BYTES + 1))),
    "empty key": write(put(b"")),
    "empty key deleted": write(kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_DELETE)),
    "versionstamp of 9 bytes": write(checks=[kv_pb2.Check(key=b"k", versionstamp=bytes(9))]),
    "check of an empty key": write(checks=[kv_pb2.Check()]),
    "LE64 of 7 bytes": write(put(b"k", bytes(7), kv_pb2.VALUE_ENCODING_LE64)),
    "sum with an LE64 of 9 bytes": write(number(kv_pb2.MUTATION_TYPE_SUM, b"k", bytes(9))),
    "sum on a text": write(number(kv_pb2.MUTATION_TYPE_SUM, TEXT)),
    "min on a text": write(number(kv_pb2.MUTATION_TYPE_MIN, TEXT)),
    "max on a text": write(number(kv_pb2.MUTATION_TYPE_MAX, TEXT)),
    "sum of a text": write(kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_SUM, key=b"k", value=put(b"k").value)),
    "no mutation type": write(kv_pb2.Mutation(key=b"k")),
    "unknown mutation type": write(kv_pb2.Mutation(type=77, key=b"k")),  # type: ignore[arg-type]
    "unknown encoding": write(put(b"k", b"x", 9)),
    "set without a value": write(kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_SET, key=b"k")),
    "too many checks": write(checks=[kv_pb2.Check(key=b"k")] * (limits.MAX_CHECKS_COUNT + 1)),
    "too many mutations": write(*[put(b"k")] * limits.MAX_MUTATIONS_COUNT),
    "transaction too large": write(*[put(b"k", bytes(limits.MAX_VALUE_BYTES)) for _ in range(13)]),
    "keys too large together": write(*[put(b"k" * 2_000) for _ in range(42)]),
    "delete-range from its end": write(kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_DELETE_RANGE, key=b"z", end_key=b"a")),
}
BAD_READS = {
    "limit 0": ranges(one_range(limit=0)),
    "limit below 0": ranges(one_range(limit=-1)),
    "start beyond end": ranges(one_range(b"z", b"a")),
    "too many ranges": ranges(*[one_range()] * (limits.MAX_READ_RANGES_COUNT + 1)),
    "too many entries": ranges(one_range(limit=limits.MAX_READ_ENTRIES_COUNT + 1)),
    "key too large": ranges(one_range(b"k" * (limits.MAX_BOUND_BYTES + 1), b"z")),
    "unknown consistency": kv_pb2.ReadRequest(ranges=[one_range()], consistency=7),
    "min_versionstamp of 3 bytes": kv_pb2.ReadRequest(ranges=[one_range()], min_versionstamp=b"abc"),
}


async def test_bad_writes(endpoint: Endpoint) -> None:
    codes: dict[str, str] = {}
    async with aio.insecure_channel(endpoint.address) as channel:
        call = unary(channel, "AtomicWrite", kv_pb2.AtomicWriteResponse)
        for name, request in BAD_WRITES.items():
            error = await error_of(endpoint.session.write(request))
            assert error.not_applied, name
            assert error.message, name
            codes[name] = error.code
            with pytest.raises(aio.AioRpcError) as raised:
                await call(request.SerializeToString())
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT, (name, raised.value)
            assert error.code in raised.value.details() or error.message in raised.value.details(), name
    assert not {"INTERNAL", "UNKNOWN", "UNAVAILABLE"} & set(codes.values()), codes
    assert len(set(codes.values())) >= 8, codes


async def test_bad_reads(endpoint: Endpoint) -> None:
    async with aio.insecure_channel(endpoint.address) as channel:
        call = unary(channel, "Read", kv_pb2.ReadResponse)
        for name, request in BAD_READS.items():
            error = await error_of(endpoint.session.read(request))
            assert error.message, name
            assert error.code not in ("INTERNAL", "UNKNOWN", "UNAVAILABLE"), (name, error)
            with pytest.raises(aio.AioRpcError) as raised:
                await call(request.SerializeToString())
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT, (name, raised.value)


async def test_torn_protobuf(endpoint: Endpoint) -> None:
    torn = write(put(b"k")).SerializeToString()[:-3]
    async with aio.insecure_channel(endpoint.address) as channel:
        for method, response in (("AtomicWrite", kv_pb2.AtomicWriteResponse), ("Read", kv_pb2.ReadResponse)):
            with pytest.raises(aio.AioRpcError) as raised:
                await unary(channel, method, response)(torn)
            assert raised.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
        stream = channel.stream_stream(
            "/kv.v1.KV/Session",
            request_serializer=lambda data: data,
            response_deserializer=kv_pb2.SessionResponse.FromString,
        )()
        await stream.write(torn)
        with pytest.raises(aio.AioRpcError):
            while await stream.read() is not aio.EOF:
                pass


async def test_a_bad_operation_does_not_disturb_its_neighbours_in_the_message(endpoint: Endpoint) -> None:
    answers: list[kv_pb2.OperationResult] = []
    for number_of in range(50):
        good = kv_pb2.AtomicWriteRequest(mutations=[put(b"good-%d" % number_of)])
        endpoint.session.submit(good if number_of % 2 else BAD_WRITES["key too large"], answers.append)
    while len(answers) < 50:
        await read(endpoint.session, TEXT)
    assert sum(answer.HasField("error") for answer in answers) == 25
    assert sum(answer.HasField("write") for answer in answers) == 25


def unary(channel: aio.Channel, method: str, response) -> aio.UnaryUnaryMultiCallable:
    return channel.unary_unary(
        f"/kv.v1.KV/{method}", request_serializer=lambda data: data, response_deserializer=response.FromString
    )
