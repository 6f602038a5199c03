"""What `make` says on a machine where something is missing, and the program that it puts beside the interpreter."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOO_OLD = 'case "$*" in *version_info*) exit 1;; esac\necho Python 3.9.2'
NO_VENV = 'case "$*" in *ensurepip*) exit 1;; esac'


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder that is all of PATH: the shell and make, and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "make", "awk", "cat", "find", "mkdir", "touch", "printf", "chmod", "dirname", "readlink"):
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    return folder


def make(target: str, path: Path, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = ["make", "-f", str(ROOT / "Makefile"), target]
    return subprocess.run(command, cwd=folder, env={"PATH": str(path)}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", ["demo", "test"])
@pytest.mark.parametrize(
    ("python", "said"),
    [
        (None, "'python3' is missing: install python3 (3.11 or newer)"),
        (TOO_OLD, "Python 3.9.2 is too old: CPython 3.11 or newer is needed"),
        (NO_VENV, "python3-venv is missing: on Debian 'apt install python3-venv'"),
    ],
)
def test_what_is_missing_is_named(bare: Path, target: str, python: str | None, said: str) -> None:
    if python is not None:
        (bare / "python3").write_text(f"#!/bin/sh\n{python}\n")
        (bare / "python3").chmod(0o755)
    ran = make(target, bare)
    assert ran.returncode != 0
    assert said in ran.stdout


def test_the_program_runs_from_any_folder(tmp_path: Path) -> None:
    """As the Makefile writes it, with a Python of the test's own."""
    project = tmp_path / "project"
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / "requirements").mkdir()
    (project / "requirements" / "dev.txt").touch()
    (project / ".venv" / ".stamp").touch()
    python = project / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$PYTHONPATH $@"\n')
    python.chmod(0o755)
    made = subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), ".venv/bin/kvnode"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    link = tmp_path / "kvnode"
    link.symlink_to(project / ".venv" / "bin" / "kvnode")
    ran = subprocess.run([link, "get", '["a b"]'], cwd=tmp_path, capture_output=True, text=True, check=True)
    folder, *arguments = ran.stdout.split(" ", 3)
    assert Path(folder).resolve() == project
    assert arguments == ["-m", "kvnode", 'get ["a b"]\n']


@pytest.mark.parametrize("lock", ["runtime.txt", "dev.txt"])
def test_the_locks_have_hashes_and_name_no_host(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text()
    pins = [line for line in text.splitlines() if "==" in line and not line.startswith((" ", "#"))]
    assert pins
    assert text.count("--hash=sha256:") >= len(pins)
    assert "://" not in text and "--index-url" not in text
