"""A forced failover, as the node that coordinates it carries it out; a node of the region that is promoted.

    survey ─► plan ─► (the operator agrees) ─► promise, one by one ─► pull, each new voter ─► begin, each ─► elected

Up to the promises nothing is changed. After them the old epoch is over for whoever promised, so from there on the
failover is to be finished, by this coordinator or by a repeat: a repeat takes a higher epoch, keeps whatever was
already begun if it can fence those who were to vote in it, and goes on from there. What is begun is begun on nodes that
hold the same log up to the fork point, so it makes no difference how many of them were reached when the coordinator
died.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any

from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.base.errors import InvalidRequest, KvError, OutcomeUnknown, Unavailable
from kvnode.codec.membership import Member, Membership, decode_membership
from kvnode.node.epochs import Epochs
from kvnode.node.failover.participant import Participant, entry_to_wire, question, superseded
from kvnode.node.failover.plan import (
    Plan,
    Report,
    Wishes,
    behind_count,
    make_move,
    make_plan,
    make_renewal,
    most_advanced,
    new_ballot,
    require_fenced,
    source_of,
    unfenced,
)
from kvnode.node.failover.promises import Promises, collect
from kvnode.node.ports import Transport
from kvnode.node.promotion.ballot import require_won
from kvnode.node.settings import NodeSettings
from kvnode.proto.kv.internal.v1 import failover_pb2
from kvnode.raft.raft import Raft

_log = logging.getLogger(__name__)
_POLL_S = 0.01
_CATCH_UP_POLL_S = 0.2
_ANOTHER_LEADER = frozenset({"LEADERSHIP_LOST", "LEADERSHIP_TRANSFER", "LEADER_NOT_READY", "NOT_LEADER"})
_NO_LEADER_YET = frozenset({"FAILOVER_IN_PROGRESS", "FAILOVER_NO_PRIMARY"})  # the seal that was lost shows for a moment


class Coordinator:
    """Carries failovers out.

    Args:
        participant: this node's own part.
        random_source: ballots come from it.
    """

    def __init__(
        self,
        settings: NodeSettings,
        raft: Raft,
        epochs: Epochs,
        participant: Participant,
        transport: Transport,
        clock: Clock,
        random_source: Random,
        members: Callable[[], Membership],
    ) -> None:
        self._settings = settings
        self._raft = raft
        self._epochs = epochs
        self._participant = participant
        self._transport = transport
        self._clock = clock
        self._random = random_source
        self._members = members
        self._busy = False

    async def survey(self) -> list[Report]:
        """What every member that answers holds; those that the most advanced one knows included."""
        reports: dict[int, Report] = {}
        asked: set[int] = set()
        membership = self._members()
        while True:
            fresh = [m for m in membership.members if m.node_id not in asked]
            if not fresh:
                return list(reports.values())
            asked.update(member.node_id for member in fresh)
            for answer in await _gather(self._inspect(member) for member in fresh):
                if isinstance(answer, Report):
                    reports[answer.node_id] = answer
            own = self._participant.report()
            reports[own.node_id] = own
            membership = decode_membership(most_advanced(reports.values()).membership)

    async def prepare(self, wishes: Wishes) -> Plan:
        """What a failover would do; nothing is changed. Raises KvError: why it may not be."""
        return make_plan(await self.survey(), wishes, new_ballot(self._random))

    async def execute(self, wishes: Wishes, keep_index: int = 0) -> Plan:
        """Carry a failover out.

        Args:
            keep_index: what the operator was shown to be kept; with less nothing is done.

        Raises:
            KvError: why it was not done, or how far it came; the message says what to do. `not_applied` is False once
                nodes may have promised the epoch.
        """
        with self._alone():
            plan = await self.prepare(wishes)
            require_fenced(plan, wishes)
            if plan.end[1] < keep_index:
                raise InvalidRequest(
                    "FAILOVER_LESS_THAN_SHOWN",
                    f"{_kept_less(plan, keep_index)}. Nothing was begun; run the command again to see what would be "
                    "lost",
                    phase="failover",
                )
            return await self._carry_out(plan, wishes)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One at a time. Raises Unavailable: FAILOVER_IN_PROGRESS."""
        if self._busy:
            raise Unavailable("this node coordinates a failover already", code="FAILOVER_IN_PROGRESS", phase="failover")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    async def promote(self, willing: Sequence[Report]) -> Plan:
        """Hold a ballot for this node's region among the nodes that would vote (node/promotion), and take over.

        Raises:
            KvError: why nothing was begun: BALLOT_LOST, or as make_plan; or how far it came.
        """
        with self._alone():
            wishes = Wishes(self._settings.region, automatic=True)
            return await self._carry_out(make_plan(willing, wishes, new_ballot(self._random)), wishes)

    async def renew(self, reports: Sequence[Report]) -> Plan:
        """As the leader: end the epoch and begin the next one here, with the same voters. Raises KvError."""
        with self._alone():
            plan = make_renewal(reports, self._settings.node_id, new_ballot(self._random))
            await self._hand_over(plan)
            return plan

    async def prepare_move(self, region: str) -> Plan:
        """What a planned move would do; nothing is changed. Raises KvError: why it may not be."""
        return make_move(await self.survey(), region, new_ballot(self._random))

    async def move(self, region: str) -> tuple[Plan, int]:
        """Move the primary to `region` as planned; nothing is lost.

        Returns:
            The plan, and for how many milliseconds nobody took writes, as this node saw it.

        Raises:
            KvError: FAILOVER_LAG_TOO_LARGE, the region does not come near enough, and nothing was changed; others as
                prepare_move; FAILOVER_INCOMPLETE, the epoch is, or may be, sealed, and nobody has taken over yet.
        """
        with self._alone():
            plan = await self._near_enough(region)
            deadline = self._clock.monotonic_ms() + limits.MOVE_NEXT_LEADER_TIMEOUT_MS
            while True:
                began = self._clock.monotonic_ms()
                try:
                    await self._hand_over(plan)
                except KvError as error:
                    if error.code not in _ANOTHER_LEADER or began >= deadline:
                        raise
                    plan = await self._with_next_leader(plan, deadline)
                else:
                    return plan, int(self._clock.monotonic_ms() - began)

    async def _with_next_leader(self, plan: Plan, deadline_ms: float) -> Plan:
        """The leader was replaced before its seal was committed, and nothing was changed: the plan for the next one."""
        while True:
            await asyncio.sleep(_CATCH_UP_POLL_S)
            try:
                next_plan = await self._near_enough(plan.region)
            except KvError as error:
                if error.code not in _NO_LEADER_YET or self._clock.monotonic_ms() >= deadline_ms:
                    raise
            else:
                if next_plan.source.state_epoch != plan.source.state_epoch:  # not this move's leader any more
                    raise superseded(next_plan.source.name, next_plan.source.state_epoch)
                return next_plan

    async def _hand_over(self, plan: Plan) -> None:
        """Have the leader seal its epoch, and wait for the next one."""
        leader = plan.membership.get(plan.source.node_id)
        assert leader is not None
        seal = failover_pb2.FailoverSeal(voter_ids=[member.node_id for member in plan.voters])
        await self._ask(plan, leader, seal=seal)
        await self._taken_over(plan)

    async def _near_enough(self, region: str) -> Plan:
        """Before anything is sealed: the new voters answer, and hold nearly all."""
        deadline = self._clock.monotonic_ms() + limits.MOVE_CATCH_UP_TIMEOUT_MS
        while True:
            reports = await self.survey()
            plan = make_move(reports, region, new_ballot(self._random))
            behind = behind_count(plan, reports)
            if behind <= limits.MAX_MOVE_LAG_COUNT:
                return plan
            if self._clock.monotonic_ms() >= deadline:
                raise InvalidRequest(
                    "FAILOVER_LAG_TOO_LARGE",
                    f"'{region}' is {behind} entries behind the leader and does not catch up: nothing was changed; try "
                    "again when it has",
                    phase="failover",
                )
            await asyncio.sleep(_CATCH_UP_POLL_S)

    async def _carry_out(self, plan: Plan, wishes: Wishes) -> Plan:
        promises = await self._promises(plan, wishes)
        try:
            plan = _fenced(plan, wishes, promises)
            await self._pull(plan)
            await self._begin(plan)
            await self._taken_over(plan)
        except KvError as error:
            error.not_applied = not promises.may_stand  # who has promised has left the primary
            raise
        _log.warning("epoch %d has begun in '%s', behind entry %d", plan.epoch, plan.region, plan.end[1])
        return plan

    async def _promises(self, plan: Plan, wishes: Wishes) -> Promises:
        voter_ids = [member.node_id for member in plan.voters]
        ask = failover_pb2.FailoverPromise(voter_ids=voter_ids, automatic=wishes.automatic)
        members = [member for member in plan.membership.members if member not in plan.silent]
        return await collect(members, voter_ids, lambda member: self._ask(plan, member, promise=ask))

    async def _pull(self, plan: Plan) -> None:
        """Bring every new voter to the source's end."""
        source, (end_term, end_index) = plan.source, plan.end
        where = plan.membership.get(source.node_id)
        ask = failover_pb2.FailoverPull(
            from_node_id=source.node_id,
            from_address=where.address if where else "",
            up_to_index=end_index,
            up_to_term=end_term,
        )
        others = [member for member in plan.voters if member.node_id != source.node_id]
        answers = await _gather(self._ask(plan, member, pull=ask) for member in others)
        for member, answer in zip(others, answers, strict=True):
            if isinstance(answer, KvError):
                raise _broke_off(plan, member, answer)

    async def _begin(self, plan: Plan) -> None:
        """Begin the epoch on every new voter; a majority is enough, the leader brings it to the others."""
        entry = entry_to_wire(plan.entry)
        own = self._settings.node_id
        first = own if any(member.node_id == own for member in plan.voters) else plan.voters[0].node_id
        others = [member for member in plan.voters if member.node_id != first]
        last = [member for member in plan.voters if member.node_id == first]
        failures: list[tuple[Member, KvError]] = []
        for group, campaign in ((others, False), (last, True)):  # who campaigns finds the others ready to vote
            ask = failover_pb2.FailoverBegin(entry=entry, campaign=campaign)
            answers = await _gather(self._ask(plan, member, begin=ask) for member in group)
            failures += [
                (member, answer) for member, answer in zip(group, answers, strict=True) if isinstance(answer, KvError)
            ]
        if 2 * len(failures) >= len(plan.voters):
            raise _broke_off(plan, *failures[0])

    async def _taken_over(self, plan: Plan) -> None:
        """Wait until the new epoch is in the state here, and has a leader."""
        deadline = self._clock.monotonic_ms() + limits.FAILOVER_TAKE_OVER_TIMEOUT_MS
        while self._epochs.established < plan.epoch or not self._raft.leader_id:
            if self._clock.monotonic_ms() >= deadline:
                raise OutcomeUnknown(
                    f"epoch {plan.epoch} has begun in '{plan.region}', but its voters have elected no leader yet: look "
                    "at `kvnode status`, and start those that are down",
                    code="FAILOVER_INCOMPLETE",
                    phase="failover",
                )
            await asyncio.sleep(_POLL_S)

    async def _inspect(self, member: Member) -> Report:
        request = question(self._settings, member.node_id)
        request.inspect = True
        return (await self._send(member, request, limits.FAILOVER_INSPECT_TIMEOUT_MS)).report

    async def _ask(self, plan: Plan, member: Member, **ask: Any) -> failover_pb2.FailoverResponse:
        request = question(self._settings, member.node_id, plan.epoch, plan.ballot, plan.region)
        for name, value in ask.items():
            getattr(request, name).CopyFrom(value)
        return await self._send(member, request, limits.FAILOVER_ASK_TIMEOUT_MS)

    async def _send(
        self, member: Member, request: failover_pb2.FailoverRequest, timeout_ms: int
    ) -> failover_pb2.FailoverResponse:
        if member.node_id == self._settings.node_id:
            return await self._participant.answer(request)
        return await self._transport.ask_failover(member.address, request, timeout_ms)


