"""Asking whoever sits at the terminal."""

from __future__ import annotations

import sys

import typer

from kvnode.cli.exits import Exit


def agrees(question: str) -> bool:
    """Whether the user says yes; the end of the input is a no. Ctrl-C ends the process with INTERRUPTED.

    The question goes to standard error, which `-o json` and pipes leave alone.
    """
    try:
        return typer.confirm(question, err=True)
    except typer.Abort as abort:  # by itself typer ends both with status 1
        print(file=sys.stderr)
        if isinstance(abort.__context__, EOFError):
            return False
        raise typer.Exit(Exit.INTERRUPTED) from None
