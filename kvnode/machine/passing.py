"""Entries in which messages only pass through queues: enqueued and claimed at once, acked, or held longer.

Nobody waits for the state to show these: no user's key is in them, no message that waits for somebody, and what claims
and acks are judged by is known to the leader (overlay.py). And a message whose coming and going are applied in one run
never becomes a row (apply.py). So they may be applied later than others are, and whoever decides that looks at the
first bytes of an entry instead of parsing it. The mark is the field `passes` of an EntryPayload, put before the others:
protobuf takes fields in any order, and a node that does not know this one passes over it.
"""

from __future__ import annotations

from kvnode.codec.entry import Entry, EntryKind

_MARK = b"\x20\x01"  # field 4, a varint: true


def mark_passing(payload: bytes) -> bytes:
    """The encoded EntryPayload, saying that messages only pass through."""
    return _MARK + payload


def is_passing(entry: Entry) -> bool:
    """Whether messages only pass through."""
    return entry.kind is EntryKind.DATA and entry.data.startswith(_MARK)
