"""Printing: JSON for programs, tables for people."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvnode.client import Entry


ESCAPED = "kvnode.escaped"
"""Encoding errors: what an encoding has no form for is written as JSON escapes it, so that JSON stays JSON."""


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(ESCAPED, _escape)


def escape_output() -> None:
    """Have standard output escape what its encoding has no form for.

    Above all half of a surrogate pair, which a string of JavaScript may hold.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ESCAPED)


def print_json(shown: object) -> None:
    """One object, on one line, written out at once so that a pipe sees it."""
    print(json.dumps(shown, ensure_ascii=False), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table; the columns named in `right` are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # Into a pipe a row must not be folded at some made-up width.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 10_000
    Console(highlight=False, width=width).print(table)


def key_json(entry: Entry) -> object:
    """The key as a JSON array; a key that is not Deno's as {"$key": hex}."""
    from kvnode.base.errors import InvalidRequest
    from kvnode.codec.json_keys import key_to_parts

    try:
        return key_to_parts(entry.key)
    except InvalidRequest:
        return {"$key": entry.encoded_key.hex()}


def value_json(entry: Entry) -> object:
    """The value as JSON; None without one."""
    from kvnode.codec.json_values import value_to_json

    data, encoding = entry.raw
    return value_to_json(data, encoding) if encoding else None


def entry_json(entry: Entry, *, keys_only: bool = False) -> dict[str, Any]:
    """An entry as -o json shows it."""
    shown: dict[str, Any] = {"key": key_json(entry)}
    if not keys_only:
        shown["value"] = value_json(entry)
    return {**shown, "versionstamp": entry.versionstamp, "expire_at_ms": entry.expire_at_ms}


def entry_row(entry: Entry, *, keys_only: bool = False) -> list[str]:
    """An entry as a row of ENTRY_COLUMNS."""
    value = [] if keys_only else [compact(value_json(entry)) if entry.exists else "(does not exist)"]
    return [compact(key_json(entry)), *value, entry.versionstamp or "", show_time(entry.expire_at_ms)]


def entry_columns(*, keys_only: bool = False) -> list[str]:
    """The columns of entry_row."""
    return ["key", *([] if keys_only else ["value"]), "versionstamp", "expires"]


def compact(shown: object) -> str:
    """JSON on one line."""
    return json.dumps(shown, ensure_ascii=False)


def show_time(time_ms: int | None) -> str:
    """A time as ISO 8601 in UTC; empty for none."""
    if not time_ms:
        return ""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        return f"{time_ms} ms"
