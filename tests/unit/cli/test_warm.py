"""A command that is forked (tests/warm.py) does what one does whose interpreter starts for it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Cli, warm_commands


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (("get", '["none"]'), ""),
        (("get", '["none"]', "-o", "json"), ""),
        (("set", '["a"]', "--file", "-"), "no JSON"),
        (("set", '["a"]'), ""),
        (("set", "--help"), ""),
        (("nothing",), ""),
        (("list", "--endpoints", "127.0.0.1:1", "--timeout", "5s"), ""),
    ],
)
async def test_warm_and_cold_are_the_same(cli: Cli, arguments: tuple[str, ...], stdin: str) -> None:
    warm, cold = await cli(*arguments, stdin=stdin), await cli.cold(*arguments, stdin=stdin)
    assert warm == cold


async def test_standard_input_variables_and_the_folder_reach_it(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (await cli("set", '["a"]', "--file", "-", stdin='"' + "x" * 60_000 + '"')).status == 0
    assert (await cli("export", "rows")).status == 0
    assert len((tmp_path / "rows").read_bytes()) > 60_000
    assert (await cli("get", '["a"]', KVNODE_TIMEOUT="soon")).status == 2


async def test_one_that_nobody_reads_from_and_that_reads_nothing_ends(cli: Cli) -> None:
    assert (await cli("--version", stdin="x" * 1_000_000)).out.startswith("kvnode ")


async def test_who_waits_for_one_keeps_nobody_from_looking_or_ending_it(cli: Cli) -> None:
    given, write = os.pipe()
    with open(os.devnull, "wb") as nothing:
        streams = (given, nothing.fileno(), nothing.fileno())
        command = warm_commands().start(("set", '["a"]', "--file", "-"), cli.environment(), streams)
    os.close(given)
    try:
        waiting = asyncio.ensure_future(asyncio.to_thread(command.wait, 30))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        assert command.poll() is None, "it reads what never ends"
        assert time.monotonic() - began < 5
        command.send_signal(signal.SIGKILL)
        assert await waiting == command.poll() == -signal.SIGKILL
    finally:
        os.close(write)
