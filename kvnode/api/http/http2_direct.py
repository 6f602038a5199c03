"""Requests over HTTP/2 whose heads have come before, answered by the loop itself, past granian.

Theory of operation. Through granian a request costs two crossings between its threads and the loop, a coroutine and a
scope: more than all the rest of a small read. But a client of an API sends the same head again and again, and HPACK
writes it with the same bytes as long as its tables stay as they are. So a head that granian has parsed, and that was
answered with 200, is remembered by its bytes (`learn`) until a head passes that changes the tables. When the same bytes
begin a request again, its frames are taken out of the connection; the request is served as over HTTP/1.1, without a
task where `take_whole` takes it; and its answer is put in between granian's frames, in a form that changes no table.

What two servers on one connection have to share:

- Stream numbers only grow, and granian is not told of those that are taken (http2_frames.py). Its GOAWAY is corrected.
- The windows of the connection (http2_window.py). A client whose window is too small to be shared is left to granian
  (Deno's has 5 MiB), and so is one that wants small tables of HPACK's.

Bounds: a connection has MAX_HTTP2_STREAMS_COUNT taken streams, with bodies of HTTP_READ_AHEAD_BYTES at most, for which
it waits for HTTP_BODY_TIMEOUT_MS. One that the client resets still counts until its work is done: else nothing would
bound what is under way. Nor may a client go on with what is of no use (resets, empty frames) without taking an answer
in between: _MAX_WASTED_COUNT. Answers that the client does not read are counted with all others (unread.py), and a
client that does not read at all is not read from either (http2_pipe.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from email.utils import formatdate

from kvnode.api.http.exchange import WholeExchange
from kvnode.api.http.hpack import content_length, leaves_tables, response_block
from kvnode.api.http.http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_FRAME_BYTES,
    PADDED,
    RST_STREAM,
    frame,
)
from kvnode.api.http.http2_known import KnownBlocks
from kvnode.api.http.http2_window import FIRST_WINDOW_BYTES, MAX_WINDOW_BYTES, SharedWindow
from kvnode.api.http.known_heads import KnownHead
from kvnode.api.http.large_body import LargeBody
from kvnode.api.http.messages import (
    INTERNAL_ERROR,
    BodyBudget,
    Handle,
    HttpError,
    Response,
    Stream,
    TakeWhole,
    Unanswered,
    too_slow,
)
from kvnode.api.http.unread import ConnectionAccounts
from kvnode.base import limits

_log = logging.getLogger(__name__)

_SWEEP_S = 1.0
_HEADER_TABLE_SIZE, _INITIAL_WINDOW_SIZE = 0x1, 0x4  # settings
_TABLE_BYTES = 4_096
_MAX_STREAM = 2**31 - 1
_MAX_WASTED_COUNT = 10_000
# Parts of a client's windows (Direct._may_go_on): what watches that it does not read leave of the connection's, what
# those that it may be reading do, and how much of a stream's may be unread without telling which it is.
_LEFT_BY_UNREAD, _LEFT_BY_WATCHES, _UNREAD = 0.3, 0.1, 1 / 3
_NO_ERROR, _PROTOCOL_ERROR, _INTERNAL_ERROR, _FLOW_CONTROL_ERROR = 0x0, 0x1, 0x2, 0x3
_REFUSED_STREAM, _ENHANCE_YOUR_CALM = 0x7, 0xB


class DirectServer:
    """What the connections of one server share (exchange.Sharing).

    Args:
        handle: makes the answers that take_whole does not.
        scheme: http or https.
        budget: of bodies that have come in part.
        take_whole: may answer without a task; None = nothing is answered directly.
    """

    def __init__(self, handle: Handle, scheme: str, budget: BodyBudget, take_whole: TakeWhole | None) -> None:
        self.handle = handle
        self.scheme = scheme
        self.budget = budget
        self.take_whole = take_whole
        self.stopping = False
        self.connections: set[Direct] = set()
        self.now_s = 0.0  # the loop's time as of the last sweep: exact enough for deadlines
        self._blocks: dict[tuple[int, str, tuple[tuple[str, str], ...]], bytes] = {}
        self._sweep: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look for bodies that do not come."""
        self._tick()

    def stop(self) -> None:
        """Stop looking."""
        if self._sweep is not None:
            self._sweep.cancel()

    def block(self, response: Response) -> bytes:
        """The head of an answer, but for its length; kept until the next second."""
        key = (response.status, response.content_type, response.headers)
        block = self._blocks.get(key)
        if block is None:
            date = formatdate(usegmt=True)
            block = response_block(response.status, response.content_type, date, response.headers)
            if len(self._blocks) < limits.MAX_KNOWN_HEADS_COUNT:  # headers that tell ages differ from answer to answer
                self._blocks[key] = block
        return block

    def _tick(self) -> None:
        self._blocks.clear()
        loop = asyncio.get_running_loop()
        self.now_s = loop.time()
        for connection in list(self.connections):
            connection.sweep(self.now_s)
        self._sweep = loop.call_later(_SWEEP_S, self._tick)


