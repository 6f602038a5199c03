"""Pieces of the changelog on the wire."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from kvnode.base import limits
from kvnode.codec.entry import Entry
from kvnode.node.wire import decode_entry
from kvnode.proto.kv.internal.v1 import changelog_pb2
from kvnode.raft.changelog import Committed

_LEVEL = 1  # of zlib: half the bytes of ordinary rows at 40 MB/s or so; higher levels cost more than they save


def put_entries(response: changelog_pb2.FollowResponse, entries: Sequence[Entry], *, compress: bool) -> int:
    """Put entries into a response; returns the bytes that they take there."""
    encoded = changelog_pb2.ChangelogEntries()
    add = encoded.entries.add
    for term, index, kind, data in entries:
        add(term=term, index=index, kind=kind, data=data)
    raw = encoded.SerializeToString()
    if compress and len(raw) >= limits.MIN_COMPRESSED_CHANGELOG_BYTES:
        response.entries, response.compressed = zlib.compress(raw, _LEVEL), True
    else:
        response.entries = raw
    return len(response.entries)


def take_entries(response: changelog_pb2.FollowResponse) -> Committed:
    """What the core wants of a response.

    Raises:
        ValueError: the entries cannot be decompressed or read, are more than a piece may hold, or of an unknown kind.
    """
    raw = response.entries
    if response.compressed:
        raw = _decompress(raw)
    try:
        encoded = changelog_pb2.ChangelogEntries.FromString(raw)
    except DecodeError as error:  # which is no ValueError
        raise ValueError(f"a piece of the changelog cannot be read: {error}") from error
    entries = [decode_entry(entry) for entry in encoded.entries]
    for position, entry in enumerate(entries):
        if entry.index != response.previous_index + 1 + position:
            raise ValueError(f"entry {entry.index} stands where {response.previous_index + 1 + position} belongs")
    return Committed(response.term, response.leader_id, response.previous_index, response.previous_term, entries)


def _decompress(raw: bytes) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        data = decompressor.decompress(raw, limits.MAX_GRPC_MESSAGE_BYTES)
    except zlib.error as error:
        raise ValueError(f"a piece of the changelog cannot be decompressed: {error}") from error
    if not decompressor.eof:
        raise ValueError(f"a piece of the changelog is torn, or of more than {limits.MAX_GRPC_MESSAGE_BYTES} bytes")
    return data
