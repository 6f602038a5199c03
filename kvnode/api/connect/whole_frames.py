"""Frames of a watch in which every key has its entry, also what has not changed.

The protocol lets a server leave out what is unchanged (`changed` false, no entry). Deno 2.9 takes such a key for a
deleted one and hands its program `null` in place of the value that is there; @deno/kv and Deno both drop by themselves
what they have seen before, by its versionstamp. So all is sent, always: at most MAX_WATCHED_KEYS_COUNT entries a
frame, and as many kept in memory for each watch.
"""

from __future__ import annotations

from kvnode.proto.kv.v1 import kv_pb2


class WholeFrames:
    """Remembers what the frames of one watch said last."""

    def __init__(self) -> None:
        self._last: list[kv_pb2.WatchKey] = []

    def fill(self, frame: kv_pb2.WatchResponse) -> kv_pb2.WatchResponse:
        """The same state with every key as changed. The first frame must have them all."""
        if not self._last:
            self._last = [_copy(key) for key in frame.keys]
        for position, key in enumerate(frame.keys):
            if key.changed:
                self._last[position] = _copy(key)
        return kv_pb2.WatchResponse(keys=self._last, versionstamp=frame.versionstamp)


def _copy(key: kv_pb2.WatchKey) -> kv_pb2.WatchKey:
    """A message of its own: a part of the frame would keep all of the frame in memory."""
    copied = kv_pb2.WatchKey()
    copied.CopyFrom(key)
    copied.changed = True
    return copied
