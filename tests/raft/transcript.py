"""Scenarios as text: commands and what they print.

A file is a list of blocks: commands, one a line, then `----`, then the expected output, then an empty line. Lines
that begin with `#` tell the story. The output is the messages delivered, one a line, and every change of a node's
role, term, commit index or membership. KVNODE_REWRITE=1 writes what is printed now into the files.

    cluster 1:a 2:b 3:c [min_commit_dcs=2]   start founding members, node:dc[/learner]
    join 4                                   start a node that knows nothing
    tick 1 2 [times=10]                      tick some nodes, or `all`; nothing is sent until `settle`
    settle                                   let everybody work and deliver until nothing moves
    run all [times=10]                       tick and settle, again and again
    work 1                                   let one node take and finish one Ready
    begin 1 | finish 1 | urgent 1            take a Ready; persist it; take what needs no disk
    deliver [1->2]                           deliver what is on the wire
    lose [1->2]                              lose what is on the wire
    drop [APPEND ...]                        lose these kinds from now on; alone: none any more
    wire                                     show what is on the wire
    send APPEND 1->2 term=2 index=3 ...      make a message up and deliver it; entries=term.index=data,...
    campaign 1 | crash 1 | gap 1 | unreachable 1 2 | step-down 1
    propose 1 x y | read 1 7 | transfer 1 2 | change 1 4:d/learner | change 1 -4
    isolate 1 2 | cut 1->2 | heal | freeze 1 | thaw 1 | slow-disk 1 | fast-disk 1
    compact 1 5                              drop the persisted log up to 5
    status | log 1 | progress 1 | applied 1

`quiet` before a command prints the changes without the messages.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from kvnode.base.errors import KvError
from kvnode.base.invariant import InvariantViolation
from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.membership import MemberRole, Membership, decode_membership
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.raft import Raft
from tests.raft.harness import Cluster, all_entries, changed


def show_entry(entry: Entry) -> str:
    if entry.kind is EntryKind.MEMBERSHIP:
        what = show_membership(decode_membership(entry.data))
    else:
        what = "noop" if entry.kind is EntryKind.NOOP else entry.data.decode()
    return f"{entry.term}.{entry.index}={what}"


def show_membership(membership: Membership) -> str:
    words = [f"{m.node_id}:{m.dc}{'/learner' if m.role is MemberRole.LEARNER else ''}" for m in membership.members]
    return "(" + " ".join(words) + ")"


def show_message(message: Message) -> str:
    """A message on one line, fields at their default left out."""
    parts = [f"{message.sender}->{message.to} {message.kind.name} term={message.term}"]
    parts.extend(
        f"{name}={value}"
        for name, value in (
            ("log_term", message.log_term),
            ("index", message.index),
            ("commit", message.commit),
            ("hint", f"{message.hint_term}.{message.hint_index}" if message.hint_index else 0),
            ("round", message.round),
        )
        if value
    )
    if message.reject:
        parts.append("reject")
    if message.entries:
        parts.append("[" + ", ".join(show_entry(entry) for entry in message.entries) + "]")
    if message.context:
        snapshot = message.kind is MessageKind.SNAPSHOT
        parts.append(show_membership(decode_membership(message.context)) if snapshot else message.context.decode())
    return " ".join(parts)


def parse_entries(text: str) -> tuple[Entry, ...]:
    entries = []
    for word in text.split(","):
        place, _, data = word.partition("=")
        term, _, index = place.partition(".")
        entries.append(Entry(int(term), int(index), EntryKind.DATA, data.encode()))
    return tuple(entries)


class Transcript:
    """Runs the commands of one file."""

    def __init__(self) -> None:
        self.cluster = Cluster("")
        self.out: list[str] = []
        self.seen: dict[int, str] = {}
        self.quiet = False

    def run(self, block: list[str]) -> str:
        """Run one block's commands and return what they print."""
        self.out = []
        for line in block:
            self.quiet = line.startswith("quiet ")
            name, *args = line.removeprefix("quiet ").split()
            command: Callable[..., None] = getattr(self, "do_" + name.replace("-", "_"))
            try:
                command(*args)
            except (KvError, InvariantViolation) as error:
                self.out.append(f"error: {error}")
            self._changes()
        return "\n".join(self.out)

    def _changes(self) -> None:
        for node_id, node in sorted(self.cluster.nodes.items()):
            now = self._state(node.raft)
            if self.seen.get(node_id, "") != now:
                self.seen[node_id] = now
                self.out.append(f"  {node_id}: {now}")
            for read in node.reads:
                self.out.append(f"  {node_id}: read {read.context} may be served at {read.index}")
            node.reads.clear()

    def _state(self, raft: Raft) -> str:
        words = [f"{raft.role.value} term={raft.term} leader={raft.leader_id} commit={raft.commit}"]
        words.append(show_membership(raft.membership))
        if raft.transferring:
            words.append(f"transferring={raft.transferring}")
        return " ".join(words)

    def _trace(self, message: Message) -> None:
        if not self.quiet:
            self.out.append(show_message(message))

    def _ids(self, words: tuple[str, ...]) -> list[int]:
        return sorted(self.cluster.nodes) if words == ("all",) else [int(word) for word in words]

    def _take(self, link: tuple[str, ...]) -> list[Message]:
        """Take what is on the wire, of one link or all."""
        wire = self.cluster.wire
        taken = [m for m in wire if not link or f"{m.sender}->{m.to}" in link]
        self.cluster.wire = [m for m in wire if m not in taken]
        return taken

    # Time and network.

    def do_cluster(self, *words: str) -> None:
        layout = " ".join(word for word in words if "=" not in word)
        options = {key: int(value) for key, _, value in (word.partition("=") for word in words if "=" in word)}
        self.cluster = Cluster(layout, min_commit_dcs=options.pop("min_commit_dcs", 1), **options)
        self.cluster.trace = self._trace
        self.seen = {}
        self.cluster.work()

    def do_join(self, node: str) -> None:
        self.cluster.join(int(node))

    def do_tick(self, *words: str) -> None:
        times, nodes = self._times(words)
        for _, node_id in itertools.product(range(times), self._ids(nodes)):
            self.cluster[node_id].tick()

    def do_run(self, *words: str) -> None:
        times, nodes = self._times(words)
        self.cluster.tick(times, self._ids(nodes))

    def _times(self, words: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        times = [int(word.removeprefix("times=")) for word in words if word.startswith("times=")]
        return (times or [1])[0], tuple(word for word in words if "=" not in word)

    def do_settle(self) -> None:
        self.cluster.settle()

    def do_work(self, node: str) -> None:
        self.do_begin(node)
        self.do_finish(node)

    def do_begin(self, node: str) -> None:
        self.cluster.put(self.cluster.nodes[int(node)].begin().messages)

    def do_finish(self, node: str) -> None:
        member = self.cluster.nodes[int(node)]
        self.cluster.put(member.finish(self.cluster.snapshot_for(member)))

    def do_urgent(self, node: str) -> None:
        self.cluster.put(self.cluster.nodes[int(node)].urgent())

    def do_deliver(self, *link: str) -> None:
        for message in self._take(link):
            self.cluster.deliver_one(message)

    def do_lose(self, *link: str) -> None:
        for message in self._take(link):
            self.out.append("lost " + show_message(message))
            self.cluster.lose(message)

    def do_drop(self, *kinds: str) -> None:
        self.cluster.drop = lambda message: message.kind.name in kinds

    def do_wire(self) -> None:
        self.out.extend(show_message(message) for message in self.cluster.wire)

    def do_send(self, kind: str, link: str, *words: str) -> None:
        sender, _, to = link.partition("->")
        fields: dict[str, object] = {"reject": True} if "reject" in words else {}
        for key, _, value in (word.partition("=") for word in words if "=" in word):
            fields[key] = (
                parse_entries(value) if key == "entries" else value.encode() if key == "context" else int(value)
            )
        base = Message(MessageKind[kind], int(to), int(sender), 0)
        self.cluster.deliver_one(base._replace(**fields))  # type: ignore[arg-type]

    def do_isolate(self, *nodes: str) -> None:
        self.cluster.isolate(*map(int, nodes))

    def do_cut(self, link: str) -> None:
        sender, _, to = link.partition("->")
        self.cluster.cut.add((int(sender), int(to)))

    def do_heal(self) -> None:
        self.cluster.heal()

    # Nodes.

    def do_campaign(self, node: str) -> None:
        self.cluster[int(node)].campaign()

    def do_crash(self, node: str) -> None:
        self.cluster.nodes[int(node)].restart()

    def do_gap(self, node: str) -> None:
        self.cluster[int(node)].clock_gap()

    def do_freeze(self, node: str) -> None:
        self.cluster.frozen.add(int(node))

    def do_thaw(self, node: str) -> None:
        self.cluster.frozen.remove(int(node))

    def do_slow_disk(self, node: str) -> None:
        self.cluster.slow_disks.add(int(node))

    def do_fast_disk(self, node: str) -> None:
        self.cluster.slow_disks.remove(int(node))

    def do_compact(self, node: str, index: str) -> None:
        self.cluster.nodes[int(node)].disk.compact(int(index))

    def do_unreachable(self, node: str, peer: str) -> None:
        self.cluster[int(node)].report_unreachable(int(peer))

    def do_step_down(self, node: str) -> None:
        self.cluster[int(node)].step_down("asked to")

    def do_propose(self, node: str, *data: str) -> None:
        for text in data:
            self.cluster[int(node)].propose(text.encode())

    def do_read(self, node: str, context: str) -> None:
        self.cluster[int(node)].request_read(int(context))

    def do_transfer(self, node: str, to: str) -> None:
        self.cluster[int(node)].transfer_leadership(int(to))

    def do_change(self, node: str, word: str) -> None:
        raft = self.cluster[int(node)]
        raft.propose_membership(changed(raft.membership, word))

    # Views.

    def do_status(self) -> None:
        for node_id, node in sorted(self.cluster.nodes.items()):
            self.out.append(f"  {node_id}: {self._state(node.raft)} last={node.raft.last_index}")

    def do_log(self, node: str) -> None:
        raft = self.cluster[int(node)]
        shown = " ".join(show_entry(entry) for entry in all_entries(raft))
        self.out.append(f"  {node}: first={raft.log.first_index()} {shown}")

    def do_progress(self, node: str) -> None:
        for p in self.cluster[int(node)].progress():
            self.out.append(f"  {p.node_id}: {p.state} match={p.match} next={p.next} silent={p.ticks_since_contact}")

    def do_applied(self, node: str) -> None:
        self.out.append(f"  {node}: " + " ".join(self.cluster.data(int(node))))
