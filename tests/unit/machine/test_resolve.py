"""Resolve and apply, case by case; test_against_model.py has the combinations."""

import pytest

from kvnode.base import limits
from kvnode.base.invariant import InvariantViolation
from kvnode.codec.versionstamp import versionstamp
from kvnode.machine.apply import apply_entries
from kvnode.machine.keyspace import database_prefix, outcome_key, session_key
from kvnode.machine.resolve import RequestId, Resolver
from kvnode.machine.sessions import NODES_OWN, SESSION_LIFE_MS, SessionRow, decode_session, encode_session
from kvnode.machine.validate import validate_write
from kvnode.machine.verdict import Accepted, CheckFailed, InFlight, Refused, Rejected, Settled
from kvnode.proto.kv.internal.v1 import log_pb2
from tests.unit.machine.fakes import (
    DELETE,
    DELETE_RANGE,
    LE64,
    SET,
    SET_EXPIRY,
    SUFFIX,
    SUM,
    MemoryState,
    entry,
    mutation,
    u64,
    write,
)

NOW = 1_000_000
P = database_prefix(1)


@pytest.fixture
def state():
    return MemoryState()


@pytest.fixture
def resolver(state):
    return Resolver(state, 1)


def commit(state, resolver, index, *writes, now=NOW, request=None):
    """Resolve, apply and free one batch; returns its verdicts."""
    batch = resolver.begin(index, now)
    verdicts = [batch.add(one, 1, request) for one in writes]
    state.apply([entry(index, batch.payload())])
    resolver.applied(index)
    return verdicts


def open_session(state, resolver, index=2, now=NOW, owner=1):
    batch = resolver.begin(index, now)
    client_id = batch.open_session(owner)
    state.apply([entry(index, batch.payload())])
    resolver.applied(index)
    return client_id


def test_a_bad_part_changes_nothing(state, resolver):
    commit(state, resolver, 2, write(mutation(SET, b"text", b"v")))
    before = dict(state.rows)
    (verdict,) = commit(
        state,
        resolver,
        3,
        write(
            mutation(SET, b"x", b"1"),
            mutation(DELETE, b"text"),
            mutation(DELETE_RANGE, b"a", end_key=b"z"),
            mutation(77, b"k"),
        ),
    )
    assert isinstance(verdict, Rejected) and verdict.error.code == "UNKNOWN_MUTATION" and not verdict.logged
    assert state.rows == before


def test_later_mutations_see_earlier_ones(state, resolver):
    commit(
        state,
        resolver,
        2,
        write(
            mutation(SUM, b"n", u64(5), LE64),
            mutation(SUM, b"n", u64(6), LE64),
            mutation(DELETE_RANGE, b"a", end_key=b"z"),
            mutation(SUM, b"n", u64(1), LE64),
        ),
    )
    assert state.rows[P + b"n"].value == u64(1)


def test_one_commit_shares_a_versionstamp_and_batches_count_up(state, resolver):
    first, second = commit(
        state,
        resolver,
        2,
        write(mutation(SET, b"a", b"1"), mutation(SET, b"b", b"1")),
        write(mutation(SET, b"c", b"1")),
    )
    assert first == Accepted(versionstamp(1, 2, 0), 0) and second == Accepted(versionstamp(1, 2, 1), 1)
    assert state.rows[P + b"a"].versionstamp == state.rows[P + b"b"].versionstamp == first.versionstamp


def test_an_empty_write_and_checks_alone_succeed(state, resolver):
    verdicts = commit(state, resolver, 2, write(), write(checks=[(b"a", b"")]))
    assert [type(verdict) for verdict in verdicts] == [Accepted, Accepted]


def test_suffix_key(state, resolver):
    (verdict,) = commit(state, resolver, 2, write(mutation(SUFFIX, b"\x02a\0", b"v", expire_at_ms=NOW + 5)))
    key = P + b"\x02a\0\x02" + verdict.versionstamp.hex().encode() + b"\0"
    assert state.rows[key].value == b"v" and state.rows[key].expire_at_ms == NOW + 5


