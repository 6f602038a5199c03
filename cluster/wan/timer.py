"""A timer that is exact to some 0.1 ms. The loop's own rounds up to whole milliseconds, the delay between two data
centers of a region."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

_TFD_NONBLOCK, _TFD_CLOEXEC, _TFD_TIMER_ABSTIME = 0o4000, 0o2000000, 1
_COUNT_BYTES = 8


class _Spec(ctypes.Structure):
    """struct itimerspec."""

    _fields_ = [(name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns")]


_libc = ctypes.CDLL(None, use_errno=True)


class ExactTimer:
    """One deadline at a time, on Linux's timerfd.

    Args:
        expired: called on the running loop once the deadline has passed.
    """

    def __init__(self, expired: Callable[[], None]) -> None:
        self._expired = expired
        self._descriptor = _libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._fire)
        self._armed_for = float("inf")

    def arm(self, at_s: float) -> None:
        """Expire at `at_s` of time.monotonic(), unless an earlier deadline is set already."""
        if at_s >= self._armed_for:
            return
        self._armed_for = at_s
        at_ns = max(1, int(at_s * 1e9))  # 0 would disarm it
        spec = _Spec(0, 0, at_ns // 1_000_000_000, at_ns % 1_000_000_000)
        if _libc.timerfd_settime(self._descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Expire no more."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _fire(self) -> None:
        try:
            os.read(self._descriptor, _COUNT_BYTES)
        except BlockingIOError:
            return
        self._armed_for = float("inf")
        self._expired()
