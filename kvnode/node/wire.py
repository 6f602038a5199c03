"""Raft messages on the wire: between the core's named tuples and protobuf.

Every replicated byte passes here once per peer, so nothing is looked at twice: entries' data goes from the
tuple into the protobuf message and from there into the socket's bytes, two copies, both in C.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvnode.codec.entry import Entry, EntryKind
from kvnode.node.ports import Awaited, Freshness, Held, LeaseAsk, LeaseGrant, LeaseNews
from kvnode.proto.kv.internal.v1 import changelog_pb2, peer_pb2
from kvnode.raft.messages import Message, MessageKind

# A table costs a third of what the enums' own lookup by value does.
_MESSAGE_KINDS = {int(kind): kind for kind in MessageKind}
_ENTRY_KINDS = {int(kind): kind for kind in EntryKind}

MESSAGE_OVERHEAD_BYTES = 64  # of a message's fields and framing, for the queues' accounts
ENTRY_OVERHEAD_BYTES = 24


def encode_message(message: Message) -> peer_pb2.RaftMessage:
    """The wire form of a Raft message."""
    (kind, to, sender, term, log_term, index, commit, reject, hint_index, hint_term, round_, entries, context,
     hold_ms) = message  # fmt: skip
    encoded = peer_pb2.RaftMessage(
        kind=kind,
        to=to,
        sender=sender,
        term=term,
        log_term=log_term,
        index=index,
        commit=commit,
        reject=reject,
        hint_index=hint_index,
        hint_term=hint_term,
        round=round_,
        context=context,
        hold_ms=hold_ms,
    )
    add = encoded.entries.add
    for entry_term, entry_index, entry_kind, data in entries:
        add(term=entry_term, index=entry_index, kind=entry_kind, data=data)
    return encoded


def decode_message(encoded: peer_pb2.RaftMessage) -> Message:
    """The inverse of encode_message.

    Raises:
        ValueError: a kind that this version does not know.
    """
    kind = _MESSAGE_KINDS.get(encoded.kind)
    if kind is None:
        raise ValueError(f"Raft message kind {encoded.kind} is not known; this node is too old for its peer")
    return Message(
        kind,
        encoded.to,
        encoded.sender,
        encoded.term,
        encoded.log_term,
        encoded.index,
        encoded.commit,
        encoded.reject,
        encoded.hint_index,
        encoded.hint_term,
        encoded.round,
        tuple(map(decode_entry, encoded.entries)) if encoded.entries else (),
        encoded.context,
        encoded.hold_ms,
    )


def decode_entry(encoded: peer_pb2.LogEntry) -> Entry:
    """One entry. Raises ValueError for a kind that this version does not know."""
    kind = _ENTRY_KINDS.get(encoded.kind)
    if kind is None:
        raise ValueError(f"log entry kind {encoded.kind} is not known; this node is too old for its peer")
    return Entry(encoded.term, encoded.index, kind, encoded.data)


def decode_messages(encoded: Iterable[peer_pb2.RaftMessage]) -> list[Message]:
    """All messages of a batch, in order. Raises ValueError as decode_message does."""
    return [decode_message(message) for message in encoded]


def message_size_bytes(message: Message) -> int:
    """About how many bytes a message holds: for the bounds of queues, not exact."""
    size = MESSAGE_OVERHEAD_BYTES + len(message.context)
    for entry in message.entries:
        size += ENTRY_OVERHEAD_BYTES + len(entry.data)
    return size


def encode_freshness(freshness: Freshness) -> peer_pb2.Freshness:
    """The wire form of a Freshness."""
    commit_index, log_time_ms, sent_at_ms = freshness
    return peer_pb2.Freshness(commit_index=commit_index, log_time_ms=log_time_ms, sent_at_ms=sent_at_ms)


def decode_freshness(batch: peer_pb2.PeerBatch) -> Freshness | None:
    """The Freshness of a batch, None when it carries none."""
    if not batch.HasField("freshness"):
        return None
    encoded = batch.freshness
    return Freshness(encoded.commit_index, encoded.log_time_ms, encoded.sent_at_ms)


def encode_held(rows: Iterable[Held]) -> list[peer_pb2.Held]:
    """The wire form of how far replicas are."""
    return [
        peer_pb2.Held(node_id=row.node_id, index=row.durable_index, at_ms=row.at_ms, silent_ms=row.silent_ms)
        for row in rows
    ]


def decode_held(batch: peer_pb2.PeerBatch) -> list[Held]:
    """What a batch says of how far replicas are."""
    return [Held(row.node_id, row.index, row.at_ms, row.silent_ms) for row in batch.held]


def encode_lease(news: LeaseNews) -> peer_pb2.LeaseNews:
    """The wire form of news of a lease."""
    encoded = peer_pb2.LeaseNews()
    if news.ask is not None:
        encoded.ask.CopyFrom(_encode_ask(news.ask))
    for node_id, ask, lease_ms, wished_ms, membership in news.grants:
        encoded.grants.add(
            node_id=node_id, ask=_encode_ask(ask), lease_ms=lease_ms, wished_ms=wished_ms, membership=membership
        )
    return encoded


def decode_lease(encoded: peer_pb2.LeaseNews) -> LeaseNews:
    """The inverse of encode_lease."""
    grants = [
        LeaseGrant(row.node_id, _decode_ask(row.ask), row.lease_ms, row.wished_ms, row.membership)
        for row in encoded.grants
    ]
    return LeaseNews(_decode_ask(encoded.ask) if encoded.HasField("ask") else None, grants)


def _encode_ask(ask: LeaseAsk) -> peer_pb2.LeaseAsk:
    return peer_pb2.LeaseAsk(term=ask.term, asked_at_ms=ask.asked_at_ms)


def _decode_ask(encoded: peer_pb2.LeaseAsk) -> LeaseAsk:
    return LeaseAsk(encoded.term, encoded.asked_at_ms)


def encode_awaited(awaited: Awaited) -> changelog_pb2.AwaitedSnapshot:
    """The wire form of how far a snapshot is that a node awaits."""
    return changelog_pb2.AwaitedSnapshot(held_bytes=awaited.held_bytes, size_bytes=awaited.size_bytes)


def decode_awaited(encoded: changelog_pb2.AwaitedSnapshot) -> Awaited:
    """The inverse of encode_awaited."""
    return Awaited(encoded.held_bytes, encoded.size_bytes)