def test_a_check_and_a_sum_take_an_expired_row_as_absent(state, resolver):
    commit(state, resolver, 2, write(mutation(SET, b"a", u64(9), LE64, expire_at_ms=NOW + 10)))
    stamp = state.rows[P + b"a"].versionstamp
    batch = resolver.begin(3, NOW + 9)
    assert isinstance(batch.add(write(checks=[(b"a", stamp)]), 1, None), Accepted)
    resolver.discard(batch)
    batch = resolver.begin(3, NOW + 10)
    assert batch.add(write(checks=[(b"x", b""), (b"a", stamp)]), 1, None) == CheckFailed((1,), False)
    assert batch.judged_index == 2
    batch.add(write(mutation(SUM, b"a", u64(1), LE64)), 1, None)
    assert batch.judged_index == 3
    state.apply([entry(3, batch.payload())])
    assert state.rows[P + b"a"].value == u64(1)
    assert state.rows[P + b"a"].expire_at_ms == 0  # the result of a sum never expires


def test_the_overlay_is_seen_until_the_state_shows_it(state, resolver):
    first = resolver.begin(2, NOW)
    first.add(write(mutation(SET, b"a", b"1")), 1, None)
    second = resolver.begin(3, NOW)
    assert isinstance(second.add(write(checks=[(b"a", b"")]), 1, None), CheckFailed)
    stamp = versionstamp(1, 2, 0)
    assert isinstance(second.add(write(mutation(DELETE, b"a"), checks=[(b"a", stamp)]), 1, None), Accepted)
    state.apply([entry(2, first.payload())])
    resolver.applied(2)
    third = resolver.begin(4, NOW)
    assert isinstance(third.add(write(checks=[(b"a", b"")]), 1, None), Accepted)
    state.apply([entry(3, second.payload())])
    resolver.applied(3)
    assert len(resolver.overlay) == 0 and not state.rows


def test_a_discarded_batch_leaves_no_trace(state, resolver):
    client = open_session(state, resolver)
    kept = resolver.begin(3, NOW)
    kept.add(write(mutation(SET, b"a", b"1")), 1, RequestId(client, 1, 1, False, 1))
    lost = resolver.begin(4, NOW + 1)
    lost.add(write(mutation(DELETE_RANGE, b"a", end_key=b"z")), 1, RequestId(client, 2, 1, False, 1))
    lost_client = lost.open_session(1)
    resolver.discard(lost)
    again = resolver.begin(4, NOW + 1)
    assert isinstance(again.add(write(checks=[(b"a", b"")]), 1, None), CheckFailed)
    assert isinstance(again.add(write(), 1, RequestId(client, 2, 1, True, 1)), Accepted)
    assert isinstance(again.add(write(), 1, RequestId(client, 1, 1, True, 1)), InFlight)
    assert again.add(write(), 1, RequestId(lost_client, 1, 1, False, 1)).error.code == "SESSION_UNKNOWN"


def test_only_the_newest_batch_can_be_discarded(resolver):
    first = resolver.begin(2, NOW)
    resolver.begin(3, NOW)
    with pytest.raises(InvariantViolation):
        resolver.discard(first)


def test_log_time_and_index_never_go_back(state, resolver):
    resolver.begin(2, NOW).add(write(), 1, None)
    with pytest.raises(InvariantViolation):
        resolver.begin(3, NOW - 1)
    with pytest.raises(InvariantViolation):
        resolver.begin(2, NOW)
    payload = log_pb2.EntryPayload(epoch=1, log_time_ms=5).SerializeToString()
    with pytest.raises(InvariantViolation):
        apply_entries([entry(4, payload)], state, log_time_ms=6)


def test_an_empty_batch_may_be_dropped(state, resolver):
    resolver.begin(2, NOW)
    batch = resolver.begin(2, NOW + 1)
    assert isinstance(batch.add(write(), 1, None), Accepted)
    assert state.apply([entry(2, batch.payload())]).log_time_ms == NOW + 1


