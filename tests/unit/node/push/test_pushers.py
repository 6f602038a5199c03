"""Pushers of a leader that is faked, with a real receiver: what becomes of messages, and who is pushed when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kvnode.base import limits
from kvnode.base.clock import SystemClock
from kvnode.machine.directory.view import DirectoryView
from kvnode.machine.queue.push import encode_secret
from kvnode.node.push.addresses import AddressPolicy
from kvnode.node.push.pushers import Pushers
from kvnode.node.push.stats import PushStats
from kvnode.node.queue.consumer import Consumer
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.machine.queue.test_transactions import Database, act
from tests.unit.node.push.receiver import OK, Receiver, receiver

SECRET = encode_secret(bytes(32))
MAIL = (1, "mail")


class FakeQueues:
    """The node's part in queues: real consumers, whose pulls a test answers, and a settler that writes down."""

    def __init__(self) -> None:
        self.pulls: list[tuple[kv_pb2.QueuePull, object]] = []
        self.settled: list[tuple[str, bytes]] = []
        self.nacks: list[kv_pb2.QueueNack] = []
        self.releases: list[kv_pb2.QueueRelease] = []
        self.settler = self
        self.consumers: list[Consumer] = []

    def delivered(self, database, count):
        pass

    def listen(self, database, opening, deliver, failed):
        queue, lease_ms, name = opening
        consumer = Consumer(
            self._submit,
            self,
            database=database,
            queue=queue,
            lease_ms=lease_ms,
            name=name,
            token=b"token",
            deliver=deliver,
            failed=failed,
        )
        self.consumers.append(consumer)
        return consumer

    def leave(self, consumer, *, give_back):
        self.consumers.remove(consumer)
        self.pulls.clear()
        consumer.close(give_back=give_back)

    def settle(self, _database, action, done):
        kind = action.WhichOneof("action")
        self.settled.append((kind, getattr(action, kind).lease))
        if kind == "nack":
            self.nacks.append(action.nack)
        if kind == "release":
            self.releases.append(action.release)
        done(None)

    def release(self, _database, leases, *, unseen):
        for lease in leases:
            self.settled.append(("release", lease))

    def _submit(self, operation, _origin, deliver):
        if not operation.pull.cancel:
            self.pulls.append((kv_pb2.QueuePull.FromString(operation.pull.SerializeToString()), deliver))

    async def deal(self, *numbers: int) -> None:
        """Answer the pull that waits."""
        await until(lambda: bool(self.pulls))
        _, deliver = self.pulls.pop(0)
        messages = [kv_pb2.QueueMessage(id=bytes(12), lease=b"%012d" % n, queue="mail") for n in numbers]
        deliver(kv_pb2.OperationResult(pulled=kv_pb2.QueuePulled(messages=messages)))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.settled if kind != "extend"]


class FakeDirectory:
    def __init__(self) -> None:
        self.view = DirectoryView("c")
        self.view.load([])


class FakeNode:
    def __init__(self, database: Database) -> None:
        self.is_leader = True
        self.directory = FakeDirectory()
        self.queues = FakeQueues()
        self._database = database

    async def write(self, request, timeout_ms=0, *, database):
        self._database.run(request)
        return kv_pb2.AtomicWriteResponse()


