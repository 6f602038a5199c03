"""A stream to a peer with a lane beside it (lane.py).

The lane is opened once the stream is up, if the peer's welcome offered one, and closed with the stream. Until it is
open, or where it cannot be opened, the stream carries what the lane would.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Callable

from grpc import aio

from kvnode.base import limits
from kvnode.node.lane import Lane
from kvnode.node.peer_stream import PeerStream, RawCall

_log = logging.getLogger(__name__)


class LanedStream(PeerStream):
    """The lane's life; subclasses say what travels on it.

    Args:
        peer, method, channel: see PeerStream.
        lane_host: where the peer's lane is looked for; empty = take none, whatever is offered.
    """

    def __init__(self, peer: str, method: str, channel: aio.Channel, lane_host: str) -> None:
        super().__init__(peer, method, channel)
        self._lane_host = lane_host
        self._lane_offer: tuple[int, bytes] = (0, b"")  # port and token, to be set from the welcome; 0 = none
        self._lane: Lane | None = None
        self._lane_opening: asyncio.Task[None] | None = None
        self._call: RawCall | None = None

    @property
    def has_lane(self) -> bool:
        """Whether the lane is open: what is queued leaves by it."""
        return self._lane is not None

    @abstractmethod
    def _fill_lane(self) -> None:
        """The lane takes more: send what waits."""

    def _by_lane(self) -> Callable[[bytes], None] | None:
        """What takes the messages that come back by the lane; None = none is expected."""
        return None

    def _went_up(self, call: RawCall) -> None:
        self._call = call
        if self._lane_host and self._lane_offer[0]:
            self._lane_opening = asyncio.get_running_loop().create_task(self._open_lane())

    def _close_lane(self) -> None:
        """The stream is over."""
        if self._lane_opening is not None:
            self._lane_opening.cancel()
        if self._lane is not None:
            self._lane.close()
        self._call = self._lane = self._lane_opening = None

    async def _open_lane(self) -> None:
        port, token = self._lane_offer
        try:
            async with asyncio.timeout(limits.PEER_CONNECT_TIMEOUT_MS / 1_000):
                self._lane = await Lane.open(
                    self._lane_host, port, token, self._lane_lost, self._fill_lane, self._by_lane()
                )
        except (OSError, TimeoutError) as error:
            _log.info("no lane to %s at port %d, %s goes on without: %s", self._peer, port, self._method, error)
        else:
            self._fill_lane()

    def _lane_lost(self) -> None:
        """The connection is gone, with what was on it: so is the stream, which says what that means."""
        self._lane = None
        if self._call is not None:
            self._call.cancel()
