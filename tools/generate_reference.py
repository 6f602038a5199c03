"""Write docs/reference/cli.md and config.md from the command line's own help and the table of keys.

    python tools/generate_reference.py          write them
    python tools/generate_reference.py --check  exit status 1 if they are not up to date

tests/unit/cli/test_docs.py runs the check, so that no flag or key goes undocumented.
"""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from kvnode.base.config import ENVIRONMENT_PREFIX, KEYS
from kvnode.cli.config_flags import flag_name
from kvnode.cli.exits import MEANINGS
from kvnode.cli.main import COMMANDS, LazyGroup, app

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
GENERATED = "<!-- Written by tools/generate_reference.py; change the help texts, not this file. -->"

CLI_INTRODUCTION = """# The command line

`kvnode COMMAND --help` shows what stands here. `python -m kvnode` is the same program.

**Keys** are JSON arrays: a string, a number (a JavaScript number), `true` and `false` are themselves;
`{"$bigint": "12"}` is a bigint and `{"$bytes": "<base64>"}` bytes. Quote them for the shell: `'["users", 1]'`.

**Values** are JSON. What JSON has no form for is an object with one member: `{"$u64": "12"}` (Deno.KvU64),
`{"$bigint": "12"}`, `{"$bytes": "<base64>"}`, `{"$date": "2030-01-01T00:00:00.000+00:00"}`, `{"$number": "NaN"}`,
`{"$undefined": true}`, `{"$set": [...]}`, `{"$map": [[key, value], ...]}`, and `{"$v8": "<base64>"}` for anything else
as it is stored.

**Output** is for people; `-o json` prints one JSON object a line on standard output, and errors as
`{"error": {"code", "message", "phase", "endpoint", "not_applied"}}` on standard error.

**Environment**: `KVNODE_ENDPOINTS`, `KVNODE_DATABASE`, `KVNODE_TOKEN`, `KVNODE_TIMEOUT` and `KVNODE_OUTPUT` stand for
`--endpoints`, `--database`, `--token`, `--timeout` and `--output`; `KVNODE_CONFIG` for `--config`; `KVNODE_DEBUG=1`
shows the traceback of a fault in kvnode itself. The other `KVNODE_*` variables are configuration keys
([config.md](config.md)).

**Shell completion**: `kvnode --install-completion` sets it up for the current shell, `--show-completion` prints it.
"""

CONFIG_INTRODUCTION = """# Configuration

Each key below can be a flag of `kvnode serve`, an environment variable, or a key at the top level of a TOML file that
`--config` or `KVNODE_CONFIG` names: in this order of strength. `kvnode config show` prints what is in force and where
each value came from; `kvnode config check FILE...` checks files and the topology that they describe.

An unknown key, a key of the wrong type or an address that is none stops the node before it starts, with exit status 2
and an error that names the key, where it stands, and the key that was probably meant.

    # /etc/kvnode.toml
    name = "a"
    region = "us-east"
    dc = "dc-a"
    data_dir = "/var/lib/kvnode"
    listen = "10.0.0.1:4510"
    bootstrap = true
    peers = ["10.0.0.1:4510", "10.0.0.2:4510", "10.0.0.3:4510"]
"""

CONFIG_NOTES = """
## The denokv server's names

`DENO_KV_ACCESS_TOKEN` (`--access-token`) and `DENO_KV_ADDR` (`--addr`) are understood as `access_token` and
`connect_listen`; the `KVNODE_*` variables are stronger. What has no counterpart, such as `DENO_KV_SQLITE_PATH`, stops
the node with a sentence that says what to do instead; `DENO_KV_NUM_WORKERS` is mentioned and left aside.

## Topology

`kvnode config check` refuses a topology in which the loss of any one data center leaves no majority of the voters, or
fewer data centers than `min_commit_dcs`: a single loss would stop every write. `allow_unsafe_topology = true` starts it
all the same, for a machine on which to try things. It also says, without refusing, when there are fewer than 6 data
centers, 3 regions or 3 primary data centers.
"""


