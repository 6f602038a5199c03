"""The client that applications use: Deno KV's methods in Python's manner, over one pipelined session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from types import TracebackType
from weakref import WeakSet

import grpc

from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.base.errors import InvalidRequest
from kvnode.client import rpc
from kvnode.client.atomic import COMMIT_VERSIONSTAMP, AtomicOperation, CommitVersionstamp, WritableKey
from kvnode.client.channel import parse_endpoints
from kvnode.client.cron_admin import CronAdmin
from kvnode.client.listing import KvList
from kvnode.client.numbers import parse_timeout_ms
from kvnode.client.outcome import client_closed
from kvnode.client.queue import QueueListener
from kvnode.client.queue_admin import QueueAdmin
from kvnode.client.queue_handlers import Handler, run_handlers
from kvnode.client.results import (
    CommitResult,
    Consistency,
    Entry,
    consistency_of,
    parse_max_staleness,
    parse_versionstamp,
)
from kvnode.client.selection import CallMetadata, call_metadata
from kvnode.client.session import Session
from kvnode.client.unary import UnaryCaller
from kvnode.client.watch import KeysWatch, PrefixWatch, WatchStream
from kvnode.codec.keys import AnyKey, KeyRange, encode_key, list_range, point_range, prefix_range
from kvnode.proto.kv.v1 import kv_pb2


def open_kv(
    endpoints: str | Sequence[str] = "127.0.0.1:4510",
    *,
    database: str = "",
    token: str = "",
    timeout_ms: int = limits.DEFAULT_OPERATION_TIMEOUT_MS,
    credentials: grpc.ChannelCredentials | None = None,
    fail_fast: bool = False,
    clock: Clock | None = None,
    random: Random | None = None,
) -> Kv:
    """A client of one database. Use it as `async with open_kv([...]) as kv:`.

    Nothing connects before the first operation.

    Args:
        endpoints: host:port of nodes of one cluster in order of preference, the nearest first; a list, or one string
            with commas. Any node will do: it forwards to the leader. More than one survive the loss of a node.
        database: name or uuid; none = the default one.
        token: an access token, as `kvnode token create` shows it; needed where the nodes ask for one (`grpc_auth`).
        timeout_ms: how long an operation may take, waiting for a leader and sending again included.
        credentials: for TLS (`tls_credentials`); None = plain text.
        fail_fast: raise as soon as no endpoint could be reached, rather than wait for one until the deadline.
        clock: the source of deadlines.
        random: the source of back-off jitter.

    Raises:
        InvalidRequest: ENDPOINT_INVALID, DATABASE_NAME_INVALID, BAD_TIMEOUT.
    """
    return Kv(
        parse_endpoints(endpoints if isinstance(endpoints, str) else list(endpoints)),
        timeout_ms=timeout_ms,
        credentials=credentials,
        metadata=call_metadata(database, token),
        fail_fast=fail_fast,
        clock=clock,
        random=random,
    )


class Kv:
    """One database. See open_kv; every method raises KvError, which names endpoint, phase and remedy."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        timeout_ms: int,
        credentials: grpc.ChannelCredentials | None,
        metadata: CallMetadata = (),
        fail_fast: bool,
        clock: Clock | None,
        random: Random | None,
    ) -> None:
        self._addresses = list(addresses)
        self._timeout_ms = timeout_ms = parse_timeout_ms(timeout_ms)
        self._credentials = credentials
        self._metadata = metadata
        self._fail_fast = fail_fast
        self._random = random or Random()
        self.session = Session(
            addresses,
            credentials=credentials,
            metadata=metadata,
            fail_fast=fail_fast,
            clock=clock,
            random=self._random,
        )
        self._unary = UnaryCaller(
            addresses,
            credentials=credentials,
            metadata=metadata,
            fail_fast=fail_fast,
            clock=clock,
            random=self._random,
        )
        self._unary_reads_count = 0
        # One that runs is kept alive by whoever iterates over it.
        self._open: WeakSet[QueueListener | KeysWatch | PrefixWatch] = WeakSet()
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None  # that of the first operation
        self.queues = QueueAdmin(self._unary, self._commit, timeout_ms)
        self.crons = CronAdmin(self._unary, self._commit, timeout_ms)

    async def __aenter__(self) -> Kv:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Operations that were not awaited end as errors, and so does what is begun afterwards.

        Listeners and watches that are still open are closed too: what listeners hold is given back, and the iterations
        end.
        """
        self._is_closed = True
        try:
            await asyncio.gather(*(iteration.aclose() for iteration in list(self._open)))
        finally:
            await self.session.close()
            await self._unary.close()

    # ---- reads -------------------------------------------------------------------------------------------------

    async def get(
        self,
        key: AnyKey,
        *,
        consistency: Consistency = "strong",
        keys_only: bool = False,
        min_versionstamp: str | None = None,
        max_staleness_ms: int | None = None,
        timeout_ms: int | None = None,
    ) -> Entry:
        """The entry of a key; when there is none, its versionstamp and value are None.

        Args:
            key: a tuple of str, bytes, int, float, bool and BigInt.
            consistency: "strong" sees every write acknowledged before; "eventual" one real past state of the
                answering node, without a hop to the leader.
            keys_only: leave the value out, for a look at versionstamp and expiry alone.
            min_versionstamp: read a state that is at least this new, waiting for it if need be: an eventual read with
                the versionstamp of your own commit sees that commit, on any node. VERSIONSTAMP_LOST says that a
                failover lost that commit.
            max_staleness_ms: how old the state of an eventual read may be. A node whose own may be older has a fresher
                one answer, and raises TooStale when there is none. `age_ms` of the entry says how old it was.
            timeout_ms: for this operation.
        """
        (entry,) = await self.get_many(
            [key],
            consistency=consistency,
            keys_only=keys_only,
            min_versionstamp=min_versionstamp,
            max_staleness_ms=max_staleness_ms,
            timeout_ms=timeout_ms,
        )
        return entry

    async def get_many(
        self,
        keys: Sequence[AnyKey],
        *,
        consistency: Consistency = "strong",
        keys_only: bool = False,
        min_versionstamp: str | None = None,
        max_staleness_ms: int | None = None,
        timeout_ms: int | None = None,
    ) -> list[Entry]:
        """The entries of up to 10 keys, all of one state. Arguments as for get."""
        encoded = [encode_key(key) for key in keys]
        ranges = [_read_range(point_range(key), keys_only) for key in encoded]
        response = await self._read(ranges, consistency, min_versionstamp, max_staleness_ms, timeout_ms)
        return [
            Entry(result.entries[0] if result.entries else None, tuple(key), data, response.age_ms)
            for key, data, result in zip(keys, encoded, response.ranges, strict=True)
        ]

    def list(
        self,
        prefix: AnyKey | None = None,
        *,
        start: AnyKey | None = None,
        end: AnyKey | None = None,
        limit: int | None = None,
        reverse: bool = False,
        consistency: Consistency = "strong",
        batch_size: int | None = None,
        cursor: str = "",
        keys_only: bool = False,
        min_versionstamp: str | None = None,
        max_staleness_ms: int | None = None,
        timeout_ms: int | None = None,
    ) -> KvList:
        """The entries of a range, in the order of their keys: `async for entry in kv.list(prefix=("users",))`.

        Args:
            prefix: every key that begins with these parts, itself excluded; () = all keys.
            start: the first key, included; with a prefix, within it.
            end: where to stop, excluded; with a prefix, within it, and then without a start.
            limit: how many entries at most.
            reverse: the last entry first.
            consistency: as for get. Each page is one state; two pages may be of different ones.
            batch_size: entries in a page, up to 1,000; by default 100, or the limit up to 500.
            cursor: `.cursor` of an earlier list with the same bounds and direction: go on after its last entry.
            keys_only: leave the values out: `value` is None.
            min_versionstamp, max_staleness_ms: as for get.
            timeout_ms: for each page.
        """

        async def read_page(wanted: kv_pb2.ReadRange) -> kv_pb2.ReadResponse:
            return await self._read([wanted], consistency, min_versionstamp, max_staleness_ms, timeout_ms)

        bounds = list_range(prefix, start, end)
        return KvList(
            read_page,
            bounds,
            limit=limit,
            reverse=reverse,
            batch_size=batch_size,
            keys_only=keys_only,
            cursor=cursor,
        )

    async def count(
        self,
        prefix: AnyKey | None = None,
        *,
        start: AnyKey | None = None,
        end: AnyKey | None = None,
        consistency: Consistency = "strong",
        min_versionstamp: str | None = None,
        max_staleness_ms: int | None = None,
        timeout_ms: int | None = None,
    ) -> int:
        """How many keys a range holds, counted by the node. Arguments as for list."""
        bounds = list_range(prefix, start, end)
        wanted = kv_pb2.ReadRange(start=bounds.start, end=bounds.end, count_only=True)
        response = await self._read([wanted], consistency, min_versionstamp, max_staleness_ms, timeout_ms)
        return response.ranges[0].count

    async def _read(
        self,
        ranges: Sequence[kv_pb2.ReadRange],
        consistency: Consistency,
        min_versionstamp: str | None,
        max_staleness_ms: int | None,
        timeout_ms: int | None,
    ) -> kv_pb2.ReadResponse:
        self._begin()
        request = kv_pb2.ReadRequest(
            ranges=ranges,
            consistency=consistency_of(consistency),
            min_versionstamp=parse_versionstamp(min_versionstamp) if min_versionstamp else b"",
            max_staleness_ms=parse_max_staleness(max_staleness_ms),
        )
        if self._is_session_read(consistency):
            return await self.session.read(request, self._timeout_ms if timeout_ms is None else timeout_ms)
        self._unary_reads_count += 1
        try:
            return await self._unary.call(rpc.READ, request, self._timeout_ms if timeout_ms is None else timeout_ms)
        finally:
            self._unary_reads_count -= 1

    def _is_session_read(self, consistency: Consistency) -> bool:
        """Whether a read joins the session.

        Opening a session takes a leader and an entry in its log. So a client that only ever reads a little does
        without, and an eventual read, which needs no leader, never waits for one to open a session.
        """
        if self.session.is_open:
            return True
        if consistency == "eventual":
            return False
        return self.session.is_started or self._unary_reads_count >= limits.MAX_CLIENT_UNARY_READS_COUNT

    # ---- writes ------------------------------------------------------------------------------------------------

    def atomic(self) -> AtomicOperation:
        """A transaction: `await kv.atomic().check(entry).set(key, value).commit()`."""
        return AtomicOperation(self._commit)

    async def set(
        self, key: WritableKey, value: object, *, expire_in: int | None = None, timeout_ms: int | None = None
    ) -> CommitResult:
        """Set a key. Arguments as for AtomicOperation.set; errors as for its commit."""
        return await self.atomic().set(key, value, expire_in=expire_in).commit(timeout_ms=timeout_ms)

    async def delete(self, key: AnyKey, *, timeout_ms: int | None = None) -> CommitResult:
        """Delete a key; nothing happens if it does not exist."""
        return await self.atomic().delete(key).commit(timeout_ms=timeout_ms)

    async def set_expiry(
        self,
        key: AnyKey,
        *,
        expire_in: int | None = None,
        expire_at_ms: int | None = None,
        timeout_ms: int | None = None,
    ) -> CommitResult:
        """Set when an entry goes away, and leave its value. Arguments as for AtomicOperation.set_expiry."""
        operation = self.atomic().set_expiry(key, expire_in=expire_in, expire_at_ms=expire_at_ms)
        return await operation.commit(timeout_ms=timeout_ms)

    async def clear_expiry(self, key: AnyKey, *, timeout_ms: int | None = None) -> CommitResult:
        """Have an entry stay until it is deleted. As AtomicOperation.clear_expiry."""
        return await self.atomic().clear_expiry(key).commit(timeout_ms=timeout_ms)

    async def delete_prefix(
        self, prefix: AnyKey, *, progress: Callable[[int], None] | None = None, timeout_ms: int | None = None
    ) -> int:
        """Delete every key below a prefix, itself excluded, however many, and return how many were seen.

        It goes in steps of 1,000 keys from the first to the last. Each step is one transaction; the whole is not:
        others may see it half done, and a key that is written behind the step at work stays. When a step fails, those
        before it have happened, and the same call goes on with the rest.

        Args:
            prefix: what the keys begin with; () = every key of the database.
            progress: called after each step with the keys deleted so far.
            timeout_ms: for each read and each write of a step.
        """
        start, end = prefix_range(prefix)
        deleted_count = 0
        while True:
            page = kv_pb2.ReadRange(start=start, end=end, limit=limits.MAX_READ_ENTRIES_COUNT, keys_only=True)
            found = (await self._read([page], "strong", None, None, timeout_ms)).ranges[0].entries
            if not found and deleted_count:
                return deleted_count
            is_last = len(found) < limits.MAX_READ_ENTRIES_COUNT
            # Where there is nothing it is a write all the same: whoever may not write is to be told so.
            page_end = (found[-1].key if found else start) + b"\x00"
            request = kv_pb2.AtomicWriteRequest()
            request.mutations.add(type=kv_pb2.MUTATION_TYPE_DELETE_RANGE, key=start, end_key=page_end)
            await self._commit(request, timeout_ms)
            deleted_count += len(found)
            if found and progress is not None:
                progress(deleted_count)
            if is_last:
                return deleted_count
            start = page_end

    @staticmethod
    def commit_versionstamp() -> CommitVersionstamp:
        """As the last part of a key: the versionstamp that the commit will have, as 20 hexadecimal digits."""
        return COMMIT_VERSIONSTAMP

    async def _commit(self, request: kv_pb2.AtomicWriteRequest, timeout_ms: int | None) -> kv_pb2.AtomicWriteResponse:
        self._begin()
        return await self.session.write(request, self._timeout_ms if timeout_ms is None else timeout_ms)

    # ---- queues ------------------------------------------------------------------------------------------------

    async def enqueue(
        self,
        value: object,
        *,
        queue: str = "",
        delay: float = 0,
        keys_if_undelivered: Sequence[AnyKey] = (),
        backoff_schedule: Sequence[float] | None = None,
        timeout_ms: int | None = None,
    ) -> CommitResult:
        """Put a message in a queue. Arguments as for AtomicOperation.enqueue; errors as for its commit."""
        operation = self.atomic().enqueue(
            value,
            queue=queue,
            delay=delay,
            keys_if_undelivered=keys_if_undelivered,
            backoff_schedule=backoff_schedule,
        )
        return await operation.commit(timeout_ms=timeout_ms)

    def messages(
        self, queue: str = "", *, concurrency: int = 10, lease_ms: int = 0, consumer: str = ""
    ) -> QueueListener:
        """The messages of a queue as they fall due, for ever: `async with kv.messages("mail") as messages`, then
        `async for message in messages`, and `await message.ack()` for each.

        A message is delivered at least once, and to one consumer at a time; until it is acked, nacked or released it
        is kept by extending its lease. Broken connections are made anew silently.

        Args:
            queue: its name; empty = the default one.
            concurrency: how many messages may be held at a time, 1,000 at most.
            lease_ms: 1,000 to 600,000: when this process is no longer heard of, its messages are delivered to others
                after so long; 0 = 10,000.
            consumer: a name for people to read, of 100 bytes at most.

        Raises:
            InvalidRequest: BAD_CONCURRENCY, BAD_LEASE_TIME, BAD_QUEUE_NAME, BAD_TEXT, CONSUMER_NAME_TOO_LONG.
            Unavailable: CLIENT_CLOSED, after close().
        """
        self._require_open()
        listener = QueueListener(
            self._addresses,
            queue=queue,
            concurrency=concurrency,
            lease_ms=lease_ms,
            consumer=consumer,
            credentials=self._credentials,
            metadata=self._metadata,
            fail_fast=self._fail_fast,
            random=self._random,
        )
        self._open.add(listener)
        return listener

    async def listen_queue(
        self,
        handler: Handler,
        *,
        queue: str = "",
        concurrency: int = 10,
        lease_ms: int = 0,
        consumer: str = "",
    ) -> None:
        """Hand every message of a queue to a handler, until cancelled, or until the client is closed.

        When the handler returns the message is acknowledged; when it raises, the message is delivered again by its
        schedule. A handler that acknowledges by itself (`kv.atomic()....ack(message).commit()`) writes what it does and
        removes the message in one transaction.

        A coroutine function runs on the event loop; it is cancelled when this is, and its message is given back. A
        plain function runs on a thread of its own, outside of the loop's: it may block, and reaches the client and
        whatever else belongs to the loop by `asyncio.run_coroutine_threadsafe`. It cannot be interrupted: when this is
        cancelled it is waited for and its message acknowledged; cancel again to wait no longer.

        Args:
            handler: called with a QueueMessage, as many at a time as `concurrency` says.
            queue, concurrency, lease_ms, consumer: as for messages.

        Raises:
            InvalidRequest: BAD_HANDLER, or as for messages.
            KvError: as for messages, or the cluster refuses to serve the listener.
        """
        if not callable(handler):  # every message would fail, and become a dead letter
            raise InvalidRequest("BAD_HANDLER", f"handler is {handler!r}: give a function of a message.")
        listener = self.messages(queue, concurrency=concurrency, lease_ms=lease_ms, consumer=consumer)
        await run_handlers(listener, handler)

    async def cron(self, name: str, schedule: str, value: object = None, *, queue: str = "") -> None:
        """Send a message at each tick of a schedule: `await kv.cron("nightly", "0 3 * * *", queue="reports")`.

        The cluster does so whether this program runs or not; `listen_queue` receives the messages. It may be called at
        every start: with the same schedule it goes on where it was. `kv.crons` has all options, and ends it.

        Args:
            name, schedule, value, queue: as for CronAdmin.set.
        """
        await self.crons.set(name, schedule, value, queue=queue)

    # ---- watches -----------------------------------------------------------------------------------------------

    def watch(
        self, keys: Sequence[AnyKey], *, consistency: Consistency = "strong", max_staleness_ms: int | None = None
    ) -> KeysWatch:
        """The states of up to 10 keys, for ever: `async for entries in kv.watch([("a",), ("b",)])`.

        Each item holds all the keys' entries, of one state. The first comes at once, the next when a key has changed;
        states in between may be left out, the last one never. Broken connections are made anew silently.

        Args:
            keys: what to watch.
            consistency: "strong": the first state is as new as a strong read.
            max_staleness_ms: how old the state that was shown last may grow, changes or not; None = as old as it gets.
                The watch goes on at another of the client's endpoints when its node falls behind, and raises TooStale
                when there is none that is fresh enough: begin anew, or allow more.
        """
        if not 1 <= len(keys) <= limits.MAX_WATCHED_KEYS_COUNT:
            raise InvalidRequest(
                "TOO_MANY_WATCHED_KEYS", f"A watch has 1 to {limits.MAX_WATCHED_KEYS_COUNT} keys, not {len(keys)}."
            )
        encoded = [encode_key(key) for key in keys]
        stream = self._watch(kv_pb2.WatchRequest(keys=encoded), consistency, max_staleness_ms)
        watch = KeysWatch(stream, [tuple(key) for key in keys], encoded)
        self._open.add(watch)
        return watch

    def watch_prefix(
        self, prefix: AnyKey, *, consistency: Consistency = "strong", max_staleness_ms: int | None = None
    ) -> PrefixWatch:
        """The changes below a prefix, for ever. See PrefixChanges about `resync`; arguments as for watch."""
        start, end = prefix_range(prefix)
        request = kv_pb2.WatchRequest(prefix_start=start, prefix_end=end)
        watch = PrefixWatch(self._watch(request, consistency, max_staleness_ms))
        self._open.add(watch)
        return watch

    def _watch(
        self, request: kv_pb2.WatchRequest, consistency: Consistency, max_staleness_ms: int | None
    ) -> WatchStream:
        self._require_open()
        request.strong = consistency_of(consistency) == kv_pb2.CONSISTENCY_STRONG
        request.max_staleness_ms = parse_max_staleness(max_staleness_ms)
        return WatchStream(
            self._addresses,
            request,
            credentials=self._credentials,
            metadata=self._metadata,
            fail_fast=self._fail_fast,
            random=self._random,
        )

    def _require_open(self) -> None:
        if self._is_closed:
            raise client_closed()

    def _begin(self) -> None:
        """Before an operation. On another loop than the first one's nothing would ever come, not even a deadline."""
        self._require_open()
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise InvalidRequest(
                "OTHER_LOOP",
                "A client belongs to the event loop of its first operation, and this is another one: open a client on "
                "each loop; asyncio.run makes a new one each time.",
            )


def _read_range(bounds: KeyRange, keys_only: bool) -> kv_pb2.ReadRange:
    return kv_pb2.ReadRange(start=bounds.start, end=bounds.end, limit=1, keys_only=keys_only)
