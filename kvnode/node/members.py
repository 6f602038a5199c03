"""Changes of membership, one at a time, on the leader.

add = adopt the new node (it learns the cluster id and waits) and let it receive as a learner; promote = let it vote
once it has caught up; remove; replace = add, promote, remove, so that the number of voters never falls below what
it was. Every step is an entry of the log and is over once this node has applied it.

A replacement that broke off half way (the leader died, the time ran out) is finished by asking for it again: each of
its steps is left out when the membership shows that it is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace as with_fields

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, KvError, Unavailable
from kvnode.base.topology import Problem, other_region, topology_problems
from kvnode.codec.membership import Member, MemberRole, Membership, encode_membership
from kvnode.node.guard import Guard
from kvnode.node.member_wire import member_from_wire, member_to_wire
from kvnode.node.ports import Transport
from kvnode.node.settings import NodeSettings
from kvnode.proto.kv.internal.v1 import failover_pb2, peer_pb2
from kvnode.raft.raft import Raft

POLL_MS = 50
CHANGE_TIMEOUT_MS = 30_000
_NOT_YET_CODES = frozenset({
    "LEARNER_NOT_CAUGHT_UP", "MEMBERSHIP_CHANGE_IN_PROGRESS", "MEMBERSHIP_NOT_SPREAD", "LEADER_NOT_READY"
})  # fmt: skip


class Members:
    """The membership verbs of one node; each raises KvError with what to do instead."""

    def __init__(
        self,
        settings: NodeSettings,
        raft: Raft,
        transport: Transport,
        wake: Callable[[], None],
        applied_index: Callable[[], int],
        now_ms: Callable[[], float],
        guard: Guard,
        epoch: Callable[[], int],
        check_change: Callable[[Membership], None] = lambda _after: None,
    ) -> None:
        self._check_change = check_change
        self._epoch = epoch
        self._settings = settings
        self._raft = raft
        self._transport = transport
        self._wake = wake
        self._applied_index = applied_index
        self._now_ms = now_ms
        self._guard = guard

    async def add(self, wanted: Member) -> Membership:
        """Add the node that listens at `wanted.address`: as a learner, or as the replica that `wanted` may ask for.

        Raises:
            InvalidRequest: MEMBER_ROLE_INVALID, a replica inside the primary region; MEMBER_REGION_CONTRADICTED, its
                data center stands in another region; MEMBER_REMOVED, a node that was a member before: its id is never
                used again.
        """
        self.require_leader()
        seen = await self._identify(wanted)
        member = _newcomer(seen, wanted.address, wanted.role)
        self._check_region(member)
        return await self._join(member)

    def _check_region(self, member: Member) -> None:
        """Commits wait for voters, so those stand in one region; a replica there would only cost."""
        primary = {voter.region for voter in self._raft.membership.voters}
        if member.role is MemberRole.REPLICA and member.region in primary:
            raise InvalidRequest(
                "MEMBER_ROLE_INVALID",
                f"node '{member.name}' stands in the primary region '{member.region}': add it without --replica, and "
                "promote it if it is to vote",
            )

    def _check_may_vote(self, member: Member) -> None:
        """A failover moves all votes at once; a voter elsewhere would put the way between regions into commits."""
        primary = {voter.region for voter in self._raft.membership.voters}
        if member.region not in primary:
            regions = ", ".join(f"'{region}'" for region in sorted(primary))
            raise InvalidRequest(
                "MEMBER_ROLE_INVALID",
                f"node '{member.name}' stands in the region '{member.region}', and the voters in the primary one, "
                f"{regions}, where all have to: promote a node of that region, or move the primary to another one with "
                "`kvnode failover`",
            )

    async def promote(self, node_id: int) -> Membership:
        """Let a caught-up learner vote; or a replica that stands in what a failover has made the primary region.

        Raises:
            InvalidRequest: MEMBER_ROLE_INVALID, it stands in another region than the voters; MEMBER_UNKNOWN;
                LEARNER_NOT_CAUGHT_UP.
        """
        self.require_leader()
        member = self._known(node_id)
        if member.role is MemberRole.VOTER:
            return self._raft.membership
        self._check_may_vote(member)
        if member.role is MemberRole.REPLICA:
            await self._let_learn(member)
            deadline_ms = self._now_ms() + CHANGE_TIMEOUT_MS
            return await self._in_turn(lambda: self.promote(node_id), deadline_ms)
        return await self._propose(self._with(with_fields(member, role=MemberRole.VOTER)))

    async def _let_learn(self, member: Member) -> None:
        """Make a learner of a replica. The leader's appends take no notice of forks: it must be in this epoch."""
        request = failover_pb2.FailoverRequest(
            cluster_id=self._settings.cluster_id, to_node_id=member.node_id, inspect=True
        )
        report = (
            await self._transport.ask_failover(member.address, request, limits.FAILOVER_INSPECT_TIMEOUT_MS)
        ).report
        if report.state_epoch != self._epoch():
            raise InvalidRequest(
                "LEARNER_NOT_CAUGHT_UP",
                f"node '{member.name}' is in epoch {report.state_epoch}, and {self._epoch()} has begun: wait until it "
                "has caught up",
            )
        await self._propose(self._with(with_fields(member, role=MemberRole.LEARNER)))

    async def remove(self, node_id: int, *, force: bool) -> Membership:
        """Remove a member; without `force` only if what remains survives the loss of a data center, and if enough nodes
        know of the members that there are (promotion.check_change)."""
        return await self._remove(node_id, force=force, vouched=force)

    async def _remove(self, node_id: int, *, force: bool, vouched: bool) -> Membership:
        self.require_leader()
        self._known(node_id)
        after = self._raft.membership.without(node_id)
        problems = [p.text for p in _problems(after) if p.severity == "error"]
        before = [p.text for p in _problems(self._raft.membership) if p.severity == "error"]
        if problems and not before and not force:
            raise InvalidRequest(
                "MEMBER_REMOVAL_UNSAFE",
                f"after the removal: {problems[0]}; use `kvnode member replace`, or --force if you accept it",
            )
        return await self._propose(after, vouched=vouched)

    async def replace(self, node_id: int, replacement: Member, timeout_ms: int) -> Membership:
        """Add the replacement, promote it once it has caught up, then remove the old member; finishes what was begun.

        The replacement may have the old member's name and address: a node that lost its data is started anew, in an
        empty directory, where it was.
        """
        self.require_leader()
        old = self._known(node_id)
        deadline_ms = self._now_ms() + (timeout_ms or CHANGE_TIMEOUT_MS * 4)
        seen = await self._identify(replacement)
        member = _newcomer(seen, replacement.address, old.role)
        if member.node_id == node_id:
            raise InvalidRequest(
                "MEMBER_NOT_REPLACED",
                f"the node at {replacement.address} is member '{old.name}' itself: if it was just replaced, nothing is "
                "left to do; else start another node, or this one with an empty data directory",
            )
        if old.role is MemberRole.VOTER:
            self._refuse_other_region(member, node_id)
            self._check_may_vote(member)
        known = self._raft.membership.get(member.node_id)
        if known is None:
            await self._in_turn(lambda: self._join(member, instead_of=node_id), deadline_ms)
        elif not seen.joined:
            await self._adopt(known, self._raft.membership)  # it ended between its promise to join and its joining
        if old.role is MemberRole.VOTER:
            await self._in_turn(lambda: self.promote(member.node_id), deadline_ms)
        return await self._in_turn(lambda: self._remove(node_id, force=True, vouched=False), deadline_ms)

    async def _in_turn(self, step: Callable[[], Awaitable[Membership]], deadline_ms: float) -> Membership:
        """Do a step as soon as the one before is committed, the new node has caught up, and the leader may."""
        while True:
            try:
                return await step()
            except KvError as error:
                if error.code not in _NOT_YET_CODES or self._now_ms() >= deadline_ms:
                    raise
            await asyncio.sleep(POLL_MS / 1000)

    async def _identify(self, wanted: Member) -> peer_pb2.IdentifyResponse:
        """Who listens at the address of `wanted`; raises unless it may belong to this cluster."""
        seen = await self._transport.identify(wanted.address)
        if wanted.node_id and wanted.node_id != seen.member.node_id:
            raise InvalidRequest(
                "MEMBER_ID_MISMATCH",
                f"the node at {wanted.address} has the id {seen.member.node_id}, not {wanted.node_id}",
            )
        if seen.joined and seen.cluster_id != self._settings.cluster_id:
            raise InvalidRequest(
                "MEMBER_OF_ANOTHER_CLUSTER",
                f"the node at {wanted.address} belongs to cluster {seen.cluster_id}: give it an empty data directory",
            )
        return seen

    async def _join(self, member: Member, instead_of: int = 0) -> Membership:
        await self._adopt(member, self._with_new(member, instead_of))
        # Meanwhile others may have changed the membership: nothing that they did may be undone.
        return await self._propose(self._with_new(member, instead_of))

    def _with_new(self, member: Member, instead_of: int) -> Membership:
        self._refuse_removed(member)
        self._refuse_twins(member, instead_of)
        self._refuse_other_region(member, instead_of)
        membership = self._raft.membership
        return with_fields(membership, members=(*membership.members, member))

    def _refuse_removed(self, member: Member) -> None:
        """Nobody reckons any more with what a removed node has promised and acknowledged under its id."""
        if member.node_id in self._raft.membership.removed_ids:
            raise InvalidRequest(
                "MEMBER_REMOVED",
                f"the node at {member.address} has the id {member.node_id} of a member that was removed, and no id is "
                "used again: give it an empty data directory, from which it gets a new one",
            )

    def _refuse_twins(self, member: Member, instead_of: int) -> None:
        for other in self._raft.membership.members:
            if other.node_id == instead_of:
                continue
            for field in ("node_id", "name", "address"):
                if getattr(other, field) == getattr(member, field):
                    raise InvalidRequest(
                        "MEMBER_EXISTS",
                        f"{field} {getattr(member, field)} belongs to member '{other.name}' already: "
                        "give the new node another one, or remove the old member first",
                    )

    def _refuse_other_region(self, member: Member, instead_of: int) -> None:
        """A data center is in one region: commits count the one, failovers and lags the other."""
        others = [other for other in self._raft.membership.members if other.node_id != instead_of]
        region = other_region(member.dc, member.region, [(other.dc, other.region) for other in others])
        if region:
            names = ", ".join(f"'{other.name}'" for other in others if (other.dc, other.region) == (member.dc, region))
            raise InvalidRequest(
                "MEMBER_REGION_CONTRADICTED",
                f"node '{member.name}' says {member.region}/{member.dc}, and the data center {member.dc} stands in the "
                f"region {region}, where {names} is: start the node with --region {region}, or with a --dc of its own, "
                "in an empty data directory",
            )

    async def _adopt(self, member: Member, membership: Membership) -> None:
        await self._transport.adopt(
            member.address,
            peer_pb2.AdoptRequest(
                cluster_id=self._settings.cluster_id,
                epoch=self._epoch(),
                node_id=member.node_id,
                members=[member_to_wire(m) for m in membership.members],
                membership=encode_membership(membership),  # until the log's own: it must know whom to answer
            ),
        )

    async def _propose(self, membership: Membership, *, vouched: bool = False) -> Membership:
        self.require_leader()
        if not vouched:
            self._check_change(membership)
        with self._guard:
            index = self._raft.propose_membership(membership)
        term = self._raft.term
        self._wake()
        deadline = self._now_ms() + CHANGE_TIMEOUT_MS
        wanted = encode_membership(membership)
        while True:
            # First whose entry it was: a successor's entries may take its place and be applied between two looks.
            applied = self._applied_index() >= index
            if self._raft.term != term and encode_membership(self._raft.membership) != wanted:
                raise Unavailable("leadership was lost during the change: look at `kvnode member list`, then retry")
            if applied:
                return membership
            if self._now_ms() >= deadline:
                raise Unavailable(
                    "the change was proposed but not yet committed: too few voters answer; see `kvnode status`",
                    code="DEADLINE_EXCEEDED",
                    phase="commit",
                )
            await asyncio.sleep(POLL_MS / 1000 / 5)

    def _with(self, member: Member) -> Membership:
        members = tuple(member if m.node_id == member.node_id else m for m in self._raft.membership.members)
        return with_fields(self._raft.membership, members=members)

    def _known(self, node_id: int) -> Member:
        member = self._raft.membership.get(node_id)
        if member is None:
            names = ", ".join(f"{m.name}={m.node_id}" for m in self._raft.membership.members)
            raise InvalidRequest("MEMBER_UNKNOWN", f"no member has the id {node_id}; members are {names}")
        return member

    def require_leader(self) -> None:
        """Raise NOT_LEADER, naming the leader, unless this node leads."""
        if not self._raft.is_leader:
            leader = self._raft.membership.get(self._raft.leader_id)
            where = f"ask the leader '{leader.name}' at {leader.address}" if leader else "no leader is known: retry"
            raise Unavailable(f"only the leader changes the membership; {where}", code="NOT_LEADER")


def _newcomer(seen: peer_pb2.IdentifyResponse, address: str, role: MemberRole) -> Member:
    """Whatever else is asked for: who is to vote begins as a learner."""
    role = MemberRole.REPLICA if role is MemberRole.REPLICA else MemberRole.LEARNER
    return with_fields(member_from_wire(seen.member), address=address, role=role)


def _problems(membership: Membership) -> list[Problem]:
    return topology_problems(
        [(m.dc, m.region, m.role is MemberRole.VOTER) for m in membership.members], membership.min_commit_dcs
    )
