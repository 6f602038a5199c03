"""What becomes true once an index is reached."""

from __future__ import annotations

from kvnode.node.marks import Marks


def test_only_what_is_reached_counts_and_of_that_the_newest() -> None:
    marks: Marks[str] = Marks(8)
    assert marks.reached(100) is None
    for index, value in ((3, "three"), (5, "five"), (5, "five again"), (9, "nine")):
        marks.add(index, value)
    assert marks.reached(2) is None
    assert marks.reached(8) == "five again"
    assert marks.reached(8) is None, "it was told already"
    assert marks.reached(9) == "nine"


def test_too_many_are_thinned_evenly_and_the_newest_stays() -> None:
    marks: Marks[int] = Marks(64)
    for index in range(10_000):
        marks.add(index, index)
        assert len(marks._waiting) <= 64
    for index in range(1_000, 10_000, 1_000):
        found = marks.reached(index)
        assert found is not None and index - 10_000 / 32 <= found <= index
    assert marks.reached(10_000) == 9_999
    marks.add(10_001, 1)
    marks.add(10_002, 2)
    assert marks.reached(10_001) == 1, "once all was reached it is exact again"
