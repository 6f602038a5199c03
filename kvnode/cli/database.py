"""database create, list, show, rename, set, delete."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvnode.cli.ask import agrees
from kvnode.cli.exits import Exit
from kvnode.cli.member import administer
from kvnode.cli.options import DEFAULT_ENDPOINTS, EndpointsOption, Output, OutputOption, TimeoutOption
from kvnode.cli.show import print_json, print_table, show_time

if TYPE_CHECKING:
    from kvnode.client import Admin
    from kvnode.proto.kv.v1 import directory_pb2

DEFAULT_TIMEOUT = "10s"
COLUMNS = ("name", "uuid", "mode", "max value", "created")
PURGE_COLUMNS = ("deleted", "uuid", "begun", "keys removed")

database_app = typer.Typer(
    no_args_is_help=True, help="Databases, each with a key space of its own: create, list, show, rename, set, delete."
)

DatabaseArgument = Annotated[
    str, typer.Argument(metavar="DATABASE", help="Its name or uuid; 'default' is the one that exists from the start.")
]
MaxValueOption = Annotated[
    int | None,
    typer.Option("--max-value-bytes", metavar="BYTES", min=1, help="The largest value that it takes, up to 786432."),
]


class Mode(str, Enum):
    """What a database does for its users."""

    ENABLED = "enabled"
    READ_ONLY = "read-only"
    DISABLED = "disabled"


@database_app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters a-z, digits and hyphens; unique.")],
    max_value_bytes: MaxValueOption = None,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Create a database. Programs reach it at http://HOST:4512/NAME, or by its uuid, which survives a new name.

    Examples:

      kvnode database create orders

      kvnode database create photos --max-value-bytes 262144 -o json | jq -r .uuid
    """
    _print(_run(endpoints, timeout, output, lambda admin: admin.create_database(name, max_value_bytes or 0)), output)


@database_app.command("list")
def list_databases(
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """List all databases, and the deleted ones whose rows are still being removed.

    Example:

      kvnode database list
    """
    answer: directory_pb2.DatabaseListResponse = _run(endpoints, timeout, output, lambda admin: admin.databases())
    if output is Output.JSON:
        for database in answer.databases:
            print_json(database_json(database))
        for purge in answer.purges:
            print_json(purge_json(purge))
        return
    print_table(COLUMNS, [_row(database) for database in answer.databases], right=("max value",))
    if answer.purges:
        print()
        print_table(PURGE_COLUMNS, [_purge_row(purge) for purge in answer.purges], right=("keys removed",))


@database_app.command("show")
def show(
    database: DatabaseArgument = "",
    count: Annotated[bool, typer.Option("--count", help="Count its keys too, which reads all of them.")] = False,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = "60s",  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Show one database; for one that was deleted, how far the removal of its rows is. Exit status 6 if there is none.

    Examples:

      kvnode database show orders

      kvnode database show orders --count -o json
    """
    answer: directory_pb2.DatabaseShowResponse = _run(
        endpoints, timeout, output, lambda admin: admin.show_database(database, count_keys=count)
    )
    if not answer.HasField("database"):
        if output is Output.JSON:
            print_json(purge_json(answer.purge))
        else:
            print_table(PURGE_COLUMNS, [_purge_row(answer.purge)], right=("keys removed",))
        return
    shown = {**database_json(answer.database), "tokens": answer.tokens, **({"keys": answer.keys} if count else {})}
    if output is Output.JSON:
        print_json(shown)
    else:
        print_table(("property", "value"), [(name, str(value)) for name, value in shown.items()])


@database_app.command("rename")
def rename(
    database: DatabaseArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new name.")],
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Give a database another name. Its uuid, its data and its tokens stay; clients that use the old name fail.

    Example:

      kvnode database rename orders orders-2030
    """
    _print(_run(endpoints, timeout, output, lambda admin: admin.rename_database(database, name)), output)


@database_app.command("set")
def set_(
    database: DatabaseArgument,
    mode: Annotated[
        Mode | None,
        typer.Option("--mode", case_sensitive=False, help="disabled: neither reads nor writes."),
    ] = None,
    max_value_bytes: MaxValueOption = None,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Change what a database does for its users. It takes effect on every node within a second.

    A smaller limit leaves larger values as they are; a mode other than enabled refuses also those who have a token.

    Examples:

      kvnode database set orders --mode read-only

      kvnode database set default --max-value-bytes 524288
    """
    if mode is None and max_value_bytes is None:
        raise typer.BadParameter("give --mode or --max-value-bytes")
    wanted = mode.value if mode else ""
    largest = max_value_bytes or 0  # 0 on the wire: as it is
    answer = _run(endpoints, timeout, output, lambda admin: admin.set_database(database, wanted, largest))
    _print(answer, output)


@database_app.command("delete")
def delete(
    database: DatabaseArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Delete a database with everything in it. Nothing brings it back.

    Name, uuid and its tokens are gone at once; its rows are removed afterwards, a few hundred at a time: `kvnode
    database show` says how far that is.

    Examples:

      kvnode database delete orders

      kvnode database delete orders --yes -o json
    """
    if not yes and not _confirmed(database):
        print("kvnode: nothing was deleted; --yes says that you mean it", file=sys.stderr)
        raise typer.Exit(Exit.USAGE)
    _print(_run(endpoints, timeout, output, lambda admin: admin.delete_database(database)), output)


def _confirmed(database: str) -> bool:
    if not sys.stdin.isatty():
        return False
    return agrees(f"Delete the database '{database}' and everything in it, for ever?")


def _run(endpoints: str, timeout_ms: int, output: Output | None, work: Callable[[Admin], Awaitable[Any]]) -> Any:
    return administer(endpoints, timeout_ms, output, work)


def database_json(database: directory_pb2.Database) -> dict[str, Any]:
    """A database as -o json shows it."""
    return {
        "name": database.name,
        "uuid": database.uuid,
        "number": database.number,
        "mode": database.mode,
        "max_value_bytes": database.max_value_bytes,
        "created_ms": database.created_ms or None,
    }


def purge_json(purge: directory_pb2.Purge) -> dict[str, Any]:
    """A deleted database as -o json shows it."""
    return {
        "name": purge.name,
        "uuid": purge.uuid,
        "number": purge.number,
        "deleted": True,
        "begun_ms": purge.begun_ms,
        "deleted_keys": purge.deleted_keys,
    }


def _row(database: directory_pb2.Database) -> list[str]:
    return [
        database.name,
        database.uuid,
        database.mode,
        str(database.max_value_bytes),
        show_time(database.created_ms),
    ]


def _purge_row(purge: directory_pb2.Purge) -> list[str]:
    return [purge.name, purge.uuid, show_time(purge.begun_ms), str(purge.deleted_keys)]


def _print(answer: directory_pb2.DatabaseResponse, output: Output | None) -> None:
    if output is Output.JSON:
        print_json(database_json(answer.database))
    else:
        print(f"OK {answer.database.name} {answer.database.uuid}")
