"""Load the characters through the Python client, many callers at a time, each transaction once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

from cluster.demo_input import Character
from cluster.demo_ledger import Ledger
from cluster.demo_rows import APPLIED, CHARACTER, COUNT_KEY, INDEX_VALUE, WORD
from kvnode.base.errors import KvError
from kvnode.base.invariant import invariant
from kvnode.client import Kv, KvU64
from kvnode.client.atomic import COMMIT_VERSIONSTAMP

ONE = KvU64(1)


class Loader:
    """Sends every character's transaction and keeps the ledger.

    Args:
        kv: the open client.
        characters: the input.
        callers_count: transactions under way at a time.
        half_way: called once, when half of the transactions are acknowledged; the load goes on meanwhile.
    """

    def __init__(
        self, kv: Kv, characters: Sequence[Character], callers_count: int, half_way: Callable[[], Awaitable[None]]
    ) -> None:
        self.ledger = Ledger()
        self._kv = kv
        self._characters = characters
        self._callers_count = callers_count
        self._half_way = half_way
        self._disturbance: asyncio.Task[None] | None = None
        self._acknowledged = asyncio.Event()
        self._finished = False

    async def run(self) -> None:
        """Load everything; returns when each transaction has an answer and half_way has ended."""
        self.ledger.begin(now_ms())
        work = iter(self._characters)
        async with asyncio.TaskGroup() as group:
            for _ in range(self._callers_count):
                group.create_task(self._caller(work))
        self._finished = True
        self._acknowledged.set()
        if self._disturbance is not None:
            await self._disturbance

    async def next_acknowledgement(self) -> None:
        """Wait for the next one; returns at once when all is loaded."""
        if not self._finished:
            self._acknowledged.clear()
            await self._acknowledged.wait()

    async def _caller(self, work: Iterator[Character]) -> None:
        for character in work:
            await self._load(character)

    async def _load(self, character: Character) -> None:
        try:
            versionstamp = await commit(self._kv, character)
        except KvError as error:
            kept = self.ledger.refused if error.not_applied else self.ledger.unanswered
            kept[character.code] = str(error)
            return
        self.ledger.acknowledge(character.code, versionstamp, now_ms())
        self._acknowledged.set()
        if self._disturbance is None and 2 * len(self.ledger.acknowledged) >= len(self._characters):
            self._disturbance = asyncio.ensure_future(self._half_way())


async def commit(kv: Kv, character: Character) -> bytes:
    """One transaction: the record, its index rows, and two marks that a second application would double.

    There is no check in it: that it is applied once is the client's and the cluster's business.
    """
    atomic = kv.atomic().set((CHARACTER, character.code), character.record)
    for word in character.words:
        atomic.set((WORD, word, character.code), INDEX_VALUE)
    atomic.set((APPLIED, character.code, COMMIT_VERSIONSTAMP), INDEX_VALUE)
    atomic.sum(COUNT_KEY, ONE)
    result = await atomic.commit()
    invariant(result.versionstamp is not None, "a transaction without checks cannot fail one")
    return bytes.fromhex(result.versionstamp or "")


def now_ms() -> float:
    """Milliseconds on a clock that never steps."""
    return time.monotonic() * 1_000
