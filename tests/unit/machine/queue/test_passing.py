"""Messages that only pass through: what the log and the state are spared, and what they are not."""

import pytest

from kvnode.codec.entry import Entry, EntryKind
from kvnode.machine.apply import apply_entries
from kvnode.machine.passing import is_passing
from kvnode.machine.queue import keys
from kvnode.machine.resolve import RequestId
from kvnode.machine.verdict import Rejected
from kvnode.proto.kv.internal.v1 import log_pb2
from tests.unit.machine.fakes import SET, MemoryState, entry, mutation, write
from tests.unit.machine.queue.test_transactions import KEY, Database, act, code, enqueue

LOST = b"\xff" * keys.ID_BYTES


@pytest.fixture
def db():
    return Database()


def one_entry(db, *requests, claims=0):
    """All in one entry, applied; the entry and the messages that its last claim brought."""
    batch = db.resolver.begin(db.index + 1, db.now)
    verdicts = [batch.add(request, 1, None) for request in requests]
    claimed = batch.claim(act(claim={"max_count": claims}).actions[0], 1) if claims else None
    db.commit(batch)
    return db.log[-1], list(claimed.results[0].messages) if claimed else [], verdicts


def facts_of(made, kind):
    payload = log_pb2.EntryPayload.FromString(made.data)
    return [
        fact
        for transaction in payload.transactions
        for fact in transaction.facts
        if keys.is_queue_key(fact.key) and fact.key[4:5] == kind
    ]


def waiting(db):
    return [key for key in db.state.rows if keys.is_due_key(key)]


def test_a_message_that_its_own_entry_claims_is_never_listed_as_waiting(db):
    made, messages, _ = one_entry(db, enqueue(b"a"), enqueue(b"b"), claims=5)
    assert [message.payload.data for message in messages] == [b"a", b"b"]
    assert facts_of(made, b"d") == []
    assert is_passing(made) and log_pb2.EntryPayload.FromString(made.data).passes
    assert (db.queue().waiting_count, db.queue().in_flight_count) == (0, 2)


def test_what_is_not_claimed_is_listed_and_the_entry_does_not_pass(db):
    made, messages, _ = one_entry(db, enqueue(b"a"), enqueue(b"b"), claims=1)
    assert len(messages) == 1 and len(facts_of(made, b"d")) == 1
    assert not is_passing(made)
    assert [keys.due_of_key(key)[0] for key in waiting(db)] == [db.now]
    assert [message.payload.data for message in db.claim(5)] == [b"b"]


def test_a_message_whose_claim_is_rolled_back_waits(db):
    taken_and_lost = act(claim={"max_count": 5})
    taken_and_lost.actions.add().ack.lease = LOST
    made, _, verdicts = one_entry(db, enqueue(b"a"), taken_and_lost)
    assert isinstance(verdicts[1], Rejected) and code(verdicts[1]) == "LEASE_LOST"
    assert not is_passing(made) and len(waiting(db)) == 1
    assert [message.payload.data for message in db.claim(5)] == [b"a"]


def test_a_message_whose_transaction_is_rolled_back_leaves_nothing(db):
    refused = enqueue(b"a")
    refused.actions.add().ack.lease = LOST
    made, _, verdicts = one_entry(db, refused, enqueue(b"b"))
    assert isinstance(verdicts[0], Rejected)
    assert len(waiting(db)) == 1 and len(facts_of(made, b"m")) == 1
    assert [message.payload.data for message in db.claim(5)] == [b"b"]


def test_a_batch_that_consensus_would_not_take_is_resolved_anew(db):
    batch = db.resolver.begin(db.index + 1, db.now)
    batch.add(enqueue(b"a"), 1, None)
    batch.payload()
    db.resolver.discard(batch)
    made, messages, _ = one_entry(db, enqueue(b"a"), claims=5)
    assert len(messages) == 1 and is_passing(made) and waiting(db) == []


def test_what_is_handed_back_and_claimed_within_an_entry_comes_with_its_history(db):
    one_entry(db, enqueue(b"a"))
    (message,) = db.claim()
    failed = act(nack={"lease": message.lease, "delay_ms": 0})
    made, messages, _ = one_entry(db, failed, claims=5)
    assert [again.attempt for again in messages] == [2]
    assert not is_passing(made) and waiting(db) == []


