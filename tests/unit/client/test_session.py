from __future__ import annotations

import asyncio
import time
from random import Random

import pytest

from kvnode.base import limits
from kvnode.base.errors import DeadlineExceeded, InvalidRequest, KvError, OutcomeUnknown, Unavailable
from kvnode.client.session import Session
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.client.fake_server import FakeServer, Store, free_port


def put(key: bytes, data: bytes = b"v") -> kv_pb2.AtomicWriteRequest:
    value = kv_pb2.Value(data=data, encoding=kv_pb2.VALUE_ENCODING_BYTES)
    return kv_pb2.AtomicWriteRequest(mutations=[kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_SET, key=key, value=value)])


def add(key: bytes, amount: int = 1) -> kv_pb2.AtomicWriteRequest:
    value = kv_pb2.Value(data=amount.to_bytes(8, "little"), encoding=kv_pb2.VALUE_ENCODING_LE64)
    return kv_pb2.AtomicWriteRequest(mutations=[kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_SUM, key=key, value=value)])


def get(key: bytes) -> kv_pb2.ReadRequest:
    return kv_pb2.ReadRequest(ranges=[kv_pb2.ReadRange(start=key, end=key + b"\x00", limit=1)])


def error(code: str, phase: str = "leader", *, not_applied: bool = True) -> kv_pb2.Error:
    return kv_pb2.Error(code=code, message=f"it is {code}", phase=phase, not_applied=not_applied)


def writes_counts(server: FakeServer, before: int) -> list[int]:
    """Of each message since then; a probe, which a busy machine brings about, is no write and does not count."""
    counts = [sum(each.HasField("write") for each in message.operations) for message in server.messages[before:]]
    return [count for count in counts if count]


def counter(store: Store, key: bytes) -> int:
    return int.from_bytes(store.rows[key].value, "little")


async def test_a_write_is_seen_by_a_read() -> None:
    async with FakeServer() as server, Session([server.address]) as session:
        written = await session.write(put(b"k"))
        read = await session.read(get(b"k"))
    assert written.status == kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS
    assert read.ranges[0].entries[0].versionstamp == written.versionstamp
    assert session.node == "a"


async def test_eventual_reads_do_not_wait_for_the_client_id() -> None:
    eventually = get(b"k")
    eventually.consistency = kv_pb2.CONSISTENCY_EVENTUAL
    async with FakeServer() as server, Session([server.address]) as session:
        server.faults.withhold_ids = True
        writing = asyncio.ensure_future(session.write(put(b"k")))
        strong = asyncio.ensure_future(session.read(get(b"k")))
        for _ in range(3):
            assert not (await session.read(eventually)).ranges[0].entries
        assert not session.is_open and not writing.done() and not strong.done()
        sent = [operation for message in server.messages for operation in message.operations]
        assert len(sent) == 3, "what needs the id was not sent without it"
        server.faults.withhold_ids = False
        await session.read(eventually)
        assert (await writing).status == kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS
        assert (await strong).ranges


async def test_operations_of_one_loop_pass_travel_in_one_message() -> None:
    async with FakeServer() as server, Session([server.address]) as session:
        await session.write(put(b"first"))
        before = len(server.messages)
        await asyncio.gather(*(session.write(put(b"%d" % i)) for i in range(500)))
        sizes = writes_counts(server, before)
    assert sizes == [500]


async def test_a_message_holds_no_more_than_the_limit() -> None:
    async with FakeServer() as server, Session([server.address]) as session:
        await session.write(put(b"first"))
        before = len(server.messages)
        done = asyncio.Event()
        left = limits.MAX_SESSION_MESSAGE_OPERATIONS_COUNT + 1

        def deliver(result: kv_pb2.OperationResult) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                done.set()

        ids = session.submit_many([put(b"k")] * left, deliver)
        await done.wait()
        sizes = writes_counts(server, before)
    assert len(ids) == limits.MAX_SESSION_MESSAGE_OPERATIONS_COUNT + 1
    assert sizes == [limits.MAX_SESSION_MESSAGE_OPERATIONS_COUNT, 1]


async def test_the_answered_operations_are_reported_to_the_node() -> None:
    async with FakeServer() as server, Session([server.address]) as session:
        for number in range(5):
            await session.write(put(b"%d" % number))
    assert server.messages[-1].lowest_unanswered == 5
    assert [message.operations[0].id for message in server.messages[1:]] == [1, 2, 3, 4, 5]


