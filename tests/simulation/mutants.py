"""Planted bugs: proof that the checkers see. `python -m tests.simulation.mutants` runs each until a seed catches it.

A mutant changes one well-defined place of the product while a seed runs. One that no seed catches within the
bound means that the simulation is blind there: the command fails. Some bugs are for a named test to catch
(mutants_named.py); that test is run.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from kvnode.codec.entry import Entry
from kvnode.machine import resolve
from kvnode.machine.overlay import Overlay
from kvnode.node import reads
from kvnode.node.barriers import Barriers, Item
from kvnode.node.clock_guard import ClockGuard, LogTime
from kvnode.node.driver import Driver
from kvnode.node.proposals import Proposals
from kvnode.node.reads import Reads
from kvnode.raft import election, replication
from kvnode.raft.log import RaftLog
from kvnode.raft.quorum import Quorum, majority_value
from kvnode.raft.raft import Raft
from kvnode.storage.log import Log
from tests.simulation.lease_mutants import LEASE_MUTANTS
from tests.simulation.mutants_more import SEEN_BY_SEEDS
from tests.simulation.mutants_named import NAMED, failed_test
from tests.simulation.mutants_queues import QUEUE_MUTANTS
from tests.simulation.mutants_watches import WATCH_MUTANTS
from tests.simulation.planting import Patch, replaced, replaced_handler
from tests.simulation.promotion import draws_promotions
from tests.simulation.promotion_mutants import PROMOTION_MUTANTS
from tests.simulation.queues import has_queues
from tests.simulation.quiet import quiet
from tests.simulation.seed import run_seed
from tests.simulation.tuning import draw_tuning
from tests.simulation.watchers import has_watches

MAX_SEEDS = 150
# What a mutant raises that no longer fits the code that it changes: that is no catch.
OUTDATED = ("AttributeError", "IndexError", "NameError", "TypeError")


def acknowledge_before_fsync() -> Patch:
    """Votes and acknowledgements leave before what they promise is on the disk."""
    original = Raft.ready

    def ready(self: Raft) -> Any:
        found = original(self)
        early = found._replace(
            messages=[*found.messages, *found.messages_after_persist],
            messages_after_persist=[],
        )
        self._outstanding = early
        return early

    return replaced(Raft, "ready", ready)


def never_fsync() -> Patch:
    """The log is written and not synced."""

    async def sync(self: Log) -> None:
        return None

    return replaced(Log, "_sync", sync)


def forget_the_vote() -> Patch:
    """A restarted node does not know for whom it voted."""
    original = Raft.__init__

    def init(self: Raft, config: Any, log: Any, hard_state: Any, *rest: Any, **named: Any) -> None:
        original(self, config, log, hard_state._replace(vote=0), *rest, **named)

    return replaced(Raft, "__init__", init)


def vote_twice() -> Patch:
    """A node votes for whoever asks, whether it has voted in the term or not."""
    original = election.on_vote

    def on_vote(core: Any, message: Any) -> None:
        core.vote = 0
        original(core, message)

    return replaced_handler(original, on_vote)


def vote_for_short_logs() -> Patch:
    """A candidate's log is not compared with ours."""
    return replaced(RaftLog, "is_up_to_date", lambda self, last_index, last_term: True)


def commit_old_terms_by_counting() -> Patch:
    """A new leader counts replicas of entries of former terms (Raft, figure 8)."""
    original = replication.update_commit

    def update_commit(core: Any, lead: Any) -> bool:
        first, lead.first_index = lead.first_index, 0
        try:
            return original(core, lead)
        finally:
            lead.first_index = first

    return replaced(replication, "update_commit", update_commit)


def one_data_center_is_enough() -> Patch:
    """A majority commits wherever it stands."""
    return replaced(Quorum, "commit_index", lambda self, matches: majority_value(matches))


