"""--database, --token and --tls-*: options that commands get because of where they belong, not each by itself.

They stand for what `kvnode.client` sends with every call, so no command has anything to do with their values: its
connection reads them here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import grpc

DATABASE_ENVIRONMENT = "KVNODE_DATABASE"
TOKEN_ENVIRONMENT = "KVNODE_TOKEN"
_DATABASE, _TOKEN = "selected_database", "selected_token"
_CA, _CERT, _KEY = "selected_tls_ca", "selected_tls_cert", "selected_tls_key"

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
_CaOption = Annotated[
    str,
    typer.Option(
        "--tls-ca",
        envvar="KVNODE_GRPC_TLS_CA",
        metavar="FILE",
        help="Speak TLS: the PEM file of the authorities that vouch for the nodes (their grpc_tls_ca).",
    ),
]
_CertOption = Annotated[
    str,
    typer.Option(
        "--tls-cert",
        envvar="KVNODE_GRPC_TLS_CERT",
        metavar="FILE",
        help="The caller's own certificate, where the nodes ask for one (grpc_tls_client_auth).",
    ),
]
_KeyOption = Annotated[
    str,
    typer.Option("--tls-key", envvar="KVNODE_GRPC_TLS_KEY", metavar="FILE", help="That certificate's private key."),
]
_ALWAYS = {_TOKEN: _TokenOption, _CA: _CaOption, _CERT: _CertOption, _KEY: _KeyOption}


class Selection:
    """What the command line of this process says."""

    def __init__(self) -> None:
        self.database = ""
        self.token = ""
        self.tls_ca = ""
        self.tls_cert = ""
        self.tls_key = ""

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For every connection; None = plain text. Raises InvalidRequest."""
        if not (self.tls_ca or self.tls_cert):
            return None
        from kvnode.client.tls import tls_credentials

        return tls_credentials(self.tls_ca, self.tls_cert, self.tls_key)


chosen = Selection()


def with_selection(command: Callable[..., None], *, database: bool) -> Callable[..., None]:
    """Give a command --token and --tls-*, and --database where `database` says so, after its own options."""
    if hasattr(command, "__wrapped_command__"):
        return command
    added: dict[str, Any] = {_DATABASE: _DatabaseOption} if database else {}
    added |= _ALWAYS
    parameters = [*inspect.signature(command, eval_str=True).parameters.values()]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="", annotation=annotation)
        for name, annotation in added.items()
    ]

    def wrapper(**values: Any) -> None:
        chosen.database = values.pop(_DATABASE, "")
        chosen.token = values.pop(_TOKEN, "")
        chosen.tls_ca, chosen.tls_cert, chosen.tls_key = (values.pop(name, "") for name in (_CA, _CERT, _KEY))
        command(**values)

    wrapper.__name__ = command.__name__
    wrapper.__doc__ = command.__doc__
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    wrapper.__wrapped_command__ = command  # type: ignore[attr-defined]
    return wrapper
