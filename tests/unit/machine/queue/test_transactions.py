"""Queues in transactions, one case each; test_against_model.py has the combinations."""

import pytest

from kvnode.base import limits
from kvnode.codec.versionstamp import versionstamp
from kvnode.machine.keyspace import database_prefix
from kvnode.machine.queue import keys
from kvnode.machine.resolve import RequestId, Resolver
from kvnode.machine.verdict import Accepted, CheckFailed, Rejected
from kvnode.node.proposals import settled_body
from kvnode.proto.kv.internal.v1 import log_pb2
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.machine.fakes import SET, MemoryState, entry, mutation, write

USER = database_prefix(1)
KEY = b"\x02k\0"


class Database:
    """A leader that applies each entry at once."""

    def __init__(self):
        self.state = MemoryState()
        self.resolver = Resolver(self.state, 1)
        self.index, self.now = 1, 1_000_000
        self.log = []

    def commit(self, batch):
        if batch.transactions_count:
            self.index = batch.index
            self.log.append(entry(batch.index, batch.payload()))
            self.state.apply(self.log[-1:])
            self.resolver.applied(batch.index)

    def run(self, request, identity=None):
        batch = self.resolver.begin(self.index + 1, self.now)
        verdict = batch.add(request, 1, identity)
        self.commit(batch)
        return verdict

    def tick(self, after_ms):
        self.now += after_ms
        batch = self.resolver.begin(self.index + 1, self.now)
        batch.tick(self.state.due(self.now))
        self.commit(batch)

    def elect(self, after_ms):
        self.now += after_ms
        self.resolver = Resolver(self.state, 1, self.state.log_time_ms)
        self.index += 1
        self.commit(self.resolver.begin(self.index + 1, self.now))
        assert self.resolver.settled

    def enqueue(self, data=b"payload", **more):
        return self.run(enqueue(data, **more))

    def claim(self, count=1, **more):
        verdict = self.run(act(claim={"max_count": count, **more}))
        return list(verdict.results[0].messages)

    def queue(self, name="default"):
        return rows.QueueRow.FromString(self.state.rows[keys.queue_key(1, name)].value)

    def push(self, name="default"):
        """Where it is pushed; None = nowhere."""
        row = self.state.get(keys.push_key(1, name))
        return None if row is None else rows.PushRow.FromString(row.value)


def enqueue(data=b"payload", **more):
    made = kv_pb2.AtomicWriteRequest()
    made.enqueues.add(**more)
    made.enqueues[0].payload.data, made.enqueues[0].payload.encoding = data, 3
    return made


def act(skip_if_lost=False, **action):
    return kv_pb2.AtomicWriteRequest(actions=[kv_pb2.QueueAction(skip_if_lost=skip_if_lost, **action)])


def code(verdict):
    assert isinstance(verdict, Rejected)
    return verdict.error.code


@pytest.fixture
def db():
    return Database()


def test_a_message_has_the_id_that_its_transaction_gives_it(db):
    request = enqueue()
    request.enqueues.append(request.enqueues[0])
    stamp = db.run(request).versionstamp
    assert [message.id for message in db.claim(5)] == [stamp + b"\0\0", stamp + b"\0\1"]


def test_a_message_comes_with_its_transaction_or_not_at_all(db):
    request = enqueue()
    request.checks.add(key=KEY, versionstamp=b"x" * 10)
    assert isinstance(db.run(request), CheckFailed)
    assert db.claim() == []


def test_messages_come_in_the_order_of_their_time(db):
    for delay_ms in (500, 0, 200):
        db.enqueue(b"%d" % delay_ms, delay_ms=delay_ms)
    assert [m.payload.data for m in db.claim(5)] == [b"0"]
    db.now += 500
    assert [m.payload.data for m in db.claim(5)] == [b"200", b"500"]


def test_a_point_in_time_is_bounded_by_30_days_and_a_client_s_clock(db):
    latest = db.now + limits.MAX_QUEUE_DELAY_MS + limits.MAX_CLIENT_CLOCK_OFFSET_MS
    assert isinstance(db.run(enqueue(due_at_ms=latest)), Accepted)
    assert code(db.run(enqueue(due_at_ms=latest + 1))) == "BAD_DEADLINE"
    db.enqueue(b"past", due_at_ms=5)
    assert db.claim()[0].due_at_ms == db.now


