"""Whether a queue kept its promises, from what its producers and consumers wrote down.

    python -m cluster.queue_checker FOLDER

Theory of operation
-------------------
Every message has a number, and a handler's end is on file before its ack or nack is sent. So for each message there are

- *sure* acks and nacks: the cluster confirmed them;
- *doubtful* ones: written down and never confirmed, because the consumer was killed, or answered with LEASE_LOST,
  which may also mean that the first of two copies was done and its answer lost.

What the cluster did lies between the two, and each rule leaves that much room and no more. A message with a schedule of
n intervals becomes a dead letter by its (n + 1)th failure and by nothing else, so it must be one when n + 1 nacks are
sure, and may be one only when n + 1 are sure or doubtful. (A lease that ends without a word is a loss; beyond
MAX_QUEUE_LOSSES_COUNT of a message losses count as failures, and the cluster's own count of deliveries says how many
there can have been.)

A message is *lost* if the cluster acknowledged it, no handler succeeded with it, and it is no dead letter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from cluster.queue_history import Dead, Enqueued, Handled, QueueHistory, Totals, Verb, read_history
from kvnode.base.limits import MAX_QUEUE_LOSSES_COUNT

LEASE_LOST = "LEASE_LOST"


class Violation(NamedTuple):
    """A promise that the history breaks. `rule` is a stable name."""

    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"


@dataclass(slots=True)
class QueueReport:
    """What the check found. An empty `violations` means that every promise was kept."""

    violations: list[Violation] = field(default_factory=list)
    acknowledged: int = 0
    unknown: int = 0
    handled: int = 0
    handlings: int = 0
    redeliveries: int = 0
    failures: int = 0
    succeeded_twice: int = 0
    in_doubt: int = 0
    dead_letters: int = 0
    lost: int = 0

    @property
    def ok(self) -> bool:
        """Whether every promise was kept."""
        return not self.violations

    def as_json(self, max_violations_count: int = 50) -> dict[str, object]:
        """For --json."""
        found: dict[str, object] = asdict(self)
        found["violations"] = [str(violation) for violation in self.violations[:max_violations_count]]
        return found | {"violations_count": len(self.violations), "ok": self.ok}


class _Story:
    """All that is known of one message."""

    __slots__ = ("dead", "handled", "sent", "sure")

    def __init__(self) -> None:
        self.sent: list[Enqueued] = []
        self.handled: list[Handled] = []
        self.dead: list[Dead] = []
        self.sure: dict[str, Verb] = {}  # leases whose ack or nack was confirmed

    @property
    def ids(self) -> set[str]:
        return {delivery.id for delivery in self.handled} | {letter.id for letter in self.dead}

    @property
    def acknowledged(self) -> bool:
        return any(sent.outcome == "acknowledged" for sent in self.sent)

    @property
    def succeeded(self) -> bool:
        return any(not delivery.failed for delivery in self.handled)

    def sure_count(self, verb: Verb) -> int:
        return sum(1 for known in self.sure.values() if known == verb)

    @property
    def doubtful_nacks_count(self) -> int:
        return sum(1 for delivery in self.handled if delivery.failed and delivery.lease not in self.sure)


def check(history: QueueHistory) -> QueueReport:
    """Judge a history."""
    stories = _stories(history)
    report = QueueReport()
    for number, story in sorted(stories.items()):
        _count(report, story)
        for rule, message in _judge(story):
            report.violations.append(Violation(rule, f"message {number}: {message}"))
            report.lost += rule == "lost"
    report.violations += _judge_leases(history)
    report.violations += _judge_undelivered(history)
    report.violations += _judge_totals(history, stories)
    return report


def _stories(history: QueueHistory) -> dict[int, _Story]:
    stories: dict[int, _Story] = {}
    by_lease: dict[str, _Story] = {}
    for sent in history.enqueued:
        stories.setdefault(sent.number, _Story()).sent.append(sent)
    for delivery in history.handled:
        story = by_lease[delivery.lease] = stories.setdefault(delivery.number, _Story())
        story.handled.append(delivery)
    for letter in history.dead:
        stories.setdefault(letter.number, _Story()).dead.append(letter)
    for settled in history.settled:
        if not settled.code and settled.lease in by_lease:
            by_lease[settled.lease].sure[settled.lease] = settled.verb
    return stories


def _count(report: QueueReport, story: _Story) -> None:
    report.acknowledged += story.acknowledged
    report.unknown += any(sent.outcome == "unknown" for sent in story.sent) and not story.acknowledged
    report.handled += bool(story.handled)
    report.handlings += len(story.handled)
    report.redeliveries += max(0, len(story.handled) - 1)
    report.failures += sum(1 for delivery in story.handled if delivery.failed)
    report.succeeded_twice += sum(1 for delivery in story.handled if not delivery.failed) > 1
    report.in_doubt += sum(1 for delivery in story.handled if delivery.lease not in story.sure)
    report.dead_letters += len(story.dead)


def _judge(story: _Story) -> Iterator[tuple[str, str]]:
    """The rules about one message."""
    there = bool(story.handled or story.dead)
    if there and not story.sent:
        yield "never_enqueued", "it was delivered, and nobody sent it"
        return
    if there and all(sent.outcome == "refused" for sent in story.sent):
        yield "refused_but_there", "it was delivered, and its producer was told that it was not taken"
    if len(story.ids) > 1:
        yield "enqueued_twice", f"it is in the queue under the ids {', '.join(sorted(story.ids))}"
    if story.acknowledged and not story.handled:
        yield "never_handled", "it was acknowledged and handed to no handler"
    if story.acknowledged and not story.succeeded and not story.dead:
        yield "lost", f"it was acknowledged, failed {len(story.handled)} times, and is no dead letter"
    yield from _judge_acks(story)
    yield from _judge_death(story)


def _judge_acks(story: _Story) -> Iterator[tuple[str, str]]:
    acks_count = story.sure_count("ack")
    if acks_count > 1:
        yield "acknowledged_twice", f"{acks_count} deliveries of it were acknowledged"
    if acks_count and story.dead:
        yield "acknowledged_and_dead", "it was acknowledged and is a dead letter"
    for delivery in story.handled:
        if story.sure.get(delivery.lease) != "ack":
            continue
        later = [other.attempt for other in story.handled if other.attempt > delivery.attempt]
        if later:
            yield "delivered_after_ack", f"attempt {delivery.attempt} was acknowledged, and attempt {later[0]} came"


def _judge_death(story: _Story) -> Iterator[tuple[str, str]]:
    if not story.sent:
        return
    needed = story.sent[0].retries + 1
    sure = story.sure_count("nack")
    if len(story.dead) > 1:
        yield "dead_twice", f"it is {len(story.dead)} dead letters"
    if not story.dead:
        if sure >= needed:
            yield "not_dead", f"it failed {sure} times, its schedule allows {needed - 1}, and it is no dead letter"
        return
    (letter, *_) = story.dead
    losses = max(0, letter.deliveries - sure - MAX_QUEUE_LOSSES_COUNT)
    if sure + story.doubtful_nacks_count + losses < needed:
        failed = f"it failed {sure} to {sure + story.doubtful_nacks_count} times"
        yield "dead_too_early", f"{failed}, {needed} end its schedule, and it is a dead letter"
    if sure > needed:
        yield "failed_after_end", f"it failed {sure} times, and {needed} end its schedule"
    last = max((delivery.attempt for delivery in story.handled), default=0)
    if last > letter.deliveries:
        yield "delivered_after_death", f"attempt {last} came, and it died by attempt {letter.deliveries}"


def _judge_leases(history: QueueHistory) -> Iterator[Violation]:
    seen: dict[str, Handled] = {}
    for delivery in history.handled:
        before = seen.setdefault(delivery.lease, delivery)
        if before is not delivery:
            both = f"by {before.consumer} and {delivery.consumer}"
            yield Violation("one_lease_twice", f"message {delivery.number}: lease {delivery.lease} was handled {both}")


def _judge_undelivered(history: QueueHistory) -> Iterator[Violation]:
    dead = {letter.number for letter in history.dead}
    written = {found.number for found in history.undelivered}
    for number in sorted(dead - written):
        yield Violation("not_on_its_keys", f"message {number} is a dead letter and not on keys_if_undelivered")
    for number in sorted(written - dead):
        yield Violation("on_its_keys_alive", f"message {number} is on keys_if_undelivered and no dead letter")


def _judge_totals(history: QueueHistory, stories: dict[int, _Story]) -> Iterator[Violation]:
    """The queue's own counters against the files."""
    if not history.totals:
        yield Violation("no_totals", "the history does not say how the queue stood at the end")
        return
    totals = history.totals[-1]
    if totals.waiting or totals.in_flight:
        yield Violation("not_empty", f"{totals.waiting} messages wait and {totals.in_flight} are under leases")
    acknowledged = sum(1 for story in stories.values() if story.acknowledged)
    unknown = sum(1 for story in stories.values() if story.sent) - acknowledged
    if not acknowledged <= totals.enqueued <= acknowledged + unknown:
        seen = f"producers had {acknowledged} acknowledged and {unknown} without an answer"
        yield Violation("totals_differ", f"the queue counts {totals.enqueued} messages, {seen}")
    yield from _judge_balance(history, totals)


def _judge_balance(history: QueueHistory, totals: Totals) -> Iterator[Violation]:
    ended = totals.acknowledged + totals.dead + totals.waiting + totals.in_flight
    if ended != totals.enqueued:
        yield Violation("totals_differ", f"{totals.enqueued} messages came in, and {ended} are accounted for")
    if totals.dead != len(history.dead):
        yield Violation("totals_differ", f"the queue counts {totals.dead} dead letters, {len(history.dead)} are there")
    leases_count = len({delivery.lease for delivery in history.handled})
    if totals.delivered < leases_count:
        yield Violation("totals_differ", f"it counts {totals.delivered} deliveries, {leases_count} were handled")
    more_than_once = len(history.handled) - len({delivery.id for delivery in history.handled})
    if totals.redelivered < more_than_once:
        yield Violation("totals_differ", f"it counts {totals.redelivered} redeliveries, {more_than_once} were seen")


def main() -> int:
    """Check a folder; the exit status is 0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m cluster.queue_checker", description="Check a queue's history.")
    parser.add_argument("folder", type=Path, help="with the files that a drill wrote")
    report = check(read_history(parser.parse_args().folder))
    for violation in report.violations:
        print(violation, file=sys.stderr)
    print(json.dumps(report.as_json()))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
