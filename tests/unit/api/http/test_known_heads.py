"""Requests whose head came before: what is remembered, what the handler sees, and how they may come."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.api.http import HttpServer, Request, Response
from kvnode.base import limits
from tests.unit.api.http.known_heads import (
    MAX_BODY,
    connected,
    described,
    exchange,
    known,
    post,
    serving,
)
from tests.unit.api.http.raw import eventually

# What is remembered.


async def test_a_head_is_known_once_it_was_answered_well() -> None:
    async with serving() as (desk, _, port), connected(port) as client:
        for at, body in enumerate((b"one", b"two", b"six")):
            client.send(post(body))
            answer = await client.answer()
            assert answer.status == 200 and "connection" not in answer.headers
            assert (desk.handled, len(desk.taken)) == (1, at)
            assert (answer.body == b"taken: " + body) is (at > 0)


async def test_what_one_connection_sent_is_known_to_the_others() -> None:
    async with serving() as (desk, _, port):
        await known(port, post(b"one"))
        assert (await exchange(port, post(b"two"))).body == b"taken: two"
        assert desk.handled == 1


async def test_a_body_of_nothing() -> None:
    async with serving() as (desk, _, port):
        await known(port, post())
        assert (await exchange(port, post())).body == b"taken: "
        assert desk.taken[0].content == b""


@pytest.mark.parametrize(
    "raw",
    [
        post(b"x", "/other"),
        post(b"x", "/?query"),
        post(b"xy"),
        post(b"x", "/", "x-note: 1"),
        post(b"x").replace(b"host", b"Host"),
        post(b"x").replace(b"content-length: ", b"content-length:"),
        b"\r\n" + post(b"x"),
    ],
)
async def test_a_head_that_differs_by_a_byte_is_another(raw: bytes) -> None:
    async with serving() as (desk, _, port):
        await known(port, post(b"x"))
        assert (await exchange(port, raw)).status == 200
        assert (desk.handled, desk.taken) == (2, [])


@pytest.mark.parametrize(
    "raw",
    [
        post(b"x").replace(b"POST", b"PUT"),
        b"GET / HTTP/1.1\r\nhost: test\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: test\r\ncontent-length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nhost: test\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        post(b"x", "/", "connection: close"),
        post(b"x", "/", "Connection: keep-alive, close"),
        post(b"x", version="1.0"),
        post(b"x", "/", "connection: keep-alive", version="1.0"),
        post(b"x", "/", "expect: 100-continue"),
        post(b"x", "/", "Upgrade: h2c"),
        post(b"x", "/stream"),
        post(b"x", "/refused"),
        post(b"x", "/created"),
        post(b"x", "/error"),
        post(b"x", "/boom"),
    ],
)
async def test_what_is_not_remembered(raw: bytes) -> None:
    async with serving() as (desk, _, port):
        first, second = [await exchange(port, raw) for _ in range(2)]
        assert (desk.handled, desk.taken) == (2, [])
        assert (first.status, first.body) == (second.status, second.body)


async def test_a_request_that_asks_for_an_upgrade_is_not_remembered() -> None:
    async with serving() as (desk, _, port):
        for _ in range(2):
            await exchange(port, post(b"", "/", "connection: upgrade", "upgrade: h2c"))
        assert (desk.handled, desk.taken) == (2, [])


async def test_of_what_came_in_pieces_nothing_is_remembered() -> None:
    raw = post(b"body")
    async with serving() as (desk, _, port), connected(port) as client:
        for cut in (1, 20, len(raw) - 4, len(raw) - 1):
            client.send(raw[:cut])
            await asyncio.sleep(0.02)
            client.send(raw[cut:])
            assert (await client.answer()).status == 200
        assert (desk.handled, desk.taken) == (4, [])


async def test_of_two_in_one_piece_nothing_is_remembered() -> None:
    async with serving() as (desk, _, port), connected(port) as client:
        for _ in range(2):
            client.send(post(b"1") + post(b"2"))
            assert [(await client.answer()).status for _ in range(2)] == [200, 200]
        assert (desk.handled, desk.taken) == (4, [])


@pytest.mark.parametrize(("more", "is_known"), [(0, True), (1, False)])
async def test_long_heads_are_not_remembered(more: int, is_known: bool) -> None:
    raw = post(b"x", "/", "x-note: ")
    padding = limits.MAX_KNOWN_HEAD_BYTES - (len(raw) - 1) + more
    raw = raw.replace(b"x-note: ", b"x-note: " + b"n" * padding)
    async with serving() as (desk, _, port):
        for _ in range(2):
            assert (await exchange(port, raw)).status == 200
        assert len(desk.taken) == is_known


async def test_of_too_many_heads_the_one_that_came_first_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_KNOWN_HEADS_COUNT", 3)
    async with serving() as (desk, _, port), connected(port) as client:

        async def is_known(path: str) -> bool:
            client.send(post(b"x", path))
            return (await client.answer()).body == b"taken: x"

        assert not any([await is_known(path) for path in ("/a", "/b", "/c")])
        assert await is_known("/a")  # which makes it no younger
        assert not await is_known("/d")
        assert [await is_known(path) for path in ("/b", "/c", "/d")] == [True] * 3
        assert not await is_known("/a")  # and it takes the place of /b
        assert [await is_known(path) for path in ("/c", "/d", "/a")] == [True] * 3
        assert not await is_known("/b")
        assert desk.handled == 6


async def test_strangers_drive_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_KNOWN_HEADS_COUNT", 2)
    async with serving() as (_, _, port), connected(port) as client:
        await known(port, post(b"x"))
        for number in range(5):
            client.send(post(b"x", "/refused", f"authorization: Bearer {number}"))
            assert (await client.answer()).status == 401
        assert (await exchange(port, post(b"x"))).body == b"taken: x"


async def test_a_head_that_is_answered_badly_later_is_still_known() -> None:
    async with serving() as (desk, _, port):
        await known(port, post(b"x"))
        desk.holds = True
        for status in (503, 200):
            async with connected(port) as client:
                client.send(post(b"x"))
                await eventually(lambda: len(desk.taken) > 0)
                desk.taken.pop().respond(Response(status, b""))
                assert (await client.answer()).status == status
        assert desk.handled == 1


async def test_what_is_noted_stays_with_the_head() -> None:
    async with serving() as (desk, _, port):
        for path in ("/a", "/b"):
            await known(port, post(b"x", path))
        for path in ("/a", "/b", "/a", "/b"):
            await exchange(port, post(b"x", path))
            request = desk.taken[-1]
            assert request.head.note in (None, path)
            request.head.note = path
        assert desk.taken[0].head is desk.taken[2].head is not desk.taken[1].head
        assert [request.head.note for request in desk.taken] == ["/a", "/b"] * 2


# What the handler sees.


@pytest.mark.parametrize(
    "raw",
    [
        post(b"body", "/a/b%20c?x=1&x=2&y=%41&bare", "x-note: caf\u00e9", "X-Other: 1"),
        post(b"body", "http://elsewhere/a?b=c"),
        b"POST / HTTP/1.1\r\nContent-Length: 0004\r\nX-NOTE: one\r\nx-note: two\r\n\r\n\r\n\r\n",
    ],
)
async def test_a_handler_sees_the_same_of_a_known_head(raw: bytes) -> None:
    async with serving() as (desk, _, port):
        desk.takes = False
        first, second = [await exchange(port, raw) for _ in range(2)]
        assert (desk.handled, len(desk.taken)) == (2, 1)
        for answer in (first, second):
            answer.headers.pop("date")
        assert first == second


async def test_a_server_without_take_whole_uses_its_handler() -> None:
    seen: list[type] = []

    async def handle(request: Request) -> Response:
        seen.append(type(request))
        return await described(request)

    server = HttpServer(handle, "127.0.0.1:0")
    port = await server.start()
    answers = [await exchange(port, post(b"x", "/a", "x-note: n")) for _ in range(2)]
    assert answers[0].body == answers[1].body
    assert seen[0] is not seen[1]  # the second was not parsed
    await server.stop()


async def test_a_body_that_is_too_large_for_its_handler() -> None:
    sizes = iter((MAX_BODY, 3))

    async def handle(request: Request) -> Response:
        return Response(200, await request.body(next(sizes)))

    server = HttpServer(handle, "127.0.0.1:0")
    port = await server.start()
    assert [(await exchange(port, post(b"four"))).status for _ in range(2)] == [200, 413]
    await server.stop()


# How it comes.


async def test_a_known_head_whose_body_comes_later() -> None:
    raw = post(b"body")
    async with serving() as (desk, _, port), connected(port) as client:
        await known(port, raw)
        for cut in (len(raw) - 4, len(raw) - 2, len(raw) - 1, 1, len(raw) - 5, len(raw) - 7):
            client.send(raw[:cut])
            await asyncio.sleep(0.02)
            assert desk.taken == []
            client.send(raw[cut:])
            answer = await client.answer()
            assert answer.status == 200 and b"b'body'" in answer.body
        client.send(raw)
        assert (await client.answer()).body == b"taken: body"


async def test_a_known_head_whose_body_does_not_come(impatient: None) -> None:
    async with serving() as (desk, _, port), connected(port) as client:
        await known(port, post(b"body"))
        client.send(post(b"bo", length=4))
        assert (await client.answer()).status == 408
        assert desk.taken == []


async def test_two_known_ones_in_one_piece_are_answered_in_order() -> None:
    async with serving() as (desk, _, port), connected(port) as client:
        await known(port, post(b"1"))
        client.send(post(b"1") + post(b"2"))
        assert [(await client.answer()).body[-4:-1] for _ in range(2)] == [b"'1'", b"'2'"]
        client.send(post(b"3"))
        assert (await client.answer()).body == b"taken: 3"
        assert desk.handled == 3


async def test_a_body_that_looks_like_a_known_request() -> None:
    inner = post(b"1")
    async with serving() as (desk, _, port), connected(port) as client:
        await known(port, inner)
        for _ in range(2):
            client.send(post(inner))
            answer = await client.answer()
            assert answer.status == 200
        assert answer.body == b"taken: " + inner and desk.handled == 2
        client.send(post(inner)[: -len(inner)])
        await asyncio.sleep(0.02)
        client.send(inner)  # a body, though it begins a piece as a request does
        assert repr(inner).encode() in (await client.answer()).body
        assert desk.handled == 3


async def test_the_rest_of_a_head_that_looks_like_a_known_request() -> None:
    async with serving() as (desk, _, port), connected(port) as client:
        await known(port, post(b"ok"))
        client.send(b"POST /odd HTTP/1.1\r\nx-note: ")
        await asyncio.sleep(0.05)
        client.send(post(b"ok"))
        answer = await client.answer()
        assert b"'/odd'" in answer.body and answer.headers["x-seen"] == "post / http/1.1"
        assert (desk.handled, desk.taken) == (2, [])


@pytest.mark.parametrize("rest", [b"nonsense\r\n\r\n", b"x", b"\x00"])
async def test_a_known_head_with_nonsense_behind_it(rest: bytes) -> None:
    async with serving() as (desk, _, port), connected(port) as client:
        await known(port, post(b"ok"))
        client.send(post(b"ok") + rest)
        answer = await client.answer()
        assert answer.status == 200 and b"'ok'" in answer.body
        assert await client.closed()
        assert (desk.handled, desk.taken) == (2, [])


async def test_nonsense_while_a_taken_one_is_unanswered_makes_its_answer_the_last() -> None:
    async with serving() as (desk, _, port), connected(port) as client:
        await known(port, post(b"ok"))
        desk.holds = True
        client.send(post(b"ok"))
        await eventually(lambda: len(desk.taken) == 1)
        client.send(b"nonsense\r\n\r\n")
        await asyncio.sleep(0.05)
        desk.answer()
        answer = await client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"later", "close")
        assert await client.closed()


async def test_nonsense_after_a_taken_one_is_refused() -> None:
    async with serving() as (_, _, port), connected(port) as client:
        await known(port, post(b"ok"))
        client.send(post(b"ok"))
        assert (await client.answer()).body == b"taken: ok"
        client.send(b"nonsense\r\n\r\n")
        assert (await client.answer()).status == 400
        assert await client.closed()


async def test_a_client_that_closes_after_a_known_head_is_closed() -> None:
    async with serving() as (desk, _, port):
        await known(port, post(b"x"))
        for taken in (1, 2):
            async with connected(port) as client:
                client.send(post(b"x"))
                assert (await client.answer()).body == b"taken: x"
                client.send(post(b"x", "/", "connection: close"))
                answer = await client.answer()
                assert (answer.status, answer.headers["connection"]) == (200, "close")
                assert await client.closed()
            assert len(desk.taken) == taken
