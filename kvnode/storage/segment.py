"""One file of the log, and which of the log's live entries stand where in it."""

from __future__ import annotations

from array import array

from kvnode.codec.entry import Entry
from kvnode.storage.disk import File
from kvnode.storage.record import HEADER_BYTES, Record, decode_entry, read_record, record_bytes

_SUFFIX = ".log"
_NAME_DIGITS = 16
READ_WINDOW_BYTES = 262_144  # one read serves many small entries


def segment_name(sequence: int) -> str:
    """The file name of a segment; names sort as sequences do."""
    return f"{sequence:0{_NAME_DIGITS}d}{_SUFFIX}"


def segment_sequence(name: str) -> int | None:
    """The sequence in a file name, or None when it is no segment's."""
    digits = name.removesuffix(_SUFFIX)
    if name == digits or len(digits) != _NAME_DIGITS or not digits.isdecimal():
        return None
    return int(digits)


class Segment:
    """A segment that is in use.

    Its live entries run from `first_index` without gaps; entries that a truncation took out stay in the file
    and are in no offset. Offsets take 4 bytes an entry.

    Args:
        file: the open file.
        sequence: its number; segments follow each other without gaps.
        position: the log position of its first byte.
        first_index: the index of its first live entry, when it has one.
    """

    __slots__ = ("_offsets", "end", "file", "first_index", "position", "sequence")

    def __init__(self, file: File, sequence: int, position: int, first_index: int) -> None:
        self.file = file
        self.sequence = sequence
        self.position = position
        self.first_index = first_index
        self.end = 0
        self._offsets = array("I")

    @property
    def last_index(self) -> int:
        """The last live entry's index; first_index - 1 when it has none."""
        return self.first_index + len(self._offsets) - 1

    @property
    def end_position(self) -> int:
        """The log position behind its last record."""
        return self.position + self.end

    def add(self, offset: int) -> None:
        """The next live entry's record begins at `offset`."""
        self._offsets.append(offset)

    def extend(self, offsets: list[int]) -> None:
        """The next live entries' records begin at these offsets."""
        self._offsets.extend(offsets)

    def truncate(self, last_index: int) -> None:
        """Entries behind `last_index` are live no more."""
        if last_index < self.first_index - 1:
            self.first_index = last_index + 1
        del self._offsets[last_index + 1 - self.first_index :]

    def read(self, low: int, high: int, max_bytes: int) -> list[Entry] | None:
        """Live entries low <= index < high, at least one, no more than `max_bytes` of data behind the first.

        None when a record does not prove itself: it was good when it was written or opened. Raises OSError.
        """
        entries: list[Entry] = []
        window, start = b"", 0
        for index in range(low, high):
            offset = self._offsets[index - self.first_index]
            if not start <= offset <= start + len(window) - HEADER_BYTES:
                window, start = self.file.read(offset, min(READ_WINDOW_BYTES, self.end - offset)), offset
            record = self._read_record(window, offset - start, offset)
            entry = None if record is None else decode_entry(record)
            if entry is None or entry.index != index:
                return None
            max_bytes -= len(entry.data)
            if max_bytes < 0 and entries:
                break
            entries.append(entry)
        return entries

    def _read_record(self, window: bytes, at: int, offset: int) -> Record | None:
        if len(window) < at + HEADER_BYTES:
            return None
        size = record_bytes(window, at)
        if at + size <= len(window):
            return read_record(window, at)
        return read_record(self.file.read(offset, min(size, self.end - offset)), 0)
