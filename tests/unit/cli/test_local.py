"""What needs no node: help, configuration, bad input, the command table."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from kvnode.base.config import KEYS, NodeConfig
from kvnode.base.errors import ConfigError, InvalidRequest, KvError, OutcomeUnknown, StorageFailed, Unavailable
from kvnode.cli.duration import duration_ms, show_ms
from kvnode.cli.exits import MEANINGS, Exit, exit_of
from kvnode.cli.main import COMMANDS, ELSEWHERE, app

runner = CliRunner(env={"COLUMNS": "200"})


def config_file(folder: Path, stem: str, **values: object) -> str:
    file = folder / f"{stem}.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"name": stem, "dc": f"dc-{stem}", **values}.items()]
    file.write_text("\n".join(lines))
    return str(file)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name: str) -> None:
    ran = runner.invoke(app, [name, "--help"])
    assert ran.exit_code == 0
    entry = COMMANDS[name]
    is_group = isinstance(getattr(importlib.import_module(entry.module), entry.attribute), typer.Typer)
    if not is_group and name != "demo":
        assert "Example" in ran.output


def test_help_lists_every_command() -> None:
    ran = runner.invoke(app, ["--help"])
    assert all(name in ran.output for name in COMMANDS)


def test_a_mistyped_command_gets_a_suggestion() -> None:
    ran = runner.invoke(app, ["stats"])
    assert ran.exit_code == 2
    assert "status" in ran.output


@pytest.mark.parametrize(("name", "here"), [("put", "set"), ("txn", "atomic"), ("version", "--version")])
def test_what_other_stores_call_a_command_is_known(name: str, here: str) -> None:
    ran = runner.invoke(app, [name, "x"])
    assert ran.exit_code == 2 and f"Did you mean 'kvnode {here}'?" in ran.output


def test_names_of_other_stores_lead_to_commands_and_hide_none() -> None:
    assert not ELSEWHERE.keys() & COMMANDS.keys()
    assert all(to.startswith("--") or to.split()[0] in COMMANDS for to in ELSEWHERE.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["get", "users"], "is not JSON"),
        (["get", "[users]"], 'at character 2). A key is an array: ["users", 1]; a shell needs it in single quotes'),
        (["atomic", "/does/not/exist"], "cannot read /does/not/exist: No such file or directory [BAD_TRANSACTION"),
        (["changelog", "show", "/does/not/exist"], "cannot read /does/not/exist: No such file or directory [FORK_"),
        (["get", '{"a": 1}'], "JSON array"),
        (["set", '["a"]', "{"], "bytes with --bytes"),
        (["set", '["a"]', "[" * 50_000 + "]" * 50_000], "nested too deep"),
        (["queue", "send", "{"], "bytes with --bytes"),
        (["queue", "send"], "give the value as an argument"),
        (["queue", "send", "1", "--backoff-schedule", ""], "is no duration"),
        (["queue", "send", "1", "--backoff-schedule", "2h"], "more than an hour"),
        (["queue", "send", "1", "--keys-if-undelivered", "a"], "A key is an array"),
        (["queue", "send", "1", "--queue", ""], "a queue's name is not empty"),
        (["queue", "configure", "mail"], "Missing option '--max-messages'"),
        (["queue", "requeue", "--id", "00"], "24 hexadecimal digits"),
        (["cron", "create", "a", "* * * * *", "--queue", ""], "a queue's name is not empty"),
        (["cron", "create", "a", "* * * * *", "{"], "$bytes"),
        (["set", '["a"]', "x", "--u64"], "takes a whole number"),
        (["set", '["a"]', "--u64", "--", "-1"], "0 to 2^64-1"),
        (["set", '["a"]'], "one of the two"),
        (["set", '["a"]', "1", "--bytes", "--u64"], "exclude each other"),
        (["set", '["a"]', "--file", "/does/not/exist"], "cannot read"),
        (["set", '["a"]', "1", "--if-versionstamp", "12"], "20 hexadecimal digits"),
        (["delete", "--prefix", '["a"]', "--if-versionstamp", "none"], "exclude each other"),
        (["list", "--cursor", "???"], "is no cursor"),
        (["watch", "--prefix", '["a"]', '["b"]'], "takes one KEY"),
        (["get", '["a"]', "-e", "http://x"], "write host:port"),
        (["get", '["a"]', "--timeout", "5"], "is no duration"),
        (["get", '["a"]', "--timeout", "0ms"], "longer than"),
        (["serve", "--listen", "4510"], "'listen' must be host:port"),
        (["serve", "--config", "/does/not/exist"], "cannot read the configuration file"),
    ],
)
def test_bad_input_is_usage(arguments: list[str], said: str) -> None:
    ran = runner.invoke(app, arguments)
    assert ran.exit_code == 2
    assert said in ran.output.replace("\n", " ")


def test_durations() -> None:
    assert [duration_ms(text) for text in ("500ms", "10s", "1.5m", "2h", "30d")] == [
        500,
        10_000,
        90_000,
        7_200_000,
        2_592_000_000,
    ]
    for wrong in ("", "5", "s", "-1s", "1w"):
        with pytest.raises(ValueError, match="no duration"):
            duration_ms(wrong)
    assert [show_ms(ms) for ms in (5, 1_500, 120_000, 5_400_000)] == ["5 ms", "1.5 s", "2 min", "1.5 h"]


def test_exit_statuses() -> None:
    assert exit_of(InvalidRequest("X", "")) is Exit.USAGE
    assert exit_of(InvalidRequest("CRON_NOT_FOUND", "")) is Exit.NOT_FOUND  # what a transaction did not find
    assert exit_of(ConfigError("")) is Exit.USAGE
    assert exit_of(Unavailable("")) is Exit.UNAVAILABLE
    assert exit_of(OutcomeUnknown("")) is Exit.OUTCOME_UNKNOWN
    assert exit_of(StorageFailed("")) is Exit.FAILED
    assert exit_of(KvError("X", "", phase="admin")) is Exit.FAILED
    assert set(MEANINGS) == set(Exit)


def test_config_show_names_the_origin(tmp_path: Path) -> None:
    file = config_file(tmp_path, "x", region="file-region")
    arguments = ["config", "show", "--config", file, "--tick-ms", "20", "--no-bootstrap", "-o", "json"]
    ran = runner.invoke(app, arguments, env={"KVNODE_DC": "environment-dc"})
    shown = json.loads(ran.stdout)
    assert set(shown) == set(KEYS)
    assert shown["tick_ms"] == {"value": 20, "origin": "flag"}
    assert shown["bootstrap"] == {"value": False, "origin": "flag"}
    assert shown["dc"] == {"value": "environment-dc", "origin": "environment"}
    assert shown["region"] == {"value": "file-region", "origin": f"file {file}"}
    assert shown["log_level"]["origin"] == "default"
    table = runner.invoke(app, ["config", "show"], env={"COLUMNS": "200"})
    assert all(name in table.output for name in KEYS)


def test_config_check_judges_the_topology(tmp_path: Path) -> None:
    files = [config_file(tmp_path, name) for name in "abc"]
    good = runner.invoke(app, ["config", "check", *files])
    assert good.exit_code == 0
    assert "advice: 3 data centers" in good.output
    bad = runner.invoke(app, ["config", "check", *files[:2], "-o", "json"])
    assert bad.exit_code == 2
    assert json.loads(bad.stdout)["ok"] is False
    allowed = config_file(tmp_path, "b", allow_unsafe_topology=True)
    assert runner.invoke(app, ["config", "check", files[0], allowed]).exit_code == 0
    places = ["--place", "us-east/dc-b", "--place", "us-east/dc-c"]
    placed = runner.invoke(app, ["config", "check", files[0], *places, "--place", "eu/dc-d/learner"])
    assert (placed.exit_code, "4 data centers" in placed.output) == (0, True)


def test_config_check_says_what_it_cannot_know(tmp_path: Path) -> None:
    file = config_file(tmp_path, "a", listen="h:1", peers=["h:1", "h:2", "h:3"], bootstrap=True)
    ran = runner.invoke(app, ["config", "check", file])
    assert ran.exit_code == 0
    assert "place of 1 is known" in ran.output


def test_config_check_says_what_automatic_promotion_costs(tmp_path: Path) -> None:
    files = [config_file(tmp_path, name, automatic_promotion=True, primary_lease_ms=8_000) for name in "abc"]
    ran = runner.invoke(app, ["config", "check", *files])
    assert ran.exit_code == 0
    assert "cut off from both other regions stops answering within primary_lease_ms (8000 ms)" in ran.output


@pytest.mark.parametrize(
    ("values", "arguments", "said"),
    [
        ({"nmae": "x"}, [], "did you mean 'name'"),
        ({}, ["--place", "x"], "is no place"),
        ({"min_commit_dcs": 1}, [], "differ in 'min_commit_dcs'"),
        ({"name": "a"}, [], "two files have the name 'a'"),
        ({"automatic_promotion": True}, [], "differ in 'automatic_promotion'"),
    ],
)
def test_config_check_refuses(tmp_path: Path, values: dict[str, object], arguments: list[str], said: str) -> None:
    files = [config_file(tmp_path, "a"), config_file(tmp_path, "b", **values)]
    ran = runner.invoke(app, ["config", "check", *files, *arguments])
    assert ran.exit_code == 2
    assert said in ran.output


def test_serve_hands_the_configuration_over(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    seen: list[NodeConfig] = []

    def run(config: NodeConfig) -> int:
        seen.append(config)
        return 5

    module = types.ModuleType("kvnode.api.serve")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kvnode.api.serve", module)
    ran = runner.invoke(app, ["serve", "--name", "x", "--peers", "a:1,b:2", "--bootstrap", "--min-commit-dcs", "1"])
    assert ran.exit_code == 5
    (config,) = seen
    assert (config.name, config.peers, config.bootstrap, config.min_commit_dcs) == ("x", ("a:1", "b:2"), True, 1)


def test_starting_stays_quick() -> None:
    """Heavy modules are imported by the commands that need them, not by the command line itself."""
    code = (
        "import sys, kvnode.cli.main as m, kvnode.cli.data, kvnode.cli.status, kvnode.cli.member, kvnode.cli.serve;"
        "print([n for n in ('grpc', 'google.protobuf', 'v8serialize', 'uvloop', 'sqlite3') if n in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("kvnode mem", ["member"]),
        ("kvnode member re", ["remove", "replace"]),
        ("kvnode get --cons", ["--consistency"]),
        ("kvnode get --consistency ", ["strong", "eventual"]),
    ],
)
def test_shell_completion(typed: str, offered: list[str]) -> None:
    # Its shell is found among the parents, of which none need be one where the suite was started.
    command = ["bash", "-c", '"$0" -m kvnode --show-completion; exit $?', sys.executable]
    script = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "complete -o default -F _kvnode_completion kvnode" in script.stdout
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_KVNODE_COMPLETE": "complete_bash"}
    ran = subprocess.run(
        [sys.executable, "-m", "kvnode"], env={**os.environ, **words}, capture_output=True, text=True, check=False
    )
    assert ran.stdout.split() == offered, ran.stdout + ran.stderr
