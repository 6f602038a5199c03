"""What a node does that holds more than the history that goes on: it saves it, and lets go of it.

Two cases. What was never known to be committed is a tail like any that a new leader would replace: it is saved and
dropped from the log, and the node follows on. But where the commit index lies beyond the fork, the state holds what was
lost. It is never edited back: the entries are saved, log and state are given up, and the node begins anew as a replica
(storage/rejoin.py), which takes a restart of it within the process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from kvnode.base.clock import Clock
from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.membership import Member, MemberRole, decode_membership
from kvnode.node.settings import NodeSettings
from kvnode.proto.kv.internal.v1 import changelog_pb2
from kvnode.raft.raft import Raft
from kvnode.storage.fork_file import ForkHeader

_log = logging.getLogger(__name__)
_READ_BYTES = 4 * 1_048_576


class RejoinNeeded(Exception):
    """The node has decided, durably, to begin anew as a replica: start it again."""


class ForkKeeper(Protocol):
    """Where a fork is kept (storage/fork_file.py)."""

    async def save(self, header: ForkHeader, entries: Iterable[Entry]) -> str:
        """Write the entries durably; returns where."""

    async def decide_to_rejoin(self, membership: bytes) -> None:
        """Make it durable that this node begins anew."""


class Forks:
    """One node's dealings with what it holds beyond a fork.

    Args:
        epoch: of its state.
        keeper: where forks are kept; without one, a node with a fork stays as it is, and says so.
        restart: ends the node with what it is given.
    """

    def __init__(
        self,
        settings: NodeSettings,
        raft: Raft,
        epoch: Callable[[], int],
        clock: Clock,
        keeper: ForkKeeper | None,
        wake: Callable[[], None],
        restart: Callable[[BaseException], None],
    ) -> None:
        self._settings = settings
        self._raft = raft
        self._epoch = epoch
        self._clock = clock
        self._keeper = keeper
        self._wake = wake
        self._restart = restart
        self._leaving = False
        self.saved_path = ""  # of the newest fork

    async def meet(self, source: Member, response: changelog_pb2.FollowResponse) -> None:
        """A source of the epoch that goes on refuses to feed this node, whose log ends with something else."""
        raft = self._raft
        if not raft.fenced or self._keeper is None or self._leaving or raft.log.snapshot is not None:
            return
        commit, last = raft.log.commit, raft.log.last_index
        if last > commit and (not response.fork_known or commit <= response.fork_index):
            behind = max(commit, response.fork_index)
            await self._save(behind, response.fork_index if response.fork_known else behind)
            if (raft.log.commit, raft.log.last_index) == (commit, last) and raft.fenced:
                raft.drop_tail(commit + 1)
                _log.warning(
                    "entries %d to %d, never committed, made room for those of '%s'", commit + 1, last, source.name
                )
                self._wake()
        elif response.fork_known and commit > response.fork_index:
            self._leaving = True
            await self._save(response.fork_index, response.fork_index)
            await self._leave(response)

    async def keep_tail(self, fork_index: int) -> None:
        """Save what this node, which is to vote in the epoch that begins, holds behind the fork, committed nowhere."""
        if self._keeper is not None and self._raft.log.last_index > fork_index:
            await self._save(fork_index, fork_index)

    async def _leave(self, response: changelog_pb2.FollowResponse) -> None:
        assert self._keeper is not None
        membership = decode_membership(response.membership)
        own = membership.get(self._settings.node_id)
        if own is None or own.role is not MemberRole.REPLICA:
            _log.error("this node cannot begin anew: the epoch that goes on knows it as %s", own)
            self._leaving = False
            return
        await self._keeper.decide_to_rejoin(response.membership)
        _log.warning("what this node holds beyond entry %d was lost in a failover: it begins anew", response.fork_index)
        self._restart(RejoinNeeded())

    async def _save(self, after_index: int, fork_index: int) -> None:
        """Save what lies behind `after_index`, if any of it is more than what elections and failovers write.

        What the log no longer has is in the state alone, which is given up too: that it is lost is said here.

        Args:
            fork_index: the last one that the two histories have in common, as far as is known.
        """
        assert self._keeper is not None
        entries = self._entries(after_index + 1)
        first = entries[0].index if entries else self._raft.log.last_index + 1
        if first > after_index + 1:
            _log.warning(
                "of what is given up, entries %d to %d are no longer in the log, which is kept up to "
                "log_retention_bytes: what they changed is not saved",
                after_index + 1,
                first - 1,
            )
        if all(entry.kind in (EntryKind.NOOP, EntryKind.EPOCH) for entry in entries):
            return
        header = ForkHeader(
            node=self._settings.name,
            cluster_id=self._settings.cluster_id,
            epoch=self._epoch(),
            fork_index=fork_index,
            first_index=entries[0].index,
            last_index=entries[-1].index,
            saved_at_ms=self._clock.now_ms(),
        )
        self.saved_path = await self._keeper.save(header, entries)
        _log.warning(
            "%d entries that nobody else may have are saved in %s: `kvnode changelog show` reads it",
            len(entries),
            self.saved_path,
        )

    def _entries(self, first: int) -> list[Entry]:
        log = self._raft.log
        found: list[Entry] = []
        index = max(first, log.first_index())
        while index <= log.last_index:
            part = log.entries(index, log.last_index + 1, _READ_BYTES)
            if not part:
                break
            found += part
            index = part[-1].index + 1
        return found