def test_an_entry_may_hold_nothing_but_the_time(state, resolver):
    run = state.apply([entry(2, resolver.begin(2, NOW).payload())])
    assert (run.log_time_ms, run.epoch, run.writes) == (NOW, 1, {})


def test_delete_range_bound(state, resolver, monkeypatch):
    monkeypatch.setattr(limits, "MAX_DELETE_RANGE_KEYS_COUNT", 3)
    everything = write(mutation(DELETE_RANGE, b"k", end_key=b"l"))
    commit(state, resolver, 2, write(*[mutation(SET, b"k%d" % n, b"v") for n in range(3)]))
    batch = resolver.begin(3, NOW)
    batch.add(write(mutation(SET, b"k9", b"v")), 1, None)
    verdict = batch.add(everything, 1, None)
    assert isinstance(verdict, Rejected) and verdict.error.code == "DELETE_RANGE_TOO_LARGE"
    batch.add(write(mutation(DELETE, b"k1")), 1, None)
    assert isinstance(batch.add(everything, 1, None), Accepted)
    run = state.apply([entry(3, batch.payload())])
    assert not state.rows
    assert set(run.writes) == {P + b"k0", P + b"k1", P + b"k2", P + b"k9"}


def test_tick_expires_what_is_due_and_unchanged(state, resolver):
    commit(
        state,
        resolver,
        2,
        write(*[mutation(SET, b"k%d" % n, b"v", expire_at_ms=NOW + 10) for n in range(3)]),
    )
    batch = resolver.begin(3, NOW + 10)
    batch.add(write(mutation(SET, b"k0", b"new")), 1, None)
    due = [*state.due(NOW + 20), (P + b"k2", NOW + 11)]
    assert batch.tick(due) == 2
    assert batch.tick(due) == 0
    state.apply([entry(3, batch.payload())])
    assert list(state.rows) == [P + b"k0"]


def test_a_resend_meets_its_first_copy_then_its_outcome(state, resolver):
    client = open_session(state, resolver)
    batch = resolver.begin(3, NOW)
    request = RequestId(client, 1, 1, False, 1)
    resend = request._replace(resend=True)
    increment = write(mutation(SUM, b"n", u64(1), LE64))
    accepted = batch.add(increment, 1, request)
    assert batch.add(increment, 1, resend) == InFlight(3, 0)
    state.apply([entry(3, batch.payload())])
    resolver.applied(3)
    settled = Settled(0, accepted.versionstamp, (), None)
    assert resolver.begin(4, NOW).add(increment, 1, resend) == settled
    # A new leader finds it in the state.
    assert Resolver(state, 1).begin(4, NOW).add(increment, 1, resend) == settled
    assert state.rows[P + b"n"].value == u64(1)


def test_requests_may_arrive_out_of_order(state, resolver):
    client = open_session(state, resolver)
    batch = resolver.begin(3, NOW)
    assert isinstance(batch.add(write(), 1, RequestId(client, 5, 1, False, 1)), Accepted)
    assert isinstance(batch.add(write(), 1, RequestId(client, 3, 1, False, 1)), Accepted)
    assert isinstance(batch.add(write(), 1, RequestId(client, 3, 1, True, 1)), InFlight)


def test_negative_outcomes_of_a_resend_are_logged(state, resolver):
    client = open_session(state, resolver)
    batch = resolver.begin(3, NOW)
    fails = write(checks=[(b"a", bytes(10))])
    wrong = write(mutation(SUM, b"n", b"x"))
    assert batch.add(fails, 1, RequestId(client, 1, 1, False, 1)) == CheckFailed((0,), False)
    assert batch.add(fails, 1, RequestId(client, 1, 1, True, 1)) == CheckFailed((0,), True)
    rejected = batch.add(wrong, 1, RequestId(client, 2, 1, True, 1))
    assert isinstance(rejected, Rejected) and rejected.logged
    assert batch.transactions_count == 2
    state.apply([entry(3, batch.payload())])
    resolver.applied(3)
    state.apply([entry(4, resolver.begin(4, NOW).payload())])
    for leader in (resolver, Resolver(state, 1)):
        batch = leader.begin(5, NOW)
        settled = batch.add(write(mutation(SET, b"a", b"1")), 1, RequestId(client, 1, 1, True, 1))
        assert settled == Settled(1, b"", (0,), None)
        settled = batch.add(wrong, 1, RequestId(client, 2, 1, True, 1))
        assert settled.kind == 2 and settled.error.code == "SUM_NON_U64_OPERAND"
        assert settled.error.message == rejected.error.message


