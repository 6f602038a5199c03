"""A model of the key space that replays committed writes in the order of their versionstamps.

It is the oracle of the checker, so it is as plain as can be: a dictionary, a sorted list of its keys,
and for each key the versions it went through (needed to judge a failed check, which has no place of its
own in the order).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cluster.history import Mutation, MutationKind, Range, SeenEntry, Write

_U64 = 1 << 64
_U64_BYTES = 8


class ModelRow(NamedTuple):
    """A row; `versionstamp` is that of the commit that wrote it."""

    value: bytes
    versionstamp: bytes
    expire_at_ms: int = 0


class Version(NamedTuple):
    """A key from `position` on: `versionstamp` is empty while it does not exist."""

    position: int
    versionstamp: bytes
    expires: bool


class UnsupportedHistory(ValueError):
    """The workload did something whose effect a replay cannot know."""


class NoNumber(ValueError):
    """A write was committed that had to fail: sum, min or max on what is no number."""


class Model:
    """The key space at one position of the commit order."""

    def __init__(self) -> None:
        self.rows: dict[bytes, ModelRow] = {}
        self.versions: dict[bytes, list[Version]] = {}
        self._keys: list[bytes] = []

    def apply(self, write: Write, versionstamp: bytes) -> None:
        """Apply a committed write's mutations, in their order. Raises NoNumber; then some of them are not applied."""
        position = int.from_bytes(versionstamp, "big")
        for mutation in write.mutations:
            self._mutate(mutation, versionstamp, position)

    def expire(self, key: bytes, position: int) -> None:
        """A read has shown that this row had expired at `position`."""
        self._put(key, None, position)

    def range_rows(self, asked: Range) -> Iterator[tuple[bytes, ModelRow]]:
        """Every row of the range in the order asked for; the limit is not applied. Rows may expire meanwhile."""
        keys = self._keys[bisect_left(self._keys, asked.start) : bisect_left(self._keys, asked.end)]
        if asked.reverse:
            keys.reverse()
        for key in keys:
            yield key, self.rows[key]

    def version_at(self, key: bytes, position: int) -> Version:
        """The key's version as of a position at or before the present one."""
        versions = self.versions.get(key, [])
        found = bisect_right(versions, position, key=lambda version: version.position)
        return versions[found - 1] if found else Version(0, b"", False)

    def changes_between(self, keys: Iterable[bytes], after: int, up_to: int) -> list[int]:
        """The positions in (after, up_to] at which one of the keys changed, in order."""
        positions: set[int] = set()
        for key in keys:
            versions = self.versions.get(key, [])
            first = bisect_right(versions, after, key=lambda version: version.position)
            last = bisect_right(versions, up_to, key=lambda version: version.position)
            positions.update(version.position for version in versions[first:last])
        return sorted(positions)

    def _mutate(self, mutation: Mutation, versionstamp: bytes, position: int) -> None:
        match mutation.kind:
            case MutationKind.SET:
                self._put(mutation.key, ModelRow(mutation.value, versionstamp, mutation.expire_at_ms), position)
            case MutationKind.DELETE:
                self._put(mutation.key, None, position)
            case MutationKind.DELETE_RANGE:
                start = bisect_left(self._keys, mutation.key)
                for key in self._keys[start : bisect_left(self._keys, mutation.end_key)]:
                    self._put(key, None, position)
            case MutationKind.SET_SUFFIX_VERSIONSTAMPED_KEY:
                self._put(suffixed(mutation.key, versionstamp), ModelRow(mutation.value, versionstamp), position)
            case _:
                self._put(mutation.key, ModelRow(self._arithmetic(mutation), versionstamp), position)

    def _arithmetic(self, mutation: Mutation) -> bytes:
        """The result of sum, min or max on 8-byte little-endian numbers; an absent row takes the operand."""
        row = self.rows.get(mutation.key)
        if row is None:
            return mutation.value
        if row.expire_at_ms:
            raise UnsupportedHistory(f"arithmetic on {mutation.key!r}, which expires: its result is not determined")
        if len(row.value) != _U64_BYTES:
            raise NoNumber(f"{mutation.kind.name} of {mutation.key!r}, whose value has {len(row.value)} bytes")
        stored, operand = int.from_bytes(row.value, "little"), int.from_bytes(mutation.value, "little")
        if mutation.kind is MutationKind.SUM:
            result = (stored + operand) % _U64
        else:
            result = min(stored, operand) if mutation.kind is MutationKind.MIN else max(stored, operand)
        return result.to_bytes(_U64_BYTES, "little")

    def _put(self, key: bytes, row: ModelRow | None, position: int) -> None:
        if row is None:
            if self.rows.pop(key, None) is None:
                return
            del self._keys[bisect_left(self._keys, key)]
        else:
            if key not in self.rows:
                insort(self._keys, key)
            self.rows[key] = row
        stamp = row.versionstamp if row else b""
        self.versions.setdefault(key, []).append(Version(position, stamp, bool(row and row.expire_at_ms)))


def suffixed(key: bytes, versionstamp: bytes) -> bytes:
    """The key that SET_SUFFIX_VERSIONSTAMPED_KEY writes: one string part more, the stamp in lower hex."""
    return key + b"\x02" + versionstamp.hex().encode() + b"\x00"


def matches(seen: SeenEntry, key: bytes, row: ModelRow, keys_only: bool) -> bool:
    """Whether a read's row is the model's."""
    if seen.key != key or seen.versionstamp != row.versionstamp:
        return False
    return keys_only or seen.value == row.value
