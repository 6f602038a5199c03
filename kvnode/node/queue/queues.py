"""What a node has for queues: the dispatcher, for the time in which it leads, and its own consumers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kvnode.base.errors import KvError
from kvnode.node.calls import Call
from kvnode.node.queue.consumer import Consumer, Submit
from kvnode.node.queue.dispatcher import Dispatcher, DueKeys
from kvnode.node.queue.settler import Begin, Settler, Write
from kvnode.proto.kv.v1 import kv_pb2

_TOKEN_PART_BYTES = 8


def node_token(node_id: int) -> bytes:
    """What the tokens of a node's pulls begin with."""
    return node_id.to_bytes(_TOKEN_PART_BYTES, "big")


class Queues:
    """One node's part in queues.

    Args:
        node_id: of this node.
        state: shows the applied state.
        wake: tells the driver that there is a claim to make.
        submit: routes an operation, wherever the leader is.
        write, begin: for the settler.
        take_back: takes pulls that this node can no longer answer.
        log_time: what due times are judged by, now.
        monotonic_ms: for deadlines.
    """

    def __init__(
        self,
        node_id: int,
        state: DueKeys,
        wake: Callable[[], None],
        submit: Submit,
        write: Write,
        begin: Begin,
        take_back: Callable[[list[Call], bool], None],
        log_time: Callable[[], int],
        monotonic_ms: Callable[[], float],
    ) -> None:
        self._node_token = node_token(node_id)
        self._listens_count = 0
        self._submit = submit
        self.settler = Settler(write, begin, lambda: self.dispatcher.claims_count > 0)
        release = partial(self.settler.release, unseen=True)
        self.dispatcher = Dispatcher(state, wake, release, take_back, log_time, monotonic_ms)
        self._consumers: dict[Consumer, None] = {}  # in the order of their coming

    @property
    def consumers_count(self) -> int:
        """Consumers that are connected to this node."""
        return len(self._consumers)

    def listen(
        self,
        database: int,
        opening: tuple[str, int, str],
        deliver: Callable[[list[kv_pb2.QueueMessage]], None],
        failed: Callable[[KvError], None],
        takes: Callable[[], bool] = lambda: True,
    ) -> Consumer:
        """A consumer; `leave` ends it.

        Args:
            opening: (queue, lease in ms or 0, the consumer's name), validated.
            deliver, failed, takes: see Consumer.
        """
        queue, lease_ms, name = opening
        self._listens_count += 1
        consumer = Consumer(
            self._submit,
            self.settler,
            database=database,
            queue=queue,
            lease_ms=lease_ms,
            name=name,
            token=self._node_token + self._listens_count.to_bytes(_TOKEN_PART_BYTES, "big"),
            deliver=deliver,
            failed=failed,
            takes=takes,
        )
        self._consumers[consumer] = None
        return consumer

    def leave(self, consumer: Consumer, *, give_back: bool) -> None:
        """The consumer's stream has ended."""
        self._consumers.pop(consumer, None)
        consumer.close(give_back=give_back)

    def peer_left(self, node_id: int) -> None:
        """The stream on which that node's pulls came is over: what is dealt to them would be lost on the way."""
        self.dispatcher.cancel(node_token(node_id))

    async def close(self) -> None:
        """The node stops."""
        for consumer in list(self._consumers):
            self.leave(consumer, give_back=False)
        self.dispatcher.close()
        await self.settler.close()
