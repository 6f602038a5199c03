"""Opening a log: replay what proves itself, and judge what does not.

Theory of operation. Records are replayed in order while each proves itself and chains to the one before.
Where that ends, at position P, the log ends, and the question is whether it *should* end there:

- The mark names a position behind P, or a record found behind P names such a position as durable before it,
  or a segment that must exist is missing: bytes that had been fsynced are gone. This node may have
  acknowledged them or voted by them. That is *damage*; nothing is changed on the disk, which is evidence.
- Otherwise the bytes behind P were never fsynced, so nobody was told of them: a *torn tail*, which is cut.

What no log can tell apart: damage to the very last batch before a power loss that also took the mark's last
writes. Single damaged records elsewhere, and any damage after a mere kill, are told apart.

Cutting writes zeros over the tail before anything else is written there, so that no byte of an earlier life
remains. The valid bytes behind the mark are then written once more and synced: they may stand only in the
page cache (killed between write and fsync), and after a failed fsync the kernel holds such pages for clean,
so that a bare fsync would return without having written them (Rebello et al., "Can Applications Recover
from fsync Failures?", USENIX ATC 2020). Only then do they count as durable.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kvnode.codec.entry import HardState
from kvnode.storage.disk import Disk
from kvnode.storage.mark import Mark
from kvnode.storage.record import (
    FLAG_RESET,
    EntryRun,
    Record,
    RecordKind,
    SegmentHead,
    decode_hard_state,
    decode_segment,
    find_record,
    read_entry_run,
    read_record,
)
from kvnode.storage.segment import Segment, segment_name
from kvnode.storage.term_runs import TermRuns


@dataclass
class Recovery:
    """What replay found. `segments` ends with the one that is written next; it is empty if there is none."""

    segments: list[Segment] = field(default_factory=list)
    superseded: list[Segment] = field(default_factory=list)  # older than a reset
    terms: TermRuns = field(default_factory=lambda: TermRuns(0, 0))
    last_index: int = 0
    hard_state: HardState = field(default_factory=HardState)
    checksum: int = 0
    damage: str | None = None

    def fitted_hard_state(self) -> HardState:
        """The hard state, its commit index fitted to the log: it may name entries of the same write that were
        torn away, and whatever lies before the log's first entry is committed."""
        base = self.segments[0].first_index - 1 if self.segments else 0
        return self.hard_state._replace(commit=max(base, min(self.hard_state.commit, self.last_index)))

    @property
    def position(self) -> int:
        """Where the log ends."""
        return self.segments[-1].end_position if self.segments else 0


def replay(disk: Disk, directory: str, sequences: list[int], mark: Mark) -> Recovery:
    """Replay the segments `sequences` (sorted) of `directory`.

    Raises:
        OSError: a file could not be read.
        ValueError: a newer version of kvnode wrote the log.
    """
    found = Recovery()
    behind = b""  # what stands behind the last good record of the last good segment
    for at, sequence in enumerate(sequences):
        file = disk.open(f"{directory}/{segment_name(sequence)}")
        data = file.read(0, file.size())
        head = _segment_head(found, data, sequence)
        if head is None:
            file.close()
            found.damage = _judge(found, mark, behind, _later(disk, directory, sequences[at:]))
            break
        segment = Segment(file, sequence, head[1].position, found.last_index + 1)
        _begin(found, segment, *head)
        behind = _replay_records(found, segment, data)
    else:
        found.damage = _judge(found, mark, behind, [])
    _check_sequences(found, sequences, mark)
    return found


def _segment_head(found: Recovery, data: bytes, sequence: int) -> tuple[Record, SegmentHead] | None:
    """The record that opens a segment, if it proves itself and follows the segments before."""
    record = read_record(data, 0)
    if record is None or record.kind != RecordKind.SEGMENT:
        return None
    head = decode_segment(record)
    if head.sequence != sequence:
        return None
    if found.segments:
        follows = (found.segments[-1].sequence + 1, found.position, found.checksum)
        if (sequence, head.position, record.previous) != follows:
            return None
    return record, head


