"""From the protocol's messages to the history's."""

from __future__ import annotations

from cluster.history import (
    Check,
    CheckFailed,
    Committed,
    Mutation,
    MutationKind,
    Range,
    Rejected,
    SeenEntry,
    Unknown,
    error_outcome,
    read_from,
    read_outcome,
    write_from,
    write_outcome,
)
from kvnode.proto.kv.v1 import kv_pb2

STAMP = bytes(range(10))


def test_write() -> None:
    request = kv_pb2.AtomicWriteRequest(
        checks=[kv_pb2.Check(key=b"c", versionstamp=STAMP)],
        mutations=[
            kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_SET, key=b"k", value=kv_pb2.Value(data=b"v"), expire_at_ms=-1),
            kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_DELETE_RANGE, key=b"a", end_key=b"z"),
        ],
    )
    write = write_from(request)
    assert write.checks == (Check(b"c", STAMP),)
    assert write.mutations == (
        Mutation(MutationKind.SET, b"k", b"v"),
        Mutation(MutationKind.DELETE_RANGE, b"a", end_key=b"z"),
    )


def test_read() -> None:
    request = kv_pb2.ReadRequest(
        ranges=[kv_pb2.ReadRange(start=b"a", end=b"b", limit=3, reverse=True)],
        consistency=kv_pb2.CONSISTENCY_EVENTUAL,
        min_versionstamp=STAMP,
    )
    read = read_from(request)
    assert read.ranges == (Range(b"a", b"b", 3, reverse=True),)
    assert (read.strong, read.min_versionstamp) == (False, STAMP)


def test_outcomes() -> None:
    success = kv_pb2.AtomicWriteResponse(status=kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS, versionstamp=STAMP)
    assert write_outcome(success) == Committed(STAMP)
    failed = kv_pb2.AtomicWriteResponse(status=kv_pb2.ATOMIC_WRITE_STATUS_CHECK_FAILED, failed_checks=[1, 2])
    assert write_outcome(failed) == CheckFailed((1, 2))
    assert write_outcome(kv_pb2.AtomicWriteResponse()) == Unknown()
    assert error_outcome(True, "X") == Rejected("X")
    assert error_outcome(False, "X") == Unknown()
    entry = kv_pb2.Entry(key=b"k", value=b"v", versionstamp=STAMP)
    response = kv_pb2.ReadResponse(
        ranges=[kv_pb2.ReadRangeResult(entries=[entry], count=7)], versionstamp=STAMP, age_ms=12
    )
    seen = read_outcome(response)
    assert (seen.versionstamp, seen.age_ms) == (STAMP, 12)
    assert seen.ranges[0].entries == (SeenEntry(b"k", b"v", STAMP),)
    assert seen.ranges[0].count == 7
