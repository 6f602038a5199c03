"""One consumer that is connected to this node: its credit becomes pulls, and what they bring goes to it.

A pull is an operation (dispatcher.py): while there is no leader the gateway holds it, and when the leader changes it is
sent again. So a consumer feels a pause and nothing else. At most two pulls are under way: one waits, the other asks for
what became free since; each message that comes uses up one unit of credit.

A pull that no leader has answered within its time says that this node is cut off, or no member any more. Its listeners
are sent elsewhere, where there may be a leader: they would wait here for ever, pings and all.

What the consumer holds is kept by lease, so that all of it can be given back when the consumer goes away. What a pull
brings when it is gone already is given back at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial

from kvnode.base import limits
from kvnode.base.errors import KvError, Unavailable
from kvnode.client.status import error_from_proto
from kvnode.machine.queue.errors import too_much_credit
from kvnode.node.ports import Deliver, Origin
from kvnode.node.queue.settler import Done, Settler
from kvnode.proto.kv.v1 import kv_pb2

_log = logging.getLogger(__name__)

MAX_PULLS_COUNT = 2
_FINAL_CODES = frozenset({"DATABASE_NOT_FOUND", "BAD_QUEUE_NAME", "BAD_LEASE_TIME", "BAD_COUNT", "NODE_STOPPING"})
_LATE_CODES = frozenset({"DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN"})

Submit = Callable[[kv_pb2.Operation, Origin, Deliver], None]


class Consumer:
    """Takes messages of one queue for one listener.

    Args:
        submit: routes a pull.
        settler: settles leases.
        database, queue, lease_ms, name, token: as kv.proto's QueuePull has them.
        deliver: given messages as they come, on the loop.
        failed: told why no message will come any more.
        takes: whether messages may come now; when that changes, `resume`.
    """

    def __init__(
        self,
        submit: Submit,
        settler: Settler,
        *,
        database: int,
        queue: str,
        lease_ms: int,
        name: str,
        token: bytes,
        deliver: Callable[[list[kv_pb2.QueueMessage]], None],
        failed: Callable[[KvError], None],
        takes: Callable[[], bool] = lambda: True,
    ) -> None:
        self._takes = takes
        self._submit = submit
        self._settler = settler
        self._database = database
        self._pull = kv_pb2.QueuePull(
            queue=queue, lease_ms=lease_ms, consumer=name, wait_ms=limits.QUEUE_PULL_WAIT_MS, token=token
        )
        self.lease_ms = lease_ms or limits.DEFAULT_QUEUE_LEASE_MS
        self._deliver = deliver
        self._failed = failed
        self._credit = 0
        self._pulling_count = 0  # credit that pulls under way ask for
        self._pulls_count = 0
        self._held: set[bytes] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._leaving = False
        self._closed = False

    @property
    def held_count(self) -> int:
        """Messages under a lease of this consumer."""
        return len(self._held)

    def grant(self, count: int) -> None:
        """The consumer takes that many messages more, unless it leaves. Raises InvalidRequest: TOO_MUCH_CREDIT."""
        if self._credit + len(self._held) + count > limits.MAX_CONSUMER_IN_FLIGHT_COUNT:
            raise too_much_credit()
        self._credit += count
        self._ask()

    def take_no_more(self) -> None:
        """The consumer leaves: nothing is fetched for it any more. What it holds, it goes on to hold."""
        self._leaving = True
        self._credit = 0
        self._end_pulls()

    def resume(self) -> None:
        """Messages may come again."""
        self._ask()

    def hold(self, leases: Iterable[bytes]) -> None:
        """The consumer holds these from before."""
        self._held.update(leases)

    def forget(self, leases: Iterable[bytes]) -> None:
        """The consumer has settled these by itself."""
        self._held.difference_update(leases)

    def settle(self, lease: bytes, action: kv_pb2.QueueAction, done: Done) -> None:
        """Ack, nack or release a lease."""
        self._held.discard(lease)
        self._settler.settle(self._database, action, done)

    def extend(self, lease: bytes, done: Done) -> None:
        """Let a lease last from now on; one that was extended for longer elsewhere stays as it is."""
        extend = kv_pb2.QueueExtend(lease=lease, lease_ms=self.lease_ms, never_sooner=True)
        action = kv_pb2.QueueAction(extend=extend)
        self._settler.settle(self._database, action, partial(self._extended, lease, done))

    def close(self, *, give_back: bool) -> None:
        """The consumer is gone; with `give_back`, for good, and what it held is due again at once."""
        self._closed = True
        self._end_pulls()
        if give_back:
            self._settler.release(self._database, sorted(self._held), unseen=False)  # in the order of their claims
        self._held.clear()

    def _end_pulls(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        if self._pulls_count:
            cancel = kv_pb2.QueuePull(queue=self._pull.queue, token=self._pull.token, cancel=True)
            operation = kv_pb2.Operation(pull=cancel, timeout_ms=limits.QUEUE_PULL_GRACE_MS)
            self._submit(operation, Origin(b"", 0, self._database), _ignore)

    def _extended(self, lease: bytes, done: Done, error: KvError | None) -> None:
        if error is not None and error.code == "LEASE_LOST":
            self._held.discard(lease)
        done(error)

    def _ask(self) -> None:
        wanted = min(self._credit - self._pulling_count, limits.MAX_QUEUE_TOUCHED_COUNT)
        if wanted <= 0 or self._pulls_count >= MAX_PULLS_COUNT or self._retry is not None:
            return
        if self._leaving or self._closed or not self._takes():
            return
        self._pulling_count += wanted
        self._pulls_count += 1
        operation = kv_pb2.Operation(pull=self._pull, timeout_ms=limits.QUEUE_PULL_WAIT_MS + limits.QUEUE_PULL_GRACE_MS)
        operation.pull.max_count = wanted
        self._submit(operation, Origin(b"", 0, self._database), partial(self._pulled, wanted))

    def _pulled(self, wanted: int, result: kv_pb2.OperationResult) -> None:
        self._pulling_count -= wanted
        self._pulls_count -= 1
        if result.HasField("error"):
            self._pull_failed(error_from_proto(result.error))
            return
        messages = list(result.pulled.messages)
        if self._leaving or self._closed:
            self._settler.release(self._database, [message.lease for message in messages], unseen=True)
            return
        self._credit -= len(messages)
        self._held.update(message.lease for message in messages)
        if messages:
            self._settler.delivered(self._database, len(messages))
            self._deliver(messages)
        self._ask()

    def _pull_failed(self, error: KvError) -> None:
        if self._closed:
            return
        if error.code in _FINAL_CODES:
            self._failed(error)
            return
        if error.code in _LATE_CODES:
            self._failed(node_cut_off())
            return
        if error.code == "MEMBER_REMOVED":
            self._failed(node_cut_off("this node was removed from the cluster"))
            return
        _log.debug("a pull failed and is tried again: %s", error)
        if self._retry is None and not self._leaving:
            delay_s = limits.CONSUMER_RETRY_MS / 1_000
            self._retry = asyncio.get_running_loop().call_later(delay_s, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._ask()


def node_cut_off(why: str = "") -> Unavailable:
    """Why a listener is to go to another node, its leases with it; by default no leader was reached for long."""
    waited_s = (limits.QUEUE_PULL_WAIT_MS + limits.QUEUE_PULL_GRACE_MS) // 1_000
    why = why or f"this node has reached no leader for {waited_s} s"
    return Unavailable(f"{why}; listen at another one", code="NODE_CUT_OFF", phase="leader")


def _ignore(_result: kv_pb2.OperationResult) -> None:
    pass
