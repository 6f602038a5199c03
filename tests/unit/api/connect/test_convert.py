"""Between KV Connect's messages and the native ones."""

from __future__ import annotations

import random

import pytest

from kvnode.api.connect import convert
from kvnode.api.http import LargeBody
from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.proto.deno import datapath_pb2 as wire
from kvnode.proto.kv.v1 import kv_pb2


def numbers(message) -> dict[int, int]:
    return {field.number: field.type for field in message.DESCRIPTOR.fields}


def test_what_is_passed_on_as_bytes_has_the_same_numbers() -> None:
    assert numbers(kv_pb2.ReadRange).items() >= numbers(wire.ReadRange).items()
    assert numbers(kv_pb2.Entry).items() >= numbers(wire.KvEntry).items()
    assert set(numbers(kv_pb2.Entry)) - set(numbers(wire.KvEntry)) == {5}  # expire_at_ms, cleared
    assert kv_pb2.ReadRequest.DESCRIPTOR.fields_by_name["ranges"].number == 1
    assert kv_pb2.ReadResponse.DESCRIPTOR.fields_by_name["ranges"].number == 1
    assert kv_pb2.ReadRangeResult.DESCRIPTOR.fields_by_name["entries"].number == 1
    known = {field.name for field in kv_pb2.ReadResponse.DESCRIPTOR.fields}
    assert known == {"ranges", "versionstamp", "strongly_consistent", "age_ms"}
    for number, name in wire.ValueEncoding.items():
        assert kv_pb2.ValueEncoding.Name(name).endswith(number.removeprefix("VE_"))


def test_a_read_answer_has_nothing_that_clients_do_not_know() -> None:
    entry = kv_pb2.Entry(key=b"k", value=b"v", encoding=3, versionstamp=bytes(10), expire_at_ms=7)
    response = kv_pb2.ReadResponse(ranges=[kv_pb2.ReadRangeResult(entries=[entry]), kv_pb2.ReadRangeResult()])
    response.versionstamp, response.strongly_consistent, response.age_ms = b"x" * 10, True, 9
    output = convert.read_output(response, strong=True)
    expected = wire.SnapshotReadOutput(status=wire.SR_SUCCESS, read_is_strongly_consistent=True)
    expected.ranges.add().values.add(key=b"k", value=b"v", encoding=wire.VE_BYTES, versionstamp=bytes(10))
    expected.ranges.add()
    assert sorted(output) == sorted(expected.SerializeToString())
    assert wire.SnapshotReadOutput.FromString(output) == expected