def refusal(verdict):
    assert isinstance(verdict, Refused)
    return verdict.error.code, verdict.error.not_applied


def test_refusals(state, resolver):
    client = open_session(state, resolver)
    batch = resolver.begin(3, NOW)
    for stranger in (b"0123456789", b"", b"x"):
        assert refusal(batch.add(write(), 1, RequestId(stranger, 1, 1, True, 1))) == ("SESSION_UNKNOWN", False)
        assert refusal(batch.add(write(), 1, RequestId(stranger, 1, 1, False, 1))) == ("SESSION_UNKNOWN", True)
    assert refusal(batch.add(write(), 1, RequestId(client, 4, 5, True, 1))) == ("SEQUENCE_ANSWERED", False)
    assert refusal(batch.add(write(), 1, RequestId(client, 4, 1, False, 1))) == ("SEQUENCE_ANSWERED", True)
    far = limits.MAX_SESSION_UNANSWERED_COUNT + 5
    assert refusal(batch.add(write(), 1, RequestId(client, far, 1, False, 1))) == ("TOO_MANY_UNANSWERED", True)
    assert isinstance(batch.add(write(), 1, RequestId(client, far - 1, 1, False, 1)), Accepted)
    assert batch.transactions_count == 1


def test_a_session_expires_by_log_time(state, resolver):
    client = open_session(state, resolver)
    batch = resolver.begin(3, NOW + SESSION_LIFE_MS - 1)
    assert isinstance(batch.add(write(), 1, RequestId(client, 1, 1, False, 1)), Accepted)
    expire_at_ms = NOW + 2 * SESSION_LIFE_MS - 1
    # In flight it counts already: what the state calls due has moved.
    later = resolver.begin(4, NOW + SESSION_LIFE_MS)
    assert later.tick(state.due(NOW + SESSION_LIFE_MS)) == 0
    state.apply([entry(3, batch.payload())])
    resolver.applied(3)
    assert state.rows[session_key(client)].expire_at_ms == expire_at_ms
    batch = resolver.begin(4, expire_at_ms)
    assert refusal(batch.add(write(), 1, RequestId(client, 2, 1, True, 1))) == ("SESSION_UNKNOWN", False)
    assert batch.tick(state.due(expire_at_ms)) == 1
    after = resolver.begin(5, expire_at_ms)
    assert after.tick(state.due(expire_at_ms)) == 0
    state.apply([entry(4, batch.payload())])
    assert not state.rows


def test_answered_outcomes_are_dropped(state, resolver, monkeypatch):
    monkeypatch.setattr(limits, "OUTCOME_PRUNE_SEQUENCES_COUNT", 2)
    client = open_session(state, resolver)
    for sequence in range(1, 8):
        request = RequestId(client, sequence, max(1, sequence - 1), False, 1)
        commit(state, resolver, sequence + 2, write(), request=request)
    assert decode_session(state.rows[session_key(client)].value) == SessionRow(7, 6, 6, 1)
    assert sorted(state.rows) == [outcome_key(client, 6), outcome_key(client, 7), session_key(client)]
    assert set(resolver.windows[client].outcomes) == {6, 7}


