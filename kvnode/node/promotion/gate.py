"""The last door before an answer: what is strong leaves it only under the lease.

A write that is committed, a failed check, a strong read: each is looked at when it is answered, not when it was judged,
so that a process which was frozen in between does not believe itself. An answer that comes while the lease has run out
waits: a quorum that grants it anew has promised no other epoch, so the answer is true then. With the leadership the
waiting calls go back to the gateway, which asks the next leader under the same request id. A node that does not lead
settles nothing by itself: its group may be committing without a lease.
"""

from __future__ import annotations

from collections.abc import Callable

from kvnode.base.errors import KvError
from kvnode.node.calls import Call
from kvnode.proto.kv.v1 import kv_pb2


class Gate:
    """The strong answers of one node.

    Args:
        is_required: whether answers need a lease.
        leads: whether this node leads.
        holds: whether it holds the lease now.
        take_back: takes calls that this node cannot answer; True = they may have been applied.
    """

    def __init__(
        self,
        is_required: Callable[[], bool],
        leads: Callable[[], bool],
        holds: Callable[[], bool],
        take_back: Callable[[list[Call], bool], None],
    ) -> None:
        self._is_required = is_required
        self._leads = leads
        self._holds = holds
        self._take_back = take_back
        self._waiting: list[tuple[Call, Callable[[], None]]] = []

    @property
    def waiting_count(self) -> int:
        """Answers that wait for the lease."""
        return len(self._waiting)

    @property
    def are_direct(self) -> bool:
        """See Answers."""
        return not self._is_required()

    def answer(self, call: Call, result: kv_pb2.OperationResult) -> None:
        """Deliver a result, now or once the lease is held."""
        if self._is_required():
            self._pass(call, lambda: call.answer(result))
        else:
            call.answer(result)

    def opened(self, call: Call, client_id: bytes) -> None:
        """Deliver a fresh client id, likewise."""
        if self._is_required():
            self._pass(call, lambda: call.opened(client_id))
        else:
            call.opened(client_id)

    def _pass(self, call: Call, deliver: Callable[[], None]) -> None:
        if not self._leads():
            self._take_back([call], True)
        elif self._holds():
            deliver()
        else:
            self._waiting.append((call, deliver))

    def look(self) -> None:
        """The lease may be held again, or needed no more."""
        while self._waiting and (not self._is_required() or self._holds()):
            self._waiting.pop(0)[1]()

    def sweep(self, now_ms: float, error: Callable[[Call], KvError]) -> None:
        """Answer what is past its deadline with `error(call)`."""
        if not self._waiting:
            return
        for call, _ in self._waiting:
            if now_ms >= call.deadline_ms and not call.done:
                call.sent = True
                call.fail(error(call))
        self._waiting = [(call, deliver) for call, deliver in self._waiting if not call.done]

    def lose_leadership(self) -> None:
        """Hand back what waits."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._take_back([call for call, _ in waiting], True)
