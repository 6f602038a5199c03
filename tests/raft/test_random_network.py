"""Several cores under a network that drops, doubles, delays and reorders, nodes that crash and freeze, disks that
lag, and memberships that change: the safety properties of Raft, figure 3, hold after every step.

RAFT_SEEDS and RAFT_START choose the seeds; a failure names its own.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from kvnode.base.errors import KvError
from kvnode.base.invariant import InvariantViolation
from kvnode.codec.entry import Entry
from kvnode.codec.membership import MemberRole
from kvnode.raft import election, quorum, replication
from kvnode.raft import raft as raft_module
from kvnode.raft.core import Core
from kvnode.raft.leadership import Leadership
from kvnode.raft.log import RaftLog
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.raft import Raft
from tests.raft.harness import Cluster, Node, all_entries, changed

SEEDS = range(
    int(os.environ.get("RAFT_START", "0")),
    int(os.environ.get("RAFT_START", "0")) + int(os.environ.get("RAFT_SEEDS", "60")),
)
STEPS = 4000
LAYOUTS = [
    ("1:a 2:b 3:c", 2),
    ("1:a 2:a 3:b", 2),
    ("1:a 2:a 3:a 4:b 5:c", 2),
    ("1:a 2:b 3:c 4:d/learner", 2),
    ("1:a 2:b 3:c 4:d", 3),
    ("1:a", 1),
]

Place = tuple[tuple[int, int], tuple[int | None, bytes]]
"""Where an entry stands, its index and term; the term before it, and what it holds."""


class Checker:
    """What has been seen, and what may never be seen.

    It looks after every step, and most steps change nothing at most nodes. What a check has passed is not checked anew
    while all that the check reads is as it was.
    """

    def __init__(self, min_commit_dcs: int) -> None:
        self.min_commit_dcs = min_commit_dcs
        self.leaders: dict[int, int] = {}
        self.committed: dict[int, tuple[int, bytes, int]] = {}  # index -> term, data, the term it was seen in
        self.ends: dict[Raft, tuple[int, int]] = {}
        self.histories: dict[int, tuple[object, ...]] = {}  # as they were when they were checked
        self.logs: dict[int, tuple[object, ...]] = {}
        self.places: dict[int, list[Place]] = {}

    def check(self, cluster: Cluster) -> None:
        moved = False
        for node_id, node in cluster.nodes.items():
            raft, applied = node.raft, node.state.applied
            self._one_leader_a_term(node_id, node)
            history = (applied, len(applied))
            if self.histories.get(node_id) != history:
                self._committed_never_changes(node_id, node)
                self.histories[node_id] = history
            log = raft.log
            content = (raft, raft.term, node.disk.changes_count, log._tail_first, log.snapshot, log._tail.copy())
            if self.logs.get(node_id) != content:
                self._log_of_a_term_never_shrinks(node)
                self.places[node_id] = places_of(raft)
                self.logs[node_id] = content
                moved = True
        if moved:
            self._log_matching()

    def _one_leader_a_term(self, node_id: int, node: Node) -> None:
        raft = node.raft
        if not raft.is_leader:
            return
        assert self.leaders.setdefault(raft.term, node_id) == node_id, f"two leaders in term {raft.term}"
        first = raft.log.first_index()
        for index, (term, _, seen_in_term) in self.committed.items():
            if seen_in_term < raft.term and index >= first:
                assert raft.log.term(index) == term, f"leader {node_id} of term {raft.term} lacks entry {index}"

    def _committed_never_changes(self, node_id: int, node: Node) -> None:
        for index, term, data in node.state.applied[-16:]:
            seen = self.committed.setdefault(index, (term, data, node.raft.term))
            assert seen[:2] == (term, data), f"node {node_id} applied another entry {index}"

    def _log_of_a_term_never_shrinks(self, node: Node) -> None:
        """Once a log ends in an entry of the present term, only this term's leader changes it, and it appends."""
        raft = node.raft
        term, last = self.ends.get(raft, (0, 0))
        assert term < raft.term or raft.last_index >= last, f"node {node.node_id} dropped what may be acknowledged"
        if raft.log.last_term == raft.term:
            self.ends[raft] = (raft.term, raft.last_index)

    def _log_matching(self) -> None:
        by_place: dict[tuple[int, int], tuple[int | None, bytes]] = {}
        for places in self.places.values():
            for place, what in places:
                assert by_place.setdefault(place, what) == what, f"logs differ at {place[0]} of term {place[1]}"


def places_of(raft: Raft) -> list[Place]:
    """The last entries of a log."""
    log = raft.log
    return [
        ((entry.index, entry.term), (log.term(entry.index - 1), entry.data))
        for entry in all_entries(raft, log.last_index - 8)
    ]


