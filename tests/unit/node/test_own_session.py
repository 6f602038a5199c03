"""The session under which a node runs unary calls."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.base.errors import KvError
from kvnode.node import own_session
from kvnode.node.calls import OpenDeliver, error_message
from kvnode.node.own_session import SESSION_LOST_CODES, OwnSession
from kvnode.node.ports import Deliver, Origin
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.node.cluster import SUCCESS, Trio, add_one, number_of, on_trio, put, read, write


class Bench:
    """An own session over a node that answers when it is told to."""

    def __init__(self, timeout_ms: int = 1_000) -> None:
        self.opening: list[OpenDeliver] = []
        self.submitted: list[tuple[kv_pb2.Operation, Origin, Deliver]] = []
        self.session = OwnSession(self._submit, self._open, timeout_ms)

    def _submit(self, operation: kv_pb2.Operation, origin: Origin, deliver: Deliver) -> None:
        self.submitted.append((operation, origin, deliver))

    def _open(self, deliver: OpenDeliver, timeout_ms: int) -> None:
        self.opening.append(deliver)

    def run(
        self, operation: kv_pb2.Operation | None = None, *, settle: bool = False
    ) -> asyncio.Task[kv_pb2.OperationResult]:
        return asyncio.ensure_future(self.session.run(operation or write(put(b"k")), settle=settle))

    def answer(self, at: int, error: KvError | None = None) -> None:
        operation, _, deliver = self.submitted[at]
        if error is None:
            body = kv_pb2.AtomicWriteResponse(status=SUCCESS)
            deliver(kv_pb2.OperationResult(id=operation.id, write=body))
        else:
            deliver(kv_pb2.OperationResult(id=operation.id, error=error_message(error)))


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_many_first_writes_share_one_opening() -> None:
    bench = Bench()
    tasks = [bench.run() for _ in range(5)]
    await settle()
    assert len(bench.opening) == 1 and not bench.submitted
    bench.opening[0](b"client", None)
    await settle()
    assert {origin.client_id for _, origin, _ in bench.submitted} == {b"client"}
    assert len({operation.id for operation, _, _ in bench.submitted}) == 5
    for at in range(5):
        bench.answer(at)
    await asyncio.gather(*tasks)


async def test_a_read_needs_no_session() -> None:
    bench = Bench()
    task = bench.run(read(b"k"))
    await settle()
    assert not bench.opening and bench.submitted[0][1].client_id == b""
    bench.answer(0)
    await task


async def test_the_lowest_unanswered_follows_the_answers() -> None:
    bench = Bench()
    first = bench.run()
    await settle()
    bench.opening[0](b"client", None)
    await settle()
    second = bench.run()
    await settle()
    lowest = bench.submitted[0][0].id
    assert bench.submitted[1][1].lowest_unanswered == lowest
    bench.answer(0)
    await first
    third = bench.run()
    await settle()
    assert bench.submitted[2][1].lowest_unanswered == bench.submitted[1][0].id > lowest
    bench.answer(1)
    bench.answer(2)
    await asyncio.gather(second, third)


async def test_one_that_comes_as_the_opening_ends_opens_no_second_session() -> None:
    bench = Bench()
    first = bench.run()
    await settle()
    bench.opening[0](b"client", None)
    second = bench.run()
    await settle()
    assert len(bench.opening) == 1 and len(bench.submitted) == 2
    bench.answer(0)
    bench.answer(1)
    await asyncio.gather(first, second)


async def test_a_late_word_of_the_old_sessions_end_leaves_the_new_one() -> None:
    bench = Bench()
    tasks = [bench.run(), bench.run()]
    await settle()
    bench.opening[0](b"old", None)
    await settle()
    bench.answer(0, KvError("SESSION_UNKNOWN", "gone", not_applied=True))
    await settle()
    bench.opening[1](b"new", None)
    await settle()
    bench.answer(1, KvError("SESSION_UNKNOWN", "gone", not_applied=True))
    await settle()
    assert len(bench.opening) == 2
    assert [origin.client_id for _, origin, _ in bench.submitted] == [b"old", b"old", b"new", b"new"]
    bench.answer(2)
    bench.answer(3)
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("code", sorted(SESSION_LOST_CODES))
async def test_a_lost_session_is_opened_anew_and_the_write_sent_again(code: str) -> None:
    bench = Bench()
    task = bench.run()
    await settle()
    bench.opening[0](b"old", None)
    await settle()
    bench.answer(0, KvError(code, "gone", not_applied=True))
    await settle()
    bench.opening[1](b"new", None)
    await settle()
    operation, origin, _ = bench.submitted[1]
    assert origin.client_id == b"new" and not operation.resend
    bench.answer(1)
    assert (await task).write.status == SUCCESS


async def test_an_unknown_outcome_is_never_sent_under_a_new_id() -> None:
    bench = Bench()
    task = bench.run()
    await settle()
    bench.opening[0](b"old", None)
    await settle()
    bench.answer(0, KvError("SESSION_UNKNOWN", "gone, and it was a resend", not_applied=False))
    with pytest.raises(KvError) as caught:
        await task
    assert not caught.value.not_applied and len(bench.submitted) == 1 and len(bench.opening) == 1


async def test_an_opening_that_failed_is_tried_again_by_the_next() -> None:
    bench = Bench()
    task = bench.run()
    await settle()
    bench.opening[0](b"", error_message(KvError("DEADLINE_EXCEEDED", "no leader")))
    with pytest.raises(KvError, match="no leader"):
        await task
    again = bench.run()
    await settle()
    bench.opening[1](b"client", None)
    await settle()
    bench.answer(0)
    await again


async def test_a_node_that_no_longer_answers_leaves_a_write_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_session, "_GRACE_MS", 10)
    bench = Bench(timeout_ms=20)
    writing, reading = bench.run(), bench.run(read(b"k"))
    await settle()
    bench.opening[0](b"client", None)
    with pytest.raises(KvError) as of_write:
        await writing
    with pytest.raises(KvError) as of_read:
        await reading
    assert of_write.value.code == of_read.value.code == "DEADLINE_EXCEEDED"
    assert not of_write.value.not_applied and of_read.value.not_applied


async def test_a_caller_that_gives_up_spoils_nothing() -> None:
    bench = Bench()
    impatient, patient = bench.run(), bench.run()
    await settle()
    impatient.cancel()
    await settle()
    bench.opening[0](b"client", None)
    await settle()
    bench.answer(0)
    assert (await patient).write.status == SUCCESS


@on_trio
async def test_unary_writes_through_a_lost_leader_are_applied_once(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    node = trio.node(one)
    await trio.within(one, node.write(kv_pb2.AtomicWriteRequest(mutations=[add_one(b"n")])))
    requests = [kv_pb2.AtomicWriteRequest(mutations=[add_one(b"n")]) for _ in range(20)]
    tasks = [one.process.spawn(node.write(request)) for request in requests]
    await asyncio.sleep(0.001)
    trio.kill(leader)
    answers = await asyncio.gather(*tasks)
    assert all(answer.status == SUCCESS for answer in answers)
    assert number_of(await trio.get(one, b"n")) == 21


async def test_an_opening_that_nobody_answers_ends_by_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_session, "_GRACE_MS", 10)
    bench = Bench(timeout_ms=50)
    for call in (bench.session.run(write(put(b"k"))), bench.session.open()):
        with pytest.raises(KvError) as raised:
            await asyncio.wait_for(call, 1)
        assert raised.value.code == "DEADLINE_EXCEEDED" and raised.value.not_applied


UNKNOWN = KvError("DEADLINE_EXCEEDED", "by the test", not_applied=False)


async def test_a_write_that_may_have_been_applied_is_sent_under_its_id_until_it_is_settled() -> None:
    bench = Bench()
    task = bench.run(settle=True)
    await settle()
    bench.opening[0](b"client", None)
    for at in range(5):
        await settle()
        assert len(bench.submitted) == at + 1
        bench.answer(at, UNKNOWN)
    await settle()
    bench.answer(5)
    assert (await task).write.status == SUCCESS
    assert {operation.id for operation, _, _ in bench.submitted} == {1}
    assert {origin.client_id for _, origin, _ in bench.submitted} == {b"client"}
    assert bench.submitted[-1][0].resend


async def test_a_write_known_not_to_be_applied_is_given_back_at_once() -> None:
    bench = Bench()
    task = bench.run(settle=True)
    await settle()
    bench.opening[0](b"client", None)
    await settle()
    bench.answer(0, KvError("DEADLINE_EXCEEDED", "no leader", phase="leader"))
    with pytest.raises(KvError) as caught:
        await task
    assert caught.value.not_applied and len(bench.submitted) == 1


async def test_what_its_lost_session_cannot_tell_is_unknown_for_ever() -> None:
    bench = Bench()
    task = bench.run(settle=True)
    await settle()
    bench.opening[0](b"client", None)
    await settle()
    bench.answer(0, UNKNOWN)
    await settle()
    bench.answer(1, KvError("SESSION_EXPIRED", "by the test", not_applied=False))
    with pytest.raises(KvError) as caught:
        await task
    assert not caught.value.not_applied and len(bench.submitted) == 2
