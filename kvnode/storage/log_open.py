"""Finding a log in its directory: make it, or replay it, cut a torn tail and leave it ready to be written."""

from __future__ import annotations

import posixpath
from typing import NamedTuple

from kvnode.codec.entry import HardState
from kvnode.storage.disk import Disk
from kvnode.storage.mark import MARK_NAME, Mark, MarkFile
from kvnode.storage.record import Encoder, SegmentHead
from kvnode.storage.recovery import Recovery, replay
from kvnode.storage.segment import Segment, segment_name, segment_sequence
from kvnode.storage.spare_segment import SpareSegment

_FIRST_SEQUENCE = 1
_NO_MARK = Mark(0, _FIRST_SEQUENCE, 0, 0)


class OpenedLog(NamedTuple):
    """A log that is ready, or damaged (recovery.damage). `mark` is None only for a damaged one."""

    recovery: Recovery
    mark: MarkFile | None


async def open_log(disk: Disk, directory: str, segment_bytes: int, must_exist: bool) -> OpenedLog:
    """Open or make the log in `directory`; see Log.open.

    Raises OSError, and ValueError for a log of a newer version.
    """
    disk.make_directory(directory)
    sequences = sorted(
        sequence for name in disk.list_directory(directory) if (sequence := segment_sequence(name)) is not None
    )
    mark = MarkFile.open(disk, f"{directory}/{MARK_NAME}")
    if mark is None and sequences:
        recovery = replay(disk, directory, sequences, Mark(0, sequences[0], 0, 0))
        recovery.damage = "the log's mark is missing or damaged: it cannot be told whether the log is whole"
        return OpenedLog(recovery, None)
    if must_exist and not sequences:
        damage = f"the log in {directory} is missing, but this node was already part of a cluster"
        return OpenedLog(Recovery(damage=damage), mark)
    known = _NO_MARK if mark is None else mark.mark
    required = [sequence for sequence in sequences if sequence >= known.first_sequence]
    recovery = replay(disk, directory, required, known)
    if must_exist and not recovery.segments:
        recovery.damage = recovery.damage or f"the log in {directory} has lost its first segment"
    if recovery.damage is None:
        mark = await _confirm_mark(disk, directory, mark)
        await _clean(disk, directory, sequences, recovery, mark)
        if not recovery.segments:
            await _create_first_segment(disk, directory, segment_bytes, recovery)
        await _settle_tail(recovery, mark)
    return OpenedLog(recovery, mark)


async def _confirm_mark(disk: Disk, directory: str, mark: MarkFile | None) -> MarkFile:
    """Make the mark durable, or make one.

    It is durable before the first segment exists: segments without a mark are damage. And what was read may have
    been written just before a kill: nothing may be removed by its word before that word is durable.
    """
    if mark is None:
        mark = await MarkFile.create(disk, f"{directory}/{MARK_NAME}", _FIRST_SEQUENCE)
    else:
        await mark.require(mark.mark.first_sequence)
    await disk.sync_directory(directory)
    await disk.sync_directory(posixpath.dirname(directory) or ".")
    return mark


async def _create_first_segment(disk: Disk, directory: str, segment_bytes: int, recovery: Recovery) -> None:
    file = await SpareSegment(disk, directory, segment_bytes).take(_FIRST_SEQUENCE)
    segment = Segment(file, _FIRST_SEQUENCE, 0, 1)
    encoder = Encoder(previous=0, durable=0)
    encoder.add_segment(SegmentHead(_FIRST_SEQUENCE, 0, HardState()), 0, 0, reset=False)
    data, recovery.checksum = encoder.finish()
    file.write(0, data)
    segment.end = len(data)
    recovery.segments.append(segment)


async def _clean(disk: Disk, directory: str, sequences: list[int], recovery: Recovery, mark: MarkFile) -> None:
    """Remove the files that are not part of the log: dropped before a crash, older than a reset, or prepared and
    not begun (those may be half made, or hold a torn head)."""
    kept = [segment.sequence for segment in recovery.segments]
    for segment in recovery.superseded:
        segment.file.close()
    if recovery.superseded:
        await mark.require(kept[0])
    for sequence in sequences:
        if sequence not in kept:
            disk.remove(f"{directory}/{segment_name(sequence)}")


async def _settle_tail(recovery: Recovery, mark: MarkFile) -> None:
    """Cut what lies behind the end, and make what lies behind the mark durable (storage/recovery.py says why)."""
    last = recovery.segments[-1]
    behind = last.file.read(last.end, max(0, last.file.size() - last.end))  # the file may lack the last padding
    if behind != bytes(len(behind)):
        last.file.write(last.end, bytes(len(behind)))
    unproven = max(0, mark.mark.position - last.position)
    last.file.write(unproven, last.file.read(unproven, last.end - unproven))
    await last.file.sync()
    if mark.mark.position != recovery.position:
        mark.advance(recovery.position, recovery.last_index)
