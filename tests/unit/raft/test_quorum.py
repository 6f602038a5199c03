"""The commit rule against a naive definition, for every placement of 3 to 7 voters over data centers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest

from kvnode.codec.membership import Member, MemberRole, Membership
from kvnode.raft.quorum import Quorum, data_center_value, majority_value


def membership(dcs: Sequence[str], min_commit_dcs: int) -> Membership:
    voters = tuple(Member(i + 1, f"n{i}", "r", dc, "") for i, dc in enumerate(dcs))
    learner = Member(99, "l", "r", "elsewhere", "", MemberRole.LEARNER)
    return Membership((*voters, learner), min_commit_dcs)


def placements(count: int) -> Iterator[tuple[int, ...]]:
    """Every way to part `count` voters into data centers: restricted growth strings, so none comes twice."""

    def grow(prefix: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(prefix) == count:
            yield prefix
            return
        for dc in range(max(prefix, default=-1) + 2):
            yield from grow((*prefix, dc))

    return grow(())


def naive_commit(matches: Sequence[int], dcs: Sequence[str], min_dcs: int) -> int:
    """The highest index that more than half of the voters, standing in min_dcs data centers, have persisted."""
    for index in range(max(matches), 0, -1):
        have = [dc for match, dc in zip(matches, dcs, strict=True) if match >= index]
        if 2 * len(have) > len(dcs) and len(set(have)) >= min_dcs:
            return index
    return 0


@pytest.mark.parametrize("count", range(3, 8))
def test_commit_rule_on_every_placement(count: int) -> None:
    # Any order of matches may be met; three distinct values meet every case of "above, at, below" up to 5 voters,
    # and two values ("has it or not") decide the rule for one index completely.
    values = range(3) if count <= 5 else range(2)
    for placement in placements(count):
        dcs = [f"dc{number}" for number in placement]
        for min_dcs in range(1, 5):
            quorum = Quorum(membership(dcs, min_dcs))
            for matches in itertools.product(values, repeat=count):
                assert quorum.commit_index(matches) == naive_commit(matches, dcs, min_dcs), (dcs, min_dcs, matches)


@pytest.mark.parametrize("count", range(3, 8))
def test_whoever_wins_an_election_has_every_commit(count: int) -> None:
    """Any electing majority meets any committing set."""
    voters = range(count)
    majority = count // 2 + 1
    for placement in placements(count):
        quorum = Quorum(membership([f"dc{number}" for number in placement], 2))
        for have in itertools.chain.from_iterable(itertools.combinations(voters, n) for n in range(count + 1)):
            if quorum.commit_index([int(v in have) for v in voters]):
                assert len(have) + majority > count


def test_majority_of_few() -> None:
    assert majority_value([]) == 0
    assert majority_value([5]) == 5
    assert majority_value([5, 3]) == 3
    assert majority_value([1, 9, 4]) == 4
    assert majority_value([1, 9, 4, 8]) == 4


def test_too_few_data_centers_commit_nothing() -> None:
    assert data_center_value([7, 7], ["a", "a"], 2) == 0
    assert Quorum(membership(["a"], 2)).commit_index([7]) == 0
    assert Quorum(membership(["a"], 1)).commit_index([7]) == 7


def test_tally() -> None:
    quorum = Quorum(membership(["a", "b", "c"], 1))
    assert quorum.tally({1: True}) is None
    assert quorum.tally({1: True, 2: True}) is True
    assert quorum.tally({1: True, 99: True}) is None, "a learner's vote does not count"
    assert quorum.tally({2: False, 3: False}) is False
    even = Quorum(membership(["a", "b", "c", "d"], 1))
    assert even.tally({1: True, 2: True}) is None
    assert even.tally({1: False, 2: False}) is False
