"""Watches: the changes that each applied run makes, for those who asked for them.

Theory of operation. The node publishes every applied run once, as the rows it wrote. For each watch the hub
keeps one slot for each key that changed since the watch's last frame; a later change overwrites the slot.
A run is published whole before any frame is taken, and a frame takes all slots at once, so each frame is one
state that the database really had, however slow the reader: it skips states, never mixes them, and always ends
with the last one. After a snapshot install nothing is known of what changed, so watches of keys read theirs
anew and watches of a range are told to; a frame that falls between the install and the news of it as well.

A watch may bound how old its states may be, the one that its reader holds included. So the age is looked at before each
frame, and while nothing changes whenever it may have grown past the bound; then the watch ends with TooStale, and its
reader goes on at another node.

A row whose time has come by the log time of the state counts as absent, also before the entry that deletes it. No run
writes it then, so a frame looks for such rows itself: what a transaction wrote that found a row expired is never shown
beside that row. In a range they are found by their time; where too many wait to be deleted, the frame is a resync.
While nothing else changes, the entry that deletes it, a tick later, brings the frame.

Memory: a key watch has at most MAX_WATCHED_KEYS_COUNT slots. A range watch that falls more than
MAX_PREFIX_WATCH_PENDING_KEYS_COUNT keys or MAX_PREFIX_WATCH_PENDING_BYTES behind drops them and sends `resync`; its
first frame is a resync too, so that a reader has one rule: on resync, read the range at that versionstamp or later,
then follow.

Cost of a run: nothing without watches; with key watches one intersection of dictionaries, in time of the
smaller; with range watches one sort of the run's keys and two bisections a watch.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, TooStale, Unavailable
from kvnode.base.watch_pace import ping_interval_ms
from kvnode.codec.row import Row
from kvnode.codec.versionstamp import versionstamp
from kvnode.node.freshness import in_words, is_within
from kvnode.node.stats import Stats
from kvnode.proto.kv.v1 import kv_pb2

DATABASE_PREFIX_BYTES = 4
DEFAULT_DATABASE = 1
_KEY_OVERHEAD_BYTES = 64  # of a changed key in a frame, beside the key, twice, and the value
_LAST_ORDER = limits.MAX_ENTRY_TRANSACTIONS_COUNT - 1  # a state holds whole entries


class Position(Protocol):
    """Where the applied state stands."""

    @property
    def epoch(self) -> int:
        """The epoch."""

    @property
    def applied_index(self) -> int:
        """The last index in it."""

    @property
    def log_time_ms(self) -> int:
        """Its log time."""


class WatchedState(Protocol):
    """What the hub needs of the state; all reads of one loop pass see the same applied index."""

    @property
    def meta(self) -> Position:
        """Where it stands."""

    def get(self, key: bytes) -> Row | None:
        """The row of a full key (with its database's prefix), or None."""

    def due(self, now_ms: int, limit: int) -> list[tuple[bytes, int]]:
        """(full key, expire_at_ms) of rows with expire_at_ms <= now_ms, by time."""


class WatchHub:
    """All watches of one node.

    Args:
        state: read for first frames and after a snapshot install.
        stats: counts watches, frames and resyncs.
        age_ms: how old the state may be now, told with each frame; -1 = not known.
        removed: that this node was removed from the cluster, and what to do; empty = it was not.
    """

    def __init__(
        self,
        state: WatchedState,
        stats: Stats,
        age_ms: Callable[[], int] = lambda: -1,
        removed: Callable[[], str] = lambda: "",
    ) -> None:
        self._age_ms = age_ms
        self._removed = removed
        self._state = state
        self._stats = stats
        # Of objects no sets: their order would be that of the memory, and each run of a seed another one.
        self._by_key: dict[bytes, dict[KeyWatch, None]] = {}
        self._ranges: dict[tuple[bytes, bytes], dict[RangeWatch, None]] = {}
        self._watches: dict[Watch, None] = {}
        self._range_count = 0
        self._closed = False
        self._told_of = self._place()

    def __len__(self) -> int:
        return len(self._watches)

    def watch(self, request: kv_pb2.WatchRequest, database: int = DEFAULT_DATABASE) -> Watch:
        """Begin a watch; iterate over the result and close it at the end.

        Args:
            request: keys, or both bounds of a range. `strong` is the caller's to honour before (strong_read).
            database: the number of the database.

        Raises:
            InvalidRequest: neither or both kinds, too many keys, an empty range.
            Unavailable: this node serves as many watches as it may, is stopping, or was removed from the cluster.
        """
        _validate(request)
        if self._closed:
            raise Unavailable("the node is stopping; watch at another one", code="NODE_STOPPING")
        if removed := self._removed():
            raise Unavailable(removed, code="MEMBER_REMOVED")  # nothing would ever be seen here
        if len(self._watches) >= limits.MAX_WATCHES_COUNT:
            raise Unavailable(
                f"this node serves {limits.MAX_WATCHES_COUNT} watches already; watch at another one",
                code="TOO_MANY_WATCHES",
                phase="read",
            )
        prefix = database.to_bytes(DATABASE_PREFIX_BYTES, "big")
        bound_ms = request.max_staleness_ms
        if request.keys:
            return self._watch_keys([prefix + key for key in request.keys], bound_ms)
        return self._watch_range(prefix + request.prefix_start, prefix + request.prefix_end, bound_ms)

    def publish(self, changed: Mapping[bytes, Row | None], log_time_ms: int) -> None:
        """A run was applied.

        Args:
            changed: full keys to their new rows, None = deleted.
            log_time_ms: of the state after the run.
        """
        self._told_of = self._place()
        if not self._watches:
            return
        if self._by_key:
            for key in sorted(self._by_key.keys() & changed.keys()):
                row = _alive(changed[key], log_time_ms)
                for watch in self._by_key[key]:
                    watch.changed(key, row)
        if self._ranges and changed:
            self._publish_to_ranges(changed, log_time_ms)

    def resync(self) -> None:
        """The state was replaced: every watch starts from it anew."""
        self._told_of = self._place()
        for watch in self._watches:
            watch.resync()

    def close(self) -> None:
        """End all watches: the node is stopping."""
        self._closed = True
        self.end_all()

    def end_all(self) -> None:
        """Send those who watch here elsewhere."""
        for watch in list(self._watches):
            watch.close()

    def _publish_to_ranges(self, changed: Mapping[bytes, Row | None], log_time_ms: int) -> None:
        keys = sorted(changed)
        for (start, end), watches in self._ranges.items():
            first = bisect_left(keys, start)
            last = bisect_left(keys, end, first)
            if first == last:
                continue
            rows = {key: _alive(changed[key], log_time_ms) for key in keys[first:last]}
            size_bytes = _size_bytes(rows)
            for watch in watches:
                watch.changed_rows(rows, size_bytes)

    def _watch_keys(self, keys: list[bytes], bound_ms: int) -> KeyWatch:
        watch = KeyWatch(self, keys, bound_ms)
        for key in keys:
            self._by_key.setdefault(key, {})[watch] = None
        self._register(watch)
        return watch

    def _watch_range(self, start: bytes, end: bytes, bound_ms: int) -> RangeWatch:
        if self._range_count >= limits.MAX_PREFIX_WATCHES_COUNT:
            raise Unavailable(
                f"this node serves {limits.MAX_PREFIX_WATCHES_COUNT} watches of ranges already; watch at another one",
                code="TOO_MANY_WATCHES",
                phase="read",
            )
        watch = RangeWatch(self, start, end, bound_ms)
        self._ranges.setdefault((start, end), {})[watch] = None
        self._range_count += 1
        self._register(watch)
        return watch

    def _register(self, watch: Watch) -> None:
        self._watches[watch] = None
        self._stats.watches = len(self._watches)

    @property
    def is_told(self) -> bool:
        """Whether the state is the one of which the watches were told last. An install replaces it a moment before."""
        return self._told_of == self._place()

    def _place(self) -> tuple[int, int]:
        meta = self._state.meta
        return meta.epoch, meta.applied_index

    # For the watches.

    def settle(self) -> None:
        """Before a frame, which names the state of now: nothing that is remembered of another one may be in it."""
        if not self.is_told:
            self.resync()

    def forget(self, watch: Watch) -> None:
        """The watch has ended."""
        self._watches.pop(watch, None)
        self._stats.watches = len(self._watches)
        if isinstance(watch, KeyWatch):
            for key in watch.keys:
                if watches := self._by_key.get(key):
                    watches.pop(watch, None)
                    if not watches:
                        del self._by_key[key]
        elif isinstance(watch, RangeWatch):
            bounds = (watch.start, watch.end)
            if watches_of_range := self._ranges.get(bounds):
                watches_of_range.pop(watch, None)
                self._range_count -= 1
                if not watches_of_range:
                    del self._ranges[bounds]

    @property
    def log_time_ms(self) -> int:
        """By which rows expire as of now."""
        return self._state.meta.log_time_ms

    def row(self, key: bytes) -> Row | None:
        """The row of a full key as of now; expired = None."""
        return _alive(self._state.get(key), self.log_time_ms)

    def expired(self, start: bytes, end: bytes) -> list[bytes] | None:
        """Full keys of the range whose time has come and which are not deleted yet; None = there may be more."""
        limit = limits.MAX_EXPIRED_KEYS_PER_TICK_COUNT  # more wait only where ticks cannot keep up
        due = self._state.due(self.log_time_ms, limit + 1)
        return None if len(due) > limit else [key for key, _ in due if start <= key < end]

    def stamp(self) -> bytes:
        """The versionstamp of the state as of now."""
        meta = self._state.meta
        return versionstamp(meta.epoch, meta.applied_index, _LAST_ORDER)

    def age_within(self, bound_ms: int) -> int:
        """How old the state may be now; -1 = not known.

        Raises:
            TooStale: it may be older than the bound; 0 = there is none.
        """
        age_ms = self._age_ms()
        if not is_within(age_ms, bound_ms):
            self._stats.watches_too_stale += 1
            raise TooStale(
                f"this node's state {in_words(age_ms)}, the watch allows {bound_ms} ms; watch at a fresher node, allow "
                "more, or see `kvnode status`"
            )
        return age_ms

    def sent(self, frame: kv_pb2.WatchResponse, age_ms: int) -> kv_pb2.WatchResponse:
        """A frame is about to be sent: count it, and say how old it may be."""
        if not frame.ping:
            self._stats.watch_frames += 1
            self._stats.watch_resyncs += frame.resync
        frame.age_ms = age_ms
        return frame


class Watch(ABC):
    """One watch in progress: an asynchronous iterator of frames that ends when it is closed.

    After some seconds without a change (ping_interval_ms) the frame is a ping.

    Args:
        hub: whose watch it is.
        bound_ms: how old the state may be; 0 = there is no bound. When it may be older, the iteration raises TooStale
            and the watch is closed.
    """

    def __init__(self, hub: WatchHub, bound_ms: int = 0) -> None:
        self._hub = hub
        self._bound_ms = bound_ms
        self._stale = True  # the next frame is built from the state, not from the slots
        self._waiter: asyncio.Future[None] | None = None
        self._open = True

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> kv_pb2.WatchResponse:
        silent_ms = 0  # since the last change, as far as was waited here
        while self._open:
            age_ms = self._age_ms()
            self._hub.settle()
            frame = self._frame()
            ping_in_ms = ping_interval_ms(self._bound_ms) - silent_ms
            if frame is None and ping_in_ms <= 0:
                frame = kv_pb2.WatchResponse(ping=True)
            if frame is not None:
                return self._hub.sent(frame, age_ms)
            wait_ms = self._wait_ms(ping_in_ms, age_ms)
            silent_ms = 0 if await self._changes_within(wait_ms) else silent_ms + wait_ms
        raise StopAsyncIteration

    def _age_ms(self) -> int:
        try:
            return self._hub.age_within(self._bound_ms)
        except TooStale:
            self.close()
            raise

    def _wait_ms(self, ping_in_ms: int, age_ms: int) -> int:
        """For how long nothing needs to be done unless something changes."""
        if not self._bound_ms:
            return ping_in_ms
        # Without news the age grows with time, so that it is above the bound a moment later than this.
        return min(ping_in_ms, max(self._bound_ms - age_ms + 1, limits.MIN_WATCH_AGE_CHECK_MS))

    @property
    def open(self) -> bool:
        """False once it was closed, by its reader or because the node stops."""
        return self._open

    def resync(self) -> None:
        """The state was replaced."""
        self._stale = True
        self._wake()

    def close(self) -> None:
        """End the watch; the iteration stops. May be called twice."""
        if self._open:
            self._open = False
            self._hub.forget(self)
            self._wake()

    @abstractmethod
    def _frame(self) -> kv_pb2.WatchResponse | None:
        """The next frame, None when there is nothing new."""

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _changes_within(self, timeout_ms: int) -> bool:
        """Wait for a wake-up; False when none came in time."""
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = loop.call_later(timeout_ms / 1_000, waiter.cancel)
        try:
            await waiter
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise  # the reader was cancelled, not the wait
            return False
        finally:
            timer.cancel()
            self._waiter = None
        return True


class _Seen(NamedTuple):
    """What the reader was last told of a key: a row's versionstamp, or None for absent."""

    versionstamp: bytes | None


class KeyWatch(Watch):
    """A watch of up to MAX_WATCHED_KEYS_COUNT keys; each frame names all of them, in order."""

    def __init__(self, hub: WatchHub, keys: list[bytes], bound_ms: int) -> None:
        super().__init__(hub, bound_ms)
        self.keys = keys
        self._slots: dict[bytes, Row | None] = {}
        self._seen: dict[bytes, _Seen] = {}
        self._expiring: dict[bytes, int] = {}  # when what was shown of a key expires

    def changed(self, key: bytes, row: Row | None) -> None:
        """A run wrote this key."""
        self._slots[key] = row
        self._wake()

    def _frame(self) -> kv_pb2.WatchResponse | None:
        if self._stale:
            self._stale = False
            self._slots = {key: self._hub.row(key) for key in self.keys}
        if not self._slots:
            return None
        fresh = self._fresh()
        if not fresh:
            return None
        frame = kv_pb2.WatchResponse(versionstamp=self._hub.stamp())
        for key in self.keys:
            if key in fresh:
                row = fresh[key]
                self._seen[key] = _seen(row)
                frame.keys.append(_watch_key(key, row))
            else:
                frame.keys.add(key=key[DATABASE_PREFIX_BYTES:])
        return frame

    def _fresh(self) -> dict[bytes, Row | None]:
        """What the reader has not been told yet of the state of now."""
        now_ms, expiring = self._hub.log_time_ms, self._expiring
        slots, self._slots = {key: _alive(row, now_ms) for key, row in self._slots.items()}, {}
        if expiring:
            slots.update((key, None) for key, at_ms in expiring.items() if at_ms <= now_ms and key not in slots)
        for key, row in slots.items():
            if row is not None and row.expire_at_ms:
                expiring[key] = row.expire_at_ms
            else:
                expiring.pop(key, None)
        return {key: row for key, row in slots.items() if self._seen.get(key) != _seen(row)}


class RangeWatch(Watch):
    """A watch of start <= key < end; a frame names the keys that changed."""

    def __init__(self, hub: WatchHub, start: bytes, end: bytes, bound_ms: int) -> None:
        super().__init__(hub, bound_ms)
        self.start = start
        self.end = end
        self._slots: dict[bytes, Row | None] = {}
        self._slots_bytes = 0  # at most: what was overwritten may still be counted
        self._gone: set[bytes] = set()  # expired and said to be gone, before they were deleted

    def changed_rows(self, rows: Mapping[bytes, Row | None], size_bytes: int) -> None:
        """A run wrote these keys of the range; `size_bytes`: what they take in a frame."""
        if not self._stale:
            gone = self._gone
            for key, row in rows.items():
                if row is not None or key not in gone:  # else its reader knows
                    self._slots[key] = row
            gone.difference_update(rows)
            self._slots_bytes += size_bytes
            if self._is_far_behind():
                self._begin_anew()
        self._wake()

    def _is_far_behind(self) -> bool:
        if self._slots_bytes > limits.MAX_PREFIX_WATCH_PENDING_BYTES:
            self._slots_bytes = _size_bytes(self._slots)
        return (
            len(self._slots) > limits.MAX_PREFIX_WATCH_PENDING_KEYS_COUNT
            or self._slots_bytes > limits.MAX_PREFIX_WATCH_PENDING_BYTES
        )

    def _drop(self) -> dict[bytes, Row | None]:
        slots, self._slots, self._slots_bytes = self._slots, {}, 0
        return slots

    def resync(self) -> None:
        """The state was replaced."""
        self._begin_anew()
        super().resync()

    def _begin_anew(self) -> None:
        self._stale = True
        self._drop()
        self._gone.clear()

    def _frame(self) -> kv_pb2.WatchResponse | None:
        if not self._slots and not self._stale:
            return None
        hub = self._hub
        expired = None if self._stale else hub.expired(self.start, self.end)
        if expired is None:
            self._begin_anew()
            self._stale = False
            return kv_pb2.WatchResponse(resync=True, versionstamp=hub.stamp())
        slots = self._drop()
        slots.update((key, None) for key in expired if key not in self._gone)
        self._gone.update(expired)
        return kv_pb2.WatchResponse(
            keys=[_watch_key(key, row) for key, row in sorted(slots.items())], versionstamp=hub.stamp()
        )


def _alive(row: Row | None, log_time_ms: int) -> Row | None:
    """The row, or None when its time has come."""
    return None if row is None or 0 < row.expire_at_ms <= log_time_ms else row


def _size_bytes(rows: Mapping[bytes, Row | None]) -> int:
    """What rows take in a frame, at most."""
    return sum(
        len(key) if row is None else 2 * len(key) + len(row.value) for key, row in rows.items()
    ) + _KEY_OVERHEAD_BYTES * len(rows)


def _seen(row: Row | None) -> _Seen:
    return _Seen(None if row is None else row.versionstamp)


def _watch_key(key: bytes, row: Row | None) -> kv_pb2.WatchKey:
    user_key = key[DATABASE_PREFIX_BYTES:]
    if row is None:
        return kv_pb2.WatchKey(key=user_key, changed=True)
    entry = kv_pb2.Entry(
        key=user_key,
        value=row.value,
        encoding=row.encoding,  # type: ignore[arg-type]  # a plain int is what the field holds
        versionstamp=row.versionstamp,
        expire_at_ms=row.expire_at_ms,
    )
    return kv_pb2.WatchKey(key=user_key, changed=True, entry=entry)


def _validate(request: kv_pb2.WatchRequest) -> None:
    if request.keys:
        if request.prefix_start or request.prefix_end:
            raise InvalidRequest("WATCH_INVALID", "a watch names keys or one range, not both")
        if len(request.keys) > limits.MAX_WATCHED_KEYS_COUNT:
            raise InvalidRequest(
                "TOO_MANY_WATCHED_KEYS",
                f"Too many keys watched in a single watch request. It names {len(request.keys)} keys; the limit is "
                f"{limits.MAX_WATCHED_KEYS_COUNT}: watch their prefix, or use several watches.",
            )
        for key in request.keys:
            _check_length(key)
    elif not request.prefix_end or request.prefix_start >= request.prefix_end:
        raise InvalidRequest("WATCH_INVALID", "a watch names keys, or a range whose start is below its end")
    else:
        _check_length(request.prefix_start)
        _check_length(request.prefix_end)


def _check_length(key: bytes) -> None:
    if len(key) > limits.MAX_READ_KEY_BYTES:
        raise InvalidRequest("KEY_TOO_LARGE", f"a watched key is at most {limits.MAX_READ_KEY_BYTES} bytes long")
