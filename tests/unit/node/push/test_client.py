"""The HTTP client of a push, against a receiver on a real socket."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac

import pytest

from kvnode.base import limits
from kvnode.machine.queue.push_url import parse_push_url
from kvnode.node.push.addresses import AddressPolicy, NotCalled
from kvnode.node.push.client import Failed, PushClient
from kvnode.node.push.request import Signer
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.node.push.receiver import OK, Receiver, receiver

KEY = bytes(range(32))
LOOPBACK = AddressPolicy(["127.0.0.0/8"])


def client(to: Receiver, timeout_ms: int = 5_000) -> PushClient:
    return PushClient(parse_push_url(to.url), LOOPBACK, timeout_ms)


def request(to: Receiver, body: bytes = b"body") -> bytes:
    message = kv_pb2.QueueMessage(id=bytes(12), queue="mail", lease=b"l" * 12, attempt=2, enqueued_at_ms=7)
    message.payload.data, message.payload.encoding = body, kv_pb2.VALUE_ENCODING_V8
    return Signer(parse_push_url(to.url), KEY, "orders").request(message, 1_700_000_000)


async def test_what_is_sent() -> None:
    async with receiver() as to:
        body = b"\xff\x0fbody\r\n\x00"
        calling = client(to)
        answer = await calling.send(request(to, body))
        calling.close()
        assert (answer.status, answer.retry_after_ms) == (200, None)
        (got,) = to.requests
        assert (got.line, got.body) == ("POST /hook?a=b HTTP/1.1", body)
        assert got.headers["host"] == f"127.0.0.1:{to.port}"
        assert got.headers["content-type"] == "application/vnd.kvnode.v8"
        signed = hmac.new(KEY, b"%s.%d." % (b"00" * 12, 1_700_000_000) + body, hashlib.sha256).digest()
        assert got.headers["webhook-id"] == "00" * 12
        assert got.headers["webhook-timestamp"] == "1700000000"
        assert got.headers["webhook-signature"] == "v1," + base64.b64encode(signed).decode()
        wanted = {"database": "orders", "queue": "mail", "encoding": "v8", "attempt": "2", "enqueued-at-ms": "7"}
        assert {name: got.headers[f"kvnode-{name}"] for name in wanted} == wanted


async def test_a_connection_is_kept_and_one_that_was_closed_is_made_anew() -> None:
    async with receiver() as to:
        calling = client(to)
        for _ in range(3):
            assert (await calling.send(request(to))).status == 200
        assert {got.connection for got in to.requests} == {1}
        to.break_off()
        await asyncio.sleep(0.05)
        assert (await calling.send(request(to))).status == 200
        to.answer = lambda _request: b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"
        assert (await calling.send(request(to))).status == 204
        to.answer = lambda _request: OK
        assert (await calling.send(request(to))).status == 200
        assert to.requests[-1].connection == to.requests[-2].connection + 1
        calling.close()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", 302),
        (b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 500),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + OK, 200),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil it closes", 200),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n" + bytes(200_000), 200),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno chunk", 200),
    ],
)
async def test_the_status_decides_whatever_comes_behind_it(
    answer: bytes, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PUSH_BODY_TIMEOUT_MS", 200)
    async with receiver() as to:
        to.answer = lambda _request: answer
        calling = client(to)
        assert (await calling.send(request(to))).status == status
        to.answer = lambda _request: OK
        assert (await calling.send(request(to))).status == 200
        assert len(to.requests) == 2
        calling.close()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP"),
        (b"", "ended before the answer"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000, "head of the answer|no HTTP"),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "no HTTP"),
        (None, "no answer within 0.3 s"),
    ],
)
async def test_what_is_no_answer_is_a_failure(answer: bytes | None, why: str) -> None:
    async with receiver() as to:
        to.answer = lambda _request: answer
        with pytest.raises(Failed, match=why):
            await client(to, 300 if answer is None else 5_000).send(request(to))
        to.answer = lambda _request: OK
        calling = client(to)
        assert (await calling.send(request(to))).status == 200
        calling.close()


async def test_nobody_listens() -> None:
    async with receiver() as to:
        pass
    with pytest.raises(Failed):
        await client(to).send(request(to))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(b"7", 7_000), (b"99999999999999999999", limits.MAX_PUSH_RETRY_AFTER_MS), (b"Fri, 31 Dec", None), (b"-1", None)],
)
async def test_retry_after(value: bytes, wanted: int | None) -> None:
    async with receiver() as to:
        to.answer = lambda _request: b"HTTP/1.1 503 Busy\r\nretry-after: " + value + b"\r\ncontent-length: 0\r\n\r\n"
        calling = client(to)
        assert (await calling.send(request(to))).retry_after_ms == wanted
        calling.close()


async def test_an_address_that_is_not_allowed_gets_no_connection() -> None:
    async with receiver() as to:
        calling = PushClient(parse_push_url(to.url), AddressPolicy(), 1_000)
        for attempt in (calling.check(), calling.send(request(to))):
            with pytest.raises(NotCalled):
                await attempt
        assert to.requests == []