def minority_commits() -> Patch:
    """One voter less than a majority is enough."""

    def commit_index(self: Quorum, matches: Sequence[int]) -> int:
        return sorted(matches)[len(matches) // 2 + (len(matches) > 1)] if matches else 0

    return replaced(Quorum, "commit_index", commit_index)


def truncate_on_late_duplicate() -> Patch:
    """A late append cuts off what follows it, committed or not."""

    def try_append(self: RaftLog, previous_index: int, previous_term: int, entries: Any) -> int | None:
        if self.term(previous_index) != previous_term:
            return None
        if previous_index < self.last_index:
            self.truncate(previous_index + 1)
        self._tail.extend(entries)
        return previous_index + 1

    return replaced(RaftLog, "try_append", try_append)


def apply_before_fsync() -> Patch:
    """What is committed by others is applied before our own log holds it durably."""

    def has_undelivered(self: RaftLog) -> bool:
        return self.delivered < self.commit

    def deliver(self: RaftLog, max_bytes: int) -> list[Entry]:
        entries = self.entries(self.delivered + 1, self.commit + 1, max_bytes)
        if entries:
            self.delivered = entries[-1].index
        return entries

    @contextmanager
    def both() -> Iterator[None]:
        with replaced(RaftLog, "deliver", deliver), replaced(RaftLog, "has_undelivered", has_undelivered):
            yield

    return both()


def resolve_before_the_no_op() -> Patch:
    """A new leader resolves before it has applied the tail that it inherited."""
    original = Driver._cycle

    async def cycle(self: Driver) -> bool:
        if self._raft.is_leader and not self._proposals.resolving:
            self._proposals.begin_leadership()
        return await original(self)

    return replaced(Driver, "_cycle", cycle)


def skip_the_overlay() -> Patch:
    """Checks and sums are judged on the applied state alone."""
    return replaced(Overlay, "get", lambda self, key: self._state.get(key))


def answer_failed_checks_at_once() -> Patch:
    """A failed check is answered on the word of a leader that may have been deposed."""
    original = Barriers.add

    def add(self: Barriers, call: Any, min_index: int = 0, negative: Any = None) -> None:
        if negative is not None:
            call.answer(negative)
        else:
            original(self, call, min_index, negative)

    return replaced(Barriers, "add", add)


def strong_reads_without_read_index() -> Patch:
    """A leader answers strong reads from its state, without asking anybody."""
    original = Barriers.add

    def add(self: Barriers, call: Any, min_index: int = 0, negative: Any = None) -> None:
        if negative is None:
            self._serve([Item(0, call, None)])
        else:
            original(self, call, min_index, negative)

    return replaced(Barriers, "add", add)


def ignore_request_ids() -> Patch:
    """A resend is executed again."""
    original = resolve.admit

    def admit(window: Any, request: Any, log_time_ms: int, applied_index: int) -> Any:
        found = original(window, request, log_time_ms, applied_index)
        return window if request.resend and type(found).__name__ in ("Settled", "InFlight") else found

    return replaced(resolve, "admit", admit)


def forget_the_log_at_install() -> Patch:
    """A snapshot is installed and the log is not begun anew behind it."""

    async def reset(self: Log, index: int, term: int, *, discard: bool = False) -> None:
        return None

    return replaced(Log, "reset", reset)


def expire_by_the_local_clock() -> Patch:
    """Reads judge expiry by the clock of whoever answers."""
    serve, read_batch, read_within = Reads._serve, Reads._read_batch, reads.read_within
    clocks: list[Any] = []

    def local_serve(self: Reads, call: Any, *, strong: bool) -> None:
        clocks[:] = [self._now_ms.__self__]  # type: ignore[attr-defined]
        serve(self, call, strong=strong)

    def local_batch(self: Reads, batch: Any) -> Any:
        clocks[:] = [self._now_ms.__self__]  # type: ignore[attr-defined]
        return read_batch(self, batch)

    def local_within(state: Any, request: Any, database: int, log_time_ms: int, response: Any, max_bytes: int) -> Any:
        return read_within(state, request, database, clocks[0].now_ms(), response, max_bytes)

    @contextmanager
    def all_three() -> Iterator[None]:
        with (
            replaced(Reads, "_serve", local_serve),
            replaced(Reads, "_read_batch", local_batch),
            replaced(reads, "read_within", local_within),
        ):
            yield

    return all_three()


def trust_every_clock() -> Patch:
    """A node with a wrong clock leads, and its clock becomes log time."""

    @contextmanager
    def both() -> Iterator[None]:
        with (
            replaced(ClockGuard, "trusted", lambda self, voters, members=(): True),
            replaced(LogTime, "next_ms", lambda self, previous_ms: max(previous_ms, self._clock.now_ms())),
        ):
            yield

    return both()


def settle_by_index_alone() -> Patch:
    """A write is acknowledged when any entry is committed at its index."""
    original = Proposals.committed

    def committed(self: Proposals, entries: Any, now_ms: float) -> None:
        for entry in entries:
            pending = self._pending.get(entry.index)
            original(self, [entry if pending is None else entry._replace(term=pending.term)], now_ms)

    @contextmanager
    def both() -> Iterator[None]:
        with replaced(Proposals, "committed", committed), replaced(Proposals, "_supersede", lambda self, index: None):
            yield

    return both()


MUTANTS: dict[str, Callable[[], Patch]] = {
    mutant.__name__: mutant
    for mutant in (
        acknowledge_before_fsync,
        never_fsync,
        forget_the_vote,
        vote_twice,
        vote_for_short_logs,
        commit_old_terms_by_counting,
        one_data_center_is_enough,
        minority_commits,
        truncate_on_late_duplicate,
        apply_before_fsync,
        resolve_before_the_no_op,
        skip_the_overlay,
        answer_failed_checks_at_once,
        strong_reads_without_read_index,
        ignore_request_ids,
        forget_the_log_at_install,
        expire_by_the_local_clock,
        trust_every_clock,
        settle_by_index_alone,
        *SEEN_BY_SEEDS,
        *QUEUE_MUTANTS,
        *PROMOTION_MUTANTS,
        *WATCH_MUTANTS,
        *LEASE_MUTANTS,
    )
}
TESTED = {plant.__name__: (plant, tests) for plant, tests in NAMED.items()}


class Catch(NamedTuple):
    """What caught a mutant: the first seed that failed, or a test; nothing when `checker` is empty."""

    mutant: str
    checker: str
    where: str
    message: str


def hunt(name: str, max_seeds: int = MAX_SEEDS, start: int = 0) -> Catch:
    """Run seeds with the mutant in force until one fails, or the tests that are named for it."""
    if name in TESTED:
        test = failed_test(*TESTED[name])
        return Catch(name, "test" if test else "", "", test)
    for seed in _seeds(MUTANTS[name], start, max_seeds):
        with quiet():
            result = run_seed(seed, MUTANTS[name])
        if any(error in result.message for error in OUTDATED):
            return Catch(name, "", str(seed), f"the mutant itself is wrong: {result.message}")
        if not result.ok:
            return Catch(name, result.checker, str(seed), result.message)
    return Catch(name, "", "", f"in {max_seeds} seeds")


def _seeds(mutant: Callable[[], Patch], start: int, count: int) -> Iterable[int]:
    """Those in which a mutant could do harm."""
    if mutant in PROMOTION_MUTANTS:  # they are few: so many of them
        return islice(filter(draws_promotions, itertools.count(start)), count)
    seeds = range(start, start + count)
    if mutant in WATCH_MUTANTS:
        return filter(has_watches, seeds)
    if mutant in LEASE_MUTANTS:
        return (seed for seed in seeds if draw_tuning(seed).leader_lease)
    return filter(has_queues, seeds) if mutant in QUEUE_MUTANTS else seeds


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("--max-seeds", type=int, default=MAX_SEEDS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("names", nargs="*", help="only these")
    arguments = parser.parse_args()
    names = arguments.names or [*MUTANTS, *TESTED]
    print(f"{'mutant':36} {'seed':>4}  {'checker':19} what it saw")
    missed = 0
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for catch in pool.imap(partial(hunt, max_seeds=arguments.max_seeds), names):
            missed += not catch.checker
            print(
                f"{catch.mutant:36} {catch.where:>4}  {catch.checker or 'NOT CAUGHT':19} {catch.message[:90]}",
                flush=True,
            )
    print(f"{len(names) - missed} of {len(names)} mutants caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
