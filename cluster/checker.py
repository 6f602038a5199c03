"""Strict serializability, by replay in the order of the versionstamps; O(n log n) in the operations.

Theory of operation
-------------------
Testing a history for linearizability is NP-complete in general (Gibbons and Korach, "Testing shared
memories", 1997) because the order must be searched. Here the database states the order: every commit
carries its versionstamp, every read that of the state it saw. So the order is given and only two things
are left to check (Herlihy and Wing, "Linearizability", 1990; Papadimitriou, 1979, for the real-time part):

1. *Legal*: replayed in that order, every check of a commit holds and every read returns what was there.
2. *Real time*: if one operation ended before another began, it stands before it in the order.

A position is a versionstamp read as a number. A commit stands at its own stamp; a read, since entries
are applied whole, behind the last transaction of the entry that it names. Real time is one sweep over
the beginnings and ends of all operations: the *frontier* is the greatest position that anybody had been
told of before an operation began.

- A commit's stamp exceeds its frontier. A strong read's position is at or beyond it. An eventual read
  may lie before it, by no more than the age that the node claimed; and it shows what was committed, so it
  raises the frontier for those that begin after it.
- A *failed check* has no stamp: it must have conflicted, with exactly the checks it names, at one position
  between its frontier and its *ceiling*, the place before everything that began after its end. Failed
  checks are given their least possible position in the order of their beginning, which leaves the most room
  for the rest, so an assignment is found whenever there is one.
- A write without an answer is *settled*: one of its values is unique, and whoever has read it tells the
  stamp at which it was applied. A value that nobody read was not applied, or was overwritten unread; a
  workload that never overwrites one row of each write leaves no doubt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from cluster.history import (
    CheckFailed,
    Committed,
    MutationKind,
    Operation,
    Range,
    Read,
    Seen,
    SeenEntry,
    SeenRange,
    Unknown,
    Write,
)
from cluster.replay import Model, ModelRow, NoNumber, matches
from kvnode.codec.versionstamp import VERSIONSTAMP_BYTES

DEFAULT_CLOCK_SLACK_MS = 500
_ORDER_MASK = 0xFFFF
_NO_CEILING = 1 << (8 * VERSIONSTAMP_BYTES)


class Violation(NamedTuple):
    """A promise that the history breaks. `rule` is a stable name, `operations` are indexes into the history."""

    rule: str
    message: str
    operations: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.rule}: {self.message} (operations {', '.join(map(str, self.operations))})"


@dataclass(slots=True)
class Report:
    """What the check found. An empty `violations` means that the history is strictly serializable."""

    violations: list[Violation] = field(default_factory=list)
    commits_count: int = 0
    reads_count: int = 0
    failed_checks_count: int = 0
    settled_as_applied_count: int = 0
    settled_as_lost_count: int = 0

    @property
    def ok(self) -> bool:
        """Nothing is broken."""
        return not self.violations

    def summary(self) -> str:
        """One paragraph for a person."""
        counts = (
            f"{self.commits_count} commits, {self.reads_count} reads, {self.failed_checks_count} failed checks, "
            f"{self.settled_as_applied_count} unanswered writes applied, {self.settled_as_lost_count} not applied"
        )
        if self.ok:
            return f"strictly serializable: {counts}"
        shown = "\n".join(f"  {violation}" for violation in self.violations[:20])
        return f"{len(self.violations)} violations in {counts}\n{shown}"


def check(operations: Sequence[Operation], *, clock_slack_ms: float = DEFAULT_CLOCK_SLACK_MS) -> Report:
    """Check a recorded history.

    Args:
        operations: in any order; the database must have been empty before the first, as far as the keys
            that are read or checked go.
        clock_slack_ms: how far the nodes' clocks may be off the recorder's; used for expiry and for age alone.

    Raises:
        UnsupportedHistory: the workload computes with rows that expire.
    """
    return _Checker(operations, clock_slack_ms).run()


def position_of(operation: Operation) -> int | None:
    """Where the operation stands in the commit order; None when it has no place of its own."""
    match operation.outcome:
        case Committed(stamp):
            return int.from_bytes(stamp, "big")
        case Seen(stamp):
            return int.from_bytes(stamp, "big") | _ORDER_MASK
    return None


def settle(operations: Sequence[Operation]) -> list[Operation]:
    """Replace the outcome of every unanswered write whose unique value somebody has read."""
    wanted: dict[bytes, int] = {}
    for number, operation in enumerate(operations):
        if isinstance(operation.outcome, Unknown) and isinstance(operation.request, Write):
            for value in _unique_values(operation.request):
                wanted[value] = number
    settled = list(operations)
    for operation in operations if wanted else ():
        for entry in _entries_seen(operation):
            owner = wanted.get(entry.value)
            if owner is not None:
                settled[owner] = replace(operations[owner], completed_ms=None, outcome=Committed(entry.versionstamp))
    return settled


def _unique_values(write: Write) -> list[bytes]:
    # Numbers of 8 bytes recur; a workload's unique values are longer than that.
    kinds = (MutationKind.SET, MutationKind.SET_SUFFIX_VERSIONSTAMPED_KEY)
    return [item.value for item in write.mutations if item.kind in kinds and len(item.value) > 8]


def _entries_seen(operation: Operation) -> Iterable[SeenEntry]:
    if isinstance(operation.outcome, Seen):
        for seen in operation.outcome.ranges:
            yield from seen.entries


class _Checker:
    def __init__(self, operations: Sequence[Operation], clock_slack_ms: float) -> None:
        self.operations = settle(operations)
        self.slack_ms = clock_slack_ms
        self.model = Model()
        self.report = Report()
        self.positions = [position_of(operation) for operation in self.operations]
        for before, after in zip(operations, self.operations, strict=True):
            self._count(before, after)

    def run(self) -> Report:
        self._replay()
        self._real_time()
        self._ages()
        return self.report

    def _count(self, before: Operation, after: Operation) -> None:
        report = self.report
        report.commits_count += isinstance(after.outcome, Committed)
        report.reads_count += isinstance(after.outcome, Seen)
        report.failed_checks_count += isinstance(after.outcome, CheckFailed)
        if isinstance(before.outcome, Unknown) and isinstance(before.request, Write):
            applied = isinstance(after.outcome, Committed)
            report.settled_as_applied_count += applied
            report.settled_as_lost_count += not applied

    def _violation(self, rule: str, message: str, *numbers: int) -> None:
        labels = "; ".join(self.operations[number].label for number in numbers if self.operations[number].label)
        self.report.violations.append(Violation(rule, f"{message} [{labels}]" if labels else message, numbers))

    # Legality: the replay.

    def _replay(self) -> None:
        placed = [(position, number) for number, position in enumerate(self.positions) if position is not None]
        placed.sort()
        last_commit = -1
        for position, number in placed:
            operation = self.operations[number]
            if isinstance(operation.outcome, Seen) and isinstance(operation.request, Read):
                self._replay_read(number, operation.request, operation.outcome, position)
            elif isinstance(operation.outcome, Committed) and isinstance(operation.request, Write):
                if last_commit >= 0 and self.positions[last_commit] == position:
                    self._violation("unique-stamps", "two commits have one versionstamp", last_commit, number)
                last_commit = number
                self._replay_commit(number, operation.request, operation.outcome.versionstamp)

    def _replay_commit(self, number: int, write: Write, stamp: bytes) -> None:
        if len(stamp) != VERSIONSTAMP_BYTES:
            self._violation("stamp-form", f"a versionstamp of {len(stamp)} bytes", number)
        for index, item in enumerate(write.checks):
            row = self.model.rows.get(item.key)
            present = row.versionstamp if row else b""
            if present == item.versionstamp:
                continue
            if row and self._may_have_expired(row, number) and not item.versionstamp:
                continue
            self._violation(
                "check-holds",
                f"committed at {stamp.hex()} although check {index} of {item.key!r} wanted "
                f"{item.versionstamp.hex() or 'absent'} and it was {present.hex() or 'absent'}",
                number,
            )
        try:
            self.model.apply(write, stamp)
        except NoNumber as wrong:
            self._violation("number-type", f"committed at {stamp.hex()}: {wrong}", number)

    def _replay_read(self, number: int, read: Read, seen: Seen, position: int) -> None:
        if read.min_versionstamp and position < int.from_bytes(read.min_versionstamp, "big"):
            self._violation("min-versionstamp", f"read {seen.versionstamp.hex()}, before the one asked for", number)
        if read.max_staleness_ms and not read.strong and not 0 <= seen.age_ms <= read.max_staleness_ms:
            text = f"read a state that may be {seen.age_ms} ms old; {read.max_staleness_ms} ms were allowed"
            self._violation("max-staleness", text, number)
        if len(seen.ranges) != len(read.ranges):
            self._violation("read-matches", f"{len(seen.ranges)} answers to {len(read.ranges)} ranges", number)
        for asked, answer in zip(read.ranges, seen.ranges, strict=False):
            self._replay_range(number, asked, answer, position)

    def _replay_range(self, number: int, asked: Range, answer: SeenRange, position: int) -> None:
        if asked.count_only:
            rows = list(self.model.range_rows(asked))
            certain = sum(not self._may_have_expired(row, number) for _, row in rows)
            if not certain <= answer.count <= len(rows):
                self._violation("read-matches", f"counted {answer.count} of {len(rows)} rows", number)
            return
        shown = iter(answer.entries)
        entry = next(shown, None)
        taken = 0
        for key, row in self.model.range_rows(asked):
            if taken == asked.limit:
                break
            if entry is not None and matches(entry, key, row, asked.keys_only):
                entry = next(shown, None)
                taken += 1
            elif self._may_have_expired(row, number):
                self.model.expire(key, position)
            else:
                self._mismatch(number, key, row, entry)
                return
        if entry is not None:
            self._violation("read-matches", f"read {_text(entry)}, which was not there", number)

    def _mismatch(self, number: int, key: bytes, row: ModelRow, entry: SeenEntry | None) -> None:
        found = _text(entry) if entry else "nothing"
        expected = _text(SeenEntry(key, row.value, row.versionstamp))
        self._violation("read-matches", f"expected {expected}, read {found}", number)

    def _may_have_expired(self, row: ModelRow, number: int) -> bool:
        if not row.expire_at_ms:
            return False
        completed = self.operations[number].completed_ms
        return completed is None or completed + self.slack_ms >= row.expire_at_ms

    # Real time: one sweep forward, with the ceilings from one sweep backward.

    def _real_time(self) -> None:
        ceilings = self._ceilings()
        assigned = list(self.positions)
        frontier, holder = 0, -1
        for _, is_end, number in self._events():
            position = assigned[number]
            if not is_end:
                operation = self.operations[number]
                if isinstance(operation.outcome, CheckFailed):
                    assigned[number] = self._place_failed_check(number, frontier, ceilings[number])
                elif position is not None:
                    self._check_begin(number, position, frontier, holder)
            elif position is not None and position > frontier:
                frontier, holder = position, number

    def _check_begin(self, number: int, position: int, frontier: int, holder: int) -> None:
        request = self.operations[number].request
        if isinstance(request, Write):
            if position <= frontier:
                self._violation("commit-order", "a commit stands before one that ended before it began", holder, number)
        elif request.strong and position < frontier:
            self._violation("stale-read", "a strong read missed what had been acknowledged", holder, number)

    def _events(self) -> list[tuple[float, bool, int]]:
        """(time, is the end, number) in order; a beginning stands before an end of the same instant."""
        events: list[tuple[float, bool, int]] = []
        for number, operation in enumerate(self.operations):
            events.append((operation.invoked_ms, False, number))
            if operation.completed_ms is not None:
                events.append((operation.completed_ms, True, number))
        events.sort()
        return events

    def _ceilings(self) -> dict[int, int]:
        """For each failed check, the greatest position that leaves all that began after its end behind it."""
        ceiling = _NO_CEILING
        ceilings: dict[int, int] = {}
        for _, is_end, number in reversed(self._events()):
            operation = self.operations[number]
            position = self.positions[number]
            if is_end:
                ceilings[number] = ceiling
            elif position is not None and isinstance(operation.request, Write):
                ceiling = min(ceiling, position - 1)
            elif position is not None and isinstance(operation.request, Read) and operation.request.strong:
                ceiling = min(ceiling, position)
        return {
            number: ceilings.get(number, _NO_CEILING)
            for number, operation in enumerate(self.operations)
            if isinstance(operation.outcome, CheckFailed)
        }

    def _place_failed_check(self, number: int, frontier: int, ceiling: int) -> int | None:
        operation = self.operations[number]
        write, outcome = operation.request, operation.outcome
        if not isinstance(write, Write) or not isinstance(outcome, CheckFailed):
            return None
        keys = {item.key for item in write.checks}
        for position in (frontier, *self.model.changes_between(keys, frontier, ceiling)):
            if position <= ceiling and self._fails_so(write, outcome.failed_checks, position):
                return position
        self._violation(
            "failed-check-conflicts",
            f"checks {list(outcome.failed_checks)} were said to fail, and at no point of the interval did just these",
            number,
        )
        return None

    def _fails_so(self, write: Write, failed: tuple[int, ...], position: int) -> bool:
        """Whether exactly these checks fail at the position; a row that expires may pass for either."""
        for index, item in enumerate(write.checks):
            version = self.model.version_at(item.key, position)
            fails = version.versionstamp != item.versionstamp
            if fails != (index in failed) and not version.expires:
                return False
        return bool(failed)

    def _ages(self) -> None:
        """An eventual read holds all that was acknowledged before its beginning less the age it claims."""
        ends = sorted(
            (operation.completed_ms, position, number)
            for number, (operation, position) in enumerate(zip(self.operations, self.positions, strict=True))
            if operation.completed_ms is not None and position is not None and isinstance(operation.request, Write)
        )
        aged: list[tuple[float, int]] = []
        for number, operation in enumerate(self.operations):
            if isinstance(operation.request, Read) and isinstance(operation.outcome, Seen):
                age_ms = operation.outcome.age_ms
                if not operation.request.strong and age_ms >= 0:
                    aged.append((operation.invoked_ms - age_ms - self.slack_ms, number))
        next_end, frontier, holder = 0, 0, -1
        for moment, number in sorted(aged):
            while next_end < len(ends) and ends[next_end][0] < moment:
                if ends[next_end][1] > frontier:
                    frontier, holder = ends[next_end][1], ends[next_end][2]
                next_end += 1
            if (self.positions[number] or 0) < frontier:
                self._violation("age", "an eventual read is older than the age it claims", holder, number)


def _text(entry: SeenEntry) -> str:
    value = entry.value if len(entry.value) <= 32 else entry.value[:32] + b"..."
    return f"{entry.key!r} = {value!r} at {entry.versionstamp.hex()}"
