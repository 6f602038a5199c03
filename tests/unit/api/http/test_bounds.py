"""What senders can do to a server, and what they cannot: both versions of HTTP, plain and over TLS."""

from __future__ import annotations

import asyncio
import resource
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import h2.events
import pytest

from kvnode.api.http import HttpServer, Request, Response, Stream, Tls, Unanswered
from kvnode.base import limits
from kvnode.base.errors import ConfigError
from tests.unit.api.http.raw import Http1, Http2, eventually

MAX_BODY = 200_000


class Echo:
    """Answers with what came, or as its path says."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.begun = 0
        self.left = 0

    async def handle(self, request: Request) -> Response | Stream:
        self.begun += 1
        if request.path == "/wait":
            await self.go.wait()
        elif request.path == "/early":
            return Response(401, b"no")
        elif request.path == "/gone":
            await request.client_gone()
            self.left += 1
            raise Unanswered
        elif request.path == "/stream":
            return Stream(self.chunks(), "application/octet-stream")
        elif request.path == "/drops":
            return Stream(self.drops(), "application/octet-stream")
        elif request.path == "/said":
            return Response(200, request.header("x-said").encode())
        elif request.path == "/large":
            return Response(200, bytes(8_000_000))
        return Response(200, await request.body(MAX_BODY))

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield bytes(65_536)
        finally:
            self.left += 1

    async def drops(self) -> AsyncGenerator[bytes, None]:
        while not self.go.is_set():
            yield b"drop"
            await asyncio.sleep(0.001)


@asynccontextmanager
async def serving(tls: Tls | None = None) -> AsyncIterator[tuple[Echo, HttpServer, int]]:
    echo = Echo()
    server = HttpServer(echo.handle, "127.0.0.1:0", tls, http2=True)
    port = await server.start()
    try:
        yield echo, server, port
    finally:
        echo.go.set()
        await server.stop()


# HTTP/1.1 as it should be.


async def test_bodies_that_come_whole_though_larger_than_what_is_read_ahead() -> None:
    async with serving() as (_, _, port):
        client = await Http1.open(port)
        body = bytes(limits.HTTP_READ_AHEAD_BYTES + 1)
        for _ in range(5):
            async with asyncio.timeout(10):
                assert (await client.request("/", body=body)).body == body
        await client.close()


async def test_bodies_by_length_and_by_chunks() -> None:
    async with serving() as (_, _, port):
        client = await Http1.open(port)
        assert (await client.request("/", body=b"one")).body == b"one"
        client.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\ntwo\r\n2\r\n!!\r\n0\r\n\r\n")
        assert (await client.answer()).body == b"two!!"
        answer = await client.request("/", body=bytes(MAX_BODY))
        assert len(answer.body) == MAX_BODY
        assert "connection" not in answer.headers
        assert answer.headers["date"].endswith("gmt")
        await client.close()


async def test_blanks_around_a_header_are_no_part_of_it() -> None:
    """RFC 9112, section 5.1; single bytes too, of which the parser makes several calls."""
    async with serving() as (_, _, port):
        client = await Http1.open(port)
        for value in ("5", " 5 \t", "\t5\t", "a b "):
            assert (await client.request("/said", {"x-said": value})).body == value.strip().encode()
        for byte in b"GET /said HTTP/1.1\r\nhost: x\r\nx-said:  5 \t \r\n\r\n":
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.answer()).body == b"5"
        await client.close()


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving() as (echo, _, port):
        client = await Http1.open(port)
        requests = [
            b"POST %b HTTP/1.1\r\ncontent-length: 1\r\n\r\n%d" % (b"/wait" if n == 0 else b"/", n) for n in range(9)
        ]
        client.send(b"".join(requests))
        await eventually(lambda: echo.begun == 1)
        await asyncio.sleep(0.05)
        assert echo.begun == 1
        echo.go.set()
        assert [(await client.answer()).body for _ in range(9)] == [b"%d" % n for n in range(9)]
        await client.close()


async def test_a_request_in_single_bytes() -> None:
    async with serving() as (_, _, port):
        client = await Http1.open(port)
        for byte in b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nok":
            client.send(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0.001)
        assert (await client.answer()).body == b"ok"
        await client.close()


async def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    async with serving() as (_, _, port):
        client = await Http1.open(port)
        client.send(b"POST / HTTP/1.1\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n")
        assert (await client.head())[0] == 100
        client.send(b"ok")
        assert (await client.answer()).body == b"ok"
        await client.close()


async def test_clients_that_close_are_closed() -> None:
    async with serving() as (_, server, port):
        for head in (b"POST / HTTP/1.1\r\nconnection: close\r\n", b"POST / HTTP/1.0\r\n"):
            client = await Http1.open(port)
            client.send(head + b"content-length: 2\r\n\r\nok")
            answer = await client.answer()
            assert (answer.body, answer.headers["connection"]) == (b"ok", "close")
            assert await client.closed()
            await client.close()
        client = await Http1.open(port)
        client.send(b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nok")
        client.writer.write_eof()
        assert (await client.answer()).body == b"ok"
        assert await client.closed()
        await client.close()
        await eventually(lambda: server.connections_count == 0)


# HTTP/1.1 as it should not be.


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"PRX * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
async def test_malformed_requests(request_: bytes) -> None:
    async with serving() as (_, _, port):
        client = await Http1.open(port)
        client.send(request_)
        assert (await client.answer()).status == 400
        assert await client.closed()
        await client.close()


async def test_headers_without_end() -> None:
    async with serving() as (_, _, port):
        client = await Http1.open(port)
        client.send(b"GET / HTTP/1.1\r\n" + b"x: " + bytes(60).replace(b"\0", b"y") * 2_000)
        await client.writer.drain()
        await asyncio.sleep(0.05)
        client.send(bytes(60).replace(b"\0", b"y") * 2_000)
        assert (await client.answer()).status == 431
        await client.close()


@pytest.mark.parametrize("head", [b"/" + b"a" * 80_000 + b" HTTP/1.1", b"/ HTTP/1.1\r\nx: " + b"y" * 80_000])
async def test_a_large_head_in_one_piece(head: bytes) -> None:
    async with serving() as (_, _, port):
        client = await Http1.open(port)
        client.send(b"GET " + head + b"\r\n\r\n")
        assert (await client.answer()).status == 431
        await client.close()


async def test_a_large_body_behind_the_rest_of_a_head_is_no_part_of_it() -> None:
    async with serving() as (_, _, port):
        client = await Http1.open(port)
        client.send(b"POST / HTTP/1.1\r\ncontent-len")
        await asyncio.sleep(0.05)
        client.send(b"gth: %d\r\n\r\n" % MAX_BODY + bytes(MAX_BODY))
        assert len((await client.answer()).body) == MAX_BODY
        await client.close()


async def test_an_early_answer_reaches_a_client_that_still_sends() -> None:
    async with serving() as (_, _, port):
        client = await Http1.open(port)
        client.send(b"POST /early HTTP/1.1\r\ncontent-length: 50000000\r\n\r\n" + bytes(5_000_000))
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        await client.close()


async def test_what_a_stranger_sends_ahead_is_not_read() -> None:
    async with serving() as (echo, _, port):
        client = await Http1.open(port)
        client.send(b"POST /wait HTTP/1.1\r\ncontent-length: 50000000\r\n\r\n")
        client.writer.transport.set_write_buffer_limits(high=1)
        client.send(bytes(50_000_000))
        await eventually(lambda: echo.begun == 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.writer.drain(), 0.3)
        assert client.writer.transport.get_write_buffer_size() > 30_000_000
        client.writer.transport.abort()


@pytest.mark.parametrize("length", [1_000, 100_000])
async def test_a_body_whose_stream_is_reset_is_not_taken_for_whole(length: int) -> None:
    """Half a transaction is none; a reset without an error code is the one that could pass for the body's end."""
    bodies = []
    read = asyncio.Event()

    async def handle(request: Request) -> Response:
        try:
            bodies.append(await request.body(MAX_BODY))
        finally:
            read.set()
        return Response(200, b"")

    server = HttpServer(handle, "127.0.0.1:0", http2=True)
    client = await Http2.open(await server.start())
    stream = client.begin("/", {"content-length": str(length)})
    await client.send(stream, bytes(500), end=False)
    await asyncio.sleep(0.05)
    client.h2.reset_stream(stream, 0)
    client.flush()
    await asyncio.wait_for(read.wait(), 10)
    assert bodies == []
    await client.close()
    await server.stop()


