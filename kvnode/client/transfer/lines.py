"""Files of rows, one JSON object a line: read with a place to go on from, and told apart from a torn last line."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.client.transfer.rows import AFTER_START_ENDING, TransferRow, bad_row, line_to_row


class LinePosition(NamedTuple):
    """Behind a line: bytes and lines before it."""

    offset_bytes: int = 0
    lines_count: int = 0


BEGINNING = LinePosition()


def read_rows(file: BinaryIO, start: LinePosition = BEGINNING) -> Iterator[tuple[TransferRow, LinePosition]]:
    """The rows of a file, blank lines and a byte order mark left out.

    Args:
        file: at `start`.
        start: what was read before.

    Raises:
        InvalidRequest: BAD_IMPORT_LINE, a line that is no row, or is too long.
    """
    offset_bytes, lines_count = start
    while line := file.readline(limits.MAX_IMPORT_LINE_BYTES + 1):
        lines_count += 1
        offset_bytes += len(line)
        if len(line) > limits.MAX_IMPORT_LINE_BYTES:
            raise bad_row(f"line {lines_count}", f"a line has at most {limits.MAX_IMPORT_LINE_BYTES} bytes")
        if lines_count == 1:
            line = line.removeprefix(codecs.BOM_UTF8)  # as editors on Windows write it
        if line.strip():
            yield _to_row(line, lines_count), LinePosition(offset_bytes, lines_count)


def _to_row(line: bytes, number: int) -> TransferRow:
    try:
        return line_to_row(line, f"line {number}")
    except InvalidRequest as error:
        if line.endswith(b"\n"):
            raise
        torn = "the file ends in this line, without a newline: it may have been cut off"
        raise InvalidRequest(error.code, f"{error.message}; {torn}") from error


class Tail(NamedTuple):
    """The end of a file of rows: what may be kept of it.

    Attributes:
        size_bytes: up to and with the last complete line.
        rows_count: lines in that.
        after_start_count: those of them that were written after the export began.
        last_key: of the last of them; None without any.
    """

    size_bytes: int
    rows_count: int
    after_start_count: int
    last_key: bytes | None


def read_tail(file: BinaryIO) -> Tail:
    """Where an export that broke off can go on. A last line without its newline does not count.

    Raises:
        InvalidRequest: BAD_IMPORT_LINE, the last complete line is no row.
    """
    size_bytes = rows_count = after_start_count = 0
    last = b""
    for line in file:
        if not line.endswith(b"\n"):
            break
        size_bytes += len(line)
        rows_count += 1
        after_start_count += line.endswith(AFTER_START_ENDING)
        last = line
    key = line_to_row(last, f"line {rows_count}").key if rows_count else None
    return Tail(size_bytes, rows_count, after_start_count, key)
