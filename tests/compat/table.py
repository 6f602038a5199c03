"""docs/reference/compatibility.md, written from a run: feature by client, and the texts of the refusals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.compat.clients import clients, versions
from tests.compat.results import ABSENT, FAILS, REFUSED, WORKS, Result, steady

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "compatibility.md"

INTRODUCTION = """# Compatibility with Deno KV's clients

`make compat` installs the clients named below, runs this project's own programs in them against three nodes, by the
leader's URL, by a follower's, through a gateway and over https, and writes this page. A cell holds for every route.

- **works**: the program proved it.
- **refused**: an error, as it should be; the second table has its text, as the user sees it.
- **absent**: the client has no such thing, or keeps it to itself; why.
- **differs**: only in the last column, which is Deno's own database in one file, by the same programs: kvnode does
  what the row says, the file does not.

<!-- Written by `make compat`; change the programs in tests/compat/programs, not this file. -->
"""

_ORDER = ("deno", "node", "denokv", "wire", "embedded")
# A status that speaks for the feature when the routes differ.
_WORST = (FAILS, REFUSED, ABSENT, WORKS)


def titles() -> dict[str, str]:
    """The columns."""
    number = versions()
    return {
        "deno": f"Deno {number['deno']}",
        "node": f"@deno/kv {number['node']} (Node)",
        "denokv": f"denokv {number['denokv']} (Python)",
        "wire": "protocol, no client",
        "embedded": "Deno's own file",
    }


def page(results: Sequence[Result]) -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for section in _in_order(result.section for result in results):
        rows = [result for result in results if result.section == section]
        parts.append(f"## {section}\n\n{_table(rows)}\n")
    parts.append("## What the user sees\n\nThe text of each refusal above.\n\n" + _texts(results) + "\n")
    return "\n".join(parts)


def _table(results: Sequence[Result]) -> str:
    columns = titles()
    lines = [f"| | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for title in _in_order(result.title for result in results):
        cells = [cell([r for r in results if r.title == title and r.client == client]) for client in _ORDER]
        lines.append(f"| {_escaped(title)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(results: Sequence[Result]) -> str:
    """One cell, from a client's results by every route."""
    if not results:
        return ""
    worst = min(results, key=lambda result: _WORST.index(result.status))
    if worst.status == ABSENT:
        return f"absent: {_escaped(worst.detail)}"
    if worst.status == FAILS:
        return "differs" if worst.client == "embedded" else f"**fails** ({worst.route})"
    return worst.status


def _texts(results: Sequence[Result]) -> str:
    lines = ["| | client | text |", "|---|---|---|"]
    names = titles()
    refused = [result for result in results if result.status == REFUSED and result.client != "embedded"]
    for title in _in_order(result.title for result in refused):
        for client in _ORDER:
            texts = _in_order(steady(r.detail) for r in refused if r.title == title and r.client == client)
            if texts:
                lines.append(f"| {_escaped(title)} | {names[client]} | `{_escaped(texts[0])}` |")
    return "\n".join(lines)


def _in_order(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")


def cells_of(text: str) -> dict[tuple[str, str], dict[str, str]]:
    """Section and title → column → cell, read from a page."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith("| |") and section != "What the user sees":
            title, *cells = (part.strip() for part in line.strip("|").replace("\\|", "\0").split("|"))
            found[section, title.replace("\0", "|")] = dict(zip(_ORDER, cells, strict=True))
    return found


def summary(results: Sequence[Result]) -> str:
    """How many of each status, for each client and route."""
    lines = [f"{'client':10} {'route':10} {'works':>6} {'refused':>8} {'absent':>7} {'fails':>6} {'seconds':>8}"]
    for client, route in dict.fromkeys((result.client, result.route) for result in results):
        own = [result for result in results if (result.client, result.route) == (client, route)]
        counts = [sum(result.status == status for result in own) for status in (WORKS, REFUSED, ABSENT, FAILS)]
        seconds = sum(result.ms for result in own) / 1000
        lines.append(f"{client:10} {route:10} {counts[0]:6} {counts[1]:8} {counts[2]:7} {counts[3]:6} {seconds:8.1f}")
    return "\n".join(lines)


__all__ = ["PAGE", "cell", "cells_of", "clients", "page", "summary", "titles"]
