"""The replicated log on disk: append, truncate, compact, reset, read.

Theory of operation. The log is a row of segment files, each made in advance at its full size, filled with
zeros and synced, so that an append overwrites bytes that exist: its fdatasync writes data and no metadata.
An append is one write of one buffer and one sync, however many entries it holds. Nothing that was ever synced
is overwritten: a conflicting tail is taken out by a TRUNCATE record in front of the entries that replace it,
in the same write. A crash leaves a prefix of that write's records, hence the old tail, or a shorter log, or
the new tail, never old entries behind new ones; so the truncation is durable before anything can be read in
place of what it took out, and costs no sync of its own.

Each segment begins with the entry before it and the hard state, so that older segments can be dropped whole.
A reset begins a new segment that says that nothing before it counts. Opening is storage/recovery.py's; the
format storage/record.py's.

Failure. A failed write or sync ends the log's life: it refuses everything afterwards, for after a failed
fsync nobody knows what is on the disk, and a second fsync that succeeds proves nothing. Only running out of
room while the *next* segment is made harms nothing: that append is refused with DISK_FULL and may be tried
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Sequence
from itertools import pairwise

from kvnode.base.errors import LogDamaged, StorageFailed
from kvnode.base.invariant import invariant
from kvnode.base.limits import LOG_CACHE_BYTES, MAX_SEGMENT_BYTES, SEGMENT_BYTES
from kvnode.codec.entry import Entry, HardState
from kvnode.storage.disk import Disk
from kvnode.storage.log_open import OpenedLog, open_log
from kvnode.storage.mark import MarkFile
from kvnode.storage.recent_entries import RecentEntries
from kvnode.storage.record import HEADER_BYTES, Encoder, RecordKind, SegmentHead
from kvnode.storage.segment import Segment, segment_name
from kvnode.storage.spare_segment import SpareSegment
from kvnode.storage.term_runs import TermRuns

_RECORD_OVERHEAD_BYTES = HEADER_BYTES + 8  # the padding included
_REBUILD = (
    "Rebuild this node from its peers under a new node id: start one with an empty directory and `kvnode member "
    "replace` this one"
)
_BATCH_OVERHEAD_BYTES = 256  # at most a segment's head, a hard state and a truncation


class Log:
    """The log of one node. Opened by `Log.open`; one per directory.

    Attributes:
        hard_state: the newest, as Raft must find it after a crash. A change of the commit index alone that was
            appended without sync may be older after a crash: Raft learns it anew.
        damage: None, or why this node may neither vote, campaign nor acknowledge. Reading what is valid goes
            on; append and reset raise LogDamaged.
    """

    def __init__(self, opened: OpenedLog, disk: Disk, directory: str, segment_bytes: int, cache_bytes: int) -> None:
        self.hard_state = opened.recovery.fitted_hard_state()
        self.damage = opened.recovery.damage
        self._disk = disk
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._segments = opened.recovery.segments
        self._terms = opened.recovery.terms
        self._last_index = opened.recovery.last_index
        self._checksum = opened.recovery.checksum
        self._written_hard_state = opened.recovery.hard_state
        self._mark = opened.mark
        self._durable = opened.recovery.position
        self._recent = RecentEntries(cache_bytes)
        self._spare = SpareSegment(disk, directory, segment_bytes)
        self._failure: str | None = None
        self._append_lock = asyncio.Lock()
        self._drop_lock = asyncio.Lock()  # held by whoever removes segments; taken before the other

    @classmethod
    async def open(
        cls,
        directory: str,
        disk: Disk,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        cache_bytes: int = LOG_CACHE_BYTES,
        must_exist: bool = False,
    ) -> Log:
        """Open the log in `directory`, or make an empty one.

        Everything that it then shows is durable. A log that is damaged opens too, with `damage` set.

        Args:
            segment_bytes: the size of segments that are made from now on.
            cache_bytes: the bound of the newest entries kept in memory.
            must_exist: an absent log is damage; for a node that has already been part of a cluster.

        Raises:
            StorageFailed: the disk failed, or a newer version of kvnode wrote the log.
        """
        invariant(0 < segment_bytes <= MAX_SEGMENT_BYTES, f"a segment of {segment_bytes} bytes")
        try:
            opened = await open_log(disk, directory, segment_bytes, must_exist)
        except OSError as error:
            raise _storage_failed(f"cannot open the log in {directory}", error) from error
        except ValueError as error:
            raise StorageFailed(f"cannot open the log in {directory}: {error}") from error
        return cls(opened, disk, directory, segment_bytes, cache_bytes)

    # Reading (the LogView that consensus sees).

    def first_index(self) -> int:
        """The first index still held; last_index() + 1 when it holds none."""
        return self._segments[0].first_index if self._segments else 1

    def last_index(self) -> int:
        """The last index written; durable once the append that brought it returned."""
        return self._last_index

    def term(self, index: int) -> int | None:
        """The term of an entry, first_index() - 1 included; None when compacted or beyond the end."""
        return self._terms.term(index) if index <= self._last_index else None

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries low <= index < high.

        Args:
            low, high: indexes; `high` may lie beyond the end.
            max_bytes: bound on the data of the entries; the first is returned whatever its size.

        Returns:
            The entries; [] if `low` is compacted or nothing is asked for.

        Raises:
            LogDamaged: a record that was good no longer is; `damage` is set.
            StorageFailed: the disk could not be read.
        """
        high = min(high, self._last_index + 1)
        if low >= high or low < self.first_index():
            return []
        recent_first = self._recent.first_index()
        if recent_first is not None and recent_first <= low:
            return _bounded(self._recent.slice(low, high), max_bytes)
        return self._read_segments(low, high, max_bytes)

    def _read_segments(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        entries: list[Entry] = []
        for segment in self._segments:
            stop = min(high, segment.last_index + 1)
            if low >= stop:
                continue
            part = self._read_segment(segment, low, stop, max_bytes)
            if entries and len(part[0].data) > max_bytes:
                break
            entries += part
            max_bytes -= sum(len(entry.data) for entry in part)
            low = part[-1].index + 1
            if low < stop or low == high or max_bytes <= 0:
                break
        return entries

    def _read_segment(self, segment: Segment, low: int, high: int, max_bytes: int) -> list[Entry]:
        try:
            part = segment.read(low, high, max_bytes)
        except OSError as error:
            raise _storage_failed(f"cannot read entry {low} of the log in {self._directory}", error) from error
        if part is None:
            self.damage = f"the log is damaged: an entry in {low} to {high - 1} of segment {segment.sequence} changed"
            raise LogDamaged(f"{self.damage} in {self._directory}")
        return part

    @property
    def size_bytes(self) -> int:
        """What the segments hold, in bytes of disk."""
        return sum(segment.end for segment in self._segments)

    def index_at_tail_bytes(self, size_bytes: int) -> int:
        """The first index to keep so that, compacted before it, the log takes at most `size_bytes` if it can."""
        kept = 0
        for segment in reversed(self._segments):
            kept += segment.end
            if kept > size_bytes and segment is not self._segments[-1]:
                return segment.last_index + 1
        return self.first_index()

    def segment_starts(self) -> list[int]:
        """The first index of each segment, the oldest first: the log can be shortened to each of them."""
        return [segment.first_index for segment in self._segments]

    # Writing.

    async def append(self, entries: Sequence[Entry], hard_state: HardState | None, *, sync: bool = True) -> None:
        """Append entries and the hard state in one write, and make them durable in one sync.

        Args:
            entries: without gaps; the first follows the last index, or an index that is held, whose entries
                from there on are then taken out.
            hard_state: the new one, or None when it stays. It stands before the entries: no crash leaves an
                entry of a term that the hard state has not reached.
            sync: False when nobody will be told of this before a later append with sync.

        Raises:
            LogDamaged: see `damage`.
            StorageFailed: the disk failed now or earlier (then nothing may be acknowledged any more), or is full
                (code DISK_FULL): then nothing was changed.
        """
        async with self._append_lock:
            self._check_usable()
            if hard_state is not None:
                self._check_hard_state(hard_state)
            if entries:
                self._check_entries(entries, hard_state or self.hard_state)
            commit_only = hard_state is None or _promises(hard_state) == _promises(self._written_hard_state)
            if entries or sync or not commit_only:
                await self._write_batch(entries, hard_state or self.hard_state)
            if hard_state is not None:
                self.hard_state = hard_state
            if sync:
                await self._sync()

    def _check_hard_state(self, new: HardState) -> None:
        old = self.hard_state
        invariant(new.term >= old.term, f"the term would go back from {old.term} to {new.term}")
        invariant(
            new.term > old.term or old.vote in (0, new.vote),
            f"a second vote in term {new.term}: {old.vote}, {new.vote}",
        )
        invariant(
            new.epoch >= old.epoch,
            f"the promise of epoch {old.epoch} would go back to {new.epoch}",
        )

    def _check_entries(self, entries: Sequence[Entry], hard_state: HardState) -> None:
        first, last = entries[0].index, entries[-1].index
        invariant(first <= self._last_index + 1, f"entry {first} leaves a gap behind {self._last_index}")
        invariant(last - first + 1 == len(entries), f"entries {first} to {last} have gaps")
        invariant(
            first >= self.first_index() and (first > self._last_index or first > self.hard_state.commit),
            f"entry {first} would replace a committed entry (commit {self.hard_state.commit})",
        )
        invariant(entries[-1].term <= hard_state.term, f"entry {last} is of a term beyond {hard_state.term}")

    async def _write_batch(self, entries: Sequence[Entry], hard_state: HardState) -> None:
        """Write the records of one append, in a new segment when this one has no room."""
        size = _BATCH_OVERHEAD_BYTES + sum(len(entry.data) + _RECORD_OVERHEAD_BYTES for entry in entries)
        if hard_state == self._written_hard_state and not entries:
            return
        rotated = await self._rotate(size)
        encoder = Encoder(self._checksum, self._durable)
        if rotated:
            self._encode_head(encoder, self._last_index, hard_state, reset=False)
        elif hard_state != self._written_hard_state:
            encoder.add_hard_state(hard_state)
        if entries and entries[0].index <= self._last_index:
            previous = entries[0].index - 1
            encoder.add(RecordKind.TRUNCATE, previous, self._terms.term(previous) or 0, b"")
        offsets = [encoder.add_entry(entry) for entry in entries]
        start = self._segments[-1].end
        self._write(encoder)
        self._written_hard_state = hard_state
        if entries:
            self._take_in(entries, offsets, start)

    def _encode_head(self, encoder: Encoder, last_index: int, hard_state: HardState, *, reset: bool) -> None:
        segment = self._segments[-1]
        head = SegmentHead(segment.sequence, segment.position, hard_state)
        encoder.add_segment(head, last_index, self._terms.term(last_index) or 0, reset=reset)

    def _write(self, encoder: Encoder) -> None:
        segment = self._segments[-1]
        data, checksum = encoder.finish()
        try:
            segment.file.write(segment.end, data)
        except OSError as error:
            raise self._fail("a write to the log failed", error) from error
        segment.end += len(data)
        self._checksum = checksum
        if segment.end * 2 > self._segment_bytes:
            self._spare.prepare(segment.sequence + 1)

    def _take_in(self, entries: Sequence[Entry], offsets: list[int], start: int) -> None:
        """Show entries that were written: their records begin at `offsets` behind `start` of the last segment."""
        previous = entries[0].index - 1
        if previous < self._last_index:
            for segment in self._segments:
                segment.truncate(previous)
            self._terms.truncate(previous)
            self._recent.truncate(previous)
        segment = self._segments[-1]
        for entry, offset in zip(entries, offsets, strict=True):
            segment.add(start + offset)
            self._terms.append(entry.index, entry.term)
            self._recent.append(entry)
        self._last_index = entries[-1].index

    async def _rotate(self, size: int) -> bool:
        """Begin the next segment if `size` more bytes do not fit; False when they fit. Its head is still to be
        written. Everything before is durable by then: a head that can be read proves that."""
        segment = self._segments[-1]
        if segment.end + size <= self._segment_bytes or segment.end <= _BATCH_OVERHEAD_BYTES:
            return False
        await self._begin_segment(self._last_index + 1)
        return True

    async def _begin_segment(self, first_index: int) -> None:
        await self._sync()
        last = self._segments[-1]
        try:
            file = await self._spare.take(last.sequence + 1)
        except OSError as error:
            raise _storage_failed(f"cannot make the next segment of the log in {self._directory}", error) from error
        self._segments.append(Segment(file, last.sequence + 1, last.end_position, first_index))

    async def _sync(self) -> None:
        segment = self._segments[-1]
        position, last_index = segment.end_position, self._last_index
        if position == self._durable:
            return
        try:
            await segment.file.sync()
            self._check_usable()  # whoever condemned it meanwhile has written the mark
            self._durable = position
            self._usable_mark().advance(position, last_index)
        except OSError as error:
            raise self._fail("fsync of the log failed", error) from error

    def condemn(self, known_index: int) -> None:
        """Entries that this log held and acknowledged are not in it, though all that is in it is whole.

        The mark is made to say how far the log had been durable, so that every later start finds the damage too: the
        next leader, who does not know what was acknowledged to this one, would fill the log up as though it were whole.

        Args:
            known_index: up to where they were acknowledged.

        Raises:
            LogDamaged: always; `damage` is set.
        """
        if self.damage is None:
            self.damage = (
                f"the log ends at index {min(self._last_index, known_index - 1)}, and this node had acknowledged "
                f"entries up to {known_index}: its data directory was put back from an old copy, or its disk has lost "
                "what it had fsynced"
            )
            with contextlib.suppress(OSError):  # then only the leader of today finds it again
                self._usable_mark().advance(self._segments[-1].end_position + 1, known_index)
        raise LogDamaged(f"{self.damage}. {_REBUILD}")

    # Dropping.

    async def compact(self, up_to_index: int) -> None:
        """Drop the whole segments whose entries are all at or before `up_to_index`; the last one always stays.

        The caller has made the state durable up to there. What was begun behind such a segment and is not yet fsynced
        keeps it: it has the hard state, and the next one's beginning might be lost. A damaged log is left as it is, as
        evidence. Raises StorageFailed.
        """
        async with self._drop_lock:
            if self.damage is not None:
                return
            self._check_usable()
            keep = 0
            for segment, behind in pairwise(self._segments):
                if segment.last_index > up_to_index or behind.position >= self._durable:
                    break
                keep += 1
            if keep:
                await self._drop(self._segments[:keep], self._segments[keep].sequence)

    async def reset(self, index: int, term: int, *, discard: bool = False) -> None:
        """Forget all entries: the log begins after the entry (index, term), which a snapshot covers.

        The hard state stays, its commit index raised to `index`; with `discard`, which takes back what was committed
        in a history that a failover has ended, it becomes `index`. Raises as append does.
        """
        async with self._drop_lock, self._append_lock:
            self._check_usable()
            await self._begin_segment(index + 1)
            *old, new = self._segments
            self._terms = TermRuns(index, term)
            self._last_index = index
            self._recent.clear()
            self.hard_state = self.hard_state._replace(commit=index if discard else max(index, self.hard_state.commit))
            self._segments = [new]
            encoder = Encoder(self._checksum, self._durable)
            self._encode_head(encoder, index, self.hard_state, reset=True)
            self._write(encoder)
            self._written_hard_state = self.hard_state
            await self._sync()
            await self._drop(old, new.sequence)

    async def _drop(self, segments: list[Segment], first_sequence: int) -> None:
        """Remove segments, the mark being told first that they need not exist."""
        try:
            await self._usable_mark().require(first_sequence)
            self._segments = [segment for segment in self._segments if segment not in segments]
            self._terms.compact(self.first_index() - 1)
            for segment in segments:
                segment.file.close()
                self._disk.remove(f"{self._directory}/{segment_name(segment.sequence)}")
        except OSError as error:
            raise self._fail("a segment of the log could not be dropped", error) from error

    async def close(self) -> None:
        """Write what was held back, sync, and release the files. The log cannot be used afterwards."""
        async with self._drop_lock, self._append_lock:
            if self.damage is None and self._failure is None:
                await self._write_batch((), self.hard_state)
                await self._sync()
            self._failure = self._failure or "the log is closed"
            await self._spare.close()
            for segment in self._segments:
                segment.file.close()
            if self._mark is not None:
                self._mark.close()

    def _check_usable(self) -> None:
        if self.damage is not None:
            raise LogDamaged(f"{self.damage}. {_REBUILD}")
        if self._failure is not None:
            raise StorageFailed(f"{self._failure}; the log in {self._directory} takes nothing more. Restart the node")

    def _usable_mark(self) -> MarkFile:
        invariant(self._mark is not None, "a log without a mark is damaged, and a damaged one is not written")
        assert self._mark is not None
        return self._mark

    def _fail(self, what: str, error: OSError) -> StorageFailed:
        self._failure = f"{what}: {error}"
        return _storage_failed(f"{what} in {self._directory}; this node stops taking part in commits", error)


def _promises(hard_state: HardState) -> tuple[int, ...]:
    """What must not be forgotten: all but the commit index."""
    return hard_state.term, hard_state.vote, hard_state.epoch, hard_state.ballot


def _storage_failed(what: str, error: OSError) -> StorageFailed:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFailed(
            f"{what}: the disk is full ({error}). Free some space, then restart this node", code="DISK_FULL"
        )
    return StorageFailed(f"{what}: {error}")


def _bounded(entries: list[Entry], max_bytes: int) -> list[Entry]:
    """The head of `entries`, at least one, whose data takes at most `max_bytes`."""
    for count, entry in enumerate(entries):
        max_bytes -= len(entry.data)
        if max_bytes < 0 and count:
            return entries[:count]
    return entries
