"""Requests over HTTP/2 whose fields came before: they are answered by callback as well, and the same."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.api.connect.ports import DatabaseMode
from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, OutcomeUnknown, Unavailable
from tests.unit.api.connect.support import (
    UUID,
    Serving,
    data_headers,
    eventually,
    get_bytes,
    path,
    serving,
    set_bytes,
)
from tests.unit.api.http.raw import Answer, Http2

WRITE, READ, EVENTUAL = path("atomic_write"), path("snapshot_read"), path("snapshot_read", "eventual")


async def ask(client: Http2, where: str, body: bytes, token: str | None = None) -> Answer:
    headers = data_headers() if token is None else data_headers(token)
    return await client.request(where, headers | {"content-length": str(len(body))}, body)


def same(answer: Answer) -> tuple[int, bytes, list[tuple[str, str]]]:
    headers = sorted((name, value) for name, value in answer.headers.items() if name != "date")
    return answer.status, answer.body, headers


@pytest.mark.parametrize(
    ("where", "body"),
    [(WRITE, set_bytes()), (READ, get_bytes()), (EVENTUAL, get_bytes()), (path("snapshot_read", "local"), get_bytes())],
)
async def test_the_second_is_answered_by_callback_and_the_same(where: str, body: bytes) -> None:
    async with serving() as running:
        client = await Http2.open(running.port)
        first = await ask(client, where, body)
        assert (first.status, running.backend.begun) == (200, 0)
        for count in (1, 2):
            assert same(await ask(client, where, body)) == same(first)
            assert running.backend.begun == count
        await client.close()
        assert running.stats.under_way == 0


@pytest.mark.parametrize(
    ("error", "status"), [(Unavailable("no leader"), 503), (InvalidRequest("VALUE_TOO_LARGE", "too large"), 400)]
)
async def test_refusals(error: Exception, status: int) -> None:
    async with serving() as running:
        client = await Http2.open(running.port)
        await ask(client, WRITE, set_bytes())
        running.backend.error = error
        assert (await ask(client, WRITE, set_bytes())).status == status
        assert running.backend.begun == 1
        running.backend.error = None
        running.access.set_mode(DatabaseMode.DISABLED)
        assert (await ask(client, WRITE, set_bytes())).status == 200
        assert running.backend.begun == 1, "a disabled database begins nothing"
        await client.close()


async def test_a_token_is_judged_each_time() -> None:
    async with serving() as running:
        client = await Http2.open(running.port)
        await ask(client, READ, get_bytes())
        database = running.access.databases.pop(UUID)
        assert (await ask(client, READ, get_bytes())).status == 404
        running.access.databases[UUID] = database
        assert (await ask(client, READ, get_bytes(), "wrong")).status == 401
        assert (await ask(client, READ, get_bytes(), "wrong")).status == 401, "a stranger's fields are not remembered"
        await client.close()


async def test_without_a_length_or_with_a_large_body_nothing_is_remembered() -> None:
    async with serving() as running:
        client = await Http2.open(running.port)
        large = set_bytes(value=bytes(limits.HTTP_READ_AHEAD_BYTES))
        for _ in range(3):
            assert (await client.request(READ, data_headers(), get_bytes())).status == 200
            assert (await ask(client, WRITE, large)).status == 200
        assert running.backend.begun == 0
        await client.close()


async def test_a_write_whose_outcome_is_unknown_is_never_answered() -> None:
    async with serving() as running:
        client = await Http2.open(running.port)
        await ask(client, WRITE, set_bytes())
        running.backend.error = OutcomeUnknown("the session has expired")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(client, WRITE, set_bytes()), 0.3)
        assert (running.backend.begun, running.stats.under_way) == (1, 1)
        await client.close()
        await eventually(lambda: running.stats.under_way == 0)


async def test_a_client_that_leaves_while_its_request_is_under_way_harms_nobody() -> None:
    async with serving() as running:
        await _leave_under_way(running)
        running.backend.go.set()
        await eventually(lambda: running.stats.under_way == 0)
        client = await Http2.open(running.port)
        assert (await ask(client, READ, get_bytes())).status == 200
        await client.close()


async def _leave_under_way(running: Serving) -> None:
    client = await Http2.open(running.port)
    await ask(client, WRITE, set_bytes())
    running.backend.go.clear()
    body = set_bytes()
    stream = client.begin(WRITE, data_headers() | {"content-length": str(len(body))})
    await client.send(stream, body)
    await eventually(lambda: running.backend.begun == 1)
    await client.close()
