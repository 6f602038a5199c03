"""A ReadIndex barrier for those who go on to look at the local state, as a strong watch does."""

from __future__ import annotations

from typing import Protocol

from kvnode.proto.kv.v1 import kv_pb2

_ANY_KEY = b"\x00"


class Reader(Protocol):
    """The part of a node that is needed."""

    async def read(self, request: kv_pb2.ReadRequest, timeout_ms: int = 0) -> kv_pb2.ReadResponse:
        """One read."""


async def catch_up(node: Reader, timeout_ms: int) -> None:
    """Return once the local state holds everything acknowledged before the call. Raises KvError.

    A strong read (by the leader, on whichever node that is) names the versionstamp up to which everything is
    acknowledged; an eventual read with that as its min_versionstamp waits for the local state to get there.
    """
    probe = kv_pb2.ReadRange(start=_ANY_KEY, end=_ANY_KEY + _ANY_KEY, limit=1, keys_only=True)
    strong = await node.read(kv_pb2.ReadRequest(ranges=[probe]), timeout_ms)
    eventual = kv_pb2.ReadRequest(
        ranges=[probe], consistency=kv_pb2.CONSISTENCY_EVENTUAL, min_versionstamp=strong.versionstamp
    )
    await node.read(eventual, timeout_ms)
