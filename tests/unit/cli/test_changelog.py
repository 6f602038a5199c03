"""kvnode changelog show."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kvnode.cli.changelog import show
from kvnode.cli.options import Output
from kvnode.codec.entry import Entry, EntryKind
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