def _fenced(plan: Plan, wishes: Wishes, promises: Promises) -> Plan:
    """The plan with the most advanced of those that have promised, and with what they tell. Raises KvError."""
    if promises.hindrance is not None:
        error = _broke_off(plan, *promises.hindrance)
        if promises.may_stand and error is promises.hindrance[1]:
            error.message += (
                f". Nodes have promised epoch {plan.epoch} already: `kvnode status` shows whether they follow"
            )
        raise error
    reports = promises.reports
    if wishes.automatic:
        require_won(reports)
    membership = decode_membership(most_advanced(reports).membership)  # it may have changed since the survey
    not_fenced = unfenced(membership, reports, [report.node_id for report in reports])
    fenced = replace(
        plan,
        source=source_of(reports, is_fenced=not not_fenced),
        membership=membership,
        voters=tuple(filter(None, (membership.get(voter.node_id) for voter in plan.voters))),
        unfenced=not_fenced,
    )
    if len(fenced.voters) < len(plan.voters):
        raise _fell_short(fenced, "a node that was to vote is no member any more")
    if fenced.end < plan.end:
        raise _fell_short(fenced, _kept_less(fenced, plan.end[1]))
    if not wishes.automatic:
        require_fenced(fenced, wishes)
        if fenced.unfenced and not plan.unfenced:
            raise _fell_short(fenced, _fenced_fewer(fenced))  # the epoch's number is one for behind a fence
    return fenced


