"""The metadata exchange over real sockets."""

from __future__ import annotations

import json

import pytest

from kvnode.api.connect.ports import Database, DatabaseMode
from tests.unit.api.connect.support import (
    METADATA_BODY,
    OTHER,
    UUID,
    connected,
    data_headers,
    get_bytes,
    loads,
    metadata_headers,
    serving,
)

NEW = "abcdefab-2222-4333-8444-555555555555"


async def test_version_3_names_exactly_what_strict_clients_take() -> None:
    async with serving() as running, connected(running) as client:
        answer = await client.request("/", metadata_headers(), METADATA_BODY)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert loads(answer.body) == {
            "version": 3,
            "databaseId": UUID,
            "endpoints": [
                {"url": f"/data/{UUID}/eventual", "consistency": "eventual"},
                {"url": f"/data/{UUID}/strong", "consistency": "strong"},
            ],
            "token": f"data-{UUID}",
            "expiresAt": "2030-01-01T00:00:00Z",
        }


@pytest.mark.parametrize("path", ["/orders", f"/databases/{OTHER}/connect", "/orders/"])
async def test_a_database_by_name_and_uuid(path: str) -> None:
    async with serving() as running, connected(running) as client:
        assert loads((await client.request(path, metadata_headers(), METADATA_BODY)).body)["databaseId"] == OTHER


@pytest.mark.parametrize("path", ["/eventual", f"/databases/{UUID}/connect/eventual"])
async def test_the_opt_in_url_names_a_local_endpoint_as_strong(path: str) -> None:
    async with serving() as running, connected(running) as client:
        endpoints = loads((await client.request(path, metadata_headers(), METADATA_BODY)).body)["endpoints"]
        assert endpoints[1] == {"url": f"/data/{UUID}/local", "consistency": "strong"}


@pytest.mark.parametrize(("offered", "chosen"), [([1, 2, 3], 3), ([2, 1], 2), ([3, 99], 3), ([1], 1)])
async def test_the_newest_common_version(offered: list[int], chosen: int) -> None:
    async with serving() as running, connected(running) as client:
        body = json.dumps({"supportedVersions": offered}).encode()
        assert loads((await client.request("/", metadata_headers(), body)).body)["version"] == chosen


async def test_version_1_has_absolute_urls_and_is_the_one_without_a_body() -> None:
    async with serving() as running, connected(running) as client:
        found = loads((await client.request("/", metadata_headers())).body)
        assert (found["version"], found["endpoints"][1]["url"]) == (1, f"http://test/data/{UUID}/strong")
        client.send(b"POST / HTTP/1.0\r\nauthorization: Bearer access\r\ncontent-length: 0\r\n\r\n")
        assert (await client.answer()).status == 400  # no Host


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"{}", b'{"supportedVersions":3}', b'{"supportedVersions":[3],"x":1}', b"\xff"]
)
async def test_malformed_exchanges(body: bytes) -> None:
    async with serving() as running, connected(running) as client:
        answer = await client.request("/", metadata_headers(), body)
        assert (answer.status, answer.headers["content-type"]) == (400, "text/plain; charset=utf-8")
        assert b"supportedVersions" in answer.body


async def test_no_common_version() -> None:
    async with serving() as running, connected(running) as client:
        for offered in (b"[4]", b"[true]", b'["3"]', b"[]"):
            answer = await client.request("/", metadata_headers(), b'{"supportedVersions":%b}' % offered)
            assert answer.status == 400
            assert b"could not negotiate a protocol version" in answer.body


async def test_who_may_not_exchange() -> None:
    async with serving() as running, connected(running) as client:
        answer = await client.request("/", metadata_headers("wrong"), METADATA_BODY)
        assert (answer.status, answer.body) == (401, b"Invalid access token.")
        for header in ({}, {"authorization": "Basic x"}):
            answer = await client.request("/", header, METADATA_BODY)
            assert (answer.status, answer.body) == (401, b"Malformed authorization header.")
        answer = await client.request("/nothing", metadata_headers(), METADATA_BODY)
        assert (answer.status, answer.body) == (404, b"Resource not found.")
        assert running.access.learned == 2  # once for the wrong token, once for the unknown name


@pytest.mark.parametrize("path", ["/a/b", f"/data/{UUID}/strong", f"/data/{UUID}/weak/watch", "/v2/watch/x"])
async def test_unknown_paths(path: str) -> None:
    async with serving() as running, connected(running) as client:
        assert (await client.request(path, data_headers(), get_bytes())).status == 404


async def test_the_scheme_of_a_token_is_in_any_case() -> None:
    async with serving() as running, connected(running) as client:
        for scheme in ("bearer", "BEARER"):
            headers = metadata_headers() | {"authorization": f"{scheme} access"}
            assert (await client.request("/", headers, METADATA_BODY)).status == 200
        headers = metadata_headers() | {"authorization": "Bearer"}
        assert (await client.request("/", headers, METADATA_BODY)).status == 401


@pytest.mark.parametrize("target", ["http://kv.test:80/", "HTTP://kv.test:80", "http://kv.test:80/?a=b"])
async def test_a_target_with_its_authority_is_as_good_as_one_without(target: str) -> None:
    async with serving() as running, connected(running) as client:
        answer = await client.request(target, metadata_headers(), METADATA_BODY)
        assert answer.status == 200


async def test_other_methods_are_told_what_is_here() -> None:
    async with serving() as running, connected(running) as client:
        answer = await client.request("/", method="GET")
        assert (answer.status, answer.headers["allow"]) == (405, "post")
        assert b"Deno.openKv" in answer.body
        assert (await client.request("/", method="HEAD")).status == 405
        assert (await client.request("/", metadata_headers(), METADATA_BODY)).status == 200


async def test_a_database_that_is_newer_than_the_view_is_found() -> None:
    async with serving() as running, connected(running) as client:
        running.access.late = Database(9, NEW, "late", DatabaseMode.ENABLED, 65_536)
        assert (await client.request("/late", metadata_headers(), METADATA_BODY)).status == 200


async def test_a_cluster_that_is_just_being_made_is_waited_for() -> None:
    async with serving() as running, connected(running) as client:
        running.access.unavailable = 3
        assert (await client.request("/", metadata_headers(), METADATA_BODY)).status == 200
