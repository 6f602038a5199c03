"""`kvnode`: the command line. Each command's module is imported when it is asked for, so that starting stays quick."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from kvnode.cli.exits import Exit
from kvnode.cli.run import flush_output
from kvnode.cli.selection import with_selection
from kvnode.cli.show import escape_output

PROGRAM = "kvnode"  # also when it is run as `python -m kvnode`: shell completion goes by this name
DEBUG_ENVIRONMENT = "KVNODE_DEBUG"
DATA, CLUSTER, NODE = "Data", "Cluster", "Node"
TYPER_KNOWN_INSIDE = "0.29.2"  # whose private parts direct_values.py replaces; with another one starting takes longer


class Command(NamedTuple):
    """Where a command is written: a function, or a typer app with commands of its own."""

    module: str
    attribute: str
    panel: str


COMMANDS: dict[str, Command] = {
    "get": Command("kvnode.cli.data", "get", DATA),
    "set": Command("kvnode.cli.data", "set_", DATA),
    "delete": Command("kvnode.cli.data", "delete", DATA),
    "list": Command("kvnode.cli.data", "list_", DATA),
    "count": Command("kvnode.cli.data", "count", DATA),
    "watch": Command("kvnode.cli.data", "watch", DATA),
    "ttl": Command("kvnode.cli.ttl", "ttl_app", DATA),
    "atomic": Command("kvnode.cli.atomic", "atomic", DATA),
    "queue": Command("kvnode.cli.queue", "queue_app", DATA),
    "cron": Command("kvnode.cli.cron", "cron_app", DATA),
    "export": Command("kvnode.cli.export", "export", DATA),
    "import": Command("kvnode.cli.import_", "import_", DATA),
    "status": Command("kvnode.cli.status", "status", CLUSTER),
    "member": Command("kvnode.cli.member", "member_app", CLUSTER),
    "leader": Command("kvnode.cli.member", "leader_app", CLUSTER),
    "failover": Command("kvnode.cli.failover", "failover", CLUSTER),
    "changelog": Command("kvnode.cli.changelog", "changelog_app", CLUSTER),
    "database": Command("kvnode.cli.database", "database_app", CLUSTER),
    "token": Command("kvnode.cli.token", "token_app", CLUSTER),
    "serve": Command("kvnode.cli.serve", "serve", NODE),
    "config": Command("kvnode.cli.config", "config_app", NODE),
    "demo": Command("kvnode.cli.demo", "demo", NODE),
}

# What etcdctl, fdbcli and the shell call them; a mistyped name gets typer's own suggestion.
ELSEWHERE: dict[str, str] = {
    "put": "set",
    "del": "delete",
    "rm": "delete",
    "clear": "delete",
    "clearrange": "delete --prefix",
    "ls": "list",
    "scan": "list",
    "range": "list",
    "getrange": "list",
    "txn": "atomic",
    "lease": "ttl",
    "endpoint": "status",
    "move-leader": "leader transfer",
    "backup": "export",
    "snapshot": "export",
    "restore": "import",
    "auth": "token",
    "user": "token",
    "help": "--help",
    "version": "--version",
}


class LazyGroup(TyperGroup):
    """Finds commands in COMMANDS."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, imported now; None if there is none."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = _build(cmd_name, entry)
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer's own, which suggests a name from the table for one that is mistyped."""
        if args and args[0] in ELSEWHERE:
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{PROGRAM} {ELSEWHERE[args[0]]}'?")
        if args and args[0] not in COMMANDS:
            for name in COMMANDS:
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)


def _build(name: str, entry: Command) -> Any:
    target = getattr(importlib.import_module(entry.module), entry.attribute)
    is_of_cluster = entry.panel != NODE
    if isinstance(target, typer.Typer):
        for below in target.registered_commands if is_of_cluster else ():
            if below.callback is not None:
                below.callback = with_selection(below.callback, database=entry.panel == DATA)
        command: Any = typer.main.get_group(target)
        command.name = name
    else:
        if is_of_cluster:
            target = with_selection(target, database=entry.panel == DATA)
        holder = typer.Typer(add_completion=False)
        holder.command(name, rich_help_panel=entry.panel)(target)
        command = typer.main.get_command(holder)
    command.rich_help_panel = entry.panel
    return command


if typer.__version__ == TYPER_KNOWN_INSIDE:
    from kvnode.cli.direct_values import take_values_directly

    take_values_directly()
app = typer.Typer(
    name="kvnode",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from kvnode import __version__

        print(f"kvnode {__version__}")
        raise typer.Exit


def _refuse_sqlite_path(given: str | None) -> None:
    """The denokv server takes it before `serve`; there, too, its users are told what to do instead."""
    if given:
        from kvnode.base.denokv import FOREIGN_NAMES, refusal_of_flag

        name = next(name for name in FOREIGN_NAMES if name.flag == "--sqlite-path")
        raise typer.BadParameter(refusal_of_flag(name).message)


@app.callback()
def kvnode(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    _sqlite_path: Annotated[
        str | None, typer.Option("--sqlite-path", hidden=True, is_eager=True, callback=_refuse_sqlite_path)
    ] = None,
) -> None:
    """Deno KV as a replicated database: strictly serializable transactions that survive the loss of a data center.

    Keys are JSON arrays: kvnode set '["users", "ada"]' '{"born": 1815}'. KVNODE_ENDPOINTS says where the nodes are.
    Exit statuses: 0 done, 1 failed, 2 wrong usage, 3 a check failed, 4 unavailable, 5 outcome unknown, 6 not found,
    7 unhealthy, 8 denied.
    """


def main() -> None:
    """Run the command line; never ends with a traceback unless KVNODE_DEBUG is set."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC's notes on lost connections are not for users
    escape_output()
    try:
        app(prog_name=PROGRAM)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    except Exception as error:
        if os.environ.get(DEBUG_ENVIRONMENT):
            raise
        print(
            f"kvnode: {type(error).__name__}: {error}. This is a fault of kvnode itself;"
            f" set {DEBUG_ENVIRONMENT}=1 to see where, and report it.",
            file=sys.stderr,
        )
        sys.exit(Exit.FAILED)
    finally:
        flush_output()
