"""How a bug is planted: one place of the product is replaced, for as long as the context lasts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from kvnode.raft import raft

Patch = AbstractContextManager[None]


@contextmanager
def replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """Replace an attribute of a module or class.

    Raises:
        AttributeError, TypeError: it is there no more, or is called in another way: the bug is to be planted anew.
    """
    original = getattr(owner, name) if not isinstance(owner, type) else owner.__dict__[name]
    if inspect.isfunction(original) and inspect.isfunction(replacement):
        _require_the_same_call(original, replacement)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _require_the_same_call(original: Any, replacement: Any) -> None:
    parameters = inspect.signature(original).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
    inspect.signature(replacement).bind(*positional, **named)


def replaced_handler(original: Any, replacement: Any) -> Patch:
    """Replace a handler in the core's tables."""

    @contextmanager
    def patched() -> Iterator[None]:
        hits = [
            (table, at)
            for table in vars(raft).values()
            if isinstance(table, list | dict)
            for at, found in list(table.items() if isinstance(table, dict) else enumerate(table))
            if found is original
        ]
        assert hits, f"{original.__name__} stands in no table"
        for table, at in hits:
            table[at] = replacement
        try:
            yield
        finally:
            for table, at in hits:
                table[at] = original

    return patched()
