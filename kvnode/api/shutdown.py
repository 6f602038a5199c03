"""How a process that serves comes to its end: in steps, in order, and in any case."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from kvnode.base import limits

_log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1


@asynccontextmanager
async def bounded_shutdown() -> AsyncIterator[None]:
    """The steps within have SHUTDOWN_TIMEOUT_MS together; then the process ends there and then, with EXIT_FAILED.

    That is as safe as a kill: nothing was acknowledged that is not in the fsynced log. What is still open or running,
    a state or a request that nobody ends, would keep the process from ending otherwise.
    """
    try:
        async with asyncio.timeout(limits.SHUTDOWN_TIMEOUT_MS / 1_000):
            yield
    except TimeoutError:
        _log.error("the shutdown took longer than %d ms and is cut short", limits.SHUTDOWN_TIMEOUT_MS)
        end_process(EXIT_FAILED)


async def attempt(step: Awaitable[None]) -> None:
    """A step of the shutdown whose failure must not keep those after it from being taken."""
    try:
        await step
    except Exception:
        _log.exception("a step of the shutdown failed; it goes on")


def end_process(status: int) -> None:
    """End at once, with everything logged and nothing closed."""
    logging.shutdown()
    os._exit(status)
