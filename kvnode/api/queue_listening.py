"""One listener of a queue at a node, whatever carries it: messages down; credit, acks and their like up.

What the client says is taken in at once; acks end in the node's settler, where they gather with those of others.
`responses` gives whatever has come since the last response: deliveries, what was settled, what failed. While
MAX_LISTENER_UNSENT_BYTES wait to be sent, no more are pulled, so that a client which does not read costs no memory.

How it ends says what becomes of the messages the client held. The client left, broke off, or may listen no longer:
they are given back at once. The node stops, or is cut off from every leader: the client goes on at another node and
takes its leases along, so nothing is given back. Nor is it when its token's rate was exceeded: the client comes again
after a pause; what has not been sent to it by then is somebody else's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial

from kvnode.api.auth.gate import Gate, Permit
from kvnode.api.listener_outbox import ListenerOutbox
from kvnode.api.ports import ServedNode
from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, KvError, Unavailable
from kvnode.client.status import error_to_proto
from kvnode.machine.queue.keys import ID_BYTES as LEASE_BYTES
from kvnode.machine.queue.validate import validate_action, validate_pull
from kvnode.node.queue.consumer import Consumer
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2


def node_stopping() -> Unavailable:
    """Why a stream ends when its node does."""
    return Unavailable("the node is stopping; listen at another one", code="NODE_STOPPING")


def validate_opening(opening: queue_pb2.ListenOpen) -> None:
    """Raises InvalidRequest: BAD_QUEUE_NAME, BAD_LEASE_TIME, CONSUMER_NAME_TOO_LONG, TOO_MUCH_CREDIT, BAD_LEASE."""
    validate_pull(
        kv_pb2.QueuePull(queue=opening.queue, max_count=1, consumer=opening.consumer, lease_ms=opening.lease_ms)
    )
    if len(opening.held) > limits.MAX_CONSUMER_IN_FLIGHT_COUNT:
        raise InvalidRequest(
            "TOO_MUCH_CREDIT", f"A consumer holds at most {limits.MAX_CONSUMER_IN_FLIGHT_COUNT} messages."
        )
    for at, lease in enumerate(opening.held):  # one that cannot be would take a place of the credit for ever
        if len(lease) != LEASE_BYTES:
            raise InvalidRequest(
                "BAD_LEASE",
                f"Lease {at} in `held` has {len(lease)} bytes: a lease is {LEASE_BYTES} bytes, as the message it came "
                "with has it.",
            )


def actions_of(request: queue_pb2.ListenRequest) -> list[tuple[bytes, kv_pb2.QueueAction]]:
    """What it settles, by lease. Raises InvalidRequest: BAD_LEASE, BAD_DEADLINE."""
    actions = [(lease, _ack(lease)) for lease in request.ack]
    actions += [(nack.lease, kv_pb2.QueueAction(nack=nack)) for nack in request.nack]
    for leases, unseen in ((request.release, False), (request.unseen, True)):
        actions += [
            (lease, kv_pb2.QueueAction(release=kv_pb2.QueueRelease(lease=lease, unseen=unseen))) for lease in leases
        ]
    for _, action in actions:
        validate_action(action)
    for lease in request.extend:
        validate_action(kv_pb2.QueueAction(extend=kv_pb2.QueueExtend(lease=lease)))
    return actions


def _ack(lease: bytes) -> kv_pb2.QueueAction:
    action = kv_pb2.QueueAction()
    action.ack.lease = lease
    return action


class Listening:
    """The node's side of one listener.

    Args:
        node: has the queues.
        permit: what the client may do, and with which database; judged again when the directory changes, and before
            each response, since a token that expires changes nothing there.
        gate: says when the directory changes.
        opening: what the client listens to.
        stopping: done when the node is about to stop.

    Attributes:
        ended: fails with the KvError by which it ends, unless the client ends it.

    Raises:
        InvalidRequest: the opening is wrong.
    """

    def __init__(
        self,
        node: ServedNode,
        permit: Permit,
        gate: Gate,
        opening: queue_pb2.ListenOpen,
        stopping: asyncio.Future[None],
    ) -> None:
        validate_opening(opening)
        self._outbox = ListenerOutbox(permit, self._end)
        self.ended = self._outbox.ended
        self._node = node
        self._stopping = stopping
        self._settling_count = 0
        self._cut_off = False
        self._kept = False
        self._database = permit.database
        self._consumer: Consumer = node.queues.listen(
            permit.database,
            (opening.queue, opening.lease_ms, opening.consumer),
            self._deliver,
            self._end,
            lambda: self._outbox.has_room,
        )
        self._consumer.hold(opening.held)
        self._unfollow = gate.follow(self._outbox.judge)
        stopping.add_done_callback(self._node_stops)

    def take(self, request: queue_pb2.ListenRequest) -> None:
        """What the client says. Raises InvalidRequest, after which the listener is to be closed."""
        actions = actions_of(request)
        self._settling_count += len(actions)
        for lease, action in actions:
            self._consumer.settle(lease, action, partial(self._settled, lease))
        for lease in request.extend:
            self._consumer.extend(lease, partial(self._extended, lease))
        self._consumer.forget(request.settled)
        if request.credit:
            self._consumer.grant(request.credit)
        if request.leaving:
            self._consumer.take_no_more()
            self._give_back_unsent()

    def responses(self) -> AsyncGenerator[queue_pb2.ListenResponse, None]:
        """See ListenerOutbox.responses."""
        opened = queue_pb2.ListenOpened(node=self._node.name, lease_ms=self._consumer.lease_ms)
        return self._outbox.responses(opened, lambda: not self._settling_count, self._consumer.resume)

    def finish(self) -> None:
        """See ListenerOutbox.finish."""
        self._outbox.finish()

    def keep(self) -> None:
        """See ListenStream."""
        self._kept = True

    def close(self) -> None:
        """Over; called in any case."""
        self._unfollow()
        self._stopping.remove_done_callback(self._node_stops)
        goes_on = self._stopping.done() or self._cut_off or self._kept
        if self._kept:
            self._give_back_unsent()
        self._node.queues.leave(self._consumer, give_back=not goes_on)
        self._outbox.close()

    def _give_back_unsent(self) -> None:
        unsent = self._outbox.take_unsent()
        self._consumer.forget(unsent)
        self._node.queues.settler.release(self._database, unsent, unseen=True)

    def _node_stops(self, _stopping: asyncio.Future[None]) -> None:
        self._end(node_stopping())

    def _end(self, error: KvError) -> None:
        """No message will come any more, and this is why."""
        if self._outbox.end(error):
            self._cut_off = error.code == "NODE_CUT_OFF"

    def _deliver(self, messages: list[kv_pb2.QueueMessage]) -> None:
        self._outbox.unsent.messages.extend(messages)
        self._outbox.unsent_bytes += sum(len(message.payload.data) for message in messages)
        self._outbox.push()

    def _settled(self, lease: bytes, error: KvError | None) -> None:
        self._settling_count -= 1
        if error is None:
            self._outbox.unsent.settled.append(lease)
        else:
            self._fail(lease, error)
        self._outbox.push()

    def _extended(self, lease: bytes, error: KvError | None) -> None:
        if error is not None:
            self._fail(lease, error)
            self._outbox.push()

    def _fail(self, lease: bytes, error: KvError) -> None:
        self._outbox.unsent.failed.add(lease=lease, error=error_to_proto(error, self._node.name))