def test_an_ack_removes_the_message_and_everything_of_it(db):
    db.enqueue()
    assert isinstance(db.run(act(ack={"lease": db.claim()[0].lease})), Accepted)
    assert list(db.state.rows) == [keys.queue_key(1, "default")]
    assert (db.queue().acknowledged_total, db.queue().claimed_total) == (1, 1)


def test_an_ack_with_a_write_commits_only_while_its_lease_is_current(db):
    db.enqueue()
    lease = db.claim(lease_ms=1_000)[0].lease
    request = act(ack={"lease": lease})
    request.mutations.append(mutation(SET, KEY, b"done"))
    db.now += 1_000  # expired by log time, though no tick has said so
    assert code(db.run(request)) == "LEASE_LOST"
    assert USER + KEY not in db.state.rows
    db.tick(0)
    request.actions[0].ack.lease = db.claim()[0].lease
    assert isinstance(db.run(request), Accepted)
    assert db.state.rows[USER + KEY].value == b"done"


def test_of_an_ack_sent_twice_under_one_id_the_second_is_answered_as_the_first(db):
    batch = db.resolver.begin(db.index + 1, db.now)
    client = batch.open_session(1)
    db.commit(batch)
    db.enqueue()
    request = act(ack={"lease": db.claim()[0].lease})
    first = db.run(request, RequestId(client, 1, 1, False, 1))
    again = db.run(request, RequestId(client, 1, 1, True, 1))
    assert again.versionstamp == first.versionstamp
    assert code(db.run(request)) == "LEASE_LOST"


def test_a_lost_lease_can_be_passed_over(db):
    db.enqueue()
    good = db.claim()[0].lease
    request = act(skip_if_lost=True, ack={"lease": bytes(12)})
    request.actions.append(kv_pb2.QueueAction(skip_if_lost=True, ack={"lease": good}))
    assert [result.lost for result in db.run(request).results] == [True, False]
    assert db.queue().acknowledged_total == 1


def test_a_copy_of_a_write_is_told_which_leases_the_first_one_passed_over(db):
    batch = db.resolver.begin(db.index + 1, db.now)
    session = batch.open_session(1)
    db.commit(batch)
    db.enqueue()
    request = act(skip_if_lost=True, ack={"lease": db.claim()[0].lease})
    request.actions.append(kv_pb2.QueueAction(skip_if_lost=True, ack={"lease": bytes(12)}))
    first = db.run(request, RequestId(session, 1, 1, False, 1))
    assert [result.lost for result in first.results] == [False, True]
    again = db.run(request, RequestId(session, 1, 1, True, 1))  # the leader has it in memory
    assert (again.versionstamp, again.lost_actions) == (first.versionstamp, (1,))
    db.elect(after_ms=100)  # and its successor in the state
    again = db.run(request, RequestId(session, 1, 1, True, 1))
    assert (again.versionstamp, again.lost_actions) == (first.versionstamp, (1,))
    assert [result.lost for result in settled_body(again).results] == [False, True]


@pytest.mark.parametrize("kind", ["ack", "nack", "extend", "release"])
def test_of_one_lease_that_is_lost_nothing_of_its_transaction_happens(db, kind):
    db.enqueue()
    request = write(mutation(SET, KEY, b"v"))
    request.actions.append(kv_pb2.QueueAction(ack={"lease": db.claim()[0].lease}))
    request.actions.append(kv_pb2.QueueAction(**{kind: {"lease": bytes(12)}}))
    before = dict(db.state.rows)
    assert code(db.run(request)) == "LEASE_LOST"
    assert db.state.rows == before


