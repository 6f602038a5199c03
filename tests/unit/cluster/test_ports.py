"""Ports of clusters that are started beside each other."""

from __future__ import annotations

import pytest

from cluster.ports import SHARE_VARIABLE, free_ports


def test_who_shares_finds_no_port_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for number in range(3):
        monkeypatch.setenv(SHARE_VARIABLE, f"{number}/3")
        found.append(free_ports(200))
    assert all(len(set(ports)) == 200 for ports in found)
    assert max(found[0]) < min(found[1]) and max(found[1]) < min(found[2])


def test_a_share_may_be_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARE_VARIABLE, "63/64")
    assert len(set(free_ports(8))) == 8


def test_the_ports_of_a_node_that_is_down_are_not_given_to_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test kills three nodes and lets a fourth join: one time in 200 it got a port to which one of them returns."""
    monkeypatch.setenv(SHARE_VARIABLE, "62/64")
    found = [port for _ in range(20) for port in free_ports(12)]
    assert len(set(found)) == 240


def test_when_all_ports_have_been_given_away_they_are_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARE_VARIABLE, "61/64")
    assert all(len(set(free_ports(100))) == 100 for _ in range(6))
