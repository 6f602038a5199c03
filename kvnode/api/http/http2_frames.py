"""HTTP/2's frames (RFC 9113, 4.1), as far as a pipe that carries them has to see into them.

Requests are told apart by a header that the pipe adds, `MARK: <pipe>-<stream>`: a CONTINUATION frame behind the last
frame of each request's head, which holds one literal field without indexing (RFC 7541, 6.2.2) and so changes no
table of HPACK's. Its name is drawn anew by each process: no client can send one.

Requests that are answered directly (http2_direct.py) are taken out here, with every frame of their streams. For the
server behind the pipe their streams were never opened: it must not hear of them, and they are told by their numbers,
which lie above the last one that it was sent.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable
from typing import Protocol

PREFACE_BYTES = 24
_HEAD = struct.Struct(">HBBBL")  # the length's first two bytes and its last, kind, flags, stream
_HEAD_BYTES = _HEAD.size
MAX_FRAME_BYTES = 16_384  # SETTINGS_MAX_FRAME_SIZE, which nobody here raises
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0x0, 0x1, 0x3, 0x4, 0x7, 0x8, 0x9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

MARK = f"kvnode-stream-{secrets.token_hex(8)}"
MARK_BYTES = 128  # more than name and value take of a head
_FIELD = b"\x00" + bytes([len(MARK)]) + MARK.encode()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


class Taker(Protocol):
    """Who takes requests out (http2_direct.py)."""

    @property
    def max_block_bytes(self) -> int:
        """Heads up to this size may be taken."""

    def owns(self, stream: int) -> bool:
        """Whether a stream was taken, and is not over."""

    def take(self, stream: int, block: bytes) -> bool:
        """A request's head, in one frame, with a body to come: True = the stream is taken."""

    def tables_changed(self) -> None:
        """A head passed that may have changed HPACK's tables."""

    def body(self, stream: int, payload: bytes, flags: int) -> None:
        """A part of the body of a stream that was taken, whether or not it is over."""

    def reset(self, stream: int) -> None:
        """The client resets a stream that was taken."""

    def settings(self, payload: bytes) -> None:
        """The client's settings."""

    def window_update(self, stream: int, by_bytes: int) -> bytes | None:
        """The client takes more, of a taken stream or of the connection: what goes on instead; None = the same."""

    def reads(self, stream: int, by_bytes: int) -> None:
        """The client takes more of a stream that the server knows: it has read so much of it."""

    def misused(self) -> None:
        """The client sends on a taken stream what nobody may."""


