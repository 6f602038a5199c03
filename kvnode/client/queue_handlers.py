"""Handing the messages of a listener to a handler; see Kv.listen_queue.

A coroutine function runs on the event loop. Any other function runs on a thread of its own: it may block, and leases
are extended on the loop, so there it would lose the very lease under which it works. A coroutine is cancelled when
listening ends, and its message is given back. A thread cannot be interrupted: it is waited for, its lease extended,
because giving the message back would have another consumer handle it at the same time.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial

from kvnode.client.queue import QueueListener, QueueMessage

_log = logging.getLogger(__name__)

Handler = Callable[[QueueMessage], Awaitable[object] | object]


async def run_handlers(listener: QueueListener, handler: Handler) -> None:
    """Hand every message to `handler`, as many at a time as the listener holds, until it is closed.

    Args:
        listener: nobody else's; it is closed at the end.
        handler: a coroutine function, or a function, which is called on a thread; what that returns is awaited on the
            loop if it can be.

    Raises:
        KvError: the cluster refuses to serve the listener.
    """
    await _Handling(listener, handler).run()


class _Handling:
    """The messages that one handler has under way."""

    def __init__(self, listener: QueueListener, handler: Handler) -> None:
        self._listener = listener
        self._handler = handler
        self._running: set[asyncio.Task[None]] = set()
        self._on_threads: set[asyncio.Task[None] | None] = set()  # of these, whose function has not returned
        self._stopping = False
        self._threads: ThreadPoolExecutor | None = None
        if not _is_coroutine_function(handler):
            # Not the loop's own threads: they are few, and looking up a node's address needs one of them.
            self._threads = ThreadPoolExecutor(listener.concurrency, thread_name_prefix="kvnode-queue-handler")

    async def run(self) -> None:
        async with self._listener:
            try:
                async for message in self._listener:
                    task = asyncio.get_running_loop().create_task(self._handle(message))
                    self._running.add(task)
                    task.add_done_callback(self._running.discard)
            finally:
                await self._stop()

    async def _stop(self) -> None:
        self._stopping = True
        self._listener.take_no_more()  # a thread may take long: nothing is to wait here meanwhile
        for task in self._running - self._on_threads:
            task.cancel()
        try:
            # Whoever cancels this too waits for no thread any more: gather cancels those who wait for one.
            await asyncio.gather(*self._running, return_exceptions=True)
        finally:
            if self._threads is not None:
                self._threads.shutdown(wait=False)

    async def _handle(self, message: QueueMessage) -> None:
        try:
            await self._call(message)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
                self._listener.settle_soon(message, "release")
                raise
            # A cancellation that is not this task's comes from what the handler waited for: it has failed.
            _log.exception("the handler of queue '%s' failed with message %s", message.queue, message.id)
            self._listener.settle_soon(message, "nack")
        else:
            self._listener.settle_soon(message, "ack")

    async def _call(self, message: QueueMessage) -> None:
        outcome = self._handler(message) if self._threads is None else await self._on_thread(self._threads, message)
        if isinstance(outcome, Awaitable):
            await outcome

    async def _on_thread(self, threads: ThreadPoolExecutor, message: QueueMessage) -> object:
        task = asyncio.current_task()
        self._on_threads.add(task)
        try:
            call = partial(copy_context().run, _without_stop_iteration, self._handler, message)
            outcome = await asyncio.get_running_loop().run_in_executor(threads, call)
        finally:
            self._on_threads.discard(task)
        if self._stopping and task is not None and isinstance(outcome, Awaitable):
            task.cancel()  # as the rest of a coroutine function would be: at its first await
        return outcome


def _is_coroutine_function(handler: Handler) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _without_stop_iteration(handler: Handler, message: QueueMessage) -> object:
    """Call it. A future cannot carry a StopIteration: whoever waits for it would wait for ever."""
    try:
        return handler(message)
    except StopIteration as error:
        raise RuntimeError("the handler raised StopIteration") from error
