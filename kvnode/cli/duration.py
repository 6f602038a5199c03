"""Durations as people write them: 500ms, 10s, 5m, 2h, 30d."""

from __future__ import annotations

import re

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_FORM = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def duration_ms(text: str) -> int:
    """Milliseconds of a duration. Raises ValueError that says how to write one."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is no duration: write a number with a unit, such as 500ms, 10s, 5m, 2h or 30d")
    return round(float(match[1]) * _UNITS_MS[match[2]])


def show_ms(milliseconds: int) -> str:
    """A duration for people: 250 ms, 3.2 s, 5 min, 4 h."""
    if milliseconds < 1_000:
        return f"{milliseconds} ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1_000:.1f} s"
    return f"{milliseconds // 60_000} min" if milliseconds < 3_600_000 else f"{milliseconds / 3_600_000:.1f} h"
