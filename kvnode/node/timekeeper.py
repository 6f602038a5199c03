"""A node's part in log time: it judges its own clock, and gives the next entry its time while it leads."""

from __future__ import annotations

from collections.abc import Callable

from kvnode.base.clock import Clock
from kvnode.node.clock_guard import ClockGuard, LogTime
from kvnode.node.stats import Stats
from kvnode.raft.raft import Raft


class Timekeeper:
    """Holds the clock guard to its word, and log time to the state's.

    Args:
        clock: ours.
        max_clock_offset_ms: how far it may be from the others'.
        raft: who votes, and who leads.
        stats: where it counts.
        state_log_time_ms: the log time of the state.
    """

    def __init__(
        self,
        clock: Clock,
        max_clock_offset_ms: int,
        raft: Raft,
        stats: Stats,
        state_log_time_ms: Callable[[], int],
    ) -> None:
        self.guard = ClockGuard(clock, max_clock_offset_ms)
        self._log_time = LogTime(clock, max_clock_offset_ms)
        self._raft = raft
        self._stats = stats
        self._state_log_time_ms = state_log_time_ms
        self._last_ms = state_log_time_ms()

    @property
    def offset_ms(self) -> float:
        """This node's clock minus the median of those by which it is judged."""
        return self.guard.offset_ms(*self._jury())

    def next_ms(self) -> int:
        """The log time of the next entry; it never goes back."""
        self._last_ms = self._log_time.next_ms(max(self._last_ms, self._state_log_time_ms()))
        return self._last_ms

    def judge(self) -> None:
        """Let only a node whose clock others agree with stand for election, or lead."""
        voters, members = self._jury()
        trusted = self.guard.trusted(voters, members)
        outvoted = self.guard.outvoted(voters, members)
        self._raft.campaign_allowed = trusted and not outvoted
        if self._log_time.is_held:
            self._log_time.look(is_witnessed=self.guard.is_witnessed(voters, members), outvoted=outvoted)
        if not trusted and self._raft.is_leader:
            self._stats.step_downs += 1
            self._raft.step_down(f"the clock is {self.offset_ms:.0f} ms from the others' median")

    def elected(self) -> None:
        """This node was elected: its clock is judged once more, and log time goes by it from here on."""
        self.judge()  # it may have stepped since the last tick
        if self._raft.is_leader:
            is_witnessed = self.guard.is_witnessed(*self._jury())
            self._log_time.begin(self._state_log_time_ms(), is_witnessed=is_witnessed)

    def _jury(self) -> tuple[list[int], list[int]]:
        """The other voters, and all other members."""
        membership, own_id = self._raft.membership, self._raft.node_id
        voters = [member.node_id for member in membership.voters if member.node_id != own_id]
        return voters, [member.node_id for member in membership.members if member.node_id != own_id]
