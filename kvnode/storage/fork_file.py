"""What a node held beyond a fork: saved before it lets go of it, for the operator to read.

    forks/epoch-1-from-904.fork     under the data directory: a line of JSON, then records as in the log

The records are the log's own (storage/record.py), chained from 0, so that damage shows. The file is written whole,
synced and renamed; the same tail gives the same name, so that saving it twice changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from kvnode.base.errors import InvalidRequest, StorageFailed
from kvnode.codec.entry import Entry
from kvnode.storage.disk import Disk
from kvnode.storage.record import Encoder, decode_entry, read_record
from kvnode.storage.rejoin import decide_to_rejoin

FOLDER = "forks"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class ForkHeader:
    """What the file is about.

    Attributes:
        node, cluster_id: who held the entries.
        epoch: of the history that they belong to.
        fork_index: the last index that the later history has in common with it, as far as is known.
        first_index, last_index: of the entries here.
        saved_at_ms: wall clock.
    """

    node: str
    cluster_id: str
    epoch: int
    fork_index: int
    first_index: int
    last_index: int
    saved_at_ms: int


class ForkFiles:
    """The fork files of one data directory.

    Args:
        disk: where they are.
        directory: the data directory.
    """

    def __init__(self, disk: Disk, directory: str) -> None:
        self._disk = disk
        self._directory = f"{directory}/{FOLDER}"
        self._parent = directory

    async def decide_to_rejoin(self, membership: bytes) -> None:
        """See storage/rejoin.py."""
        await decide_to_rejoin(self._disk, self._parent, membership)

    async def save(self, header: ForkHeader, entries: Iterable[Entry]) -> str:
        """Write the file durably; returns its path. Raises StorageFailed."""
        path = f"{self._directory}/epoch-{header.epoch}-from-{header.first_index}-to-{header.last_index}.fork"
        encoder = Encoder(0, 0)
        for entry in entries:
            encoder.add_entry(entry)
        records, _ = encoder.finish()
        head = json.dumps({"format": _FORMAT, **asdict(header)}).encode()
        try:
            self._disk.make_directory(self._directory)
            file = self._disk.open(f"{path}.new", create=True)
            try:
                file.truncate(0)
                file.write(0, b"%s\n%s" % (head, records))
                await file.sync()
            finally:
                file.close()
            self._disk.rename(f"{path}.new", path)
            await self._disk.sync_directory(self._directory)
            await self._disk.sync_directory(self._parent)
        except OSError as error:
            raise StorageFailed(f"cannot save what this node holds beyond the fork in {path}: {error}") from error
        return path


def read_fork(data: bytes, path: str) -> tuple[ForkHeader, Iterator[Entry]]:
    """The header and the entries of a fork file.

    Raises:
        InvalidRequest: FORK_FILE_INVALID; the iterator raises it too, where a record is damaged.
    """
    head, newline, records = data.partition(b"\n")
    try:
        fields = json.loads(head)
        if not newline or fields.pop("format", None) != _FORMAT:
            raise ValueError("not of a format that this version knows")
        header = ForkHeader(**fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _invalid(path, str(error)) from error
    return header, _entries(header, records, path)


def _entries(header: ForkHeader, records: bytes, path: str) -> Iterator[Entry]:
    offset = checksum = 0
    for index in range(header.first_index, header.last_index + 1):
        record = read_record(records, offset)
        entry = None if record is None or record.previous != checksum else decode_entry(record)
        if record is None or entry is None or entry.index != index:
            raise _invalid(path, f"entry {index} is damaged or missing")
        yield entry
        offset, checksum = record.end, record.checksum


def _invalid(path: str, why: str) -> InvalidRequest:
    return InvalidRequest("FORK_FILE_INVALID", f"{path} is no whole fork file: {why}", phase="storage")
