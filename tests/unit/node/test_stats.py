"""The node's own counting."""

from __future__ import annotations

import pytest

from kvnode.node.stats import COUNT_BUCKETS, LATENCY_BUCKETS_MS, SIZE_BUCKETS_BYTES, Histogram, Stats


@pytest.mark.parametrize("bounds", [LATENCY_BUCKETS_MS, COUNT_BUCKETS, SIZE_BUCKETS_BYTES])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_bounds_are_inclusive_and_the_last_bucket_is_open() -> None:
    histogram = Histogram((1, 10))
    for value in (0.5, 1, 1.1, 10, 11, 1e9):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 2]
    assert histogram.count == 6
    assert histogram.sum == pytest.approx(0.5 + 1 + 1.1 + 10 + 11 + 1e9)


def test_quantiles_are_upper_bounds() -> None:
    histogram = Histogram((1, 10, 100))
    assert histogram.quantile(0.5) == 0
    for value in (0.1, 0.2, 5, 50):
        histogram.observe(value)
    assert (histogram.quantile(0.5), histogram.quantile(0.75), histogram.quantile(1)) == (1, 10, 100)
    histogram.observe(1_000)
    assert histogram.quantile(1) == float("inf")


def test_every_slot_starts_with_a_value() -> None:
    stats = Stats()
    for name in Stats.__slots__:
        value = getattr(stats, name)
        assert value == 0 if isinstance(value, int) else value.count == 0
