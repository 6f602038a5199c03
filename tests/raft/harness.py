"""Several cores with logs in memory, and a network between them that a test holds in its hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kvnode.codec.entry import Entry, EntryKind, HardState
from kvnode.codec.membership import Member, MemberRole, Membership, encode_membership
from kvnode.raft.configuration import bootstrap_log
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.raft import Raft
from kvnode.raft.types import RaftConfig, ReadState, Ready, Role, SnapshotMeta

ELECTION_TICKS = 10


class MemoryLog:
    """A persisted log: what survives a crash."""

    def __init__(self) -> None:
        self.base_index = 0
        self.base_term = 0
        self.held: list[Entry] = []
        self.hard_state = HardState()
        self.changes_count = 0  # of what is held

    def first_index(self) -> int:
        return self.base_index + 1

    def last_index(self) -> int:
        return self.base_index + len(self.held)

    def term(self, index: int) -> int | None:
        if index == self.base_index:
            return self.base_term
        at = index - self.base_index - 1
        return self.held[at].term if 0 <= at < len(self.held) else None

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        if low <= self.base_index:
            return []
        found: list[Entry] = []
        size = 0
        for entry in self.held[low - self.base_index - 1 : high - self.base_index - 1]:
            size += len(entry.data)
            if found and size > max_bytes:
                break
            found.append(entry)
        return found

    def append(self, entries: list[Entry]) -> None:
        if not entries:
            return
        assert self.base_index < entries[0].index <= self.last_index() + 1, "a gap in the log"
        self.changes_count += 1
        del self.held[entries[0].index - self.base_index - 1 :]
        self.held.extend(entries)

    def compact(self, index: int) -> None:
        term = self.term(index)
        assert term is not None
        self.changes_count += 1
        self.held = self.held[index - self.base_index :]
        self.base_index, self.base_term = index, term

    def reset(self, index: int, term: int) -> None:
        self.changes_count += 1
        self.base_index, self.base_term, self.held = index, term, []


@dataclass
class State:
    """The applied state: the history itself."""

    index: int = 0
    term: int = 0
    membership: Membership = field(default_factory=Membership)
    applied: list[tuple[int, int, bytes]] = field(default_factory=list)

    def copy(self) -> State:
        return State(self.index, self.term, self.membership, list(self.applied))


def members(layout: str, min_commit_dcs: int = 1) -> Membership:
    """`1:a 2:b 3:c/learner`: node id, data center, role."""
    made = []
    for word in layout.split():
        place, _, role = word.partition("/")
        node, _, dc = place.partition(":")
        made.append(Member(int(node), f"n{node}", "r", dc or f"dc{node}", "", MemberRole(role or "voter")))
    return Membership(tuple(made), min_commit_dcs)


def changed(membership: Membership, word: str) -> Membership:
    """Add, replace (`4:d`, `4:d/learner`) or remove (`-4`) one member."""
    if word.startswith("-"):
        kept = tuple(m for m in membership.members if m.node_id != int(word[1:]))
        return Membership(kept, membership.min_commit_dcs)
    (new,) = members(word).members
    old = membership.get(new.node_id)
    if old is not None and ":" not in word:
        new = Member(old.node_id, old.name, old.region, old.dc, old.address, new.role)
    kept = tuple(m for m in membership.members if m.node_id != new.node_id)
    return Membership(tuple(sorted((*kept, new), key=lambda m: m.node_id)), membership.min_commit_dcs)


class Node:
    """A core with its disk and state, driven as the Ready contract says."""

    def __init__(self, node_id: int, founding: Membership | None, seed: int, **config: int) -> None:
        self.config = RaftConfig(node_id, **{"election_ticks": ELECTION_TICKS, "heartbeat_ticks": 1, **config})
        self.node_id = node_id
        self.seed = seed
        self.disk = MemoryLog()
        self.state = State()
        self.reads: list[ReadState] = []
        self.outstanding: Ready | None = None
        self.applying: list[Entry] = []
        self.slow_state = False  # apply only when told
        if founding is not None:
            entries, self.disk.hard_state = bootstrap_log(founding)
            self.disk.append(entries)
        self.raft = self._start()

    def _start(self) -> Raft:
        rng = random.Random(self.seed * 1000 + self.node_id)
        return Raft(self.config, self.disk, self.disk.hard_state, self.state.membership, self.state.index, random=rng)

    def restart(self) -> None:
        """Crash and start again: what was not persisted is gone. The state, as SQLite's, may be a little behind."""
        self.seed += 1
        self.outstanding = None
        self.applying = []
        if self.disk.term(self.state.index) != self.state.term:
            self.disk.reset(self.state.index, self.state.term)
        self.raft = self._start()

    def begin(self) -> Ready:
        """Take a Ready and hold it unpersisted."""
        self.outstanding = self.raft.ready()
        self._note(self.outstanding)
        return self.outstanding

    def finish(self, installed: State | None = None) -> list[Message]:
        """Persist the Ready that is held and apply what is committed; returns the messages that waited for it."""
        ready = self.outstanding
        assert ready is not None
        self.outstanding = None
        if ready.snapshot is not None:
            assert installed is not None
            self._install(ready.snapshot, installed)
        self.disk.append(ready.entries)
        if ready.hard_state is not None:
            self.disk.hard_state = ready.hard_state
        self.raft.persisted(ready)
        if not self.slow_state:
            self.apply()
        return ready.messages_after_persist

    def urgent(self) -> list[Message]:
        """Do what needs no disk."""
        ready = self.raft.urgent()
        self._note(ready)
        if not self.slow_state:
            self.apply()
        return ready.messages

    def _note(self, ready: Ready) -> None:
        self.reads.extend(ready.read_states)
        self.applying.extend(ready.committed)

    def _install(self, snapshot: SnapshotMeta, state: State) -> None:
        assert (state.index, state.term) == (snapshot.index, snapshot.term)
        self.state = state.copy()
        self.applying = []
        self.disk.reset(snapshot.index, snapshot.term)

    def apply(self) -> None:
        for entry in self.applying:
            assert entry.index == self.state.index + 1, "applied out of order"
            assert self.disk.term(entry.index) == entry.term, "applied before it was persisted"
            self.state.index, self.state.term = entry.index, entry.term
            self.state.applied.append((entry.index, entry.term, entry.data))
            if entry.kind in (EntryKind.MEMBERSHIP, EntryKind.EPOCH):
                self.state.membership = self.raft.history.at(entry.index)
        self.applying = []
        self.raft.applied_to(self.state.index)