async def test_a_write_whose_answer_was_lost_is_applied_once() -> None:
    async with FakeServer() as server, Session([server.address], random=Random(1)) as session:
        await session.write(add(b"n"))
        server.faults.drop_after_apply_count = 3
        await session.write(add(b"n"))
        assert counter(server.store, b"n") == 2
        assert server.sessions_count == 4
        assert server.messages[-1].operations[0].resend
        assert not server.messages[1].operations[0].resend


async def test_many_writes_through_many_broken_streams_are_applied_once_each() -> None:
    store = Store()
    async with (
        FakeServer(store, "a") as one,
        FakeServer(store, "b") as two,
        Session([one.address, two.address], random=Random(1)) as session,
    ):
        one.faults.drop_after_apply_count = 5
        two.faults.drop_before_apply_count = 5
        two.faults.answer_twice = True
        for _ in range(10):
            await asyncio.gather(*(session.write(add(b"n")) for _ in range(20)))
    assert counter(store, b"n") == 200


async def test_the_next_endpoint_is_used_when_the_first_does_not_listen() -> None:
    async with FakeServer() as server, Session([f"127.0.0.1:{free_port()}", server.address]) as session:
        await session.write(put(b"k"))
        assert session.endpoint == server.address


async def test_a_write_follows_its_id_to_another_node() -> None:
    store = Store()
    one, two = await FakeServer(store, "a").start(), await FakeServer(store, "b").start()
    try:
        async with Session([one.address, two.address], random=Random(1)) as session:
            await session.write(add(b"n"))
            one.faults.drop_after_apply_count = 1
            await session.write(add(b"n"))
            assert session.node == "b"
            assert counter(store, b"n") == 2
            assert two.messages[0].open.client_id == session.client_id
    finally:
        await one.stop()
        await two.stop()


async def test_a_hanging_endpoint_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENT_HANG_TIMEOUT_MS", 200)
    store = Store()
    async with (
        FakeServer(store, "a") as one,
        FakeServer(store, "b") as two,
        Session([one.address, two.address]) as session,
    ):
        await session.write(add(b"n"))
        one.faults.hang = True
        await session.write(add(b"n"), timeout_ms=3_000)
        assert session.node == "b"
    assert counter(store, b"n") == 2


async def test_a_frozen_node_is_found_by_a_probe() -> None:
    store = Store()
    async with (
        FakeServer(store, "a") as one,
        FakeServer(store, "b") as two,
        Session([one.address, two.address]) as session,
    ):
        await session.write(add(b"n"))
        one.faults.hang = True
        started = time.monotonic()
        await session.write(add(b"n"), timeout_ms=5_000)
        assert session.node == "b"
        assert time.monotonic() - started < limits.CLIENT_HANG_TIMEOUT_MS / 1000
    assert counter(store, b"n") == 2


async def test_a_node_that_waits_for_a_leader_keeps_its_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENT_PROBE_AFTER_MS", 50)
    monkeypatch.setattr(limits, "CLIENT_PROBE_TIMEOUT_MS", 300)
    async with (
        FakeServer(name="a") as one,
        FakeServer(one.store, "b") as two,
        Session([one.address, two.address]) as session,
    ):
        await session.write(add(b"n"))
        one.faults.hold_writes = True
        with pytest.raises(OutcomeUnknown):
            await session.write(add(b"n"), timeout_ms=1_000)
        assert session.node == "a"
        probes = [op for message in one.messages for op in message.operations if op.HasField("read")]
        assert len(probes) > 3
        assert two.sessions_count == 0
        one.faults.hold_writes = False
        await session.write(add(b"n"))


async def test_what_a_slow_node_works_at_is_not_sent_again_ever_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENT_HANG_TIMEOUT_MS", 100)
    async with FakeServer() as server, Session([server.address]) as session:
        await session.write(add(b"n"))
        server.faults.hold_writes = True
        with pytest.raises(OutcomeUnknown):
            await session.write(add(b"n"), timeout_ms=1_900)
        # Left after 100, 200, 400 and 800 ms; it resumes the session each time.
        assert 1 < server.sessions_count <= 5


async def test_an_endpoint_that_only_refuses_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENT_HANG_TIMEOUT_MS", 200)
    store = Store()
    async with (
        FakeServer(store, "a") as one,
        FakeServer(store, "b") as two,
        Session([one.address, two.address], random=Random(1)) as session,
    ):
        await session.write(add(b"n"))
        one.faults.errors = [error("UNAVAILABLE")] * 1_000
        await session.write(add(b"n"), timeout_ms=5_000)
        assert session.node == "b"
    assert counter(store, b"n") == 2


