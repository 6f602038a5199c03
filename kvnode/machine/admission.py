"""Whether a request of a session is new, was answered before, or is not to be answered (sessions.py)."""

from __future__ import annotations

from kvnode.base import limits
from kvnode.machine import sessions
from kvnode.machine.sessions import RequestId, SessionWindow
from kvnode.machine.verdict import InFlight, Refused, Settled


def admit(
    window: SessionWindow | None, request: RequestId, log_time_ms: int, applied_index: int
) -> SessionWindow | Settled | InFlight | Refused:
    """The window, when the request is to be judged; otherwise what it is told.

    Args:
        window: of the session that the request names; None: there is none. What was answered is dropped.
        request: the request.
        log_time_ms: what the session's expiry is judged by.
        applied_index: what the state shows.
    """
    _, sequence, lowest, resend, owner = request
    if window is None or window.expire_at_ms <= log_time_ms:
        return Refused(sessions.unknown_session(resend))
    if window.owner != owner and window.owner is not None:
        return Refused(sessions.unknown_session(resend))
    if lowest > window.lowest_unanswered:
        window.advance(lowest)
    if sequence < window.lowest_unanswered:
        return Refused(sessions.answered_before(resend, sequence, window.lowest_unanswered))
    if sequence <= window.max_sequence:
        known = window.outcomes.get(sequence)
        if known is not None:
            if known.index > applied_index:
                return InFlight(known.index, known.order)
            return known.settled
    if sequence - window.lowest_unanswered >= limits.MAX_SESSION_UNANSWERED_COUNT:
        return Refused(sessions.too_many_unanswered(sequence, window.lowest_unanswered))
    return window