def test_a_jump_of_lowest_unanswered_costs_what_is_held(state, resolver):
    client = open_session(state, resolver)
    batch = resolver.begin(3, NOW)
    batch.add(write(), 1, RequestId(client, 1, 1, False, 1))
    assert isinstance(batch.add(write(), 1, RequestId(client, 2**60, 2**60, False, 1)), Accepted)
    assert set(resolver.windows[client].outcomes) == {2**60}


def test_outcomes_of_one_entry_share_a_row(state, resolver):
    client = open_session(state, resolver)
    batch = resolver.begin(3, NOW)
    for sequence in range(1, 65):
        batch.add(write(mutation(SET, b"k%d" % sequence, b"v")), 1, RequestId(client, sequence, 1, False, 1))
    run = state.apply([entry(3, batch.payload())])
    assert len(run.writes) == 64 + 2
    assert len(Resolver(state, 1).window(client).outcomes) == 64


def test_a_jump_of_lowest_unanswered_keeps_what_is_not_below_it(state, resolver):
    client = open_session(state, resolver)
    batch = resolver.begin(3, NOW)
    batch.add(write(), 1, RequestId(client, 1, 1, False, 1))
    batch.add(write(), 1, RequestId(client, 100, 1, False, 1))
    assert batch.add(write(), 1, RequestId(client, 100, 100, True, 1)) == InFlight(3, 1)


def test_a_discard_after_an_application_does_not_bring_back_what_was_freed(state, resolver):
    first = resolver.begin(2, NOW)
    first.add(write(mutation(SET, b"a", b"1")), 1, None)
    second = resolver.begin(3, NOW)
    second.add(write(mutation(DELETE, b"a")), 1, None)
    state.apply([entry(2, first.payload())])
    resolver.applied(2)
    resolver.discard(second)
    assert len(resolver.overlay) == 0
    batch = resolver.begin(3, NOW)
    assert isinstance(batch.add(write(checks=[(b"a", versionstamp(1, 2, 0))]), 1, None), Accepted)


def test_an_expiry_is_set_and_removed_and_the_value_stays(state, resolver):
    commit(state, resolver, 2, write(mutation(SET, b"a", u64(7), LE64)))
    (verdict,) = commit(state, resolver, 3, write(mutation(SET_EXPIRY, b"a", expire_at_ms=NOW + 5)))
    assert state.rows[P + b"a"] == (P + b"a", u64(7), LE64, verdict.versionstamp, NOW + 5)
    (verdict,) = commit(state, resolver, 4, write(mutation(SET_EXPIRY, b"a", expire_at_ms=-1)))
    assert state.rows[P + b"a"] == (P + b"a", u64(7), LE64, verdict.versionstamp, 0)


def test_an_expiry_of_nothing_is_no_fact_and_revives_nothing(state, resolver):
    commit(state, resolver, 2, write(mutation(SET, b"gone", b"v", expire_at_ms=NOW + 1)))
    before = dict(state.rows)
    batch = resolver.begin(3, NOW + 1)
    made = write(mutation(SET_EXPIRY, b"gone", expire_at_ms=NOW + 99), mutation(SET_EXPIRY, b"never"))
    assert isinstance(batch.add(made, 1, None), Accepted)
    state.apply([entry(3, batch.payload())])
    assert state.rows == before


def test_an_expiry_sees_what_is_in_flight(state, resolver):
    batch = resolver.begin(2, NOW)
    batch.add(write(mutation(SET, b"a", b"v")), 1, None)
    batch.add(write(mutation(SET_EXPIRY, b"a", expire_at_ms=NOW + 9)), 1, None)
    late = batch.add(write(mutation(SUM, b"a", u64(1), LE64)), 1, None)
    assert isinstance(late, Rejected)
    state.apply([entry(2, batch.payload())])
    assert state.rows[P + b"a"].value == b"v"
    assert state.rows[P + b"a"].expire_at_ms == NOW + 9


