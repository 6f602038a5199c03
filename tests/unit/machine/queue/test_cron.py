"""Crons in transactions, one case each; test_against_model.py has the combinations."""

import pytest

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.machine.queue import keys
from kvnode.machine.queue.cron_schedule import MINUTE_MS
from kvnode.machine.resolve import Resolver
from kvnode.machine.validate import validate_write
from kvnode.machine.verdict import Accepted
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.machine.queue.test_transactions import Database, act, code

EVERY_MINUTE = "* * * * *"


def cron_set(name="c", schedule=EVERY_MINUTE, data=b"payload", *, allow_overlap=False, must_be_new=False, **message):
    made = kv_pb2.CronSet(name=name, schedule=schedule, allow_overlap=allow_overlap, must_be_new=must_be_new)
    made.message.CopyFrom(kv_pb2.Enqueue(payload=kv_pb2.Value(data=data, encoding=3), **message))
    return act(cron_set=made)


def delete(name="c"):
    return act(cron_delete={"name": name})


class Crons(Database):
    def __init__(self):
        super().__init__()
        self.now = 30 * 60 * MINUTE_MS + 20_000

    def cron(self, name="c"):
        return rows.CronRow.FromString(self.state.rows[keys.cron_key(1, name)].value)

    def due(self):
        return [(key, at) for key, at in self.state.due(self.now) if keys.is_event_key(key)]

    def handle_all(self):
        """Claim and acknowledge what waits; the ticks that it was sent for."""
        messages = self.claim(50)
        for message in messages:
            assert isinstance(self.run(act(ack={"lease": message.lease})), Accepted)
        return [message.scheduled_at_ms for message in messages]

    def rest(self):
        return [key for key in self.state.rows if keys.space_prefix(1) == key[:4] and key[4:5] in b"cbt"]


@pytest.fixture
def db():
    return Crons()


def test_a_tick_sends_the_message_with_its_time(db):
    verdict = db.run(cron_set(data=b"hello", queue="work", backoff_intervals_ms=[7], keys_if_undelivered=[b"\x02u\0"]))
    first = db.now - 20_000 + MINUTE_MS
    assert verdict.results[0].next_at_ms == first
    db.tick(39_999)
    assert db.claim(queue="work") == []
    db.tick(1)
    (message,) = db.claim(5, queue="work")
    assert (message.payload.data, message.cron, message.scheduled_at_ms) == (b"hello", "c", first)
    assert (message.enqueued_at_ms, message.due_at_ms, message.attempt) == (db.now, db.now, 1)
    stored = rows.MessageRow.FromString(db.state.rows[keys.message_key(1, message.id)].value)
    assert (list(stored.backoff_intervals_ms), list(stored.keys_if_undelivered)) == ([7], [b"\x02u\0"])
    cron = db.cron()
    assert (cron.fired_total, cron.last_at_ms, cron.fired_at_ms) == (1, first, db.now)
    assert cron.next_at_ms == first + MINUTE_MS
    assert db.state.rows[keys.cron_tick_key(1, "c")].expire_at_ms == first + MINUTE_MS


def test_every_tick_is_fired_once(db):
    db.run(cron_set())
    first, fired = db.cron().next_at_ms, []
    for _ in range(400):
        db.tick(2_000)
        fired += db.handle_all()
    assert fired == [first + MINUTE_MS * at for at in range(len(fired))]
    assert len(fired) == 13
    assert db.cron().missed_total == db.cron().skipped_total == 0


def test_a_tick_that_two_batches_list_is_fired_by_the_first_alone(db):
    """The second was resolved before the first was applied: the overlay knows that the row has moved."""
    db.run(cron_set())
    db.now += MINUTE_MS
    due = db.due()
    first = db.resolver.begin(db.index + 1, db.now)
    assert first.tick(due) == 1
    second = db.resolver.begin(db.index + 2, db.now)
    assert second.tick(due) == 0
    assert second.transactions_count == 0
    db.resolver.discard(second)
    db.commit(first)
    assert len(db.claim(5)) == 1


