"""The configuration's keys as flags of a command: one table (base/config.py), no second list to forget."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from kvnode.base.config import ENVIRONMENT_PREFIX, KEYS, Loaded, load_config
from kvnode.base.denokv import FOREIGN_NAMES, ForeignName, notice_of, refusal_of_flag

CONFIG_ENVIRONMENT = "KVNODE_CONFIG"
_FOREIGN = "denokv_"

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
    annotations = {name: _annotation(name) for name in KEYS} | _foreign_annotations()
    parameters = own + [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in annotations.items()
    ]

    def wrapper(**values: Any) -> None:
        command(**{name: value for name, value in values.items() if not name.startswith(_FOREIGN)})

    wrapper.__name__ = command.__name__
    wrapper.__doc__ = command.__doc__
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def load(config: Path | None, flags: dict[str, Any]) -> Loaded:
    """The configuration of this process. Raises ConfigError."""
    import os

    return load_config(flags, os.environ, config)


def _foreign_annotations() -> dict[str, Any]:
    """denokv's flags that have no counterpart: not listed, but answered with what to do instead."""
    annotations: dict[str, Any] = {}
    for name in FOREIGN_NAMES:
        if name.key or not name.flag:
            continue
        is_switch = name.flag in {"--read-only", "--sync-from-s3"}
        option = typer.Option(name.flag, hidden=True, callback=_notice(name) if name.is_harmless else _refusal(name))
        parameter = _FOREIGN + name.flag.removeprefix("--").replace("-", "_")
        annotations[parameter] = Annotated[bool if is_switch else str | None, option]
    return annotations


def _refusal(name: ForeignName) -> Callable[[Any], None]:
    def refuse(value: Any) -> None:
        if value:
            raise typer.BadParameter(refusal_of_flag(name).message)

    return refuse


def _notice(name: ForeignName) -> Callable[[Any], None]:
    def tell(value: Any) -> None:
        if value:
            typer.echo(f"kvnode: {notice_of(name, name.flag)}", err=True)

    return tell


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
    flags = [flag, *(other.flag for other in FOREIGN_NAMES if other.key == name and other.flag not in {"", flag})]
    metavar = {int: "NUMBER", list: f"{key.of.upper()},..."}.get(key.kind, "TEXT")
    # A text of any kind: base/config.py says what is wrong with a value, and where it came from.
    return Annotated[str | None, typer.Option(*flags, help=text, metavar=metavar, show_default=False)]
