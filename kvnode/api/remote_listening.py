"""A listener at a gateway without data: what it says goes on to a node, and what the node says comes back.

The gateway keeps the books that a client would: how many messages may still come, which leases are held, what was
decided about them and is not confirmed. When its node dies the next stream, at another node, begins with all of it, so
that the client feels a pause. Pings are the gateway's own. While MAX_LISTENER_UNSENT_BYTES wait for the client nothing
is read from the node, whose own bound then holds.

As at a node, a client that leaves has its messages given back at once; a gateway that stops leaves them with the
client, which takes them along to another gateway or node. One that is killed cannot say so: they are given back, and
come again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from random import Random

from kvnode.api.auth.gate import Gate, Permit
from kvnode.api.listener_outbox import ListenerOutbox
from kvnode.api.queue_listening import actions_of, node_stopping, validate_opening
from kvnode.api.remote_backend import Reach
from kvnode.base import limits
from kvnode.base.errors import KvError, Unavailable
from kvnode.client.endpoints import Endpoints
from kvnode.client.listen_stream import listen_until_refused
from kvnode.machine.queue.errors import too_much_credit
from kvnode.proto.kv.v1 import queue_pb2

_log = logging.getLogger(__name__)


class RemoteListening:
    """See kvnode.api.queue_listening.Listening, which has the same methods.

    Attributes:
        ended: fails with the KvError by which it ends, unless the client ends it.
        relay: ends when no node is called any more.

    Args:
        name: of the gateway.
        reach: the nodes.
        permit, gate, opening, stopping: as for Listening.

    Raises:
        InvalidRequest: the opening is wrong.
    """

    def __init__(
        self,
        name: str,
        reach: Reach,
        permit: Permit,
        gate: Gate,
        opening: queue_pb2.ListenOpen,
        stopping: asyncio.Future[None],
    ) -> None:
        validate_opening(opening)
        self._outbox = ListenerOutbox(permit, self._end)
        self.ended = self._outbox.ended
        self._name = name
        self._opening = queue_pb2.ListenOpen(queue=opening.queue, consumer=opening.consumer, lease_ms=opening.lease_ms)
        self._stopping = stopping
        self._credit = 0
        self._held = dict.fromkeys(opening.held)
        self._deciding: dict[bytes, queue_pb2.ListenRequest] = {}  # what was said of a lease and is not confirmed
        self._out = queue_pb2.ListenRequest()
        self._out_ready = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._leaving = False
        self._client_leaves = False
        self._unfollow = gate.follow(self._outbox.judge)
        stopping.add_done_callback(self._gateway_stops)
        self.relay = asyncio.get_running_loop().create_task(self._relay(reach))

    # The client.

    def take(self, request: queue_pb2.ListenRequest) -> None:
        """What the client says. Raises InvalidRequest, after which the listener is to be closed."""
        actions_of(request)
        for lease in request.ack:
            self._decide(lease, queue_pb2.ListenRequest(ack=[lease]))
        for nack in request.nack:
            self._decide(nack.lease, queue_pb2.ListenRequest(nack=[nack]))
        for lease in request.release:
            self._decide(lease, queue_pb2.ListenRequest(release=[lease]))
        for lease in request.unseen:
            self._decide(lease, queue_pb2.ListenRequest(unseen=[lease]))
        for lease in request.settled:
            self._held.pop(lease, None)
        if self._credit + len(self._held) + request.credit > limits.MAX_CONSUMER_IN_FLIGHT_COUNT:
            raise too_much_credit()
        self._credit += request.credit
        credit = self._out.credit + request.credit
        self._out.MergeFrom(request)
        self._out.credit = credit
        self._out.ClearField("open")
        if request.leaving:
            self._client_leaves = True
            self._credit = 0
            self._out.ClearField("credit")
            self._give_back_unsent()
        self._out_ready.set()

    def responses(self) -> AsyncGenerator[queue_pb2.ListenResponse, None]:
        """See ListenerOutbox.responses."""
        lease_ms = self._opening.lease_ms or limits.DEFAULT_QUEUE_LEASE_MS
        opened = queue_pb2.ListenOpened(node=self._name, lease_ms=lease_ms)
        return self._outbox.responses(opened, lambda: not self._deciding, self._make_room)

    def _make_room(self) -> None:
        if self._outbox.has_room:
            self._room.set()

    def finish(self) -> None:
        """See ListenerOutbox.finish."""
        self._outbox.finish()

    def keep(self) -> None:
        """See ListenStream."""
        self._give_back_unsent()
        self._leave()
        asyncio.get_running_loop().call_later(limits.LISTENERS_STOP_TIMEOUT_MS / 1_000, self.relay.cancel)

    def close(self) -> None:
        """Over; called in any case."""
        self._unfollow()
        self._stopping.remove_done_callback(self._gateway_stops)
        if not self._leaving:
            self.relay.cancel()
        self._outbox.close()

    async def left(self) -> None:
        """Wait until the node has been told what is to become of the leases."""
        await asyncio.wait((self.relay,), timeout=limits.LISTENERS_STOP_TIMEOUT_MS / 1_000)
        self.relay.cancel()
        await asyncio.gather(self.relay, return_exceptions=True)

    def _give_back_unsent(self) -> None:
        for lease in self._outbox.take_unsent():
            self._decide(lease, queue_pb2.ListenRequest(unseen=[lease]))
            self._out.unseen.append(lease)

    def _decide(self, lease: bytes, said: queue_pb2.ListenRequest) -> None:
        self._held.pop(lease, None)
        self._deciding[lease] = said

    def _end(self, error: KvError) -> None:
        self._outbox.end(error)
        self._room.set()

    def _gateway_stops(self, _stopping: asyncio.Future[None]) -> None:
        self._leave()
        self._end(node_stopping())

    def _leave(self) -> None:
        """The leases stay with the client: the node is to hold them for nobody, and hears nothing more."""
        self._out.settled.extend(self._held)
        self._out.ClearField("credit")
        self._leaving = True
        self._out_ready.set()

    # The node.

    async def _relay(self, reach: Reach) -> None:
        endpoints = Endpoints(reach.addresses, Random())
        try:
            refusal = await listen_until_refused(self, endpoints, reach.metadata, reach.credentials)
        except Exception as error:
            _log.exception("a listener's stream failed in a way that nobody foresaw")
            refusal = Unavailable(f"the gateway failed ({type(error).__name__}); listen again")
        if refusal is not None:
            self._end(refusal)

    def first_request(self) -> queue_pb2.ListenRequest:
        """See ListenSide."""
        request = queue_pb2.ListenRequest(open=self._opening, credit=self._credit, leaving=self._client_leaves)
        request.open.held.extend(self._held)
        request.extend.extend(self._held)
        for said in self._deciding.values():
            request.MergeFrom(said)
        self._out = queue_pb2.ListenRequest()
        return request

    async def next_request(self) -> queue_pb2.ListenRequest | None:
        """See ListenSide."""
        while True:
            await self._out_ready.wait()
            self._out_ready.clear()
            request, self._out = self._out, queue_pb2.ListenRequest()
            if request.ByteSize():
                if self._leaving:
                    self._out_ready.set()  # and then nothing more
                return request
            if self._leaving:
                return None

    async def take_response(self, response: queue_pb2.ListenResponse) -> None:
        """See ListenSide."""
        outbox = self._outbox
        # What was on its way when the client left has no credit any more.
        self._credit = max(0, self._credit - len(response.messages))
        for message in response.messages:
            self._held[message.lease] = None
            outbox.unsent_bytes += len(message.payload.data)
        for lease in response.settled:
            self._deciding.pop(lease, None)
        for failed in response.failed:
            if self._deciding.pop(failed.lease, None) is None and failed.error.code == "LEASE_LOST":
                self._held.pop(failed.lease, None)
        outbox.unsent.messages.extend(response.messages)
        outbox.unsent.settled.extend(response.settled)
        outbox.unsent.failed.extend(response.failed)
        outbox.push()
        while not outbox.has_room and not self.ended.done():
            self._room.clear()
            await self._room.wait()
