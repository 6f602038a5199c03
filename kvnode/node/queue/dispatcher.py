"""The leader's dispatcher: from messages that fall due to the consumers that wait for them.

Theory of operation. A consumer's node sends *pulls* (kv.proto, QueuePull); they are operations like any other, so that
they are forwarded, held while there is no leader, and sent again to a new one. At the leader they wait here, per queue
and in the order of their arrival.

    pulls wait ──┐
                 ├─► a message is due ─► claim through the log ─► committed ─► dealt out to pulls ─► answers
    messages ────┘

Claims are made last in every entry (proposals.py), after the writes that it carries: one for each queue that has pulls
and may have messages. So a message for which somebody waits is enqueued and claimed in one entry, with one fsync and
one commit, and delivered when that is committed. A queue may have messages when the entry brings it some, and when a
*look* says so: one ordered scan of the state when a pull arrives, when a run of the log leaves messages waiting or
shows a claim, when a claim comes back, and by a timer when the next message falls due. The state still lists what is
claimed and not yet applied: a look reads as many keys as that may be, plus one. So it is not repeated for every pull
that comes before its claim is made, or, when it found nothing, before the state moves on. Nothing here grows with the
number of messages that wait. A claim asks for as much as all waiting pulls want.

What a claim brings is dealt out one by one in the order of the pulls, so that few messages are spread and no consumer
starves; a pull is answered with what it got and waits no longer. Two claims may be under way for one pull: what the
second brings is left over, until the consumer, which was answered by the first, has asked again; what nobody asks for
within QUEUE_LEFT_OVER_MS is released.

When leadership is lost the pulls go back to where they came from, and what is left over is released. A claim that
commits afterwards still comes back here and is released; one whose fate is not heard of expires.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Protocol

from kvnode.base import limits
from kvnode.base.errors import Unavailable
from kvnode.client.status import error_from_proto
from kvnode.codec.row import Row
from kvnode.machine.queue import keys
from kvnode.machine.queue.arrivals import QueueId
from kvnode.machine.queue.errors import pull_of_a_client
from kvnode.node.calls import RETRIED_CODES, Call
from kvnode.node.ports import Origin
from kvnode.proto.kv.v1 import kv_pb2


class DueKeys(Protocol):
    """Where waiting messages are found (the applied state)."""

    def scan_keys(self, start: bytes, end: bytes, limit: int) -> list[bytes]:
        """See kvnode.machine.state_reader."""


class _Queue:
    """What the dispatcher knows of one queue with pulls or claims."""

    __slots__ = ("claimed_count", "claims_count", "hidden", "is_seen_through", "left", "left_timer", "pulls",
                 "timer")  # fmt: skip

    def __init__(self) -> None:
        self.pulls: deque[Call] = deque()
        self.claims_count = 0
        self.claimed_count = 0  # messages that the claims under way bring
        # (index, messages) of each claim that the state does not show yet: it may still list them as waiting.
        self.hidden: deque[tuple[int, int]] = deque()
        # A look has passed over all that is hidden, for nothing: it would again, until the state or the timer moves on.
        self.is_seen_through = False
        self.timer: asyncio.TimerHandle | None = None
        self.left: list[kv_pb2.QueueMessage] = []  # claimed for pulls that are answered by now
        self.left_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        return not (self.pulls or self.claims_count or self.hidden or self.left)

    @property
    def wanted_count(self) -> int:
        """Messages that the pulls want beyond what is claimed for them."""
        return sum(map(_wanted, self.pulls)) - self.claimed_count - len(self.left)

    @property
    def hidden_count(self) -> int:
        return sum([count for _, count in self.hidden])

    def shown_to(self, index: int) -> bool:
        """The state shows that index; returns whether it showed a claim."""
        self.is_seen_through = False
        hidden, before = self.hidden, len(self.hidden)
        while hidden and hidden[0][0] <= index:
            hidden.popleft()
        return len(hidden) < before


class Dispatcher:
    """The pulls that wait at one node; it is at work while the node leads.

    Args:
        state: shows the applied state.
        wake: tells the driver that there is a claim to make.
        release: gives leases of a database back.
        take_back: takes pulls that this node can no longer answer.
        log_time: what due times are judged by, now.
        monotonic_ms: for deadlines.
    """

    def __init__(
        self,
        state: DueKeys,
        wake: Callable[[], None],
        release: Callable[[int, Iterable[bytes]], None],
        take_back: Callable[[list[Call], bool], None],
        log_time: Callable[[], int],
        monotonic_ms: Callable[[], float],
    ) -> None:
        self._state = state
        self._wake = wake
        self._release = release
        self._take_back = take_back
        self._log_time = log_time
        self._monotonic_ms = monotonic_ms
        self._queues: dict[QueueId, _Queue] = {}
        self._claimable: dict[QueueId, None] = {}  # that may have messages
        self._hiding: dict[QueueId, None] = {}  # with claims that the state does not show yet
        self._pulls_count = 0
        self.claims_count = 0  # under way

    @property
    def pulls_count(self) -> int:
        """Pulls that wait."""
        return self._pulls_count

    def add(self, call: Call) -> None:
        """A pull, or the cancelling of one, which has been validated.

        One of a client's own session is refused. Nobody would notice that the client has gone, so what it waited for
        would be claimed for nobody; and a token of its making may be another's, in whatever database.
        """
        assert call.operation is not None
        if call.origin.client_id:
            call.fail(pull_of_a_client())
            return
        pull = call.operation.pull
        if pull.cancel:
            self.cancel(pull.token)
            _answer(call, [])
            return
        if self._pulls_count >= limits.MAX_QUEUE_PULLS_COUNT:
            call.fail(Unavailable("too many consumers wait at the leader already; retry later", code="OVERLOADED"))
            return
        wait_ms = min(pull.wait_ms, limits.QUEUE_PULL_WAIT_MS)
        call.deadline_ms = min(call.deadline_ms, self._monotonic_ms() + wait_ms)
        queue_id = (call.database, pull.queue or keys.DEFAULT_QUEUE)
        queue = self._queues.setdefault(queue_id, _Queue())
        queue.pulls.append(call)
        self._pulls_count += 1
        if queue.left:
            asyncio.get_running_loop().call_soon(self._deal_left, queue_id)  # whoever asks is not answered within that
        else:
            self._look(queue_id)

    def applied(self, index: int, writes: Mapping[bytes, Row | None]) -> None:
        """A run of the log to that index was applied, and wrote these rows, messages that wait perhaps among them."""
        if not self._queues:
            return
        touched = self._shown_to(index)
        if self._pulls_count:
            for key, row in writes.items():
                if row is not None and keys.is_due_key(key):
                    touched[keys.database_of_key(key), keys.queue_of_due_key(key)] = None
        for queue_id in touched:
            self._look(queue_id)
            self._forget_if_idle(queue_id)

    # For the entry that is being made.

    @property
    def has_claims(self) -> bool:
        """Whether some queue may have messages for its pulls."""
        return bool(self._claimable)

    def arrived(self, queue_ids: Iterable[QueueId]) -> None:
        """The entry that is being made brings messages to these queues."""
        for queue_id in queue_ids:
            queue = self._queues.get(queue_id)
            if queue is not None and queue.pulls:
                self._claimable[queue_id] = None

    def next_claim(self) -> Call | None:
        """The next claim to be resolved; then say what it `took`."""
        while self._claimable:
            queue_id = next(iter(self._claimable))
            del self._claimable[queue_id]
            queue = self._queues.get(queue_id)
            if queue is None:
                continue
            wanted = queue.wanted_count
            if wanted > 0:
                return self._claim(queue_id, queue, min(wanted, limits.MAX_QUEUE_TOUCHED_COUNT))
        return None

    def took(self, claim: Call, count: int, index: int) -> None:
        """It is in the entry at `index`, with that many messages; with none it is not, and will not be answered."""
        queue_id = (claim.database, _claim_of(claim).queue)
        queue = self._queues[queue_id]
        if count:
            queue.claims_count += 1
            self.claims_count += 1
            queue.claimed_count += count
            queue.hidden.append((index, count))
            self._hiding[queue_id] = None
            claim.deliver = partial(self._claimed, queue_id, count)
        elif queue.timer is None:
            pause_s = limits.QUEUE_EMPTY_CLAIM_PAUSE_MS / 1_000
            queue.timer = asyncio.get_running_loop().call_later(pause_s, self._timer_fired, queue_id)

    # For the time in which this node leads.

    def cancel(self, token: bytes) -> None:
        """Whoever waits under a token that begins so waits no longer: a consumer has left, or its whole node."""
        for queue_id, queue in list(self._queues.items()):
            gone = [call for call in queue.pulls if _token(call).startswith(token)]
            if gone:
                self._keep(queue, [call for call in queue.pulls if call not in gone])
                for call in gone:
                    _answer(call, [])
                self._forget_if_idle(queue_id)

    def replaced(self, index: int) -> None:
        """A snapshot has replaced the state, which is at that index now."""
        self._shown_to(index)
        for queue_id in list(self._queues):
            self._look(queue_id)
            self._forget_if_idle(queue_id)

    def sweep(self, now_ms: float) -> None:
        """Answer pulls that have waited long enough."""
        if not self._pulls_count:
            return
        for queue_id, queue in list(self._queues.items()):
            if not any(now_ms >= call.deadline_ms for call in queue.pulls):
                continue
            late = [call for call in queue.pulls if now_ms >= call.deadline_ms]
            self._keep(queue, [call for call in queue.pulls if now_ms < call.deadline_ms])
            for call in late:
                _answer(call, [])
            self._forget_if_idle(queue_id)

    def term_began(self) -> None:
        """Another term, whoever leads in it: that leader applies all that it inherits before it makes a claim.

        What older claims took is shown by then, or their entries are gone and their indexes may be far away.
        """
        for queue_id in self._hiding:
            queue = self._queues[queue_id]
            queue.hidden.clear()
            queue.is_seen_through = False
            self._forget_if_idle(queue_id)
        self._hiding.clear()

    def lose_leadership(self) -> None:
        """Hand back every pull; claims under way are answered by the log, or never."""
        self._claimable.clear()
        stranded: list[Call] = []
        for queue_id, queue in list(self._queues.items()):
            stranded.extend(queue.pulls)
            self._keep(queue, [])
            self._release_left(queue_id)
        if stranded:
            self._take_back(stranded, False)

    def close(self) -> None:
        """The node stops."""
        for queue in self._queues.values():
            for timer in (queue.timer, queue.left_timer):
                if timer is not None:
                    timer.cancel()
        self._queues.clear()
        self._hiding.clear()
        self._pulls_count = 0

    def _shown_to(self, index: int) -> dict[QueueId, None]:
        """The state shows that index: the queues of which it showed claims."""
        shown = {queue_id: None for queue_id in self._hiding if self._queues[queue_id].shown_to(index)}
        for queue_id in shown:
            if not self._queues[queue_id].hidden:
                del self._hiding[queue_id]
        return shown

    def _keep(self, queue: _Queue, pulls: list[Call]) -> None:
        self._pulls_count -= len(queue.pulls) - len(pulls)
        queue.pulls = deque(pulls)

    def _forget_if_idle(self, queue_id: QueueId) -> None:
        queue = self._queues.get(queue_id)
        if queue is not None and queue.is_idle:
            if queue.timer is not None:
                queue.timer.cancel()
            del self._queues[queue_id]

    def _look(self, queue_id: QueueId) -> None:
        """Claim what is due, or set the timer for what will be."""
        queue = self._queues.get(queue_id)
        if queue is None or not queue.pulls or queue.is_seen_through:
            return
        if queue_id in self._claimable:
            self._wake()
            return
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
        if queue.wanted_count <= 0:
            return
        database, name = queue_id
        # The first of the waiting ones are those that claims have taken.
        beyond = queue.hidden_count + 1
        found = self._state.scan_keys(keys.due_prefix(database, name), keys.due_end(database, name), beyond)
        if len(found) < beyond:
            queue.is_seen_through = bool(queue.hidden)
            return
        due_ms, _ = keys.due_of_key(found[-1])
        in_ms = due_ms - self._log_time()
        if in_ms > 0:
            queue.is_seen_through = bool(queue.hidden)
            delay_ms = min(in_ms, limits.MAX_QUEUE_TIMER_MS)
            queue.timer = asyncio.get_running_loop().call_later(delay_ms / 1_000, self._timer_fired, queue_id)
            return
        self._claimable[queue_id] = None
        self._wake()

    def _timer_fired(self, queue_id: QueueId) -> None:
        queue = self._queues.get(queue_id)
        if queue is not None:
            queue.timer = None
            queue.is_seen_through = False
            self._look(queue_id)

    def _claim(self, queue_id: QueueId, queue: _Queue, count: int) -> Call:
        database, name = queue_id
        operation = kv_pb2.Operation()
        claim = operation.write.actions.add().claim
        claim.queue, claim.max_count = name, count
        claim.lease_ms = max(_lease_ms(call) for call in queue.pulls)  # nobody gets a shorter one than he asked for
        # It goes no further than this node: another leader has pulls of its own.
        return Call(
            operation,
            Origin(b"", 0, database),
            partial(self._claimed, queue_id, 0),
            None,
            self._monotonic_ms(),
            limits.MAX_OPERATION_TIMEOUT_MS,
            forwarded=True,
        )

    def _claimed(self, queue_id: QueueId, count: int, result: kv_pb2.OperationResult) -> None:
        queue = self._queues.get(queue_id)
        self.claims_count -= count > 0
        if queue is not None and count:
            queue.claims_count -= 1
            queue.claimed_count -= count
        if result.HasField("error"):
            if queue is not None:
                self._claim_failed(queue_id, queue, result.error)
            return
        messages = [message for outcome in result.write.results for message in outcome.messages]
        if queue is None:
            self._release(queue_id[0], [message.lease for message in messages])
            return
        self._leave_over(queue_id, queue, self._deal(queue, messages))
        self._look(queue_id)
        self._forget_if_idle(queue_id)

    def _leave_over(self, queue_id: QueueId, queue: _Queue, messages: list[kv_pb2.QueueMessage]) -> None:
        queue.left.extend(messages)
        if queue.left and queue.left_timer is None:
            delay_s = limits.QUEUE_LEFT_OVER_MS / 1_000
            queue.left_timer = asyncio.get_running_loop().call_later(delay_s, self._release_left, queue_id)

    def _take_left(self, queue: _Queue) -> list[kv_pb2.QueueMessage]:
        if queue.left_timer is not None:
            queue.left_timer.cancel()
            queue.left_timer = None
        left, queue.left = queue.left, []
        return left

    def _deal_left(self, queue_id: QueueId) -> None:
        queue = self._queues.get(queue_id)
        if queue is not None:
            self._leave_over(queue_id, queue, self._deal(queue, self._take_left(queue)))
            self._look(queue_id)
            self._forget_if_idle(queue_id)

    def _release_left(self, queue_id: QueueId) -> None:
        """Nobody has asked for it, or nobody will here."""
        left = self._take_left(self._queues[queue_id])
        if left:
            self._release(queue_id[0], [message.lease for message in left])
        self._forget_if_idle(queue_id)

    def _claim_failed(self, queue_id: QueueId, queue: _Queue, error: kv_pb2.Error) -> None:
        """Pulls whose leader is another now go back; for any other failure each is told of it."""
        pulls = list(queue.pulls)
        self._keep(queue, [])
        self._forget_if_idle(queue_id)
        if error.code in RETRIED_CODES:
            self._take_back(pulls, False)
            return
        for call in pulls:
            call.fail(error_from_proto(error))

    def _deal(self, queue: _Queue, messages: list[kv_pb2.QueueMessage]) -> list[kv_pb2.QueueMessage]:
        """Answer pulls; what is left over is returned."""
        waiting = [call for call in queue.pulls if not call.done]
        if len(waiting) == 1:
            dealt = _wanted(waiting[0])
            hands = [messages[:dealt]]
        else:
            hands, dealt = _in_turns([_wanted(call) for call in waiting], messages)
        self._keep(queue, [call for call, hand in zip(waiting, hands, strict=True) if not hand])
        for call, hand in zip(waiting, hands, strict=True):
            if hand:
                _answer(call, hand)
        return messages[dealt:]


def _in_turns(wanted: list[int], messages: list[kv_pb2.QueueMessage]) -> tuple[list[list[kv_pb2.QueueMessage]], int]:
    """One message each, again and again, until nobody wants more; and how many that were."""
    hands: list[list[kv_pb2.QueueMessage]] = [[] for _ in wanted]
    dealt = 0
    while dealt < len(messages):
        before = dealt
        for count, hand in zip(wanted, hands, strict=True):
            if len(hand) < count and dealt < len(messages):
                hand.append(messages[dealt])
                dealt += 1
        if dealt == before:
            break
    return hands, dealt


def _claim_of(call: Call) -> kv_pb2.QueueClaim:
    assert call.operation is not None
    return call.operation.write.actions[0].claim


def _wanted(call: Call) -> int:
    assert call.operation is not None
    return call.operation.pull.max_count


def _token(call: Call) -> bytes:
    assert call.operation is not None
    return call.operation.pull.token


def _lease_ms(call: Call) -> int:
    assert call.operation is not None
    return call.operation.pull.lease_ms or limits.DEFAULT_QUEUE_LEASE_MS


def _answer(call: Call, messages: list[kv_pb2.QueueMessage]) -> None:
    assert call.operation is not None
    result = kv_pb2.OperationResult(id=call.operation.id)
    result.pulled.SetInParent()  # there may be none
    result.pulled.messages.extend(messages)
    call.answer(result)
