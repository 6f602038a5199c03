"""Pieces of the changelog on the wire."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.base import limits
from kvnode.codec.entry import Entry, EntryKind
from kvnode.node.changelog.pieces import put_entries, take_entries
from kvnode.proto.kv.internal.v1 import changelog_pb2

KINDS = st.sampled_from(list(EntryKind))


@given(st.lists(st.tuples(st.integers(1, 9), KINDS, st.binary(max_size=3_000)), max_size=8), st.booleans())
def test_what_is_put_is_taken(parts: list[tuple[int, EntryKind, bytes]], compress: bool) -> None:
    entries = [Entry(term, 101 + at, kind, data) for at, (term, kind, data) in enumerate(parts)]
    response = changelog_pb2.FollowResponse(term=7, leader_id=3, previous_index=100, previous_term=2)
    size_bytes = put_entries(response, entries, compress=compress)
    assert size_bytes == len(response.entries)
    piece = take_entries(changelog_pb2.FollowResponse.FromString(response.SerializeToString()))
    assert list(piece.entries) == entries
    assert piece[:4] == (7, 3, 100, 2)


def test_long_pieces_are_compressed_between_regions_only() -> None:
    entries = [Entry(1, 1, EntryKind.DATA, bytes(10_000))]
    far, near = changelog_pb2.FollowResponse(), changelog_pb2.FollowResponse()
    assert put_entries(far, entries, compress=True) < 1_000 and far.compressed
    assert put_entries(near, entries, compress=False) > 10_000 and not near.compressed


def torn(raw: bytes) -> changelog_pb2.FollowResponse:
    return changelog_pb2.FollowResponse(entries=raw, compressed=True)


def test_bad_pieces_are_refused() -> None:
    whole = zlib.compress(bytes(50_000))
    with pytest.raises(ValueError, match="torn"):
        take_entries(torn(whole[:-3]))
    with pytest.raises(ValueError, match="cannot be decompressed"):
        take_entries(torn(b"not zlib"))
    with pytest.raises(ValueError, match=str(limits.MAX_GRPC_MESSAGE_BYTES)):
        take_entries(torn(zlib.compress(bytes(limits.MAX_GRPC_MESSAGE_BYTES + 1))))
    with pytest.raises(ValueError, match="cannot be read"):
        take_entries(changelog_pb2.FollowResponse(entries=b"\xff"))
    with pytest.raises(ValueError, match="cannot be read"):
        take_entries(torn(zlib.compress(b"\xff")))
    gap = changelog_pb2.FollowResponse(previous_index=5, previous_term=1)
    put_entries(gap, [Entry(1, 7, EntryKind.DATA, b"")], compress=False)
    with pytest.raises(ValueError, match="entry 7 stands where 6 belongs"):
        take_entries(gap)