def all_entries(raft: Raft, low: int = 0) -> list[Entry]:
    """The entries from `low` on that a core holds, persisted or not."""
    log = raft.log
    found: list[Entry] = []
    index = max(low, log.first_index())
    while index <= log.last_index:
        found += log.entries(index, log.last_index + 1, 1 << 30)
        index = found[-1].index + 1
    return found


class Cluster:
    """Nodes and the messages between them; deterministic."""

    def __init__(self, layout: str, *, min_commit_dcs: int = 1, seed: int = 1, **config: int) -> None:
        self.seed = seed
        self.extra = config
        founding = members(layout, min_commit_dcs)
        self.nodes = {m.node_id: Node(m.node_id, founding, seed, **config) for m in founding.members}
        self.wire: list[Message] = []
        self.cut: set[tuple[int, int]] = set()
        self.frozen: set[int] = set()
        self.slow_disks: set[int] = set()
        self.snapshots: dict[tuple[int, int], State] = {}
        self.trace: Callable[[Message], None] | None = None
        self.drop: Callable[[Message], bool] | None = None

    def __getitem__(self, node_id: int) -> Raft:
        return self.nodes[node_id].raft

    def join(self, node_id: int) -> None:
        """Start a node that knows nothing."""
        self.nodes[node_id] = Node(node_id, None, self.seed, **self.extra)

    def isolate(self, *node_ids: int) -> None:
        """Cut these nodes off from all others, both ways."""
        for inside in node_ids:
            for outside in self.nodes.keys() - set(node_ids):
                self.cut |= {(inside, outside), (outside, inside)}

    def heal(self) -> None:
        self.cut.clear()

    def put(self, messages: Iterable[Message]) -> None:
        """Put messages on the wire; those over a cut link are lost."""
        for message in messages:
            if message.kind is MessageKind.SNAPSHOT and message.sender in self.nodes:
                message = self._ship_snapshot(message)
            if (message.sender, message.to) in self.cut or (self.drop and self.drop(message)):
                self.lose(message)
                continue
            self.wire.append(message)

    def _ship_snapshot(self, message: Message) -> Message:
        """Take the snapshot that a message asks for; it may be a later one than the message names."""
        state = self.nodes[message.sender].state.copy()
        assert state.index >= message.index
        self.snapshots[state.index, state.term] = state
        context = encode_membership(state.membership)
        return message._replace(index=state.index, log_term=state.term, context=context)

    def lose(self, message: Message) -> None:
        """A message is lost. Of a snapshot the sender is told: its bytes travel on a stream of their own."""
        if message.kind is MessageKind.SNAPSHOT and message.sender in self.nodes:
            self[message.sender].report_snapshot(message.to, False)

    def work(self) -> bool:
        """Let every node do what its core asks for. Returns whether there was anything."""
        busy = False
        for node_id, node in sorted(self.nodes.items()):
            if node_id in self.frozen:
                continue
            if node_id in self.slow_disks:
                if node.outstanding is None and node.raft.has_ready():
                    busy = True
                    self.put(node.begin().messages)
                elif node.raft.has_urgent():
                    busy = True
                    self.put(node.urgent())
                continue
            if node.outstanding is None and node.raft.has_ready():
                self.put(node.begin().messages)
            if node.outstanding is not None:
                busy = True
                self.put(node.finish(self.snapshot_for(node)))
        return busy

    def snapshot_for(self, node: Node) -> State | None:
        assert node.outstanding is not None
        wanted = node.outstanding.snapshot
        if wanted is None:
            return None
        return self.snapshots[wanted.index, wanted.term]

    def deliver(self) -> bool:
        """Deliver all that is on the wire now. Returns whether there was anything."""
        wire, self.wire = self.wire, []
        for message in wire:
            self.deliver_one(message)
        return bool(wire)

    def deliver_one(self, message: Message) -> None:
        node = self.nodes.get(message.to)
        if node is None or message.to in self.frozen or (message.sender, message.to) in self.cut:
            self.lose(message)
            return
        if self.trace is not None:
            self.trace(message)
        node.raft.step(message)
        if message.kind is MessageKind.SNAPSHOT and message.sender in self.nodes:
            self[message.sender].report_snapshot(message.to, True)

    def settle(self) -> None:
        """Work and deliver until nothing moves."""
        for _ in range(1000):
            busy = self.work()
            if not (self.deliver() or busy):
                return
        raise AssertionError("the cluster does not come to rest")

    def tick(self, count: int = 1, only: Iterable[int] | None = None) -> None:
        """Tick the nodes and let everything settle, `count` times."""
        for _ in range(count):
            for node_id in sorted(self.nodes if only is None else only):
                if node_id not in self.frozen:
                    self[node_id].tick()
            self.settle()

    def elect(self, node_id: int) -> None:
        """Make a node the leader of a resting cluster, by its own campaign or by transfer."""
        leader = self.leader()
        if leader is None:
            self[node_id].campaign()
        elif leader != node_id:
            self[leader].transfer_leadership(node_id)
        self.settle()
        assert self[node_id].is_leader, f"node {node_id} was not elected"

    def leader(self) -> int | None:
        """The leader of the highest term."""
        leading = [(node.raft.term, node_id) for node_id, node in self.nodes.items() if node.raft.role is Role.LEADER]
        return max(leading)[1] if leading else None

    def propose(self, node_id: int, *data: str) -> None:
        for text in data:
            self[node_id].propose(text.encode())
        self.settle()

    def data(self, node_id: int) -> list[str]:
        """The applied DATA of a node."""
        return [data.decode() for _, _, data in self.nodes[node_id].state.applied if data and not data.startswith(b"{")]