def test_the_schedule_then_the_keys_and_a_dead_letter(db):
    db.enqueue(b"sad", backoff_intervals_ms=[10, 200], keys_if_undelivered=[KEY, b"\x02l\0"])
    attempts = []
    for wait in (0, 10, 200):
        db.now += wait
        message = db.claim()[0]
        attempts.append(message.attempt)
        assert USER + KEY not in db.state.rows
        stamp = db.run(act(nack={"lease": message.lease})).versionstamp
    assert attempts == [1, 2, 3]
    for key in (KEY, b"\x02l\0"):
        row = db.state.rows[USER + key]
        assert (row.value, row.encoding, row.versionstamp, row.expire_at_ms) == (b"sad", 3, stamp, 0)
    dead = rows.DeadLetterRow.FromString(db.state.rows[keys.dead_key(1, "default", stamp + b"\0\0")].value)
    assert (dead.message.payload, dead.deliveries_count, dead.died_at_ms) == (b"sad", 3, db.now)
    db.now += 10**7
    assert db.claim() == []


def test_the_default_schedule(db):
    db.enqueue()
    for interval in (100, 1_000, 5_000, 30_000, 60_000):
        db.run(act(nack={"lease": db.claim()[0].lease}))
        db.now += interval - 1
        assert db.claim() == []
        db.now += 1
    db.run(act(nack={"lease": db.claim()[0].lease}))
    assert db.queue().dead_count == 1


def test_a_nack_may_name_its_own_delay(db):
    db.enqueue(backoff_intervals_ms=[5])
    db.run(act(nack={"lease": db.claim()[0].lease, "delay_ms": 70_000}))
    db.now += 69_999
    assert db.claim() == []
    db.now += 1
    db.run(act(nack={"lease": db.claim()[0].lease, "delay_ms": 0}))  # the schedule is exhausted all the same
    assert db.claim() == []


def test_a_lease_that_expires_is_due_again_and_uses_nothing_up(db):
    db.enqueue(no_retries=True)
    lease = db.claim(lease_ms=2_000)[0].lease
    db.tick(1_999)
    assert db.claim() == []
    db.tick(1)
    again = db.claim()[0]
    assert again.attempt == 2
    assert code(db.run(act(ack={"lease": lease}))) == "LEASE_LOST"
    assert isinstance(db.run(act(ack={"lease": again.lease})), Accepted)


def test_a_message_that_kills_whoever_takes_it_ends(db):
    db.enqueue(no_retries=True)
    for _ in range(limits.MAX_QUEUE_LOSSES_COUNT + 1):
        assert db.claim(lease_ms=1_000)
        db.tick(1_000)
    assert (db.queue().dead_count, db.queue().waiting_count, db.queue().in_flight_count) == (1, 0, 0)


def test_what_is_given_back_is_due_at_once(db):
    db.enqueue(no_retries=True)
    db.run(act(release={"lease": db.claim()[0].lease}))
    assert db.claim()[0].attempt == 2


def test_what_nobody_has_seen_was_not_delivered(db):
    db.enqueue(no_retries=True)
    for _ in range(limits.MAX_QUEUE_LOSSES_COUNT + 5):
        message = db.claim()[0]
        assert message.attempt == 1
        db.run(act(release={"lease": message.lease, "unseen": True}))


def test_an_extended_lease_lasts_from_the_commit_on(db):
    db.enqueue()
    lease = db.claim(lease_ms=2_000)[0].lease
    db.now += 1_500
    db.run(act(extend={"lease": lease, "lease_ms": 2_000}))
    db.tick(1_999)
    assert isinstance(db.run(act(ack={"lease": lease})), Accepted)


def test_an_extension_may_leave_a_lease_that_lasts_longer_as_it_is(db):
    db.enqueue()
    lease = db.claim(lease_ms=10_000)[0].lease
    db.run(act(extend={"lease": lease, "lease_ms": 2_000, "never_sooner": True}))
    db.tick(9_999)
    db.run(act(extend={"lease": lease, "lease_ms": 2_000, "never_sooner": True}))
    db.tick(1_999)
    db.run(act(extend={"lease": lease, "lease_ms": 5_000}))
    db.run(act(extend={"lease": lease, "lease_ms": 1_000}))  # who says nothing else means what he says
    db.tick(1_001)
    assert code(db.run(act(extend={"lease": lease, "lease_ms": 2_000, "never_sooner": True}))) == "LEASE_LOST"


