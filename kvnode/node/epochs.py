"""Which epoch this node is in, which it knows of, and how it hears of a later one.

A Hello says two things: the latest epoch that the node knows of, and the one that its state is in. A peer that knows
of an earlier one is refused. It learns from the second alone: an epoch that somebody's state is in has begun, so
hearing of it is enough to promise it, durably, and to take no further part in what came before (raft/epochs.py). An
epoch that is only promised may never begin, and must not end another one by hearsay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from kvnode.base.errors import KvError
from kvnode.codec.epoch import FIRST_EPOCH, EpochStart
from kvnode.machine.epochs import EpochRow, read_epochs, read_seal
from kvnode.machine.state_reader import StateReader
from kvnode.proto.kv.internal.v1 import failover_pb2, peer_pb2
from kvnode.raft.raft import Raft
from kvnode.storage.state_tables import StateMeta

_log = logging.getLogger(__name__)


class Epochs:
    """One node's view.

    Args:
        raft: the node's core.
        state: shows the applied state.
        meta: of the applied state, as of now.
        wake: tells the driver that the core has news.
        adopted_in: the epoch in which the cluster took this node in.
    """

    def __init__(
        self,
        raft: Raft,
        state: StateReader,
        meta: Callable[[], StateMeta],
        wake: Callable[[], None],
        adopted_in: int = FIRST_EPOCH,
    ) -> None:
        self.adopted_in = adopted_in
        self._raft = raft
        self._state = state
        self._meta = meta
        self._wake = wake
        self.table: tuple[EpochRow, ...] = ()
        self._read_in = 0  # the epoch that the state was in then
        self.seal: tuple[EpochStart, int] | None = None
        self.heard_from = 0  # who told of the latest epoch
        self.split = ""  # why this node and another one cannot belong together
        self.applied()

    def applied(self) -> None:
        """An epoch may have begun or been sealed in the state."""
        self._read_in = self._meta().epoch
        self.table = read_epochs(self._state)
        self.seal = read_seal(self._state)

    def current(self) -> tuple[EpochRow, ...]:
        """The table of the very state, also while those who wait for a run hear of it before this view does."""
        if self._read_in != self._meta().epoch:
            self.applied()
        return self.table

    def of_log(self) -> list[failover_pb2.FailoverEpoch]:
        """Those that the log has, committed or not, in order."""
        forks = {row.epoch: row.fork_index for row in self.current()}
        forks.update((epoch, index - 1) for epoch, index in self._raft.history.begun)
        return [failover_pb2.FailoverEpoch(epoch=epoch, fork_index=forks[epoch]) for epoch in sorted(forks)]

    @property
    def established(self) -> int:
        """The epoch of the state."""
        return self._meta().epoch

    @property
    def latest(self) -> int:
        """The latest epoch that this node knows of."""
        return max(self.established, self._raft.epoch, self.adopted_in)

    @property
    def ballot(self) -> int:
        """Of the latest epoch; 0 = unknown, or the cluster's first one."""
        raft, latest = self._raft, self.latest
        if raft.promised_epoch == latest:
            return raft.promised_ballot
        return next((row.ballot for row in self.table if row.epoch == latest), 0)

    @property
    def wanted_commit_dcs(self) -> int:
        """In how many data centers a commit should be, where there are enough."""
        return self.table[-1].wanted_commit_dcs if self.table else self._raft.membership.min_commit_dcs

    def refusal(self, hello: peer_pb2.Hello) -> str:
        """Why a peer of another epoch is refused, empty = it is not; learns from one of a later epoch."""
        latest = self.latest
        if hello.established_epoch > latest:
            ballot = hello.ballot if hello.epoch == hello.established_epoch else 0
            self.heard_from = hello.node_id
            self.heard(hello.established_epoch, ballot, hello.name)
        elif hello.epoch < latest:
            return f"EPOCH_ENDED: node '{hello.name}' is of epoch {hello.epoch}, which ended; this node is of {latest}"
        elif hello.epoch == latest and hello.ballot and self.ballot and hello.ballot != self.ballot:
            return self._meet_other_ballot(hello)
        return ""

    def heard(self, epoch: int, ballot: int, name: str) -> None:
        """An epoch has begun elsewhere: promise it."""
        try:
            self._raft.promise(epoch, ballot, has_begun=True)
        except KvError as error:
            _log.warning("epoch %d, of which '%s' tells, is not taken up: %s", epoch, name, error)
            return
        _log.warning("epoch %d has begun, '%s' says: this node takes no further part in epochs before it", epoch, name)
        self._wake()

    def _meet_other_ballot(self, hello: peer_pb2.Hello) -> str:
        """One of two failovers that took the same number has begun, or both have."""
        if hello.established_epoch == hello.epoch and self.established < hello.epoch and self._raft.fenced:
            self.heard(hello.epoch, hello.ballot, hello.name)  # ours was only promised
            return ""
        if hello.established_epoch == hello.epoch and self.established == hello.epoch:
            self.split = (
                f"EPOCH_SPLIT: two failovers have begun epoch {hello.epoch}, one with this node and one with "
                f"'{hello.name}': fail over once more, to the region whose writes are to be kept"
            )
            return self.split
        return f"EPOCH_PROMISED: epoch {hello.epoch} is promised to another failover than that of '{hello.name}'"
