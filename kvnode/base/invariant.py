"""Invariants that stay on in production: a broken one stops the node rather than corrupting data."""

from __future__ import annotations


class InvariantViolation(Exception):
    """The program's own reasoning is wrong; nothing after this may be acknowledged."""


def invariant(holds: bool, message: str) -> None:
    """Raise InvariantViolation with `message` unless `holds`."""
    if not holds:
        raise InvariantViolation(message)
