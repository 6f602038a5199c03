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
