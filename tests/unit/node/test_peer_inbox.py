"""What a node takes from whom."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kvnode.base.invariant import InvariantViolation
from kvnode.node.peer_inbox import PeerInbox
from kvnode.node.ports import Freshness, LeaseNews
from kvnode.node.stats import Stats
from kvnode.raft.messages import Message, MessageKind

LEADER, OTHER = 2, 3
FRESH = Freshness(5, 1_000, 1_000)


class Ground:
    """An inbox among neighbours that note what they are given."""

    def __init__(self) -> None:
        self.stepped: list[Message] = []
        self.fresh: list[Freshness] = []
        self.leases: list[LeaseNews] = []
        self.failures: list[BaseException] = []
        self.log = SimpleNamespace(damage=None)
        self.raft = SimpleNamespace(step=self.stepped.append, lost_through=0, leader_id=LEADER)
        self.has_failed = False
        context: Any = SimpleNamespace(
            log=self.log,
            raft=self.raft,
            state=SimpleNamespace(meta=SimpleNamespace(applied_index=5)),
            stats=Stats(),
            freshness=SimpleNamespace(heard=lambda freshness, applied_index, now_ms: self.fresh.append(freshness)),
            failed=SimpleNamespace(done=lambda: self.has_failed),
            fail=self.failures.append,
            wake=lambda: None,
        )
        nobody: Any = None
        clock_guard: Any = SimpleNamespace(now_of=lambda peer: None)
        introductions: Any = ()
        self.inbox = PeerInbox(
            context, nobody, nobody, introductions, clock_guard, nobody, self.leases.append, nobody, nobody
        )


def heartbeat(sender: int) -> Message:
    return Message(MessageKind.HEARTBEAT, 1, sender, 4)


def test_nobody_speaks_in_the_name_of_another() -> None:
    ground = Ground()
    ground.inbox.on_messages(OTHER, [heartbeat(LEADER), heartbeat(OTHER)], None)
    assert ground.stepped == [heartbeat(OTHER)]


def test_how_fresh_the_state_is_only_the_leader_says() -> None:
    """A deposed one may have been confirmed before its successor was elected, and be behind by what that one wrote."""
    ground = Ground()
    ground.inbox.on_messages(OTHER, [], FRESH)
    assert not ground.fresh
    ground.inbox.on_messages(LEADER, [], FRESH)
    assert ground.fresh == [FRESH]


def test_with_a_damaged_log_or_at_its_end_a_node_takes_nothing() -> None:
    damaged, ended = Ground(), Ground()
    damaged.log.damage = "by the test"
    ended.has_failed = True
    for ground in (damaged, ended):
        ground.inbox.on_messages(LEADER, [heartbeat(LEADER)], FRESH)
        ground.inbox.on_lease(LeaseNews(None, []))
        assert not (ground.stepped or ground.fresh or ground.leases)


def test_a_core_that_breaks_ends_the_node() -> None:
    ground = Ground()

    def broken(message: Message) -> None:
        raise InvariantViolation("by the test")

    ground.raft.step = broken
    ground.inbox.on_messages(LEADER, [heartbeat(LEADER)], FRESH)
    assert len(ground.failures) == 1 and not ground.fresh
