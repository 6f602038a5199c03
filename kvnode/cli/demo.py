"""`kvnode demo`: the command line of cluster/demo.py."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

EXIT_BROKEN_PROMISE = 1
EXIT_NOT_RUN = 2
EXIT_INTERRUPTED = 130


def demo(
    limit: Annotated[int, typer.Option(min=0, help="Load only so many characters; 0 = all of them.")] = 0,
    callers: Annotated[int, typer.Option(min=1, max=10_000, help="Transactions under way at a time.")] = 512,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the nodes' data goes; a temporary folder by default.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the cluster up and print how to talk to it.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object on the last line.")
    ] = False,
) -> None:
    """Seven data centers in three regions on this machine, a killed leader, every write accounted for.

    Exit status 0 only if nothing acknowledged was lost or applied twice and all nodes have the same digest.
    """
    from cluster.demo import DemoOptions, run_demo
    from cluster.demo_view import DemoView
    from cluster.launcher import ClusterFailed

    view = DemoView(Console(stderr=as_json, highlight=False))
    try:
        summary = asyncio.run(run_demo(DemoOptions(limit, callers, data_dir, keep), view))
    except ClusterFailed as error:
        typer.echo(f"kvnode demo: {error}", err=True)
        raise typer.Exit(EXIT_NOT_RUN) from None
    except KeyboardInterrupt:
        typer.echo("kvnode demo: interrupted; nothing was checked", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(summary.as_json()))
    raise typer.Exit(0 if summary.ok else EXIT_BROKEN_PROMISE)
