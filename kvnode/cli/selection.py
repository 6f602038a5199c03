"""--database and --token: options that commands get because of where they belong, not each by itself.

They stand for what `kvnode.client` sends with every call, so no command has anything to do with their values: its
connection reads them here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

DATABASE_ENVIRONMENT = "KVNODE_DATABASE"
TOKEN_ENVIRONMENT = "KVNODE_TOKEN"
_DATABASE, _TOKEN = "selected_database", "selected_token"

_DatabaseOption = Annotated[
    str,
    typer.Option(
        "--database",
        envvar=DATABASE_ENVIRONMENT,
        metavar="NAME",
        help="The database, by name or uuid; none = the default one.",
    ),
]
_TokenOption = Annotated[
    str,
    typer.Option(
        "--token",
        envvar=TOKEN_ENVIRONMENT,
        metavar="TOKEN",
        help="An access token, where the nodes ask for one (grpc_auth). Others see flags: better in the environment.",
    ),
]


class Selection:
    """What the command line of this process says."""

    def __init__(self) -> None:
        self.database = ""
        self.token = ""


chosen = Selection()


def with_selection(command: Callable[..., None], *, database: bool) -> Callable[..., None]:
    """Give a command --token, and --database where `database` says so, after its own options."""
    if hasattr(command, "__wrapped_command__"):
        return command
    added: dict[str, Any] = {_DATABASE: _DatabaseOption} if database else {}
    added[_TOKEN] = _TokenOption
    parameters = [*inspect.signature(command, eval_str=True).parameters.values()]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="", annotation=annotation)
        for name, annotation in added.items()
    ]

    def wrapper(**values: Any) -> None:
        chosen.database = values.pop(_DATABASE, "")
        chosen.token = values.pop(_TOKEN, "")
        command(**values)

    wrapper.__name__ = command.__name__
    wrapper.__doc__ = command.__doc__
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    wrapper.__wrapped_command__ = command  # type: ignore[attr-defined]
    return wrapper
