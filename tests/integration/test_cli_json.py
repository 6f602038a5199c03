"""Every command against three real nodes with -o json: what it prints is JSON, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.launcher import ROOT, LocalCluster
from tests.warm import WarmCommands

KEY = '["k"]'
COMMANDS: list[tuple[str, ...]] = [
    ("set", KEY, '{"n": 1}'),
    ("get", KEY),
    ("list",),
    ("list", "--keys-only"),
    ("count",),
    ("ttl", "set", KEY, "1h"),
    ("ttl", "get", KEY),
    ("ttl", "clear", KEY),
    ("set", '["p", 1]', "1"),
    ("delete", '["p", 1]'),
    ("delete", "--prefix", '["p"]'),
    ("database", "create", "orders"),
    ("database", "list"),
    ("database", "show", "orders"),
    ("database", "rename", "orders", "bills"),
    ("database", "set", "bills", "--mode", "read-only"),
    ("database", "delete", "bills", "--yes"),
    ("token", "create", "--label", "t"),
    ("token", "list"),
    ("status",),
    ("status", "--local"),
    ("member", "list"),
    ("leader", "transfer"),
    ("queue", "send", '"hello"'),
    ("queue", "list"),
    ("queue", "peek"),
    ("queue", "stats"),
    ("queue", "dead-letters"),
    ("queue", "purge"),
    ("cron", "create", "nightly", "30 3 * * *", "1"),
    ("cron", "list"),
    ("cron", "show", "nightly"),
    ("cron", "delete", "nightly"),
    ("config", "show"),
]
REFUSED: list[tuple[tuple[str, ...], int]] = [
    (("get", '["none"]'), 6),
    (("set", '["a"]', "1", "--if-versionstamp", "0" * 19 + "1"), 3),
    (("set", "[]", "1"), 2),
    (("member", "remove", "nobody"), 2),
    (("database", "show", "none"), 6),
    (("token", "revoke", "aaaaaaaa"), 6),
    (("queue", "stats", "none"), 6),
    (("queue", "send", "no JSON"), 2),
    (("cron", "show", "none"), 6),
]


def objects(text: bytes) -> list[Any]:
    """One JSON object a line. Raises ValueError."""
    return [json.loads(line) for line in text.splitlines()]


async def test_every_command_prints_json(cluster: LocalCluster, tmp_path: Path) -> None:
    wrong: list[object] = []
    atomic = json.dumps({"mutations": [{"type": "sum", "key": ["n"], "value": 1}]})
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "KVNODE_ENDPOINTS": ",".join(cluster.addresses)}
    rows = tmp_path / "rows"
    commands = [(command, "") for command in COMMANDS]
    commands += [(("atomic",), atomic), (("export", str(rows)), ""), (("import", str(rows)), "")]
    with WarmCommands(environment) as warm:

        async def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[bytes]:
            return await asyncio.to_thread(warm.run, [*arguments, "-o", "json"], environment, stdin.encode())

        for command, stdin in commands:
            ran = await run(*command, stdin=stdin)
            try:
                assert ran.returncode == 0 and (objects(ran.stdout) or command == ("queue", "dead-letters"))
            except (AssertionError, ValueError):
                wrong.append((command, ran))
        for command, status in REFUSED:
            ran = await run(*command)
            try:
                assert ran.returncode == status and objects(ran.stdout) + objects(ran.stderr)
            except (AssertionError, ValueError):
                wrong.append((command, ran))
    assert not wrong, wrong


# A suite that a shell runs in the background hands SIGINT down as ignored. Not by preexec_fn: with it Python forks, and
# now and then a child in which gRPC's threads start anew dies before it has become the command.
HEED_INTERRUPTS = ("/usr/bin/env", "--default-signal=INT")


async def test_status_again_and_again_through_a_loss(cluster: LocalCluster) -> None:
    address = cluster.addresses[0]
    command = [
        *HEED_INTERRUPTS,
        sys.executable,
        "-m",
        "kvnode",
        "status",
        "--watch",
        "--interval",
        "200ms",
        "--timeout",
        "1s",
        "-o",
        "json",
    ]
    process = await asyncio.create_subprocess_exec(
        *command,
        "--endpoints",
        address,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert process.stdout is not None

    async def seen(wanted: Callable[[Any], bool]) -> Any:
        async with asyncio.timeout(20):
            while True:
                shown = json.loads(await process.stdout.readline())  # type: ignore[union-attr]
                if wanted(shown):
                    return shown

    try:
        assert (await seen(lambda shown: shown.get("healthy", False)))["nodes"]
        cluster.kill("a")
        # A look that was under way names the others and misses this one: unhealthy, and no error yet.
        lost = await seen(lambda shown: "error" in shown)
        assert lost["error"]["endpoint"] == address, lost
        await asyncio.to_thread(cluster.restart, "a")
        await seen(lambda shown: shown.get("healthy", False))
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode == 130
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