# Slowness.


async def test_slow_heads_and_bodies_are_refused(impatient: None) -> None:
    async with serving() as (_, server, port):
        head, body = await Http1.open(port), await Http1.open(port)
        head.send(b"POST / HT")
        body.send(b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nab")
        assert (await head.answer()).status == 408
        assert (await body.answer()).status == 408
        second = await Http2.open(port)
        stream = second.begin("/", {"content-length": "5"})
        await second.send(stream, b"ab", end=False)
        assert (await second.answer(stream)).status == 408
        for client in (head, body, second):
            await client.close()
        await eventually(lambda: server.connections_count == 0)


async def test_a_client_that_does_not_read_is_cut_off(impatient: None) -> None:
    async with serving() as (echo, server, port):
        for path in ("/large", "/stream"):
            client = await Http1.open(port)
            client.writer.transport.pause_reading()
            client.send(b"POST %b HTTP/1.1\r\ncontent-length: 0\r\n\r\n" % path.encode())
            await eventually(lambda: server.connections_count == 1)
            await eventually(lambda: server.connections_count == 0)
            client.writer.transport.abort()
        await eventually(lambda: echo.left == 1)


async def test_an_idle_connection_stays(impatient: None) -> None:
    async with serving() as (_, _, port):
        silent, used = await Http1.open(port), await Http1.open(port)
        await used.request("/", body=b"1")
        await asyncio.sleep(0.5)
        assert (await used.request("/", body=b"2")).body == b"2"
        assert (await silent.request("/", body=b"3")).body == b"3"
        await silent.close()
        await used.close()


# Numbers.


async def test_2000_idle_connections_cost_little_and_nobody_feels_them() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 10_000), hard))
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 5_000:
        pytest.skip("too few files may be open")
    try:
        async with serving() as (_, server, port):
            before = _resident_bytes()
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2_000)]
            for _, writer in idle[:1_000]:
                writer.write(b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\nx")
            await eventually(lambda: server.connections_count == 2_000, 20)
            assert _resident_bytes() - before < 2_000 * 40_000  # both ends
            client = await Http1.open(port)
            began = asyncio.get_running_loop().time()
            for _ in range(100):
                assert (await client.request("/", body=b"ok")).body == b"ok"
            assert asyncio.get_running_loop().time() - began < 10
            await client.close()
            for _, writer in idle:
                writer.close()
            await eventually(lambda: server.connections_count == 0, 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


async def test_the_one_longest_idle_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HTTP_CONNECTIONS_COUNT", 3)
    async with serving() as (_, _, port):
        clients = [await Http1.open(port) for _ in range(3)]
        for client in clients:
            await client.request("/")
        await clients[0].request("/")  # so the second is the one longest idle
        late = await Http1.open(port)
        assert (await late.request("/", body=b"in")).body == b"in"
        assert await clients[1].closed()
        assert (await clients[0].request("/", body=b"still")).body == b"still"
        for client in (*clients, late):
            await client.close()


async def test_nobody_is_cut_off_to_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HTTP_CONNECTIONS_COUNT", 1)
    async with serving() as (echo, _, port):
        busy = await Http1.open(port)
        busy.send(b"POST /wait HTTP/1.1\r\ncontent-length: 1\r\n\r\nx")
        await eventually(lambda: echo.begun == 1)
        late = await Http1.open(port)
        assert (await late.answer()).status == 503
        echo.go.set()
        assert (await busy.answer()).body == b"x"
        await busy.close()
        await late.close()


async def test_more_streams_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HTTP2_STREAMS_COUNT", 10)
    async with serving() as (echo, _, port):
        client, other = await Http2.open(port), await Http2.open(port)
        await client.request("/")
        assert client.h2.remote_settings.max_concurrent_streams == 10
        client.h2.remote_settings.max_concurrent_streams = 1_000  # a client that does not care
        client.h2.remote_settings.acknowledge()
        streams = [client.begin("/wait", end=True) for _ in range(50)]
        await eventually(lambda: echo.begun >= 11)
        assert (await other.request("/", body=b"ok")).body == b"ok"
        assert echo.begun <= 12
        echo.go.set()
        refused = 0
        try:
            while not all(client.ended(stream) for stream in streams):
                if not await client.pump():
                    break
        finally:
            events = [event for stream in streams for event in client.events.get(stream, ())]
            refused = sum(isinstance(event, h2.events.StreamReset) for event in events)
        assert refused == 40
        await client.close()
        await other.close()


async def test_large_http_2_headers_harm_nobody() -> None:
    async with serving() as (echo, _, port):
        client, other = await Http2.open(port), await Http2.open(port)
        stream = client.begin("/", {f"x-{number}": "y" * 10_000 for number in range(20)}, end=True)
        while not client.ended(stream) and await client.pump():
            pass
        assert echo.begun == 0
        assert (await other.request("/", body=b"ok")).body == b"ok"
        await client.close()
        await other.close()


# Ends.


@pytest.mark.parametrize("open_", [Http1.open, Http2.open])
async def test_a_handler_learns_that_its_client_left(open_) -> None:
    async with serving() as (echo, _, port):
        client = await open_(port)
        if isinstance(client, Http1):
            client.send(b"POST /gone HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
        else:
            client.begin("/gone", end=True)
        await eventually(lambda: echo.begun == 1)
        client.writer.transport.abort()
        await eventually(lambda: echo.left == 1)


async def test_a_stop_answers_what_is_under_way_and_nothing_more() -> None:
    async with serving() as (echo, server, port):
        idle, first, second = await Http1.open(port), await Http1.open(port), await Http2.open(port)
        first.send(b"POST /wait HTTP/1.1\r\ncontent-length: 1\r\n\r\n1")
        stream = second.begin("/wait")
        await second.send(stream, b"2")
        await eventually(lambda: echo.begun == 2)
        stopping = asyncio.ensure_future(server.stop())
        assert await asyncio.wait_for(idle.closed(), 10)
        with pytest.raises(OSError):
            await Http1.open(port)
        assert not stopping.done()
        echo.go.set()
        answer = await first.answer()
        assert (answer.body, answer.headers["connection"]) == (b"1", "close")
        assert (await second.answer(stream)).body == b"2"
        await asyncio.wait_for(stopping, 20)
        for client in (idle, first, second):
            await client.close()


async def test_a_stop_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SHUTDOWN_TIMEOUT_MS", 200)
    async with serving() as (echo, server, port):
        client = await Http1.open(port)
        client.send(b"POST /wait HTTP/1.1\r\ncontent-length: 1\r\n\r\n1")
        await eventually(lambda: echo.begun == 1)
        await asyncio.wait_for(server.stop(), 15)
        assert await client.closed()
        await client.close()


# TLS.


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing")
    folder = tmp_path_factory.mktemp("tls")
    made = Tls(folder / "cert.pem", folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(made.key), "-out", str(made.certificate), "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return made


def trusting(tls: Tls, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(tls.certificate))
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


async def test_tls_agrees_on_the_version(tls: Tls) -> None:
    async with serving(tls) as (echo, server, port):
        first = await Http1.open(port, trusting(tls, "http/1.1"))
        assert first.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert (await first.request("/", body=b"one")).body == b"one"
        second = await Http2.open(port, trusting(tls, "h2", "http/1.1"))
        assert second.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        assert (await second.request("/", body=bytes(MAX_BODY))).body == bytes(MAX_BODY)
        neither = await Http1.open(port, trusting(tls))
        assert (await neither.request("/", body=b"plain")).body == b"plain"
        stream = second.begin("/gone", end=True)
        assert stream
        await eventually(lambda: echo.begun == 4)
        for client in (first, second, neither):
            await client.close()
        await eventually(lambda: echo.left == 1 and server.connections_count == 0)


async def test_plain_text_to_a_tls_port_harms_nobody(tls: Tls) -> None:
    async with serving(tls) as (_, _, port):
        wrong = await Http1.open(port)
        wrong.send(b"POST / HTTP/1.1\r\n\r\n")
        assert await wrong.closed()
        await wrong.close()
        right = await Http1.open(port, trusting(tls))
        assert (await right.request("/", body=b"ok")).body == b"ok"
        await right.close()


async def test_a_key_that_does_not_fit_is_named(tls: Tls, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("nonsense")
    server = HttpServer(Echo().handle, "127.0.0.1:0", Tls(tls.certificate, tmp_path / "key.pem"))
    with pytest.raises(ConfigError, match=r"key\.pem"):
        await server.start()


@pytest.mark.parametrize("size", [10, limits.HTTP_READ_AHEAD_BYTES + 10])
async def test_a_client_that_goes_in_the_middle_of_a_body_is_no_fault_of_the_server(
    size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Over HTTP/2; it is not for the log."""
    async with serving() as (echo, server, port):
        client = await Http2.open(port)
        stream = client.begin("/", {"content-length": str(size)})
        client.h2.send_data(stream, b"half")
        client.flush()
        await eventually(lambda: echo.begun == 1)
        await client.close()
        await eventually(lambda: server.connections_count == 0)
        await asyncio.sleep(0.05)
    assert not caplog.records


async def test_the_folder_for_temporary_files_may_have_a_long_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the path of a socket may be, which the server over HTTP/2 listens at."""
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    async with serving() as (_, _, port):
        client = await Http2.open(port)
        assert (await client.request("/", body=b"one")).body == b"one"
        await client.close()
    assert list(folder.iterdir()) == []


async def test_a_client_that_leaves_a_stream_is_no_fault_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    """Over HTTP/2 a chunk may find it gone before anything else says so; neither is for the log."""
    async with serving() as (echo, server, port):
        for number in range(3):
            client = await Http2.open(port)
            streams = [client.begin("/drops", end=True) for _ in range(8)]
            for stream in streams:
                await client.data_of(stream, 4)
            await client.close()
            await eventually(lambda: server.connections_count == 0)
            assert echo.begun == (number + 1) * len(streams)
    assert not caplog.records
