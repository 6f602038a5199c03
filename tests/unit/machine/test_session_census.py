"""How many sessions there may be, and who makes room."""

import pytest

from kvnode.base import limits
from kvnode.base.errors import Unavailable
from kvnode.machine.keyspace import session_key
from kvnode.machine.overlay import Overlay
from kvnode.machine.resolve import RequestId, Resolver
from kvnode.machine.session_census import SessionCensus
from kvnode.machine.verdict import Accepted, Refused
from tests.unit.machine.fakes import SET, MemoryState, entry, mutation, write

NOW = 1_000_000
IDLE = limits.SESSION_REFRESH_MS + limits.MIN_EVICTED_SESSION_IDLE_MS


@pytest.fixture
def ground(monkeypatch):
    monkeypatch.setattr(limits, "MAX_SESSIONS_COUNT", 3)
    return Ground()


class Ground:
    """A leader that may know three sessions."""

    def __init__(self):
        self.state = MemoryState()
        self.resolver = Resolver(self.state, 1)
        self.index = 1

    def propose(self, now, act):
        """One entry, resolved and applied."""
        self.index += 1
        batch = self.resolver.begin(self.index, now)
        result = act(batch)
        self.state.apply([entry(self.index, batch.payload())])
        self.resolver.applied(self.index)
        return result

    def open(self, now=NOW):
        return self.propose(now, lambda batch: batch.open_session(1))

    def write(self, client, sequence, now, *, resend=False):
        one = write(mutation(SET, b"k", b"v"))
        return self.propose(now, lambda batch: batch.add(one, 1, RequestId(client, sequence, 1, resend, 1)))

    def open_sessions(self):
        return {key[5:] for key in self.state.rows if key.startswith(session_key(b""))}


def test_the_one_that_was_idle_longest_makes_room(ground):
    first, second, third = (ground.open(NOW + at) for at in range(3))
    assert isinstance(ground.write(first, 1, NOW + IDLE), Accepted)  # the oldest, but not idle
    fourth = ground.open(NOW + IDLE + 1)
    assert ground.open_sessions() == {first, third, fourth}
    for resend, unknown in ((True, True), (False, False)):
        verdict = ground.write(second, 1, NOW + IDLE + 2, resend=resend)
        assert isinstance(verdict, Refused) and verdict.error.code == "SESSION_UNKNOWN"
        assert verdict.error.not_applied is not unknown, "what may have been applied must not be called not applied"
    assert isinstance(ground.write(first, 2, NOW + IDLE + 3), Accepted)


def test_who_wrote_lately_is_not_closed_for_another(ground):
    clients = [ground.open() for _ in range(3)]
    now = NOW + IDLE
    for client in clients:
        ground.write(client, 1, now)
    with pytest.raises(Unavailable, match="3 sessions are open") as raised:
        ground.open(now + limits.MIN_EVICTED_SESSION_IDLE_MS - 1)
    assert raised.value.code == "TOO_MANY_SESSIONS" and raised.value.not_applied
    assert ground.open_sessions() == set(clients)
    ground.open(now + IDLE)
    assert len(ground.open_sessions()) == 3


def test_a_new_leader_counts_those_that_it_finds(ground):
    clients = [ground.open(NOW + at) for at in range(3)]
    ground.resolver = Resolver(ground.state, 1)
    newest = ground.open(NOW + IDLE + 1)
    assert ground.open_sessions() == {*clients[1:], newest}


def test_a_batch_that_is_withdrawn_closes_nobody(ground):
    clients = [ground.open(NOW + at) for at in range(3)]
    batch = ground.resolver.begin(ground.index + 1, NOW + IDLE)
    batch.open_session(1)
    ground.resolver.discard(batch)
    assert len(ground.resolver.census) == 3
    assert isinstance(ground.write(clients[0], 1, NOW + IDLE + 1), Accepted)


def test_an_expired_session_leaves_room(ground):
    clients = [ground.open(NOW + at * 1_000) for at in range(3)]
    now = NOW + limits.SESSION_TTL_MS + limits.SESSION_REFRESH_MS
    assert ground.propose(now, lambda batch: batch.tick(ground.state.due(now))) == 1
    assert len(ground.resolver.census) == 2
    ground.open(now)
    assert len(ground.open_sessions() & set(clients)) == 2


def test_coming_and_going_does_not_fill_the_memory():
    state = MemoryState()
    census = SessionCensus(state, Overlay(state))
    for number in range(20_000):
        client = number.to_bytes(10, "big")
        census.opened(client, number)
        census.closed(client)
    assert len(census) == 0 and len(census._by_expiry) <= limits.SCAN_PAGE_COUNT + 1
