"""Queues and crons against a naive model: random transactions, lagging application, new leaders, discards, ticks.

What is compared: every result and error, the rows that the state ends up with (messages, leases, dead letters,
counters, keys_if_undelivered, crons), and a second replica that cuts the log into runs differently.
"""

import copy
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvnode.base import limits
from kvnode.codec.versionstamp import versionstamp
from kvnode.machine.keyspace import database_prefix
from kvnode.machine.queue import keys
from kvnode.machine.resolve import Resolver
from kvnode.machine.validate import validate_write
from kvnode.machine.verdict import Accepted, Rejected
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.machine.fakes import BYTES, entry
from tests.unit.machine.queue.model import Model
from tests.unit.machine.stepping import STEPS, Stepping

EPOCH = 3
SUPPRESSED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
DATABASES = (1, 7)
QUEUES = ["", "default", "a", "ab"]
CRONS = ["a", "a b", "c"]
TIME_STEPS = [0, 0, 1, 40, 100, 900, 4_000, 12_000, 40_000, 150_000]


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch):
    monkeypatch.setattr(limits, "MAX_QUEUE_MESSAGES_COUNT", 6)
    monkeypatch.setattr(limits, "MAX_QUEUE_DEAD_LETTERS_COUNT", 2)
    monkeypatch.setattr(limits, "MAX_QUEUE_LOSSES_COUNT", 2)
    monkeypatch.setattr(limits, "QUEUE_SCAN_MARGIN_COUNT", 1)
    monkeypatch.setattr(limits, "MAX_LEASES_EXTENDED_PER_ENTRY_COUNT", 2)


