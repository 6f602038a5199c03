"""Whatever comes in whatever order: each message is delivered and acknowledged, and nothing is kept afterwards.

What happens is drawn from a seed: messages, now and for later, consumers that come and go, acks, nacks and releases, a
leader that is cut off, and acknowledgements of followers that the wire holds, so that claims are committed long before
they are applied, or superseded.
"""

from __future__ import annotations

import asyncio
import random
from contextvars import copy_context
from functools import partial
from pathlib import Path

import pytest

from kvnode.base.errors import KvError
from kvnode.machine.queue import keys
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows
from kvnode.proto.kv.v1 import kv_pb2
from tests.simulation.cluster import Server
from tests.unit.node.cluster import SUCCESS, Trio, on_trio, until
from tests.unit.node.queue.test_delivery import Listener, acknowledges_above, enqueue, rows_of_queues

STEPS_COUNT = 40
QUEUES = ("", "other")
PAUSES_S = (0.0, 0.001, 0.002, 0.005, 0.02)
SETTLED_WITHIN_S = 2.0  # once nothing is cut off or held any more; a message that nobody looks for waits for 20 s
BACKOFF_MS = (5,) * 10  # no message becomes a dead letter


class Play:
    """One schedule."""

    def __init__(self, trio: Trio, seed: int) -> None:
        self.trio = trio
        self.random = random.Random(seed)
        self.listeners: list[Listener] = []
        self.sent_count = 0
        self.acked: list[bytes] = []
        self.tasks: list[asyncio.Future[None]] = []
        self.only_acks = False
        self._context = copy_context()

    def later(self, delay_s: float, call, *args) -> None:  # type: ignore[no-untyped-def]
        """Outside the process that calls now."""
        asyncio.get_running_loop().call_later(delay_s, partial(call, *args), context=self._context)

    def listen(self, queue: str, credit: int) -> None:
        listener = Listener(self.trio, self.random.choice(self.trio.serving), queue=queue)
        listener.consumer._deliver = partial(self.take, listener)
        listener.grant(credit)
        self.listeners.append(listener)

    def leave(self) -> None:
        if self.listeners:
            self.listeners.pop(self.random.randrange(len(self.listeners))).leave()

    def take(self, listener: Listener, messages: list[kv_pb2.QueueMessage]) -> None:
        for message in messages:
            self.later(self.random.choice((0.0, 0.0, 0.01, 0.05)), self.settle, listener, message)

    def settle(self, listener: Listener, message: kv_pb2.QueueMessage) -> None:
        if listener not in self.listeners:
            return
        drawn = 0.0 if self.only_acks else self.random.random()
        action = kv_pb2.QueueAction()
        if drawn < 0.8:
            action.ack.lease = message.lease
        elif drawn < 0.95:
            action.nack.lease, action.nack.delay_ms = message.lease, self.random.choice((0, 1, 20))
        else:
            action.release.lease, action.release.unseen = message.lease, True
        payload = message.payload.data if action.HasField("ack") else b""
        listener.run(listener.consumer.settle, message.lease, action, partial(self.settled, listener, payload))

    def settled(self, listener: Listener, payload: bytes, error: KvError | None) -> None:
        if error is None and payload:
            self.acked.append(payload)
        self.later(0.0, self.go_on, listener)

    def go_on(self, listener: Listener) -> None:
        if listener in self.listeners:
            listener.grant(1)

    async def send(self) -> None:
        draw, server = self.random.choice, self.random.choice(self.trio.serving)
        first, count = self.sent_count, draw((1, 1, 2, 10))
        self.sent_count += count
        payloads = [b"%d" % number for number in range(first, first + count)]
        request = enqueue(
            *payloads, queue=draw(QUEUES), delay_ms=draw((0, 0, 0, 1, 3, 30)), backoff_intervals_ms=BACKOFF_MS
        )
        answer = await self.trio.within(server, self.trio.node(server).write(request))
        assert answer.status == SUCCESS

    def step(self) -> None:
        drawn, wire, leader = self.random.random(), self.trio.wire, self.trio.leader()
        if drawn < 0.5:
            self.tasks.append(asyncio.ensure_future(self.send()))
        elif drawn < 0.6:
            self.listen(self.random.choice(QUEUES), self.random.choice((1, 1, 2, 5, 50)))
        elif drawn < 0.65:
            self.leave()
        elif drawn < 0.68 and leader is not None and not wire.cuts:
            self.trio.cut(leader)
        elif drawn < 0.75:
            self.trio.heal()
        elif drawn < 0.87 and leader is not None:
            wire.holds = acknowledges_above(self.trio.node(leader).raft.last_index + self.random.choice((0, 1, 2)))
        else:
            wire.release()

    def check(self) -> None:
        """What holds at any time."""
        for server in self.trio.serving:
            dispatcher = self.trio.node(server).queues.dispatcher
            assert dispatcher.pulls_count == sum(len(queue.pulls) for queue in dispatcher._queues.values())
            assert {queue_id for queue_id, queue in dispatcher._queues.items() if queue.hidden} == {*dispatcher._hiding}
            for queue in dispatcher._queues.values():
                assert queue.claims_count >= 0 and queue.claimed_count >= 0

    async def run(self) -> None:
        await self.trio.leading()
        for queue in QUEUES:
            self.listen(queue, 5)
        for _ in range(STEPS_COUNT):
            self.step()
            await asyncio.sleep(self.random.choice(PAUSES_S) if self.random.random() < 0.97 else 0.3)
            self.check()
        self.trio.wire.release()
        self.trio.heal()
        await self.trio.leading()
        await asyncio.wait_for(asyncio.gather(*self.tasks), 30)
        self.only_acks = True
        for queue in QUEUES:
            self.listen(queue, 3)
        await until(lambda: len(self.acked) == self.sent_count, SETTLED_WITHIN_S, "not all are acknowledged")
        assert len({*self.acked}) == self.sent_count
        while self.listeners:
            self.leave()
        await asyncio.sleep(0.5)
        await self.trio.everywhere()
        for server in self.trio.servers.values():
            self.check_nothing_is_left(server)

    def check_nothing_is_left(self, server: Server) -> None:
        node = self.trio.node(server)
        dispatcher = node.queues.dispatcher
        assert rows_of_queues(self.trio, server) == []
        for name in QUEUES:
            row = node.state.get(keys.queue_key(1, name or keys.DEFAULT_QUEUE))
            assert row is not None
            counters = rows.QueueRow.FromString(row.value)
            assert not counters.waiting_count and not counters.in_flight_count
        assert not dispatcher._queues and not dispatcher._hiding and not dispatcher.pulls_count


@pytest.mark.parametrize("seed", range(3))
def test_every_message_is_delivered_and_nothing_is_left(seed: int, tmp_path: Path) -> None:
    async def story(trio: Trio) -> None:
        await Play(trio, seed).run()

    on_trio(story)(tmp_path)