def _begin(found: Recovery, segment: Segment, record: Record, head: SegmentHead) -> None:
    if record.flags & FLAG_RESET or not found.segments:
        found.superseded += found.segments
        found.segments = []
        found.terms = TermRuns(record.index, record.term)
        found.last_index = record.index
        segment.first_index = record.index + 1
    found.segments.append(segment)
    found.hard_state = head.hard_state
    found.checksum = record.checksum
    segment.end = record.end


def _replay_records(found: Recovery, segment: Segment, data: bytes) -> bytes:
    """Take in the records of a segment. Returns the bytes behind the last that follows."""
    while True:
        _take_entries(found, segment, read_entry_run(data, segment.end, found.checksum, found.last_index + 1))
        record = read_record(data, segment.end)
        if record is None or record.previous != found.checksum:
            break
        if record.kind == RecordKind.HARD_STATE:
            found.hard_state = decode_hard_state(record)
        elif record.kind == RecordKind.TRUNCATE:
            _truncate(found, record.index, record.term)
        else:
            break
        found.checksum = record.checksum
        segment.end = record.end
    return data[segment.end :]


def _take_entries(found: Recovery, segment: Segment, run: EntryRun) -> None:
    segment.extend(run.offsets)
    for index, term in enumerate(run.terms, found.last_index + 1):
        found.terms.append(index, term)
    found.last_index += len(run.terms)
    found.checksum = run.checksum
    segment.end = run.end


def _truncate(found: Recovery, index: int, term: int) -> None:
    for segment in found.segments:
        segment.truncate(index)
    if found.terms.term(index) is None:  # the base of this segment was itself superseded
        found.terms = TermRuns(index, term)
    found.terms.truncate(index)
    found.last_index = index


def _later(disk: Disk, directory: str, sequences: list[int]) -> list[bytes]:
    """What stands in the segments that could not be replayed."""
    later = []
    for sequence in sequences:
        file = disk.open(f"{directory}/{segment_name(sequence)}")
        later.append(file.read(0, file.size()))
        file.close()
    return later


def _judge(found: Recovery, mark: Mark, behind: bytes, later: list[bytes]) -> str | None:
    """Whether bytes that had been fsynced lie at or behind the end that replay found: the damage, or None."""
    end = found.position
    where = f"behind index {found.last_index}"
    if found.segments:
        where += f" (segment {found.segments[-1].sequence}, offset {found.segments[-1].end})"
    if mark.position > end:
        return (
            f"the log is damaged or cut off {where}: it had been fsynced up to index {mark.last_index}"
            f" (position {mark.position}), but its valid records end at position {end}"
        )
    if _names_durable(behind, end) or any(_names_durable(data, end) for data in later):
        return f"the log is damaged {where}: a later record says that what stood there had been fsynced"
    return None


def _names_durable(data: bytes, end: int) -> bool:
    """Whether a record in `data` says that something at or behind position `end` had been fsynced."""
    hit = find_record(data, 0)
    while hit is not None:
        start, record = hit
        if record.durable > end:
            return True
        hit = find_record(data, max(record.end, start + 8))
    return False


def _check_sequences(found: Recovery, sequences: list[int], mark: Mark) -> None:
    """A segment that is missing and was not dropped is damage, whatever else was found."""
    expected = range(mark.first_sequence, max(sequences, default=mark.first_sequence - 1) + 1)
    missing = sorted(set(expected) - set(sequences))
    if not sequences and mark.position > 0:
        missing = [mark.first_sequence]
    if missing and found.segments[-1:] and found.segments[-1].sequence < missing[0]:
        return  # behind the end; the mark and the records have judged it
    if missing:
        names = ", ".join(segment_name(sequence) for sequence in missing)
        found.damage = f"the log is damaged: {names} is missing"
