"""Commands start without pydantic, and what they are given is judged as before."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cluster.launcher import ROOT

_RUN = "import sys; from kvnode.cli.main import main; sys.argv[0] = 'kvnode'\ntry: main()\nfinally: print({})"


def run(expression: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _RUN.format(expression), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


NOBODY = ("--endpoints", "127.0.0.1:1", "--timeout", "100ms")


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", '["a"]', *NOBODY),
        ("queue", "list", *NOBODY),
        ("member", "list", *NOBODY),
        ("serve", "--listen", "wrong"),
    ],
)
def test_a_command_starts_without_pydantic(arguments: tuple[str, ...]) -> None:
    done = run("'pydantic' in sys.modules", *arguments)
    assert done.returncode in (2, 4), done.stderr
    assert done.stdout.splitlines()[-1] == "False", (
        "another typer: see kvnode/cli/direct_values.py, then TYPER_KNOWN_INSIDE"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("get", '["a"]', "--consistency", "stale"), "'stale' is not one of"),
        (("list", "--limit", "many"), "valid integer"),
        (("status", "--timeout", "5x"), "is no duration"),
    ],
)
def test_a_wrong_value_is_refused(arguments: tuple[str, ...], said: str) -> None:
    done = run("''", *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split()), done.stderr


def test_another_typer_starts_more_slowly_and_no_more() -> None:
    """The package takes whatever typer is there: what is private may be gone, which must not be the end of `serve`."""
    other = "import sys, typer; typer.__version__ = '99.0'; import typer.core; del typer.core.build_runtime_param; "
    other += "sys.modules['typer._coercion'] = None; import kvnode.cli.main; print('up')"
    done = subprocess.run(
        [sys.executable, "-c", other],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "up\n", done.stderr
