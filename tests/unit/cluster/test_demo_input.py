"""The demo's input is the named characters, without those named by rule."""

from __future__ import annotations

from cluster.demo_input import named_characters
from cluster.demo_ledger import Ledger


def test_input() -> None:
    characters = list(named_characters())
    by_code = {character.code: character for character in characters}
    assert 30_000 < len(characters) == len(by_code) < 40_000
    assert by_code["0000E9"].words == ("ACUTE", "E", "LATIN", "LETTER", "SMALL", "WITH")
    assert by_code["0000E9"].record["decomposition"] == "0065 0301"
    assert "004E00" not in by_code  # CJK UNIFIED IDEOGRAPH-4E00
    assert "00AC00" not in by_code  # HANGUL SYLLABLE GA


def test_ledger_counts_the_gap_from_the_kill_on() -> None:
    ledger = Ledger()
    ledger.begin(1_000)
    ledger.acknowledge("a", b"1", 5_000)
    ledger.watch_gap(5_100)
    ledger.acknowledge("b", b"2", 5_200)
    ledger.acknowledge("c", b"3", 6_500)
    ledger.acknowledge("d", b"0", 6_600)
    assert ledger.longest_gap_ms == 1_300
    assert ledger.newest == b"3"
    assert ledger.settled_count == 4
    assert round(ledger.per_second(), 2) == round(4 / 5.6, 2)
