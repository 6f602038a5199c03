"""Running a command's work, and ending with one clear paragraph and an exit status when it fails."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

import typer

from kvnode.base.errors import KvError
from kvnode.cli.exits import Exit, exit_of
from kvnode.cli.options import Output

Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result], output: Output | None = None) -> Result:
    """The result of asynchronous work; a KvError ends the process with its exit status."""
    try:
        return asyncio.run(work)
    except KvError as error:
        fail(error, output)
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None
    except BrokenPipeError:
        flush_output()
        raise typer.Exit(Exit.OK) from None


def flush_output() -> None:
    """Write out what is buffered. That its reader went away (head, less) is no error, and nobody is left to hear it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(error: KvError, output: Output | None = None) -> NoReturn:
    """Say what went wrong, where and what to do, on standard error; as one JSON object with -o json."""
    print(error_text(error, output), file=sys.stderr)
    raise typer.Exit(exit_of(error))


def error_text(error: KvError, output: Output | None) -> str:
    """An error as a sentence, or with -o json as one JSON object on a line."""
    if output is not Output.JSON:
        return f"kvnode: {error}"
    fields = {
        "code": error.code,
        "message": error.message,
        "phase": error.phase,
        "endpoint": error.endpoint,
        "not_applied": error.not_applied,
    }
    return json.dumps({"error": fields}, ensure_ascii=False)
