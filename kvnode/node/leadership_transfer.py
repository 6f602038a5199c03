"""Leadership handed to another voter (Ongaro's dissertation, section 3.10): asked for, or because the node stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvnode.base.errors import InvalidRequest, KvError
from kvnode.codec.membership import Member, MemberRole
from kvnode.node.context import NodeContext

HANDOVER_TIMEOUT_MS = 3_000


class LeadershipTransfer:
    """Hands over what leadership one node has.

    Args:
        context: the node.
        require_leader: raises KvError, naming the leader, when this node is not it.
    """

    def __init__(self, context: NodeContext, require_leader: Callable[[], None]) -> None:
        self._context = context
        self._settings = context.settings
        self._raft = context.raft
        self._clock = context.clock
        self._require_leader = require_leader

    async def ask(self, to: int) -> None:
        """Hand leadership to `to`, or to the most caught-up voter if 0. Raises KvError."""
        self._require_leader()
        target = to or self._best_successor()
        if target == self._settings.node_id:
            return
        member = self._raft.membership.get(target)
        if member is None:
            why = f"there is no member {to}" if to else "no other voter answers that could lead"
            raise InvalidRequest("MEMBER_UNKNOWN", f"{why}; see `kvnode status`")
        if member.role is not MemberRole.VOTER:
            raise InvalidRequest("TRANSFER_TARGET_INVALID", self._no_voter(member))
        self._begin(target)
        deadline = self._clock.monotonic_ms() + HANDOVER_TIMEOUT_MS
        while self._raft.leader_id != target:
            if self._clock.monotonic_ms() >= deadline:
                raise KvError(
                    "TRANSFER_TIMEOUT", f"'{member.name}' did not take over in time; this node leads on", phase="admin"
                )
            await asyncio.sleep(self._settings.tick_ms / 5000)

    def _no_voter(self, member: Member) -> str:
        is_elsewhere = member.region != self._settings.region
        remedy = (
            f"`kvnode failover --plan --to {member.region}` moves the primary to its region"
            if is_elsewhere
            else f"`kvnode member promote {member.name}` makes it a voter"
        )
        return f"'{member.name}' is a {member.role.value} in '{member.region}', and only a voter may lead; {remedy}"

    async def give_up(self) -> None:
        """Give leadership to the most caught-up voter, if this node has it: it is about to stop."""
        target = self._best_successor()
        if not self._raft.is_leader or not target or self._context.failed.done():
            return
        deadline = self._clock.monotonic_ms() + HANDOVER_TIMEOUT_MS
        try:
            self._begin(target)
        except KvError:
            return
        while self._raft.is_leader and self._clock.monotonic_ms() < deadline:
            await asyncio.sleep(self._settings.tick_ms / 1000)

    def _begin(self, target: int) -> None:
        with self._context.guard:
            self._raft.transfer_leadership(target)
        self._context.wake()

    def _best_successor(self) -> int:
        voters = {member.node_id for member in self._raft.membership.voters}
        own_id = self._settings.node_id
        candidates = [p for p in self._raft.progress() if p.node_id in voters and p.node_id != own_id]
        alive = [p for p in candidates if 0 <= p.ticks_since_contact <= self._settings.election_ticks]
        return max(alive, key=lambda p: p.match).node_id if alive else 0
