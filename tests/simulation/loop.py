"""A deterministic event loop over virtual time, in which several simulated processes live.

Theory of operation. Everything that a seed does runs on one loop of one thread. Time stands still while
callbacks run and jumps to the next timer when none is ready, so an hour of cluster life costs only the
callbacks in it. There are no sockets, no signals and no threads: what would wait for one of them for ever
is found and reported (`Hang`), and so is a loop that never comes to rest at one instant, or two nodes that answer each
other without end (`Livelock`).

A `Process` is a group of callbacks, told by a context variable that tasks and timers inherit. Because the
loop asks for it before each callback, a process can be stopped between any two callbacks, as SIGSTOP or a
long garbage collection does it: its callbacks, timers and deliveries pile up and run in order when it wakes.
A killed process never runs again, not even its `finally` blocks.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from asyncio import base_events, events
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation.handles import SimulatedHandle, SimulatedTimer

MAX_CALLBACKS_AT_ONE_INSTANT = 200_000
MAX_CALLBACKS_IN_ONE_SECOND = 500_000  # simulated; the busiest second of an ordinary seed has some 15,000
_RESOLUTION_S = 1e-9


class Hang(Exception):
    """Nothing is ready and no timer is set: whoever waits, waits for ever."""


class Livelock(Exception):
    """Callbacks make callbacks without end while time stands still."""


class Process:
    """A simulated process: it runs, is frozen, or is dead.

    Args:
        loop: the loop it lives on.
        name: for messages.
    """

    def __init__(self, loop: SimulatedLoop, name: str) -> None:
        self.name = name
        self.frozen = False
        self.dead = False
        self._loop = loop
        self._held: list[events.Handle] = []
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)

    def call(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Run `callback` in this process soon; never if it is dead by then."""
        self._loop.call_soon(callback, *arguments, context=self.context)

    def call_later(self, delay_s: float, callback: Callable[..., object], *arguments: Any) -> None:
        """Run `callback` in this process after `delay_s`, later if it is frozen then."""
        self._loop.call_later(delay_s, callback, *arguments, context=self.context)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str | None = None) -> asyncio.Task[Any]:
        """Start a task in this process."""
        return self._loop.create_task(coroutine, name=name or self.name, context=self.context)

    def freeze(self) -> None:
        """Stop it between two callbacks."""
        self.frozen = True

    def thaw(self) -> None:
        """Let it run on; what piled up runs first, in order."""
        self.frozen = False
        self._loop.resume(self._held)
        self._held = []

    def kill(self) -> None:
        """End it at once."""
        self.dead = True
        self._held = []
        self._loop.forget(self)

    def hold(self, handle: events.Handle) -> None:
        """Keep a callback for the time after the freeze; for the loop alone."""
        self._held.append(handle)


_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def current_process() -> Process | None:
    """The process whose callback runs; None outside of all."""
    return _PROCESS.get()