class DirectStream:
    """One request that was taken (exchange.Carrier)."""

    __slots__ = ("_connection", "_gone", "chunks", "complete", "deadline_s", "given_bytes", "head", "is_refused",
                 "kept_bytes", "number", "received_bytes", "rest", "shared", "task", "unsent")  # fmt: skip

    def __init__(self, connection: Direct, number: int, head: KnownHead, deadline_s: float) -> None:
        self._connection = connection
        self._gone: asyncio.Future[None] | None = None
        self.shared = connection.shared
        self.number = number
        self.head = head
        self.given_bytes = 0  # what the client still takes, beyond the window that its settings give each stream
        self.deadline_s = deadline_s  # of the body
        self.chunks: list[bytes] = []
        self.received_bytes = 0
        self.kept_bytes = 0  # of the budget
        self.complete = False
        self.is_refused = False  # before its body was there
        self.unsent = memoryview(b"")
        self.rest: LargeBody | None = None  # behind that
        self.task: asyncio.Task[None] | None = None

    def wants_body(self, expects_continue: bool) -> None:
        """See Carrier: it is there."""

    def respond(self, exchange: WholeExchange, response: Response) -> None:
        """See Carrier."""
        del exchange
        self._connection.answer(self, response)

    def serve_by(self, exchange: WholeExchange, handle: Handle) -> None:
        """See Carrier."""
        self.task = asyncio.get_running_loop().create_task(self._run(exchange, handle))

    async def gone(self) -> None:
        """See Carrier."""
        if not self._connection.owns(self.number):
            return
        if self._gone is None:
            self._gone = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._gone)

    def left(self) -> None:
        """The client has."""
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    async def _run(self, exchange: WholeExchange, handle: Handle) -> None:
        try:
            response = await handle(exchange)
        except HttpError as error:
            response = Response(error.status, error.text.encode())
        except Unanswered:
            self._connection.give_up(self)
            return
        except Exception:
            _log.exception("%s %s failed", exchange.method, exchange.path)
            response = INTERNAL_ERROR
        if isinstance(response, Stream):  # nothing that was answered whole before is answered in chunks
            await response.chunks.aclose()
            _log.error("%s %s was to be a stream", exchange.method, exchange.path)
            response = INTERNAL_ERROR
        self._connection.answer(self, response)


