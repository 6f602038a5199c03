"""What a node has pushed since it started."""

from __future__ import annotations

from kvnode.machine.queue.arrivals import QueueId


class Pushed:
    """Requests of one queue: answered with 2xx, and all others."""

    __slots__ = ("failed", "ok")

    def __init__(self) -> None:
        self.ok = 0
        self.failed = 0


class PushStats:
    """Of all queues."""

    def __init__(self) -> None:
        self.queues: dict[QueueId, Pushed] = {}

    def of(self, queue: QueueId) -> Pushed:
        """The counters of one queue, which go on where an earlier pusher of it ended."""
        return self.queues.setdefault(queue, Pushed())

    def forget_all_but(self, databases: set[int]) -> None:
        """Databases are gone."""
        for queue in [queue for queue in self.queues if queue[0] not in databases]:
            del self.queues[queue]
