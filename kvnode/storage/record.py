"""The log's record: the unit that is written, checked and torn.

    offset  size  field
         0     4  checksum: CRC-32 of everything after it, payload included (padding not)
         4     4  previous: the checksum of the record before, across segments: the chain
         8     4  length of the payload in bytes
        12     2  magic
        14     1  kind (RecordKind)
        15     1  flags
        16     8  index
        24     8  term
        32     8  durable: the log position before which everything was fsynced when this was written
        40        payload, then zeros up to a multiple of 8

Little-endian. A *position* counts the bytes of the log from its creation, through all segments, and never
goes back. The chain makes a record of an earlier life of the same bytes, or of another file, fail to follow.
`previous` is stored, not only mixed in, so that a record behind a damaged one can still prove itself, and
`durable` then says whether the damaged bytes had been fsynced (storage/recovery.py).

The checksum is zlib's CRC-32: 5.6 us for 16 KiB. CRC-32 and Adler-32 together cost 10.4 us, blake2b 22 us,
which is half the budget of an append. CRC-32 finds every burst up to 32 bits and every 3 flipped bits of a
record of this size; arbitrary damage passes once in 2**32, and the state's own digest stands behind it.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple
from zlib import crc32

from kvnode.codec.entry import Entry, EntryKind, HardState

HEADER_BYTES = 40
MAGIC = 0x4C4B  # "KL"
FORMAT_VERSION = 2  # 1: hard states without a promise of an epoch
FLAG_RESET = 1  # on a SEGMENT record: the log begins here, whatever older segments hold

_CHECKED = struct.Struct("<IIHBBQQQ")  # everything after the checksum
_CHECKSUM = struct.Struct("<I")
_HEADER = struct.Struct("<IIIHBBQQQ")
_HARD_STATE = struct.Struct("<QQQQQ")
_SEGMENT = struct.Struct("<IQQQQQQQ")
# As versions before epochs wrote them, without a promise.
_OLD_HARD_STATE = struct.Struct("<QQQ")
_OLD_SEGMENT = struct.Struct("<IQQQQQ")
_MAGIC_OFFSET = 12
_PADDING = tuple(bytes(-n % 8) for n in range(8))


class RecordKind(IntEnum):
    """What a record holds. An entry's kind is ENTRY + its EntryKind."""

    SEGMENT = 1  # the first of a segment; index and term are of the log's last entry before it
    HARD_STATE = 2
    TRUNCATE = 3  # index and term are of the entry that is now the last
    ENTRY = 16


class Record(NamedTuple):
    """A record that proved itself, and where it ends in its file."""

    checksum: int
    previous: int
    kind: int
    flags: int
    index: int  # type: ignore[assignment]
    term: int
    durable: int
    payload: bytes
    end: int


class SegmentHead(NamedTuple):
    """What the head of a segment repeats, so that the segments before it can be dropped."""

    sequence: int
    position: int  # of the segment's first byte in the log
    hard_state: HardState


_KINDS = frozenset((RecordKind.SEGMENT, RecordKind.HARD_STATE, RecordKind.TRUNCATE)) | frozenset(
    RecordKind.ENTRY + kind for kind in EntryKind
)
_ENTRY_KINDS = {RecordKind.ENTRY + kind: kind for kind in EntryKind}


class Encoder:
    """Builds one batch: records chained from `previous`, all naming the same durable position."""

    __slots__ = ("_durable", "_parts", "_previous", "size")

    def __init__(self, previous: int, durable: int) -> None:
        self._previous = previous
        self._durable = durable
        self._parts: list[bytes] = []
        self.size = 0

    def add(self, kind: int, index: int, term: int, payload: bytes, flags: int = 0) -> None:
        """Add a record to the batch."""
        length = len(payload)
        checked = _CHECKED.pack(self._previous, length, MAGIC, kind, flags, index, term, self._durable)
        self._previous = checksum = crc32(payload, crc32(checked))
        padding = _PADDING[length & 7]
        self._parts += (_CHECKSUM.pack(checksum), checked, payload, padding)
        self.size += HEADER_BYTES + length + len(padding)

    def add_segment(self, head: SegmentHead, index: int, term: int, *, reset: bool) -> None:
        """Add the record that opens a segment; `index` and `term` are of the last entry before it."""
        payload = _SEGMENT.pack(FORMAT_VERSION, head.sequence, head.position, *head.hard_state)
        self.add(RecordKind.SEGMENT, index, term, payload, FLAG_RESET if reset else 0)

    def add_hard_state(self, hard_state: HardState) -> None:
        """Add a hard state, which from here on is the current one."""
        self.add(RecordKind.HARD_STATE, 0, 0, _HARD_STATE.pack(*hard_state))

    def add_entry(self, entry: Entry) -> int:
        """Add a log entry. Returns where in the batch its record begins."""
        offset = self.size
        self.add(RecordKind.ENTRY + entry.kind, entry.index, entry.term, entry.data)
        return offset

    def finish(self) -> tuple[bytes, int]:
        """The bytes of the batch, and the checksum that the next record has to name."""
        return b"".join(self._parts), self._previous


