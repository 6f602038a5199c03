"""Deno KV's semantics, sentence by sentence: validated, resolved, applied and read as a transaction of a client is.

Each row: what the rule says, what is stored before, the transaction, and what must come of it: an error's first words,
or what is stored after. Nothing of a refused transaction stays, also of its good parts.
"""

from __future__ import annotations

import pytest

from kvnode.base.errors import KvError
from kvnode.machine import v8number
from kvnode.machine.keyspace import database_prefix
from kvnode.machine.read import read_ranges
from kvnode.machine.resolve import Resolver
from kvnode.machine.validate import validate_read, validate_write
from kvnode.machine.verdict import Accepted, CheckFailed, Rejected
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.machine.fakes import (
    BYTES,
    DELETE,
    LE64,
    MAX,
    MIN,
    SET,
    SET_EXPIRY,
    SUFFIX,
    SUM,
    V8,
    MemoryState,
    entry,
    mutation,
    point,
    u64,
    write,
)

NOW = 1_000_000
LATER = NOW + 100
P = database_prefix(1)
TEXT = b'\xff\x0f"\x01a'


def number(value):
    return v8number.encode(float(value))


def bigint(value):
    return v8number.encode(int(value))


class Database:
    """One node without consensus: each commit is applied at once."""

    def __init__(self, rows=()):
        self.state = MemoryState()
        self.resolver = Resolver(self.state, 0)
        self.index = 1
        if rows:
            sets = [mutation(SET, key, data, encoding, expire_at_ms=at) for key, data, encoding, at in rows]
            assert isinstance(self.commit(write(*sets), now=NOW - 500), Accepted)

    def commit(self, request, now=NOW):
        """The verdict; an error of validation is Rejected as one of resolution is."""
        try:
            validate_write(request)
        except KvError as error:
            return Rejected(error, False)
        self.index += 1
        batch = self.resolver.begin(self.index, now)
        verdict = batch.add(request, 1, None)
        self.state.apply([entry(self.index, batch.payload())])
        self.resolver.applied(self.index)
        return verdict

    def read(self, *ranges, now=NOW):
        request = kv_pb2.ReadRequest(ranges=ranges)
        validate_read(request)
        response = kv_pb2.ReadResponse()
        read_ranges(self.state, request, 1, now, response)
        return response.ranges

    def rows(self, now=NOW):
        (found,) = self.read(kv_pb2.ReadRange(start=b"", end=b"\xff", limit=1_000), now=now)
        return {row.key: (row.value, row.encoding, row.expire_at_ms) for row in found.entries}


A, B = b"\x02a\x00", b"\x02b\x00"
ROW_U64 = (A, u64(40), LE64, LATER)
ROW_NUMBER = (A, number(40), V8, LATER)
ROW_BIGINT = (A, bigint(40), V8, LATER)
ROW_TEXT = (A, TEXT, V8, LATER)
ROW_BYTES = (A, b"raw", BYTES, LATER)
ROW_OVER = (A, u64(40), LE64, NOW)
MAX_U64 = 2**64 - 1

