"""When acks go, and with which others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.node.calls import error_message
from kvnode.node.queue.settler import Settler
from kvnode.proto.kv.v1 import kv_pb2

NEVER_MS = 3_600_000


@dataclass
class Log:
    """Where writes go; a test answers them."""

    writes: list[list[bytes]] = field(default_factory=list)
    delivers: list[Callable[[kv_pb2.OperationResult], None]] = field(default_factory=list)
    claims_count: int = 0
    takes: bool = True

    def begin(self, operation: kv_pb2.Operation, database: int, deliver) -> bool:
        if self.takes:
            assert database == 1
            self.writes.append([action.ack.lease for action in operation.write.actions])
            self.delivers.append(deliver)
        return self.takes

    async def write(self, request, timeout_ms=0, *, database, settle):
        assert settle
        self.writes.append([action.ack.lease for action in request.actions])
        raise KvError("NO_LEADER", "nobody leads", phase="leader")

    def answer(self, at: int, *lost: int) -> None:
        result = kv_pb2.OperationResult()
        result.write.results.extend(
            [kv_pb2.QueueActionResult(lost=position in lost) for position in range(len(self.writes[at]))]
        )
        self.delivers[at](result)

    def refuse(self, at: int, code: str) -> None:
        self.delivers[at](kv_pb2.OperationResult(error=error_message(KvError(code, "refused"))))


class Stage:
    def __init__(self) -> None:
        self.log = Log()
        self.settler = Settler(self.log.write, self.log.begin, lambda: self.log.claims_count > 0)
        self.ended: dict[bytes, str] = {}

    def ack(self, *leases: bytes) -> None:
        for lease in leases:
            action = kv_pb2.QueueAction(ack=kv_pb2.QueueAck(lease=lease))
            self.settler.settle(1, action, lambda error, lease=lease: self.end(lease, error))  # type: ignore[misc]

    def end(self, lease: bytes, error: KvError | None) -> None:
        assert lease not in self.ended
        self.ended[lease] = "" if error is None else error.code


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(limits, "SETTLE_HOLD_MS", NEVER_MS)
    return Stage()


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_comes_in_one_pass_of_the_loop_goes_together_at_once_when_no_more_is_expected(stage: Stage) -> None:
    stage.ack(b"a", b"b")
    assert stage.log.writes == []
    await turn()
    assert stage.log.writes == [[b"a", b"b"]]
    stage.log.answer(0)
    assert stage.ended == {b"a": "", b"b": ""}
    await stage.settler.close()


async def test_an_ack_waits_for_those_of_what_was_delivered_with_it(stage: Stage) -> None:
    stage.settler.delivered(1, 3)
    stage.ack(b"a")
    await turn()
    stage.ack(b"b")
    await turn()
    assert stage.log.writes == []
    stage.ack(b"c")
    await turn()
    assert stage.log.writes == [[b"a", b"b", b"c"]]


async def test_an_ack_waits_no_longer_than_for_the_hold_though_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SETTLE_HOLD_MS", 30)
    stage = Stage()
    loop = asyncio.get_running_loop()
    stage.settler.delivered(1, 2)
    stage.ack(b"a")
    began = loop.time()
    stage.log.claims_count = 1  # one claim after another, as under load
    while not stage.log.writes:
        assert loop.time() - began < 5
        await asyncio.sleep(0.005)
        stage.settler.delivered(1, 1)
    assert loop.time() - began >= 0.029
    assert stage.log.writes == [[b"a"]]


async def test_what_was_delivered_long_ago_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SETTLE_HOLD_MS", 1)
    stage = Stage()
    stage.settler.delivered(1, 10)
    await asyncio.sleep(0.05)
    monkeypatch.setattr(limits, "SETTLE_HOLD_MS", NEVER_MS)
    stage.ack(b"a")
    await turn()
    assert stage.log.writes == [[b"a"]]


async def test_when_the_last_that_was_expected_is_not_any_more_the_others_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SETTLE_HOLD_MS", 20)
    stage = Stage()
    stage.settler.delivered(1, 2)
    await asyncio.sleep(0.01)
    monkeypatch.setattr(limits, "SETTLE_HOLD_MS", NEVER_MS)
    stage.ack(b"a")
    await turn()
    assert stage.log.writes == []
    await asyncio.sleep(0.05)
    assert stage.log.writes == [[b"a"]]


async def test_while_a_claim_is_under_way_acks_wait_and_go_with_the_next_entry(stage: Stage) -> None:
    stage.log.claims_count = 1
    stage.ack(b"a")
    await turn()
    assert stage.log.writes == []
    stage.settler.ride()
    assert stage.log.writes == [[b"a"]]
    stage.settler.ride()
    await turn()
    assert stage.log.writes == [[b"a"]]


async def test_with_two_writes_under_way_the_next_gathers_unless_it_rides(stage: Stage) -> None:
    for lease in (b"a", b"b", b"c", b"d"):
        stage.ack(lease)
        await turn()
    assert stage.log.writes == [[b"a"], [b"b"]]
    stage.settler.ride()
    assert stage.log.writes == [[b"a"], [b"b"], [b"c", b"d"]]
    stage.ack(b"e")
    await turn()
    stage.log.answer(0)
    await turn()
    assert len(stage.log.writes) == 3
    stage.log.answer(1)
    await turn()
    assert stage.log.writes[3:] == [[b"e"]]


async def test_a_write_takes_as_many_as_a_transaction_does(stage: Stage) -> None:
    leases = [b"%d" % number for number in range(limits.MAX_QUEUE_TOUCHED_COUNT + 1)]
    stage.ack(*leases)
    await turn()
    assert stage.log.writes == [leases[:-1], leases[-1:]]


async def test_a_lost_lease_is_told_of_by_itself_and_a_failure_to_all(stage: Stage) -> None:
    stage.ack(b"a", b"b")
    await turn()
    stage.log.answer(0, 1)
    stage.ack(b"c", b"d")
    await turn()
    stage.log.refuse(1, "NODE_STOPPING")
    assert stage.ended == {b"a": "", b"b": "LEASE_LOST", b"c": "NODE_STOPPING", b"d": "NODE_STOPPING"}


async def test_what_is_too_large_for_one_transaction_goes_in_parts(stage: Stage) -> None:
    stage.ack(b"a", b"b", b"c")
    await turn()
    stage.log.refuse(0, "TRANSACTION_TOO_LARGE")
    assert stage.log.writes[1:] == [[b"a"], [b"b", b"c"]]
    stage.log.answer(1)
    stage.log.refuse(2, "TRANSACTION_TOO_LARGE")
    stage.log.answer(3)
    stage.log.refuse(4, "TRANSACTION_TOO_LARGE")
    assert stage.ended == {b"a": "", b"b": "", b"c": "TRANSACTION_TOO_LARGE"}


async def test_while_no_write_can_begin_it_takes_a_task_and_ends_as_that_does(stage: Stage) -> None:
    stage.log.takes = False
    stage.ack(b"a")
    await turn()
    assert stage.log.writes == [[b"a"]]
    assert stage.ended == {b"a": "NO_LEADER"}


async def test_nothing_is_kept_of_a_database_whose_leases_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SETTLE_HOLD_MS", 1)
    stage = Stage()
    stage.settler.delivered(1, 2)
    stage.ack(b"a")
    await asyncio.sleep(0.05)
    stage.log.answer(0)
    assert stage.ended == {b"a": ""}
    assert not stage.settler._lanes


async def test_a_settler_that_is_closed_sends_nothing_more(stage: Stage) -> None:
    stage.ack(b"a")
    await stage.settler.close()
    await turn()
    assert stage.log.writes == []
