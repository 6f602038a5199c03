"""ReadIndex barriers: what may be answered once leadership is confirmed and enough is applied.

Two kinds of answer wait here: strong reads, and negative answers to writes (a failed check is a strong
read too: it must not be given on the word of a leader that has been deposed). An item

1. waits for a round that has not yet been sent (it may not join one under way: that round could have been
   acknowledged by a quorum before the item's own beginning, and a newer leader elected since);
2. once the core reports the round as acknowledged by a quorum, waits until the node has applied the index
   of that round and the prefix that the item was judged on;
3. is handed to `serve` together with all others that became ready at the same applied index.

Under a leader lease (leader_lease.py) a round has been confirmed already, for as long as the lease holds: an item skips
the first step, and its answer is checked against the lease once more when it is given (`answers_under_lease`).

When leadership is lost, everything that waits is handed to `lost`: none of it has had an effect. What waits longer
than its deadline is answered so (`sweep`), and passed over when its round comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import NamedTuple

from kvnode.base.errors import KvError
from kvnode.node.calls import Call
from kvnode.node.holding import may_hold
from kvnode.node.leader_lease import LeaderLease
from kvnode.node.stats import Stats
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.raft.raft import Raft

MAX_OPEN_ROUNDS_COUNT = 2  # more would only send more heartbeats: later items ride on the next one


class Item(NamedTuple):
    """A call whose answer waits. `negative` is that answer, or None for a strong read."""

    min_index: int
    call: Call
    negative: kv_pb2.OperationResult | None


class Barriers:
    """The waiting items of one node."""

    def __init__(
        self,
        raft: Raft,
        lease: LeaderLease,
        stats: Stats,
        serve: Callable[[list[Item]], None],
        lost: Callable[[list[Item]], None],
        nudge: Callable[[], None],
    ) -> None:
        self._raft = raft
        self._lease = lease
        self._nudge = nudge
        self._stats = stats
        self._serve = serve
        self._lost = lost
        self._next_context = 1
        self.generation = 0  # another with each round: what has one generation is confirmed by one
        self._unsent: list[Item] = []
        self._rounds: dict[int, list[Item]] = {}
        self._under_way: dict[int, int] = {}  # calls of each round, those that share one counted
        self.is_holding = False  # calls that came while a larger round is under way
        self._confirmed: list[Item] = []

    def __len__(self) -> int:
        return len(self._unsent) + len(self._confirmed) + sum(map(len, self._rounds.values()))

    @property
    def waiting(self) -> bool:
        """Whether a round should be begun."""
        return bool(self._unsent)

    def add(self, call: Call, min_index: int = 0, negative: kv_pb2.OperationResult | None = None) -> None:
        """Let `call` be answered after the next round and once `min_index` is applied."""
        self._unsent.append(Item(min_index, call, negative))

    def flush(self, *, holds: bool = False) -> None:
        """Begin a round for all that wait for one, unless the lease confirms them now.

        With `holds` a few may be left for more to come (holding.py), and `is_holding` says so.
        """
        self.is_holding = False
        if not self._unsent or not self._raft.is_leader:
            return
        if self._lease.holds():
            self._confirm_leased()
            return
        if len(self._rounds) >= MAX_OPEN_ROUNDS_COUNT:
            return
        reads_count = self._unsent_count()
        self.is_holding = holds and may_hold(reads_count, sum(self._under_way.values()))
        if self.is_holding:
            return
        context = self._next_context
        self._next_context += 1
        self._rounds[context] = self._take_unsent()
        self._under_way[context] = reads_count
        self._stats.read_rounds += 1
        self._raft.request_read(context)

    def _confirm_leased(self) -> None:
        """What is committed here, and of this term, is all that anybody has acknowledged."""
        items = self._take_unsent()
        for item in items:
            item.call.leased = True
            self._stats.reads_leased += item.call.reads_count
        self._confirm(items, self._raft.commit)

    def _unsent_count(self) -> int:
        return sum([item.call.reads_count for item in self._unsent])

    def _take_unsent(self) -> list[Item]:
        """Whatever comes from here on waits for the next round."""
        items, self._unsent = self._unsent, []
        self.generation += 1
        return items

    def answers_under_lease(self, call: Call, negative: kv_pb2.OperationResult | None = None) -> bool:
        """Whether a call that the lease has confirmed may be answered with what was read.

        If the lease ran out meanwhile, the call is taken back, to be confirmed by a round. Returns False then.
        """
        if self._lease.holds():
            return True
        call.leased = False
        if self._raft.is_leader:
            self.add(call, negative=negative)
            self._nudge()
        else:
            self._lost([Item(0, call, negative)])
        return False

    def confirmed(self, context: int, index: int) -> None:
        """A quorum acknowledged the round; its reads see everything up to `index`."""
        self._under_way.pop(context, None)
        self._confirm(self._rounds.pop(context, ()), index)

    def _confirm(self, items: Iterable[Item], index: int) -> None:
        for item in items:
            # Made anew by hand: _replace costs three times as much, once a read.
            self._confirmed.append(item if item.min_index >= index else Item(index, item.call, item.negative))

    def applied(self, index: int) -> None:
        """Serve what was waiting for no more than `index`."""
        if not self._confirmed:
            return
        ready = [item for item in self._confirmed if item.min_index <= index]
        if ready:
            self._confirmed = [item for item in self._confirmed if item.min_index > index]
            self._serve(ready)

    def sweep(self, now_ms: float, error: Callable[[Call], KvError]) -> None:
        """Answer what is past its deadline with `error(call)`: a leader that hears no quorum confirms no round."""
        for item in chain(self._confirmed, *self._rounds.values(), self._unsent):
            if now_ms >= item.call.deadline_ms and not item.call.done:
                item.call.fail(error(item.call))

    def drop_rounds(self) -> None:
        """Leadership is lost: hand back everything."""
        items = self._confirmed + [item for items in self._rounds.values() for item in items] + self._take_unsent()
        self._confirmed, self._rounds, self._under_way = [], {}, {}
        if items:
            self._lost(items)