STORED = [
    ("set replaces value, encoding and TTL", ROW_U64, [mutation(SET, A, b"x", BYTES)], (b"x", BYTES, 0)),
    ("set sets a TTL", ROW_U64, [mutation(SET, A, b"x", BYTES, expire_at_ms=LATER + 1)], (b"x", BYTES, LATER + 1)),
    ("an expiry of -1 is never", None, [mutation(SET, A, b"x", BYTES, expire_at_ms=-1)], (b"x", BYTES, 0)),
    ("a time that is over hides at once", None, [mutation(SET, A, b"x", BYTES, expire_at_ms=1)], None),
    ("delete of nothing is no error", None, [mutation(DELETE, A)], None),
    ("delete deletes", ROW_U64, [mutation(DELETE, A)], None),
    ("a sum wraps; its result has no TTL", ROW_U64, [mutation(SUM, A, u64(MAX_U64), LE64)], (u64(39), LE64, 0)),
    ("min", ROW_U64, [mutation(MIN, A, u64(39), LE64)], (u64(39), LE64, 0)),
    ("min that changes nothing removes the TTL", ROW_U64, [mutation(MIN, A, u64(41), LE64)], (u64(40), LE64, 0)),
    ("max", ROW_U64, [mutation(MAX, A, u64(41), LE64)], (u64(41), LE64, 0)),
    ("sum of nothing is the operand", None, [mutation(SUM, A, u64(5), LE64)], (u64(5), LE64, 0)),
    ("min of nothing is the operand", None, [mutation(MIN, A, u64(5), LE64)], (u64(5), LE64, 0)),
    ("max of nothing is the operand", None, [mutation(MAX, A, u64(5), LE64)], (u64(5), LE64, 0)),
    ("what has expired is nothing", ROW_OVER, [mutation(SUM, A, u64(5), LE64)], (u64(5), LE64, 0)),
    ("numbers add up to a double", ROW_NUMBER, [mutation(SUM, A, b"\xff\x0fI\x03", V8)], (number(38), V8, 0)),
    ("a uint32 is a number", ROW_NUMBER, [mutation(SUM, A, b"\xff\x0fU\x02", V8)], (number(42), V8, 0)),
    ("of Deno's header too", ROW_NUMBER, [mutation(SUM, A, b"\xff\x10I\x04", V8)], (number(42), V8, 0)),
    ("bigints add up", ROW_BIGINT, [mutation(SUM, A, bigint(-50), V8)], (bigint(-10), V8, 0)),
    ("a bigint may meet a KvU64", ROW_U64, [mutation(SUM, A, bigint(MAX_U64), V8)], (u64(39), LE64, 0)),
    (
        "clamp stops at the maximum",
        ROW_NUMBER,
        [mutation(SUM, A, number(9), V8, sum_max=number(44), sum_clamp=True)],
        (number(44), V8, 0),
    ),
    (
        "clamp stops at the minimum",
        ROW_BIGINT,
        [mutation(SUM, A, bigint(-90), V8, sum_min=bigint(0), sum_clamp=True)],
        (bigint(0), V8, 0),
    ),
    (
        "later mutations see earlier ones",
        ROW_TEXT,
        [mutation(DELETE, A), mutation(SUM, A, u64(1), LE64), mutation(SUM, A, u64(2), LE64)],
        (u64(3), LE64, 0),
    ),
    (
        "an expiry alone keeps the value",
        ROW_U64,
        [mutation(SET_EXPIRY, A, expire_at_ms=LATER + 7)],
        (u64(40), LE64, LATER + 7),
    ),
    ("no mutation at all is a commit", ROW_U64, [], (u64(40), LE64, LATER)),
]


@pytest.mark.parametrize(("rule", "before", "mutations", "after"), STORED, ids=[row[0] for row in STORED])
def test_what_is_stored(rule, before, mutations, after):
    database = Database([before] if before else [])
    verdict = database.commit(write(*mutations))
    assert isinstance(verdict, Accepted) and len(verdict.versionstamp) == 10
    assert database.rows().get(A) == after


