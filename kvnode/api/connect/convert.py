"""KV Connect's messages to the native ones and back.

What both have has the same numbers in both, so bytes are parsed once, as the native message; what only the native one
has is refused or cleared. Enqueues alone are not alike. Costs: 2 us for a get, 2.5 us for a set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter

from google.protobuf.message import DecodeError

from kvnode.api.http import Body, LargeBody
from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.codec.versionstamp import VERSIONSTAMP_BYTES
from kvnode.node.framing import varint
from kvnode.proto.deno import datapath_pb2 as wire
from kvnode.proto.kv.v1 import kv_pb2

# Enumerations have the same numbers in both; this one does not come over KV Connect.
_NATIVE_ONLY_MUTATIONS = frozenset(kv_pb2.MutationType.values()) - frozenset(wire.MutationType.values())

_DELETE = int(wire.M_DELETE)

_VALUE = attrgetter("value")
_EXPIRE_AT_MS = attrgetter("expire_at_ms")
_AT_ONCE = 64  # entries
_FIRST_FIELD = b"\x0a"  # its tag, as of a message

_NATIVE_ONLY_REQUEST_FIELDS = ("min_versionstamp", "max_staleness_ms")
_NATIVE_ONLY_READ_FIELDS = ("versionstamp", "strongly_consistent", "age_ms")

_WRITE_DISABLED = wire.AtomicWriteOutput(status=wire.AW_WRITE_DISABLED).SerializeToString()
_READ_DISABLED = wire.SnapshotReadOutput(status=wire.SR_READ_DISABLED, read_disabled=True).SerializeToString()
_WATCH_DISABLED = wire.WatchOutput(status=wire.SR_READ_DISABLED).SerializeToString()
# All that says that a write is done but its versionstamp, which comes last and always has the same length.
_WRITTEN_AT = wire.AtomicWriteOutput(
    status=wire.AW_SUCCESS, versionstamp=bytes(VERSIONSTAMP_BYTES)
).SerializeToString()[:-VERSIONSTAMP_BYTES]
_READ_DONE = wire.SnapshotReadOutput(status=wire.SR_SUCCESS).SerializeToString()
_READ_DONE_STRONGLY = wire.SnapshotReadOutput(
    status=wire.SR_SUCCESS, read_is_strongly_consistent=True
).SerializeToString()


def read_request(body: bytes, *, strong: bool) -> kv_pb2.ReadRequest:
    """The read that a SnapshotRead's bytes ask for. Raises InvalidRequest."""
    request = kv_pb2.ReadRequest()
    read_into(request, body, strong=strong)
    return request


def read_into(request: kv_pb2.ReadRequest, body: bytes, *, strong: bool) -> None:
    """As read_request, into a fresh message."""
    try:
        request.MergeFromString(body)
    except DecodeError as error:
        raise _torn(error) from None
    request.consistency = kv_pb2.CONSISTENCY_STRONG if strong else kv_pb2.CONSISTENCY_EVENTUAL
    if request.min_versionstamp or request.max_staleness_ms:  # they come as headers (read_headers.py)
        for field in _NATIVE_ONLY_REQUEST_FIELDS:
            request.ClearField(field)
    for requested in request.ranges:
        if requested.keys_only or requested.count_only:
            raise InvalidRequest("UNKNOWN_FIELD", "Request protobuf is invalid: a ReadRange has fields 1 to 4.")
        start, end = requested.start, requested.end
        if len(start) > limits.MAX_READ_KEY_BYTES or len(end) > limits.MAX_READ_KEY_BYTES:
            # The native API takes longer ones, so that it can page past every key that is stored.
            raise InvalidRequest(
                "KEY_TOO_LARGE",
                "A key exceeds the key size limit. A bound of a read range has at most "
                f"{limits.MAX_READ_KEY_BYTES} bytes.",
            )
        if end < start:  # with a cursor behind the end of what is listed there is nothing, as in Deno's own database
            requested.end = start


def read_output(response: kv_pb2.ReadResponse, *, strong: bool) -> Body:
    """A SnapshotReadOutput's bytes; uses the response up.

    Ranges and entries have the same fields and numbers in both, so that they are not built anew: what only the
    native ones have is cleared. Of more than CONNECT_WHOLE_BYTES each entry is serialized when its turn to be sent
    comes: as a whole 65 MB take 0.1 to 0.5 s, nearly all of it for fresh memory, and hold every thread meanwhile.

    Args:
        response: of the backend.
        strong: what the endpoint's label says.
    """
    for field in _NATIVE_ONLY_READ_FIELDS:
        response.ClearField(field)
    size_bytes = 0
    for result in response.ranges:
        entries = result.entries
        if len(entries) > 1:
            size_bytes = _cleared(entries, size_bytes)
            continue
        for entry in entries:
            if entry.expire_at_ms:
                entry.expire_at_ms = 0
    done = _READ_DONE_STRONGLY if strong else _READ_DONE
    if size_bytes > limits.CONNECT_WHOLE_BYTES:
        return _in_pieces(response, done)
    return response.SerializeToString() + done


def _cleared(entries: Sequence[kv_pb2.Entry], size_bytes: int) -> int:
    """Clear what only native entries have; returns `size_bytes` and what their values come to.

    Once that makes a large answer the rest of them is not counted: asking for a value copies it.
    """
    for at in range(0, len(entries), _AT_ONCE):
        some = entries[at : at + _AT_ONCE]
        if size_bytes <= limits.CONNECT_WHOLE_BYTES:
            size_bytes += sum(map(len, map(_VALUE, some)))
        if any(map(_EXPIRE_AT_MS, some)):
            for entry in some:
                entry.expire_at_ms = 0
    return size_bytes