class SimulatedLoop(asyncio.BaseEventLoop):
    """The loop. Exceptions that nobody took are collected in `failures`."""

    get_debug = staticmethod(bool)  # never; each future asks

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[tuple[Process | None, BaseException]] = []
        self.callbacks_count = 0
        self._now_s = 0.0
        self._at_instant = 0
        self._second = (0, 0)  # of the time, and how many callbacks there had been at its beginning
        self._tasks: dict[SimulatedTask, None] = {}  # unfinished, in order of birth
        self._graveyard: list[SimulatedTask] = []  # unfinished tasks of the dead: kept, so that none unwinds
        self.set_task_factory(_make_task)
        self.set_exception_handler(_on_exception)

    def time(self) -> float:
        """Virtual seconds since the seed began."""
        return self._now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> events.Handle:
        """See asyncio."""
        handle = SimulatedHandle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> events.TimerHandle:
        """See asyncio."""
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> events.TimerHandle:
        """See asyncio."""
        timer = SimulatedTimer(when, callback, args, self, context)
        heapq.heappush(self._scheduled, (when, timer))  # type: ignore[attr-defined]
        return timer

    def adopt(self, task: SimulatedTask) -> None:
        """Hold on to an unfinished task."""
        self._tasks[task] = None
        task.add_done_callback(self._finished)

    def _finished(self, task: SimulatedTask) -> None:
        self._tasks.pop(task, None)

    def forget(self, process: Process) -> None:
        """Bury the tasks of a dead process without running another line of them."""
        for task in [task for task in self._tasks if task.process is process]:
            del self._tasks[task]
            self._graveyard.append(task)

    def resume(self, handles: list[events.Handle]) -> None:
        """Put held callbacks back, in order."""
        self._ready.extend(handles)  # type: ignore[attr-defined]

    def bury(self) -> None:
        """End of the seed: end every task that is left, in silence."""
        self.set_exception_handler(lambda loop, context: None)
        tasks = [*self._graveyard, *self._tasks]
        self._graveyard, self._tasks = [], {}
        for task in tasks:
            task._log_destroy_pending = False
            try:
                task.get_coro().close()
            except BaseException:  # its finally blocks may fail, as they may where a process is killed
                pass
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """There are no threads: the work is done now, its result comes with a later pass."""
        future = self.create_future()
        try:
            result = func(*args)
        except Exception as error:
            self.call_soon(_settle, future, None, error)
        else:
            self.call_soon(_settle, future, result, None)
        return future

    def _write_to_self(self) -> None:
        """Nobody sleeps, so nobody must be woken."""

    def _process_events(self, event_list: Any) -> None:
        """There are no sockets."""

    def _run_once(self) -> None:
        """Pass after pass, until the loop is to stop."""
        ready, scheduled = self._ready, self._scheduled  # type: ignore[attr-defined]
        while True:
            # Those below the first are left until they come up, or are many: this changes no order.
            if (cancelled := self._timer_cancelled_count) and (scheduled[0][1]._cancelled or cancelled > 100):
                self._drop_cancelled_timers()
            if not ready:
                self._advance()
            if scheduled and scheduled[0][0] <= self._now_s + _RESOLUTION_S:
                self._collect_due()
            self._run_ready()
            if self._stopping:  # type: ignore[attr-defined]
                return

    def _drop_cancelled_timers(self) -> None:
        scheduled = self._scheduled  # type: ignore[attr-defined]
        if self._timer_cancelled_count > 100 and self._timer_cancelled_count > len(scheduled) // 2:
            for _, timer in scheduled:
                if timer._cancelled:
                    timer._scheduled = False
            scheduled[:] = [item for item in scheduled if not item[1]._cancelled]
            heapq.heapify(scheduled)
            self._timer_cancelled_count = 0
        while scheduled and scheduled[0][1]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(scheduled)[1]._scheduled = False

    def _advance(self) -> None:
        scheduled = self._scheduled  # type: ignore[attr-defined]
        if self._stopping:  # type: ignore[attr-defined]
            return
        if not scheduled:
            raise Hang(f"nothing can happen any more at {self._now_s:.3f} s")
        when_s = scheduled[0][0]
        if when_s > self._now_s + _RESOLUTION_S:
            self._now_s = when_s
            self._at_instant = 0
            if int(when_s) != self._second[0]:
                self._second = (int(when_s), self.callbacks_count)

    def _collect_due(self) -> None:
        scheduled, end_s = self._scheduled, self._now_s + _RESOLUTION_S  # type: ignore[attr-defined]
        while scheduled and scheduled[0][0] <= end_s:
            timer = heapq.heappop(scheduled)[1]
            timer._scheduled = False
            if timer._cancelled:
                self._timer_cancelled_count -= 1
            else:
                self._ready.append(timer)  # type: ignore[attr-defined]

    def _run_ready(self) -> None:
        ready = self._ready  # type: ignore[attr-defined]
        count = len(ready)
        self._at_instant += count
        self.callbacks_count += count
        if self._at_instant > MAX_CALLBACKS_AT_ONE_INSTANT:
            raise Livelock(f"time stands still at {self._now_s:.3f} s; next callback: {ready[0]!r}")
        if self.callbacks_count - self._second[1] > MAX_CALLBACKS_IN_ONE_SECOND:
            raise Livelock(f"no rest in the second before {self._now_s:.3f} s; next callback: {ready[0]!r}")
        for _ in range(count):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            context = handle._context
            process = context.get(_PROCESS)
            if process is None or not (process.dead or process.frozen):
                try:  # as Handle._run does it, without a call more for each
                    context.run(handle._callback, *handle._args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    message = "a callback failed"
                    self.call_exception_handler({"message": message, "exception": error, "handle": handle})
            elif not process.dead:
                process.hold(handle)


class SimulatedTask(asyncio.Task[Any]):
    """A task that knows its process."""

    process: Process | None = None
    _log_destroy_pending: bool


def _make_task(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, Any],
    context: contextvars.Context | None = None,
    name: str | None = None,  # from CPython 3.14 on; before, the loop names the task afterwards
) -> asyncio.Task[Any]:
    assert isinstance(loop, SimulatedLoop)
    context = context or contextvars.copy_context()
    task = SimulatedTask(coroutine, loop=loop, name=name, context=context)
    task.process = context.get(_PROCESS)
    loop.adopt(task)
    return task


def _on_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    assert isinstance(loop, SimulatedLoop)
    error = context.get("exception") or RuntimeError(context.get("message", "unknown"))
    task, handle = context.get("task") or context.get("future"), context.get("handle")
    if isinstance(task, SimulatedTask):
        process = task.process
    elif handle is not None:
        process = handle._context.get(_PROCESS)
    else:
        process = current_process()
    if process is None or not process.dead:
        loop.failures.append((process, error))


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def run(main: Callable[[SimulatedLoop], Coroutine[Any, Any, Any]]) -> Any:
    """Run `main(loop)` on a fresh loop to its end.

    Raises:
        Hang: everything waits and nothing can wake it.
        Livelock: callbacks without end, at one instant or within one second.
    """
    loop = SimulatedLoop()
    previous = base_events.events._get_running_loop()
    assert previous is None, "a simulation has its thread for itself"
    try:
        return loop.run_until_complete(main(loop))
    finally:
        loop.bury()
        loop.close()


__all__ = ["Hang", "Livelock", "Process", "SimulatedLoop", "current_process", "run"]
