"""A request that offers an upgrade is served as if it did not; and nothing else that has no body passes for whole.

`curl --http2` and Java's HttpClient offer h2c with every request to http://.
"""

from __future__ import annotations

import asyncio

import pytest

from kvnode.api.http import Request, Response
from kvnode.api.http.http1 import Connections
from kvnode.api.http.messages import BodyBudget
from kvnode.base import limits
from tests.unit.api.http.known_heads import connected, known
from tests.unit.api.http.known_heads import serving as serving_known
from tests.unit.api.http.raw import Http1
from tests.unit.api.http.test_bounds import eventually, serving
from tests.unit.api.http.wire import converse

OFFER = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"  # sent while the body is not there
CHUNKS = b"5\r\nthere\r\n3\r\n is\r\n0\r\n\r\n"


def request(
    framing: bytes = b"", body: bytes = b"", *, first: bytes = b"POST / HTTP/1.1", offer: bytes = OFFER
) -> bytes:
    """`framing`: header lines that say where the body ends, or others."""
    return b"%b\r\nhost: test\r\n%b%b\r\n%b" % (first, offer, framing, body)


def by_length(body: bytes, first: bytes = b"POST / HTTP/1.1", *, offer: bytes = OFFER) -> bytes:
    return request(b"content-length: %d\r\n" % len(body), body, first=first, offer=offer)


KINDS = {
    "by length": by_length(b"do not lose me"),
    "of nothing": by_length(b""),
    "without one": request(),
    "in chunks": request(b"Transfer-Encoding: chunked\r\n", CHUNKS),
    "in chunks with a trailer": request(b"transfer-encoding: chunked\r\n", b"2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n"),
    "that is asked about first": request(b"expect: 100-continue\r\ncontent-length: 2\r\n", b"ok"),
    "that looks like a request": by_length(by_length(b"inner", offer=b"")),
    "of a GET": by_length(b"read", b"GET / HTTP/1.1"),
    "of a HEAD": by_length(b"read", b"HEAD / HTTP/1.1"),
    "of HTTP/1.0 kept alive": request(
        b"content-length: 2\r\n",
        b"ok",
        first=b"POST / HTTP/1.0",
        offer=OFFER.replace(b"Upgrade,", b"keep-alive, Upgrade,"),
    ),
    "behind another offer": by_length(b"ws", offer=b"connection: upgrade\r\nUPGRADE: websocket\r\n"),
    "behind half an offer": by_length(b"half", offer=b"upgrade: h2c\r\n"),
    "behind no offer": by_length(b"none", offer=b""),
}
ENDING = {
    "of HTTP/1.0": by_length(b"ok", b"POST / HTTP/1.0"),
    "of one that closes": by_length(b"ok", offer=OFFER.replace(b"Upgrade,", b"close, Upgrade,")),
    "that is cut off": by_length(b"ok")[:-1],
    "in chunks that are cut off": request(b"transfer-encoding: chunked\r\n", CHUNKS[:-2]),
    "in no chunks": request(b"transfer-encoding: chunked\r\n", b"zz\r\n"),
}
OFFERS = (OFFER, b"connection: upgrade\r\nUPGRADE: websocket\r\n", b"upgrade: h2c\r\n")


def without_offers(stream: bytes) -> bytes:
    stream = stream.replace(b"keep-alive, Upgrade, HTTP2-Settings", b"keep-alive")
    stream = stream.replace(b"close, Upgrade, HTTP2-Settings", b"close")
    for offer in (*OFFERS, OFFER.partition(b"\r\n")[2]):
        stream = stream.replace(offer, b"")
    return stream


def answers(*pieces: bytes, calm: bool = False) -> bytes:
    """What a server writes that echoes bodies, and in what state it leaves the connection of a client that is done."""

    async def echo(asked: Request) -> Response:
        return Response(200, b"%b: %b" % (asked.method.encode(), await asked.body(1_000)))

    async def conversation() -> bytes:
        shared = Connections(echo, "http", BodyBudget(), None, None)
        return await converse(shared, [piece for piece in pieces if piece], calm=calm, half_closes=True)

    return asyncio.run(conversation())


@pytest.mark.parametrize("kind", [*KINDS, *ENDING])
def test_an_offer_changes_nothing_wherever_the_request_is_cut(kind: str) -> None:
    stream = (KINDS | ENDING)[kind]
    expected = answers(without_offers(stream))
    near_end_of_head = stream.index(b"\r\n\r\n") - 2
    for cut in (*range(0, near_end_of_head, 9), *range(near_end_of_head, len(stream))):
        answered = answers(stream[:cut], stream[cut:], calm=True)
        assert answered.replace(CONTINUE, b"") == expected, cut