async def _gather(asks: Any) -> list[Any]:
    """All answers in order; a KvError stands for the one that failed, what else is raised goes on."""
    work: Sequence[Coroutine[Any, Any, Any]] = list(asks)
    answers = await asyncio.gather(*work, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, KvError):
            raise answer
    return answers


def _kept_less(plan: Plan, index: int) -> str:
    return (
        f"entry {index} was to be kept, and the most advanced node that answers now ends at {plan.end[1]}: "
        "who had more does not answer any more"
    )


def _fenced_fewer(plan: Plan) -> str:
    names = ", ".join(f"'{member.name}'" for member in plan.unfenced)
    return f"a majority of the old voters answered and would have been fenced; {names} did not promise any more"


def _fell_short(plan: Plan, reason: str) -> KvError:
    """After the promises less can be had than the plan said."""
    return OutcomeUnknown(
        f"{reason}. Epoch {plan.epoch} has not begun, and the nodes that have promised it take part in no earlier one: "
        "run the command again, to see what can be had now and to go on with that",
        code="FAILOVER_LESS_THAN_SHOWN",
        phase="failover",
    )


def _broke_off(plan: Plan, member: Member, cause: KvError) -> KvError:
    if cause.code in ("BALLOT_REFUSED", "FAILOVER_IN_PROGRESS", "FAILOVER_SUPERSEDED", "EPOCH_PROMISED"):
        return cause
    return OutcomeUnknown(
        f"the failover to '{plan.region}' broke off at '{member.name}': {cause.message} [{cause.code}]. The nodes that "
        f"have promised epoch {plan.epoch} take part in no earlier one: repeat the command, to this region or another",
        code="FAILOVER_INCOMPLETE",
        phase="failover",
    )