MAKE = "Failed to perform '%s' mutation on a non-U64 "
REFUSED = [
    (MAKE % "sum" + "value in the database", ROW_TEXT, mutation(SUM, A, u64(1), LE64)),
    (MAKE % "min" + "value in the database", ROW_NUMBER, mutation(MIN, A, u64(1), LE64)),
    (MAKE % "max" + "value in the database", ROW_BYTES, mutation(MAX, A, u64(1), LE64)),
    (MAKE % "sum" + "operand", ROW_U64, mutation(SUM, A, b"x", BYTES)),
    (MAKE % "min" + "operand", ROW_U64, mutation(MIN, A, bigint(1), V8)),
    (MAKE % "max" + "operand", None, mutation(MAX, A, number(1), V8)),
    ("Cannot sum KvU64 with Number", ROW_U64, mutation(SUM, A, number(1), V8)),
    ("Cannot sum KvU64 with BigInt", ROW_U64, mutation(SUM, A, bigint(-1), V8)),
    ("Cannot sum KvU64 with BigInt", ROW_U64, mutation(SUM, A, bigint(1), V8, sum_max=bigint(99))),
    ("Cannot sum BigInt with Number", ROW_BIGINT, mutation(SUM, A, number(1), V8)),
    ("Cannot sum Number with BigInt", ROW_NUMBER, mutation(SUM, A, bigint(1), V8)),
    ("Cannot use min/max parameters with KvU64 operands", None, mutation(SUM, A, u64(1), LE64, sum_max=bigint(9))),
    (
        "Min/max parameters have different types than the operand",
        None,
        mutation(SUM, A, number(1), V8, sum_min=bigint(0)),
    ),
    ("Some of the parameters are not valid V8 values", None, mutation(SUM, A, b"\xff\x0f", V8)),
    ("Some of the parameters are not valid V8 values", None, mutation(SUM, A, TEXT, V8)),
    ("Some of the parameters are not valid V8 values", None, mutation(SUM, A, number(1), V8, sum_max=b"9")),
    (
        "The result of a Sum operation would exceed its range limit",
        ROW_NUMBER,
        mutation(SUM, A, number(5), V8, sum_max=number(44)),
    ),
    (
        "The result of a Sum operation would exceed its range limit",
        ROW_BIGINT,
        mutation(SUM, A, bigint(-50), V8, sum_min=bigint(0)),
    ),
    ("unsupported value type", ROW_TEXT, mutation(SUM, A, number(1), V8)),
    ("unsupported value type", ROW_BYTES, mutation(SUM, A, bigint(1), V8)),
    ("Invalid mutation kind or arguments.", None, mutation(0, A)),
    ("Invalid mutation kind or arguments.", None, mutation(SET, A, bytes(7), LE64)),
    ("Invalid mutation expire at.", None, mutation(SET, A, b"x", BYTES, expire_at_ms=-2)),
    ("The value encoding 9 is unknown.", None, mutation(SET, A, b"x", 9)),
    ("key cannot be empty", None, mutation(SET, b"", b"x", BYTES)),
    ("A key exceeds the key size limit.", None, mutation(SET, b"k" * 2049, b"x", BYTES)),
    ("A value exceeds the value size limit.", None, mutation(SET, A, bytes(65_537), BYTES)),
]


@pytest.mark.parametrize(("text", "before", "bad"), REFUSED)
def test_what_is_refused_and_that_nothing_of_it_stays(text, before, bad):
    database = Database([before] if before else [])
    rows = dict(database.state.rows)
    verdict = database.commit(write(mutation(SET, B, b"good", BYTES), bad, mutation(DELETE, A)))
    assert isinstance(verdict, Rejected)
    assert verdict.error.message.startswith(text)
    assert verdict.error.not_applied
    assert database.state.rows == rows


CHECKS = [
    ("the versionstamp of now", lambda stamp: [(A, stamp)], ()),
    ("nothing is there", lambda stamp: [(B, b"")], ()),
    ("another versionstamp", lambda stamp: [(A, bytes(10))], (0,)),
    ("something is there", lambda stamp: [(A, b"")], (0,)),
    ("nothing is there to have a versionstamp", lambda stamp: [(B, stamp)], (0,)),
    ("all that fail are named", lambda stamp: [(B, stamp), (A, stamp), (A, b""), (B, b"")], (0, 2)),
]


@pytest.mark.parametrize(("rule", "made", "failed"), CHECKS, ids=[row[0] for row in CHECKS])
def test_checks(rule, made, failed):
    database = Database([ROW_U64])
    stamp = database.state.rows[P + A].versionstamp
    verdict = database.commit(write(mutation(SET, B, b"x", BYTES), checks=made(stamp)))
    if failed:
        assert verdict == CheckFailed(failed, False)
        assert B not in database.rows()
    else:
        assert isinstance(verdict, Accepted)


def test_all_of_a_commit_shares_one_versionstamp_and_the_next_is_greater():
    database = Database()
    first = database.commit(write(mutation(SET, A, b"1"), mutation(SUM, B, u64(1), LE64), mutation(SUFFIX, A, b"s")))
    assert {row.versionstamp for row in database.state.rows.values()} == {first.versionstamp}
    second = database.commit(write(mutation(SET, A, b"1")))
    assert second.versionstamp > first.versionstamp > bytes(10)


def test_a_suffix_is_the_versionstamp_as_a_text_part():
    database = Database()
    verdict = database.commit(write(mutation(SUFFIX, A, b"s", expire_at_ms=LATER)))
    assert database.rows() == {A + b"\x02" + verdict.versionstamp.hex().encode() + b"\x00": (b"s", BYTES, LATER)}