class Requests:
    """What a client sends: marks its requests on the way, and notices the streams that it resets.

    Args:
        pipe: number of the pipe.
        reset: told of a stream.
        taker: takes requests out; None = nobody does.
    """

    __slots__ = ("_heading", "_last_passed", "_last_stream", "_left", "_pipe", "_reset", "_rest", "_taker", "_to_mark")

    def __init__(self, pipe: int, reset: Callable[[int], None], taker: Taker | None = None) -> None:
        self._pipe = pipe
        self._reset = reset
        self._taker = taker
        self._left = PREFACE_BYTES  # of the preface, then of a frame that goes on as it comes, that are still to come
        self._rest = b""  # the beginning of a frame, held back: it may have to be changed, or taken out
        self._last_stream = 0
        self._last_passed = 0  # the last that the server knows
        self._heading = 0  # the stream whose request's head is not whole
        self._to_mark = 0  # a stream whose mark follows when the present frame has ended

    @property
    def between(self) -> bool:
        """Whether a frame may be put in behind what has gone on so far."""
        return not self._left and not self._heading

    def pass_on(self, data: bytes) -> bytes:
        """The same with the marks, and without what was taken out."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        pieces: list[bytes] = []
        at, end = 0, len(data)
        while at < end:
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
            else:
                if end - at < _HEAD_BYTES:
                    self._rest = data[at:]
                    break
                upper, lower, kind, flags, stream = _HEAD.unpack_from(data, at)
                size, stream = upper << 8 | lower, stream & 0x7FFFFFFF
                behind = at + _HEAD_BYTES
                if self._taker is not None and self._wants_whole(self._taker, kind, flags, stream, size):
                    if end - behind < size:
                        self._rest = data[at:]
                        break
                    pieces.append(self._whole(self._taker, kind, flags, stream, data[at : behind + size]))
                    behind += size
                else:
                    pieces.append(self._judge(kind, flags, stream, data[at:behind]))
                    self._left = size
                at = behind
            if self._to_mark and not self._left:
                pieces.append(self._mark())
        return b"".join(pieces)

    def _wants_whole(self, taker: Taker, kind: int, flags: int, stream: int, size: int) -> bool:
        """Whether a frame is only judged once all of it is there."""
        if kind == HEADERS:
            plain = flags & (END_HEADERS | END_STREAM | PADDED | PRIORITY) == END_HEADERS
            begins = not self._heading and stream > self._last_stream and stream & 1  # a client's are odd (5.1.1)
            return bool(plain and begins and size <= taker.max_block_bytes)
        if kind == DATA:
            return self._is_hidden(taker, stream) and size <= MAX_FRAME_BYTES
        if kind == SETTINGS:
            return not flags & ACK and size <= MAX_FRAME_BYTES
        return kind in (RST_STREAM, WINDOW_UPDATE) and size == 4

    def _is_hidden(self, taker: Taker, stream: int) -> bool:
        """Whether the server must not hear of a stream: to it, one above the last that it knows was never begun."""
        return taker.owns(stream) or self._last_passed < stream <= self._last_stream

    def _whole(self, taker: Taker, kind: int, flags: int, stream: int, whole: bytes) -> bytes:
        """What goes on of a whole frame."""
        if kind == HEADERS:
            self._last_stream = stream
            if taker.take(stream, whole[_HEAD_BYTES:]):
                return b""
            self._last_passed = self._to_mark = stream
            return whole[:4] + bytes([flags & ~END_HEADERS]) + whole[5:]
        if kind == DATA:
            taker.body(stream, whole[_HEAD_BYTES:], flags)
            return b""
        if kind == SETTINGS:
            taker.settings(whole[_HEAD_BYTES:])
            return whole
        if kind == RST_STREAM:
            if self._is_hidden(taker, stream):
                taker.reset(stream)
                return b""
            self._reset(stream)
            return whole
        by_bytes = int.from_bytes(whole[_HEAD_BYTES:], "big") & 0x7FFFFFFF
        if stream and not self._is_hidden(taker, stream):
            taker.reads(stream, by_bytes)
            return whole
        instead = taker.window_update(stream, by_bytes)
        return whole if instead is None else instead

    def _judge(self, kind: int, flags: int, stream: int, head: bytes) -> bytes:
        """The head of a frame that goes on as it comes."""
        taker = self._taker
        if taker is not None and kind in (HEADERS, CONTINUATION):
            taker.tables_changed()
        if taker is not None and kind in (DATA, HEADERS) and self._is_hidden(taker, stream):
            taker.misused()  # which ends the connection: what still goes on does not matter
        if kind == HEADERS:
            if stream <= self._last_stream:
                return head  # trailers
            self._last_stream = self._last_passed = self._heading = stream
        elif kind == RST_STREAM:
            self._reset(stream)
            return head
        elif kind != CONTINUATION or not self._heading:
            return head
        if not flags & END_HEADERS:
            return head
        self._to_mark, self._heading = self._heading, 0
        return head[:4] + bytes([flags & ~END_HEADERS]) + head[5:]

    def _mark(self) -> bytes:
        value = b"%d-%d" % (self._pipe, self._to_mark)
        stream, self._to_mark = self._to_mark, 0
        return frame(CONTINUATION, END_HEADERS, stream, _FIELD + bytes([len(value)]) + value)


class Responses:
    """What the server sends: counts the bytes of bodies by stream, and notices the streams' ends.

    Args:
        sent: told of a stream and how many bytes of its body go on to the client.
        ended: told of a stream.
        going: told which stream the server calls its last; returns the last of all, also of those that were taken out.
        acknowledged: told when the client's settings are.
    """

    __slots__ = ("_acknowledged", "_ended", "_going", "_in_head", "_left", "_rest", "_sent", "_waiting")

    def __init__(
        self,
        sent: Callable[[int, int], None],
        ended: Callable[[int], None],
        going: Callable[[int], int] = lambda last: last,
        acknowledged: Callable[[], None] = lambda: None,
    ) -> None:
        self._acknowledged = acknowledged
        self._sent = sent
        self._ended = ended
        self._going = going
        self._left = 0  # of the present frame that are still to come
        self._rest = b""  # the beginning of a frame, held back
        self._in_head = False  # between a head's first frame and its last, where no other frame may stand
        self._waiting: list[bytes] = []

    def put_in(self, frames: bytes) -> bytes:
        """Frames of somebody else's: what goes out now; the rest does when it may."""
        if self._left or self._in_head:
            self._waiting.append(frames)
            return b""
        return frames

    def pass_on(self, data: bytes) -> bytes:
        """What goes on to the client."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        at, end = self._left, len(data)
        between = -1 if self._in_head or at > end else at  # where other frames may stand, the last place
        while at < end:
            if end - at < _HEAD_BYTES:
                self._rest, end = data[at:], at
                break
            upper, lower, kind, flags, stream = _HEAD.unpack_from(data, at)
            size = upper << 8 | lower
            behind = at + _HEAD_BYTES + size
            if kind == GOAWAY:
                if behind > end:
                    self._rest, end = data[at:], at
                    break
                data = self._goaway(data, at + _HEAD_BYTES)
            else:
                self._note(kind, flags, stream & 0x7FFFFFFF, size)
            at = behind
            if at <= end and not self._in_head:
                between = at
        self._left = max(at - end, 0)
        if self._waiting and between >= 0:
            waiting, self._waiting = self._waiting, []
            return b"".join((data[:between], *waiting, data[between:end]))
        return data[:end]

    def _note(self, kind: int, flags: int, stream: int, size: int) -> None:
        if kind == DATA and size:
            self._sent(stream, size)
        if kind == RST_STREAM or (kind <= HEADERS and flags & END_STREAM):
            self._ended(stream)
        if kind == SETTINGS and flags & ACK:
            self._acknowledged()
        if kind in (HEADERS, CONTINUATION):
            self._in_head = not flags & END_HEADERS

    def _goaway(self, data: bytes, at: int) -> bytes:
        """With the last stream that is answered (RFC 9113, 6.8): a client sends again what is said to be above it."""
        last = int.from_bytes(data[at : at + 4], "big") & 0x7FFFFFFF
        return data[:at] + self._going(last).to_bytes(4, "big") + data[at + 4 :]
