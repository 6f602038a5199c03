"""Why nothing of a queue is taken, if nothing is: what became of its requests, told once in a while.

A note is a write to the log, so requests that fail by the thousand must not make one each. The outcomes of an interval
are told together: nothing was taken, and why the last one was not, or something was. A receiver that fails now and then
is thereby one that takes messages. Failures behind the last success of an interval count in the next one, in which
nothing more may happen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvnode.base import limits


class Outcomes:
    """The outcomes of one queue's requests.

    Args:
        tell: called at the end of an interval in which requests have ended: why none was taken, or "" when one was.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._timer: asyncio.TimerHandle | None = None  # set while there are outcomes that were not told
        self._has_success = False
        self._failure = ""  # of the last request since a success

    def succeeded(self) -> None:
        """A message was taken."""
        self._has_success = True
        self._failure = ""
        self._begin()

    def failed(self, why: str) -> None:
        """A message was not taken."""
        self._failure = why
        self._begin()

    def forget(self) -> None:
        """What was not told is out of date, and never is."""
        if self._timer is not None:
            self._timer.cancel()
            self._clear()

    def _begin(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(limits.PUSH_NOTE_INTERVAL_MS / 1_000, self._end)

    def _end(self) -> None:
        has_success, failure = self._has_success, self._failure
        self._clear()
        self._tell("" if has_success else failure)
        if has_success and failure:
            self.failed(failure)

    def _clear(self) -> None:
        self._timer = None
        self._has_success = False
        self._failure = ""
