"""kvnode changelog show."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import typer

from kvnode.cli.changelog import show
from kvnode.cli.options import Output
from kvnode.codec.entry import Entry, EntryKind
from kvnode.machine.directory import rows
from kvnode.machine.keyspace import database_prefix
from kvnode.proto.kv.internal.v1 import log_pb2
from kvnode.storage.fork_file import ForkFiles, ForkHeader
from kvnode.storage.system_disk import SystemDisk


@pytest.mark.parametrize("output", [Output.TABLE, Output.JSON])
@pytest.mark.parametrize(("fork_index", "said"), [(903, ""), (899, "entries 900 to 903 were given up too")])
def test_entries_that_the_log_no_longer_had_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: Output, fork_index: int, said: str
) -> None:
    header = ForkHeader("a", "c", 1, fork_index, 904, 904, 1_000)
    path = asyncio.run(ForkFiles(SystemDisk(), str(tmp_path)).save(header, [Entry(1, 904, EntryKind.NOOP, b"")]))
    show(Path(path), output)
    error = capsys.readouterr().err
    assert said in error if said else not error


@pytest.mark.parametrize("output", [Output.TABLE, Output.JSON])
def test_changes_of_databases_and_tokens_are_named_and_what_they_removed_is_there_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: Output
) -> None:
    database = rows.DatabaseRow(7, "uuid", "orders", rows.DatabaseMode.ENABLED, 0, 1)
    payload = log_pb2.EntryPayload(epoch=1)
    facts = payload.transactions.add().facts
    facts.add(kind=log_pb2.FACT_KIND_SET, key=database_prefix(1) + b"\x02a key\x00", value=b"v")
    facts.add(kind=log_pb2.FACT_KIND_DELETE, key=rows.token_key("abcd2345"))
    facts.add(kind=log_pb2.FACT_KIND_SET, key=rows.key_of(database), value=rows.encode(database))
    facts.add(kind=log_pb2.FACT_KIND_SET, key=rows.VERSION_KEY, value=rows.encode(rows.VersionRow(8)))
    header = ForkHeader("a", "c", 1, 903, 904, 904, 1_000)
    entries = [Entry(1, 904, EntryKind.DATA, payload.SerializeToString())]
    show(Path(asyncio.run(ForkFiles(SystemDisk(), str(tmp_path)).save(header, entries))), output)
    shown = capsys.readouterr()
    assert shown.err.endswith("is there again: token abcd2345 removed, database number 7 set\n")
    assert "abcd2345" not in shown.out and "a key" in shown.out


def test_a_file_of_another_kind_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "rows.ndjson"
    other.write_text('{"key": ["a"], "value": 1}\n')
    with pytest.raises(typer.Exit):
        show(other)
    assert "is no whole fork file: not of a format that this version knows" in capsys.readouterr().err
