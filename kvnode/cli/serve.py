"""serve: run a node."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from kvnode.base.errors import KvError
from kvnode.cli.config_flags import ConfigFileOption, load, with_config_flags
from kvnode.cli.run import fail


@with_config_flags
def serve(config: ConfigFileOption = None, **flags: Any) -> None:
    """Run a node until SIGTERM, which hands leadership over, drains and exits within 10 seconds.

    Every setting can be a flag, a KVNODE_* variable or a key of the TOML file; that is also their order of strength.
    'kvnode config show' prints what is in force and where it came from.

    Examples:

      kvnode serve --bootstrap --min-commit-dcs 1 --allow-unsafe-topology

      kvnode serve --name b --dc dc-b --data-dir /var/lib/kvnode --listen 10.0.0.2:4510

      kvnode serve --config /etc/kvnode.toml
    """
    path: Path | None = config
    try:
        loaded = load(path, flags)
    except KvError as error:
        fail(error)
    for notice in loaded.notices:
        print(f"kvnode: {notice}", file=sys.stderr)
    from kvnode.api.serve import run

    raise typer.Exit(run(loaded.config))
