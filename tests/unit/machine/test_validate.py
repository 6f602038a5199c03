"""Every limit, at it and one beyond, each with its own code."""

import pytest

from kvnode.base.errors import InvalidRequest
from kvnode.machine.validate import validate_read, validate_write
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.machine.fakes import DELETE, DELETE_RANGE, LE64, SET, SET_EXPIRY, SUFFIX, SUM, mutation, write

KEY = b"\x02a\0"


def ranges(*made, **more):
    return kv_pb2.ReadRequest(ranges=[kv_pb2.ReadRange(**one) for one in made], **more)


GOOD_RANGE = {"start": KEY, "end": KEY + b"\0", "limit": 1}

GOOD_WRITES = [
    write(),
    write(checks=[(KEY, b"")] * 100),
    write(checks=[(KEY, bytes(10))]),
    write(*[mutation(DELETE, KEY)] * 1000),
    write(mutation(SET, b"k" * 2048, bytes(65_536))),
    write(mutation(SET, KEY, bytes(8), LE64, expire_at_ms=-1)),
    write(*[mutation(SET, b"k" * 1, bytes(63_014))] * 13),  # 13 * 63,015 = 819,195
    write(*[mutation(DELETE, b"k" * 2048)] * 40),
    write(mutation(DELETE_RANGE, b"", end_key=b"\xff")),
    write(mutation(SUFFIX, KEY, b"v")),
    write(
        mutation(SET_EXPIRY, KEY, expire_at_ms=1), mutation(SET_EXPIRY, KEY), mutation(SET_EXPIRY, KEY, expire_at_ms=-1)
    ),
]

BAD_WRITES = [
    ("TOO_MANY_CHECKS", write(checks=[(KEY, b"")] * 101)),
    ("TOO_MANY_MUTATIONS", write(*[mutation(DELETE, KEY)] * 1001)),
    ("EMPTY_KEY", write(mutation(SET, b"", b"v"))),
    ("EMPTY_KEY", write(mutation(DELETE, b""))),
    ("EMPTY_KEY", write(checks=[(b"", b"")])),
    ("KEY_TOO_LARGE", write(mutation(SET, b"k" * 2049, b"v"))),
    ("KEY_TOO_LARGE", write(checks=[(b"k" * 2049, b"")])),
    ("KEY_TOO_LARGE", write(mutation(DELETE_RANGE, b"", end_key=b"k" * 2072))),
    ("BAD_VERSIONSTAMP", write(checks=[(KEY, bytes(9))])),
    ("BAD_VERSIONSTAMP", write(checks=[(KEY, bytes(20))])),
    ("UNKNOWN_MUTATION", write(mutation(0, KEY))),
    ("UNKNOWN_MUTATION", write(mutation(77, KEY))),
    ("UNKNOWN_ENCODING", write(mutation(SET, KEY, b"v", 0))),
    ("UNKNOWN_ENCODING", write(mutation(SET, KEY, b"v", 9))),
    ("UNKNOWN_ENCODING", write(kv_pb2.Mutation(type=SET, key=KEY))),
    ("LE64_NOT_8_BYTES", write(mutation(SET, KEY, bytes(7), LE64))),
    ("LE64_NOT_8_BYTES", write(mutation(SUM, KEY, bytes(9), LE64))),
    ("VALUE_TOO_LARGE", write(mutation(SET, KEY, bytes(65_537)))),
    ("VALUE_TOO_LARGE", write(mutation(SUM, KEY, b"v", 1, sum_max=bytes(65_537)))),
    ("BAD_EXPIRE_AT", write(mutation(SET, KEY, b"v", expire_at_ms=-2))),
    ("BAD_EXPIRE_AT", write(mutation(SET_EXPIRY, KEY, expire_at_ms=-2))),
    ("EMPTY_KEY", write(mutation(SET_EXPIRY, b""))),
    ("KEY_TOO_LARGE", write(mutation(SET_EXPIRY, b"k" * 2049))),
    ("START_BEYOND_END", write(mutation(DELETE_RANGE, b"b", end_key=b"a"))),
    ("TRANSACTION_TOO_LARGE", write(*[mutation(SET, b"k", bytes(63_016))] * 13)),
    ("TRANSACTION_KEYS_TOO_LARGE", write(*[mutation(DELETE, b"k" * 2048)] * 41)),
]