def test_a_firing_that_does_not_enter_the_log_leaves_the_tick_due(db):
    db.run(cron_set())
    db.now += MINUTE_MS
    batch = db.resolver.begin(db.index + 1, db.now)
    batch.tick(db.due())
    db.resolver.discard(batch)
    assert db.claim() == []
    db.tick(0)
    assert len(db.claim(5)) == 1


def test_ticks_that_passed_while_nobody_led_are_fired_once_for_the_newest(db):
    db.run(cron_set())
    first = db.cron().next_at_ms
    db.elect(40_000 + 3 * MINUTE_MS + 5_000)
    batch = db.resolver.begin(db.index + 1, db.now)
    batch.tick(db.due())
    assert batch.crons_late_ms == [5_000]
    db.commit(batch)
    assert db.handle_all() == [first + 3 * MINUTE_MS]
    assert (db.cron().fired_total, db.cron().missed_total) == (1, 3)
    db.tick(54_999)
    assert db.claim() == []
    db.tick(1)
    assert db.handle_all() == [first + 4 * MINUTE_MS]


def test_a_tick_is_skipped_while_the_message_of_the_one_before_is_not_handled(db):
    db.run(cron_set())
    db.tick(MINUTE_MS)
    (message,) = db.claim()
    db.run(act(extend={"lease": message.lease, "lease_ms": 600_000}))
    db.tick(MINUTE_MS)
    assert db.claim() == []
    assert (db.cron().fired_total, db.cron().skipped_total) == (1, 1)
    db.run(act(ack={"lease": message.lease}))
    db.tick(MINUTE_MS)
    assert len(db.claim()) == 1
    assert (db.cron().fired_total, db.cron().skipped_total, db.cron().missed_total) == (2, 1, 0)


def test_a_cron_may_overlap(db):
    db.run(cron_set(allow_overlap=True))
    for _ in range(3):
        db.tick(MINUTE_MS)
    assert len(db.claim(5)) == 3


def test_a_dead_letter_is_handled_and_keeps_its_tick(db):
    db.run(cron_set(no_retries=True))
    db.tick(MINUTE_MS)
    (message,) = db.claim()
    db.run(act(nack={"lease": message.lease}))
    db.tick(MINUTE_MS)
    assert db.cron().fired_total == 2
    db.handle_all()
    db.run(act(requeue={"max_count": 1}))
    (again,) = db.claim()
    assert (again.cron, again.scheduled_at_ms) == ("c", message.scheduled_at_ms)


def test_a_full_queue_holds_the_tick_back_until_there_is_room(db):
    db.run(act(configure={"max_messages_count": 1}))
    db.run(cron_set())
    db.enqueue(b"in the way")
    first = db.cron().next_at_ms
    db.tick(MINUTE_MS)
    assert db.cron().blocked_by == "QUEUE_FULL"
    assert db.cron().next_at_ms == first
    db.tick(limits.CRON_RETRY_MS - 1)
    db.run(act(ack={"lease": db.claim()[0].lease}))
    db.tick(1)
    assert db.handle_all() == [first]
    assert (db.cron().blocked_by, db.cron().fired_total, db.cron().missed_total) == ("", 1, 0)


def test_set_again_with_the_same_schedule_it_goes_on(db):
    db.run(cron_set(data=b"old"))
    db.tick(MINUTE_MS)
    db.handle_all()
    before = db.cron()
    db.now += MINUTE_MS + 1  # a tick is due, and nobody has seen it
    verdict = db.run(cron_set(data=b"new", queue="other"))
    assert verdict.results[0].next_at_ms == before.next_at_ms
    db.tick(0)
    (message,) = db.claim(5, queue="other")
    assert (message.payload.data, message.scheduled_at_ms) == (b"new", before.next_at_ms)
    assert db.cron().fired_total == 2