def test_a_new_leader_gives_leases_the_time_back(db):
    db.enqueue(b"live")
    db.enqueue(b"late")
    live = db.claim(lease_ms=5_000)[0].lease
    late = db.claim(lease_ms=1_000)[0].lease
    db.now += 1_000
    db.enqueue(b"later")  # moves log time to where the second lease has expired
    db.elect(60_000)
    db.tick(3_999)
    assert code(db.run(act(ack={"lease": late}))) == "LEASE_LOST"
    assert isinstance(db.run(act(ack={"lease": live})), Accepted)


def test_a_new_leader_takes_nothing_else_before_it_has_seen_to_all_leases(db, monkeypatch):
    monkeypatch.setattr(limits, "MAX_LEASES_EXTENDED_PER_ENTRY_COUNT", 2)
    for _ in range(5):
        db.enqueue()
    leases = [message.lease for message in db.claim(5, lease_ms=1_000)]
    db.now += 90_000
    db.resolver = Resolver(db.state, 1, db.state.log_time_ms)
    entries = 0
    while not db.resolver.settled:
        db.commit(db.resolver.begin(db.index + 1, db.now))
        entries += 1
    assert entries == 3
    for lease in leases:
        assert isinstance(db.run(act(ack={"lease": lease})), Accepted)


def test_a_full_queue_refuses_until_something_is_handled(db, monkeypatch):
    monkeypatch.setattr(limits, "MAX_QUEUE_MESSAGES_COUNT", 2)
    db.enqueue()
    db.enqueue()
    assert code(db.run(enqueue())) == "QUEUE_FULL"
    assert isinstance(db.run(enqueue(queue="other")), Accepted)
    lease = db.claim()[0].lease
    assert code(db.run(enqueue())) == "QUEUE_FULL"  # one under a lease is undelivered too
    request = enqueue()
    request.actions.append(kv_pb2.QueueAction(ack={"lease": lease}))
    assert isinstance(db.run(request), Accepted)
    db.run(act(configure={"max_messages_count": 3}))
    assert isinstance(db.run(enqueue()), Accepted)
    assert code(db.run(enqueue())) == "QUEUE_FULL"


def test_a_full_queue_says_how_many_it_may_hold_and_not_that_it_holds_so_many(db):
    for _ in range(3):
        db.enqueue()
    db.run(act(configure={"max_messages_count": 1}))
    refused = db.run(enqueue())
    assert code(refused) == "QUEUE_FULL"
    assert "'default' is full: it takes at most 1 undelivered message" in refused.error.message


def test_a_database_has_so_many_queues(db, monkeypatch):
    monkeypatch.setattr(limits, "MAX_QUEUES_COUNT", 2)
    db.enqueue(queue="a")
    db.enqueue(queue="b")
    assert code(db.run(enqueue(queue="c"))) == "TOO_MANY_QUEUES"
    assert code(db.run(act(remove={"queue": "a"}))) == "QUEUE_NOT_EMPTY"
    db.run(act(purge={"queue": "a", "max_count": 10}))
    db.run(act(remove={"queue": "a"}))
    assert isinstance(db.run(enqueue(queue="c")), Accepted)


def test_the_oldest_dead_letter_makes_room(db, monkeypatch):
    monkeypatch.setattr(limits, "MAX_QUEUE_DEAD_LETTERS_COUNT", 2)
    for number in range(3):
        db.enqueue(b"%d" % number, no_retries=True)
        db.run(act(nack={"lease": db.claim()[0].lease}))
    queue = db.queue()
    assert (queue.dead_count, queue.dead_total, queue.dead_dropped_total) == (2, 3, 1)
    assert db.run(act(requeue={"max_count": 9})).results[0].count == 2
    assert [(m.payload.data, m.attempt) for m in db.claim(9)] == [(b"1", 1), (b"2", 1)]