async def until(condition, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


class Stage:
    """Everything together."""

    def __init__(self, to: Receiver, allow: tuple[str, ...] = ("127.0.0.0/8",)) -> None:
        self.to = to
        self.database = Database()
        self.node = FakeNode(self.database)
        self.queues = self.node.queues
        self.stats = PushStats()
        self.pushers = Pushers(self.node, self.database.state, AddressPolicy(allow), self.stats, SystemClock())

    def configure(self, **more: object) -> None:
        push = {"url": self.to.url, "secret": SECRET, **more}
        self.database.run(act(configure={"queue": "mail", "keep_max_messages": True, "push": push}))
        self.pushers.look()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with receiver() as to:
        made = Stage(to)
        yield made
        await made.pushers.close()


async def test_2xx_acknowledges_and_the_place_is_free_again(stage: Stage) -> None:
    stage.configure(concurrency=2)
    await until(lambda: bool(stage.queues.pulls))
    assert stage.queues.pulls[0][0].max_count == 2
    await stage.queues.deal(1, 2)
    await until(lambda: stage.queues.kinds() == ["ack", "ack"])
    await until(lambda: sum(pull.max_count for pull, _ in stage.queues.pulls) == 2)
    assert (stage.stats.of(MAIL).ok, stage.stats.of(MAIL).failed) == (2, 0)


@pytest.mark.parametrize("status", [301, 302, 400, 404, 410, 500])
async def test_any_other_status_is_a_failure(stage: Stage, status: int) -> None:
    stage.to.answer = lambda _request: b"HTTP/1.1 %d X\r\nretry-after: 9\r\ncontent-length: 0\r\n\r\n" % status
    stage.configure()
    await stage.queues.deal(1)
    await until(lambda: stage.queues.kinds() == ["nack"])
    assert not stage.queues.nacks[0].HasField("delay_ms")
    assert (stage.stats.of(MAIL).ok, stage.stats.of(MAIL).failed) == (0, 1)


async def test_a_receiver_that_is_busy_names_the_time(stage: Stage) -> None:
    stage.to.answer = lambda _request: b"HTTP/1.1 429 X\r\nretry-after: 9\r\ncontent-length: 0\r\n\r\n"
    stage.configure()
    await stage.queues.deal(1)
    await until(lambda: stage.queues.kinds() == ["nack"])
    assert stage.queues.nacks[0].delay_ms == 9_000


async def test_leases_are_extended_while_the_receiver_thinks(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PUSH_LEASE_MS", 1_000)
    stage.to.answer = lambda _request: None
    stage.configure(timeout_ms=2_000)
    await stage.queues.deal(1)
    await until(lambda: stage.queues.kinds() == ["nack"])
    assert stage.queues.settled.count(("extend", b"%012d" % 1)) >= 2


async def test_an_address_that_is_refused_holds_the_messages_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MIN_PUSH_PAUSE_MS", 50)
    async with receiver() as to:
        stage = Stage(to, allow=())
        stage.configure()
        await until(lambda: "push_allow" in stage.database.push("mail").error)
        assert stage.database.push("mail").failing_since_ms
        assert stage.queues.consumers == []
        stage.pushers._policy._allowed = AddressPolicy(["127.0.0.1"])._allowed
        await until(lambda: bool(stage.queues.pulls))
        await until(lambda: not stage.database.push("mail").error)
        await stage.pushers.close()
        assert to.requests == []


async def test_while_every_request_fails_the_row_says_why(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PUSH_NOTE_INTERVAL_MS", 50)
    stage.to.answer = lambda _request: b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"
    stage.configure()
    await stage.queues.deal(1)
    await until(lambda: "status 500" in stage.database.push("mail").error)
    stage.to.answer = lambda _request: b""
    await stage.queues.deal(2)
    await until(lambda: "127.0.0.1" in stage.database.push("mail").error)
    stage.to.answer = lambda _request: OK
    await stage.queues.deal(3)
    await until(lambda: not stage.database.push("mail").error)


async def test_failures_of_a_url_that_is_not_in_use_any_more_are_not_noted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PUSH_NOTE_INTERVAL_MS", 50)
    stage.to.answer = lambda _request: None
    stage.configure(timeout_ms=2_000)
    await stage.queues.deal(1)
    await until(lambda: bool(stage.to.requests))
    stage.configure(concurrency=3)  # the pusher before ends with its request
    stage.to.break_off()
    await until(lambda: stage.queues.kinds() == ["nack"])
    await asyncio.sleep(0.2)
    assert not stage.database.push("mail").error


async def test_it_begins_and_ends_with_leadership_and_a_request_under_way_is_settled(stage: Stage) -> None:
    stage.node.is_leader = False
    stage.configure()
    assert not stage.queues.consumers
    stage.node.is_leader = True
    stage.pushers.look()
    go = asyncio.Event()
    stage.to.answer = lambda _request: OK if go.is_set() else None
    await stage.queues.deal(1)
    await until(lambda: bool(stage.to.requests))
    stage.node.is_leader = False
    stage.pushers.look()
    await until(lambda: not stage.queues.consumers)
    assert stage.queues.kinds() == []
    stage.to.break_off()  # the kept task sleeps: the connection breaks, which is a failure
    await until(lambda: stage.queues.kinds() == ["nack"])
    go.set()
    stage.node.is_leader = True
    stage.pushers.look()
    await stage.queues.deal(2)
    await until(lambda: stage.queues.kinds() == ["nack", "ack"])


async def test_what_is_configured_anew_is_pushed_anew(stage: Stage) -> None:
    stage.configure()
    await until(lambda: len(stage.queues.consumers) == 1)
    first = stage.queues.consumers[0]
    stage.pushers.look()
    assert stage.queues.consumers == [first]
    stage.configure(concurrency=3)
    await until(lambda: stage.queues.consumers not in ([first], []))
    stage.database.run(act(configure={"queue": "mail", "keep_max_messages": True, "no_push": True}))
    stage.pushers.look()
    await until(lambda: not stage.queues.consumers)


async def test_a_node_that_stops_gives_back_what_it_has_under_way(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PUSH_CLOSE_TIMEOUT_MS", 50)
    stage.to.answer = lambda _request: None
    stage.configure()
    await stage.queues.deal(1)
    await until(lambda: bool(stage.to.requests))
    await stage.pushers.close()
    assert stage.queues.kinds() == ["release"]
    assert not stage.queues.releases[0].unseen
    assert not stage.queues.consumers


async def test_all_queues_together_have_a_bound(stage: Stage) -> None:
    stage.pushers._room = asyncio.Semaphore(1)
    stage.to.answer = lambda _request: None
    stage.configure(concurrency=5, timeout_ms=1_000)
    await stage.queues.deal(1, 2, 3)
    await until(lambda: bool(stage.to.requests))
    await asyncio.sleep(0.2)
    assert len(stage.to.requests) == 1
    stage.node.is_leader = False
    stage.pushers.look()
    await until(lambda: sorted(stage.queues.kinds()) == ["nack", "release", "release"])
    assert all(release.unseen for release in stage.queues.releases)
