"""One thread that does blocking work for the loop, in order.

Leaner than an executor: a queue and one wake-up of the loop per job (bench/log_append.py measures the hop). The
thread is a daemon and lives only while there is work or its owner lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

_T = TypeVar("_T")
_Job = Callable[[], None]


class WorkerThread:
    """Runs jobs on one thread, which is started by the first.

    Args:
        name: the thread's.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job | None] | None = None

    async def run(self, work: Callable[[], _T]) -> _T:
        """Run `work` behind the jobs before it; returns or raises what it does.

        Cancelling the caller does not stop the work.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def job() -> None:
            try:
                result = work()
            except BaseException as error:
                outcome: Callable[[], None] = _Failure(future, error)
            else:
                outcome = _Success(future, result)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(outcome)

        self._queue().put(job)
        return await future

    def _queue(self) -> SimpleQueue[_Job | None]:
        if self._jobs is None:
            jobs: SimpleQueue[_Job | None] = SimpleQueue()
            self._jobs = jobs
            threading.Thread(target=_serve, args=(jobs,), name=self._name, daemon=True).start()
            weakref.finalize(self, jobs.put, None)
        return self._jobs


class _Success:
    __slots__ = ("_future", "_result")

    def __init__(self, future: asyncio.Future[_T], result: _T) -> None:
        self._future: asyncio.Future[_T] = future
        self._result = result

    def __call__(self) -> None:
        if not self._future.done():
            self._future.set_result(self._result)


class _Failure:
    __slots__ = ("_error", "_future")

    def __init__(self, future: asyncio.Future[_T], error: BaseException) -> None:
        self._future: asyncio.Future[_T] = future
        self._error = error

    def __call__(self) -> None:
        if not self._future.done():
            self._future.set_exception(self._error)


def _serve(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # holds the result, which may be large, until the next one comes