def test_values_that_come_along_have_a_bound(state, resolver):
    value = bytes(limits.MAX_VALUE_BYTES)
    keys = [b"k%03d" % number for number in range(17)]
    for index, key in enumerate(keys, 2):
        commit(state, resolver, index, write(mutation(SET, key, value)))
    fits = write(*[mutation(SET_EXPIRY, key, expire_at_ms=NOW + 9) for key in keys[:15]])
    beyond = write(*[mutation(SET_EXPIRY, key, expire_at_ms=NOW + 8) for key in keys])
    accepted, rejected = commit(state, resolver, 30, fits, beyond)
    assert isinstance(accepted, Accepted)
    assert isinstance(rejected, Rejected) and rejected.error.code == "TRANSACTION_TOO_LARGE"
    assert {row.expire_at_ms for row in state.rows.values()} == {0, NOW + 9}


def test_the_largest_transaction_that_is_valid_resolves(state, resolver):
    made = write(*[mutation(SUFFIX, b"%081d" % number, bytes(738)) for number in range(1000)])
    validate_write(made)
    (verdict,) = commit(state, resolver, 2, made)
    assert isinstance(verdict, Accepted)


def test_a_request_of_anybody_but_the_owner_is_that_of_an_unknown_session(state, resolver):
    client = open_session(state, resolver, owner=1)
    assert isinstance(commit(state, resolver, 3, write(), request=RequestId(client, 1, 1, False, 1))[0], Accepted)
    for leader in (resolver, Resolver(state, 1)):  # of this term, and of the next, which finds the row
        batch = leader.begin(4, NOW)
        for stranger in (2, NODES_OWN):
            # A new sequence, one that has an outcome, and one that would end all others.
            for sequence, lowest in ((2, 1), (1, 1), (1_000, 1_000)):
                resend = RequestId(client, sequence, lowest, True, stranger)
                assert refusal(batch.add(write(), stranger, resend)) == ("SESSION_UNKNOWN", False)
                first = resend._replace(resend=False)
                assert refusal(batch.add(write(), stranger, first)) == ("SESSION_UNKNOWN", True)
            assert not leader.knows(client, stranger, 1)
        assert not batch.transactions_count
        assert leader.knows(client, 1, 1)
        assert isinstance(batch.add(write(), 1, RequestId(client, 1, 1, True, 1)), InFlight | Settled)
        assert isinstance(batch.add(write(), 1, RequestId(client, 2, 1, False, 1)), Accepted)
        leader.discard(batch)


def test_a_session_of_a_nodes_own_is_for_all_databases_and_for_no_client(state, resolver):
    client = open_session(state, resolver, owner=NODES_OWN)
    batch = resolver.begin(3, NOW)
    for database in (1, 2):
        request = RequestId(client, database, 1, False, NODES_OWN)
        assert isinstance(batch.add(write(), database, request), Accepted)
        assert refusal(batch.add(write(), database, request._replace(sequence=9, owner=database))) == (
            "SESSION_UNKNOWN",
            True,
        )


def test_a_session_opened_before_there_were_owners_goes_on_as_it_was(state):
    opening = log_pb2.EntryPayload(epoch=1, log_time_ms=NOW)
    opening.transactions.add(opens_session=True)
    state.apply([entry(2, opening.SerializeToString())])
    client, key = versionstamp(1, 2, 0), session_key(versionstamp(1, 2, 0))
    assert len(state.rows[key].value) == 24
    resolver = Resolver(state, 1)
    for index, owner in ((3, 1), (4, 2), (5, NODES_OWN)):
        request = RequestId(client, index, 1, False, owner)
        assert isinstance(commit(state, resolver, index, write(), request=request)[0], Accepted)
        assert resolver.knows(client, owner, index)
    assert state.rows[key].value == bytes([0] * 7 + [5] + [0] * 7 + [1] + [0] * 8)
    assert decode_session(state.rows[key].value) == SessionRow(5, 1, 0, None)


@pytest.mark.parametrize("owner", [NODES_OWN, 1, 2**32 - 1, None])
def test_a_session_row_comes_back_as_it_was(owner):
    row = SessionRow(2**64 - 1, 7, 3, owner)
    assert decode_session(encode_session(row)) == row
