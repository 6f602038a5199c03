"""changelog show: what a node saved that a failover had cut off."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvnode.base.errors import InvalidRequest, KvError
from kvnode.cli.options import Output, OutputOption
from kvnode.cli.run import fail
from kvnode.cli.show import compact, print_json, print_table, show_time

if TYPE_CHECKING:
    from kvnode.codec.entry import Entry
    from kvnode.storage.fork_file import ForkHeader

changelog_app = typer.Typer(no_args_is_help=True, help="The changelog: show what a failover has cut off.")

_COLUMNS = ("versionstamp", "log time", "change", "database", "key", "value")


@changelog_app.command("show")
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file under a node's data directory, forks/*.fork.")],
    output: OutputOption = None,
) -> None:
    """Show the entries that a node held and nobody else, saved when a failover had ended its history.

    Example:

      kvnode changelog show data/forks/epoch-1-from-905-to-911.fork -o json
    """
    try:
        _show(file, output)
    except KvError as error:
        fail(error, output)


def _show(file: Path, output: Output | None) -> None:
    from kvnode.storage.fork_file import read_fork

    try:
        data = file.read_bytes()
    except OSError as error:
        raise InvalidRequest("FORK_FILE_INVALID", f"cannot read {file}: {error.strerror}") from error
    header, entries = read_fork(data, str(file))
    if header.first_index > header.fork_index + 1:
        print(
            f"kvnode: entries {header.fork_index + 1} to {header.first_index - 1} were given up too, and are not in "
            "this file: the node's log no longer had them",
            file=sys.stderr,
        )
    changes: list[str] = []
    try:
        _show_rows(header, _noting_changes(entries, changes), output)
    finally:  # also where the file is damaged further on
        if changes:
            print(
                "kvnode: changes of databases and tokens were lost as well, so that what they revoked or deleted is "
                f"there again: {', '.join(changes)}",
                file=sys.stderr,
            )


def _noting_changes(entries: Iterable[Entry], changes: list[str]) -> Iterator[Entry]:
    """The entries as they are read; what they changed of databases and tokens is added to the list."""
    for entry in entries:
        changes.extend(directory_changes_of(entry))
        yield entry


def _show_rows(header: ForkHeader, entries: Iterable[Entry], output: Output | None) -> None:
    if output is Output.JSON:
        for entry in entries:
            for row in rows_of(entry):
                print_json(row)
        return
    print(
        f"Entries {header.first_index} to {header.last_index} of epoch {header.epoch}, held by '{header.node}'; the "
        f"history that goes on has what came up to {header.fork_index}. Saved {show_time(header.saved_at_ms)}."
    )
    rows = [_cells(row) for entry in entries for row in rows_of(entry)]
    print_table(_COLUMNS, rows)


def rows_of(entry: Entry) -> Iterator[dict[str, Any]]:
    """What an entry changed, a row for each fact; what is not of a user's database is left out."""
    from kvnode.codec.entry import EntryKind
    from kvnode.codec.versionstamp import versionstamp
    from kvnode.machine.keyspace import DATABASE_PREFIX_BYTES, SYSTEM_DATABASE
    from kvnode.proto.kv.internal.v1 import log_pb2

    if entry.kind is not EntryKind.DATA:
        return
    payload = log_pb2.EntryPayload.FromString(entry.data)
    for order, transaction in enumerate(payload.transactions):
        for fact in transaction.facts:
            database = int.from_bytes(fact.key[:DATABASE_PREFIX_BYTES], "big")
            if database == SYSTEM_DATABASE:
                continue
            kind = log_pb2.FactKind.Name(fact.kind).removeprefix("FACT_KIND_").lower()
            row: dict[str, Any] = {
                "versionstamp": versionstamp(payload.epoch, entry.index, order).hex(),
                "index": entry.index,
                "term": entry.term,
                "log_time_ms": payload.log_time_ms,
                "kind": kind,
                "database": database,
                "key": _key(fact.key[DATABASE_PREFIX_BYTES:]),
            }
            if fact.end_key:
                row["end"] = _key(fact.end_key[DATABASE_PREFIX_BYTES:])
            if kind == "set":
                row["value"] = _value(fact.value, fact.encoding)
                row["expire_at_ms"] = fact.expire_at_ms or None
            yield row


def directory_changes_of(entry: Entry) -> Iterator[str]:
    """What an entry changed of databases and tokens, a clause for each: nothing of it is a row of a user's database."""
    from kvnode.codec.entry import EntryKind
    from kvnode.machine.directory.rows import subject_of
    from kvnode.proto.kv.internal.v1 import log_pb2

    if entry.kind is not EntryKind.DATA:
        return
    for transaction in log_pb2.EntryPayload.FromString(entry.data).transactions:
        for fact in transaction.facts:
            if subject := subject_of(fact.key):
                yield f"{subject} {'set' if fact.kind == log_pb2.FACT_KIND_SET else 'removed'}"


def _key(raw: bytes) -> object:
    from kvnode.codec.json_keys import key_to_parts
    from kvnode.codec.keys import decode_key

    try:
        return key_to_parts(decode_key(raw))
    except (InvalidRequest, ValueError):
        return {"$key": raw.hex()}


def _value(data: bytes, encoding: int) -> object:
    from kvnode.codec.json_values import value_to_json

    try:
        return value_to_json(data, encoding)
    except (KvError, ValueError):
        return {"$data": data.hex(), "encoding": encoding}


def _cells(row: dict[str, Any]) -> list[str]:
    key = compact(row["key"]) + (f" to {compact(row['end'])}" if "end" in row else "")
    value = compact(row["value"]) if "value" in row else ""
    return [row["versionstamp"], show_time(row["log_time_ms"]), row["kind"], str(row["database"]), key, value]
