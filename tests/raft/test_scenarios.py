"""Every transcript of scenarios/ prints what it says; KVNODE_REWRITE=1 makes it so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.raft.transcript import Transcript

FILES = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


def play(text: str) -> str:
    """Run the commands of a transcript and return it with what they print."""
    transcript = Transcript()
    lines: list[str] = []
    block: list[str] = []
    expected = False
    for line in text.splitlines():
        if expected:
            expected = bool(line)
            if expected:
                continue
        if line == "----":
            lines += [line, *filter(None, [transcript.run(block)])]
            block, expected = [], True
            continue
        if line and not line.startswith("#"):
            block.append(line)
        lines.append(line)
    assert not block, f"commands without ----: {block}"
    return "\n".join(lines).rstrip("\n") + "\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    text = path.read_text()
    played = play(text)
    if os.environ.get("KVNODE_REWRITE") == "1":
        path.write_text(played)
    else:
        assert played == text, "KVNODE_REWRITE=1 rewrites it; read the difference before you believe it"
