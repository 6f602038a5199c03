"""Whether the endpoint of a stream still works, judged by what it answers and by how long it has been silent.

Two bounds. An endpoint that owes answers and gives no useful one for the hang timeout is cut off from the leader, or
there is none: it may live, and refuse everything. One from which nothing at all is heard is probed with a read that
every live node answers, and is dead or frozen when that goes unanswered.

Both bounds double each time that as many endpoints have been left as there are, and are back at their least with the
first useful answer. For a node that is only slow looks the same, and leaving it costs: all that was on its way is sent
again, and what was done for it was done for nothing. With bounds that stood still, thousands of operations at a node
that has too little of a processor would be sent again and again, and none be answered. That a node resumed a session is
no useful answer: it asks nobody about that.
"""

from __future__ import annotations

from collections.abc import Callable

from kvnode.base import limits
from kvnode.base.errors import Unavailable


class FailureDetector:
    """Judges the endpoint of the present stream. All times are of one monotonic clock, in milliseconds.

    Args:
        next_id: gives a probe its operation id.
        endpoints_count: how many there are to go to.
    """

    def __init__(self, next_id: Callable[[], int], endpoints_count: int) -> None:
        self._next_id = next_id
        self._endpoints_count = endpoints_count
        self._left_count = 0  # endpoints left since the last useful answer
        self._waiting_since_ms: float | None = None  # since when the endpoint owes an answer
        self._last_heard_ms = 0.0  # when anything at all arrived on the present stream
        self._probe: tuple[int, float] | None = None  # the unanswered probe: its id, when it was asked for
        self.is_probe_due = False  # asked for and not yet sent

    @property
    def is_waiting(self) -> bool:
        """Whether the endpoint owes an answer."""
        return self._waiting_since_ms is not None

    def began(self, now_ms: float) -> None:
        """A stream begins; it owes the answer to its opening."""
        self._waiting_since_ms = self._last_heard_ms = now_ms
        self._probe, self.is_probe_due = None, False

    def ended(self) -> None:
        """The stream is gone, and what it owed with it."""
        self._waiting_since_ms = None

    def asked(self, now_ms: float) -> None:
        """Operations were sent."""
        if self._waiting_since_ms is None:
            self._waiting_since_ms = now_ms

    def heard(self, now_ms: float) -> None:
        """Something arrived, be it useful or not."""
        self._last_heard_ms = now_ms
        self._probe = None

    def useful(self, now_ms: float, *, owes_more: bool, resumed: bool = False) -> None:
        """An answer shows that the endpoint works; `resumed`: that it goes on with a session, which shows less."""
        self._waiting_since_ms = now_ms if owes_more else None
        if not resumed:  # a new id is the leader's to give, and so is an answer
            self._left_count = 0

    def take_probe(self) -> int:
        """The id of the probe that is to be sent now; 0 = none."""
        is_due, self.is_probe_due = self.is_probe_due, False
        return self._probe[0] if is_due and self._probe is not None else 0

    def judge(self, now_ms: float, *, is_open: bool, owes: bool) -> Unavailable | None:
        """Time has passed: why the endpoint is to be left, or None. A probe may be due afterwards.

        Args:
            now_ms: as of now.
            is_open: whether the stream's opening was answered.
            owes: whether operations on it are unanswered.
        """
        if is_open and not owes:
            self._waiting_since_ms = None
        since_ms = self._waiting_since_ms
        if since_ms is None:
            return None
        trouble = self._hung(now_ms, since_ms) or (self._silent(now_ms, since_ms) if is_open else None)
        if trouble is not None:
            self._left_count += 1
            self._waiting_since_ms = None  # of this stream; nothing more is to be said about it
        return trouble

    def _within_ms(self, least_ms: float) -> float:
        """A bound as it is now."""
        rounds = min(10, self._left_count // self._endpoints_count)
        return min(limits.MAX_CLIENT_HANG_TIMEOUT_MS, least_ms * (1 << rounds))

    def _hung(self, now_ms: float, since_ms: float) -> Unavailable | None:
        within_ms = self._within_ms(limits.CLIENT_HANG_TIMEOUT_MS)
        if now_ms - since_ms <= within_ms:
            return None
        text = f"no answer within {round(within_ms)} ms: the node is cut off from the leader, or there is none"
        return Unavailable(text, phase="leader")

    def _silent(self, now_ms: float, since_ms: float) -> Unavailable | None:
        if self._probe is not None:
            if now_ms - self._probe[1] > self._within_ms(limits.CLIENT_PROBE_TIMEOUT_MS):
                silent_ms = round(now_ms - self._last_heard_ms)
                return Unavailable(f"nothing heard for {silent_ms} ms: the node hangs or is gone", phase="leader")
        elif now_ms - max(self._last_heard_ms, since_ms) > limits.CLIENT_PROBE_AFTER_MS:
            self._probe = (self._next_id(), now_ms)
            self.is_probe_due = True
        return None
