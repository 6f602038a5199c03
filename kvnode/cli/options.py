"""Options that many commands share."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from kvnode.cli.duration import duration_ms

DEFAULT_ENDPOINTS = "127.0.0.1:4510"
DEFAULT_TIMEOUT = "10s"


class Output(str, Enum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


class Reading(str, Enum):
    """How new a read must be."""

    STRONG = "strong"
    EVENTUAL = "eventual"


def parse_duration(text: str | int) -> int:
    """duration_ms for typer, which names the option in its error."""
    if isinstance(text, int):
        return text
    try:
        return duration_ms(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def parse_timeout(text: str | int) -> int:
    """A duration of 1 ms at least."""
    timeout_ms = parse_duration(text)
    if timeout_ms < 1:
        raise typer.BadParameter(f"'{text}' comes to 0ms: write a duration longer than that, 1ms at least")
    return timeout_ms


def parse_stamp(text: str) -> str:
    """A versionstamp that is there: an empty one, as of a variable that nobody has set, would be no bound at all."""
    if not text.strip():
        raise typer.BadParameter("it is empty: give the 20 hexadecimal digits of a versionstamp, or leave it out")
    return text


MaxStalenessOption = Annotated[
    int | None,
    typer.Option(
        "--max-staleness",
        metavar="DURATION",
        parser=parse_timeout,
        help="Of an eventual read: how old its state may be. A fresher node answers where the asked one is too old.",
    ),
]
WatchStalenessOption = Annotated[
    int | None,
    typer.Option(
        "--max-staleness",
        metavar="DURATION",
        parser=parse_timeout,
        help="How old the state printed last may grow. The watch goes on at a fresher node, or ends with an error.",
    ),
]
MinVersionstampOption = Annotated[
    str | None,
    typer.Option(
        "--min-versionstamp",
        metavar="STAMP",
        parser=parse_stamp,
        help="Wait for a state that holds this commit: with the versionstamp of your own write you read that write.",
    ),
]
EndpointsOption = Annotated[
    str,
    typer.Option(
        "--endpoints",
        "-e",
        envvar="KVNODE_ENDPOINTS",
        metavar="HOST:PORT,...",
        help="Nodes to talk to, the nearest first. Any will do; several survive the loss of one.",
    ),
]
TimeoutOption = Annotated[
    int,
    typer.Option(
        "--timeout",
        envvar="KVNODE_TIMEOUT",
        metavar="DURATION",
        parser=parse_timeout,
        help="How long to try: 500ms, 10s, 2m.",
    ),
]
OutputOption = Annotated[
    Output | None,
    typer.Option(
        "--output",
        "-o",
        envvar="KVNODE_OUTPUT",
        case_sensitive=False,
        help="json: for programs, one object a line. table: for people.",
    ),
]
ConsistencyOption = Annotated[
    Reading,
    typer.Option(
        "--consistency",
        "-c",
        case_sensitive=False,
        help="strong: sees every acknowledged write. eventual: the answering node's own state, without a leader.",
    ),
]
