"""export and import, as processes against a node in memory."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import shutil
import signal
import sys
from pathlib import Path

import pytest

from kvnode.client import open_kv
from kvnode.codec.keys import encode_key
from tests.unit.cli.conftest import Cli
from tests.unit.client.fake_server import FakeServer

FIXTURE = Path(__file__).parents[1] / "client" / "transfer" / "fixtures" / "deno_kv.sqlite"
BAD_LINE = '{"key": ["n"]}'


async def fill(server: FakeServer, count: int) -> None:
    async with open_kv(server.address) as kv:
        for begin in range(0, count, 500):
            operation = kv.atomic()
            for number in range(begin, min(begin + 500, count)):
                operation.set(("n", number), {"number": number})
            await operation.commit()


def stored(server: FakeServer) -> dict[bytes, tuple[bytes, int, int]]:
    return {key: (row.value, row.encoding, row.expire_at_ms) for key, row in server.store.rows.items()}


async def test_there_and_back(cli: Cli, server: FakeServer, tmp_path: Path) -> None:
    await fill(server, 2_500)
    await cli("set", '["u"]', "7", "--u64")
    await cli("set", '["b"]', "bytes", "--bytes", "--expire-in", "1h")
    before = stored(server)
    file = tmp_path / "all.ndjson"
    exported = await cli("export", str(file), "-o", "json")
    assert exported.json["rows"] == 2_502 and exported.json["rows_after_start"] == 0
    assert exported.json["start_versionstamp"]
    assert [path.name for path in tmp_path.iterdir()] == ["all.ndjson"]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["key"] == ["b"] and lines[0]["encoding"] == "bytes" and lines[0]["expire_at_ms"]
    assert lines[1] == {
        "key": ["n", 0],
        "value": {"number": 0},
        "encoding": "v8",
        "versionstamp": lines[1]["versionstamp"],
        "expire_at_ms": None,
    }
    server.store.rows.clear()
    imported = await cli("import", str(file))
    assert imported.out == "OK 2502 rows imported\n"
    assert stored(server) == before
    again = await cli("import", "--if-absent", str(file), "-o", "json")
    assert again.json == {"written": 0, "existing": 2_502, "expired": 0}
    assert [path.name for path in tmp_path.iterdir()] == ["all.ndjson"]


async def test_through_a_pipe(cli: Cli, server: FakeServer) -> None:
    await fill(server, 20)
    await cli("set", '["other"]', "1")
    exported = await cli("export", "--prefix", '["n"]', "-")
    assert "20 rows exported" in exported.err
    assert [json.loads(line)["key"] for line in exported.out.splitlines()] == [["n", number] for number in range(20)]
    server.store.rows.clear()
    imported = await cli("import", "-", stdin=exported.out)
    assert imported.out == "OK 20 rows imported\n"
    assert len(server.store.rows) == 20


async def test_a_file_is_not_overwritten_by_mistake(cli: Cli, server: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "all.ndjson"
    file.write_text("precious")
    refused = await cli("export", str(file))
    assert refused.status == 2 and "exists" in refused.err and file.read_text() == "precious"
    assert (await cli("export", "--force", str(file))).status == 0
    assert file.read_text() == ""
    assert (await cli("export", str(tmp_path / "no" / "folder"))).status == 2
    assert (await cli("export", "--resume", "-")).status == 2
    nothing = await cli("export", "--resume", str(file))
    assert nothing.status == 2 and "Leave --resume out" in nothing.err


async def test_an_export_goes_on_behind_its_last_whole_line(cli: Cli, server: FakeServer, tmp_path: Path) -> None:
    await fill(server, 1_500)
    whole, file = tmp_path / "whole", tmp_path / "broken"
    await cli("export", str(whole))
    data = whole.read_bytes()
    file.write_bytes(data[: len(data) // 2 + 7])
    stamp = json.loads(data.splitlines()[-1])["versionstamp"]
    (tmp_path / "broken.export-progress").write_text(
        json.dumps({"start_versionstamp": stamp, "prefix": "[]", "database": ""})
    )
    other = await cli("export", "--resume", "--prefix", '["n"]', str(file))
    assert other.status == 2 and "was begun with --prefix" in other.err
    await cli("set", '["n", 1499]', "2")
    done = await cli("export", "--resume", str(file), "-o", "json")
    assert done.json["rows"] == 1_500 and done.json["rows_after_start"] == 1
    lines = file.read_bytes().splitlines()
    assert lines[:-1] == data.splitlines()[:-1]
    assert json.loads(lines[-1])["after_start"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "whole"]


async def test_an_import_names_the_line_and_goes_on(cli: Cli, server: FakeServer, tmp_path: Path) -> None:
    lines = [json.dumps({"key": ["n", number], "value": number}) for number in range(1_300)]
    file = tmp_path / "rows.ndjson"
    file.write_text("\n".join([*lines[:1_200], BAD_LINE, *lines[1_200:], ""]))
    broken = await cli("import", str(file))
    assert broken.status == 2
    assert 'line 1201: "value" is missing' in broken.err
    assert "1000 rows imported before it broke off; --resume goes on there" in broken.err
    assert len(server.store.rows) >= 1_000
    other = await cli("import", "--resume", "--if-absent", str(file))
    assert other.status == 2 and "it was begun with" in other.err
    text = file.read_text()
    file.write_text(text.replace(lines[7], '{"key": ["n", 7], "value": 77}'))
    assert (await cli("import", "--resume", str(file))).status == 2  # what was read is another one
    file.write_text(text.replace(BAD_LINE, '{"key": ["x"], "value": 1, "encoding": "v8"}'))
    server.store.applied_count = 0
    done = await cli("import", "--resume", str(file), "-o", "json")
    assert done.json["written"] == 1_301
    assert server.store.applied_count == 1
    assert (await cli("import", "-", "--resume")).status == 2


async def test_a_torn_file_is_completed_and_gone_on_with(cli: Cli, server: FakeServer, tmp_path: Path) -> None:
    lines = [json.dumps({"key": ["n", number], "value": number}) + "\n" for number in range(600)]
    file = tmp_path / "rows.ndjson"
    file.write_text("".join(lines)[:-9])
    torn = await cli("import", str(file))
    assert torn.status == 2 and "line 600: " in torn.err and "it may have been cut off" in torn.err
    file.write_text("".join(lines))
    assert (await cli("import", "--resume", str(file), "-o", "json")).json["written"] == 600
    assert len(server.store.rows) == 600


async def test_a_killed_import_goes_on(cli: Cli, server: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "rows.ndjson"
    with file.open("w") as out:
        for number in range(30_000):
            out.write(json.dumps({"key": ["n", number], "value": "x" * 200}) + "\n")
    process = await cli.start("import", str(file))
    while len(server.store.rows) < 8_000:
        await asyncio.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130 and b"Traceback" not in err
    assert b"--resume goes on there" in err
    noted = json.loads((tmp_path / "rows.ndjson.import-progress").read_text())
    assert 0 < noted["count"][0] < 30_000
    done = await cli("import", "--resume", str(file), "-o", "json")
    assert done.json == {"written": 30_000, "existing": 0, "expired": 0}
    assert len(server.store.rows) == 30_000
    assert not (tmp_path / "rows.ndjson.import-progress").exists()


async def test_a_deno_kv_file(cli: Cli, server: FakeServer, tmp_path: Path) -> None:
    file = Path(shutil.copy(FIXTURE, tmp_path / "kv.sqlite"))
    done = await cli("import", "--sqlite", str(file))
    assert done.out == ("OK 71 rows imported, 1 expired ones left out, 1 queued messages not imported\n")
    assert (await cli("get", '["values", "nested"]')).out == '{"a": {"b": [{"c": "d"}]}, "é": "ü 🦕"}\n'
    assert server.store.rows[encode_key(("values", "regexp"))].value == b'\xff\x10R"\x03a+b\x03'
    assert (await cli("get", '["values", "cyclic"]')).out.startswith('{"$v8": ')
    copied = tmp_path / "copy.ndjson"
    before = stored(server)
    assert (await cli("export", str(copied))).status == 0
    server.store.rows.clear()
    await cli("import", str(copied))
    assert stored(server) == before
    assert (await cli("import", "--sqlite", str(file), "-o", "json")).json["queued"] == 1


async def test_a_deno_kv_file_without_its_flag_is_recognised(cli: Cli) -> None:
    refused = await cli("import", str(FIXTURE))
    assert refused.status == 2 and "--sqlite" in refused.err


async def test_an_export_that_breaks_off_says_how_to_go_on(cli: Cli, server: FakeServer, tmp_path: Path) -> None:
    await fill(server, 2_500)
    file = tmp_path / "all.ndjson"
    with_full_disk = f"ulimit -f 16; exec {sys.executable} -m kvnode export {file}"  # of 512 bytes, or of 1,024
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", with_full_disk, stderr=asyncio.subprocess.PIPE, env=cli.environment()
    )
    _, err = await process.communicate()
    assert process.returncode == 2 and b"cannot write" in err and b"Traceback" not in err
    assert b"0 rows exported before it broke off; --resume goes on there" in err
    assert (await cli("export", "--resume", str(file), "-o", "json")).json["rows"] == 2_500


async def test_a_full_disk_is_named_whatever_the_file_still_holds_back(cli: Cli, server: FakeServer) -> None:
    """What could not be written stays in the file's buffer, and fails once more when the file is closed."""
    await fill(server, 3)
    done = await cli("export", "--force", "/dev/full")
    assert done.status == 2 and "cannot write /dev/full: No space left on device" in done.err


@pytest.mark.parametrize("content", ["", "not a database", '{"key": ["a"], "value": 1}\n'])
async def test_a_file_that_is_no_database(cli: Cli, tmp_path: Path, content: str) -> None:
    (tmp_path / "x").write_text(content)
    refused = await cli("import", "--sqlite", str(tmp_path / "x"))
    assert refused.status == 2 and "is not the database of a Deno KV" in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (await cli("import", str(tmp_path / "missing"))).status == 2
    assert (await cli("import", "--sqlite", "-")).status == 2


async def test_a_terminal_sees_a_bar(cli: Cli, server: FakeServer, tmp_path: Path) -> None:
    await fill(server, 50)
    master, terminal = pty.openpty()
    for command in (["export", str(tmp_path / "x")], ["import", str(tmp_path / "x")], ["delete", "--prefix", "[]"]):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "kvnode",
            *command,
            stderr=terminal,
            stdout=asyncio.subprocess.DEVNULL,
            env={**cli.environment(), "TERM": "xterm"},
        )
        assert await process.wait() == 0
        shown = os.read(master, 65_536)
        assert command[0].rstrip("e").removesuffix("t").encode() in shown
    os.close(terminal)
    os.close(master)
