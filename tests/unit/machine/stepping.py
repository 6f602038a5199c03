"""How a random history is walked that a model is held against: batches, their loss, applies and elections."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import strategies as st

from tests.unit.machine.fakes import MemoryState

STEPS = st.lists(st.sampled_from("bbbbbaaAdl"), min_size=5, max_size=60)


class Stepping:
    """One leader after the other, and a follower that applies the same log in other runs."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.leader, self.follower = MemoryState(), MemoryState()
        self.log: list[Any] = []
        self.follower_count = 0

    def walk(self, steps: list[str]) -> None:
        for step in steps:
            if step == "b":
                self.batch(discard=False)
            elif step == "d":
                self.batch(discard=True)
            elif step == "a":
                self.apply(self.chance.choice([1, 2, 4]))
            elif step == "A":
                self.apply_all()
            else:
                self.elect()
        self.apply_all()

    def follow(self) -> None:
        """Let the follower catch up: it holds the same rows then."""
        while self.follower_count < len(self.log):
            step = self.chance.choice([1, 2, 3])
            self.follower.apply(self.log[self.follower_count : self.follower_count + step])
            self.follower_count = min(self.follower_count + step, len(self.log))
        assert self.follower.rows == self.leader.rows

    def batch(self, *, discard: bool) -> None:
        raise NotImplementedError

    def apply(self, count: int) -> None:
        raise NotImplementedError

    def apply_all(self) -> None:
        raise NotImplementedError

    def elect(self) -> None:
        raise NotImplementedError
