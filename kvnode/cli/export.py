"""export: rows into a file, one JSON object a line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.cli.data import connect, parse_key
from kvnode.cli.options import (
    DEFAULT_ENDPOINTS,
    DEFAULT_TIMEOUT,
    EndpointsOption,
    Output,
    OutputOption,
    TimeoutOption,
)
from kvnode.cli.progress import progress_bar
from kvnode.cli.run import run
from kvnode.cli.selection import chosen
from kvnode.cli.show import print_json

if TYPE_CHECKING:
    from kvnode.client import Kv
    from kvnode.client.transfer.progress_file import ProgressFile

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Where the rows go; - = standard output.")]


def export(
    file: FileArgument,
    prefix: Annotated[
        str, typer.Option("--prefix", metavar="PREFIX", help="Only keys that begin with these parts, a JSON array.")
    ] = "[]",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with FILE where an export broke off.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Write the rows of a database into a file, one JSON object a line, for `kvnode import` and for other programs.

    Values stand there readable, and beside them in base64 ("data") where the readable form alone would not give the
    same bytes back. Rows written while the export ran are marked "after_start".

    Examples:

      kvnode export all.ndjson

      kvnode export --prefix '["users"]' users.ndjson

      kvnode export --resume all.ndjson

      kvnode export - | jq -c .key
    """
    target = _Target(file, prefix, resume=resume, force=force)

    async def work() -> dict[str, Any]:
        async with connect(endpoints, timeout) as kv:
            with target.opened():
                try:
                    return await _export(kv, target)
                except BaseException:
                    target.broke_off()
                    raise

    done = run(work(), output)
    if output is Output.JSON and not target.is_standard_output:
        print_json(done)
        return
    after = f", {done['rows_after_start']} of them written since it began" if done["rows_after_start"] else ""
    print(f"kvnode: {done['rows']} rows exported{after}", file=sys.stderr)


async def _export(kv: Kv, target: _Target) -> dict[str, Any]:
    from kvnode.client.transfer.exporting import export_pages

    prefix = parse_key(target.prefix)
    is_shown = sys.stderr.isatty()
    total = await kv.count(prefix) if is_shown else None
    with progress_bar("exporting", "rows", total, done=target.rows_count) as advance:
        pages = export_pages(
            kv,
            prefix,
            after=target.last_key,
            start_versionstamp=target.start_versionstamp,
            page_count=limits.MAX_READ_ENTRIES_COUNT,
        )
        async for page in pages:
            target.write(page.lines, page.rows_count, page.after_start_count, page.start_versionstamp)
            advance(page.rows_count)
    target.finish()
    return {
        "rows": target.rows_count,
        "rows_after_start": target.after_start_count,
        "start_versionstamp": target.start_versionstamp or None,
    }


class _Target:
    """Where rows go, and what is needed to go on there later."""

    def __init__(self, file: Path, prefix: str, *, resume: bool, force: bool) -> None:
        self.prefix = prefix
        self.is_standard_output = str(file) == "-"
        self.rows_count = 0
        self.after_start_count = 0
        self.start_versionstamp = ""
        self.last_key: bytes | None = None
        self._path = file
        self._resume = resume
        self._force = force
        self._file: BinaryIO = sys.stdout.buffer

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open the file, as new or behind its last whole line. Raises InvalidRequest."""
        if self.is_standard_output:
            if self._resume:
                raise InvalidRequest("BAD_FLAGS", "--resume needs a FILE")
            yield
            return
        try:
            if self._resume:
                self._go_on()
            else:
                self._file = self._path.open("wb" if self._force else "xb")
        except FileExistsError:
            raise InvalidRequest(
                "FILE_EXISTS", f"{self._path} exists: --resume goes on with it, --force replaces it"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            yield
        except BaseException:
            with suppress(OSError):  # what a write has failed with: closing tries to write the same once more
                self._file.close()
            raise
        try:
            self._file.close()
        except OSError as error:
            raise self._unwritable(error) from None

    def write(self, lines: bytes, rows_count: int, after_start_count: int, start_versionstamp: str) -> None:
        """Add rows. A page is handed to the system whole, so that what is left after a kill is lines and one torn."""
        is_first = not self.start_versionstamp
        self.start_versionstamp = start_versionstamp
        if is_first:
            self._note_beginning()
        try:
            self._file.write(lines)
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._unwritable(error) from None
        self.rows_count += rows_count
        self.after_start_count += after_start_count

    def finish(self) -> None:
        """The file is complete."""
        if self.is_standard_output:
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            if self._path.is_file():  # a pipe or a device has nothing to sync
                raise self._unwritable(error) from None
        self._progress().remove()

    def broke_off(self) -> None:
        """Say how far it came, if it can go on there."""
        if self.start_versionstamp and not self.is_standard_output and self._path.is_file():
            text = f"{self.rows_count} rows exported before it broke off; --resume goes on there"
            print(f"kvnode: {text}", file=sys.stderr)

    def _note_beginning(self) -> None:
        if not self.is_standard_output and self._path.is_file():
            beginning = {"start_versionstamp": self.start_versionstamp, "prefix": self.prefix}
            self._progress().save({**beginning, "database": chosen.database})

    def _go_on(self) -> None:
        from kvnode.client.transfer.lines import read_tail

        saved = self._progress().load()
        now = {"prefix": self.prefix, "database": chosen.database}
        for name, value in now.items():
            if saved.get(name) != value:
                raise InvalidRequest(
                    "NOTHING_TO_RESUME",
                    f"{self._path} was begun with --{name} {str(saved.get(name))!r}, not {value!r}: say the same, or "
                    "begin anew with --force.",
                )
        self._file = self._path.open("r+b")
        tail = read_tail(self._file)
        self._file.truncate(tail.size_bytes)
        self._file.seek(tail.size_bytes)
        self.start_versionstamp = str(saved.get("start_versionstamp", ""))
        self.rows_count, self.last_key = tail.rows_count, tail.last_key
        self.after_start_count = tail.after_start_count

    def _progress(self) -> ProgressFile:
        from kvnode.client.transfer.progress_file import ProgressFile

        return ProgressFile(self._path, "export")

    def _unwritable(self, error: OSError) -> InvalidRequest:
        return InvalidRequest("FILE_NOT_WRITTEN", f"cannot write {self._path}: {error.strerror}")
