"""What only a leader has: its peers' progress, its tail's size, a transfer under way."""

from __future__ import annotations

from collections import deque

from kvnode.raft.progress import Progress


class Leadership:
    """The state of one leadership; made at the election and dropped with it."""

    __slots__ = (
        "_uncommitted",
        "first_index",
        "heartbeat_elapsed",
        "lease_given_up",
        "lease_void",
        "notices_due",
        "peers",
        "ticks",
        "transfer_ticks",
        "transferring",
        "uncommitted_bytes",
    )

    def __init__(self, first_index: int) -> None:
        self.first_index = first_index  # of this leadership's own term
        self.ticks = 0
        self.heartbeat_elapsed = 0
        self.peers: dict[int, Progress] = {}  # everyone but this node
        self.transferring = 0  # to this node; 0 = no transfer
        self.transfer_ticks = 0
        self.lease_given_up = False  # a voter was, or is about to be, told to campaign: no more lease
        self.lease_void = False  # the process was frozen and no quorum has answered since
        self.notices_due = False  # followers are to be told the commit index, where no append tells them
        self.uncommitted_bytes = 0
        self._uncommitted: deque[tuple[int, int]] = deque()  # (index, bytes) of each own entry of it

    def appended(self, index: int, size_bytes: int) -> None:
        """Count an entry of this term into the uncommitted tail."""
        self._uncommitted.append((index, size_bytes))
        self.uncommitted_bytes += size_bytes

    def settled(self, index: int) -> None:
        """Take out what is committed and on this node's own disk: everything up to `index`."""
        uncommitted = self._uncommitted
        while uncommitted and uncommitted[0][0] <= index:
            self.uncommitted_bytes -= uncommitted.popleft()[1]
