"""What producers and consumers of a queue saw, as lines of JSON in files: one file a process, one line an event.

Every line is written before its writer goes on: a handler's end before the ack is sent, a confirmation when it has
come. SIGKILL takes no line along that was written, since the file is the kernel's by then; it may cut the last line of
a file, and that one is passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

Verb = Literal["ack", "nack"]
SUFFIX = ".jsonl"


class Enqueued(NamedTuple):
    """A message was sent.

    Args:
        number: the message, of the drill's own counting.
        retries: intervals in its back-off schedule.
        outcome: acknowledged; refused = certainly not there; unknown = no answer.
    """

    number: int
    retries: int
    outcome: Literal["acknowledged", "refused", "unknown"]


class Handled(NamedTuple):
    """A handler ended; what it decided was sent after this was written.

    Args:
        number: the message.
        id: that the cluster gave it.
        lease: of the delivery.
        attempt: of the delivery, from 1.
        failed: whether the handler failed.
        consumer: who it was.
        begun_ms, ended_ms: of the handler, milliseconds since 1970.
    """

    number: int
    id: str
    lease: str
    attempt: int
    failed: bool
    consumer: str
    begun_ms: float
    ended_ms: float


class Settled(NamedTuple):
    """The cluster's answer to an ack or a nack. `code` is empty when it was done, otherwise says why it was not."""

    lease: str
    verb: Verb
    code: str


class Dead(NamedTuple):
    """A dead letter that was found at the end. `deliveries` is the cluster's own count."""

    number: int
    id: str
    deliveries: int


class Undelivered(NamedTuple):
    """A key of keys_if_undelivered that was found at the end, and the message that it names."""

    number: int


class Totals(NamedTuple):
    """How the queue stood at the end, by its own counters."""

    waiting: int
    in_flight: int
    dead: int
    enqueued: int
    delivered: int
    redelivered: int
    acknowledged: int


Event = Enqueued | Handled | Settled | Dead | Undelivered | Totals
_KINDS: dict[str, type[Event]] = {
    kind.__name__.lower(): kind for kind in (Enqueued, Handled, Settled, Dead, Undelivered, Totals)
}


@dataclass(slots=True)
class QueueHistory:
    """All events, by their kind, in any order."""

    enqueued: list[Enqueued] = field(default_factory=list)
    handled: list[Handled] = field(default_factory=list)
    settled: list[Settled] = field(default_factory=list)
    dead: list[Dead] = field(default_factory=list)
    undelivered: list[Undelivered] = field(default_factory=list)
    totals: list[Totals] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """One more."""
        getattr(self, type(event).__name__.lower()).append(event)


class Journal:
    """Appends events to a file; each is the kernel's when `write` returns."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, event: Event) -> None:
        """One line."""
        os.write(self._file, encode(event))

    def close(self) -> None:
        """No more."""
        os.close(self._file)


def encode(event: Event) -> bytes:
    """An event's line."""
    line = {"what": type(event).__name__.lower(), **event._asdict()}
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def decode(line: str | bytes) -> Event:
    """The event of a line. Raises ValueError, KeyError and TypeError when it is none."""
    fields: dict[str, Any] = json.loads(line)
    return _KINDS[fields.pop("what")](**fields)


def read_history(folder: Path) -> QueueHistory:
    """The events of all files of a folder. Raises ValueError for a line that is none, unless it was cut off."""
    history = QueueHistory()
    for path in sorted(folder.glob("*" + SUFFIX)):
        for event in _events(path):
            history.add(event)
    return history


def _events(path: Path) -> Iterator[Event]:
    data = path.read_bytes()
    whole: Iterable[bytes] = data[: data.rfind(b"\n") + 1].splitlines()
    for number, line in enumerate(whole, 1):
        try:
            yield decode(line)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error!r}") from error