class Storm:
    """A seeded sequence of events."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        layout, self.min_dcs = LAYOUTS[seed % len(LAYOUTS)]
        self.cluster = Cluster(
            layout,
            min_commit_dcs=self.min_dcs,
            seed=seed,
            max_append_bytes=24,
            max_inflight_count=4,
            max_unapplied_bytes=8,
        )
        self.checker = Checker(self.min_dcs)
        self.counter = 0
        self.next_id = 6
        self.lost, self.doubled = self.rng.choice([(0.0, 0.0), (0.01, 0.01), (0.05, 0.05)])
        self.slowness = self.rng.choice([0.0, 0.5, 0.95])
        self.reach = self.rng.choice([1, 4, 20])  # how far messages overtake one another
        self.rounds: dict[int, tuple[int, int]] = {}  # read -> (node, commit of the cluster when it was asked)
        self.events: list[tuple[Callable[[], None], int]] = [
            (self.tick, 100),
            (self.work, 1500),
            (self.deliver, 1500),
            (self.propose, 200),
            (self.read, 200),
            (self.crash, 14),
            (self.freeze, 4),
            (self.thaw, 6),
            (self.cut, 14),
            (self.heal, 10),
            (self.transfer, 4),
            (self.change, 10),
            (self.compact, 10),
            (self.unreachable, 6),
            (self.campaign, 8),
        ]

    def pick(self) -> Node:
        return self.cluster.nodes[self.rng.choice(sorted(self.cluster.nodes))]

    def pick_leader(self) -> Node:
        leading = [n for n in self.cluster.nodes.values() if n.raft.is_leader]
        return self.rng.choice(leading) if leading else self.pick()

    def tick(self) -> None:
        for node_id, node in self.cluster.nodes.items():
            if node_id not in self.cluster.frozen and self.rng.random() < 0.9:
                node.raft.tick()

    def work(self) -> None:
        """One node takes one of the steps that the contract allows it."""
        node = self.pick()
        if node.node_id in self.cluster.frozen:
            return
        if node.outstanding is not None and self.rng.random() < 0.7:
            self.cluster.put(node.finish(self.cluster.snapshot_for(node)))
        elif node.outstanding is None and node.raft.has_ready():
            self.cluster.put(node.begin().messages)
        elif node.raft.has_urgent():
            self.cluster.put(node.urgent())
        node.slow_state = self.rng.random() < self.slowness
        if not node.slow_state:
            node.apply()
        self.check_reads(node)

    def deliver(self) -> None:
        wire = self.cluster.wire
        for _ in range(min(len(wire), self.rng.randint(1, 6))):
            at = self.rng.randrange(min(len(wire), self.reach))
            message = wire[at]
            roll = self.rng.random()
            if roll > self.doubled:
                del wire[at]
            if self.doubled < roll < self.doubled + self.lost:
                self.cluster.lose(message)
            else:
                self.cluster.deliver_one(message)

    def propose(self) -> None:
        self.counter += 1
        self.attempt(lambda raft: raft.propose(b"%d" % self.counter))

    def attempt(self, action: Callable[..., object]) -> None:
        try:
            action(self.pick_leader().raft)
        except KvError:
            pass

    def read(self) -> None:
        node = self.pick_leader()
        self.counter += 1
        try:
            node.raft.request_read(self.counter)
        except KvError:
            return
        self.rounds[self.counter] = (node.node_id, max(self.checker.committed, default=0))

    def check_reads(self, node: Node) -> None:
        for state in node.reads:
            asked = self.rounds.pop(state.context, None)
            if asked is not None:
                assert state.index >= asked[1], f"a stale read at {state.index}, {asked[1]} was committed"
        node.reads.clear()

    def crash(self) -> None:
        self.pick().restart()

    def freeze(self) -> None:
        self.cluster.frozen.add(self.rng.choice([self.pick, self.pick_leader])().node_id)

    def thaw(self) -> None:
        for node_id in sorted(self.cluster.frozen):
            self.cluster[node_id].clock_gap()
        self.cluster.frozen.clear()

    def cut(self) -> None:
        one, other = self.rng.choice([self.pick, self.pick_leader])().node_id, self.pick().node_id
        self.cluster.cut.add((one, other))
        if self.rng.random() < 0.5:
            self.cluster.isolate(one)

    def heal(self) -> None:
        self.cluster.heal()

    def transfer(self) -> None:
        to = self.pick().node_id
        self.attempt(lambda raft: raft.transfer_leadership(to))

    def campaign(self) -> None:
        self.pick().raft.campaign()

    def unreachable(self) -> None:
        to = self.pick().node_id
        self.pick_leader().raft.report_unreachable(to)

    def change(self) -> None:
        raft = self.pick_leader().raft
        membership = raft.membership
        if not membership.members or not raft.is_leader:
            return
        member = self.rng.choice(membership.members)
        if member.role is MemberRole.LEARNER:
            word = f"{member.node_id}/voter"
        elif len(membership.members) < 5:
            word = f"{self.next_id}:{self.rng.choice('abcd')}/learner"
        else:
            word = f"-{member.node_id}"
        try:
            raft.propose_membership(changed(membership, word))
        except KvError:
            return
        if word.startswith(f"{self.next_id}:"):
            self.cluster.join(self.next_id)
            self.next_id += 1

    def compact(self) -> None:
        node = self.pick()
        if node.disk.first_index() <= node.state.index <= node.disk.last_index():
            node.disk.compact(self.rng.randint(node.disk.first_index(), node.state.index))

    def run(self) -> None:
        actions = [action for action, _ in self.events]
        weights = [weight for _, weight in self.events]
        for action in self.rng.choices(actions, weights, k=STEPS):
            action()
            self.checker.check(self.cluster)

    def calm(self) -> None:
        """Without trouble, what is left of the members must agree and go on."""
        self.thaw()
        self.heal()
        for node in self.cluster.nodes.values():
            node.slow_state = False
            node.apply()
            if node.outstanding is not None:
                self.cluster.put(node.finish(self.cluster.snapshot_for(node)))
        self.cluster.settle()
        for _ in range(20):
            self.cluster.tick(10)
            self.checker.check(self.cluster)
            leader = self.cluster.leader()
            if leader is not None and self.cluster[leader].own_term_committed:
                break
        leader = self.cluster.leader()
        assert leader is not None, "no leader after the storm"
        index = self.cluster[leader].propose(b"the end")
        self.cluster.tick(5)
        self.checker.check(self.cluster)
        for member in self.cluster[leader].membership.members:
            assert self.cluster.nodes[member.node_id].state.index >= index, f"node {member.node_id} stays behind"


@pytest.mark.parametrize("seed", SEEDS)
def test_safety_under_a_storm(seed: int) -> None:
    storm = Storm(seed)
    storm.run()
    storm.calm()


def forget_votes(patch: pytest.MonkeyPatch) -> None:
    honest = election.on_vote

    def on_vote(core: Core, message: Message) -> None:
        core.vote = 0
        honest(core, message)

    for name in ("_FOLLOWER", "_PRE_CANDIDATE", "_CANDIDATE"):
        table = list(getattr(raft_module, name))
        table[MessageKind.VOTE] = on_vote
        patch.setattr(raft_module, name, table)


def truncate_without_comparing(patch: pytest.MonkeyPatch) -> None:
    def try_append(log: RaftLog, index: int, term: int, entries: tuple[Entry, ...]) -> int | None:
        if log.term(index) != term:
            return None
        if entries and index < log.last_index:
            log.truncate(index + 1)
        log._tail.extend(entries)
        return index + 1

    patch.setattr(RaftLog, "try_append", try_append)


def acknowledge_before_persisting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "send_after_persist", Core.send)


def count_the_leader_before_it_persisted(patch: pytest.MonkeyPatch) -> None:
    honest = RaftLog.append

    def append(log: RaftLog, entry: Entry) -> None:
        honest(log, entry)
        log.commit_to(log.stable + 1)

    patch.setattr(RaftLog, "append", append)


def vote_for_any_log(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RaftLog, "is_up_to_date", lambda *_: True)


def serve_reads_unconfirmed(patch: pytest.MonkeyPatch) -> None:
    def start_round(core: Core, lead: Leadership) -> None:
        honest(core, lead)
        core.read_states.extend(core.rounds.confirm(core.rounds.sent))

    honest = replication.start_round
    patch.setattr(replication, "start_round", start_round)


def serve_reads_before_an_own_commit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(replication, "own_term_committed", lambda core: core.lead is not None)


def count_a_minority(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(quorum, "majority_value", lambda values: sorted(values)[len(values) // 2])


PLANTED = [
    forget_votes,
    truncate_without_comparing,
    acknowledge_before_persisting,
    count_the_leader_before_it_persisted,
    vote_for_any_log,
    serve_reads_unconfirmed,
    serve_reads_before_an_own_commit,
    count_a_minority,
]


@pytest.mark.parametrize("plant", PLANTED)
def test_the_checker_sees_a_planted_bug(plant: Callable[[pytest.MonkeyPatch], None]) -> None:
    """A checker is worth what it catches."""
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        for seed in range(400):
            storm = Storm(seed)
            try:
                storm.run()
            except (AssertionError, InvariantViolation):
                return
    pytest.fail("no seed of 400 shows it")
