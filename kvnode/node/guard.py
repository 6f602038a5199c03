"""What ends a node, wherever it is noticed.

The driver and the ticker are tasks whose every exception is fatal. But the core is also entered from elsewhere: by a
peer's stream, a snapshot's transfer, an administrator's call. A broken invariant found there must not end as one
caller's error, or as a line in a log, while the node goes on to acknowledge. (What clients send is queued, and enters
the core with the driver.)
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from kvnode.base.invariant import InvariantViolation


class Guard:
    """`with guard:` around every entry: a broken invariant ends the node, and goes on to the caller.

    Args:
        fail: ends the node; may be called more than once.
    """

    def __init__(self, fail: Callable[[BaseException], None]) -> None:
        self._fail = fail

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, InvariantViolation):
            self._fail(error)