async def test_a_restarted_node_is_waited_for() -> None:
    port = free_port()
    store = Store()
    async with Session([f"127.0.0.1:{port}"], random=Random(1)) as session:
        writing = asyncio.ensure_future(session.write(add(b"n")))
        await asyncio.sleep(0.3)
        server = await FakeServer(store).start(f"127.0.0.1:{port}")
        await writing
        await server.stop()
        writing = asyncio.ensure_future(session.write(add(b"n")))
        await asyncio.sleep(0.1)
        server = await FakeServer(store).start(f"127.0.0.1:{port}")
        await writing
        await session.close()
        await server.stop()
    assert counter(store, b"n") == 2


async def test_a_passing_refusal_is_retried_under_the_same_id() -> None:
    async with FakeServer() as server, Session([server.address], random=Random(1)) as session:
        server.faults.errors = [error("NOT_LEADER"), error("OUTCOME_UNKNOWN", "commit", not_applied=False)]
        await session.write(add(b"n"))
        sent = [operation for message in server.messages for operation in message.operations]
    assert [operation.id for operation in sent] == [1, 1, 1]
    assert [operation.resend for operation in sent] == [False, False, True]


async def test_a_wrong_request_is_not_retried() -> None:
    async with FakeServer() as server, Session([server.address]) as session:
        server.faults.errors = [error("KEY_TOO_LARGE", "validate")]
        with pytest.raises(InvalidRequest) as caught:
            await session.write(put(b"k"))
    assert caught.value.code == "KEY_TOO_LARGE"
    assert caught.value.endpoint == server.address


async def test_a_write_that_could_not_be_sent_ends_at_its_deadline_unapplied() -> None:
    address = f"127.0.0.1:{free_port()}"
    async with Session([address]) as session:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            await session.write(put(b"k"), timeout_ms=300)
        assert 0.25 < time.monotonic() - started < 1.0
    assert caught.value.not_applied
    assert caught.value.phase == "dial"
    assert caught.value.endpoint == address
    assert "refused" in caught.value.message


async def test_a_write_that_was_sent_and_never_confirmed_is_of_unknown_outcome() -> None:
    async with FakeServer() as server, Session([server.address]) as session:
        await session.write(put(b"k"))
        server.faults.hang = True
        with pytest.raises(OutcomeUnknown) as caught:
            await session.write(put(b"k"), timeout_ms=300)
    assert not caught.value.not_applied
    assert caught.value.phase == "commit"
    assert server.address in str(caught.value)


async def test_a_read_that_is_not_answered_names_the_phase_and_the_remedy() -> None:
    async with FakeServer() as server, Session([server.address]) as session:
        await session.write(put(b"k"))
        server.faults.hang = True
        with pytest.raises(DeadlineExceeded) as caught:
            await session.read(get(b"k"), timeout_ms=200)
    assert caught.value.phase == "leader"
    assert "kvnode status" in caught.value.message