class Direct:
    """The direct way of one connection (http2_frames.Taker).

    Args:
        shared: of the server.
        accounts: of what the client does not read.
        to_client: sends frames to the client, in their order.
        to_server: sends frames to granian.
        end: ends the connection, once what was sent is out.
        idle: told when the last answer is out.
    """

    def __init__(
        self,
        shared: DirectServer,
        accounts: ConnectionAccounts,
        to_client: Callable[[bytes], None],
        to_server: Callable[[bytes], None],
        end: Callable[[], None],
        idle: Callable[[], None],
    ) -> None:
        self.shared = shared
        self._accounts = accounts
        self._to_client = to_client
        self._end = end
        self._idle = idle
        self.last_taken = 0
        self._streams: dict[int, DirectStream] = {}
        self._unsent: dict[int, DirectStream] = {}
        self._ready: dict[int, DirectStream] = {}  # of these, those that their own windows may let go on
        self._known = KnownBlocks()
        self._candidates: dict[int, bytes] = {}  # heads that granian parses, by stream
        self._takes = True
        self._is_deaf = False  # the client does not read
        self._settings: deque[bytes] = deque()  # of the client, that granian has yet to acknowledge
        self._is_over = False  # the client was told to go
        self.window = SharedWindow(to_server, to_client, shared.take_whole is not None)
        self._stream_window_bytes = FIRST_WINDOW_BYTES
        self._abandoned: set[DirectStream] = set()  # the client has reset them, and their work goes on
        self._wasted_count = 0  # frames of no use since the last answer
        self._looks_again = False
        accounts.learn, accounts.may_go_on = self.learn, self._may_go_on
        self.window.on_given = accounts.eased
        shared.connections.add(self)

    @property
    def shares(self) -> bool:
        """Whether anything may be answered directly."""
        return self.window.is_shared

    @property
    def is_busy(self) -> bool:
        """Whether requests that were taken are not answered yet."""
        return bool(self._streams)

    def learn(self, stream: int, head: KnownHead) -> None:
        """That is what the head of a stream, which granian has parsed, says."""
        block = self._candidates.pop(stream, None)
        if block is not None:
            self._known.add(block, head)

    def forget(self, stream: int) -> None:
        """Granian's answer to a stream is out."""
        self._candidates.pop(stream, None)

    def client_reads(self, *, reads: bool) -> None:
        """Whether the client reads what it is sent: if not, the rest of large answers waits here."""
        self._is_deaf = not reads
        self._send_unsent()

    def going(self, last: int) -> int:
        """Granian tells the client to go, and which stream is the last to be answered: which one is the last of both.

        Of what comes behind that the client is told that nothing was done, so nothing may be.
        """
        if last < _MAX_STREAM:  # else it says only that another will follow
            self._takes = False
        return max(last, self.last_taken)

    def lost(self) -> None:
        """The connection is gone."""
        self.shared.connections.discard(self)
        for stream in list(self._streams.values()):
            self._drop(stream)

    def sweep(self, now_s: float) -> None:
        """Answer those whose body does not come."""
        for stream in [each for each in self._streams.values() if not each.complete and each.deadline_s < now_s]:
            self._refuse(stream, too_slow())

    # What Requests says (Taker).

    @property
    def max_block_bytes(self) -> int:
        """See Taker."""
        return limits.MAX_KNOWN_HEAD_BYTES

    def owns(self, stream: int) -> bool:
        """See Taker."""
        return stream in self._streams

    def take(self, stream: int, block: bytes) -> bool:
        """See Taker."""
        head = self._known.find(block)
        if head is None or self.shared.stopping or not self._takes:
            if not leaves_tables(block):
                self.tables_changed()
            elif self.window.is_shared:
                self._candidates[stream] = block
            return False
        self.last_taken = stream
        if len(self._streams) + len(self._abandoned) >= limits.MAX_HTTP2_STREAMS_COUNT:
            self._waste()
            self._reset(stream, _REFUSED_STREAM)
            return True
        deadline_s = self.shared.now_s + _SWEEP_S + limits.HTTP_BODY_TIMEOUT_MS / 1_000
        self._streams[stream] = DirectStream(self, stream, head, deadline_s)
        return True

    def tables_changed(self) -> None:
        """See Taker."""
        self._known.clear()
        self._candidates.clear()

    def body(self, stream: int, payload: bytes, flags: int) -> None:
        """See Taker."""
        self.window.received(len(payload))
        own = self._streams.get(stream)
        if own is None or own.complete:
            self._waste()
            return
        if flags & PADDED:
            if not payload or payload[0] >= len(payload):
                self.misused()
                return
            payload = payload[1 : len(payload) - payload[0]]
        if payload:
            own.chunks.append(payload)
        elif not flags & END_STREAM:
            self._waste()
        own.received_bytes += len(payload)
        is_last = flags & END_STREAM
        if own.received_bytes > own.head.body_bytes or (is_last and own.received_bytes < own.head.body_bytes):
            self._drop(own)  # it is not as long as its head says (RFC 9113, 8.1.1)
            self._reset(stream, _PROTOCOL_ERROR)
        elif is_last:
            self._begin(own)
        else:
            self._keep(own, len(payload))

    def reset(self, stream: int) -> None:
        """See Taker."""
        self._waste()
        own = self._streams.get(stream)
        if own is not None:
            if own.complete and not own.unsent:
                self._abandoned.add(own)
            self._drop(own)

    def settings(self, payload: bytes) -> None:
        """See Taker."""
        self._settings.append(payload)
        if any(name == _HEADER_TABLE_SIZE and value < _TABLE_BYTES for name, value in _settings_of(payload)):
            # The next answer's head has to say that the table is smaller, and that is granian's to say.
            self._takes = False
            if self._streams:
                self.misused()

    def acknowledged(self) -> None:
        """Granian has acknowledged the client's oldest settings: what goes out from here on has to keep to them."""
        if not self._settings:
            return
        for name, value in _settings_of(self._settings.popleft()):
            if name == _INITIAL_WINDOW_SIZE and value <= MAX_WINDOW_BYTES:
                self._stream_window_bytes = value
        if self._unsent and not self._looks_again:
            # Only behind the acknowledgement: the client goes by its old settings until it has that.
            self._looks_again = True
            asyncio.get_running_loop().call_soon(self._look_again)

    def window_update(self, stream: int, by_bytes: int) -> bytes | None:
        """See Taker."""
        if stream:
            own = self._streams.get(stream)
            if own is not None:
                own.given_bytes += by_bytes
                if not by_bytes or self._window_bytes(own) > MAX_WINDOW_BYTES:
                    self._drop(own)
                    self._reset(stream, _PROTOCOL_ERROR if not by_bytes else _FLOW_CONTROL_ERROR)
                elif own.unsent:
                    self._ready[stream] = own
                    self._send_unsent()
            return b""
        instead = self.window.given(by_bytes)
        if self.window.overflows:
            self._give_up_connection(_FLOW_CONTROL_ERROR)
        self._send_unsent()
        return instead

    def reads(self, stream: int, by_bytes: int) -> None:
        """See Taker."""
        self._accounts.reads(stream, by_bytes)

    def misused(self) -> None:
        """See Taker."""
        self._give_up_connection(_PROTOCOL_ERROR)

    # Answers.

    def answer(self, stream: DirectStream, response: Response) -> None:
        """Send it; what the client's windows do not take yet, later."""
        if self._streams.get(stream.number) is not stream:
            self._abandoned.discard(stream)
            return  # reset
        response, _ = self._accounts.reserve(stream.number, response)
        number, body = stream.number, response.body
        block = self.shared.block(response) + content_length(len(body))
        if not body:
            self._finish(stream, frame(HEADERS, END_HEADERS | END_STREAM, number, block))
            return
        head = frame(HEADERS, END_HEADERS, number, block)
        size = len(body)
        window = self.window
        if isinstance(body, LargeBody):
            stream.rest, body = body, b""
        elif size <= MAX_FRAME_BYTES and size <= self._window_bytes(stream) and size <= window.room_bytes:
            window.use(size)
            self._finish(stream, head + frame(DATA, END_STREAM, number, body))
            return
        self._to_client(head)
        stream.unsent = memoryview(body)
        if not body and not self._refill(stream):
            return
        self._unsent[number] = self._ready[number] = stream
        self._send_unsent()

    def give_up(self, stream: DirectStream) -> None:
        """It gets no answer."""
        self._abandoned.discard(stream)
        if self._streams.get(stream.number) is stream:
            self._drop(stream)
            self._reset(stream.number, _NO_ERROR)

    def _keep(self, stream: DirectStream, size_bytes: int) -> None:
        """A part of a body waits for the rest."""
        stream.kept_bytes += size_bytes
        try:
            self.shared.budget.reserve(size_bytes)
        except HttpError as error:
            self._refuse(stream, error)

    def _forget_body(self, stream: DirectStream) -> None:
        """Nothing of its body waits any more."""
        if stream.kept_bytes:
            self.shared.budget.release(stream.kept_bytes)
            stream.kept_bytes = 0
        stream.chunks.clear()

    def _refuse(self, stream: DirectStream, error: HttpError) -> None:
        """Answer it before its body is there, of which no more is wanted."""
        stream.complete = stream.is_refused = True
        self.answer(stream, Response(error.status, error.text.encode()))

    def _begin(self, stream: DirectStream) -> None:
        chunks = stream.chunks
        content = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        stream.complete = True
        self._forget_body(stream)
        exchange = WholeExchange(stream, stream.head, content)
        take_whole = self.shared.take_whole
        if take_whole is None or not take_whole(exchange):
            stream.serve_by(exchange, self.shared.handle)

    def _window_bytes(self, stream: DirectStream) -> int:
        """What the client takes of it: negative when its settings have taken back what it was sent already."""
        return self._stream_window_bytes + stream.given_bytes

    def _may_go_on(self, unread_bytes: int) -> bool:
        """Whether a watch, which goes out by granian, may send its next frame.

        The loop that would read it may be waiting for another answer, which is not to find the connection's window
        taken. But a client that reads says so only once it has read a third of the stream's window (Deno's library
        does; others half), so what is less does not mean that it does not read.
        """
        window, owed_bytes = self.window, self._accounts.owed_bytes
        if window.has_left(_LEFT_BY_UNREAD, owed_bytes):
            return True
        may_be_read = unread_bytes <= _UNREAD * self._stream_window_bytes
        return may_be_read and window.has_left(_LEFT_BY_WATCHES, owed_bytes)

    def _look_again(self) -> None:
        """The windows of all streams may have grown."""
        self._looks_again = False
        self._ready = dict(self._unsent)
        self._send_unsent()

    def _send_unsent(self) -> None:
        """As much as the windows take.

        Whoever waits for its own window is not looked at: a client may have many such streams, and send many frames.
        """
        while self._ready and not self._is_deaf and (room_bytes := self.window.room_bytes) > 0:
            number, stream = next(iter(self._ready.items()))
            size = min(len(stream.unsent), self._window_bytes(stream), room_bytes, MAX_FRAME_BYTES)
            if size <= 0:
                del self._ready[number]
                continue
            piece, stream.unsent = bytes(stream.unsent[:size]), stream.unsent[size:]
            if not stream.unsent and not self._refill(stream):
                continue
            self.window.use(size)
            stream.given_bytes -= size
            self._accounts.sent(number, size)
            data = frame(DATA, 0 if stream.unsent else END_STREAM, number, piece)
            if stream.unsent:
                self._to_client(data)
            else:
                self._finish(stream, data)

    def _refill(self, stream: DirectStream) -> bool:
        """On to the next piece of a body that is made as it is taken; False = it cannot be made, and that is all."""
        if stream.rest is None:
            return True
        try:
            stream.unsent = memoryview(stream.rest.next())
            return True
        except Exception:
            _log.exception("an answer could not be made to its end")
            self._drop(stream)
            self._reset(stream.number, _INTERNAL_ERROR)
            return False

    def _finish(self, stream: DirectStream, frames: bytes) -> None:
        """The last frames of an answer."""
        self._wasted_count = 0
        self._to_client(frames)
        if stream.is_refused:
            self._reset(stream.number, _NO_ERROR)  # no more of its body is wanted
        self._drop(stream)

    def _drop(self, stream: DirectStream) -> None:
        """It is over, one way or the other."""
        number = stream.number
        self._streams.pop(number, None)
        if self._unsent:
            self._unsent.pop(number, None)
            self._ready.pop(number, None)
        self._forget_body(stream)
        stream.left()
        self._accounts.end(number)
        if not self._streams:
            self._idle()

    def _waste(self) -> None:
        """The client has sent a frame of no use."""
        self._wasted_count += 1
        if self._wasted_count > _MAX_WASTED_COUNT:
            self._give_up_connection(_ENHANCE_YOUR_CALM)

    def _reset(self, stream: int, code: int) -> None:
        self._to_client(frame(RST_STREAM, 0, stream, code.to_bytes(4, "big")))

    def _give_up_connection(self, code: int) -> None:
        if self._is_over:
            return
        self._is_over, self._takes = True, False
        self._to_client(frame(GOAWAY, 0, 0, self.last_taken.to_bytes(4, "big") + code.to_bytes(4, "big")))
        self._end()


def _settings_of(payload: bytes) -> Iterator[tuple[int, int]]:
    """(name, value) of each (RFC 9113, 6.5.1)."""
    for at in range(0, len(payload) - 5, 6):
        yield int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big")