def test_a_requeue_takes_what_fits_and_fails_when_nothing_does(db):
    for number in range(3):
        db.enqueue(b"%d" % number, no_retries=True)
        db.run(act(nack={"lease": db.claim()[0].lease}))
    db.run(act(configure={"max_messages_count": 2}))
    assert db.run(act(requeue={"max_count": 3})).results[0].count == 2
    assert (db.queue().waiting_count, db.queue().dead_count) == (2, 1)
    assert code(db.run(act(requeue={"max_count": 3}))) == "QUEUE_FULL"
    (last,) = (keys.dead_of_key(key) for key in db.state.rows if key.startswith(keys.dead_prefix(1, "default")))
    assert code(db.run(act(requeue={"dead_letter": last}))) == "QUEUE_FULL"
    assert [m.payload.data for m in db.claim(3)] == [b"0", b"1"]


def test_a_claim_closes_when_its_payloads_are_large(db):
    for _ in range(10):
        db.enqueue(b"x" * 65_536)
    assert len(db.claim(10)) == 8
    assert len(db.claim(10)) == 2


def test_a_claim_passes_over_what_entries_in_flight_have_taken(db):
    for number in range(3):
        db.enqueue(b"%d" % number)
    first = db.resolver.begin(db.index + 1, db.now)
    taken = first.add(act(claim={"max_count": 2}), 1, None)
    second = db.resolver.begin(db.index + 2, db.now)
    rest = second.add(act(claim={"max_count": 2}), 1, None)
    assert [m.payload.data for m in taken.results[0].messages] == [b"0", b"1"]
    assert [m.payload.data for m in rest.results[0].messages] == [b"2"]
    assert rest.results[0].messages[0].lease == versionstamp(1, second.index, 0) + b"\0\0"


def test_users_never_see_the_rows_of_queues(db):
    db.enqueue()
    start, end = database_prefix(1), database_prefix(2)
    assert db.state.scan(start, end, 100) == []
    assert all(keys.is_queue_key(key) for key in db.state.rows)


class Entry:
    """An entry in the making, whose claims are made last."""

    def __init__(self, db):
        self.batch = db.resolver.begin(db.index + 1, db.now)

    def claim(self, count=5, queue="default"):
        action = act(claim={"max_count": count, "queue": queue}).actions[0]
        accepted = self.batch.claim(action, 1)
        return [] if accepted is None else [message.payload.data for message in accepted.results[0].messages]


def test_a_message_can_be_enqueued_and_claimed_in_one_entry(db):
    made = Entry(db)
    made.batch.add(enqueue(b"now"), 1, None)
    made.batch.add(enqueue(b"later", delay_ms=1), 1, None)
    made.batch.add(enqueue(b"elsewhere", queue="other"), 1, None)
    assert made.batch.arrived == {(1, "default"): None, (1, "other"): None}
    assert made.claim() == [b"now"]
    assert made.claim() == []
    db.commit(made.batch)
    queue = db.queue()
    assert (queue.waiting_count, queue.in_flight_count, queue.claimed_total) == (1, 1, 1)
    assert sum(key[4:5] == b"l" for key in db.state.rows) == 1
    assert db.queue("other").waiting_count == 1


def test_what_is_in_flight_is_claimed_in_the_order_of_its_time(db):
    db.enqueue(b"applied")
    db.now += 5
    first = Entry(db)
    first.batch.add(enqueue(b"in flight"), 1, None)
    db.index += 1  # proposed, and not applied yet
    db.now += 5
    second = Entry(db)
    second.batch.add(enqueue(b"newest"), 1, None)
    assert second.claim(2) == [b"applied", b"in flight"]
    assert second.claim(2) == [b"newest"]


def test_a_claim_that_finds_nothing_leaves_no_transaction(db):
    made = Entry(db)
    size_bytes = made.batch.size_bytes
    assert made.claim() == []
    assert (made.batch.transactions_count, made.batch.size_bytes) == (0, size_bytes)