class Harness(Stepping):
    """One leader after the other, one follower, and a model of each database."""

    def __init__(self, chance):
        super().__init__(chance)
        self.models = {number: Model() for number in DATABASES}
        self.resolver = Resolver(self.leader, EPOCH)
        self.index, self.now = 1, 1_000_000
        self.worlds = {}  # of each entry not yet applied
        self.applied_count = 0
        self.leases = [b"\0" * 12]

    def enqueue(self):
        chance = self.chance
        made = kv_pb2.Enqueue(queue=chance.choice(QUEUES))
        made.payload.data, made.payload.encoding = chance.randbytes(2), BYTES
        when = chance.random()
        if when < 0.3:
            made.delay_ms = chance.choice([1, 90, 5_000])
        elif when < 0.5:
            made.due_at_ms = self.now + chance.choice([-5, 30, 2_000])
        if chance.random() < 0.4:
            made.keys_if_undelivered.extend(chance.sample([b"\x02u\0", b"\x02v\0"], chance.choice([1, 2])))
        kind = chance.random()
        if kind < 0.4:
            made.no_retries = True
        elif kind < 0.8:
            made.backoff_intervals_ms.extend(chance.choice([[5], [5, 50], [0]]))
        return made

    def action(self, number):
        chance = self.chance
        made = kv_pb2.QueueAction(skip_if_lost=chance.random() < 0.3)
        kind = chance.choice(
            ["claim"] * 5 + ["ack"] * 3 + ["nack"] * 4 + ["extend", "release", "release", "rare", "cron", "cron"]
        )
        if kind == "rare":
            kind = chance.choice(["configure", "requeue", "requeue", "purge", "purge", "remove"])
        if kind == "cron":
            self.cron(made)
            return made
        named = getattr(made, kind)
        named.SetInParent()
        if kind in ("ack", "nack", "extend", "release"):
            held = list(self.models[number].world.leases)
            named.lease = chance.choice(held) if held and chance.random() < 0.85 else chance.choice(self.leases)
            if kind == "release":
                named.unseen = chance.random() < 0.3
            if kind == "nack" and chance.random() < 0.3:
                named.delay_ms = chance.choice([0, 7, 500])
        else:
            named.queue = chance.choice(QUEUES)
        if kind in ("claim", "extend"):
            named.lease_ms = chance.choice([0, 1_000, 3_000])
        if kind == "extend":
            named.never_sooner = chance.random() < 0.5
        if kind in ("claim", "requeue", "purge"):
            named.max_count = chance.choice([1, 2, 5])
        if kind == "configure":
            named.max_messages_count = chance.choice([0, 0, 3, 20])
        if kind == "purge":
            named.dead_letters = chance.random() < 0.5
        dead = sorted(self.models[number].world.dead)
        if kind in ("purge", "requeue") and dead and chance.random() < 0.3:
            named.queue, named.dead_letter = chance.choice(dead)
        return made

    def cron(self, made):
        chance = self.chance
        if chance.random() < 0.2:
            made.cron_delete.name = chance.choice(CRONS)
            return
        cron = made.cron_set
        cron.name, cron.schedule = chance.choice(CRONS), chance.choice(["* * * * *", "*/2 * * * *", "*/7 * * * *"])
        cron.allow_overlap, cron.must_be_new = chance.random() < 0.6, chance.random() < 0.2
        cron.message.CopyFrom(self.enqueue())
        cron.message.delay_ms = cron.message.due_at_ms = 0

    def request(self, number):
        chance = self.chance
        made = kv_pb2.AtomicWriteRequest()
        made.enqueues.extend(self.enqueue() for _ in range(chance.choice([0, 1, 1, 2, 3])))
        made.actions.extend(self.action(number) for _ in range(chance.choice([0, 1, 1, 2])))
        validate_write(made)
        return made

    def batch(self, *, discard):
        before = copy.deepcopy({number: model.world for number, model in self.models.items()})
        self.now += self.chance.choice(TIME_STEPS)
        index, order = self.index + 1, 0
        batch = self.resolver.begin(index, self.now)
        order += batch.transactions_count
        if self.resolver.settled:
            if self.chance.random() < 0.6:
                order += self.tick(batch, versionstamp(EPOCH, index, order))
            for _ in range(self.chance.randrange(5)):
                order += self.transaction(batch, index, order)
            for queue_id in list(batch.arrived):
                order += self.late_claim(batch, queue_id, versionstamp(EPOCH, index, order))
        assert batch.transactions_count == order
        payload = batch.payload()
        assert len(payload) <= batch.size_bytes
        if discard:
            self.resolver.discard(batch)
            for number, world in before.items():
                self.models[number].world = world
        elif order:
            self.index = index
            self.log.append(entry(index, payload))
            self.worlds[index] = copy.deepcopy({number: model.world for number, model in self.models.items()})

    def tick(self, batch, stamp):
        due = self.leader.due(self.now)
        for number, model in self.models.items():
            space = keys.space_prefix(number)
            found = [
                (keys.cron_of_key(key) if keys.is_tick_key(key) else keys.lease_of_key(key), at)
                for key, at in due
                if key.startswith(space) and keys.is_event_key(key)
            ]
            model.tick(found, stamp, self.now)
            assert len(set(model.world.fired)) == len(model.world.fired)
        return bool(batch.tick(due))

    def late_claim(self, batch, queue_id, stamp):
        number, name = queue_id
        action = kv_pb2.QueueAction(claim=kv_pb2.QueueClaim(queue=name, max_count=self.chance.choice([1, 2, 5])))
        if self.chance.random() < 0.4:
            return 0
        accepted = batch.claim(action, number)
        expected = self.models[number].late_claim(action.claim, stamp, self.now)
        assert (comparable(accepted.results[0]) if accepted else None) == (expected or None)
        return bool(accepted)

    def transaction(self, batch, index, order):
        number = self.chance.choice(DATABASES)
        request = self.request(number)
        stamp = versionstamp(EPOCH, index, order)
        verdict = batch.add(request, number, None)
        expected = self.models[number].transaction(request, stamp, self.now)
        if isinstance(verdict, Rejected):
            assert verdict.error.code == expected
            return 0
        assert isinstance(verdict, Accepted)
        assert [comparable(result) for result in verdict.results] == [made or None for made in expected]
        for result in verdict.results:
            self.leases = [*self.leases[-20:], *(message.lease for message in result.messages)]
        return 1

    def apply(self, count):
        run = self.log[self.applied_count : self.applied_count + count]
        if run:
            self.leader.apply(run)
            self.applied_count += len(run)
            for number, world in self.worlds[run[-1].index].items():
                self.models[number].applied = world
            self.resolver.applied(run[-1].index)

    def apply_all(self):
        self.apply(len(self.log))
        assert len(self.resolver.overlay) == 0
        self.follow()
        for number, model in self.models.items():
            compare(self.leader, number, model.world)

    def elect(self):
        self.apply_all()
        last = self.leader.log_time_ms
        self.resolver = Resolver(self.leader, EPOCH, last)
        self.now += self.chance.choice([0, 30, 6_000, 90_000])
        for model in self.models.values():
            model.extend_all(last, self.now - last)
        self.index += 1  # the new leader's no-op
        while not self.resolver.settled:
            index = self.index + 1
            batch = self.resolver.begin(index, self.now)
            if batch.transactions_count:
                self.index = index
                self.log.append(entry(index, batch.payload()))
                self.worlds[index] = copy.deepcopy({number: model.world for number, model in self.models.items()})