@pytest.mark.parametrize(
    ("request_of", "passes"),
    [
        (lambda lease: act(ack={"lease": lease}), True),
        (lambda lease: act(extend={"lease": lease}), True),
        (lambda lease: act(nack={"lease": lease}), False),
        (lambda lease: act(nack={"lease": lease, "delay_ms": 5}), False),
        (lambda lease: act(release={"lease": lease}), False),
        (lambda lease: enqueue(delay_ms=1), False),
        (lambda lease: act(configure={"max_messages_count": 5}), False),
        (lambda lease: act(purge={"max_count": 5}), False),
        (lambda lease: write(mutation(SET, KEY, b"v")), False),
    ],
    ids=["ack", "extend", "nack", "nack-later", "release", "delayed", "configure", "purge", "set"],
)
def test_what_passes(db, request_of, passes):
    (message,) = one_entry(db, enqueue(b"a"), claims=1)[1]
    assert is_passing(one_entry(db, request_of(message.lease))[0]) is passes


def test_an_ack_with_a_write_does_not_pass(db):
    (message,) = one_entry(db, enqueue(b"a"), claims=1)[1]
    with_write = act(ack={"lease": message.lease})
    with_write.mutations.append(mutation(SET, KEY, b"v"))
    assert not is_passing(one_entry(db, with_write)[0])


def test_sessions_do_not_pass(db):
    batch = db.resolver.begin(db.index + 1, db.now)
    client_id = batch.open_session(1)
    db.commit(batch)
    assert not is_passing(db.log[-1])
    assert not db.resolver.begin(db.index + 1, db.now).transactions_count
    batch = db.resolver.begin(db.index + 1, db.now)
    batch.add(enqueue(b"a"), 1, RequestId(client_id, 1, 1, False, 1))
    batch.claim(act(claim={"max_count": 1}).actions[0], 1)
    db.commit(batch)
    assert is_passing(db.log[-1])  # the answers of a session are kept with it, and the leader knows them


def test_other_entries_do_not_pass():
    passing = entry(5, b"\x20\x01")
    assert is_passing(passing)
    assert not any(is_passing(passing._replace(kind=kind)) for kind in EntryKind if kind is not EntryKind.DATA)
    assert not is_passing(Entry(1, 5, EntryKind.DATA, b""))


def test_no_row_is_written_for_what_came_and_went_in_a_run(db):
    first, messages, _ = one_entry(db, enqueue(b"a"), enqueue(b"b"), claims=5)
    requests = [act(ack={"lease": message.lease}) for message in messages]
    second = one_entry(db, *requests)[0]
    run = apply_entries([first, second], MemoryState())
    assert list(run.writes) == [keys.queue_key(1, "default")]


def test_what_an_earlier_run_wrote_is_removed(db):
    first, messages, _ = one_entry(db, enqueue(b"a"), claims=5)
    second = one_entry(db, act(ack={"lease": messages[0].lease}))[0]
    state = MemoryState()
    state.apply([first])
    assert len(state.rows) == 3
    run = state.apply([second])
    assert [row for key, row in run.writes.items() if key != keys.queue_key(1, "default")] == [None, None]
    assert list(state.rows) == [keys.queue_key(1, "default")]


def test_however_the_log_is_cut_the_state_is_the_same(db):
    held = []
    for number in range(1, 7):
        made = [enqueue(b"%d" % at) for at in range(number)]
        acks = [act(ack={"lease": held.pop().lease}) for _ in range(min(2, len(held)))]
        nacks = [act(nack={"lease": held.pop().lease, "delay_ms": 0})] if len(held) > 2 else []
        held += one_entry(db, *made, *acks, *nacks, claims=1 + number)[1]
    for length in (1, 2, 3, len(db.log)):
        state = MemoryState()
        for at in range(0, len(db.log), length):
            state.apply(db.log[at : at + length])
        assert state.rows == db.state.rows, f"in runs of {length}"
