"""How far behind a state is, by the writes that it lacks."""

from __future__ import annotations

from cluster.ack_timeline import AckTimeline
from kvnode.codec.versionstamp import versionstamp


def stamp(index: int, order: int = 0) -> bytes:
    return versionstamp(1, index, order)


def test_a_state_that_lacks_nothing_is_not_behind() -> None:
    timeline = AckTimeline()
    assert timeline.behind_ms(stamp(1), 50) == 0
    timeline.acknowledged(stamp(1), 10)
    assert timeline.behind_ms(stamp(1), 50) == 0
    assert timeline.count_up_to(stamp(1)) == 1


def test_it_is_behind_since_the_oldest_write_that_it_lacks_was_acknowledged() -> None:
    timeline = AckTimeline()
    for index, at_ms in ((2, 20.0), (4, 40.0), (3, 30.0)):
        timeline.acknowledged(stamp(index), at_ms)
    assert timeline.behind_ms(stamp(2), 100) == 70
    assert timeline.behind_ms(stamp(1), 100) == 80
    assert [timeline.count_up_to(stamp(index)) for index in (1, 2, 3, 9)] == [0, 1, 2, 3]


def test_answers_that_overtook_one_another_count_from_the_first() -> None:
    timeline = AckTimeline()
    timeline.acknowledged(stamp(1, 0), 12)
    timeline.acknowledged(stamp(1, 1), 11)
    assert timeline.behind_ms(stamp(0), 20) == 9
