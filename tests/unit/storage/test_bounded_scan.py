"""A scan that stops where the rows are large."""

from pathlib import Path

import pytest

from tests.unit.storage.state_helpers import opened, put, row


@pytest.mark.parametrize("reverse", [False, True])
async def test_it_finds_what_a_scan_finds_or_says_that_it_is_too_much(tmp_path: Path, reverse: bool) -> None:
    async with opened(tmp_path) as state:
        put(state, 1, {b"k%d" % n: row(b"k%d" % n, bytes(100)) for n in range(9)})
        for limit in (1, 5, 20):
            expected = state.scan(b"k1", b"k8", limit, reverse=reverse)
            size = sum(len(each.value) for each in expected)
            assert state.scan_within(b"k1", b"k8", limit, max_bytes=size, reverse=reverse) == expected
            assert state.scan_within(b"k1", b"k8", limit, max_bytes=size - 1, reverse=reverse) is None
        assert state.scan_within(b"x", b"z", 1, max_bytes=0) == []
