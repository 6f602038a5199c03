"""What the demo was promised: which transactions were acknowledged, at which versionstamp, and when."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.ack_timeline import AckTimeline


@dataclass(slots=True)
class Ledger:
    """The loader writes it, the verification holds the nodes to it. Times are milliseconds of one monotonic clock."""

    acknowledged: dict[str, bytes] = field(default_factory=dict)  # code -> versionstamp
    unanswered: dict[str, str] = field(default_factory=dict)  # code -> why its outcome is not known
    refused: dict[str, str] = field(default_factory=dict)  # code -> why it was not applied
    timeline: AckTimeline = field(default_factory=AckTimeline)
    first_ms: float = 0.0
    last_ms: float = 0.0
    longest_gap_ms: float = 0.0
    _watched_since_ms: float | None = None

    def begin(self, now_ms: float) -> None:
        """The first transaction is about to be sent."""
        self.first_ms = self.last_ms = now_ms

    def acknowledge(self, code: str, versionstamp: bytes, now_ms: float) -> None:
        """A transaction was acknowledged."""
        if self._watched_since_ms is not None:
            self.longest_gap_ms = max(self.longest_gap_ms, now_ms - self.last_ms)
        self.acknowledged[code] = versionstamp
        self.timeline.acknowledged(versionstamp, now_ms)
        self.last_ms = now_ms

    def watch_gap(self, now_ms: float) -> None:
        """From now on (the leader is about to be killed), the longest time without an acknowledgement counts."""
        self._watched_since_ms = now_ms

    @property
    def settled_count(self) -> int:
        """Transactions that have had some answer."""
        return len(self.acknowledged) + len(self.unanswered) + len(self.refused)

    @property
    def newest(self) -> bytes:
        """The greatest versionstamp acknowledged; empty when there is none."""
        return max(self.acknowledged.values(), default=b"")

    def per_second(self) -> float:
        """Acknowledged transactions a second of the whole load, the gap included."""
        elapsed_ms = self.last_ms - self.first_ms
        return len(self.acknowledged) * 1_000 / elapsed_ms if elapsed_ms > 0 else 0.0
