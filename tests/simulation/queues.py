"""Queues and crons in a seed: who takes part, and what must hold in the end.

Three seeds in ten have them (drawn apart, so that the others stay as they were): one or two producers, two or three
consumers, three crons. A minute of a cron lasts a second, so that a seed has a dozen ticks.

What must hold, beside what the ledger finds in the log (queue_ledger.py):

- *early*: no consumer is handed a message before the claim is committed;
- *at-least-once*: each acknowledged message is in the log as it was sent; what was acknowledged had been handled; when
  all is healed, everything is handled or given up within DRAIN_S;
- *cron*: when all is healed, every cron ticks on.

A failover may cut off the end of a history and nothing else (failover_observer.py judges which may). So the ledger goes
through every history there was, those that have ended as well: in each of them a message has one lease at a time and a
tick is fired once. What must be in the log at the end is what was acknowledged under a versionstamp that is not lost.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from kvnode.base import limits
from kvnode.codec.entry import Entry
from kvnode.codec.versionstamp import VERSIONSTAMP_BYTES
from kvnode.machine.queue import cron_schedule, keys
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows
from tests.simulation.cluster import Cluster
from tests.simulation.loop import SimulatedLoop
from tests.simulation.network import Network
from tests.simulation.observer import Observer, Violation
from tests.simulation.queue_clients import QUEUES, Listener, Producer, QueueRecord
from tests.simulation.queue_ledger import DATABASE, Ledger, step_of
from tests.simulation.workload import Journal

FRACTION = 0.3  # of the seeds
MINUTE_MS = 1_000
DRAIN_S = 60.0  # from the healing on
PULL_WAIT_MS, PULL_GRACE_MS = 4_000, 5_000  # so that listeners at nodes that are no members go elsewhere soon
TICKING_S = 2.5  # crons are looked at for so long after the healing
_PRODUCERS = 100  # their numbers begin here, those of consumers above
_CONSUMERS = 200


class NoQueues:
    """A seed without queues."""

    label = ""

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Nothing is set."""
        yield

    def build(self, loop: SimulatedLoop, network: Network, cluster: Cluster, observer: Observer) -> None:
        """Nobody takes part."""

    def start(self, journal: Journal) -> list[asyncio.Task[Any]]:
        """Nothing to do."""
        return []

    def stop(self) -> None:
        """Nothing to stop."""

    async def drain(self) -> None:
        """Nothing waits."""

    def judge(self) -> None:
        """Nothing to say."""


