"""To whom leadership is handed when nobody is named."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from kvnode.base.errors import InvalidRequest
from kvnode.node.leadership_transfer import LeadershipTransfer
from kvnode.raft.types import PeerProgress
from tests.raft.harness import members

ELECTION_TICKS = 10


class Leading:
    """Node 1 leads; whoever is asked takes over at once.

    Args:
        progress: the peers, as (node id, match, ticks since they were heard).
    """

    def __init__(self, *progress: tuple[int, int, int]) -> None:
        self.membership = members("1:a 2:b 3:c 4:d/learner")
        self.leader_id = 1
        self.peers = [PeerProgress(peer, match, match + 1, "replicate", silent) for peer, match, silent in progress]
        context: Any = SimpleNamespace(
            settings=SimpleNamespace(node_id=1, election_ticks=ELECTION_TICKS, tick_ms=1),
            raft=self,
            clock=SimpleNamespace(monotonic_ms=lambda: 0.0),
            failed=SimpleNamespace(done=lambda: False),
            guard=nullcontext(),
            wake=lambda: None,
        )
        self.transfer = LeadershipTransfer(context, lambda: None)

    @property
    def is_leader(self) -> bool:
        return self.leader_id == 1

    def progress(self) -> list[PeerProgress]:
        return self.peers

    def transfer_leadership(self, to: int) -> None:
        self.leader_id = to


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(
    ("progress", "heir"),
    [
        ([(2, 8, 0), (3, 9, 0), (4, 10, 0)], 3),  # the voter that is furthest; no learner
        ([(2, 8, 0), (3, 9, ELECTION_TICKS + 1)], 2),  # one that is silent would not take over
        ([(2, 8, 0), (3, 9, ELECTION_TICKS)], 3),
        ([(2, 8, 0), (3, 9, -1)], 2),  # never heard
    ],
)
async def test_the_most_caught_up_voter_that_lives(progress: list[tuple[int, int, int]], heir: int, ends: bool) -> None:
    node = Leading(*progress)
    await (node.transfer.give_up() if ends else node.transfer.ask(0))
    assert node.leader_id == heir


async def test_where_nobody_lives_leadership_stays() -> None:
    node = Leading((2, 8, 99), (3, 9, 99))
    with pytest.raises(InvalidRequest) as caught:
        await node.transfer.ask(0)
    assert caught.value.code == "MEMBER_UNKNOWN"
    await node.transfer.give_up()
    assert node.is_leader
