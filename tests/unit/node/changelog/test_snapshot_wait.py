"""For how long a replica leaves it to a neighbour to fetch a snapshot."""

from __future__ import annotations

from kvnode.base import limits
from kvnode.codec.membership import Member, MemberRole
from kvnode.node.changelog.snapshot_wait import SnapshotWait
from kvnode.node.ports import Awaited
from tests.unit.node.changelog.test_choice import member

WAIT_MS = limits.NEIGHBOUR_SNAPSHOT_WAIT_MS
STALL_MS = limits.NEIGHBOUR_SNAPSHOT_STALL_MS
SIZE_BYTES = 1_000


VOTER: Member = member(1, "us", MemberRole.VOTER)
NEIGHBOUR: Member = member(11, "eu", MemberRole.REPLICA)
SECOND: Member = member(12, "eu", MemberRole.REPLICA)


class Hand:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.ms = 1_000_000.0

    def monotonic_ms(self) -> float:
        return self.ms

    def now_ms(self) -> int:
        return int(self.ms)


class Waiting:
    """A wait that has begun."""

    def __init__(self) -> None:
        self.clock = Hand()
        self.own = Awaited(0, 0)
        self.wait = SnapshotWait(self.clock, lambda: [NEIGHBOUR, SECOND], lambda: self.own)
        self.wait.need()

    def lasts_ms(self, *, until_ms: float = 10 * STALL_MS, step_ms: float = 100, heard: Awaited | None = None) -> float:
        """For how long it goes on while a neighbour says this all the time."""
        began = self.clock.ms
        while self.clock.ms - began < until_ms and self.wait.is_on():
            if heard is not None:
                self.wait.hear(NEIGHBOUR, heard)
            self.clock.ms += step_ms
        return self.clock.ms - began


def test_before_the_need_is_known_others_are_held_back() -> None:
    wait = SnapshotWait(Hand(), lambda: [NEIGHBOUR, SECOND], lambda: Awaited(0, 0))
    assert wait.holds_back(VOTER) and not wait.is_on() and wait.waited_ms == 0


def test_a_neighbour_that_does_not_come_is_waited_for_a_few_seconds() -> None:
    waiting = Waiting()
    assert waiting.wait.holds_back(VOTER)
    assert WAIT_MS <= waiting.lasts_ms() <= WAIT_MS + 100
    assert not waiting.wait.holds_back(VOTER) and waiting.wait.waited_ms >= WAIT_MS


def test_who_has_waited_in_vain_waits_no_more_until_it_has_caught_up() -> None:
    waiting = Waiting()
    waiting.lasts_ms()
    waiting.wait.hear(NEIGHBOUR, Awaited(10, SIZE_BYTES))
    waiting.wait.need()
    assert not waiting.wait.is_on()
    waiting.wait.settle()
    waiting.wait.need()
    assert waiting.wait.is_on()


def test_a_neighbour_is_waited_for_as_long_as_it_gets_further() -> None:
    waiting = Waiting()
    for held_bytes in range(0, SIZE_BYTES, 100):
        assert waiting.lasts_ms(until_ms=STALL_MS / 2, heard=Awaited(held_bytes, SIZE_BYTES)) >= STALL_MS / 2
        assert waiting.wait.neighbour == (NEIGHBOUR, Awaited(held_bytes, SIZE_BYTES))


def test_and_no_longer() -> None:
    waiting = Waiting()
    waiting.lasts_ms(until_ms=1_000, heard=Awaited(10, SIZE_BYTES))
    assert STALL_MS - 2_000 <= waiting.lasts_ms(heard=Awaited(10, SIZE_BYTES)) <= STALL_MS
    assert waiting.wait.neighbour is None


def test_what_begins_again_and_again_gets_no_further() -> None:
    waiting = Waiting()
    waited_ms = 0.0
    while waiting.wait.is_on() and waited_ms < 10 * STALL_MS:
        for held_bytes in (0, 40, 80):
            waited_ms += waiting.lasts_ms(until_ms=1_000, heard=Awaited(held_bytes, SIZE_BYTES))
    assert STALL_MS <= waited_ms <= STALL_MS + 4_000


def test_after_the_last_byte_there_is_time_to_install() -> None:
    waiting = Waiting()
    lasts_ms = waiting.lasts_ms(until_ms=2 * limits.MAX_SNAPSHOT_INSTALL_MS, heard=Awaited(SIZE_BYTES, SIZE_BYTES))
    assert limits.MAX_SNAPSHOT_INSTALL_MS <= lasts_ms <= limits.MAX_SNAPSHOT_INSTALL_MS + 100


def test_a_neighbour_that_dies_is_taken_over_from_after_a_few_seconds() -> None:
    waiting = Waiting()
    waiting.lasts_ms(until_ms=2 * WAIT_MS, heard=Awaited(10, SIZE_BYTES))
    assert waiting.wait.is_on()
    assert WAIT_MS - 200 <= waiting.lasts_ms() <= WAIT_MS + 100


def test_of_several_neighbours_one_is_enough() -> None:
    waiting = Waiting()
    waiting.wait.hear(NEIGHBOUR, Awaited(500, SIZE_BYTES))
    for held_bytes in range(0, 100, 10):
        waiting.clock.ms += WAIT_MS - 1
        waiting.wait.hear(SECOND, Awaited(held_bytes, SIZE_BYTES))
        assert waiting.wait.is_on()
    assert waiting.wait.neighbour == (SECOND, Awaited(90, SIZE_BYTES))


def test_who_has_no_neighbour_does_not_wait() -> None:
    wait = SnapshotWait(Hand(), list, lambda: Awaited(0, 0))
    assert not wait.holds_back(VOTER)
    wait.need()
    assert not wait.is_on() and not wait.holds_back(VOTER)


def test_a_neighbour_sends_what_it_has() -> None:
    waiting = Waiting()
    assert waiting.wait.holds_back(VOTER) and not waiting.wait.holds_back(NEIGHBOUR)


def test_an_own_snapshot_comes_as_long_as_it_gets_further() -> None:
    waiting = Waiting()
    for held_bytes in range(0, SIZE_BYTES, 100):
        waiting.own = Awaited(held_bytes, SIZE_BYTES)
        assert waiting.wait.is_coming()
        waiting.clock.ms += STALL_MS - 1
    assert waiting.wait.is_coming()
    waiting.clock.ms += 1
    assert not waiting.wait.is_coming()
    waiting.wait.settle()
    assert waiting.wait.is_coming(), "the next one has its own time"
