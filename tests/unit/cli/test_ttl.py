"""ttl, as processes against a node in memory."""

from __future__ import annotations

import json

from tests.unit.cli.conftest import Cli


async def test_see_set_and_clear(cli: Cli) -> None:
    await cli("set", '["a"]', '{"x": 1}')
    assert (await cli("ttl", "get", '["a"]')).out == "never\n"
    changed = await cli("ttl", "set", '["a"]', "30m")
    assert changed.out.startswith("OK 0")
    assert " ms, until 20" in (await cli("ttl", "get", '["a"]')).out
    shown = (await cli("ttl", "get", '["a"]', "-o", "json")).json
    assert shown["key"] == ["a"]
    assert shown["versionstamp"] == changed.out.split()[1]
    assert 1_700_000 < shown["expires_in_ms"] <= 1_800_000
    assert (await cli("get", '["a"]', "-o", "json")).json["expire_at_ms"] == shown["expire_at_ms"]
    assert (await cli("ttl", "clear", '["a"]', "-o", "json")).json["ok"]
    assert (await cli("ttl", "get", '["a"]', "-o", "json")).json["expires_in_ms"] is None
    assert (await cli("get", '["a"]')).out == '{"x": 1}\n'


async def test_what_does_not_exist(cli: Cli) -> None:
    for arguments in (("get", '["a"]'), ("set", '["a"]', "1s"), ("clear", '["a"]')):
        ran = await cli("ttl", *arguments)
        assert (ran.status, ran.out) == (6, "")
        assert "does not exist" in ran.err
        assert (await cli("ttl", *arguments, "-o", "json")).status == 6
    assert (await cli("ttl", "set", '["a"]', "soon")).status == 2
    assert (await cli("ttl", "set", "a", "1s")).status == 2


async def test_in_a_transaction(cli: Cli) -> None:
    await cli("set", '["a"]', "1")
    described = {"mutations": [{"type": "set_expiry", "key": ["a"], "expire_in": 60_000}]}
    assert (await cli("atomic", stdin=json.dumps(described))).status == 0
    assert (await cli("ttl", "get", '["a"]', "-o", "json")).json["expires_in_ms"] > 0
    described = {"mutations": [{"type": "set_expiry", "key": ["a"], "expire_in": None}]}
    assert (await cli("atomic", stdin=json.dumps(described))).status == 0
    assert (await cli("ttl", "get", '["a"]')).out == "never\n"
    described = {"mutations": [{"type": "set_expiry", "key": ["a"], "expire_in": "soon"}]}
    refused = await cli("atomic", stdin=json.dumps(described))
    assert refused.status == 2 and "whole number" in refused.err