@pytest.mark.parametrize("calm", [True, False])
def test_nor_does_it_when_requests_are_pipelined(calm: bool) -> None:
    stream = b"".join(KINDS.values())
    expected = answers(without_offers(stream))
    assert expected.count(b"HTTP/1.1 200 OK") == len(KINDS)
    for cut in range(0, len(stream), 23):
        assert answers(stream[:cut], stream[cut:], calm=calm).replace(CONTINUE, b"") == expected, cut


async def test_nor_when_there_are_thousands_in_one_piece() -> None:
    count = 3_000
    async with serving() as (_, _, port):
        client = await Http1.open(port)
        client.send(by_length(b"x") * count)
        assert [(await client.answer()).body for _ in range(count)] == [b"x"] * count
        await client.close()


@pytest.mark.parametrize(
    "framing",
    [
        b"transfer-encoding: gzip\r\n",
        b"transfer-encoding: chunked, gzip\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: gzip\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 2\r\n",
        b"content-length: 2\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 2\r\ncontent-length: 3\r\n",
        b"content-length: 2, 2\r\n",
        b"content-length: x\r\n",
    ],
)
@pytest.mark.parametrize("offer", [OFFER, b""])
async def test_a_body_whose_end_cannot_be_told_is_refused(framing: bytes, offer: bytes) -> None:
    async with serving() as (_, _, port):
        client = await Http1.open(port)
        client.send(request(framing, b"ok", offer=offer))
        assert (await client.answer()).status == 400
        assert await client.closed()
        await client.close()


@pytest.mark.parametrize("framing", [b"content-length: 2\r\n", b"transfer-encoding: chunked\r\n"])
async def test_a_body_that_does_not_come_is_not_waited_for_longer(
    framing: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvnode.api.http.http1.SWEEP_S", 0.05)
    monkeypatch.setattr(limits, "HTTP_BODY_TIMEOUT_MS", 150)
    async with serving() as (_, _, port):
        client = await Http1.open(port)
        client.send(request(framing))
        assert (await client.answer()).status == 408
        assert await client.closed()
        await client.close()


@pytest.mark.parametrize("framing", [b"", b"content-length: 2\r\n", b"transfer-encoding: chunked\r\n"])
async def test_what_follows_a_connect_is_no_body_and_no_request(framing: bytes) -> None:
    async with serving() as (echo, _, port):
        client = await Http1.open(port)
        client.send(request(framing, by_length(b"ok", offer=b""), first=b"CONNECT test:80 HTTP/1.1", offer=b""))
        assert (await client.answer()).status == 400
        assert await client.closed()
        assert echo.begun == 1
        await client.close()


async def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    async with serving() as (_, _, port):
        client = await Http1.open(port)
        client.send(request(b"expect: 100-continue\r\ncontent-length: 2\r\n"))
        assert (await client.head())[0] == 100
        client.send(b"ok")
        assert (await client.answer()).body == b"ok"
        await client.close()


async def test_the_preface_of_http_2_behind_a_request_is_refused() -> None:
    async with serving() as (echo, _, port):
        client = await Http1.open(port)
        client.send(by_length(b"ok"))
        assert (await client.answer()).body == b"ok"
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert (await client.answer()).status == 400
        assert await client.closed()
        assert echo.begun == 1
        await client.close()


async def test_what_is_known_of_a_head_has_no_offer_in_it() -> None:
    async with serving_known() as (desk, _, port), connected(port) as client:
        plain, offering = by_length(b"one", offer=b""), by_length(b"two")
        await known(port, plain)
        for _ in range(2):
            client.send(offering)
            assert b"two" in (await client.answer()).body
            assert not desk.taken
        client.send(offering + plain)
        assert [b"two" in (await client.answer()).body, b"one" in (await client.answer()).body] == [True, True]
        assert not desk.taken
        client.send(plain)
        assert (await client.answer()).body == b"taken: one"


async def test_a_head_that_comes_behind_an_offer_becomes_known() -> None:
    async with serving_known() as (desk, _, port), connected(port) as client:
        client.send(by_length(b"two"))
        await client.answer()
        for _ in range(2):
            client.send(by_length(b"one", b"POST /later HTTP/1.1", offer=b""))
            assert b"one" in (await client.answer()).body
        assert (desk.handled, len(desk.taken)) == (2, 1)


async def test_a_large_body_behind_an_offer_is_not_read_ahead() -> None:
    async with serving() as (echo, _, port):
        client = await Http1.open(port)
        client.send(request(b"content-length: 50000000\r\n", first=b"POST /wait HTTP/1.1"))
        client.writer.transport.set_write_buffer_limits(high=1)
        client.send(bytes(50_000_000))
        await eventually(lambda: echo.begun == 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.writer.drain(), 0.3)
        client.writer.transport.abort()
