"""import: rows from a file of `kvnode export`, or from the SQLite file of a Deno KV."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, KvError
from kvnode.cli.data import connect
from kvnode.cli.import_sources import LinesSource, Source, SqliteSource
from kvnode.cli.options import DEFAULT_ENDPOINTS, EndpointsOption, Output, OutputOption, TimeoutOption
from kvnode.cli.progress import progress_bar
from kvnode.cli.run import run
from kvnode.cli.selection import chosen
from kvnode.cli.show import print_json

if TYPE_CHECKING:
    from kvnode.client.transfer.importing import ImportCount

DEFAULT_IMPORT_TIMEOUT = "60s"


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The rows, one JSON object a line; - = standard input.")],
    sqlite: Annotated[
        bool, typer.Option("--sqlite", help="FILE is the SQLite file of a Deno KV or of denokv; it is only read.")
    ] = False,
    if_absent: Annotated[
        bool, typer.Option("--if-absent", help="Leave keys that exist as they are, rather than overwrite them.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an import of FILE broke off.")] = False,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_IMPORT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Set every row of a file, in transactions of up to 500 rows; the whole is not one transaction.

    Doing it again leaves the same values, so what broke off can be repeated, or gone on with by --resume. Rows whose
    time is over are left out. Versionstamps are new ones. A row at fault ends it, with its line in the error.

    Of a row only "key" and "value" are needed: {"key": ["users", "ada"], "value": {"born": 1815}}

    Examples:

      kvnode import all.ndjson

      kvnode import --resume all.ndjson

      kvnode import --if-absent - < users.ndjson

      kvnode import --sqlite ./kv.sqlite3
    """
    source: Source = SqliteSource(file) if sqlite else LinesSource(file)
    count = run(_import(file, source, if_absent, resume, endpoints, timeout), output)
    if output is Output.JSON:
        print_json({**count._asdict(), **source.left_out})
    else:
        print(f"OK {_summary(count, source.left_out)}")


async def _import(
    file: Path, source: Source, if_absent: bool, resume: bool, endpoints: str, timeout_ms: int
) -> ImportCount:
    from kvnode.client.transfer.importing import import_rows

    if str(file) == "-" and (resume or isinstance(source, SqliteSource)):
        raise InvalidRequest("BAD_FLAGS", "--sqlite and --resume need a FILE")
    notes = _Notes(file, source, if_absent)
    saved = notes.load() if resume else {}
    source.open(saved.get("position"))
    try:
        notes.begin(saved)
        with progress_bar("importing", source.unit, source.total) as advance:
            shown = 0

            def reached(count: ImportCount, position: Any) -> None:
                nonlocal shown
                notes.reached(count, position)
                advance(source.reached(position) - shown)
                shown = source.reached(position)

            async with connect(endpoints, timeout_ms) as kv:
                await import_rows(
                    kv, source.rows(), if_absent=if_absent, timeout_ms=timeout_ms, now_ms=_now_ms, done=reached
                )
    except BaseException:
        notes.broke_off()
        raise
    finally:
        source.close()
    notes.finish()
    return notes.count


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class _Notes:
    """How far the import is, beside the file, so that --resume can go on. Standard input has none."""

    def __init__(self, file: Path, source: Source, if_absent: bool) -> None:
        from kvnode.client.transfer.importing import ImportCount
        from kvnode.client.transfer.progress_file import ProgressFile

        self.count = ImportCount()
        self._source = source
        self._progress = None if str(file) == "-" else ProgressFile(file, "import")
        self._target = {"database": chosen.database, "if_absent": if_absent}
        self._position: Any = None
        self._saved_at_ms = _now_ms()

    def load(self) -> dict[str, Any]:
        """What an import that broke off has left. Raises InvalidRequest: NOTHING_TO_RESUME."""
        assert self._progress is not None, "refused before"
        saved = self._progress.load()
        if any(saved.get(name) != value for name, value in self._target.items()):
            raise InvalidRequest(
                "NOTHING_TO_RESUME",
                f"it was begun with --database {saved.get('database')!r} and "
                f"{'' if saved.get('if_absent') else 'without '}--if-absent: say the same, or leave --resume out.",
            )
        return saved

    def begin(self, saved: dict[str, Any]) -> None:
        """The source is open."""
        if saved and saved.get("source") != self._source.identity(saved.get("position")):
            raise InvalidRequest(
                "NOTHING_TO_RESUME",
                "what was read of the file is no longer what it begins with: leave --resume out. To set the rows again "
                "leaves the same values.",
            )
        self.count = type(self.count)(*saved.get("count", ()))

    def reached(self, count: ImportCount, position: Any) -> None:
        """Everything before `position` is in."""
        self.count = self.count.plus(count)
        self._position = position
        if _now_ms() - self._saved_at_ms >= limits.IMPORT_SAVE_INTERVAL_MS:
            self._save()

    def broke_off(self) -> None:
        """Keep how far it came, and say so."""
        if self._progress is None or self._position is None:
            return
        self._save()
        if self._progress is not None:
            print(f"kvnode: {_summary(self.count, {})} before it broke off; --resume goes on there", file=sys.stderr)

    def finish(self) -> None:
        """All is in."""
        if self._progress is not None:
            self._progress.remove()

    def _save(self) -> None:
        if self._progress is None:
            return
        position = self._source.saved(self._position)
        try:
            source = self._source.identity(position)
            self._progress.save({**self._target, "source": source, "position": position, "count": [*self.count]})
        except KvError as error:  # a folder that cannot be written is no reason to stop
            print(f"kvnode: {error.message}; --resume will not be possible", file=sys.stderr)
            self._progress = None
        self._saved_at_ms = _now_ms()


def _summary(count: ImportCount, left_out: dict[str, int]) -> str:
    parts = [f"{count.written} rows imported"]
    if count.existing:
        parts.append(f"{count.existing} that exist left as they are")
    if count.expired:
        parts.append(f"{count.expired} expired ones left out")
    if left_out.get("queued"):
        parts.append(f"{left_out['queued']} queued messages not imported")
    return ", ".join(parts)
