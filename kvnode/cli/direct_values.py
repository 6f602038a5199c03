"""Values that need no conversion, without pydantic.

Typer converts what stands on a command line by a pydantic adapter for each parameter, which it makes also where nothing
was given. To import pydantic and to make fifty adapters is a good part of the time in which a node or a command starts,
and a text from the command line is a text already.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

import typer.core
from typer._coercion import RuntimeParam, TypeDescriptor, build_runtime_param

_PLAIN = (str, bool, int, float)


@dataclass(frozen=True)
class _Direct(RuntimeParam):
    """Hands on what is absent or of its own type already, and asks our own parsers; the rest is typer's to convert."""

    descriptor: TypeDescriptor

    def _coerce_value(self, value: Any, param: Any, ctx: Any) -> Any:
        info = self.parameter_info
        if info.parser is not None:
            with suppress(ValueError, AssertionError):  # typer words what is wrong with it
                return info.parser(value)
        elif info.min is None and info.max is None and self._is_as_wanted(value):
            return value
        return build_runtime_param(self.descriptor).coerce(value, param=param, ctx=ctx)

    def _is_as_wanted(self, value: object) -> bool:
        wanted: Any = self.annotation
        return type(value) is wanted and (wanted in _PLAIN or issubclass(wanted, Enum))


def _direct(descriptor: TypeDescriptor) -> RuntimeParam:
    return _Direct(descriptor.parameter_info, descriptor.annotation, descriptor)


def take_values_directly() -> None:
    """Have typer convert only what needs it, for the rest of this process.

    Typer has no setting for it, and what is replaced is private: main.py does so, and imports this module, only with
    the version for which this was written. A test says when the lock names another one.
    """
    typer.core.build_runtime_param = _direct  # type: ignore[attr-defined]
