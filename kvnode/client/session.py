"""Many operations in flight on one stream, each applied once, through broken connections and new leaders.

Theory of operation
-------------------
A session is a client id (opened through the cluster's log) and operations numbered 1, 2, 3 ... The pair is
the request id of a write: the cluster remembers its outcome until the session says, by
`lowest_unanswered`, that the answer arrived. So a write may be sent again, on any stream, to any endpoint,
and is applied once. (The scheme is that of "Consensus: Bridging Theory and Practice", Ongaro, section 6.3.)

An operation is *pending* from submit to its one delivery. It is *queued* while it waits for the stream;
whatever has queued up while the stream was busy, or within one pass of the loop, travels in one message
(gathering.py says when it leaves).

    submit -> queued -> sent -> delivered        an answer
                  ^       |
                  +-------+                      stream broken, endpoint hung, or a refusal worth a retry:
                                                 queued again, marked `resend`, id unchanged
    any of them -> delivered                     deadline: DEADLINE_EXCEEDED if it cannot have been applied,
                                                 OUTCOME_UNKNOWN if it may have been

A new client id is the leader's to give. Until it is there, only eventual reads are sent: they need none, and a region
that is cut off from its leader still answers them.

One task owns the connection. It dials an endpoint, opens or resumes the client id in the first message,
queues every pending operation, and lets a writer and a reader run until one ends (session_stream.py). Then it
goes on to the next endpoint (endpoints.py says which and when). An endpoint that holds operations and gives no
useful answer is left the same way: a frozen process or a cut network looks like that (failure_detector.py). From
an endpoint that is not the first of the caller's order the session returns when a better one serves again
(homing.py).

When the cluster does not know the client id (it expired, or the history was cut in a failover), nothing
more is sent; once every operation on the stream has its refusal or the stream is gone, a fresh client id is
opened. Operations that were sent once and refused, and those never sent, go out under the new id. A
write that was sent more than once, or was not refused, may have been applied: it ends as OUTCOME_UNKNOWN.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from random import Random
from types import TracebackType

import grpc
import grpc.aio

from kvnode.base import limits
from kvnode.base.clock import Clock, SystemClock
from kvnode.base.errors import DeadlineExceeded, KvError, Unavailable
from kvnode.client import outcome
from kvnode.client.endpoints import Endpoints
from kvnode.client.failure_detector import FailureDetector
from kvnode.client.gathering import Gathering
from kvnode.client.numbers import parse_timeout_ms
from kvnode.client.pending import Deliver, Load, PendingOperation, PendingTable
from kvnode.client.selection import CallMetadata
from kvnode.client.session_stream import SessionStream
from kvnode.client.status import SESSION_REFUSED_CODES, error_from_proto, is_retryable
from kvnode.codec.keys import encode_key
from kvnode.proto.kv.v1 import kv_pb2

_PROBE_KEY = encode_key(("",))
_PROBE = kv_pb2.ReadRequest(
    ranges=[kv_pb2.ReadRange(start=_PROBE_KEY, end=_PROBE_KEY + b"\x00", limit=1, keys_only=True)],
    consistency=kv_pb2.CONSISTENCY_EVENTUAL,
)
Request = kv_pb2.ReadRequest | kv_pb2.AtomicWriteRequest


class Session:
    """Operations in, results out, on one stream at a time.

    All methods are called on the loop that first used the session. Nothing connects before the first submit.

    Args:
        addresses: host:port of nodes of one cluster, in order of preference.
        credentials: for TLS; None = plain text.
        metadata: sent with each call: database and token (client.selection).
        fail_fast: answer with an error when no address could be reached, rather than wait until the deadline.
        clock: the source of deadlines.
        random: the source of back-off jitter.
        load: kept up to date with what is unanswered here, for who has several sessions.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: CallMetadata = (),
        fail_fast: bool = False,
        clock: Clock | None = None,
        random: Random | None = None,
        load: Load | None = None,
    ) -> None:
        self.client_id = b""
        self.node = ""
        self._clock = clock or SystemClock()
        self._random = random or Random()
        self._endpoints = Endpoints(addresses, self._random, fail_fast=fail_fast)
        self._stream = SessionStream(
            self._endpoints, credentials, metadata, self._random, self._send, self._read, self._stream_ended
        )
        self._pending = PendingTable(load)
        self._queue: deque[PendingOperation] = deque()
        self._held: deque[PendingOperation] = deque()  # until there is a client id
        self._next_id = 1
        self._room_waiters: deque[asyncio.Future[None]] = deque()
        self._gathering = Gathering()
        self._work = asyncio.Event()  # something is pending
        self._queued = asyncio.Event()  # something waits for the stream
        self._opened = asyncio.Event()  # the stream's client id is known
        self._is_refused = False  # the client id is unknown to the cluster
        self._is_closed = False
        self._runner: asyncio.Task[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._on_stream: set[int] = set()  # ids sent on the present stream and not settled
        self._detector = FailureDetector(self._take_id, len(self._endpoints))
        self._last_use_ms = self._clock.monotonic_ms()
        self._last_trouble: KvError | None = None

    # ---- for callers -------------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        """The address in use, or the one that is tried now."""
        return self._endpoints.current

    @property
    def is_open(self) -> bool:
        """Whether a stream is up and its client id known."""
        return self._opened.is_set()

    @property
    def is_started(self) -> bool:
        """Whether anything was ever submitted."""
        return self._runner is not None

    @property
    def unanswered_count(self) -> int:
        """Operations submitted and not yet delivered."""
        return len(self._pending)

    @property
    def is_full(self) -> bool:
        """Whether submit would be refused just now; `await room()` waits until it would not."""
        return self._pending.is_full

    def submit(
        self,
        request: Request,
        deliver: Deliver,
        timeout_ms: int = limits.DEFAULT_OPERATION_TIMEOUT_MS,
        *,
        settle: bool = False,
    ) -> int:
        """Send one operation with what else is sent in this pass of the loop.

        Args:
            request: what to read or write; copied.
            deliver: called exactly once, on the loop, never from within submit, unless `forget` comes first.
                A failure arrives as a result with `error` set, whether a node or the session itself found it.
            timeout_ms: after this the operation is delivered as an error at the latest.
            settle: not so a write that may have been applied: it is sent again until its outcome is known, or the
                cluster no longer knows the session.

        Returns:
            The operation's id.

        Raises:
            Unavailable: code CLIENT_QUEUE_FULL, or CLIENT_CLOSED after close(). The operation was not taken.
            InvalidRequest: BAD_TIMEOUT.
        """
        timeout_ms = parse_timeout_ms(timeout_ms)  # before anything is entered: all operations share one sweep
        if self._is_closed:
            raise outcome.client_closed()
        if self._pending.is_full:
            raise Unavailable(
                f"{len(self._pending)} operations of {self._pending.size_bytes} bytes are unanswered, the most a client"
                " may have; wait for room() before the next one",
                code="CLIENT_QUEUE_FULL",
                phase="dial",
            )
        now_ms = self._clock.monotonic_ms()
        if not self._pending:
            self._renew_if_idle(now_ms)
        if isinstance(request, kv_pb2.ReadRequest):
            message = kv_pb2.Operation(id=self._next_id, read=request)
        else:
            message = kv_pb2.Operation(id=self._next_id, write=request)
        self._next_id += 1
        operation = PendingOperation(message, deliver, timeout_ms, now_ms + timeout_ms, settle=settle)
        self._pending.add(operation)
        self._enqueue(operation)
        self._start()
        return operation.id

    def submit_many(
        self,
        requests: Sequence[Request],
        deliver: Deliver,
        timeout_ms: int = limits.DEFAULT_OPERATION_TIMEOUT_MS,
    ) -> range:
        """Submit several operations; they get consecutive ids, which are returned. Raises as submit does, part-way."""
        first = self._next_id
        for request in requests:
            self.submit(request, deliver, timeout_ms)
        return range(first, self._next_id)

    def forget(self, operation_id: int) -> None:
        """Nobody waits for this operation any more: it is not delivered and not sent again.

        A write that was sent may still be applied.
        """
        operation = self._pending.get(operation_id)
        if operation is not None:
            self._remove(operation)

    def give_up_unsent(self) -> None:
        """The caller is about to close: what cannot have had an effect is delivered as an error now; the rest may
        still be settled."""
        for operation in self._pending:
            if not (operation.is_write and operation.sends_count):
                self._fail(operation, outcome.closed(operation, self.endpoint))

    async def room(self) -> None:
        """Wait until the session takes another operation."""
        while self._pending.is_full and not self._is_closed:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._room_waiters.append(waiter)
            try:
                await waiter
            finally:
                if not waiter.done() or waiter.cancelled():
                    self._room_waiters.remove(waiter)

    async def call(
        self, request: Request, timeout_ms: int = limits.DEFAULT_OPERATION_TIMEOUT_MS, *, settle: bool = False
    ) -> kv_pb2.OperationResult:
        """Submit one operation, waiting for room first, and return its result. Raises the KvError it failed with.

        `timeout_ms` is for both together; `settle`: see submit. When the caller is cancelled, the operation is
        forgotten.
        """
        if self._pending.is_full:
            timeout_ms = await self._room_within(parse_timeout_ms(timeout_ms))
        future: asyncio.Future[kv_pb2.OperationResult] = asyncio.get_running_loop().create_future()

        def deliver(result: kv_pb2.OperationResult) -> None:
            if not future.done():
                future.set_result(result)

        operation_id = self.submit(request, deliver, timeout_ms, settle=settle)
        try:
            result = await future
        except asyncio.CancelledError:
            self.forget(operation_id)
            raise
        if result.HasField("error"):
            raise error_from_proto(result.error, self.endpoint)
        return result

    async def _room_within(self, timeout_ms: int) -> int:
        """Wait for room; returns what is left of the time."""
        began_ms = self._clock.monotonic_ms()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self.room()
        except TimeoutError:
            raise DeadlineExceeded(
                f"{len(self._pending)} operations before this one were still unanswered after {timeout_ms} ms; send"
                " less at once, or allow more time",
                phase="dial",
                endpoint=self.endpoint,
            ) from None
        return max(1, timeout_ms - int(self._clock.monotonic_ms() - began_ms))

    async def read(
        self, request: kv_pb2.ReadRequest, timeout_ms: int = limits.DEFAULT_OPERATION_TIMEOUT_MS
    ) -> kv_pb2.ReadResponse:
        """Read; see call."""
        return (await self.call(request, timeout_ms)).read

    async def write(
        self, request: kv_pb2.AtomicWriteRequest, timeout_ms: int = limits.DEFAULT_OPERATION_TIMEOUT_MS
    ) -> kv_pb2.AtomicWriteResponse:
        """Write; see call. A failed check is a response, not an error."""
        return (await self.call(request, timeout_ms)).write

    async def close(self) -> None:
        """Leave the stream; what is pending is delivered as an error. Safe to call twice."""
        self._is_closed = True
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.cancel()
            await asyncio.gather(runner, return_exceptions=True)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for operation in self._pending:
            self._fail(operation, outcome.closed(operation, self.endpoint))
        self._wake_room_waiters()

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- pending operations ------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run(), name="kvnode-client-session")
        if self._sweeper is None:
            self._arm_sweeper()
        self._work.set()

    def _enqueue(self, operation: PendingOperation) -> None:
        if operation.is_queued or operation.is_settled:
            return
        operation.is_queued = True
        if operation.needs_leader and not self.client_id:
            self._held.append(operation)
            return
        self._queue.append(operation)
        self._queued.set()

    def _remove(self, operation: PendingOperation) -> None:
        self._pending.remove(operation)
        self._on_stream.discard(operation.id)
        if self._room_waiters and not self._pending.is_full:
            self._wake_room_waiters()

    def _wake_room_waiters(self) -> None:
        while self._room_waiters:
            waiter = self._room_waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _fail(self, operation: PendingOperation, error: kv_pb2.Error) -> None:
        if operation.is_settled:
            return  # the callback of one that failed just before it has forgotten it
        self._remove(operation)
        self._deliver(operation, kv_pb2.OperationResult(id=operation.id, error=error))

    @staticmethod
    def _deliver(operation: PendingOperation, result: kv_pb2.OperationResult) -> None:
        """A caller's broken callback is the caller's trouble; the other operations go on."""
        try:
            operation.deliver(result)
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"the callback of operation {operation.id} failed", "exception": error}
            )

    def _renew_if_idle(self, now_ms: float) -> None:
        """After a long silence the cluster may have dropped the client id; a fresh one costs less than a doubt."""
        if self.client_id and now_ms - self._last_use_ms > limits.CLIENT_SESSION_IDLE_MS:
            self.client_id = b""
            self._stream.leave(None)
        self._last_use_ms = now_ms

    # ---- time --------------------------------------------------------------------------------------------------

    def _arm_sweeper(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(limits.CLIENT_SWEEP_INTERVAL_MS / 1000, self._sweep)

    def _sweep(self) -> None:
        """Time passes; whatever happens on the way, the next sweep comes: without it no deadline would be kept."""
        self._sweeper = None
        try:
            self._sweep_once(self._clock.monotonic_ms())
        finally:
            is_needed = self._pending or self._detector.is_waiting
            if is_needed and self._sweeper is None and not self._is_closed:
                self._arm_sweeper()

    def _sweep_once(self, now_ms: float) -> None:
        """Deliver what is past its deadline; leave an endpoint that hangs."""
        for operation in self._pending.expired(now_ms):
            if operation.settle and operation.is_write and operation.sends_count:
                self._pending.postpone(operation, now_ms)
                continue
            self._fail(operation, outcome.expired(operation, self.endpoint, self._last_trouble))
        trouble = self._detector.judge(now_ms, is_open=self._opened.is_set(), owes=bool(self._on_stream))
        if trouble is not None:
            self._stream.leave(trouble)
        elif self._detector.is_probe_due:
            self._queued.set()

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    # ---- the connection ----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            if not self._pending:
                self._work.clear()
                await self._work.wait()
            try:
                await self._connect_or_explain()
                self._renew_if_refused()
            except KvError as error:
                error.endpoint = error.endpoint or self.endpoint
                self._last_trouble = error
                self._renew_if_refused()
                pause_ms = self._endpoints.failed(error)
                self._fail_if_hopeless()
                await asyncio.sleep(pause_ms / 1000)

    async def _connect_or_explain(self) -> None:
        """As _connect; a fault of the client itself is reported and costs a connection, never the session."""
        try:
            await self._connect()
        except KvError:
            raise
        except asyncio.CancelledError:
            # gRPC raises the same error for a call that was cut on this side. Only a cancelled task ends here.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise Unavailable("the connection was cut on this side", phase="dial") from None
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a session's stream failed", "exception": error}
            )
            raise Unavailable(f"the client failed: {type(error).__name__}: {error}", phase="dial") from error

    def _fail_if_hopeless(self) -> None:
        error = self._endpoints.hopeless()
        if error is not None:
            for operation in self._pending:
                self._fail(operation, outcome.hopeless(operation, error))

    async def _connect(self) -> None:
        """Serve one stream at the current endpoint. Raises the KvError that ended it."""
        try:
            await self._stream.serve()
        except KvError as error:
            self._is_refused |= error.code in SESSION_REFUSED_CODES
            raise

    def _stream_ended(self) -> None:
        self._opened.clear()
        self._on_stream.clear()
        self._detector.ended()

    @property
    def _may_send(self) -> bool:
        """Nothing more goes out on a stream that is being left, nor under a client id that was refused."""
        return self._stream.is_up and not self._is_refused

    async def _send(self, call: grpc.aio.StreamStreamCall) -> None:
        """Open or resume the client id, then send whatever is queued."""
        self._detector.began(self._clock.monotonic_ms())
        self._gathering.restart()
        await call.write(kv_pb2.SessionRequest(open=kv_pb2.SessionOpen(client_id=self.client_id)))
        self._queue_everything()
        while True:
            await self._queued.wait()
            self._queued.clear()
            while (self._queue or self._detector.is_probe_due) and self._may_send:
                await self._gathering.turn()
                if not self._may_send:
                    break
                message = self._next_message()
                if message.operations:
                    self._gathering.sent(message.operations[0].id)
                    await call.write(message)

    def _queue_everything(self) -> None:
        self._queue.clear()
        self._held.clear()
        for operation in self._pending:
            operation.is_queued = False
            self._enqueue(operation)

    def _next_message(self) -> kv_pb2.SessionRequest:
        now_ms = self._clock.monotonic_ms()
        message = kv_pb2.SessionRequest(lowest_unanswered=self._pending.lowest_unanswered)
        size_bytes = 0
        batch: list[kv_pb2.Operation] = []
        if probe_id := self._detector.take_probe():
            batch.append(kv_pb2.Operation(id=probe_id, read=_PROBE))
        while (
            self._queue
            and len(batch) < limits.MAX_SESSION_MESSAGE_OPERATIONS_COUNT
            and size_bytes < limits.MAX_CLIENT_MESSAGE_BYTES
        ):
            operation = self._queue.popleft()
            operation.is_queued = False
            if operation.is_settled:
                continue
            operation.message.resend = operation.sends_count > 0
            operation.message.timeout_ms = max(1, int(operation.deadline_ms - now_ms))
            operation.sends_count += 1
            self._on_stream.add(operation.id)
            size_bytes += operation.size_bytes
            batch.append(operation.message)
        message.operations.extend(batch)
        if self._on_stream:
            self._detector.asked(now_ms)
        return message

    # ---- answers -----------------------------------------------------------------------------------------------

    async def _read(self, call: grpc.aio.StreamStreamCall) -> None:
        while (response := await call.read()) is not grpc.aio.EOF:
            self._detector.heard(self._clock.monotonic_ms())
            if response.HasField("opened"):
                self._on_opened(response.opened)
            is_useful = False
            if response.results:
                self._gathering.answered(response.results[-1].id)
            for result in response.results:
                is_useful |= self._on_result(result)
            if is_useful:
                self._on_useful_answer()
        raise Unavailable("the node ended the stream", phase="dial")

    def _on_opened(self, opened: kv_pb2.SessionOpened) -> None:
        if self.client_id and opened.client_id != self.client_id:
            self._is_refused = True
            raise Unavailable("the node did not resume the session but opened another", phase="leader")
        resumed = bool(self.client_id)
        self.client_id = opened.client_id
        self.node = opened.node
        self._opened.set()
        self._queue.extend(self._held)
        self._held.clear()
        self._queued.set()
        self._on_useful_answer(resumed=resumed)

    def _on_useful_answer(self, *, resumed: bool = False) -> None:
        self._detector.useful(self._clock.monotonic_ms(), owes_more=bool(self._on_stream), resumed=resumed)
        self._last_trouble = None
        self._endpoints.succeeded()

    def _on_result(self, result: kv_pb2.OperationResult) -> bool:
        """Deliver a result or try again. Returns whether it shows that the endpoint works."""
        operation = self._pending.get(result.id)
        if operation is None:
            return False  # a probe's answer, one to an earlier copy, or one that nobody waits for
        if result.HasField("error"):
            operation.last_error = result.error
            if result.error.code in SESSION_REFUSED_CODES:
                self._on_refused(operation, result.error)
                return False
            if is_retryable(result.error):
                if result.error.not_applied and operation.sends_count == 1:
                    operation.sends_count = 0  # the only copy had no effect: as if it had never been sent
                self._retry_later(operation)
                return False
        self._last_use_ms = self._clock.monotonic_ms()
        self._remove(operation)
        self._deliver(operation, result)
        return True

    def _retry_later(self, operation: PendingOperation) -> None:
        """The endpoint could not settle it just now: queue it again after a pause, under the same id.

        It stays in `_on_stream`, so that an endpoint which only ever refuses counts as hung and is left.
        """
        bound_ms = min(limits.MAX_CLIENT_BACKOFF_MS, limits.CLIENT_BACKOFF_MS * 2 ** min(operation.retries_count, 10))
        operation.retries_count += 1
        pause_ms = self._random.uniform(bound_ms / 2, bound_ms)
        asyncio.get_running_loop().call_later(pause_ms / 1000, self._enqueue, operation)

    # ---- a client id that the cluster does not know -------------------------------------------------------------

    def _on_refused(self, operation: PendingOperation, error: kv_pb2.Error) -> None:
        self._is_refused = True
        self._on_stream.discard(operation.id)
        # Also of what was sent once only the error knows: the node that took it may have sent it on twice.
        if error.not_applied or not operation.is_write:
            operation.sends_count = 0
        else:
            self._fail(operation, outcome.session_lost(operation, self.endpoint))
        if not self._on_stream:
            self._stream.leave(error_from_proto(error, self.endpoint))

    def _renew_if_refused(self) -> None:
        """After the stream under a refused id is gone: what may have been applied ends, the rest starts anew."""
        if not self._is_refused:
            return
        self._is_refused = False
        self.client_id = b""
        for operation in self._pending:
            if operation.is_write and operation.sends_count > 0:
                self._fail(operation, outcome.session_lost(operation, self.endpoint))
            operation.sends_count = 0
