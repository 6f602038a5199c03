"""A pipe sees the same in any pieces, marks each request once, and leaves all else as it is."""

from __future__ import annotations

from itertools import pairwise

import h2.config
import h2.connection
import h2.events
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.api.http.http2_frames import MARK, Requests, Responses

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, CONTINUATION = 0, 1, 3, 9


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


def requests_of(data: bytes) -> tuple[dict[int, dict[str, str]], dict[int, bytes]]:
    """The heads and bodies, by stream, that a server of another make sees."""
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    server.initiate_connection()
    heads: dict[int, dict[str, str]] = {}
    bodies: dict[int, bytes] = {}
    for event in server.receive_data(data):
        if isinstance(event, h2.events.RequestReceived):
            heads[event.stream_id] = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
    return heads, bodies


def client_bytes() -> bytes:
    """Requests of all shapes that the h2 library makes: with and without bodies, trailers, a head of many frames."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    for number, extra in enumerate(({}, {"x-long": "v" * 40_000}, {"x": "y"}, {"x": "y"})):
        stream = 1 + 2 * number
        head = [(":method", "POST"), (":path", f"/{stream}"), (":scheme", "http"), (":authority", "a"), *extra.items()]
        client.send_headers(stream, head, end_stream=number == 2)
        if number != 2:
            client.send_data(stream, b"body of %d" % stream, pad_length=7 if number == 1 else None)
            client.send_headers(stream, [("x-trailer", "t")], end_stream=True)
    client.ping(b"12345678")
    return client.data_to_send()


BYTES = client_bytes()


@settings(deadline=None)
@given(st.lists(st.integers(0, len(BYTES)), max_size=12))
def test_requests_are_marked_once_and_otherwise_the_same(cuts: list[int]) -> None:
    requests = Requests(42, lambda stream: None)
    marked = b"".join(map(requests.pass_on, in_pieces(BYTES, cuts)))
    heads, bodies = requests_of(marked)
    plain_heads, plain_bodies = requests_of(BYTES)
    assert bodies == plain_bodies and len(heads) == 4
    for stream, head in heads.items():
        assert head.pop(MARK) == f"42-{stream}"
        assert head == plain_heads[stream]


def test_byte_by_byte_too() -> None:
    requests = Requests(7, lambda stream: None)
    marked = b"".join(requests.pass_on(BYTES[at : at + 1]) for at in range(len(BYTES)))
    assert [head[MARK] for head in requests_of(marked)[0].values()] == ["7-1", "7-3", "7-5", "7-7"]


def test_a_padded_head_with_a_priority_is_marked_behind_it() -> None:
    block = bytes([0x83, 0x84, 0x86]) + b"\x01\x01a"  # POST / http, of the static table, and an :authority
    payload = bytes([4]) + b"\x00\x00\x00\x00\x10" + block + b"\x00" * 4
    data = PREFACE + frame(4, 0, 0) + frame(HEADERS, 0x1 | 0x4 | 0x8 | 0x20, 1, payload)
    heads, _ = requests_of(Requests(3, lambda stream: None).pass_on(data))
    assert heads[1][MARK] == "3-1" and heads[1][":method"] == "POST"


def test_resets_of_the_client_are_noticed() -> None:
    seen: list[int] = []
    requests = Requests(1, seen.append)
    data = PREFACE + frame(HEADERS, 0x5, 1, bytes([0x83, 0x84, 0x86])) + frame(RST, 0, 1, b"\x00\x00\x00\x08")
    out = requests.pass_on(data)
    assert seen == [1] and out.endswith(frame(RST, 0, 1, b"\x00\x00\x00\x08"))


@settings(deadline=None)
@given(st.lists(st.integers(0, 400), max_size=12))
def test_bodies_are_counted_by_stream_and_ends_seen(cuts: list[int]) -> None:
    data = b"".join(
        (
            frame(4, 0, 0, b"\x00" * 6),
            frame(HEADERS, 0x4, 1, b"head"),
            frame(HEADERS, 0x4, 3, b"head"),
            frame(DATA, 0, 1, b"a" * 100),
            frame(DATA, 0, 3, b"\x00\x00\x05\x01\x05"),  # looks like a head inside a body
            frame(DATA, 0x1, 1, b"b" * 11),
            frame(HEADERS, 0x5, 3, b"trailers"),
            frame(HEADERS, 0x4, 5, b"head"),
            frame(RST, 0, 5, b"\x00\x00\x00\x02"),
            frame(6, 0, 0, b"pingping"),
            frame(DATA, 0x1, 7),
        )
    )
    sent: dict[int, int] = {}
    ended: list[int] = []

    def count(stream: int, size: int) -> None:
        sent[stream] = sent.get(stream, 0) + size

    responses = Responses(count, ended.append)
    assert b"".join(map(responses.pass_on, in_pieces(data, cuts))) == data
    assert (sent, ended) == ({1: 111, 3: 5}, [1, 3, 5, 7])


class Everything:
    """Takes every other request that it may, and keeps what it is told."""

    max_block_bytes = 2_048

    def __init__(self) -> None:
        self.taken: dict[int, bytes] = {}
        self.bodies: dict[int, bytes] = {}
        self.seen: list[object] = []
        self.over: set[int] = set()

    def owns(self, stream: int) -> bool:
        return stream in self.taken and stream not in self.over

    def take(self, stream: int, block: bytes) -> bool:
        if stream % 4 == 1:
            return False
        self.taken[stream] = block
        return True

    def tables_changed(self) -> None:
        self.seen.append("tables")

    def body(self, stream: int, payload: bytes, flags: int) -> None:
        self.bodies[stream] = self.bodies.get(stream, b"") + payload
        if flags & 0x1:
            self.over.add(stream)

    def reset(self, stream: int) -> None:
        self.seen.append(("reset", stream))

    def settings(self, payload: bytes) -> None:
        self.seen.append(("settings", payload))

    def window_update(self, stream: int, by_bytes: int) -> bytes | None:
        self.seen.append(("window", stream, by_bytes))
        return frame(8, 0, 0, b"\x00\x00\x00\x07") if not stream else b""

    def reads(self, stream: int, by_bytes: int) -> None:
        self.seen.append(("reads", stream, by_bytes))

    def misused(self) -> None:
        self.seen.append("misused")


BLOCK = bytes([0x83, 0x84, 0x86])
UPDATE = b"\x00\x00\x01\x00"
MIXED = b"".join(
    (
        PREFACE,
        frame(4, 0, 0, b"\x00\x04\x00\x01\x00\x00"),
        frame(8, 0, 0, UPDATE),
        frame(HEADERS, 0x4, 1, BLOCK),
        frame(HEADERS, 0x4, 3, BLOCK),
        frame(DATA, 0, 1, b"a" * 300),
        frame(DATA, 0, 3, b"b" * 300),
        frame(8, 0, 1, UPDATE),
        frame(8, 0, 3, UPDATE),
        frame(HEADERS, 0x0, 5, BLOCK[:1]),
        frame(CONTINUATION, 0x4, 5, BLOCK[1:]),
        frame(DATA, 0x1, 3, b"B"),
        frame(HEADERS, 0x4, 7, BLOCK),
        frame(RST, 0, 7, b"\x00\x00\x00\x08"),
        frame(RST, 0, 1, b"\x00\x00\x00\x08"),
        frame(6, 0, 0, b"pingping"),
    )
)


@settings(deadline=None)
@given(st.lists(st.integers(0, len(MIXED)), max_size=14))
def test_what_is_taken_out_is_whole_and_the_rest_goes_on(cuts: list[int]) -> None:
    taker, resets = Everything(), []
    requests = Requests(9, resets.append, taker)
    passed = b"".join(map(requests.pass_on, in_pieces(MIXED, cuts)))

    def mark(stream: int) -> bytes:
        value = b"9-%d" % stream
        field = b"\x00" + bytes([len(MARK)]) + MARK.encode() + bytes([len(value)]) + value
        return frame(CONTINUATION, 0x4, stream, field)

    assert passed == b"".join(
        (
            PREFACE,
            frame(4, 0, 0, b"\x00\x04\x00\x01\x00\x00"),
            frame(8, 0, 0, b"\x00\x00\x00\x07"),
            frame(HEADERS, 0, 1, BLOCK),
            mark(1),
            frame(DATA, 0, 1, b"a" * 300),
            frame(8, 0, 1, UPDATE),
            frame(HEADERS, 0x0, 5, BLOCK[:1]),
            frame(CONTINUATION, 0, 5, BLOCK[1:]),
            mark(5),
            frame(RST, 0, 1, b"\x00\x00\x00\x08"),
            frame(6, 0, 0, b"pingping"),
        )
    )
    assert taker.taken == {3: BLOCK, 7: BLOCK} and taker.bodies == {3: b"b" * 300 + b"B"} and resets == [1]
    assert taker.seen == [
        ("settings", b"\x00\x04\x00\x01\x00\x00"),
        ("window", 0, 256),
        ("reads", 1, 256),
        ("window", 3, 256),
        "tables",
        "tables",
        ("reset", 7),
    ]


def test_a_stream_that_a_client_may_not_begin_is_the_servers_to_judge() -> None:
    """Those of even numbers are the server's own (RFC 9113, 5.1.1)."""
    taker = Everything()
    requests = Requests(9, lambda stream: None, taker)
    passed = requests.pass_on(PREFACE + frame(HEADERS, 0x4, 2, BLOCK))
    assert not taker.taken and frame(HEADERS, 0, 2, BLOCK) in passed