class Queues(NoQueues):
    """The queues of one seed."""

    label = "+queues"

    def __init__(self, draw: random.Random) -> None:
        self._random = draw
        self._max_losses_count = draw.choice((limits.MAX_QUEUE_LOSSES_COUNT, 2))
        self._record = QueueRecord()
        self._calm = False
        self._incarnations = 0
        self._producers: list[Producer] = []

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """A short minute, and bounds that are met."""
        with (
            patch.object(cron_schedule, "MINUTE_MS", MINUTE_MS),
            patch.object(limits, "MAX_QUEUE_LOSSES_COUNT", self._max_losses_count),
            patch.object(limits, "QUEUE_PULL_WAIT_MS", PULL_WAIT_MS),
            patch.object(limits, "QUEUE_PULL_GRACE_MS", PULL_GRACE_MS),
        ):
            yield

    def build(self, loop: SimulatedLoop, network: Network, cluster: Cluster, observer: Observer) -> None:
        """Know the ground."""
        self._outside = contextvars.copy_context()
        self._loop, self._network, self._cluster, self._observer = loop, network, cluster, observer

    def start(self, journal: Journal) -> list[asyncio.Task[Any]]:
        """Begin; the tasks end when they are stopped."""
        self._journal = journal
        for number in range(self._random.choice((1, 1, 2))):
            own = random.Random(self._random.getrandbits(64))
            ground = (self._loop, self._network, self._cluster.hosts, journal, own, self._record)
            self._producers.append(Producer(_PRODUCERS + number, *ground))
        for number in range(self._random.choice((2, 2, 3))):
            self._listen(QUEUES[number % len(QUEUES)])
        return [producer.process.spawn(producer.run((100.0, 400.0), 1)) for producer in self._producers]

    def _listen(self, queue: str) -> None:
        """A consumer begins, and when it dies, another in its place."""
        self._incarnations += 1
        own = random.Random(self._random.getrandbits(64))
        listener = Listener(
            _CONSUMERS + self._incarnations,
            self._loop,
            self._network,
            self._cluster.hosts,
            self._journal,
            own,
            self._record,
            queue,
            self._observer.is_committed,
            lambda: self._calm,
            lambda: self._end(listener, queue),
        )
        listener.process.spawn(listener.run())

    def _end(self, listener: Listener, queue: str) -> None:
        listener.process.kill()
        # Outside of the dead process, which asks for its own end.
        self._loop.call_later(self._random.uniform(0.05, 2.0), self._listen, queue, context=self._outside)

    def stop(self) -> None:
        """No more messages."""
        for producer in self._producers:
            producer.stopped = True

    async def drain(self) -> None:
        """Handlers do well from now on: everything comes to its end. Raises Violation."""
        self._calm = True
        end_s = self._loop.time() + DRAIN_S
        await asyncio.sleep(TICKING_S)
        while (waiting := self._waiting_count()) is None or waiting:
            if self._loop.time() > end_s:
                raise Violation("at-least-once", f"{waiting} messages are not handled {DRAIN_S} s after the healing")
            await asyncio.sleep(0.25)

    def _waiting_count(self) -> int | None:
        """Messages that producers sent and that wait or are held, as the leader has them; None = there is none."""
        leader = self._cluster.leader()
        if leader is None or leader.node is None:
            return None
        start = keys.message_key(DATABASE, b"")
        found = leader.node.state.scan(start, start + b"\xff" * 13, 10_000)
        return sum(not rows.MessageRow.FromString(row.value).cron for row in found)

    def judge(self) -> None:
        """What the log and the clients' record say. Raises Violation."""
        record = self._record
        if record.early:
            raise Violation("early", f"{record.early[0]} was delivered before its claim was committed")
        ledgers = [self._replayed(history) for history in self._observer.histories()]
        ledger = ledgers[-1]
        for message_id, payload in record.sent:
            if self._observer.is_lost(message_id[:VERSIONSTAMP_BYTES]):
                continue
            message = ledger.messages.get(message_id)
            if message is None or message.row.payload != payload:
                raise Violation("at-least-once", f"message {message_id.hex()} was acknowledged and is not in the log")
            if not message.end:
                raise Violation("at-least-once", f"message {message_id.hex()} is neither handled nor given up")
            due_ms = message.made_ms + record.delays.get(message_id, 0)
            if message.claimed_ms is not None and message.claimed_ms < due_ms:
                raise Violation("lease", f"{message_id.hex()} is claimed at {message.claimed_ms}, due at {due_ms}")
        for message_id, lease, payload in record.delivered:
            if not any(each.has_delivered(message_id, lease, payload) for each in ledgers):
                raise Violation(
                    "lease", f"{message_id.hex()} was delivered under {lease.hex()}: the log has no such lease"
                )
        for each in ledgers:
            for message_id, message in each.messages.items():
                if message.end == "acked" and message_id not in record.handled:
                    raise Violation("at-least-once", f"message {message_id.hex()} is gone, and nobody has handled it")
        self._judge_crons(ledger)

    def _replayed(self, history: dict[int, Entry]) -> Ledger:
        ledger = Ledger(self._record.nacked)
        ledger.replay(history)
        return ledger

    def _judge_crons(self, ledger: Ledger) -> None:
        for name, cron in ledger.crons.items():
            step_ms = step_of(cron.schedule) * MINUTE_MS
            last_ms = max([cron.since_ms, *cron.fired])
            if cron.allow_overlap and last_ms + 2 * step_ms < ledger.log_time_ms:
                raise Violation("cron", f"cron '{name}' has not ticked since {last_ms}, at {ledger.log_time_ms}")


def draw_queues(seed: int) -> NoQueues:
    """Whether a seed has queues, and which."""
    draw = random.Random(f"queues {seed}")
    return Queues(draw) if draw.random() < FRACTION else NoQueues()


def has_queues(seed: int) -> bool:
    """Whether a seed has queues."""
    return isinstance(draw_queues(seed), Queues)
