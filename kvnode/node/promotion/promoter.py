"""When a node calls a ballot for its region, and how a leader ends what a lost one has left behind.

A ballot that was lost half way, or whose coordinator died, leaves nodes that have promised an epoch which nobody began.
They follow nobody until an epoch above it begins. If they can win one by themselves, the next ballot does. If the
primary lives, and so holds its lease without them, its leader *renews*: it seals its own epoch and begins the next one
with the same voters, as a planned move to its own region, which loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random

from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.base.errors import KvError
from kvnode.node.failover.coordinator import Coordinator
from kvnode.node.failover.plan import Report, waits_in_vain
from kvnode.node.promotion.ballot import turn_of
from kvnode.node.promotion.promotion import Promotion
from kvnode.node.settings import NodeSettings
from kvnode.raft.raft import Raft

_log = logging.getLogger(__name__)


class Promoter:
    """Looks, now and then, whether this node should act.

    Args:
        epoch: of the state.
    """

    def __init__(
        self,
        settings: NodeSettings,
        raft: Raft,
        promotion: Promotion,
        coordinator: Coordinator,
        clock: Clock,
        random_source: Random,
        epoch: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._raft = raft
        self._promotion = promotion
        self._coordinator = coordinator
        self._clock = clock
        self._random = random_source
        self._epoch = epoch
        self._could_win_since: float | None = None
        self._fruitless_count = 0  # looks in a row after which there was nothing to do
        self._said = ""
        self._looked_at = clock.monotonic_ms()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(self._pause_s())
            try:
                if self._raft.is_leader:
                    await self._lead()
                elif self._promotion.ballot_wait_ms() == 0:
                    await self._stand()
                else:
                    self._could_win_since, self._fruitless_count = None, 0
            except (KvError, ValueError) as error:
                self._say(f"no promotion of '{self._settings.region}' for now: {error}")

    def _pause_s(self) -> float:
        """Longer and longer, up to a bound, for a node that is cut off with a minority."""
        factor = min(1 + self._fruitless_count // 8, limits.MAX_BALLOT_INTERVAL_FACTOR)
        return factor * limits.BALLOT_INTERVAL_MS * self._random.uniform(0.5, 1.5) / 1_000

    def _say(self, text: str) -> None:
        """Once, however often it is found."""
        if text != self._said:
            self._said = text
            _log.info("%s", text)

    async def _stand(self) -> None:
        """Call a ballot if one can be won, and it is this node's turn."""
        turn = turn_of(await self._coordinator.survey(), self._settings.node_id)
        now = self._clock.monotonic_ms()
        self._fruitless_count += 1
        if turn is None:
            self._could_win_since = None
            return
        if self._could_win_since is None:
            self._could_win_since = now
        # A leader that is there gets its lease with the next ask, and whoever granted one votes when it has run out;
        # unless those who could grant it have promised another epoch, in a ballot that was lost. Then it goes on asking
        # in vain, and nothing is answered until a ballot is won.
        patience_ms = 2 * self._promotion.wished_ms if turn.is_early else 0
        if now - self._could_win_since < patience_ms + turn.rank * limits.BALLOT_TURN_MS:
            return
        self._could_win_since, self._fruitless_count = None, 0
        _log.warning("nobody holds the primary lease: calling a ballot to promote '%s'", self._settings.region)
        plan = await self._coordinator.promote(turn.willing)
        self._promotion.promotions_count += 1
        _log.warning("'%s' is the primary region now, in epoch %d", self._settings.region, plan.epoch)

    async def _lead(self) -> None:
        """Look for members that have promised an epoch which never began."""
        now, raft = self._clock.monotonic_ms(), self._raft
        if now - self._looked_at < limits.RENEWAL_AFTER_MS:
            return
        self._looked_at = now
        if not self._promotion.is_required or not self._promotion.is_held or raft.sealed:
            return
        reports = await self._coordinator.survey()
        if any(_is_stuck(report, self._epoch()) for report in reports):
            _log.warning("a ballot was lost half way: this region begins the next epoch, so that its voters return")
            await self._coordinator.renew(reports)


def _is_stuck(report: Report, epoch: int) -> bool:
    """Whether it waits for an epoch that was to begin long ago."""
    return waits_in_vain(report, epoch) and not 0 <= report.promised_ago_ms < limits.RENEWAL_AFTER_MS