def test_a_claim_takes_nothing_of_a_transaction_that_failed_or_an_entry_that_was_withdrawn(db):
    db.run(act(configure={"max_messages_count": 1}))
    made = Entry(db)
    two = enqueue(b"a")
    two.enqueues.append(two.enqueues[0])
    assert code(made.batch.add(two, 1, None)) == "QUEUE_FULL"
    assert made.claim() == []
    made.batch.add(enqueue(b"withdrawn"), 1, None)
    db.resolver.discard(made.batch)
    again = Entry(db)
    assert again.claim() == []
    again.batch.add(enqueue(b"again"), 1, None)
    assert again.claim() == [b"again"]


def test_notes_of_what_is_in_flight_go_when_it_is_applied(db):
    for number in range(3):
        db.enqueue(b"%d" % number)
    assert list(db.resolver.arrivals.of((1, "default"))) == []
    assert [message.payload.data for message in db.claim(5)] == [b"0", b"1", b"2"]


def facts_of(payload, kind):
    """(place of the transaction, fact) of all facts on rows of that kind."""
    transactions = log_pb2.EntryPayload.FromString(payload).transactions
    return [(at, fact) for at, each in enumerate(transactions) for fact in each.facts if fact.key[4:5] == kind]


def test_an_entry_writes_the_counters_of_a_queue_once(db):
    made = Entry(db)
    for number in range(3):
        made.batch.add(enqueue(b"%d" % number), 1, None)
    made.batch.add(write(mutation(SET, KEY, b"v")), 1, None)
    payload = made.batch.payload()
    ((at, fact),) = facts_of(payload, b"q")
    assert (at, rows.QueueRow.FromString(fact.value).waiting_count) == (2, 3)
    assert made.batch.payload() == payload
    db.commit(made.batch)
    assert db.state.rows[fact.key].versionstamp == versionstamp(1, made.batch.index, 2)
    second = Entry(db)
    assert second.claim() == [b"0", b"1", b"2"]


def test_what_comes_back_and_is_claimed_once_more_in_one_entry_waits_no_longer(db):
    made = Entry(db)
    made.batch.add(enqueue(b"twice"), 1, None)
    (message,) = made.batch.add(act(claim={"max_count": 1}), 1, None).results[0].messages
    made.batch.add(act(nack={"lease": message.lease, "delay_ms": 0}), 1, None)
    assert made.claim() == [b"twice"]
    db.commit(made.batch)
    assert db.claim(5) == []
    assert not [key for key in db.state.rows if keys.is_due_key(key)]
    assert (db.queue().waiting_count, db.queue().in_flight_count) == (0, 1)


def test_a_transaction_that_fails_leaves_claims_and_counters_as_they_were(db):
    made = Entry(db)
    made.batch.add(enqueue(b"kept"), 1, None)
    failing = act(claim={"max_count": 1})
    failing.actions.add().ack.lease = bytes(12)
    assert code(made.batch.add(failing, 1, None)) == "LEASE_LOST"
    made.batch.add(enqueue(b"other"), 1, None)
    db.commit(made.batch)
    assert db.queue().waiting_count == 2
    assert [message.payload.data for message in db.claim(5)] == [b"kept", b"other"]


def test_a_queue_can_be_made_and_removed_in_one_entry(db):
    made = Entry(db)
    made.batch.add(act(configure={"queue": "short", "max_messages_count": 5}), 1, None)
    made.batch.add(act(remove={"queue": "short"}), 1, None)
    made.batch.add(act(configure={"queue": "kept", "max_messages_count": 5}), 1, None)
    made.batch.add(act(remove={"queue": "kept"}), 1, None)
    made.batch.add(act(configure={"queue": "kept", "max_messages_count": 7}), 1, None)
    db.commit(made.batch)
    assert keys.queue_key(1, "short") not in db.state.rows
    assert db.queue("kept").max_messages_count == 7


def test_an_entry_sees_the_counters_of_the_one_before_it(db):
    first = Entry(db)
    first.batch.add(enqueue(b"first"), 1, None)
    db.index += 1  # proposed, and not applied yet
    second = Entry(db)
    second.batch.add(enqueue(b"second"), 1, None)
    ((_, fact),) = facts_of(second.batch.payload(), b"q")
    assert rows.QueueRow.FromString(fact.value).waiting_count == 2