async def test_fail_fast_answers_when_every_endpoint_refused() -> None:
    addresses = [f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"]
    async with Session(addresses, fail_fast=True) as session:
        with pytest.raises(Unavailable) as caught:
            await session.write(put(b"k"), timeout_ms=10_000)
    assert caught.value.phase == "dial"
    assert caught.value.endpoint in addresses


async def test_a_session_that_the_cluster_forgot_is_replaced_and_the_write_goes_out_once() -> None:
    async with FakeServer() as server, Session([server.address], random=Random(1)) as session:
        await session.write(add(b"n"))
        old = session.client_id
        server.store.sessions.clear()
        await asyncio.gather(*(session.write(add(b"n")) for _ in range(10)))
        assert session.client_id != old
        assert counter(server.store, b"n") == 11


async def test_a_write_sent_twice_in_a_forgotten_session_is_of_unknown_outcome() -> None:
    async with FakeServer() as server, Session([server.address], random=Random(1)) as session:
        await session.write(add(b"n"))
        server.faults.drop_after_apply_count = 1
        writing = asyncio.ensure_future(session.write(add(b"n")))
        while counter(server.store, b"n") < 2:
            await asyncio.sleep(0)
        server.store.sessions.clear()
        with pytest.raises(OutcomeUnknown):
            await writing
        await session.write(add(b"n"))
    assert counter(server.store, b"n") == 3


async def test_a_resumption_refused_by_the_node_opens_a_fresh_session() -> None:
    async with FakeServer() as server, Session([server.address], random=Random(1)) as session:
        await session.write(add(b"n"))
        server.faults.drop_before_apply_count = 1
        server.faults.refuse_open = error("SESSION_EXPIRED")
        writing = asyncio.ensure_future(session.write(add(b"n")))
        with pytest.raises(OutcomeUnknown):
            await writing
        server.faults.refuse_open = None
        await session.write(add(b"n"))


async def test_an_idle_session_takes_a_fresh_client_id() -> None:
    class StepClock:
        offset_ms = 0.0

        def now_ms(self) -> int:
            return 0

        def monotonic_ms(self) -> float:
            return time.monotonic() * 1000 + self.offset_ms

    clock = StepClock()
    async with FakeServer() as server, Session([server.address], clock=clock) as session:
        await session.write(put(b"k"))
        old = session.client_id
        clock.offset_ms += limits.CLIENT_SESSION_IDLE_MS + 1
        server.store.sessions.clear()
        await session.write(put(b"k"))
        assert session.client_id != old
        assert server.messages[-1].operations[0].resend is False


async def test_the_bound_on_unanswered_operations_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SESSION_UNANSWERED_COUNT", 4)
    async with FakeServer() as server, Session([server.address]) as session:
        results: list[kv_pb2.OperationResult] = []
        session.submit_many([put(b"k")] * 4, results.append)
        with pytest.raises(Unavailable) as caught:
            session.submit(put(b"k"), results.append)
        assert caught.value.code == "CLIENT_QUEUE_FULL"
        await session.room()
        assert session.unanswered_count < 4
        await asyncio.gather(*(session.write(add(b"n")) for _ in range(50)))
    assert counter(server.store, b"n") == 50


async def test_a_cancelled_caller_leaves_nothing_behind() -> None:
    async with FakeServer() as server, Session([server.address]) as session:
        await session.write(put(b"k"))
        server.faults.hang = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await session.write(put(b"k"))
        assert session.unanswered_count == 0


async def test_close_settles_what_is_pending() -> None:
    async with FakeServer() as server:
        session = Session([server.address])
        await session.write(put(b"k"))
        server.faults.hang = True
        writing = asyncio.ensure_future(session.write(put(b"k")))
        await asyncio.sleep(0.05)
        await session.close()
        with pytest.raises(OutcomeUnknown):
            await writing
        with pytest.raises(KvError, match="closed"):
            await session.write(put(b"k"))


async def test_a_callback_that_raises_does_not_stop_the_others() -> None:
    async with FakeServer() as server, Session([server.address]) as session:
        seen: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context["exception"]))
        session.submit(put(b"k"), lambda result: 1 / 0)
        await session.write(put(b"k"))
        assert isinstance(seen[0], ZeroDivisionError)


async def test_a_session_returns_to_the_address_that_it_prefers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENT_RETURN_INTERVAL_MS", 100)
    store = Store()
    async with (
        FakeServer(store, "a") as near,
        FakeServer(store, "b") as far,
        Session([near.address, far.address], random=Random(1)) as session,
    ):
        await session.write(add(b"n"))
        await near.stop()
        await session.write(add(b"n"))
        assert session.node == "b"
        await near.start(near.address)
        count = 2
        async with asyncio.timeout(10):
            while session.node != "a":
                await asyncio.gather(*(session.write(add(b"n")) for _ in range(3)))
                count += 3
        assert session.endpoint == near.address
        await session.write(add(b"n"))
        assert counter(store, b"n") == count + 1, "on the way back nothing is lost or applied twice"
        sessions = near.sessions_count
        await asyncio.sleep(0.3)
        assert near.sessions_count == sessions, "there it stays"


async def test_a_session_does_not_return_to_a_node_without_a_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENT_RETURN_INTERVAL_MS", 50)
    monkeypatch.setattr(limits, "CLIENT_RETURN_TIMEOUT_MS", 50)
    store = Store()
    async with (
        FakeServer(store, "a") as near,
        FakeServer(store, "b") as far,
        Session([near.address, far.address], random=Random(1)) as session,
    ):
        near.faults.hang = True  # it takes connections, and answers no strong read
        monkeypatch.setattr(limits, "CLIENT_PROBE_AFTER_MS", 50)
        await session.write(put(b"k"), 20_000)
        assert session.node == "b"
        sessions, began = near.sessions_count, time.monotonic()
        while time.monotonic() - began < 1:
            await session.write(put(b"k"))
            await asyncio.sleep(0.02)
        assert (session.node, near.sessions_count) == ("b", sessions)