def test_an_expiry_is_seen_by_reads_checks_and_counts_at_the_same_time():
    database = Database([ROW_U64])
    whole = kv_pb2.ReadRange(start=b"", end=b"\xff", count_only=True)
    for now, is_there in ((LATER - 1, True), (LATER, False), (LATER + 1, False)):
        assert (A in database.rows(now=now)) == is_there
        assert bool(database.read(point(A), now=now)[0].entries) == is_there
        assert database.read(whole, now=now)[0].count == is_there
        verdict = database.commit(write(checks=[(A, b"")]), now=now)
        assert isinstance(verdict, CheckFailed if is_there else Accepted)


def keys_of(count, size):
    return [b"%0*d" % (size, position) for position in range(count)]


LIMITS = [
    ("100 checks", write(checks=[(A, b"")] * 100), ""),
    ("101 checks", write(checks=[(A, b"")] * 101), "Too many checks included in atomic write."),
    ("1000 mutations", write(*[mutation(DELETE, A)] * 1000), ""),
    (
        "1001 mutations",
        write(*[mutation(DELETE, A)] * 1001),
        "Too many mutations / enqueues included in atomic write.",
    ),
    ("a key of 2048", write(mutation(SET, b"k" * 2048, b"x")), ""),
    ("a checked key of 2049", write(checks=[(b"k" * 2049, b"")]), "A key exceeds the key size limit."),
    ("a value of 65536", write(mutation(SET, A, bytes(65_536))), ""),
    # 12 * (1 + 65,536) + 1 + 32,755 = 819,200
    ("819200 bytes", write(*[mutation(SET, b"k", bytes(65_536))] * 12, mutation(SET, b"k", bytes(32_755))), ""),
    (
        "819201 bytes",
        write(*[mutation(SET, b"k", bytes(65_536))] * 12, mutation(SET, b"k", bytes(32_756))),
        "The total size of the atomic write is too large.",
    ),
    (
        "819201 bytes with the key of a check",
        write(
            *[mutation(SET, b"k", bytes(65_536))] * 12,
            mutation(SET, b"k", bytes(32_754)),
            checks=[(b"ck", b"")],
        ),
        "The total size of the atomic write is too large.",
    ),
    ("81920 bytes of keys", write(*[mutation(DELETE, key) for key in keys_of(40, 2048)]), ""),
    (
        "81921 bytes of keys",
        write(*[mutation(DELETE, key) for key in keys_of(40, 2048)], mutation(DELETE, b"k")),
        "The total size of the keys in the atomic write is too large.",
    ),
    ("a versionstamp of 9 bytes", write(checks=[(A, bytes(9))]), "Invalid versionstamp."),
]


@pytest.mark.parametrize(("rule", "request_", "text"), LIMITS, ids=[row[0] for row in LIMITS])
def test_limits_of_a_write(rule, request_, text):
    verdict = Database().commit(request_)
    if text:
        assert isinstance(verdict, Rejected) and verdict.error.message.startswith(text)
    else:
        assert isinstance(verdict, Accepted)


def of(count, limit):
    return kv_pb2.ReadRequest(ranges=[kv_pb2.ReadRange(start=A, end=B, limit=limit)] * count)


READS = [
    ("10 ranges", of(10, 100), ""),
    ("11 ranges", of(11, 1), "Too many read ranges requested in one read request."),
    ("1000 entries", of(1, 1000), ""),
    (
        "1001 entries in all",
        kv_pb2.ReadRequest(ranges=[*of(2, 500).ranges, *of(1, 1).ranges]),
        "The total number of entries requested across read ranges in the read request is too large.",
    ),
    ("a limit of 0", of(1, 0), "The read range limit of the snapshot read request is invalid."),
    ("a negative limit", of(1, -1), "The read range limit of the snapshot read request is invalid."),
]


@pytest.mark.parametrize(("rule", "request_", "text"), READS, ids=[row[0] for row in READS])
def test_limits_of_a_read(rule, request_, text):
    if not text:
        validate_read(request_)
        return
    with pytest.raises(KvError) as caught:
        validate_read(request_)
    assert caught.value.message.startswith(text)
