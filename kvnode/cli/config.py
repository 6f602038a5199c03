"""config show, config check."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kvnode.base.config import KEYS, PROMOTION_PRICE, NodeConfig
from kvnode.base.errors import ConfigError, KvError
from kvnode.base.topology import Problem, topology_problems
from kvnode.cli.config_flags import ConfigFileOption, load, with_config_flags
from kvnode.cli.exits import Exit
from kvnode.cli.options import Output, OutputOption
from kvnode.cli.run import fail
from kvnode.cli.show import compact, print_json, print_table

config_app = typer.Typer(no_args_is_help=True, help="A node's configuration: show what is in force, check files.")


def show(config: ConfigFileOption = None, output: OutputOption = None, **flags: Any) -> None:
    """Print every key with its value and where that came from: flag, environment, file or default.

    Examples:

      kvnode config show

      kvnode config show --config /etc/kvnode.toml -o json
    """
    try:
        loaded = load(config, flags)
    except KvError as error:
        fail(error, output)
    rows = [(name, _shown(loaded.config, name), loaded.origins[name], key.help) for name, key in KEYS.items()]
    for notice in loaded.notices:
        print(f"note: {notice}", file=sys.stderr)
    if output is Output.JSON:
        print_json({name: {"value": value, "origin": origin} for name, value, origin, _ in rows})
    else:
        print_table(("key", "value", "origin", "meaning"), [(n, compact(v), o, h) for n, v, o, h in rows])


config_app.command("show")(with_config_flags(show))


@config_app.command("check")
def check(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="TOML files; several are taken as the voters of one cluster."),
    ],
    place: Annotated[
        list[str] | None,
        typer.Option(
            "--place",
            metavar="REGION/DC[/learner]",
            help="Where a further member stands, for one that has no file here. May be repeated.",
        ),
    ] = None,
    output: OutputOption = None,
) -> None:
    """Check configuration files, and whether the topology that they describe keeps its promises.

    Refused, with exit status 2, is a topology in which the loss of one data center leaves no majority of voters, or
    fewer data centers than a commit needs, unless a file says allow_unsafe_topology = true. Environment variables are
    left aside: only the files are judged.

    Examples:

      kvnode config check a.toml b.toml c.toml

      kvnode config check a.toml --place us-east/dc-b --place us-east/dc-c
    """
    try:
        configs = [load_file(file) for file in files]
        members = [(config.dc, config.region, True) for config in configs] + [_place(text) for text in place or []]
        problems = _problems(configs, members)
    except KvError as error:
        fail(error, output)
    allowed = any(config.allow_unsafe_topology for config in configs)
    refused = any(problem.severity == "error" for problem in problems) and not allowed
    _print_verdict(problems, refused, output)
    if refused:
        raise typer.Exit(Exit.USAGE)


def load_file(file: Path) -> NodeConfig:
    """The configuration of one file alone. Raises ConfigError."""
    from kvnode.base.config import load_config

    return load_config({}, {}, file).config


def _problems(configs: list[NodeConfig], members: list[tuple[str, str, bool]]) -> list[Problem]:
    """What is wrong with the topology, once all of it is known."""
    for name in ("name", "data_dir", "listen"):
        values = [getattr(config, name) for config in configs]
        twice = next((value for value in values if values.count(value) > 1), None)
        if name == "name" and twice is not None:
            raise ConfigError(f"two files have the name '{twice}': it is unique in the cluster")
    if len({config.min_commit_dcs for config in configs}) > 1:
        raise ConfigError("the files differ in 'min_commit_dcs': it is one number for the whole cluster")
    promotion = _promotion(configs)
    known_count = len(members)
    expected_count = max(len({*config.peers, config.advertise or config.listen}) for config in configs)
    if known_count < expected_count:
        text = (
            f"{expected_count} voters are named as peers and the place of {known_count} is known: the topology cannot"
            " be judged; give the other files, or --place for each"
        )
        return [Problem("advice", text), *promotion]
    return [*topology_problems(members, configs[0].min_commit_dcs), *promotion]


def _promotion(configs: list[NodeConfig]) -> list[Problem]:
    """What automatic promotion costs, if it is on. Raises ConfigError: the files differ."""
    if len({(config.automatic_promotion, config.primary_lease_ms) for config in configs}) > 1:
        raise ConfigError(
            "the files differ in 'automatic_promotion' or 'primary_lease_ms': promotion is in force once all nodes "
            "say the same"
        )
    if not configs[0].automatic_promotion:
        return []
    return [Problem("advice", PROMOTION_PRICE.format(lease_ms=configs[0].primary_lease_ms))]


def _place(text: str) -> tuple[str, str, bool]:
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(parts) or (len(parts) == 3 and parts[2] != "learner"):
        raise ConfigError(f"'{text}' is no place: write REGION/DC, or REGION/DC/learner")
    return parts[1], parts[0], len(parts) == 2


def _print_verdict(problems: list[Problem], refused: bool, output: Output | None) -> None:
    if output is Output.JSON:
        print_json({"ok": not refused, "problems": [problem._asdict() for problem in problems]})
        return
    for problem in problems:
        print(f"{problem.severity}: {problem.text}", file=sys.stderr if problem.severity == "error" else sys.stdout)
    if refused:
        text = "refused; say allow_unsafe_topology = true to start it all the same"
        print(text, file=sys.stderr)
    else:
        print("OK")


def _shown(config: NodeConfig, name: str) -> Any:
    value = getattr(config, name)
    if KEYS[name].secret and value:
        return "(set, not shown)"
    return list(value) if isinstance(value, tuple) else value
