"""Batched ReadIndex (Ongaro's thesis, 6.4): strong reads without a log entry.

Theory of operation. A heartbeat round is one heartbeat to every peer, numbered from 1 and echoed by the answer.
A read joins the round that is *not yet sent*: the round's answers then prove that no later leader existed when
the read began, so the commit index at the round's sending covers every write acknowledged before it. All reads
that wait when a round is sent share it. A read-driven round is opened only when the one before it has been
acknowledged, so that under load reads gather into few rounds; the periodic heartbeat is a round too and takes
along whatever waits.

A gap in the node's own clock voids the rounds on their way: their answers no longer count, and their reads move
to a new round.
"""

from __future__ import annotations

from collections import deque

from kvnode.raft.types import ReadState


class ReadRounds:
    """The rounds of one node. Numbers go on rising from one of its terms to the next."""

    __slots__ = ("_open", "acknowledged", "pending_count", "sent", "void_through", "waiting")

    def __init__(self) -> None:
        self.sent = 0
        self.acknowledged = 0  # the newest round with a quorum's answers
        self.void_through = 0  # answers to rounds up to this one do not count
        self.waiting: list[int] = []  # contexts that join the next round
        self.pending_count = 0  # waiting, or in a round on its way
        self._open: deque[tuple[int, int, list[int]]] = deque()  # (round, read index, contexts)

    def join(self, context: int) -> None:
        """A read joins the next round."""
        self.waiting.append(context)
        self.pending_count += 1

    @property
    def idle(self) -> bool:
        """Whether no round on its way carries reads."""
        return not self._open

    def start(self, read_index: int, *, take_reads: bool) -> int:
        """Number a new round; with take_reads those that wait go with it, to be served at read_index."""
        self.sent += 1
        if take_reads and self.waiting:
            self._open.append((self.sent, read_index, self.waiting))
            self.waiting = []
        return self.sent

    def confirm(self, acknowledged: int) -> list[ReadState]:
        """A quorum has answered round `acknowledged`: the reads of it and of those before may be served."""
        if acknowledged <= max(self.acknowledged, self.void_through):
            return []
        self.acknowledged = acknowledged
        served: list[ReadState] = []
        while self._open and self._open[0][0] <= acknowledged:
            _, index, contexts = self._open.popleft()
            self.pending_count -= len(contexts)
            served.extend(ReadState(context, index) for context in contexts)
        return served

    def void(self) -> None:
        """Stop believing the rounds on their way; their reads wait for the next one."""
        self.void_through = self.sent
        again = [context for _, _, contexts in self._open for context in contexts]
        self._open.clear()
        self.waiting = again + self.waiting

    def drop(self) -> None:
        """Leadership is lost: no read that waits here is answered."""
        self.void()
        self.waiting = []
        self.pending_count = 0
