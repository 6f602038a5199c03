"""Raft messages survive the wire."""

from __future__ import annotations

import pytest

from kvnode.codec.entry import Entry, EntryKind
from kvnode.node.framing import frame_repeated, varint
from kvnode.node.ports import Freshness
from kvnode.node.wire import decode_freshness, decode_message, encode_freshness, encode_message, message_size_bytes
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.raft.messages import Message, MessageKind

FULL = Message(
    MessageKind.APPEND,
    to=2**63 - 1,
    sender=5,
    term=7,
    log_term=6,
    index=100,
    commit=99,
    reject=True,
    hint_index=3,
    hint_term=4,
    round=12,
    entries=(Entry(7, 101, EntryKind.DATA, b"\x00" * 300), Entry(7, 102, EntryKind.MEMBERSHIP, b"{}")),
    context=b"transfer",
    hold_ms=950,
)


def through_the_wire(message: Message) -> Message:
    return decode_message(peer_pb2.RaftMessage.FromString(encode_message(message).SerializeToString()))


@pytest.mark.parametrize("kind", list(MessageKind))
def test_every_kind_comes_back_as_it_was(kind: MessageKind) -> None:
    for message in (FULL._replace(kind=kind), Message(kind, 1, 2, 3)):
        back = through_the_wire(message)
        assert back == message
        assert isinstance(back.kind, MessageKind)
        assert all(isinstance(entry.kind, EntryKind) for entry in back.entries)


def test_every_field_is_on_the_wire() -> None:
    for name, value in zip(Message._fields, FULL, strict=True):
        assert value, f"the test's message should set {name}"


def test_unknown_kinds_are_refused() -> None:
    encoded = encode_message(FULL)
    encoded.kind = 99
    with pytest.raises(ValueError, match="kind 99 is not known"):
        decode_message(encoded)
    encoded = encode_message(FULL)
    encoded.entries[0].kind = 77
    with pytest.raises(ValueError, match="entry kind 77 is not known"):
        decode_message(encoded)


def test_freshness_comes_back_and_may_be_absent() -> None:
    freshness = Freshness(5, 6, 7)
    assert decode_freshness(peer_pb2.PeerBatch(freshness=encode_freshness(freshness))) == freshness
    assert decode_freshness(peer_pb2.PeerBatch()) is None


def test_size_counts_what_is_large() -> None:
    assert len(encode_message(FULL).SerializeToString()) <= message_size_bytes(FULL) <= 600


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16_383, 16_384, 2**32, 2**64 - 1])
def test_varint_is_protobufs(value: int) -> None:
    assert kv_pb2.OperationResult.FromString(b"\x08" + varint(value)).id == value


@pytest.mark.parametrize("sizes", [[], [0], [10] * 5, [20_000, 1], [100, 50_000, 100, 100]])
def test_framed_fields_parse_as_the_repeated_field(sizes: list[int]) -> None:
    entries = [kv_pb2.Entry(key=bytes(size)) for size in sizes]
    encoded = [entry.SerializeToString() for entry in entries]
    framed = list(frame_repeated(kv_pb2.ReadRangeResult.ENTRIES_FIELD_NUMBER, encoded, 30_000))
    parsed = [kv_pb2.ReadRangeResult.FromString(data) for data in framed]
    assert [entry for part in parsed for entry in part.entries] == entries
    assert all(len(data) <= 30_000 or len(part.entries) == 1 for data, part in zip(framed, parsed, strict=True))
