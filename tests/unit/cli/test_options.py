"""What options refuse by themselves."""

from __future__ import annotations

import pytest
import typer

from kvnode.cli.options import parse_stamp, parse_timeout


@pytest.mark.parametrize("text", ["0s", "0.4ms"])
def test_a_duration_that_rounds_to_nothing_is_named(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=f"'{text}' comes to 0ms: write a duration longer than that"):
        parse_timeout(text)


def test_the_shortest_duration() -> None:
    assert parse_timeout("1ms") == 1


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_versionstamp_is_not_taken_for_no_bound(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="it is empty"):
        parse_stamp(text)
    assert parse_stamp("00010000000000a1ffff") == "00010000000000a1ffff"