def test_settings_of_any_length_are_seen() -> None:
    """Or their acknowledgement would be taken for that of others."""
    taker = Everything()
    long = b"\x00\x06\x00\x01\x00\x00" * 400 + b"\x00\x04\x00\x00\x00\x00"
    requests = Requests(9, lambda stream: None, taker)
    sent = PREFACE + frame(4, 0, 0, long)
    assert b"".join(map(requests.pass_on, (sent[:1_000], sent[1_000:]))) == sent
    assert taker.seen == [("settings", long)]


ANSWERS = (
    frame(HEADERS, 0x0, 1, b"head"),
    frame(CONTINUATION, 0x4, 1, b"of two frames"),
    frame(DATA, 0, 1, b"a" * 100),
    frame(4, 0x1, 0),
    frame(7, 0, 0, (1).to_bytes(4, "big") + b"\x00" * 4),
    frame(DATA, 0x1, 1, b"b"),
)


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), max_size=12), st.lists(st.integers(0, 12), max_size=5))
def test_frames_are_put_in_between_frames_and_not_into_heads(cuts: list[int], when: list[int]) -> None:
    acknowledged: list[int] = []
    told: list[int] = []

    def going(last: int) -> int:
        told.append(last)
        return 9

    responses = Responses(lambda stream, size: None, lambda stream: None, going, lambda: acknowledged.append(1))
    mine = frame(DATA, 0x1, 9, b"mine")
    out, count = b"", 0
    for number, piece in enumerate(in_pieces(b"".join(ANSWERS), cuts)):
        for _ in range(when.count(number)):
            out += responses.put_in(mine)
            count += 1
        out += responses.pass_on(piece)
    found: list[bytes] = []
    while out:
        size = 9 + int.from_bytes(out[:3], "big")
        found.append(out[:size])
        out = out[size:]
    assert found.count(mine) == count and acknowledged == [1] and told == [1]
    rest = [each for each in found if each != mine]
    goaway = frame(7, 0, 0, (9).to_bytes(4, "big") + b"\x00" * 4)
    assert rest == [*ANSWERS[:4], goaway, ANSWERS[5]]
    assert found.index(ANSWERS[1]) == found.index(ANSWERS[0]) + 1, "put into a head"
