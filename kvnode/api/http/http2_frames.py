"""HTTP/2's frames (RFC 9113, 4.1), as far as a pipe that carries them has to see into them.

Requests are told apart by a header that the pipe adds, `MARK: <pipe>-<stream>`: a CONTINUATION frame behind the last
frame of each request's head, which holds one literal field without indexing (RFC 7541, 6.2.2) and so changes no
table of HPACK's. Its name is drawn anew by each process: no client can send one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

PREFACE_BYTES = 24
_HEAD_BYTES = 9
_DATA, _HEADERS, _RST_STREAM, _CONTINUATION = 0x0, 0x1, 0x3, 0x9
_END_STREAM, _END_HEADERS = 0x1, 0x4

MARK = f"kvnode-stream-{secrets.token_hex(8)}"
MARK_BYTES = 128  # more than name and value take of a head
_FIELD = b"\x00" + bytes([len(MARK)]) + MARK.encode()


def _stream_of(head: bytes) -> int:
    return int.from_bytes(head[5:9], "big") & 0x7FFFFFFF


class Requests:
    """What a client sends: marks its requests on the way, and notices the streams that it resets.

    Args:
        pipe: number of the pipe.
        reset: told of a stream.
    """

    __slots__ = ("_head", "_heading", "_last_stream", "_left", "_pipe", "_reset", "_to_mark")

    def __init__(self, pipe: int, reset: Callable[[int], None]) -> None:
        self._pipe = pipe
        self._reset = reset
        self._left = PREFACE_BYTES  # of the preface, then of the present frame, that are still to come
        self._head = b""  # of a frame, come in part and held back: it may have to be changed
        self._last_stream = 0
        self._heading = 0  # the stream whose request's head is not whole
        self._to_mark = 0  # a stream whose mark follows when the present frame has ended

    def pass_on(self, data: bytes) -> bytes:
        """The same with the marks."""
        pieces: list[bytes] = []
        at, end = 0, len(data)
        while True:
            if self._left:
                rest = data[at : at + self._left]
                pieces.append(rest)
                at += len(rest)
                self._left -= len(rest)
                if self._left:
                    break
            if self._to_mark:
                pieces.append(self._mark())
            if at >= end:
                break
            missing = _HEAD_BYTES - len(self._head)
            self._head += data[at : at + missing]
            at += missing
            if len(self._head) < _HEAD_BYTES:
                break
            head, self._head = self._head, b""
            self._left = int.from_bytes(head[:3], "big")
            pieces.append(self._judge(head))
        return b"".join(pieces)

    def _judge(self, head: bytes) -> bytes:
        """The head of a frame as it goes on."""
        kind = head[3]
        if kind == _HEADERS:
            stream = _stream_of(head)
            if stream <= self._last_stream:
                return head  # trailers
            self._last_stream = self._heading = stream
        elif kind == _RST_STREAM:
            self._reset(_stream_of(head))
            return head
        elif kind != _CONTINUATION or not self._heading:
            return head
        if not head[4] & _END_HEADERS:
            return head
        self._to_mark, self._heading = self._heading, 0
        return head[:4] + bytes([head[4] & ~_END_HEADERS]) + head[5:]

    def _mark(self) -> bytes:
        value = b"%d-%d" % (self._pipe, self._to_mark)
        field = _FIELD + bytes([len(value)]) + value
        head = len(field).to_bytes(3, "big") + bytes([_CONTINUATION, _END_HEADERS]) + self._to_mark.to_bytes(4, "big")
        self._to_mark = 0
        return head + field


class Responses:
    """What the server sends: counts the bytes of bodies by stream, and notices the streams' ends.

    Args:
        sent: told of a stream and how many bytes of its body go on to the client.
        ended: told of a stream.
    """

    __slots__ = ("_ended", "_head", "_left", "_sent")

    def __init__(self, sent: Callable[[int, int], None], ended: Callable[[int], None]) -> None:
        self._sent = sent
        self._ended = ended
        self._left = 0  # of the present frame that are still to come
        self._head = b""  # of a frame, come in part

    def look(self, data: bytes) -> None:
        """These bytes go on to the client."""
        at, end = self._left, len(data)
        while at < end:
            missing = _HEAD_BYTES - len(self._head)
            head = self._head + data[at : at + missing]
            if len(head) < _HEAD_BYTES:
                self._head = head
                self._left = 0
                return
            self._head = b""
            size = int.from_bytes(head[:3], "big")
            at += missing + size
            kind = head[3]
            if kind == _DATA and size:
                self._sent(_stream_of(head), size)
            if kind == _RST_STREAM or (kind <= _HEADERS and head[4] & _END_STREAM):
                self._ended(_stream_of(head))
        self._left = at - end
