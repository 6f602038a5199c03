"""The callbacks of the simulated loop: asyncio's handles without what only its debug mode looks at.

A seed makes some hundred thousand of them, most of which run once and are forgotten.
"""

from __future__ import annotations

import contextvars
from asyncio import events
from collections.abc import Callable
from typing import Any


class SimulatedHandle(events.Handle):
    """A callback that is to run soon."""

    __slots__ = ()

    def __init__(
        self,
        callback: Callable[..., object],
        arguments: tuple[Any, ...],
        loop: Any,
        context: contextvars.Context | None,
    ) -> None:
        self._context = contextvars.copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = arguments
        self._cancelled = False
        self._repr = None
        self._source_traceback = None

    def cancel(self) -> None:
        """It will not run."""
        self._cancelled = True
        self._callback = self._args = None  # type: ignore[assignment]


class SimulatedTimer(SimulatedHandle, events.TimerHandle):
    """A callback that is to run at a time.

    The loop's heap holds (time, timer). Of two timers of one time none is less, so that the heap is free in their
    order, as asyncio's is: a seed depends on that order.
    """

    __slots__ = ()

    def __init__(
        self,
        when_s: float,
        callback: Callable[..., object],
        arguments: tuple[Any, ...],
        loop: Any,
        context: contextvars.Context | None,
    ) -> None:
        SimulatedHandle.__init__(self, callback, arguments, loop, context)
        self._when = when_s
        self._scheduled = True

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __lt__(self, other: object) -> bool:
        return False

    def cancel(self) -> None:
        """It will not run; the loop counts those that it still holds."""
        if not self._cancelled:
            self._loop._timer_handle_cancelled(self)
            SimulatedHandle.cancel(self)
