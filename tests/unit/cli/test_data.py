"""The data commands, as processes against a node in memory."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from pathlib import Path

import pytest

from kvnode.codec.bigint import BigInt
from kvnode.codec.values import encode_v8
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.cli.conftest import Cli
from tests.unit.client.fake_server import FakeServer, free_port


async def test_set_get_delete(cli: Cli) -> None:
    assert (await cli("set", '["a", 1]', '{"x": [1, null]}')).out.startswith("OK 0000")
    assert (await cli("get", '["a", 1]')).out == '{"x": [1, null]}\n'
    shown = (await cli("get", '["a", 1]', "-o", "json")).json
    assert shown["key"] == ["a", 1]
    assert shown["value"] == {"x": [1, None]}
    assert len(shown["versionstamp"]) == 20
    assert shown["expire_at_ms"] is None
    assert '["a", 1]' in (await cli("get", '["a", 1]', "-o", "table")).out
    assert (await cli("delete", '["a", 1]', '["b"]')).status == 0
    missing = await cli("get", '["a", 1]')
    assert (missing.status, missing.out) == (6, "")
    assert "does not exist" in missing.err
    assert (await cli("get", '["a", 1]', "-o", "json")).json["value"] is None


async def test_values_of_other_kinds(cli: Cli, tmp_path: Path) -> None:
    photo, copy = tmp_path / "photo", tmp_path / "copy"
    photo.write_bytes(bytes(range(256)))
    await cli("set", '["photo"]', "--file", str(photo), "--bytes", "--expire-in", "1h")
    assert (await cli("get", '["photo"]', "--bytes")).raw == photo.read_bytes()
    await cli("get", '["photo"]', "--file", str(copy))
    assert copy.read_bytes() == photo.read_bytes()
    assert (await cli("get", '["photo"]', "-o", "json")).json["expire_at_ms"] > 0
    await cli("set", '["n"]', "7", "--u64")
    assert (await cli("get", '["n"]')).out == '{"$u64": "7"}\n'
    await cli("set", '["in"]', "--file", "-", stdin='"from standard input"')
    assert (await cli("get", '["in"]')).out == '"from standard input"\n'


async def test_whatever_a_value_holds_it_is_shown(cli: Cli, tmp_path: Path) -> None:
    """Half of a surrogate pair escaped, a bigint of more digits than Python writes as it is stored."""
    await cli("set", '["odd"]', '"\\ud800é"')
    for output in ((), ("-o", "json"), ("-o", "table"), ("--bytes",)):
        ran = await cli("get", '["odd"]', *output)
        assert (ran.status, '"\\ud800é"' in ran.out) == (0, True), ran.err
    in_ascii = await cli("get", '["odd"]', PYTHONIOENCODING="ascii")
    assert in_ascii.json == "\ud800é"
    huge = base64.b64encode(encode_v8(BigInt(10**5_000))).decode()
    await cli("set", '["huge"]', json.dumps({"$v8": huge}))
    assert (await cli("get", '["huge"]')).json == {"$v8": huge}


async def test_conditions(cli: Cli) -> None:
    first = (await cli("set", '["a"]', "1", "--if-versionstamp", "none", "-o", "json")).json
    assert first["ok"]
    again = await cli("set", '["a"]', "2", "--if-versionstamp", "none", "-o", "json")
    assert (again.status, again.json) == (3, {"ok": False, "versionstamp": None, "failed_checks": [0]})
    assert (
        "check 0 did not hold: the key's versionstamp is another one; nothing"
        in (await cli("delete", '["a"]', "--if-versionstamp", "0" * 20)).err
    )
    assert (await cli("delete", '["a"]', "--if-versionstamp", first["versionstamp"])).status == 0


async def test_list_count_and_delete_by_prefix(cli: Cli) -> None:
    mutations = [{"type": "set", "key": ["n", number], "value": number} for number in range(7)]
    await cli("atomic", stdin=json.dumps({"mutations": mutations}))
    listed = await cli("list", '["n"]', "--limit", "3", "-o", "json")
    assert [json.loads(line)["value"] for line in listed.out.splitlines()] == [0, 1, 2]
    cursor = listed.err.split("--cursor ")[1].strip()
    rest = await cli("list", '["n"]', "--cursor", cursor, "--keys-only", "-o", "json")
    assert [json.loads(line)["key"][1] for line in rest.out.splitlines()] == [3, 4, 5, 6]
    assert "value" not in rest.out
    table = await cli("list", '["n"]', "--start", '["n", 5]', "--reverse")
    assert table.out.index('["n", 6]') < table.out.index('["n", 5]')
    assert table.err == ""
    assert (await cli("count", '["n"]', "--end", '["n", 2]')).out == "2\n"
    assert (await cli("count", "-o", "json")).json == {"count": 7}
    assert (await cli("delete", "--prefix", '["n"]')).out == "OK 7 deleted\n"
    assert (await cli("list")).status == 0


async def test_atomic(cli: Cli, tmp_path: Path) -> None:
    described = {
        "checks": [{"key": ["a"], "versionstamp": None}],
        "mutations": [
            {"type": "set", "key": ["a"], "value": {"$bytes": "AAE="}, "expire_in": 60_000},
            {"type": "set", "key": ["log", {"$commit_versionstamp": True}], "value": "x"},
            {"type": "sum", "key": ["n"], "value": 5},
            {"type": "max", "key": ["m"], "value": {"$u64": "9"}},
            {"type": "min", "key": ["m"], "value": 4},
            {"type": "delete", "key": ["gone"]},
            {"type": "delete_range", "key": ["r", 1], "end": ["r", 2]},
            {"type": "delete_prefix", "key": ["p"]},
        ],
    }
    file = tmp_path / "transaction.json"
    file.write_text(json.dumps(described))
    done = (await cli("atomic", str(file), "-o", "json")).json
    assert done["ok"]
    assert (await cli("get", '["n"]')).out == '{"$u64": "5"}\n'
    assert (await cli("get", '["m"]')).out == '{"$u64": "4"}\n'
    assert done["versionstamp"] in (await cli("list", '["log"]', "-o", "json")).json["key"]
    assert (await cli("atomic", str(file))).status == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "is an object"),
        ('{"mutation": []}', 'has no "mutation"'),
        ('{"mutations": {}}', "list of objects"),
        ('{"mutations": [{"type": "put", "key": ["a"]}]}', "mutation 0: the type is one of set"),
        ('{"mutations": [{"type": "set", "key": ["a"]}]}', '"value" is missing'),
        ('{"mutations": [{"type": "delete"}]}', '"key" is missing'),
        ('{"mutations": [{"type": "delete", "key": ["a"], "ttl": 1}]}', 'mutation 0 has no "ttl"'),
        ('{"mutations": [{"type": "set", "key": ["a"], "value": 1, "expire_in": "1h"}]}', "whole number"),
        ('{"checks": [{"key": ["a"], "versionstamp": "12"}]}', "versionstamp"),
        ('{"enqueues": [{"queue": "a"}]}', 'enqueue 0: "value" is missing'),
        ('{"enqueues": [{"value": 1, "delay_ms": 1}]}', 'enqueue 0 has no "delay_ms"'),
        ('{"enqueues": [{"value": 1, "delay": 1.5}]}', '"delay" takes whole numbers of milliseconds'),
        ('{"enqueues": [{"value": 1, "delay": -1}]}', "0 to 2592000000, not -1"),
        ('{"enqueues": [{"value": 1, "queue": 7}]}', '"queue" is the name of a queue'),
        ('{"enqueues": [{"value": 1, "keys_if_undelivered": "a"}]}', '"keys_if_undelivered" is a list'),
        ('{"enqueues": [{"value": 1, "keys_if_undelivered": ["a"]}]}', "A key is a JSON array"),
        ('{"enqueues": [{"value": 1, "backoff_schedule": 100}]}', '"backoff_schedule" is a list'),
        ('{"enqueues": [{"value": 1, "backoff_schedule": [9e9]}]}', "0 to 3600000, not 9000000000.0"),
        (b"\xff", "cannot read standard input"),
    ],
)
def test_a_wrong_transaction_is_named(text: str | bytes, said: str) -> None:
    from typer.testing import CliRunner

    from kvnode.cli.main import app

    ran = CliRunner().invoke(app, ["atomic"], input=text)
    assert ran.exit_code == 2
    assert said in ran.stderr


async def test_watch_until_interrupted(cli: Cli, server: FakeServer) -> None:
    process = await cli.start("watch", '["a"]', "-o", "json")
    assert process.stdout is not None
    first = json.loads(await process.stdout.readline())
    assert first["entries"][0]["versionstamp"] is None
    await cli("set", '["a"]', "1")
    assert json.loads(await process.stdout.readline())["entries"][0]["value"] == 1
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err


async def test_a_watch_ends_when_no_node_is_as_fresh_as_it_asks(cli: Cli, server: FakeServer) -> None:
    server.faults.age_ms = 2_500
    keys, prefix = await asyncio.gather(
        cli("watch", '["a"]', "-c", "eventual", "--max-staleness", "2s", "-o", "json"),
        cli("watch", "--prefix", '["p"]', "-c", "eventual", "--max-staleness", "2s"),
    )
    assert keys.status == prefix.status == 4
    assert json.loads(keys.err)["error"]["code"] == "TOO_STALE" and "2500 ms" in prefix.err


@pytest.mark.parametrize("consistency", ["eventual", "strong"])
@pytest.mark.parametrize("asked", [["watch", '["a"]'], ["watch", "--prefix", '["p"]']])
async def test_an_eventual_watch_says_how_old_a_state_may_be(
    cli: Cli, server: FakeServer, asked: list[str], consistency: str
) -> None:
    server.faults.age_ms = 40
    process = await cli.start(*asked, "-c", consistency, "-o", "json")
    assert process.stdout is not None
    shown = json.loads(await process.stdout.readline())
    assert shown.get("age_ms") == (40 if consistency == "eventual" else None)
    process.send_signal(signal.SIGTERM)
    await process.communicate()


async def test_watch_a_prefix(cli: Cli) -> None:
    process = await cli.start("watch", "--prefix", '["p"]')
    assert process.stdout is not None
    assert (await process.stdout.readline()).startswith(b"# at ")
    await cli("set", '["p", 1]', '"x"')
    assert (await process.stdout.readline()).startswith(b'["p", 1]  "x"')
    process.send_signal(signal.SIGTERM)
    await process.communicate()


async def test_nobody_there(cli: Cli) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    human, machine, watching = await asyncio.gather(
        cli("get", '["a"]', "-e", endpoint),
        cli("set", '["a"]', "1", "-e", endpoint, "-o", "json"),
        cli("watch", '["a"]', "-e", endpoint),
    )
    assert human.status == machine.status == watching.status == 4
    assert human.err.count("\n") == 1
    assert all(part in human.err for part in (endpoint, "phase dial", "check that the node runs"))
    shown = json.loads(machine.err)["error"]
    assert (shown["phase"], shown["endpoint"], shown["not_applied"]) == ("dial", endpoint, True)


async def test_a_hanging_node(cli: Cli, server: FakeServer) -> None:
    server.faults.hang = True
    read, write = await asyncio.gather(
        cli("get", '["a"]', "--timeout", "300ms"), cli("set", '["a"]', "1", "--timeout", "300ms")
    )
    assert read.status == write.status == 4
    assert "within 300 ms" in write.err


async def test_an_unknown_outcome_has_a_status_of_its_own(cli: Cli, server: FakeServer) -> None:
    lost = kv_pb2.Error(code="OUTCOME_UNKNOWN", message="lost", phase="commit", not_applied=False)
    server.faults.errors = [lost] * 100
    ran = await cli("set", '["a"]', "1", "--timeout", "400ms")
    assert ran.status == 5
    assert "may or may not have been applied" in ran.err


async def test_a_closed_pipe_is_no_error(cli: Cli) -> None:
    await cli("set", '["a"]', "1")
    process = await cli.start("list", "-o", "json")
    process.stdout._transport.close()  # type: ignore[union-attr]
    assert process.stderr is not None
    assert b"Traceback" not in await process.stderr.read()
    assert await process.wait() == 0
