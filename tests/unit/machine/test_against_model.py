"""The machine against a naive database: random batches, application that lags, resends, new leaders, discards.

What is compared: every verdict, the rows that the state ends up with, and two replicas that cut the log into runs
differently. The overlay must be empty once all is applied.
"""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvnode.base import limits
from kvnode.codec.versionstamp import versionstamp
from kvnode.machine.keyspace import OUTCOME_PREFIX, SESSION_PREFIX, database_prefix
from kvnode.machine.resolve import RequestId, Resolver
from kvnode.machine.sessions import NODES_OWN, decode_session
from kvnode.machine.verdict import Accepted, CheckFailed, InFlight, Refused, Rejected
from tests.unit.machine.fakes import (
    BYTES,
    DELETE,
    DELETE_RANGE,
    LE64,
    MAX,
    MIN,
    SET,
    SET_EXPIRY,
    SUFFIX,
    SUM,
    entry,
    mutation,
    u64,
    write,
)
from tests.unit.machine.model import Model, Value
from tests.unit.machine.stepping import STEPS, Stepping

KEYS = [b"\x02" + bytes([97 + n]) + b"\0" for n in range(5)]
EPOCH = 3
SUPPRESSED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
OWNERS = [NODES_OWN, 1, 2]
TIME_STEPS = [0, 0, 1, 5, 40, 300_000, 2_000_000, 4_000_000]


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch):
    monkeypatch.setattr(limits, "MAX_DELETE_RANGE_KEYS_COUNT", 4)
    monkeypatch.setattr(limits, "OUTCOME_PRUNE_SEQUENCES_COUNT", 3)
    monkeypatch.setattr(limits, "SCAN_PAGE_COUNT", 2)


