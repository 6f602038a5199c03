"""The session under which a node runs unary calls."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.base.errors import KvError
from kvnode.machine.sessions import NODES_OWN
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

    def _open(self, deliver: OpenDeliver, owner: int, timeout_ms: int) -> None:
        assert owner == NODES_OWN
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
    for call in (bench.session.run(write(put(b"k"))), bench.session.open(NODES_OWN)):
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


# begin: the same by callback.


class Begun:
    """An operation begun with callback, and what was delivered for it."""

    def __init__(self, bench: Bench, operation: kv_pb2.Operation | None = None, database: int = 3) -> None:
        self.results: list[kv_pb2.OperationResult] = []
        bench.session.begin(operation or write(put(b"k")), database, self.results.append)

    @property
    def error(self) -> kv_pb2.Error:
        (result,) = self.results
        assert result.HasField("error")
        return result.error

    @property
    def succeeded(self) -> bool:
        (result,) = self.results
        return not result.HasField("error") and result.write.status == SUCCESS


async def opened(timeout_ms: int = 1_000) -> Bench:
    """A bench whose session is open; what opened it is left out of `submitted`."""
    bench = Bench(timeout_ms)
    assert not bench.session.is_open
    task = bench.run()
    await settle()
    bench.opening.pop()(b"client", None)
    await settle()
    assert bench.session.is_open
    bench.answer(0)
    await task
    bench.submitted.clear()
    return bench


async def test_a_read_is_begun_without_a_session() -> None:
    bench = Bench()
    begun = Begun(bench, read(b"k"))
    operation, origin, deliver = bench.submitted[0]
    assert (origin.client_id, origin.database) == (b"", 3)
    assert origin.lowest_unanswered == operation.id > 0
    answer = kv_pb2.OperationResult(id=operation.id, read=kv_pb2.ReadResponse())
    deliver(answer)
    assert begun.results == [answer]
    assert not bench.opening and not bench.session.is_open


@pytest.mark.parametrize(
    "error",
    [
        KvError("DEADLINE_EXCEEDED", "by the test", not_applied=False),
        KvError("LEADERSHIP_LOST", "by the test", not_applied=False),
        KvError("UNAVAILABLE", "by the test"),
    ],
)
async def test_a_read_that_failed_is_delivered_as_it_is(error: KvError) -> None:
    bench = Bench()
    begun = Begun(bench, read(b"k"))
    bench.answer(0, error)
    await settle()
    assert begun.error == error_message(error) and len(bench.submitted) == 1


async def test_a_write_that_was_begun_is_answered_at_once() -> None:
    bench = await opened()
    begun = Begun(bench)
    operation, origin, _ = bench.submitted[0]
    assert (origin.client_id, origin.database, origin.lowest_unanswered) == (b"client", 3, operation.id)
    assert not operation.resend and begun.results == []
    bench.answer(0)
    assert begun.succeeded  # without a pass of the loop
    await settle()
    assert begun.succeeded and len(bench.submitted) == 1


async def test_a_write_that_is_answered_as_it_is_begun() -> None:
    bench = await opened()
    submit = bench._submit

    def submit_and_answer(operation: kv_pb2.Operation, origin: Origin, deliver: Deliver) -> None:
        submit(operation, origin, deliver)
        bench.answer(-1)

    bench.session._submit = submit_and_answer
    assert Begun(bench).succeeded
    bench.session._submit = submit
    Begun(bench)
    assert bench.submitted[1][1].lowest_unanswered == bench.submitted[1][0].id  # the first is answered


async def test_each_that_is_begun_has_its_own_id_and_the_lowest_unanswered_follows() -> None:
    bench = await opened()
    begun = [Begun(bench) for _ in range(3)]
    running = bench.run()
    await settle()
    ids = [operation.id for operation, _, _ in bench.submitted]
    assert ids == sorted(set(ids))
    assert [origin.lowest_unanswered for _, origin, _ in bench.submitted] == [ids[0]] * 4
    bench.answer(1)
    Begun(bench)
    assert bench.submitted[-1][1].lowest_unanswered == ids[0]
    bench.answer(0)
    Begun(bench, write(put(b"x")))
    assert bench.submitted[-1][1].lowest_unanswered == ids[2]
    bench.answer(2, KvError("UNAVAILABLE", "no leader"))
    assert begun[2].error.code == "UNAVAILABLE"
    Begun(bench, write(put(b"y")))
    assert bench.submitted[-1][1].lowest_unanswered == ids[3]
    bench.answer(3)
    await running


@pytest.mark.parametrize("code", ["DEADLINE_EXCEEDED", "LEADERSHIP_LOST", "FORWARD_BROKEN"])
async def test_a_begun_write_that_may_have_been_applied_is_sent_again_until_it_is_settled(code: str) -> None:
    bench = await opened()
    begun = Begun(bench)
    (operation, *_) = bench.submitted[0]
    sequence = operation.id
    for at in range(3):
        bench.answer(at, KvError(code, "by the test", not_applied=False))
        await settle()
        assert begun.results == [] and len(bench.submitted) == at + 2
        again, origin, _ = bench.submitted[-1]
        assert again.resend and again.id == sequence
        assert (origin.client_id, origin.database, origin.lowest_unanswered) == (b"client", 3, sequence)
    other = Begun(bench)
    assert bench.submitted[-1][1].lowest_unanswered == sequence  # until it is settled
    assert not bench.submitted[-1][0].resend
    bench.answer(3)
    await settle()
    assert begun.succeeded and begun.results[0].id == sequence
    Begun(bench)
    assert bench.submitted[-1][1].lowest_unanswered == bench.submitted[-2][0].id > sequence
    bench.answer(4)
    assert other.succeeded


@pytest.mark.parametrize("code", ["DEADLINE_EXCEEDED", "LEADERSHIP_LOST"])
async def test_a_begun_write_known_not_to_be_applied_is_given_back_at_once(code: str) -> None:
    bench = await opened()
    begun = Begun(bench)
    bench.answer(0, KvError(code, "no leader", phase="leader"))
    assert begun.error.code == code and begun.error.not_applied
    await settle()
    assert len(bench.submitted) == 1 and len(begun.results) == 1


@pytest.mark.parametrize("code", sorted(SESSION_LOST_CODES))
async def test_a_write_begun_under_a_lost_session_runs_under_a_new_one(code: str) -> None:
    bench = await opened()
    begun = Begun(bench)
    first = bench.submitted[0][0].id
    bench.answer(0, KvError(code, "gone", not_applied=True))
    await settle()
    assert not bench.session.is_open and begun.results == []
    bench.opening[0](b"new", None)
    await settle()
    operation, origin, _ = bench.submitted[1]
    assert (origin.client_id, origin.database) == (b"new", 3)
    assert operation.id > first and origin.lowest_unanswered == operation.id
    assert not operation.resend and operation.write == write(put(b"k")).write
    assert bench.session.is_open
    bench.answer(1, KvError("LEADERSHIP_LOST", "by the test", not_applied=False))
    await settle()
    assert bench.submitted[2][0].resend and begun.results == []  # it is settled there too
    bench.answer(2)
    await settle()
    assert begun.succeeded and len(bench.opening) == 1


async def test_a_begun_write_that_was_sent_again_is_a_first_copy_under_a_new_session() -> None:
    bench = await opened()
    begun = Begun(bench)
    bench.answer(0, UNKNOWN)
    await settle()
    assert bench.submitted[1][0].resend
    bench.answer(1, KvError("SESSION_UNKNOWN", "gone, and it was not applied", not_applied=True))
    await settle()
    bench.opening[0](b"new", None)
    await settle()
    assert bench.submitted[2][1].client_id == b"new" and not bench.submitted[2][0].resend
    bench.answer(2)
    await settle()
    assert begun.succeeded


async def test_several_begun_under_a_lost_session_share_one_opening() -> None:
    bench = await opened()
    begun = [Begun(bench) for _ in range(3)]
    for at in range(3):
        bench.answer(at, KvError("SESSION_EXPIRED", "gone", not_applied=True))
    await settle()
    assert len(bench.opening) == 1
    bench.opening[0](b"new", None)
    await settle()
    assert [origin.client_id for _, origin, _ in bench.submitted] == [b"client"] * 3 + [b"new"] * 3
    for at in range(3, 6):
        bench.answer(at)
    await settle()
    assert all(one.succeeded for one in begun)


async def test_a_late_word_of_the_old_session_leaves_the_new_one_to_what_was_begun() -> None:
    bench = await opened()
    first, second = Begun(bench), Begun(bench)
    bench.answer(0, KvError("SESSION_UNKNOWN", "gone", not_applied=True))
    await settle()
    bench.opening[0](b"new", None)
    await settle()
    bench.answer(1, KvError("SESSION_UNKNOWN", "gone", not_applied=True))
    await settle()
    assert len(bench.opening) == 1 and bench.session.is_open
    assert [origin.client_id for _, origin, _ in bench.submitted] == [b"client", b"client", b"new", b"new"]
    bench.answer(2)
    bench.answer(3)
    await settle()
    assert first.succeeded and second.succeeded


async def test_a_begun_write_for_which_no_session_can_be_opened_was_not_applied() -> None:
    bench = await opened()
    begun = Begun(bench)
    bench.answer(0, KvError("SESSION_UNKNOWN", "gone", not_applied=True))
    await settle()
    bench.opening[0](b"", error_message(KvError("DEADLINE_EXCEEDED", "no leader", phase="leader")))
    await settle()
    assert begun.error.code == "DEADLINE_EXCEEDED" and begun.error.not_applied
    assert len(bench.submitted) == 1


@pytest.mark.parametrize(
    "error",
    [
        KvError("SESSION_EXPIRED", "it may have been applied", not_applied=False),
        KvError("OUTCOME_UNKNOWN", "by the test", not_applied=False),
        KvError("STORAGE_FAILED", "by the test", phase="storage", not_applied=False),
    ],
)
@pytest.mark.parametrize("after_a_resend", [False, True])
async def test_what_cannot_be_known_of_a_begun_write_is_delivered_as_unknown(
    error: KvError, after_a_resend: bool
) -> None:
    bench = await opened()
    begun = Begun(bench)
    if after_a_resend:
        bench.answer(0, UNKNOWN)
        await settle()
    bench.answer(-1, error)
    await settle()
    assert begun.error.code == error.code and not begun.error.not_applied
    assert len(bench.submitted) == 1 + after_a_resend and not bench.opening
    Begun(bench)
    assert bench.submitted[-1][1].lowest_unanswered == bench.submitted[-1][0].id  # nobody waits for it any more


async def test_a_resend_that_nobody_answers_leaves_a_begun_write_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_session, "_GRACE_MS", 10)
    bench = await opened(timeout_ms=20)
    begun = Begun(bench)
    bench.answer(0, UNKNOWN)
    await asyncio.sleep(0.2)
    assert begun.error.code == "DEADLINE_EXCEEDED" and not begun.error.not_applied
    bench.answer(1)  # too late
    await settle()
    assert len(begun.results) == 1


@on_trio
async def test_begun_writes_through_a_lost_leader_are_applied_once(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    node = trio.node(one)
    await trio.within(one, node.write(kv_pb2.AtomicWriteRequest(mutations=[add_one(b"n")])))
    assert node.can_begin_writes
    futures = [asyncio.get_running_loop().create_future() for _ in range(20)]

    async def begin() -> None:
        for future in futures:
            operation = write(add_one(b"n"))
            operation.timeout_ms = 30_000
            node.begin(operation, 1, future.set_result)  # which fails the second time

    await trio.within(one, begin())
    await asyncio.sleep(0.001)
    trio.kill(leader)
    results = await asyncio.gather(*futures)
    assert all(result.write.status == SUCCESS for result in results)
    assert number_of(await trio.get(one, b"n")) == 21
