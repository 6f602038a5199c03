"""What clients were told, and when. Times are milliseconds of one monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cluster.history import History

Kind = Literal["write", "eventual", "strong"]
Via = Literal["grpc", "connect"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a client.

    Args:
        client, region, via: who made it, where, over what.
        kind: what was asked.
        invoked_ms, completed_ms: the interval; the latter also of an error.
        versionstamp: of the commit, or of the state that was read; empty when the answer was an error or says none.
        error: its code; empty when it was answered well.
        key: of the row that a write left.
    """

    client: str
    region: str
    via: Via
    kind: Kind
    invoked_ms: float
    completed_ms: float
    versionstamp: bytes = b""
    error: str = ""
    key: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether it was answered well."""
        return not self.error

    @property
    def latency_ms(self) -> float:
        """How long it took."""
        return self.completed_ms - self.invoked_ms


@dataclass(slots=True)
class Record:
    """All calls of one run, and the same as the checker wants it (KV Connect's reads name no state: left out there)."""

    calls: list[Call] = field(default_factory=list)
    history: History = field(default_factory=History)

    def of(self, kind: Kind, region: str = "", via: Via | None = None) -> list[Call]:
        """The calls of a kind."""
        return [
            call for call in self.calls if call.kind == kind and region in ("", call.region) and via in (None, call.via)
        ]

    def acknowledged(self) -> dict[bytes, bytes]:
        """Versionstamps of the writes that were acknowledged, by key."""
        return {call.key: call.versionstamp for call in self.calls if call.kind == "write" and call.ok}