def read_record(data: bytes, offset: int) -> Record | None:
    """The record at `offset` of a segment's bytes, or None when what stands there does not prove itself.

    The chain is not followed here: the caller compares `previous`.
    """
    if offset + HEADER_BYTES > len(data):
        return None
    checksum, previous, length, magic, kind, flags, index, term, durable = _HEADER.unpack_from(data, offset)
    start = offset + HEADER_BYTES
    end = start + length
    if magic != MAGIC or end > len(data) or kind not in _KINDS:
        return None
    payload = data[start:end]
    if crc32(payload, crc32(data[offset + 4 : start])) != checksum:
        return None
    return Record(checksum, previous, kind, flags, index, term, durable, payload, end + (-length & 7))


class EntryRun(NamedTuple):
    """Entry records that follow each other: where each begins, its term, and the state behind the last."""

    offsets: list[int]
    terms: list[int]
    end: int
    checksum: int


def read_entry_run(data: bytes, offset: int, previous: int, index: int) -> EntryRun:
    """The entry records from `offset` on that prove themselves, follow the record with the checksum `previous`, and
    have the indexes `index`, `index` + 1 and so on.

    What read_record does, for the one kind of record of which there are a million, at a third of its cost.
    """
    offsets: list[int] = []
    terms: list[int] = []
    view, size, unpack = memoryview(data), len(data) - HEADER_BYTES, _HEADER.unpack_from
    while offset <= size:
        checksum, before, length, magic, kind, _, its_index, term, _ = unpack(data, offset)
        end = offset + HEADER_BYTES + length
        if before != previous or its_index != index or magic != MAGIC or kind not in _ENTRY_KINDS:
            break
        if end > len(data) or crc32(view[offset + 4 : end]) != checksum:
            break
        offsets.append(offset)
        terms.append(term)
        offset, previous, index = end + (-length & 7), checksum, index + 1
    return EntryRun(offsets, terms, offset, previous)


def record_bytes(header: bytes, offset: int) -> int:
    """How many bytes the record takes whose header stands at `offset`, padding left out. Unchecked."""
    return HEADER_BYTES + int(_CHECKSUM.unpack_from(header, offset + 8)[0])


def find_record(data: bytes, offset: int) -> tuple[int, Record] | None:
    """The first record at or after `offset` that proves itself, and where it begins: what lies behind damage."""
    magic = MAGIC.to_bytes(2, "little")
    found = data.find(magic, offset + _MAGIC_OFFSET)
    while found >= 0:
        start = found - _MAGIC_OFFSET
        if start % 8 == 0 and (record := read_record(data, start)) is not None:
            return start, record
        found = data.find(magic, found + 1)
    return None


def decode_hard_state(record: Record) -> HardState:
    """The hard state of a HARD_STATE record."""
    packed = _OLD_HARD_STATE if len(record.payload) == _OLD_HARD_STATE.size else _HARD_STATE
    return HardState(*packed.unpack(record.payload))


def decode_segment(record: Record) -> SegmentHead:
    """The head of a SEGMENT record. Raises ValueError when a newer version wrote it."""
    packed = _OLD_SEGMENT if len(record.payload) == _OLD_SEGMENT.size else _SEGMENT
    version, sequence, position, *hard_state = packed.unpack(record.payload)
    if not 1 <= version <= FORMAT_VERSION:
        raise ValueError(f"log format {version} is not known; this version of kvnode reads up to {FORMAT_VERSION}")
    return SegmentHead(sequence, position, HardState(*hard_state))


def decode_entry(record: Record) -> Entry | None:
    """The entry of an entry record; None for the other kinds."""
    kind = _ENTRY_KINDS.get(record.kind)
    return None if kind is None else Entry(record.term, record.index, kind, record.payload)
