"""A node that asks to be taken in, and what it says meanwhile."""

from __future__ import annotations

import asyncio
import logging

import pytest

from kvnode.api import self_join
from kvnode.api.join import Joining, wait_for_adoption
from kvnode.api.self_join import SelfJoin
from kvnode.base import limits
from kvnode.base.config import load_config
from kvnode.codec.membership import Member, MemberRole
from tests.unit.api.http.raw import eventually

ME = Member(9, "e", "europe", "dc-e", "e:1", MemberRole.REPLICA)


@pytest.mark.parametrize(("patient_attempts", "level"), [(30, logging.INFO), (0, logging.ERROR)])
async def test_a_node_that_waits_itself_is_an_error_only_when_it_goes_on_for_long(
    patient_attempts: int,
    level: int,
    unused_tcp_port: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nodes that are started together ask one another before the first of them is adopted."""
    monkeypatch.setattr(self_join, "_PATIENT_ATTEMPTS_COUNT", patient_attempts)
    monkeypatch.setattr(limits, "SELF_JOIN_RETRY_MS", 10)
    caplog.set_level(logging.INFO, self_join.__name__)
    address = f"127.0.0.1:{unused_tcp_port}"
    voter = Member(1, "a", "us-east", "dc-a", address, MemberRole.VOTER)
    waiting = asyncio.ensure_future(wait_for_adoption(Joining(voter), address))
    nobody = "127.0.0.1:1"
    asking = SelfJoin(load_config({"join": [address, nobody], "replica": True}, {}).config, ME)
    attempts = 0

    async def counted() -> None:
        nonlocal attempts
        attempts += 1
        await ask()

    ask = asking._ask_once
    monkeypatch.setattr(asking, "_ask_once", counted)
    asking.begin()
    try:
        await eventually(lambda: "belongs to no cluster yet" in caplog.text)
        seen = attempts
        await eventually(lambda: attempts > seen + 4)  # by both in turn
    finally:
        await asking.stop()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    (said,) = (record for record in caplog.records if "belongs to no cluster yet" in record.getMessage())
    assert said.levelno == level