def cli_page() -> str:
    """docs/reference/cli.md."""
    root: Any = typer.main.get_command(app)
    context = root.make_context("kvnode", [], resilient_parsing=True)
    parts = [CLI_INTRODUCTION, GENERATED + "\n", "## Exit statuses\n", "| status | meaning |\n|---|---|"]
    parts.extend(f"| {int(status)} | {meaning} |" for status, meaning in MEANINGS.items())
    parts.append("\n`kvnode serve` and `kvnode demo` end with 0, 1 or 2.\n\n## Options of kvnode itself\n")
    parts.append(_options(root, context))
    if not isinstance(root, LazyGroup):
        raise TypeError("the command line is not a LazyGroup")
    for name in COMMANDS:
        command = root.get_command(context, name)
        subcommands = getattr(command, "commands", None)
        if subcommands:
            for subname, subcommand in subcommands.items():
                parts.append(_command(f"{name} {subname}", subcommand))
        else:
            parts.append(_command(name, command))
    return "\n".join(parts).rstrip() + "\n"


def _command(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join(command.collect_usage_pieces(context))
    text = "\n".join(line.rstrip() for line in _help(command).splitlines())
    return f"\n## {name}\n\n    kvnode {name} {usage}\n\n{text}\n\n{_options(command, context)}"


def _help(command: Any) -> str:
    """The help text in Markdown: what is indented in the docstring is code."""
    lines = (command.help or "").splitlines()
    return "\n".join(f"    {line[2:].rstrip()}" if line.startswith("  ") and line.strip() else line for line in lines)


def _options(command: Any, context: Any) -> str:
    rows = ["| argument or option | meaning |", "|---|---|"]
    for parameter in command.get_params(context):
        if parameter.name == "help" or getattr(parameter, "hidden", False):
            continue
        is_argument = parameter.param_type_name == "argument"
        names = parameter.metavar or parameter.name if is_argument else ", ".join(_names(parameter))
        value = "" if is_argument or getattr(parameter, "is_flag", False) else f" {_metavar(parameter)}"
        text = (parameter.help or "").replace("|", "\\|")
        default = parameter.default
        if default not in (None, False, "", ()) and getattr(parameter, "show_default", True) and not callable(default):
            text += f" [default: {getattr(default, 'value', default)}]"
        environment = getattr(parameter, "envvar", None)
        if environment:
            text += f" [env: {environment}]"
        rows.append(f"| `{names}{value}` | {' '.join(text.split())} |")
    return "\n".join(rows)


def _names(parameter: Any) -> list[str]:
    return [*sorted(parameter.opts, key=len), *parameter.secondary_opts]


def _metavar(parameter: Any) -> str:
    if parameter.metavar:
        return str(parameter.metavar)
    kind = parameter.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "\\|".join(str(choice.value) for choice in kind)
    return {int: "NUMBER", Path: "PATH"}.get(kind, "TEXT")


def config_page() -> str:
    """docs/reference/config.md."""
    parts = [CONFIG_INTRODUCTION, GENERATED + "\n", "## Keys\n"]
    parts.append("| key | flag | environment | type | default | meaning |\n|---|---|---|---|---|---|")
    kinds = {str: "text", int: "number", bool: "true or false", list: "list of texts"}
    for name, key in KEYS.items():
        default = "true" if key.default is True else "false" if key.default is False else key.default
        shown = f"`{default}`" if default not in ("", []) else "none"
        cells = [f"`{name}`", f"`{flag_name(name)}`", f"`{ENVIRONMENT_PREFIX}{name.upper()}`", kinds[key.kind], shown]
        parts.append(f"| {' | '.join(cells)} | {key.help} |")
    return "\n".join(parts) + "\n" + CONFIG_NOTES


def main() -> int:
    """Write or check the pages; return the exit status."""
    status = 0
    for name, page in (("cli.md", cli_page()), ("config.md", config_page())):
        path = REFERENCE / name
        if "--check" not in sys.argv:
            path.write_text(page)
        elif not path.exists() or path.read_text() != page:
            print(f"docs/reference/{name} is out of date: run tools/generate_reference.py", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
