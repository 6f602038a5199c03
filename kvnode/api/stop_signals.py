"""The signals that ask a process to stop."""

from __future__ import annotations

import asyncio
import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def stop_signals() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; to be called in the main thread, on the running loop.

    What comes after the first is ignored to the process's very end. A handler of the loop's own would be gone with the
    loop, and a second signal then ended, by its default, a process that was about to exit in order.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        loop.call_soon_threadsafe(stopping.set)

    for number in _SIGNALS:
        signal.signal(number, stop)
    return stopping
