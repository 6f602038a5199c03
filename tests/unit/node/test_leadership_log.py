"""What a node's log says of leaders."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.unit.node.cluster import Trio, on_trio, until


def test_each_change_is_said_with_its_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @on_trio
    async def run(trio: Trio) -> None:
        leader, _, _ = await trio.leader_and_followers()
        term = trio.node(leader).raft.term
        assert f"this node leads, in term {term}" in caplog.messages
        assert caplog.messages.count(f"'{leader.member.name}' leads, in term {term}") == 2
        trio.cut(leader)
        await until(lambda: not trio.node(leader).raft.is_leader, 20)
        await until(lambda: any("does so no more" in text for text in caplog.messages), 20)

    caplog.set_level(logging.INFO, "kvnode.node.leadership_log")
    run(tmp_path)
    said = next(text for text in caplog.messages if "does so no more" in text)
    assert said.endswith("no majority of the voters was heard within an election timeout")
