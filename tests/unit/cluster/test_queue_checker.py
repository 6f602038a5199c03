"""The checker of a queue's history finds each kind of broken promise, and none in a history that keeps them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.queue_checker import check
from cluster.queue_history import (
    Dead,
    Enqueued,
    Event,
    Handled,
    Journal,
    QueueHistory,
    Settled,
    Totals,
    Undelivered,
    decode,
    encode,
    read_history,
)


def handled(number: int, attempt: int, *, failed: bool = False, lease: str = "", id: str = "") -> Handled:
    lease = lease or f"l{number}-{attempt}"
    return Handled(number, id or f"m{number}", lease, attempt, failed, "python-0", 1.0, 2.0)


def settled(number: int, attempt: int, verb: str, code: str = "") -> Settled:
    return Settled(f"l{number}-{attempt}", verb, code)


# Message 0 succeeds at once, 1 fails once and then succeeds, 2 fails to the end, 3 is handled by one who was killed and
# by another, 4 had no answer and is not there, 5 failed twice with one who was killed before he could say so.
SOUND: list[Event] = [
    Enqueued(0, 0, "acknowledged"), handled(0, 1), settled(0, 1, "ack"),
    Enqueued(1, 1, "acknowledged"), handled(1, 1, failed=True), settled(1, 1, "nack"), handled(1, 2),
    settled(1, 2, "ack"),
    Enqueued(2, 1, "acknowledged"), handled(2, 1, failed=True), settled(2, 1, "nack"), handled(2, 2, failed=True),
    settled(2, 2, "nack"), Dead(2, "m2", 2), Undelivered(2),
    Enqueued(3, 0, "acknowledged"), handled(3, 1), handled(3, 2), settled(3, 2, "ack"),
    Enqueued(4, 0, "unknown"),
    Enqueued(5, 0, "acknowledged"), handled(5, 1, failed=True), handled(5, 2, failed=True), Dead(5, "m5", 2),
    Undelivered(5),
    Totals(waiting=0, in_flight=0, dead=2, enqueued=5, delivered=9, redelivered=4, acknowledged=3),
]  # fmt: skip


def history(events: list[Event]) -> QueueHistory:
    made = QueueHistory()
    for event in events:
        made.add(event)
    return made


def rules(events: list[Event]) -> set[str]:
    return {violation.rule for violation in check(history(events)).violations}


def without(*gone: Event) -> list[Event]:
    assert all(event in SOUND for event in gone)
    return [event for event in SOUND if event not in gone]


def totals(**changed: int) -> list[Event]:
    return [event._replace(**changed) if isinstance(event, Totals) else event for event in SOUND]


def test_a_history_that_keeps_every_promise() -> None:
    report = check(history(SOUND))
    assert (report.violations, report.ok) == ([], True)
    assert (report.acknowledged, report.unknown, report.handled, report.handlings) == (5, 1, 5, 9)
    assert (report.redeliveries, report.failures, report.dead_letters, report.lost) == (4, 5, 2, 0)
    assert (report.succeeded_twice, report.in_doubt) == (1, 3)


def test_a_message_that_nobody_got_is_lost() -> None:
    events = without(handled(0, 1), settled(0, 1, "ack"))
    report = check(history(events))
    assert {violation.rule for violation in report.violations} == {"lost", "never_handled"}
    assert report.lost == 1


def test_a_message_that_only_failed_and_is_no_dead_letter_is_lost() -> None:
    assert "lost" in rules(without(handled(1, 2), settled(1, 2, "ack")))


def test_a_dead_letter_that_no_handler_saw() -> None:
    events = without(handled(0, 1), settled(0, 1, "ack"))
    assert {"never_handled", "dead_too_early"} <= rules([*events, Dead(0, "m0", 1), Undelivered(0)])


@pytest.mark.parametrize(
    ("rule", "events"),
    [
        ("never_enqueued", [*SOUND, handled(9, 1)]),
        ("refused_but_there", [*SOUND, Enqueued(6, 0, "refused"), handled(6, 1)]),
        ("enqueued_twice", [*SOUND, handled(0, 1, lease="other", id="another")]),
        ("acknowledged_twice", [*SOUND, settled(3, 1, "ack")]),
        ("acknowledged_and_dead", [*SOUND, Dead(0, "m0", 1), Undelivered(0)]),
        ("delivered_after_ack", [*SOUND, handled(0, 2)]),
        ("dead_too_early", [*SOUND, Dead(1, "m1", 2), Undelivered(1)]),
        ("dead_twice", [*SOUND, Dead(2, "m2", 2)]),
        ("not_dead", without(Dead(2, "m2", 2), Undelivered(2))),
        ("failed_after_end", [*SOUND, handled(2, 3, failed=True), settled(2, 3, "nack")]),
        ("delivered_after_death", [*SOUND, handled(2, 3)]),
        ("one_lease_twice", [*SOUND, handled(3, 1)]),
        ("not_on_its_keys", without(Undelivered(2))),
        ("on_its_keys_alive", [*SOUND, Undelivered(1)]),
        ("no_totals", SOUND[:-1]),
        ("not_empty", totals(waiting=1)),
        ("not_empty", totals(in_flight=1)),
        ("totals_differ", totals(enqueued=7)),
        ("totals_differ", totals(enqueued=4)),
        ("totals_differ", totals(acknowledged=2)),
        ("totals_differ", totals(dead=1)),
        ("totals_differ", totals(delivered=8)),
        ("totals_differ", totals(redelivered=3)),
    ],
)
def test_each_broken_promise_is_found(rule: str, events: list[Event]) -> None:
    assert rule in rules(events)


def test_what_is_in_doubt_is_no_violation() -> None:
    # A nack that was answered with LEASE_LOST may have been done by its first copy.
    doubtful = without(settled(2, 2, "nack"))
    assert rules([*doubtful, settled(2, 2, "nack", "LEASE_LOST")]) == set()
    # Failures that nobody confirmed may have been losses, so that the message lived on.
    more = [handled(1, 3, failed=True), settled(1, 3, "nack")]
    assert "not_dead" in rules([*SOUND, *more])
    assert "not_dead" not in rules([*without(settled(1, 1, "nack")), *more])
    # Beyond the bound of losses each counts as a failure.
    events = [*without(handled(0, 1), settled(0, 1, "ack")), handled(0, 3), Undelivered(0)]
    assert "dead_too_early" not in rules([*events, Dead(0, "m0", 11)])
    assert "dead_too_early" in rules([*events, Dead(0, "m0", 10)])


def test_files(tmp_path: Path) -> None:
    journal, other = Journal(tmp_path / "a.jsonl"), Journal(tmp_path / "b.jsonl")
    for event in SOUND:
        assert decode(encode(event)) == event
        (other if isinstance(event, Handled) else journal).write(event)
    journal.close()
    other.close()
    with (tmp_path / "b.jsonl").open("ab") as file:
        file.write(b'{"what":"handled","num')  # its writer was killed
    assert check(read_history(tmp_path)).as_json() == check(history(SOUND)).as_json()
    command = [sys.executable, "-m", "cluster.queue_checker", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, '"ok": true' in done.stdout) == (0, True)
    (tmp_path / "c.jsonl").write_bytes(encode(handled(0, 2)))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "delivered_after_ack" in done.stderr) == (1, True)
    (tmp_path / "c.jsonl").write_bytes(b'{"what":"nonsense"}\n')
    with pytest.raises(ValueError, match=r"c\.jsonl, line 1"):
        read_history(tmp_path)
