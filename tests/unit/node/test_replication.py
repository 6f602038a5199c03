"""What the leader knows of the replica regions, and when it counts as a stall."""

from __future__ import annotations

from kvnode.codec.membership import Member, MemberRole, Membership
from kvnode.node.ports import Held
from kvnode.node.replication import RegionLag, Replication, StallPolicy
from tests.unit.node.fakes import HandClock

VOTERS = tuple(Member(n, f"n{n}", "us-east", f"dc-{n}", f"h:{n}", MemberRole.VOTER) for n in (1, 2, 3))
E1, E2, A1 = (
    Member(11, "e1", "europe", "eu-a", "h:11", MemberRole.REPLICA),
    Member(12, "e2", "europe", "eu-b", "h:12", MemberRole.REPLICA),
    Member(21, "a1", "asia", "asia-a", "h:21", MemberRole.REPLICA),
)
BOUND_MS = 45_000


class World:
    def __init__(self, *replicas: Member, policy: StallPolicy = StallPolicy.ALARM) -> None:
        self.clock = HandClock()
        self.is_leader = True
        self.commit = 100
        self.replicas = list(replicas)
        self.replication = Replication(self, self.membership, self.clock, policy, BOUND_MS)

    def membership(self) -> Membership:
        return Membership((*VOTERS, *self.replicas), 2)

    def held(self, member: Member, index: int, ago_ms: int | None) -> None:
        at_ms = 0 if ago_ms is None else self.clock.now_ms() - ago_ms
        self.replication.take([Held(member.node_id, index, at_ms)])

    def pass_ms(self, by_ms: int) -> bool:
        self.clock.pass_ms(by_ms)
        self.replication.tick()
        return self.replication.is_stalled


def test_without_replicas_nothing_ever_stalls() -> None:
    world = World()
    world.commit = 1_000
    assert not world.pass_ms(BOUND_MS * 10) and not world.replication.lags() and not world.replication.sentence()


def test_a_region_is_as_far_as_its_best_node() -> None:
    world = World(E1, E2, A1)
    world.held(E1, 60, 900)
    world.held(E2, 80, 200)
    world.held(A1, 50, 1_000)
    assert world.replication.lags() == [RegionLag("asia", 21, 50, 50, 1_000), RegionLag("europe", 12, 80, 20, 200)]
    world.held(E1, 70, 100)
    assert world.replication.lags()[1] == RegionLag("europe", 12, 80, 20, 100), "both words are true of the region"


def test_a_region_that_holds_everything_is_current_however_long_it_is_silent() -> None:
    world = World(E1)
    world.held(E1, 100, 300)
    assert world.replication.lags()[0].lag_ms == 0
    assert not world.pass_ms(BOUND_MS * 10), "nothing was written since: nothing can be lost"
    world.commit = 101
    assert not world.pass_ms(BOUND_MS) and world.replication.lags()[0].lag_ms == BOUND_MS
    assert world.pass_ms(1), "the write that it does not hold is that old now"
    world.held(E1, 101, None)
    assert not world.pass_ms(1)


def test_for_how_long_a_region_has_been_silent_is_told_beside_its_lag() -> None:
    world = World(E1, E2)
    world.held(E1, 100, 300)
    world.replication.take([Held(E2.node_id, 90, world.clock.now_ms(), silent_ms=400)])
    assert world.replication.lags()[0].silent_ms == 0, "one of its nodes speaks"
    world.pass_ms(5_000)
    world.replication.take([Held(E1.node_id, 100, 1, 5_000), Held(E2.node_id, 90, 1, 5_400)])
    assert world.replication.lags() == [RegionLag("europe", 11, 100, 0, 0, 5_000)]
    world.held(E2, 90, 0)
    assert world.replication.lags()[0].silent_ms == 0


def test_every_region_must_be_behind_for_a_stall() -> None:
    world = World(E1, A1)
    world.held(E1, 50, 0)
    world.held(A1, 50, 0)
    world.pass_ms(BOUND_MS)
    world.held(A1, 90, 1_000)
    assert not world.pass_ms(1) and not world.replication.sentence()
    assert world.pass_ms(BOUND_MS)
    assert "europe by 90.0 s" in world.replication.sentence() and "asia by 46.0 s" in world.replication.sentence()
    assert not world.replication.holds_writes, "the policy is alarm"
    world.replicas.remove(E1)
    world.replicas.remove(A1)
    assert not world.pass_ms(1), "they were removed from the cluster"


def test_a_region_that_was_not_heard_of_counts_from_when_it_was_first_seen() -> None:
    world = World(E1, policy=StallPolicy.STOP)
    assert not world.pass_ms(1_000)
    assert world.replication.lags() == [RegionLag("europe", 0, 0, 100, 0)]
    world.held(E1, 3, None)
    assert world.replication.lags()[0].node_id == 0, "a copy that is being made holds nothing yet"
    assert world.pass_ms(BOUND_MS + 1) and world.replication.holds_writes
    assert world.replication.sentence().startswith("writes are held")


def test_a_new_leader_believes_what_others_remember() -> None:
    world = World(E1)
    world.is_leader = False
    world.held(E1, 50, 0)
    world.pass_ms(100)
    assert not world.replication.lags(), "only a leader knows, because only a leader is told"
    world.is_leader = True
    assert not world.pass_ms(100)
    world.held(E1, 50, BOUND_MS + 1)
    assert world.replication.is_stalled, "the region was behind already when this node began to lead"


def test_who_is_no_replica_says_nothing() -> None:
    world = World(E1)
    world.replication.take([Held(1, 100, world.clock.now_ms()), Held(99, 100, world.clock.now_ms())])
    assert world.replication.lags() == [RegionLag("europe", 0, 0, 100, 0)]
