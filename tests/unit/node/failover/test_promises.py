"""How promises are collected, and which groups of voters a node tells of."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from kvnode.base.errors import InvalidRequest, KvError, Unavailable
from kvnode.codec.membership import Member, MemberRole
from kvnode.node.failover.groups import Groups
from kvnode.node.failover.promises import Promises, collect
from kvnode.proto.kv.internal.v1.failover_pb2 import FailoverGroup, FailoverReport, FailoverResponse
from tests.simulation import loop as simulated_loop

Answer = Callable[[], Awaitable[None]]


def node(node_id: int) -> Member:
    return Member(node_id, f"n{node_id}", "r", "d", "", MemberRole.REPLICA)


def other(code: str = "FAILOVER_IN_PROGRESS") -> KvError:
    return Unavailable("another one", code=code, phase="failover")


async def at_once() -> None:
    """A promise."""


async def late() -> None:
    await asyncio.sleep(5)


def refusing(error: KvError) -> Answer:
    async def answer() -> None:
        raise error

    return answer


def collected(answers: dict[int, Answer], required: set[int]) -> tuple[Promises, list[int], float]:
    """What comes of asking those nodes, whom was asked, and after how many seconds."""
    asked: list[int] = []

    async def run(loop: simulated_loop.SimulatedLoop) -> tuple[Promises, list[int], float]:
        async def ask(member: Member) -> FailoverResponse:
            asked.append(member.node_id)
            await answers[member.node_id]()
            return FailoverResponse(report=FailoverReport(node_id=member.node_id))

        began = loop.time()
        return await collect(map(node, answers), required, ask), asked, loop.time() - began

    return simulated_loop.run(run)


def test_all_are_asked_in_the_order_of_their_ids() -> None:
    found, asked, _ = collected({3: at_once, 1: at_once, 2: at_once}, {3})
    assert asked == [1, 2, 3] == [report.node_id for report in found.reports]
    assert found.hindrance is None and found.may_stand


@pytest.mark.parametrize("code", ["FAILOVER_IN_PROGRESS", "EPOCH_PROMISED"])
def test_who_is_refused_by_the_first_one_has_changed_nothing(code: str) -> None:
    found, asked, _ = collected({1: refusing(other(code)), 2: at_once, 3: at_once}, {3})
    assert asked == [1] and not found.may_stand
    assert found.hindrance is not None and found.hindrance[0].node_id == 1


def test_who_is_refused_later_asks_no_further() -> None:
    found, asked, _ = collected({1: at_once, 2: refusing(other()), 3: at_once}, {3})
    assert asked == [1, 2] and found.may_stand and found.hindrance is not None


def test_a_member_that_does_not_vote_may_be_gone_and_a_voter_may_not() -> None:
    gone = refusing(Unavailable("gone", code="PEER_UNREACHABLE"))
    found, asked, _ = collected({1: gone, 2: at_once}, {2})
    assert asked == [1, 2] and found.hindrance is None
    found, asked, _ = collected({1: gone, 2: at_once}, {1})
    assert asked == [1] and found.hindrance is not None
    assert found.may_stand, "it may have promised before it was gone"


def test_who_is_slow_is_passed_over_after_its_turn_and_waited_for() -> None:
    found, asked, took_s = collected({1: late, 2: at_once, 3: at_once}, {3})
    assert asked == [1, 2, 3] and [report.node_id for report in found.reports] == [1, 2, 3]
    assert took_s == pytest.approx(5)


def test_a_refusal_that_comes_late_counts() -> None:
    async def at_last() -> None:
        await asyncio.sleep(3)
        raise other()

    found, _, _ = collected({1: at_last, 2: at_once}, {2})
    assert found.hindrance is not None and found.may_stand


def test_what_is_no_error_of_the_product_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        collected({1: refusing(ZeroDivisionError())}, set())  # type: ignore[arg-type]


def test_a_refused_vote_is_no_other_failover() -> None:
    refused = refusing(other("BALLOT_REFUSED"))
    found, asked, _ = collected({1: refused, 2: at_once}, {2})
    assert asked == [1, 2] and found.hindrance is None
    found, _, _ = collected({1: refused}, {1})
    assert found.hindrance is not None and not found.may_stand


def test_superseded_may_come_after_the_promise() -> None:
    found, _, _ = collected({1: refusing(InvalidRequest("FAILOVER_SUPERSEDED", "no", phase="failover"))}, {1})
    assert found.may_stand


@pytest.mark.parametrize("seed", range(100))
def test_of_any_coordinators_that_reach_any_nodes_one_is_refused_by_nobody(seed: int) -> None:
    draw = random.Random(seed)
    held_by: dict[int, int] = {}

    async def coordinate(own: int) -> Promises:
        async def ask(member: Member) -> FailoverResponse:
            await asyncio.sleep(draw.random() / 4)
            if held_by.setdefault(member.node_id, own) != own:
                raise other()
            await asyncio.sleep(draw.random() / 4)
            return FailoverResponse(report=FailoverReport(node_id=member.node_id))

        reached = draw.sample(range(1, 8), draw.randint(3, 7))
        await asyncio.sleep(draw.random() * draw.choice((0, 1)))
        return await collect(map(node, reached), reached, ask)

    async def run(_loop: simulated_loop.SimulatedLoop) -> list[Promises]:
        return await asyncio.gather(*map(coordinate, range(draw.randint(2, 4))))

    assert any(found.hindrance is None for found in simulated_loop.run(run))


def told(groups: Groups, log_epoch: int, latest: int) -> list[tuple[int, list[int]]]:
    return [(group.epoch, list(group.voter_ids)) for group in groups.above(log_epoch, latest)]


def test_a_group_that_was_promised_before_another_is_told_of_until_an_epoch_begins() -> None:
    groups = Groups()
    groups.promised(2, [4, 5], groups.above(1, 1))
    groups.promised(3, [1, 2], groups.above(1, 2))
    assert told(groups, 1, 3) == [(2, [4, 5]), (3, [1, 2])]
    groups.promised(4, [4, 5], groups.above(1, 3))
    assert told(groups, 1, 4) == [(4, [4, 5]), (3, [1, 2])]
    assert told(groups, 4, 4) == []


def test_what_was_promised_before_the_start_or_heard_of_is_a_group_that_nobody_knows() -> None:
    groups = Groups()
    assert told(groups, 1, 1) == []
    assert told(groups, 1, 2) == [(2, [])]
    groups.promised(3, [1, 2], groups.above(1, 2))
    assert told(groups, 1, 3) == [(2, []), (3, [1, 2])]
    assert told(groups, 1, 5)[2:] == [(5, [])]


def test_a_seal_says_who_votes_behind_it() -> None:
    groups, sealed = Groups(), [FailoverGroup(epoch=2, voter_ids=[6])]
    assert groups.above(1, 2, known=sealed) == []
    groups.promised(3, [1, 2], sealed + groups.above(1, 2, known=sealed))
    assert [group.epoch for group in groups.above(1, 3, known=sealed)] == [3]


def test_a_number_that_was_heard_of_and_is_promised_here_is_no_longer_unknown() -> None:
    groups = Groups()
    groups.promised(2, [4, 5], groups.above(1, 2))
    assert told(groups, 1, 2) == [(2, [4, 5])]