def _in_pieces(response: kv_pb2.ReadResponse, done: bytes) -> LargeBody:
    """An answer that is serialized as it is taken; for its length, which goes first, each entry is measured."""
    ranges: list[tuple[bytes, list[int]]] = []
    total_bytes = len(done)
    for result in response.ranges:
        sizes = list(map(kv_pb2.Entry.ByteSize, result.entries))
        range_bytes = sum(sizes) + sum(map(len, map(_head, sizes)))
        head = _head(range_bytes)
        ranges.append((head, sizes))
        total_bytes += len(head) + range_bytes
    return LargeBody(total_bytes, _pieces(response, ranges, done))


def _pieces(response: kv_pb2.ReadResponse, ranges: list[tuple[bytes, list[int]]], done: bytes) -> Iterator[bytes]:
    parts: list[bytes] = []
    size_bytes = 0
    for result, (head, sizes) in zip(response.ranges, ranges, strict=True):
        parts.append(head)
        for entry, entry_bytes in zip(result.entries, sizes, strict=True):
            parts += (_head(entry_bytes), entry.SerializeToString())
            size_bytes += entry_bytes
            if size_bytes >= limits.CONNECT_PIECE_BYTES:
                yield b"".join(parts)
                parts, size_bytes = [], 0
    yield b"".join((*parts, done))


def _head(size_bytes: int) -> bytes:
    """What goes before a range of a read's answer, and before an entry of a range: both are field 1 of the whole."""
    return _FIRST_FIELD + varint(size_bytes)


def read_disabled() -> bytes:
    """The answer of a database that serves no reads."""
    return _READ_DISABLED


def write_request(body: bytes) -> kv_pb2.AtomicWriteRequest:
    """The transaction that an AtomicWrite's bytes ask for. Raises InvalidRequest."""
    request = kv_pb2.AtomicWriteRequest()
    write_into(request, body)
    return request


def write_into(request: kv_pb2.AtomicWriteRequest, body: bytes) -> None:
    """As write_request, into a fresh message."""
    try:
        request.MergeFromString(body)
        is_other = bool(request.enqueues or request.actions)
    except DecodeError:
        is_other = True  # a message's payload where a name is expected, perhaps
    if is_other:
        request.Clear()
        _write_with_enqueues(request, body)
    for position, mutation in enumerate(request.mutations):
        kind = mutation.type
        if kind in _NATIVE_ONLY_MUTATIONS:
            raise InvalidRequest(
                "UNKNOWN_MUTATION",
                f"Invalid mutation kind or arguments. Mutation {position} is of type {kind}, which is not known.",
            )
        if kind == _DELETE:
            mutation.ClearField("value")  # Deno sends an empty one along


def _write_with_enqueues(request: kv_pb2.AtomicWriteRequest, body: bytes) -> None:
    """The enqueues are not alike; what has a number there that only the native message knows is left out."""
    try:
        write = wire.AtomicWrite.FromString(body)
    except DecodeError as error:
        raise _torn(error) from None
    for enqueue in write.enqueues:
        _add_enqueue(request, enqueue)
    write.ClearField("enqueues")
    write.DiscardUnknownFields()
    request.MergeFromString(write.SerializeToString())


def _add_enqueue(request: kv_pb2.AtomicWriteRequest, enqueue: wire.Enqueue) -> None:
    """To the default queue. An empty schedule means the default one, as it does to denokv."""
    native = request.enqueues.add(
        due_at_ms=max(enqueue.deadline_ms, 0),
        keys_if_undelivered=enqueue.keys_if_undelivered,
        backoff_intervals_ms=enqueue.backoff_schedule,
    )
    native.payload.data = enqueue.payload
    native.payload.encoding = kv_pb2.VALUE_ENCODING_V8


def write_output(response: kv_pb2.AtomicWriteResponse) -> Body:
    """An AtomicWriteOutput's bytes."""
    if response.status == kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS:
        return _WRITTEN_AT + response.versionstamp
    return wire.AtomicWriteOutput(
        status=wire.AW_CHECK_FAILURE, failed_checks=response.failed_checks
    ).SerializeToString()


def write_disabled() -> bytes:
    """The answer of a database that takes no writes."""
    return _WRITE_DISABLED


def watch_request(body: bytes, *, strong: bool) -> kv_pb2.WatchRequest:
    """The watch that a Watch's bytes ask for. Raises InvalidRequest."""
    try:
        watch = wire.Watch.FromString(body)
    except DecodeError as error:
        raise _torn(error) from None
    return kv_pb2.WatchRequest(keys=[key.key for key in watch.keys], strong=strong)


def watch_output(frame: kv_pb2.WatchResponse) -> bytes:
    """A WatchOutput's bytes, without its length."""
    output = wire.WatchOutput(status=wire.SR_SUCCESS)
    for watched in frame.keys:
        key = output.keys.add(changed=watched.changed)
        if watched.changed and watched.HasField("entry"):
            entry = watched.entry
            key.entry_if_changed.key = entry.key
            key.entry_if_changed.value = entry.value
            key.entry_if_changed.encoding = entry.encoding  # type: ignore[assignment]
            key.entry_if_changed.versionstamp = entry.versionstamp
    return output.SerializeToString()


def watch_disabled() -> bytes:
    """The only frame of a watch in a database that serves no reads."""
    return _WATCH_DISABLED


def _torn(error: DecodeError) -> InvalidRequest:
    return InvalidRequest("MALFORMED_REQUEST", f"Request protobuf is invalid: {error}.")
