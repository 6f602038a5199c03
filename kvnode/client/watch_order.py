"""A watch that moves to another node does not go back: what is older than it has shown is held back.

A node that is asked for its own state (an eventual watch) may be behind the one that died. Its frames are then gathered
until they come to what was shown last, and delivered as one. Where that takes long the watch moves on to the next
node; and where no node comes there (a cluster that was made anew, or restored) what there is is shown after all.
"""

from __future__ import annotations

from kvnode.base import limits
from kvnode.base.errors import Unavailable
from kvnode.proto.kv.v1 import kv_pb2


class WatchOrder:
    """The order of one watch's frames, over all of its streams. Times are in seconds, of one clock.

    Args:
        of_keys: the watch is of keys, of which each frame names all, in one order; else of a range.
    """

    def __init__(self, *, of_keys: bool) -> None:
        self._merged = _merged_keys if of_keys else _merged_range
        self._shown = b""  # versionstamp of the frame that was delivered last
        self._held: kv_pb2.WatchResponse | None = None  # of the present stream
        self._held_since_s = 0.0
        self._behind_since_s = -1.0  # since when nothing was delivered because of this; below 0 = that is not so

    def begin(self) -> None:
        """A new stream begins."""
        self._held = None

    def take(self, frame: kv_pb2.WatchResponse, now_s: float) -> kv_pb2.WatchResponse | None:
        """What to deliver, now that a frame has come; None = nothing yet."""
        if self._held is None:
            self._held_since_s = now_s
        else:
            frame = self._merged(self._held, frame)
        if frame.versionstamp < self._shown and not self._is_given_up(now_s):
            self._held = frame
            if self._behind_since_s < 0:
                self._behind_since_s = now_s
            return None
        self._held = None
        self._behind_since_s = -1.0
        self._shown = frame.versionstamp
        return frame

    def release(self, now_s: float) -> kv_pb2.WatchResponse | None:
        """What to deliver although no frame has come: nobody is further. Asked at each ping.

        Raises:
            Unavailable: this node has been behind for too long.
        """
        if self._held is None:
            return None
        if self._is_given_up(now_s):
            frame, self._held = self._held, None
            self._behind_since_s = -1.0
            self._shown = frame.versionstamp
            return frame
        if now_s - self._held_since_s >= limits.CLIENT_WATCH_BEHIND_MS / 1_000:
            raise Unavailable("the node is behind what the watch has shown", phase="leader")
        return None

    def _is_given_up(self, now_s: float) -> bool:
        since_s = self._behind_since_s
        return since_s >= 0 and now_s - since_s >= limits.CLIENT_WATCH_GOES_BACK_MS / 1_000


def _merged_keys(held: kv_pb2.WatchResponse, frame: kv_pb2.WatchResponse) -> kv_pb2.WatchResponse:
    """Two frames of a stream as one: the later state, with what changed in either."""
    both = kv_pb2.WatchResponse()
    both.CopyFrom(frame)
    for key, before in zip(both.keys, held.keys, strict=True):
        if not key.changed:
            key.CopyFrom(before)
    return both


def _merged_range(held: kv_pb2.WatchResponse, frame: kv_pb2.WatchResponse) -> kv_pb2.WatchResponse:
    """The same of a range; where it is to be read anew, that says all."""
    if frame.resync:
        return frame
    both = kv_pb2.WatchResponse()
    both.CopyFrom(frame)
    both.resync = held.resync
    del both.keys[:]
    both.keys.extend({key.key: key for key in (*held.keys, *frame.keys)}.values())
    return both
