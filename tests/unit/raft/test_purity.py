"""The core does no I/O and knows neither clock nor chance, and none of its functions is long."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kvnode.raft

FILES = sorted(Path(kvnode.raft.__file__).parent.glob("*.py"))
ALLOWED = {"__future__", "collections", "dataclasses", "enum", "typing", "kvnode"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_are_pure(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in tree.body:  # at the top level only: what stands under TYPE_CHECKING does not run
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] in ALLOWED, f"{path.name} imports {node.module}"
        assert not isinstance(node, ast.Import), f"{path.name} imports a module at run time"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 70, f"{path.name}: {node.name}"