GOOD_READS = [
    ranges(),
    ranges(*[GOOD_RANGE] * 10),
    ranges(GOOD_RANGE, consistency=kv_pb2.CONSISTENCY_EVENTUAL),
    ranges({"start": b"", "end": b"\xff", "limit": 1000}),
    ranges({"start": b"a", "end": b"a", "limit": 1}),
    ranges({"start": b"", "end": b"\xff", "count_only": True}),
    ranges({"start": b"k" * 2071, "end": b"l" * 2071, "limit": 1}, min_versionstamp=bytes(10)),
]

BAD_READS = [
    ("UNKNOWN_CONSISTENCY", ranges(GOOD_RANGE, consistency=2)),
    ("UNKNOWN_CONSISTENCY", ranges(GOOD_RANGE, consistency=-1)),
    ("TOO_MANY_RANGES", ranges(*[GOOD_RANGE] * 11)),
    ("TOO_MANY_ENTRIES", ranges({"start": b"", "end": b"\xff", "limit": 1001})),
    ("TOO_MANY_ENTRIES", ranges(*[{"start": b"", "end": b"\xff", "limit": 501}] * 2)),
    ("LIMIT_NOT_POSITIVE", ranges({"start": b"", "end": b"\xff"})),
    ("LIMIT_NOT_POSITIVE", ranges({"start": b"", "end": b"\xff", "limit": -1})),
    ("KEY_TOO_LARGE", ranges({"start": b"k" * 2072, "end": b"l", "limit": 1})),
    ("KEY_TOO_LARGE", ranges({"start": b"k", "end": b"l" * 2072, "limit": 1})),
    ("START_BEYOND_END", ranges({"start": b"b", "end": b"a", "limit": 1})),
    ("BAD_VERSIONSTAMP", ranges(GOOD_RANGE, min_versionstamp=b"123")),
]


@pytest.mark.parametrize("request_", GOOD_WRITES)
def test_writes_within_the_limits(request_):
    validate_write(request_)


def test_sets_and_deletes_alone_are_blind():
    """The leader reads no state for them, so whatever else is there must not be overlooked."""
    some = [mutation(SET, KEY, b"v"), mutation(SET, KEY, b"v", 3, expire_at_ms=9), mutation(DELETE, KEY)]
    assert validate_write(write(*some))
    for other in (
        mutation(SUM, KEY, bytes(8), LE64),
        mutation(SUFFIX, KEY, b"v"),
        mutation(SET_EXPIRY, KEY),
        mutation(DELETE_RANGE, KEY, end_key=KEY),
    ):
        assert not validate_write(write(*some, other))
    assert not validate_write(write(*some, checks=[(KEY, b"")]))
    enqueue = kv_pb2.Enqueue(payload=kv_pb2.Value(data=b"v", encoding=1))
    assert not validate_write(kv_pb2.AtomicWriteRequest(mutations=some, enqueues=[enqueue]))
    leave = kv_pb2.QueueAction(purge=kv_pb2.QueuePurge(max_count=1))
    assert not validate_write(kv_pb2.AtomicWriteRequest(mutations=some, actions=[leave]))


@pytest.mark.parametrize(("code", "request_"), BAD_WRITES)
def test_writes_beyond_them(code, request_):
    with pytest.raises(InvalidRequest) as caught:
        validate_write(request_)
    assert caught.value.code == code
    assert caught.value.not_applied


@pytest.mark.parametrize("request_", GOOD_READS)
def test_reads_within_the_limits(request_):
    validate_read(request_)


def test_a_read_says_how_many_entries_it_may_bring():
    one, ten = (kv_pb2.ReadRange(start=b"a", end=b"b", limit=limit) for limit in (1, 10))
    count = kv_pb2.ReadRange(start=b"a", end=b"b", count_only=True)
    assert validate_read(kv_pb2.ReadRequest()) == 0
    assert validate_read(kv_pb2.ReadRequest(ranges=[one, ten])) == 11
    assert validate_read(kv_pb2.ReadRequest(ranges=[count])) is None
    assert validate_read(kv_pb2.ReadRequest(ranges=[one, count])) is None


@pytest.mark.parametrize(("code", "request_"), BAD_READS)
def test_reads_beyond_them(code, request_):
    with pytest.raises(InvalidRequest) as caught:
        validate_read(request_)
    assert caught.value.code == code


def test_the_texts_begin_as_denos_do_and_name_the_part():
    with pytest.raises(
        InvalidRequest, match=r"^A value exceeds the value size limit\. That of mutation 1 has 65537 bytes"
    ):
        validate_write(write(mutation(DELETE, KEY), mutation(SET, KEY, bytes(65_537))))