def comparable(result):
    if result.lost:
        return "lost"
    if result.count or result.next_at_ms:
        return result.count or result.next_at_ms
    found = result.messages
    return [(m.id, m.lease, m.payload.data, m.attempt, m.due_at_ms, m.cron, m.scheduled_at_ms) for m in found] or None


def compare(state, number, world):
    space = keys.space_prefix(number)
    found = {kind: {} for kind in "qmdlxcbt"}
    for key, row in state.rows.items():
        if key.startswith(space):
            found[chr(key[4])][key] = row
    waiting = {(keys.queue_of_due_key(key), *keys.due_of_key(key)): row for key, row in found["d"].items()}
    assert {key: rows.DueRow.FromString(row.value).deliveries_count for key, row in waiting.items()} == {
        key: message.deliveries for key, message in world.waiting.items()
    }
    assert {
        keys.lease_of_key(key): (rows.LeaseRow.FromString(row.value).message_id, row.expire_at_ms)
        for key, row in found["l"].items()
    } == {lease: (message.id, expiry) for lease, (message, expiry) in world.leases.items()}
    assert {
        keys.dead_of_key(key): rows.DeadLetterRow.FromString(row.value).message.payload
        for key, row in found["x"].items()
    } == {dead_id: message.payload for (_, dead_id), message in world.dead.items()}
    held = [message.id for message in world.waiting.values()] + [lease[0].id for lease in world.leases.values()]
    assert len(set(held)) == len(held)
    assert {key[5:] for key in found["m"]} == set(held)
    assert {key[5:].decode() for key in found["q"]} >= set(world.queues)
    for key, row in found["q"].items():
        check_counters(rows.QueueRow.FromString(row.value), keys.queue_of_key(key), world)
    check_crons(found, world)
    prefix = database_prefix(number)
    assert {key[4:]: row.value for key, row in state.rows.items() if key.startswith(prefix)} == world.undelivered


def check_crons(found, world):
    made = {keys.cron_of_key(key): rows.CronRow.FromString(row.value) for key, row in found["c"].items()}
    assert {
        name: (
            c.schedule,
            c.next_at_ms,
            c.last_message_id,
            c.fired_total,
            c.skipped_total,
            c.missed_total,
            c.blocked_by,
        )
        for name, c in made.items()
    } == {
        name: (c.schedule, c.next, c.last_id, c.fired, c.skipped, c.missed, c.blocked)
        for name, c in world.crons.items()
    }
    assert {keys.cron_of_key(key): row.expire_at_ms for key, row in found["t"].items()} == {
        name: cron.look for name, cron in world.crons.items()
    }
    assert {keys.cron_of_key(key) for key in found["b"]} == set(world.crons)


def check_counters(row, name, world):
    queue = world.queues.get(name)
    if queue is None:
        return
    assert row.waiting_count == sum(1 for key in world.waiting if key[0] == name)
    assert row.in_flight_count == sum(1 for message, _ in world.leases.values() if message.queue == name)
    assert row.dead_count == sum(1 for key in world.dead if key[0] == name)
    assert (row.enqueued_total, row.acknowledged_total, row.claimed_total, row.dead_total, row.dead_dropped_total) == (
        queue.enqueued,
        queue.acknowledged,
        queue.claimed,
        queue.dead_total,
        queue.dropped,
    )
    # Nothing is lost: what came in is waiting, in flight, handled, given up, or was purged by hand.
    assert row.max_messages_count == queue.bound


@settings(max_examples=250, deadline=None, suppress_health_check=SUPPRESSED)
@given(st.integers(0, 2**64), STEPS)
def test_queues_are_the_model(seed, steps):
    Harness(random.Random(seed)).walk(steps)
