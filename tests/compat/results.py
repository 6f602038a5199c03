"""What the programs found: one result for each feature, client and route."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tests.compat.clients import Client, environment, node_kv

_RUN_TIMEOUT_S = 300
WORKS, REFUSED, ABSENT, FAILS = "works", "refused", "absent", "fails"


class Result(NamedTuple):
    """How one feature ended.

    Args:
        client: its name; "embedded" for Deno's own file.
        route: by which way the cluster was reached.
        section: of the table.
        title: of the feature.
        status: works, refused (as it should be), absent from the client, or fails.
        detail: the refusal's text, the reason of the absence or what failed; a figure.
        ms: how long it took.
    """

    client: str
    route: str
    section: str
    title: str
    status: str
    detail: str
    ms: int


class Route(NamedTuple):
    """A way to a database.

    Args:
        name: "leader", "follower", "https", "embedded".
        url: of the database; a file's path when embedded.
        token: the access token.
        certificate: of the authority to trust over https.
        prepared: databases and tokens that the programs find there.
    """

    name: str
    url: str
    token: str = ""
    certificate: Path | None = None
    prepared: Mapping[str, str] = MappingProxyType({})


def run(client: Client, route: Route, *, quick: bool = False, only: str = "") -> list[Result]:
    """Run a client's programs and read what they print, a JSON line for each feature.

    What the process says on standard error is shown; a process that ends early is a result that fails.
    """
    embedded = route.name == "embedded"
    options = {"url": route.url, "run": uuid.uuid4().hex[:12], "programs": client.programs, "quick": quick}
    options |= {"only": only, "kv": node_kv(), "client": client.name, "embedded": embedded}
    options |= {"prepared": dict(route.prepared)}
    name = "embedded" if embedded else client.name
    results = []
    with subprocess.Popen(
        [*client.command, json.dumps(options)],
        env=environment(route.token, route.certificate),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=_RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            errors += f"\nended after {_RUN_TIMEOUT_S} s"
    for line in output.splitlines():
        found = json.loads(line)
        results.append(Result(name, route.name, *(found[key] for key in Result._fields[2:])))
    if process.returncode:
        last = errors.strip()[-2_000:]
        results.append(Result(name, route.name, "Process", "the programs run to their end", FAILS, last, 0))
    elif errors.strip():
        print(f"{client.title}, {route.name}: {errors.strip()[-2_000:]}", file=sys.stderr)
    return results


def failures(results: Iterable[Result]) -> list[Result]:
    """Those that fail; Deno's own file may differ."""
    return [result for result in results if result.status == FAILS and result.client != "embedded"]


def steady(text: str) -> str:
    """A refusal's text without what differs from run to run: ports, identifiers, prefixes of keys, addresses, waits."""
    text = re.sub(r"\d+\.\d+\.\d+\.\d+:\d+|localhost:\d+", "HOST:4512", text)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID", text)
    text = re.sub(r"\b0x[0-9a-f]+", "0x…", text)
    text = re.sub(r"send it again in \d+ ms", "send it again in N ms", text)
    text = re.sub(r"'compat', '[0-9a-f]{12}', \d+", "…", text)
    return " ".join(text.split())
