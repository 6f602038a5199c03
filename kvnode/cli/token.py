"""token create, list, revoke."""

from __future__ import annotations

import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvnode.cli.member import administer
from kvnode.cli.options import (
    DEFAULT_ENDPOINTS,
    EndpointsOption,
    Output,
    OutputOption,
    TimeoutOption,
    parse_timeout,
)
from kvnode.cli.show import print_json, print_table, show_time

if TYPE_CHECKING:
    from kvnode.proto.kv.v1 import directory_pb2

DEFAULT_TIMEOUT = "10s"
COLUMNS = ("id", "ends in", "database", "right", "expires", "requests/s", "bytes/s", "label")

token_app = typer.Typer(no_args_is_help=True, help="Access tokens: create, list and revoke them.")


class Right(str, Enum):
    """What a token may do; each includes the one before."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@token_app.command("create")
def create(
    database: Annotated[
        str, typer.Option("--database", metavar="NAME", help="The database, by name or uuid; none = the default one.")
    ] = "",
    all_databases: Annotated[bool, typer.Option("--all-databases", help="For every database.")] = False,
    right: Annotated[
        Right,
        typer.Option(
            "--right",
            case_sensitive=False,
            help="read; write: reads too; admin: every database, and the cluster itself where grpc_auth is on.",
        ),
    ] = Right.WRITE,
    expires_in: Annotated[
        int | None,
        typer.Option(
            "--expires-in", metavar="DURATION", parser=parse_timeout, help="Its life: 12h, 30d. Without it, for ever."
        ),
    ] = None,
    label: Annotated[str, typer.Option("--label", metavar="TEXT", help="Whose it is; shown in the list.")] = "",
    requests_per_second: Annotated[
        int, typer.Option("--requests-per-second", metavar="NUMBER", help="At each node. 0 = no limit.", min=0)
    ] = 0,
    bytes_per_second: Annotated[
        int,
        typer.Option("--bytes-per-second", metavar="NUMBER", help="At each node. 0 = no limit.", min=0),
    ] = 0,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Create a token and print it, this once: what is stored is a hash.

    Programs for Deno KV take it as DENO_KV_ACCESS_TOKEN, `kvnode` itself as KVNODE_TOKEN.

    Examples:

      kvnode token create --database orders --right read --expires-in 30d --label reports

      export DENO_KV_ACCESS_TOKEN=$(kvnode token create --database orders)

      kvnode token create --right admin --label operators
    """
    is_everywhere = all_databases or (right is Right.ADMIN and not database)
    if is_everywhere and database:
        raise typer.BadParameter("--all-databases and --database exclude each other")
    answer: directory_pb2.TokenCreateResponse = administer(
        endpoints,
        timeout,
        output,
        lambda admin: admin.create_token(
            database=database,
            all_databases=is_everywhere,
            right=right.value,
            label=label,
            expires_in_ms=expires_in or 0,
            requests_per_second=requests_per_second,
            bytes_per_second=bytes_per_second,
        ),
    )
    if output is Output.JSON:
        print_json({**token_json(answer.token), "token": answer.secret})
        return
    print(answer.secret)
    where = f"database '{answer.token.database}'" if answer.token.database else "all databases"
    expires = f" until {show_time(answer.token.expires_ms)}" if answer.token.expires_ms else ""
    print(f"kvnode: token {answer.token.token_id}: {right.value} on {where}{expires}; not shown again", file=sys.stderr)


@token_app.command("list")
def list_tokens(
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """List the tokens: what each may do, and its last characters; never the tokens themselves.

    Example:

      kvnode token list
    """
    answer: directory_pb2.TokenListResponse = administer(endpoints, timeout, output, lambda admin: admin.tokens())
    if output is Output.JSON:
        for token in answer.tokens:
            print_json(token_json(token))
        return
    print_table(COLUMNS, [_row(token) for token in answer.tokens], right=("requests/s", "bytes/s"))


@token_app.command("revoke")
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The token's id, as `kvnode token list` shows it.")],
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Revoke a token, on every node within a second, for connections that are open too. Exit status 6 if there is none.

    Example:

      kvnode token revoke abcd2345
    """
    answer: directory_pb2.TokenRevokeResponse = administer(
        endpoints, timeout, output, lambda admin: admin.revoke_token(token_id)
    )
    if output is Output.JSON:
        print_json(token_json(answer.token))
    else:
        print(f"OK {answer.token.token_id}")


def token_json(token: directory_pb2.Token) -> dict[str, Any]:
    """A token as -o json shows it."""
    return {
        "id": token.token_id,
        "last_characters": token.last_characters,
        "database": token.database or None,
        "database_uuid": token.database_uuid or None,
        "right": token.right,
        "label": token.label,
        "created_ms": token.created_ms,
        "expires_ms": token.expires_ms or None,
        "expired": token.expired,
        "requests_per_second": token.requests_per_second,
        "bytes_per_second": token.bytes_per_second,
    }


def _row(token: directory_pb2.Token) -> list[str]:
    return [
        token.token_id,
        f"...{token.last_characters}",
        token.database or "(all)",
        token.right,
        "expired" if token.expired else show_time(token.expires_ms) or "never",
        str(token.requests_per_second or ""),
        str(token.bytes_per_second or ""),
        token.label,
    ]
