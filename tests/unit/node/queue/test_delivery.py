"""Messages from their transaction to consumers on any of three nodes, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from unittest.mock import patch

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.machine.queue import keys
from kvnode.node.calls import Call
from kvnode.node.driver import Driver
from kvnode.node.ports import Origin
from kvnode.node.queue.consumer import Consumer
from kvnode.node.queue.dispatcher import Dispatcher
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.raft.messages import MessageKind
from tests.simulation.cluster import Server
from tests.unit.node.cluster import SUCCESS, Trio, on_trio, put, until, write


def enqueue(*payloads: bytes, **more: object) -> kv_pb2.AtomicWriteRequest:
    request = kv_pb2.AtomicWriteRequest()
    for payload in payloads:
        made = request.enqueues.add(**more)
        made.payload.data, made.payload.encoding = payload, kv_pb2.VALUE_ENCODING_BYTES
    return request


def operation(request: kv_pb2.AtomicWriteRequest) -> kv_pb2.Operation:
    return kv_pb2.Operation(id=1, write=request)


class Listener:
    """A consumer on a node, and what it got."""

    def __init__(self, trio: Trio, server: Server, credit: int = 0, queue: str = "", lease_ms: int = 0) -> None:
        self.trio, self.server = trio, server
        self.got: list[kv_pb2.QueueMessage] = []
        self.at: list[float] = []
        self.errors: list[KvError] = []
        node = trio.node(server)
        self.consumer: Consumer = self.run(
            node.queues.listen, 1, (queue, lease_ms, "test"), self.take, self.errors.append
        )
        if credit:
            self.grant(credit)

    def run(self, call, *args, **more):  # type: ignore[no-untyped-def]
        return self.server.process.context.run(call, *args, **more)

    def take(self, messages: list[kv_pb2.QueueMessage]) -> None:
        self.got.extend(messages)
        self.at.extend([asyncio.get_running_loop().time()] * len(messages))

    def grant(self, count: int) -> None:
        self.run(self.consumer.grant, count)

    async def ack(self, message: kv_pb2.QueueMessage) -> KvError | None:
        """Acknowledge; what it came to."""
        ended: list[KvError | None] = []
        action = kv_pb2.QueueAction(ack=kv_pb2.QueueAck(lease=message.lease))
        self.run(self.consumer.settle, message.lease, action, ended.append)
        await until(lambda: bool(ended), 60.0, "an ack did not end")
        return ended[0]

    def leave(self, *, give_back: bool = True) -> None:
        self.run(self.trio.node(self.server).queues.leave, self.consumer, give_back=give_back)

    def payloads(self) -> list[bytes]:
        return [message.payload.data for message in self.got]


async def send(trio: Trio, server: Server, *payloads: bytes, **more: object) -> None:
    node = trio.node(server)
    answer = await trio.within(server, node.write(enqueue(*payloads, **more)))
    assert answer.status == SUCCESS


async def pass_one(trio: Trio, leader: Server, listener: Listener) -> None:
    """A first message, for which nodes open their own sessions."""
    await send(trio, leader, b"first")
    await until(lambda: len(listener.got) == 1, 5.0, "not delivered")
    assert await listener.ack(listener.got[0]) is None


def rows_of_queues(trio: Trio, server: Server) -> list[bytes]:
    """The keys of messages, due rows and leases on a node."""
    state = trio.node(server).state
    found = state.scan_keys(keys.SPACES_START, keys.SPACES_END, 10_000)
    return [key for key in found if key[4:5] in b"mdl"]


@on_trio
async def test_a_message_reaches_a_consumer_on_any_node_and_an_ack_removes_it(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    for at, sender in ((leader, one), (one, other), (other, leader)):
        listener = Listener(trio, at, credit=1)
        await send(trio, sender, b"hello")
        await until(lambda listener=listener: bool(listener.got), 5.0, "not delivered")  # type: ignore[misc]
        assert listener.payloads() == [b"hello"]
        assert await listener.ack(listener.got[0]) is None
        listener.leave()
    await trio.everywhere()
    for server in (leader, one, other):
        assert rows_of_queues(trio, server) == []


@on_trio
async def test_a_message_for_which_somebody_waits_takes_one_entry_and_its_ack_another(trio: Trio) -> None:
    leader, _, _ = await trio.leader_and_followers()
    listener = Listener(trio, leader, credit=10)
    await pass_one(trio, leader, listener)
    before = trio.node(leader).raft.last_index
    await send(trio, leader, *[b"%d" % number for number in range(5)])
    await until(lambda: len(listener.got) == 6, 5.0, "not delivered")
    assert trio.node(leader).raft.last_index == before + 1
    await asyncio.gather(*[listener.ack(message) for message in listener.got[1:]])
    assert trio.node(leader).raft.last_index == before + 2


def acknowledges_above(index: int) -> Callable[[int, int, peer_pb2.PeerBatch], bool]:
    """What the wire is to hold so that entries above that index do not commit."""

    def holds(source: int, target: int, batch: peer_pb2.PeerBatch) -> bool:
        return any(message.kind == MessageKind.APPEND_RESPONSE and message.index > index for message in batch.messages)

    return holds


@on_trio
async def test_an_ack_goes_with_the_next_entry_and_waits_a_moment_for_one(trio: Trio) -> None:
    leader, _, _ = await trio.leader_and_followers()
    listener = Listener(trio, leader, credit=10)
    await pass_one(trio, leader, listener)
    await send(trio, leader, b"one", b"two")
    await until(lambda: len(listener.got) == 3, 5.0, "not delivered")
    node = trio.node(leader)
    before = node.raft.last_index
    ended: list[KvError | None] = []
    action = kv_pb2.QueueAction(ack=kv_pb2.QueueAck(lease=listener.got[1].lease))
    listener.run(listener.consumer.settle, listener.got[1].lease, action, ended.append)
    await trio.put(leader, b"k")  # the handler of the other message is at work
    assert ended == [None]
    assert node.raft.last_index == before + 1

    await send(trio, leader, b"three", b"four")
    await until(lambda: len(listener.got) == 5, 5.0, "not delivered")
    before, at = node.raft.last_index, asyncio.get_running_loop().time()
    assert await listener.ack(listener.got[3]) is None
    assert node.raft.last_index == before + 1
    assert asyncio.get_running_loop().time() - at < limits.SETTLE_HOLD_MS / 1_000 + 0.1


@on_trio
async def test_a_message_is_delivered_when_its_claim_is_committed_though_not_yet_applied(trio: Trio) -> None:
    leader, _, _ = await trio.leader_and_followers()
    node = trio.node(leader)
    listener = Listener(trio, leader, credit=10)
    await pass_one(trio, leader, listener)
    index = node.raft.last_index + 1
    trio.wire.holds = acknowledges_above(index)
    trio.ask(leader, operation(enqueue(b"x")))
    await until(lambda: node.raft.last_index == index, 1)
    trio.ask(leader, operation(enqueue(b"behind")))
    await until(lambda: len(listener.got) == 2, 5.0, "not delivered")
    assert node.applied_index < index == node.raft.commit
    acked = asyncio.ensure_future(listener.ack(listener.got[1]))
    trio.wire.release()
    assert await acked is None, "the lease is known before the state shows it"
    await until(lambda: len(listener.got) == 3, 5.0, "not delivered")
    assert await listener.ack(listener.got[2]) is None
    await trio.everywhere()
    assert rows_of_queues(trio, leader) == []


@on_trio
async def test_a_look_passes_over_what_claims_have_taken_that_are_not_applied(trio: Trio) -> None:
    leader, _, _ = await trio.leader_and_followers()
    node = trio.node(leader)
    await send(trio, leader, *[b"%d" % number for number in range(5)])
    await trio.everywhere()
    first = Listener(trio, leader, credit=3)
    index = node.raft.last_index + 1
    trio.wire.holds = acknowledges_above(index)
    await until(lambda: node.raft.last_index == index, 1)
    trio.ask(leader, write(put(b"behind")))
    taken: list[int] = []
    original = Dispatcher.took

    def took(self: Dispatcher, claim: Call, count: int, index: int) -> None:
        taken.append(count)
        original(self, claim, count, index)

    with patch.object(Dispatcher, "took", took):
        await until(lambda: len(first.got) == 3, 1, "not delivered")
        assert node.applied_index < index
        others = [Listener(trio, leader, credit=1) for _ in range(3)]
        await asyncio.sleep(0.002)
        trio.wire.release()
        await until(lambda: sum(len(each.got) for each in others) == 2, 5.0, "the others were not delivered")
        await asyncio.sleep(1.0)
    assert sum(taken) == 2 and 0 not in taken, "what was taken already was looked for again"


@on_trio
async def test_pulls_that_come_together_share_one_look_past_what_claims_have_taken(trio: Trio) -> None:
    """Or a thousand consumers that ask again at once would each read a thousand keys."""
    leader, _, _ = await trio.leader_and_followers()
    node = trio.node(leader)
    for behind in (0, 20):  # nothing waits beyond what is claimed; something does
        await send(trio, leader, *[b"%d" % number for number in range(50 + behind)])
        await trio.everywhere()
        first = Listener(trio, leader, credit=50)
        index = node.raft.last_index + 1
        trio.wire.holds = acknowledges_above(index)
        await until(lambda index=index: node.raft.last_index == index, 1)  # type: ignore[misc]
        trio.ask(leader, write(put(b"behind")))
        await until(lambda first=first: len(first.got) == 50, 1, "not delivered")  # type: ignore[misc]
        assert node.applied_index < index
        original, looks = node.state.scan_keys, []

        def scan_keys(start: bytes, end: bytes, limit: int, original=original, looks=looks) -> list[bytes]:  # type: ignore[no-untyped-def]
            looks.append(limit)
            return original(start, end, limit)

        with patch.object(node.state, "scan_keys", scan_keys):
            others = [Listener(trio, leader, credit=1) for _ in range(20)]
        assert node.applied_index < index and looks == [51]
        trio.wire.release()
        await until(lambda behind=behind, others=others: sum(len(each.got) for each in others) == behind, 5.0)  # type: ignore[misc]
        await send(trio, leader, *[b"late"] * (20 - behind))
        await until(lambda others=others: all(each.got for each in others), 5.0, "not delivered")  # type: ignore[misc]
        for each in (first, *others):
            assert await asyncio.gather(*[each.ack(message) for message in each.got]) == [None] * len(each.got)
            each.leave()
    await trio.everywhere()
    assert rows_of_queues(trio, leader) == []


async def two_claims_for_one_pull(trio: Trio) -> tuple[Server, Listener]:
    """At a follower; the second comes back when the first has answered the pull, and before the next one is there."""
    leader, one, _ = await trio.leader_and_followers()
    listener = Listener(trio, one, credit=10)
    await pass_one(trio, leader, listener)
    await until(lambda: trio.node(leader).queues.dispatcher.pulls_count == 1, 5.0, "no pull")
    index = trio.node(leader).raft.last_index
    trio.wire.holds = acknowledges_above(index)
    for number in (1, 2):
        trio.ask(leader, operation(enqueue(b"%d" % number)))
        await until(lambda number=number: trio.node(leader).raft.last_index == index + number, 1)  # type: ignore[misc]
    return leader, listener


def queue_row(trio: Trio, server: Server) -> rows.QueueRow:
    row = trio.node(server).state.get(keys.queue_key(1, keys.DEFAULT_QUEUE))
    assert row is not None
    return rows.QueueRow.FromString(row.value)


@on_trio
async def test_what_a_second_claim_brings_waits_for_the_next_pull(trio: Trio) -> None:
    leader, listener = await two_claims_for_one_pull(trio)
    trio.wire.release()
    await until(lambda: len(listener.got) == 3, 1.0, "not delivered")
    for message in listener.got[1:]:
        assert await listener.ack(message) is None
    await asyncio.sleep(2 * limits.QUEUE_LEFT_OVER_MS / 1_000)
    await trio.everywhere()
    assert queue_row(trio, leader).claimed_total == 3, "it was given back and claimed once more"
    assert rows_of_queues(trio, leader) == []


@on_trio
async def test_what_nobody_asks_for_is_given_back(trio: Trio) -> None:
    """Its consumer is gone, and another comes later."""
    leader, listener = await two_claims_for_one_pull(trio)
    dispatcher = trio.node(leader).queues.dispatcher
    listener.consumer._ask = lambda: None  # type: ignore[method-assign]
    trio.wire.release()
    await until(lambda: any(queue.left for queue in dispatcher._queues.values()), 1.0, "nothing is left over")
    began = asyncio.get_running_loop().time()
    listener.leave()
    await until(lambda: not dispatcher._queues, 2.0, "it is still left over")
    took_ms = (asyncio.get_running_loop().time() - began) * 1_000
    assert took_ms < limits.QUEUE_LEFT_OVER_MS + 100
    await until(lambda: queue_row(trio, leader).waiting_count == 2, 2.0, "not given back")
    other = Listener(trio, leader, credit=5)
    await until(lambda: len(other.got) == 2, 1.0, "not delivered")


@on_trio
async def test_what_is_left_over_is_given_back_by_a_leader_that_leads_no_longer(trio: Trio) -> None:
    leader, listener = await two_claims_for_one_pull(trio)
    dispatcher = trio.node(leader).queues.dispatcher
    listener.consumer._ask = lambda: None  # type: ignore[method-assign]
    trio.wire.release()
    await until(lambda: any(queue.left for queue in dispatcher._queues.values()), 1.0, "nothing is left over")
    released: list[int] = []
    dispatcher._release = lambda database, leases: released.append(len([*leases]))
    dispatcher.lose_leadership()
    assert released == [1] and not any(queue.left for queue in dispatcher._queues.values())
    listener.leave()


@on_trio
async def test_what_the_claims_of_an_older_term_took_hides_nothing(trio: Trio) -> None:
    """Their entries may be gone, and their indexes far away."""
    leader, _, _ = await trio.leader_and_followers()
    node = trio.node(leader)
    dispatcher = node.queues.dispatcher
    listener = Listener(trio, leader, credit=10)
    await until(lambda: dispatcher.pulls_count == 1, 5.0, "no pull")
    (queue_id,) = dispatcher._queues
    dispatcher._queues[queue_id].hidden.append((node.raft.last_index + 1_000, 5))
    dispatcher._hiding[queue_id] = None
    dispatcher.term_began()
    assert not dispatcher._hiding and not dispatcher._queues[queue_id].hidden
    await send(trio, leader, b"x")
    await until(lambda: len(listener.got) == 1, 5.0, "not delivered")


@on_trio
async def test_claims_and_writes_make_room_for_one_another_in_full_entries(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    with patch.object(limits, "MAX_BATCH_TRANSACTIONS_COUNT", 1):
        listeners = [Listener(trio, one, credit=20, queue=name) for name in ("a", "b")]
        for number in range(10):
            await send(trio, leader, b"%d" % number, queue="ab"[number % 2])
        for listener in listeners:
            await until(lambda listener=listener: len(listener.got) == 5, 10.0, "not delivered")  # type: ignore[misc]
            for message in listener.got:
                assert await listener.ack(message) is None
    await trio.everywhere()
    assert rows_of_queues(trio, leader) == []


@on_trio
async def test_few_messages_are_spread_and_nobody_gets_more_than_its_credit(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    listeners = [Listener(trio, server, credit=4) for server in (leader, one, other)]
    await asyncio.sleep(1.0)  # the pulls of all are at the leader
    await send(trio, one, *[b"%d" % number for number in range(9)])
    await until(lambda: sum(len(each.got) for each in listeners) == 9, 5.0, "not delivered")
    assert [len(each.got) for each in listeners] == [3, 3, 3]
    await send(trio, one, *[b"%d" % number for number in range(9, 20)])
    await asyncio.sleep(2.0)
    assert [len(each.got) for each in listeners] == [4, 4, 4]
    assert len({message.id for each in listeners for message in each.got}) == 12


@on_trio
async def test_a_delayed_message_comes_within_100_ms_of_its_time(trio: Trio) -> None:
    _, one, other = await trio.leader_and_followers()
    listener = Listener(trio, one, credit=10)
    begun = asyncio.get_running_loop().time()
    for delay_ms in (70_000, 400, 3_000):
        await send(trio, other, b"%d" % delay_ms, delay_ms=delay_ms)
    for count in (1, 2, 3):
        await until(lambda count=count: len(listener.got) == count, 90.0, "not delivered")  # type: ignore[misc]
        await listener.ack(listener.got[-1])
    assert listener.payloads() == [b"400", b"3000", b"70000"]
    for at, delay_ms in zip(listener.at, (400, 3_000, 70_000), strict=True):
        assert delay_ms <= (at - begun) * 1_000 + 1
        # Judged by the leader's clock, which may be off from true time by its drift.
        assert (at - begun) * 1_000 < delay_ms * 1.001 + 200


@on_trio
async def test_what_a_consumer_holds_when_it_leaves_is_given_to_another_at_once(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    first = Listener(trio, one, credit=2)
    await send(trio, leader, b"a", b"b", no_retries=True)
    await until(lambda: len(first.got) == 2, 5.0, "not delivered")
    second = Listener(trio, other, credit=5)
    await asyncio.sleep(1.0)
    assert second.got == []
    lost = first.got[0]
    first.leave()
    await until(lambda: len(second.got) == 2, 2.0, "not given back")
    assert {message.attempt for message in second.got} == {2}
    late = Listener(trio, one)
    error = await late.ack(lost)
    assert error is not None
    assert error.code == "LEASE_LOST"


@on_trio
async def test_the_messages_of_a_consumer_that_says_nothing_come_again_when_its_lease_ends(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    silent = Listener(trio, one, credit=1, lease_ms=2_000)
    await send(trio, leader, b"a")
    await until(lambda: bool(silent.got), 5.0, "not delivered")
    given_at = silent.at[0]
    second = Listener(trio, other, credit=1)
    await until(lambda: bool(second.got), 5.0, "not delivered again")
    assert 1.9 < second.at[0] - given_at < 2.5


@on_trio
async def test_extended_leases_last_and_outlive_a_leader(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    holder = Listener(trio, one, credit=1, lease_ms=3_000)
    await send(trio, one, b"a")
    await until(lambda: bool(holder.got), 5.0, "not delivered")
    waiting = Listener(trio, other, credit=1)
    trio.may_stop.add(leader.member.node_id)
    trio.cut(leader)
    for _ in range(8):
        await asyncio.sleep(1.0)
        holder.run(holder.consumer.extend, holder.got[0].lease, lambda error: None)
    assert waiting.got == []
    assert await holder.ack(holder.got[0]) is None
    trio.heal()
    await trio.everywhere()
    await asyncio.sleep(5.0)
    assert waiting.got == []
    assert rows_of_queues(trio, one) == []


@on_trio
async def test_consumers_go_on_after_the_leader_is_gone_and_nothing_is_lost(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    listeners = [Listener(trio, server, credit=3) for server in (one, other)]
    handled: set[bytes] = set()

    async def handle(listener: Listener) -> None:
        for done in range(1_000):
            await until(lambda done=done: len(listener.got) > done, 60.0, "nothing comes")  # type: ignore[misc]
            message = listener.got[done]
            if await listener.ack(message) is None:
                handled.add(message.payload.data)
            listener.grant(1)

    handlers = [asyncio.ensure_future(handle(listener)) for listener in listeners]
    wanted = {b"%d" % number for number in range(60)}
    for number in range(60):
        if number == 20:
            trio.cut(leader)
        if number == 40:
            trio.heal()
        await send(trio, (one, other)[number % 2], b"%d" % number)
    await until(lambda: handled == wanted, 60.0, "not all were handled")
    for handler in handlers:
        handler.cancel()
    await asyncio.gather(*handlers, return_exceptions=True)
    await trio.everywhere()
    assert rows_of_queues(trio, one) == []


@on_trio
async def test_a_listener_of_a_queue_that_cannot_be_is_told(trio: Trio) -> None:
    leader = await trio.leading()
    listener = Listener(trio, leader, queue="no such name", credit=1)
    await until(lambda: bool(listener.errors), 5.0, "not told")
    assert listener.errors[0].code == "BAD_QUEUE_NAME"
    try:
        listener.grant(limits.MAX_CONSUMER_IN_FLIGHT_COUNT)
    except KvError as error:
        assert error.code == "TOO_MUCH_CREDIT"
    else:
        raise AssertionError("credit without bound")


@on_trio
async def test_a_session_sends_no_pulls_and_ends_those_of_no_listener(trio: Trio) -> None:
    """Its end would not be seen, and its tokens may be anybody's: an empty one was every listener's."""
    leader, one, other = await trio.leader_and_followers()
    listener = Listener(trio, one, credit=1)
    await asyncio.sleep(1.0)
    pulls = trio.node(leader).queues.dispatcher
    assert pulls.pulls_count == 1
    client = Origin(b"\x00" * 10, 1, 2)
    for pull in (kv_pb2.QueuePull(cancel=True), kv_pb2.QueuePull(max_count=1, wait_ms=20_000)):
        for server in (leader, other):
            error = await trio.ask(server, kv_pb2.Operation(id=1, pull=pull), client).error()
            assert error.code == "PULL_OF_A_CLIENT" and error.not_applied
    assert pulls.pulls_count == 1
    await send(trio, other, b"a")
    await until(lambda: listener.payloads() == [b"a"], 5.0, "nothing comes")


@on_trio
async def test_a_listener_at_a_node_that_finds_no_leader_is_sent_elsewhere(trio: Trio) -> None:
    """The node lives and its stream is open: without a word the listener would wait there for ever."""
    leader, one, _ = await trio.leader_and_followers()
    listener = Listener(trio, one, credit=1)
    await asyncio.sleep(1.0)
    trio.cut(one)
    await send(trio, leader, b"a")
    bound_s = (limits.QUEUE_PULL_WAIT_MS + limits.QUEUE_PULL_GRACE_MS) / 1_000 + 5.0
    await until(lambda: bool(listener.errors), bound_s, "the listener is told nothing")
    assert [error.code for error in listener.errors] == ["NODE_CUT_OFF"]
    listener.leave(give_back=False)


@on_trio
async def test_a_consumer_that_takes_no_more_keeps_what_it_holds_and_gets_nothing(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    leaving = Listener(trio, one, credit=10)
    await send(trio, leader, b"held")
    await until(lambda: bool(leaving.got), 5.0, "not delivered")
    await asyncio.sleep(1.0)  # its next pull is at the leader
    leaving.run(leaving.consumer.take_no_more)
    leaving.grant(5)
    await send(trio, leader, b"later")
    await asyncio.sleep(2.0)
    staying = Listener(trio, other, credit=1)
    await until(lambda: bool(staying.got), 5.0, "not delivered")
    assert (leaving.payloads(), staying.payloads(), staying.got[0].attempt) == ([b"held"], [b"later"], 1)
    assert await leaving.ack(leaving.got[0]) is None
    assert await staying.ack(staying.got[0]) is None
    await trio.everywhere()
    assert rows_of_queues(trio, leader) == []


@on_trio
async def test_a_lease_of_nobody_ends_although_the_leader_changes_again_and_again(trio: Trio) -> None:
    """Each leader gives leases the time back in which nobody led, and not that in which the one before had no entry."""
    leader, _, _ = await trio.leader_and_followers()
    gone = Listener(trio, leader, credit=1, lease_ms=10_000)
    await send(trio, leader, b"a")
    await until(lambda: bool(gone.got), 5.0, "not delivered")
    gone.leave(give_back=False)
    for _ in range(4):
        leader = await trio.leading()
        await asyncio.sleep(6.0)
        trio.cut(leader)
        await asyncio.sleep(4.0)
        trio.heal()
    listener = Listener(trio, await trio.leading(), credit=1)
    await until(lambda: bool(listener.got), 2.0, "it is under its first lease still")


@on_trio
async def test_a_lease_outlives_a_leader_although_the_next_has_a_round_acknowledged_before_it_resolves(
    trio: Trio,
) -> None:
    """It applies what it found in its log first, which takes longer than a round, after a kill -9 of all above all."""
    leader, one, other = await trio.leader_and_followers()
    holder = Listener(trio, one, credit=1, lease_ms=2_000)
    await send(trio, one, b"a")
    await until(lambda: bool(holder.got), 5.0, "not delivered")
    trio.may_stop.add(leader.member.node_id)
    with patch.object(Driver, "_all_data_applied", lambda driver: False):
        trio.cut(leader)
        await asyncio.sleep(6.0)
    waiting = Listener(trio, other, credit=1)
    await asyncio.sleep(0.5)
    assert waiting.got == []
    assert await holder.ack(holder.got[0]) is None
