"""An undocumented flag, configuration key, exit status or error code fails here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvnode.base.errors
import kvnode.client
from kvnode.base.config import KEYS
from kvnode.cli.exits import Exit

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT / "docs" / "reference"
CODE = re.compile(r"[A-Z][A-Z0-9]+(_[A-Z0-9]+)*")
ERROR_CLASSES = {
    name for name, kind in vars(kvnode.base.errors).items() if isinstance(kind, type) and issubclass(kind, Exception)
}


def test_the_generated_pages_are_up_to_date() -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "generate_reference.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert ran.returncode == 0, ran.stderr


def test_every_key_and_exit_status_is_on_its_page() -> None:
    config, cli = (REFERENCE / "config.md").read_text(), (REFERENCE / "cli.md").read_text()
    for name in KEYS:
        assert f"| `{name}` | `--{name.replace('_', '-')}` | `KVNODE_{name.upper()}` |" in config
        assert f"--{name.replace('_', '-')}" in cli
    for status in Exit:
        assert f"| {int(status)} | " in cli


def constants(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and CODE.fullmatch(part.value):
            yield part.value


def codes_of(call: ast.Call) -> Iterator[str]:
    """The error codes that a call names: code="X", or the first argument of an error's class."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    for keyword in call.keywords:
        if keyword.arg == "code":
            yield from constants(keyword.value)
    if name in ERROR_CLASSES and call.args:
        yield from constants(call.args[0])


def codes_in_source() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted((ROOT / "kvnode").rglob("*.py")):
        if "proto" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                found |= dict.fromkeys(codes_of(node), str(path.relative_to(ROOT)))
            elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
                # Default codes of the error classes.
                defaults = [default for default in node.args.kw_defaults if default is not None]
                if path.name == "errors.py":
                    found |= dict.fromkeys((code for d in defaults for code in constants(d)), path.name)
    return found


def test_every_error_code_is_documented_with_a_remedy() -> None:
    page = (REFERENCE / "errors.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z0-9_]+)` \| [^|]+ \| [^|]+ \|$", page, flags=re.MULTILINE))
    missing = {code: path for code, path in codes_in_source().items() if code not in documented}
    assert not missing, f"docs/reference/errors.md lacks {missing}"


def test_every_error_class_is_documented() -> None:
    page = (REFERENCE / "errors.md").read_text()
    for name in ERROR_CLASSES - {"KvError", "LogDamaged", "StateDamaged"}:
        assert f"| `{name}` |" in page


def test_the_howto_is_python_and_names_what_exists() -> None:
    page = (ROOT / "docs" / "howto" / "python-client.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) > 5
    for block in blocks:
        indented = "\n".join(f"    {line}" for line in block.splitlines())
        compile(f"async def example():\n{indented}", "python-client.md", "exec")
    for name in re.findall(r"\bkv\.(?:session\.)?(\w+)\(", page):
        assert hasattr(kvnode.client.Kv, name), name
    for name in ("Session", "Admin", "KvU64", "BigInt", "OutcomeUnknown", "DeadlineExceeded", "Unavailable"):
        assert name in kvnode.client.__all__


@pytest.mark.parametrize("page", ["cli.md", "config.md", "errors.md"])
def test_no_page_has_an_absolute_path_of_a_machine(page: str) -> None:
    assert not re.search(r"/(work|root|tmp)/", (REFERENCE / page).read_text())