class Harness(Stepping):
    """One leader after the other, one follower, and the model."""

    def __init__(self, chance):
        super().__init__(chance)
        self.model = Model()
        self.resolver = Resolver(self.leader, EPOCH)
        self.index = 1
        self.now = 1_000_000
        self.applied_count = 0
        self.clients = []
        self.sequences = {}
        self.stamps = [b""]

    def mutations(self):
        chance = self.chance
        made = []
        for _ in range(chance.choice([0, 1, 1, 1, 2, 4])):
            key = chance.choice(KEYS)
            kind = chance.choice([SET, SET, SET, SET_EXPIRY, DELETE, SUM, MIN, MAX, SUFFIX, DELETE_RANGE])
            expiry = chance.choice([0, 0, -1, self.now + 3, self.now + 50, self.now - 1])
            if kind == DELETE_RANGE:
                low, high = sorted([key, chance.choice([*KEYS, b"\xff"])])
                made.append(mutation(kind, low, end_key=high))
            elif kind in (SUM, MIN, MAX):
                encoding = LE64 if chance.random() < 0.9 else BYTES
                made.append(mutation(kind, key, u64(chance.choice([0, 1, 7, 2**64 - 1])), encoding))
            elif kind == DELETE:
                made.append(mutation(kind, key))
            elif kind == SET_EXPIRY:
                made.append(mutation(kind, key, expire_at_ms=expiry))
            else:
                encoding = chance.choice([BYTES, LE64, LE64])
                made.append(mutation(kind, key, u64(chance.randrange(9)), encoding, expire_at_ms=expiry))
        return made

    def checks(self, prefix):
        made = []
        for _ in range(self.chance.choice([0, 0, 0, 1, 2])):
            key = self.chance.choice(KEYS)
            current = self.model.live(prefix + key, self.now)
            truth = current.stamp if current else b""
            made.append((key, truth if self.chance.random() < 0.7 else self.chance.choice(self.stamps)))
        return made

    def identity(self):
        chance = self.chance
        if not self.clients or chance.random() < 0.25:
            return None
        client = chance.choice(self.clients) if chance.random() < 0.97 else b"0123456789"
        session = self.model.sessions.get(client)
        owner = session.owner if session is not None and chance.random() < 0.9 else chance.choice(OWNERS)
        newest = self.sequences.setdefault(client, 0)
        if chance.random() < 0.6:
            sequence, resend = newest + chance.choice([1, 1, 2, 5]), chance.random() < 0.1
            self.sequences[client] = sequence
        else:
            sequence, resend = max(1, newest - chance.randrange(4)), chance.random() < 0.8
        return RequestId(client, sequence, max(0, newest - chance.choice([2, 3, 5, 30])), resend, owner)

    def batch(self, *, discard):
        before = None
        if discard:
            before = (
                dict(self.model.rows),
                {
                    client: (session.expire_at_ms, dict(session.outcomes), session.logged_lowest, session)
                    for client, session in self.model.sessions.items()
                },
            )
        self.now += self.chance.choice(TIME_STEPS)
        index = self.index + 1
        batch = self.resolver.begin(index, self.now)
        order = 0
        opened = []
        if self.chance.random() < 0.5:
            due = self.leader.due(self.now)
            count = batch.tick(due)
            logged = self.model.tick(due, self.now)
            assert bool(count) == logged
            order += logged
        for _ in range(self.chance.randrange(6)):
            stamp = versionstamp(EPOCH, index, order)
            if self.chance.random() < 0.08:
                owner = self.chance.choice(OWNERS)
                assert batch.open_session(owner) == stamp
                self.model.open_session(stamp, owner, self.now)
                opened.append(stamp)
                order += 1
                continue
            database = self.chance.choice([1, 1, 1, 2])
            prefix = database_prefix(database)
            request = write(*self.mutations(), checks=self.checks(prefix))
            identity = self.identity()
            verdict = batch.add(request, database, identity)
            expected, logged = self.model.add(request, prefix, identity, index, order, stamp, self.now)
            assert comparable(verdict) == expected
            order += logged
            if logged:
                self.stamps = [b"", *self.stamps[-3:], stamp]
        assert batch.transactions_count == order
        payload = batch.payload()
        assert len(payload) <= batch.size_bytes
        if discard:
            self.resolver.discard(batch)
            self.restore(*before)
        elif order:
            self.index = index
            self.clients = [*self.clients, *opened]
            self.log.append(entry(index, payload))

    def restore(self, rows, sessions):
        self.model.rows = rows
        restored = {}
        for client, (expire_at_ms, outcomes, logged_lowest, session) in sessions.items():
            session.expire_at_ms, session.outcomes, session.logged_lowest = expire_at_ms, outcomes, logged_lowest
            restored[client] = session
        self.model.sessions = restored

    def apply(self, count):
        run = self.log[self.applied_count : self.applied_count + count]
        if run:
            self.leader.apply(run)
            self.applied_count += len(run)
            self.model.applied_index = run[-1].index
            self.resolver.applied(run[-1].index)

    def apply_all(self):
        self.apply(len(self.log))
        assert len(self.resolver.overlay) == 0
        self.follow()
        user = {key: row for key, row in self.leader.rows.items() if not key.startswith(bytes(4))}
        assert {
            k: Value(r.value, r.encoding, r.versionstamp, r.expire_at_ms) for k, r in user.items()
        } == self.model.rows
        sessions = {key[5:]: row for key, row in self.leader.rows.items() if key.startswith(SESSION_PREFIX)}
        assert {key: (decode_session(row.value).owner, row.expire_at_ms) for key, row in sessions.items()} == {
            key: (session.owner, session.expire_at_ms) for key, session in self.model.sessions.items()
        }
        for key in self.leader.rows:
            if key.startswith(OUTCOME_PREFIX):
                session = self.model.sessions[key[5:15]]
                sequence = int.from_bytes(key[15:], "big")
                assert sequence in session.outcomes
                assert sequence > session.logged_lowest - limits.OUTCOME_PRUNE_SEQUENCES_COUNT - 1

    def elect(self):
        self.apply_all()
        self.resolver = Resolver(self.leader, EPOCH)
        self.model.lost_leader()
        self.index += 1  # the new leader's no-op


def comparable(verdict):
    if isinstance(verdict, Accepted):
        return ("accepted", verdict.versionstamp, verdict.order)
    if isinstance(verdict, CheckFailed):
        return ("check failed", verdict.failed_checks, verdict.logged)
    if isinstance(verdict, Rejected):
        return ("rejected", verdict.error.code, verdict.logged)
    if isinstance(verdict, Refused):
        return ("refused", verdict.error.code, verdict.error.not_applied)
    if isinstance(verdict, InFlight):
        return ("in flight", verdict.index, verdict.order)
    if verdict.error is not None:
        return ("settled", ("rejected", verdict.error.code))
    if verdict.failed_checks:
        return ("settled", ("check failed", verdict.failed_checks))
    return ("settled", ("accepted", verdict.versionstamp, int.from_bytes(verdict.versionstamp[8:], "big")))


@settings(max_examples=200, deadline=None, suppress_health_check=SUPPRESSED)
@given(st.integers(0, 2**64), STEPS)
def test_the_machine_is_the_model(seed, steps):
    Harness(random.Random(seed)).walk(steps)
