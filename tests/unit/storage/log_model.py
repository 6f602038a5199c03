"""What a log must hold, in the plainest form: a list of entries, and every state that a crash may leave."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from kvnode.codec.entry import Entry, EntryKind, HardState
from kvnode.storage.log import Log

DIRECTORY = "/data/log"
SEGMENT_BYTES = 4_096


def entry(index: int, term: int = 1, data: bytes | None = None) -> Entry:
    return Entry(term, index, EntryKind.DATA, b"%d/%d" % (index, term) if data is None else data)


async def end_tasks() -> None:
    """Let what a dead process left behind come to its end."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


class LogState(NamedTuple):
    base_index: int
    base_term: int
    entries: tuple[Entry, ...]
    term: int
    vote: int

    @property
    def last_index(self) -> int:
        return self.base_index + len(self.entries)

    def truncated(self, last_index: int) -> LogState:
        return self._replace(entries=self.entries[: last_index - self.base_index])


class LogModel:
    """Every state that the log may be found in: the last durable one, and those of each record since."""

    def __init__(self) -> None:
        self.states = [LogState(0, 0, (), 0, 0)]
        self.commit = 0
        self.compacted = 0

    @property
    def now(self) -> LogState:
        return self.states[-1]

    def append(self, entries: list[Entry], hard_state: HardState | None) -> None:
        if hard_state is not None:
            self.states.append(self.now._replace(term=hard_state.term, vote=hard_state.vote))
            self.commit = max(self.commit, hard_state.commit)
        if entries and entries[0].index <= self.now.last_index:
            self.states.append(self.now.truncated(entries[0].index - 1))
        for one in entries:
            self.states.append(self.now._replace(entries=(*self.now.entries, one)))

    def reset(self, index: int, term: int) -> None:
        self.states.append(LogState(index, term, (), self.now.term, self.now.vote))
        self.commit = max(self.commit, index)

    def durable(self) -> None:
        self.states = [self.now]

    def check(self, log: Log) -> None:
        """The log holds the newest state."""
        problem = self._difference(log, self.now)
        assert problem is None, problem

    def check_crashed(self, log: Log) -> None:
        """The log holds one of the states that a crash may leave; from here on it is the durable one."""
        assert log.damage is None, log.damage
        fitting = [state for state in self.states if self._difference(log, state) is None]
        assert fitting, [self._difference(log, state) for state in self.states]
        self.states = fitting[-1:]
        assert log.hard_state.commit <= max(self.commit, log.first_index() - 1)
        self.commit = log.hard_state.commit

    def _difference(self, log: Log, state: LogState) -> str | None:
        first, last = log.first_index(), log.last_index()
        if last != state.last_index:
            return f"last index {last} instead of {state.last_index}"
        if not state.base_index < first <= max(state.base_index, self.compacted) + 1:
            return f"first index {first}, base {state.base_index}, compacted {self.compacted}"
        if log.hard_state[:2] != (state.term, state.vote):
            return f"hard state {log.hard_state} instead of {state.term}, {state.vote}"
        expected = list(state.entries[first - 1 - state.base_index :])
        if log.entries(first, last + 1, 1 << 30) != expected:
            return f"entries differ in {first} to {last}"
        before = first - 1 - state.base_index
        terms = [state.entries[before - 1].term if before else state.base_term, *(one.term for one in expected)]
        if [log.term(index) for index in range(first - 1, last + 1)] != terms:
            return "terms differ"
        if log.term(last + 1) is not None or (first > 1 and log.term(first - 2) is not None):
            return "terms outside of the log"
        return None