@pytest.mark.parametrize("seed", range(8))
def test_a_large_read_answer_is_made_in_pieces(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONNECT_WHOLE_BYTES", 3_000)
    monkeypatch.setattr(limits, "CONNECT_PIECE_BYTES", 1_000)
    rng = random.Random(seed)
    response = kv_pb2.ReadResponse(versionstamp=b"x" * 10, strongly_consistent=True, age_ms=9)
    largest = 0
    for count in (rng.choice((0, 1, 2, 200)), 300, rng.choice((0, 1, 100))):
        result = response.ranges.add()
        for _ in range(count):
            value = rng.randbytes(rng.choice((0, 1, 10, 130, 700)))
            largest = max(largest, len(value))
            result.entries.add(
                key=rng.randbytes(rng.randrange(200)),
                value=value,
                encoding=rng.choice((1, 2, 3)),  # type: ignore[arg-type]
                versionstamp=rng.randbytes(10),
                expire_at_ms=rng.choice((0, 5, 10**13)),
            )
    native = kv_pb2.ReadResponse.FromString(response.SerializeToString())
    output = convert.read_output(response, strong=False)
    assert isinstance(output, LargeBody)
    pieces = list(iter(output.next, b""))
    assert sum(map(len, pieces)) == len(output)
    assert max(map(len, pieces)) < 1_000 + largest + 600  # keys and heads
    expected = wire.SnapshotReadOutput(status=wire.SR_SUCCESS)
    for result in native.ranges:
        values = expected.ranges.add().values
        for entry in result.entries:
            values.add(
                key=entry.key,
                value=entry.value,
                encoding=entry.encoding,  # type: ignore[arg-type]
                versionstamp=entry.versionstamp,
            )
    found = wire.SnapshotReadOutput.FromString(b"".join(pieces))
    assert found == expected and expected.ByteSize() == len(output)  # and nothing that is not known


def test_a_read_answer_up_to_the_bound_is_made_at_once() -> None:
    entry = kv_pb2.Entry(key=b"k", value=bytes(limits.CONNECT_WHOLE_BYTES // 4), encoding=3, versionstamp=bytes(10))
    response = kv_pb2.ReadResponse(ranges=[kv_pb2.ReadRangeResult(entries=[entry] * 4)])
    assert isinstance(convert.read_output(response, strong=True), bytes)
    response.ranges[0].entries.add(value=b"x")
    assert isinstance(convert.read_output(response, strong=True), LargeBody)


@pytest.mark.parametrize("tag", [b"\x28\x01", b"\x30\x01"])
def test_a_range_cannot_ask_for_what_only_the_native_api_has(tag: bytes) -> None:
    body = b"\x0a" + bytes([len(tag)]) + tag
    with pytest.raises(InvalidRequest, match="Request protobuf is invalid"):
        convert.read_request(body, strong=True)


def test_a_range_that_begins_behind_its_end_is_empty() -> None:
    """With a cursor behind the end of what is listed Deno's client asks so, and its own database lists nothing."""
    body = wire.SnapshotRead(ranges=[wire.ReadRange(start=b"m", end=b"f", limit=9)]).SerializeToString()
    (requested,) = convert.read_request(body, strong=True).ranges
    assert requested.start == requested.end == b"m"


@pytest.mark.parametrize(
    ("start", "end"),
    [
        pytest.param(b"k" * 2_049, b"k" * 2_049 + b"\x00", id="a get of Deno's or denokv's"),
        pytest.param(b"k" * 2_049, b"k" * 2_049 + b"\xff", id="a get of @deno/kv's"),
        pytest.param(b"k" * 2_050, b"l", id="a list's start"),
        pytest.param(b"a", b"k" * 2_050, id="a list's end"),
    ],
)
def test_bounds_are_as_long_as_in_deno(start: bytes, end: bytes) -> None:
    """Deno 2.9.6 answers each of these itself: "Key too large for read (max 2049 bytes)"."""
    asked = wire.SnapshotRead(ranges=[wire.ReadRange(start=start, end=end, limit=1)])
    with pytest.raises(InvalidRequest) as refused:
        convert.read_request(asked.SerializeToString(), strong=True)
    assert refused.value.code == "KEY_TOO_LARGE"
    shorter = wire.SnapshotRead(ranges=[wire.ReadRange(start=start[1:], end=end[1:], limit=1)])
    assert convert.read_request(shorter.SerializeToString(), strong=True).ranges


def test_a_message_goes_to_the_default_queue() -> None:
    write = wire.AtomicWrite()
    write.enqueues.add(payload=b"\xff\x0f0", deadline_ms=77, keys_if_undelivered=[b"k"], backoff_schedule=[5, 6])
    write.enqueues.add(payload=b"\xff\x0f1", deadline_ms=-1)
    expected = kv_pb2.AtomicWriteRequest()
    expected.enqueues.add(due_at_ms=77, keys_if_undelivered=[b"k"], backoff_intervals_ms=[5, 6])
    expected.enqueues.add()
    for enqueue, data in zip(expected.enqueues, (b"\xff\x0f0", b"\xff\x0f1"), strict=True):
        enqueue.payload.data, enqueue.payload.encoding = data, kv_pb2.VALUE_ENCODING_V8
    assert convert.write_request(write.SerializeToString()) == expected


def field_by_field(write: wire.AtomicWrite) -> kv_pb2.AtomicWriteRequest:
    """What write_request is to come to, whatever numbers the fields have."""
    request = kv_pb2.AtomicWriteRequest()
    for check in write.checks:
        request.checks.add(key=check.key, versionstamp=check.versionstamp)
    for mutation in write.mutations:
        native = request.mutations.add(
            type=mutation.mutation_type, key=mutation.key, expire_at_ms=mutation.expire_at_ms,  # type: ignore[arg-type]
            sum_min=mutation.sum_min, sum_max=mutation.sum_max, sum_clamp=mutation.sum_clamp,
        )  # fmt: skip
        if mutation.HasField("value") and mutation.mutation_type != wire.M_DELETE:
            native.value.data, native.value.encoding = mutation.value.data, int(mutation.value.encoding)  # type: ignore[assignment]
    for enqueue in write.enqueues:
        message = request.enqueues.add(due_at_ms=max(0, enqueue.deadline_ms))
        message.payload.data, message.payload.encoding = enqueue.payload, kv_pb2.VALUE_ENCODING_V8
        message.keys_if_undelivered.extend(enqueue.keys_if_undelivered)
        message.backoff_intervals_ms.extend(enqueue.backoff_schedule)
    return request


def random_write(draw: random.Random) -> wire.AtomicWrite:
    write = wire.AtomicWrite()
    for _ in range(draw.randrange(3)):
        write.checks.add(key=draw.randbytes(3), versionstamp=draw.choice([b"", bytes(10)]))
    for _ in range(draw.randrange(4)):
        kind = draw.choice([each for each in wire.MutationType.values() if each])
        mutation = write.mutations.add(
            mutation_type=kind, key=draw.randbytes(3), expire_at_ms=draw.choice([0, -1, 5]),  # type: ignore[arg-type]
            sum_min=draw.choice([b"", b"I\x02"]), sum_max=draw.choice([b"", b"I\x04"]), sum_clamp=draw.random() < 0.5,
        )  # fmt: skip
        if draw.random() < 0.8:
            mutation.value.data, mutation.value.encoding = draw.randbytes(4), draw.randrange(4)  # type: ignore[assignment]
    for _ in range(draw.choice([0, 0, 1, 2])):
        payload = draw.choice([b"", b"text", draw.randbytes(4)])
        write.enqueues.add(
            payload=payload, deadline_ms=draw.choice([-1, 0, 77]), keys_if_undelivered=[b"k"] * draw.randrange(3),
            backoff_schedule=range(draw.randrange(3)),
        )  # fmt: skip
    return write


def test_a_transaction_means_the_same_as_field_by_field() -> None:
    draw = random.Random(7)
    for _ in range(500):
        write = random_write(draw)
        assert convert.write_request(write.SerializeToString()) == field_by_field(write)


@pytest.mark.parametrize("with_enqueue", [False, True])
def test_what_only_the_native_transaction_has_does_not_come_over_kv_connect(with_enqueue: bool) -> None:
    native = kv_pb2.AtomicWriteRequest()
    native.actions.add().claim.queue = "default"
    plain = wire.AtomicWrite(mutations=[wire.Mutation(key=b"k", mutation_type=wire.M_DELETE)])
    if with_enqueue:
        plain.enqueues.add(payload=b"p")
    body = plain.SerializeToString() + native.SerializeToString()
    assert convert.write_request(body) == field_by_field(plain)


def test_explicit_defaults_and_unpacked_numbers_are_taken() -> None:
    enqueue = b"\x1a\x04\x20\x64\x20\x05"  # backoff_schedule, unpacked
    assert convert.write_request(enqueue).enqueues[0].backoff_intervals_ms == [100, 5]
    delete = wire.Mutation(key=b"k", mutation_type=wire.M_DELETE, value=wire.KvValue(encoding=wire.VE_BYTES))
    defaults = b"\x20\x00\x2a\x00\x32\x00\x38\x00"  # as @deno/kv writes them
    one = delete.SerializeToString() + defaults
    request = convert.write_request(b"\x12" + bytes([len(one)]) + one)
    assert request.mutations[0] == kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_DELETE, key=b"k")


@pytest.mark.parametrize("kind", [kv_pb2.MUTATION_TYPE_DELETE_RANGE, kv_pb2.MUTATION_TYPE_SET_EXPIRY])
def test_mutations_that_kv_connect_has_no_word_for(kind: int) -> None:
    write = wire.AtomicWrite(mutations=[wire.Mutation(key=b"k", mutation_type=kind)])
    with pytest.raises(InvalidRequest, match="Invalid mutation kind or arguments"):
        convert.write_request(write.SerializeToString())
