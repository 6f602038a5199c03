"""A naive database: a dict, one transaction after the other, no overlay, no log. What the machine must agree with."""

from typing import NamedTuple

from kvnode.base import limits
from kvnode.machine.sessions import SESSION_LIFE_MS
from tests.unit.machine.fakes import DELETE, DELETE_RANGE, LE64, MAX, MIN, SET, SET_EXPIRY, SUFFIX, SUM


class Value(NamedTuple):
    data: bytes
    encoding: int
    stamp: bytes
    expire_at_ms: int


class Session:
    def __init__(self, owner, expire_at_ms):
        self.owner = owner
        self.expire_at_ms = expire_at_ms
        self.outcomes = {}  # sequence: (index, order, verdict)
        self.logged_lowest = 0
        self.lowest = 0


class Failed(Exception):
    """The transaction's error code."""


class Model:
    def __init__(self):
        self.rows = {}
        self.sessions = {}
        self.applied_index = 0

    def lost_leader(self):
        for session in self.sessions.values():
            session.lowest = session.logged_lowest

    def live(self, key, now):
        value = self.rows.get(key)
        return None if value is None or 0 < value.expire_at_ms <= now else value

    def open_session(self, stamp, owner, now):
        self.sessions[stamp] = Session(owner, now + SESSION_LIFE_MS)

    def tick(self, due, now):
        """Returns whether anything was logged."""
        logged = False
        for key, at in due:
            if key.startswith(b"\0\0\0\0s"):
                session = self.sessions.get(key[5:])
                if session is not None and session.expire_at_ms == at <= now:
                    del self.sessions[key[5:]]
                    logged = True
            elif key in self.rows and self.rows[key].expire_at_ms == at <= now:
                del self.rows[key]
                logged = True
        return logged

    def add(self, request, prefix, identity, index, order, stamp, now):
        """(verdict as a comparable tuple, whether it is logged)."""
        session = None
        if identity is not None:
            session = self.sessions.get(identity.client_id)
            if session is None or session.owner != identity.owner or session.expire_at_ms <= now:
                return ("refused", "SESSION_UNKNOWN", not identity.resend), False
            session.lowest = max(session.lowest, identity.lowest_unanswered)
            if identity.sequence < session.lowest:
                return ("refused", "SEQUENCE_ANSWERED", not identity.resend), False
            known = session.outcomes.get(identity.sequence)
            if known is not None:
                at, known_order, verdict = known
                return (("in flight", at, known_order) if at > self.applied_index else ("settled", verdict)), False
        verdict, accepted = self._judge(request, prefix, order, stamp, now)
        logged = accepted or (identity is not None and identity.resend)
        if session is not None and logged:
            session.outcomes[identity.sequence] = (index, order, verdict)
            session.logged_lowest = session.lowest
            if session.expire_at_ms - now < limits.SESSION_TTL_MS:
                session.expire_at_ms = now + SESSION_LIFE_MS
        return verdict if accepted else (*verdict, logged), logged

    def _judge(self, request, prefix, order, stamp, now):
        failed = []
        for position, check in enumerate(request.checks):
            value = self.live(prefix + check.key, now)
            if (value.stamp if value else b"") != check.versionstamp:
                failed.append(position)
        if failed:
            return ("check failed", tuple(failed)), False
        before = dict(self.rows)
        try:
            for mutation in request.mutations:
                self._mutate(mutation, prefix, stamp, now)
        except Failed as failure:
            self.rows = before
            return ("rejected", str(failure)), False
        return ("accepted", stamp, order), True

    def _mutate(self, mutation, prefix, stamp, now):
        key, kind = prefix + mutation.key, mutation.type
        if kind == SUFFIX:
            key += b"\x02" + stamp.hex().encode() + b"\0"
        if kind in (SET, SUFFIX):
            self.rows[key] = Value(mutation.value.data, mutation.value.encoding, stamp, max(0, mutation.expire_at_ms))
        elif kind == DELETE:
            self.rows.pop(key, None)
        elif kind == SET_EXPIRY:
            live = self.live(key, now)
            if live is not None:
                self.rows[key] = live._replace(stamp=stamp, expire_at_ms=max(0, mutation.expire_at_ms))
        elif kind == DELETE_RANGE:
            inside = [at for at in self.rows if key <= at < prefix + mutation.end_key]
            if len(inside) > limits.MAX_DELETE_RANGE_KEYS_COUNT:
                raise Failed("DELETE_RANGE_TOO_LARGE")
            for at in inside:
                del self.rows[at]
        else:
            self._combine(mutation, key, stamp, now)

    def _combine(self, mutation, key, stamp, now):
        if mutation.value.encoding != LE64:
            raise Failed("SUM_NON_U64_OPERAND")
        operand = int.from_bytes(mutation.value.data, "little")
        stored = self.live(key, now)
        if stored is not None:
            if stored.encoding != LE64:
                raise Failed("SUM_NON_U64_VALUE")
            number = int.from_bytes(stored.data, "little")
            combine = {SUM: lambda a, b: (a + b) % 2**64, MIN: min, MAX: max}[mutation.type]
            operand = combine(number, operand)
        self.rows[key] = Value(operand.to_bytes(8, "little"), LE64, stamp, 0)
