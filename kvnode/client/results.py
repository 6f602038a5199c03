"""What the client hands back: entries, the outcome of a commit, frames of a watch."""

from __future__ import annotations

import time
from typing import Final, Literal, NamedTuple

from kvnode.base.errors import InvalidRequest
from kvnode.client.numbers import whole_number
from kvnode.codec.keys import Key, decode_key
from kvnode.codec.values import decode_value
from kvnode.codec.versionstamp import VERSIONSTAMP_BYTES
from kvnode.proto.kv.v1 import kv_pb2

Consistency = Literal["strong", "eventual"]

_UNREAD: Final = object()


class Entry:
    """A key with its value and versionstamp, as Deno's KvEntry and KvEntryMaybe.

    Attributes:
        key: the key, as a tuple.
        versionstamp: 20 hexadecimal digits; None when the key does not exist.
        expire_at_ms: when the entry expires, milliseconds since 1970; None = never.
        raw: the value's bytes and encoding (kv.v1.ValueEncoding) as stored; b"" and 0 without a value.
        age_ms: how old the state may be that it was read from; 0 after a strong read; -1 = not known.
    """

    __slots__ = ("_encoded_key", "_key", "_value", "age_ms", "expire_at_ms", "raw", "versionstamp")

    def __init__(
        self, found: kv_pb2.Entry | None, key: Key | None = None, encoded_key: bytes = b"", age_ms: int = 0
    ) -> None:
        self.age_ms = age_ms
        self._key = key
        self._value: object = _UNREAD
        self._encoded_key = encoded_key
        self.raw: tuple[bytes, int] = (b"", 0)
        self.versionstamp: str | None = None
        self.expire_at_ms: int | None = None
        if found is not None:
            self._encoded_key = found.key
            self.raw = (found.value, found.encoding)
            self.versionstamp = found.versionstamp.hex()
            self.expire_at_ms = found.expire_at_ms or None

    @property
    def key(self) -> Key:
        """The key. Decoded when first asked for. Raises InvalidRequest: BAD_KEY_ENCODING, not a key of Deno's."""
        if self._key is None:
            self._key = decode_key(self._encoded_key)
        return self._key

    @property
    def encoded_key(self) -> bytes:
        """The key's bytes."""
        return self._encoded_key

    @property
    def exists(self) -> bool:
        """Whether the key exists; a stored None is a value like any other."""
        return self.versionstamp is not None

    @property
    def value(self) -> object:
        """The value; None when there is none. Decoded when first asked for. Raises KvError: VALUE_NOT_READABLE."""
        if self._value is _UNREAD:
            data, encoding = self.raw
            self._value = decode_value(data, encoding) if encoding else None
        return self._value

    def expires_in(self, now_ms: int | None = None) -> int | None:
        """How many milliseconds the entry has left; None = it stays, or does not exist.

        Args:
            now_ms: the time to count from, milliseconds since 1970; by default this machine's clock, which may be off
                from the cluster's.
        """
        if self.expire_at_ms is None:
            return None
        return max(0, self.expire_at_ms - (time.time_ns() // 1_000_000 if now_ms is None else now_ms))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entry):
            return NotImplemented
        return (self.encoded_key, self.versionstamp, self.raw) == (other.encoded_key, other.versionstamp, other.raw)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Entry(key={self.key!r}, value={self.value!r}, versionstamp={self.versionstamp!r})"


class CommitResult(NamedTuple):
    """The outcome of a commit. False in a condition when a check failed.

    Attributes:
        ok: whether the transaction was applied.
        versionstamp: of the commit; None when a check failed.
        failed_checks: positions of the failed checks, in the order they were added.
    """

    ok: bool
    versionstamp: str | None
    failed_checks: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self.ok


class PrefixChanges(NamedTuple):
    """A frame of watch_prefix.

    Attributes:
        entries: what changed since the frame before; `exists` is False for a key that was deleted or expired.
        versionstamp: of the state that the frame brings the watcher to.
        resync: changes may have been missed (the first frame, a new connection, too many changes at once): list the
            prefix again with `min_versionstamp=versionstamp`.
        age_ms: how old that state may be; -1 = not known.
    """

    entries: list[Entry]
    versionstamp: str
    resync: bool
    age_ms: int = -1


def parse_versionstamp(text: str) -> bytes:
    """The bytes of a versionstamp of 20 hexadecimal digits. Raises InvalidRequest: BAD_VERSIONSTAMP."""
    try:
        stamp = bytes.fromhex(text)
    except (TypeError, ValueError):
        stamp = b""
    if len(stamp) != VERSIONSTAMP_BYTES:
        raise InvalidRequest("BAD_VERSIONSTAMP", f"{text!r} is no versionstamp: it has 20 hexadecimal digits.")
    return stamp


def parse_max_staleness(staleness_ms: int | None) -> int:
    """What the request carries: 0 = no bound. Raises InvalidRequest: BAD_MAX_STALENESS."""
    if staleness_ms is None:
        return 0
    found = whole_number(staleness_ms, 1, (1 << 63) - 1)
    if found is None:
        raise InvalidRequest(
            "BAD_MAX_STALENESS",
            f"{staleness_ms!r} is no bound: give 1 ms or more, or read strongly for the newest state.",
        )
    return found


def consistency_of(name: str) -> kv_pb2.Consistency:
    """The enum's value. Raises InvalidRequest: BAD_CONSISTENCY."""
    if name == "strong":
        return kv_pb2.CONSISTENCY_STRONG
    if name == "eventual":
        return kv_pb2.CONSISTENCY_EVENTUAL
    raise InvalidRequest("BAD_CONSISTENCY", f"Consistency is 'strong' or 'eventual', not {name!r}.")
