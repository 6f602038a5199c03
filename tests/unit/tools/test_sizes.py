"""What a reader has to hold in mind at once is bounded: the lines of a function, and of a module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDERS = ("kvnode", "cluster", "bench", "tools", "tests")
NOT_OURS = ("kvnode/proto/kv/", "kvnode/proto/deno/")  # generated

MAX_FUNCTION_LINES = 70
MAX_MODULE_LINES = 600

# What is larger, with the bound that it has instead. An entry goes when what it names has become small enough.
LARGER_FUNCTIONS = {
    # What a node is made of comes up and goes down in one order, which is read from top to bottom.
    "kvnode/api/serve.py:_run_node": 110,
}
LARGER_MODULES = {
    "tests/simulation/network.py": 650,  # links, unary calls and streams of one simulated network
    "tests/unit/api/connect/test_whole_requests.py": 750,  # a data request seen both ways, and its backend
}


def modules() -> Iterator[tuple[str, str]]:
    """The path of each, and its text; what lies in a folder with a leading dot was not written here."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(NOT_OURS) and not any(part.startswith(".") for part in name.split("/")):
                yield name, path.read_text(encoding="utf-8")


def functions(text: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def judge(found: dict[str, int], most: int, larger: dict[str, int]) -> None:
    above = {name: lines for name, lines in found.items() if lines > larger.get(name, most)}
    assert not above, f"larger than {most} lines, or than the bound of their own: {above}: split them by idea"
    needless = [name for name in larger if found.get(name, 0) <= most]
    assert not needless, f"need no bound of their own any more: {needless}"


def test_no_module_is_larger_than_one_idea() -> None:
    judge({name: text.count("\n") for name, text in modules()}, MAX_MODULE_LINES, LARGER_MODULES)


def test_no_function_is_larger_than_a_page() -> None:
    found: dict[str, int] = {}
    for name, text in modules():
        for function, lines in functions(text):
            key = f"{name}:{function}"
            found[key] = max(lines, found.get(key, 0))
    judge(found, MAX_FUNCTION_LINES, LARGER_FUNCTIONS)
