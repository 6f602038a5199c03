"""A broken invariant ends the node, through whichever door it was reached."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import replace as with_fields
from typing import Any

from kvnode.base.errors import LogDamaged, StorageFailed
from kvnode.base.invariant import InvariantViolation
from kvnode.codec.membership import MemberRole
from kvnode.node.node import Node
from kvnode.node.ports import Freshness, Origin, PeerHandler
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.raft import Raft
from tests.simulation.cluster import Server
from tests.unit.node.cluster import Trio, on_trio, put, read, until, write

# Doors through which nothing reaches the core.
HARMLESS = {"identity", "check_hello", "has_removed", "on_clock_sample", "on_held", "on_lease"}


class Broken(Raft):
    """A core in which every input finds that the program's reasoning is wrong."""

    __slots__ = ()

    def _break(self, *_: object, **__: object) -> Any:
        raise InvariantViolation("by the test")

    step = tick = report_unreachable = report_snapshot = propose = propose_membership = _break  # type: ignore[assignment]
    transfer_leadership = request_read = has_urgent = has_ready = _break  # type: ignore[assignment]


def doors(node: Node) -> dict[str, Callable[[], Any]]:
    """By name: everything by which the world outside the driver and the ticker enters a node."""
    message = Message(MessageKind.HEARTBEAT, node.node_id, 9, node.raft.term)
    origin = Origin(b"", 0)
    member = next(each for each in node.membership.members if each.node_id != node.node_id)

    async def change() -> None:
        learner = with_fields(member, role=MemberRole.LEARNER)
        await node.members._propose(node.members._with(learner))

    return {
        "on_messages": lambda: node.peers.on_messages(9, [message], Freshness(0, 0, 0)),
        "on_unreachable": lambda: node.peers.on_unreachable(member.node_id),
        "on_forwarded": lambda: node.peers.on_forwarded(origin, write(put(b"k")), lambda _: None),
        "on_forwarded_open": lambda: node.peers.on_forwarded_open(1, lambda *_: None),
        "submit": lambda: node.submit([read(b"k")], origin, lambda _: None),
        "write": lambda: node.write(write(put(b"k")).write, 100),
        "open_session": lambda: node.open_session(100),
        "wake": node.wake,
        "transfer_leadership": lambda: node.transfer_leadership(member.node_id),
        "members": change,
        "hand_over": node.hand_over,
    }


def test_no_door_is_forgotten() -> None:
    of_peers = {name for name, _ in inspect.getmembers(PeerHandler, inspect.isfunction) if not name.startswith("_")}

    class Nobody:
        """Doors are only named here, not opened."""

        def __getattr__(self, _name: str) -> Any:
            return Nobody()

        def __getitem__(self, _index: int) -> Any:
            return Nobody()

    nobody: Any = Nobody()
    assert of_peers - HARMLESS <= set(doors(nobody))


async def _open(door: Callable[[], Any]) -> None:
    try:
        result = door()
        if isinstance(result, Awaitable):
            await result
    except Exception:
        pass  # its caller is told; what matters is that the node ends


@on_trio
async def test_every_door_ends_the_node(trio: Trio) -> None:
    for name in ("on_messages", "on_unreachable", "wake", "transfer_leadership", "members"):
        await _ends_through(trio, await trio.leading(), name)


@on_trio
async def test_what_a_client_sends_is_queued_and_enters_the_core_with_the_driver(trio: Trio) -> None:
    leader = await trio.leading()
    node = trio.node(leader)
    trio.may_stop.add(leader.member.node_id)
    for task in node._tasks:
        task.cancel()
    node.driver._waiting = True
    node.raft.__class__ = Broken
    for name in ("on_forwarded_open", "on_forwarded", "submit"):
        await trio.within(leader, _open(doors(node)[name]))
        assert not node.failed.done(), name
    assert node.proposals.queued_count == 2 and node.barriers.waiting
    node.wake()
    assert isinstance(node.failed.result(), InvariantViolation)


async def _ends_through(trio: Trio, leader: Server, name: str) -> None:
    node = trio.node(leader)
    trio.may_stop.add(leader.member.node_id)
    for task in node._tasks:
        task.cancel()  # neither driver nor ticker shall notice first
    node.driver._waiting = True  # so that whoever wakes it enters the core
    node.raft.__class__ = Broken
    await trio.within(leader, _open(doors(node)[name]))
    assert node.failed.done(), name
    assert isinstance(node.failed.result(), InvariantViolation)
    await until(lambda: not leader.serving, 5)
    trio.start(leader)
    await until(lambda: leader.node is not None, 5)
    leader.errors.clear()


@on_trio
async def test_a_failure_of_the_disk_is_not_taken_for_that_of_the_operation_that_met_it(trio: Trio) -> None:
    """While an fsync is under way, whoever wakes the driver also applies what was committed meanwhile."""
    leader = await trio.leading()
    node = trio.node(leader)
    trio.may_stop.add(leader.member.node_id)

    def full() -> None:
        raise StorageFailed("the disk is full")

    node.driver._waiting, node.driver._send_urgent = True, full  # type: ignore[method-assign]
    asked = trio.ask(leader, write(put(b"k")))
    assert not node.failed.done(), "it is queued, and meets nothing"
    node.wake()  # by a peer's message, say
    assert node.failed.done() and isinstance(node.failed.result(), StorageFailed)
    assert not asked.done or asked.results[0].error.code != "STORAGE_FAILED"


@on_trio
async def test_a_node_whose_log_lost_what_it_acknowledged_ends(trio: Trio) -> None:
    leader, follower, _ = await trio.leader_and_followers()
    node, raft = trio.node(follower), trio.node(follower).raft
    trio.may_stop.add(node.node_id)
    lost = Message(MessageKind.HEARTBEAT, node.node_id, leader.member.node_id, raft.term, commit=raft.last_index + 5)
    node.peers.on_messages(leader.member.node_id, [lost], None)
    error = node.failed.result()
    assert isinstance(error, LogDamaged) and f"up to {lost.commit}" in error.message
    assert node.log.damage is not None, "it stays so, also after a restart"
