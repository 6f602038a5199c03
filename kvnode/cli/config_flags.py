"""The configuration's keys as flags of a command: one table (base/config.py), no second list to forget."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from kvnode.base.config import ENVIRONMENT_PREFIX, KEYS, Loaded, load_config

CONFIG_ENVIRONMENT = "KVNODE_CONFIG"

ConfigFileOption = Annotated[
    Path | None,
    typer.Option("--config", envvar=CONFIG_ENVIRONMENT, metavar="FILE", help="A TOML file with any of the keys below."),
]


def flag_name(key: str) -> str:
    """The flag of a key."""
    return "--" + key.replace("_", "-")


def with_config_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes `**flags` one parameter for each key, after its own."""
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    parameters = own + [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(name))
        for name in KEYS
    ]

    def wrapper(**values: Any) -> None:
        command(**values)

    wrapper.__name__ = command.__name__
    wrapper.__doc__ = command.__doc__
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def load(config: Path | None, flags: dict[str, Any]) -> Loaded:
    """The configuration of this process. Raises ConfigError."""
    import os

    return load_config(flags, os.environ, config)


def _annotation(name: str) -> Any:
    key = KEYS[name]
    environment = f"{ENVIRONMENT_PREFIX}{name.upper()}"
    default = ",".join(key.default) if key.kind is list else key.default
    shown = "" if default == "" else f" [default: {str(default).lower() if key.kind is bool else default}]"
    text = f"{key.help}. [env: {environment}]{shown}"
    flag = flag_name(name)
    if key.kind is bool:
        option = typer.Option(f"{flag}/--no-{flag[2:]}", help=text, show_default=False)
        return Annotated[bool | None, option]
    metavar = {int: "NUMBER", list: "HOST:PORT,..."}.get(key.kind, "TEXT")
    # A text of any kind: base/config.py says what is wrong with a value, and where it came from.
    return Annotated[str | None, typer.Option(flag, help=text, metavar=metavar, show_default=False)]