def test_another_schedule_begins_after_now(db):
    db.run(cron_set())
    db.tick(MINUTE_MS)
    db.handle_all()
    hour = 60 * MINUTE_MS
    db.run(cron_set(schedule="0 * * * *"))
    assert db.cron().next_at_ms == (db.now // hour + 1) * hour
    db.tick(10 * MINUTE_MS)
    assert db.claim() == []


def test_a_deleted_cron_leaves_no_row_and_what_it_sent_stays(db):
    db.run(cron_set())
    db.tick(MINUTE_MS)
    assert len(db.rest()) == 3
    assert isinstance(db.run(delete()), Accepted)
    assert db.rest() == []
    db.tick(10 * MINUTE_MS)
    assert len(db.handle_all()) == 1
    assert code(db.run(delete())) == "CRON_NOT_FOUND"


def test_made_again_it_does_not_fire_a_tick_twice(db):
    """Deleted and made again at the very moment of a tick that was fired."""
    db.run(cron_set())
    db.tick(40_000)
    assert db.handle_all() == [db.now]
    db.run(delete())
    db.run(cron_set())
    db.tick(0)
    assert db.claim() == []
    assert db.cron().next_at_ms == db.now + MINUTE_MS


def test_a_tick_row_without_its_cron_goes_away(db):
    """As while a database is removed, its rows in the order of their keys."""
    db.run(cron_set())
    del db.state.rows[keys.cron_body_key(1, "c")]
    db.tick(MINUTE_MS)
    assert keys.cron_tick_key(1, "c") not in db.state.rows
    assert db.claim() == []


def test_a_name_is_used_once_and_crons_are_bounded(db, monkeypatch):
    monkeypatch.setattr(limits, "MAX_CRONS_COUNT", 2)
    assert isinstance(db.run(cron_set("a", must_be_new=True)), Accepted)
    assert code(db.run(cron_set("a", must_be_new=True))) == "CRON_EXISTS"
    db.run(cron_set("b"))
    assert code(db.run(cron_set("c"))) == "TOO_MANY_CRONS"
    assert isinstance(db.run(cron_set("a")), Accepted)


def test_the_leases_of_the_time_without_a_leader_are_extended_and_ticks_are_not(db):
    db.run(cron_set())
    due_at_ms = db.cron().next_at_ms
    db.enqueue()
    db.claim()
    db.elect(5_000)
    assert db.state.rows[keys.cron_tick_key(1, "c")].expire_at_ms == due_at_ms


@pytest.mark.parametrize("name", ["", " a", "a ", "a\n", "a.b", "ä", "x" * 65])
def test_a_bad_name_is_refused(name):
    for request in (cron_set(name), delete(name)):
        with pytest.raises(InvalidRequest) as raised:
            validate_write(request)
        assert raised.value.code == "BAD_CRON_NAME"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (cron_set(schedule="nonsense"), "BAD_CRON_SCHEDULE"),
        (cron_set(queue="no such name"), "BAD_QUEUE_NAME"),
        (cron_set(data=b"x" * 65_537), "PAYLOAD_TOO_LARGE"),
        (cron_set(delay_ms=5), "BAD_DEADLINE"),
        (cron_set(due_at_ms=5), "BAD_DEADLINE"),
        (act(cron_set={"name": "c", "schedule": EVERY_MINUTE}), "UNKNOWN_ENCODING"),
    ],
)
def test_a_bad_cron_is_refused(request_, expected):
    with pytest.raises(InvalidRequest) as raised:
        validate_write(request_)
    assert raised.value.code == expected


def test_a_good_one_is_not():
    validate_write(cron_set("Nightly report_2-b"))
    validate_write(delete())


def test_another_resolver_fires_what_the_state_shows_only_once(db):
    """Two leaders, the second of which has applied what the first fired."""
    db.run(cron_set())
    db.now += MINUTE_MS
    due = db.due()
    db.tick(0)
    db.resolver = Resolver(db.state, 1)
    batch = db.resolver.begin(db.index + 1, db.now)
    assert batch.tick(due) == 0
