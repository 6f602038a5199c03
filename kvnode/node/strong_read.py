"""A ReadIndex barrier for those who go on to look at the local state, as a strong watch does."""

from __future__ import annotations

from typing import Protocol

from kvnode.base.errors import VersionstampLost
from kvnode.proto.kv.v1 import kv_pb2

_ANY_KEY = b"\x00"
_PROBE = kv_pb2.ReadRange(start=_ANY_KEY, end=_ANY_KEY + _ANY_KEY, limit=1, keys_only=True)


class Reader(Protocol):
    """The part of a node that is needed."""

    async def read(self, request: kv_pb2.ReadRequest, timeout_ms: int = 0) -> kv_pb2.ReadResponse:
        """One read."""


async def catch_up(node: Reader, timeout_ms: int) -> None:
    """Return once the local state holds everything acknowledged before the call. Raises KvError.

    If a failover cuts off what the leader names before it comes here, the leader of the history that goes on is asked:
    the caller knows of no versionstamp, so none of its own is lost. Each turn takes a failover, so there are few.
    """
    while True:
        stamp = await acknowledged(node, timeout_ms)
        try:
            await reach(node, stamp, timeout_ms)
        except VersionstampLost:
            continue
        return


async def acknowledged(node: Reader, timeout_ms: int) -> bytes:
    """The versionstamp up to which everything was acknowledged before the call. Raises KvError.

    A strong read (by the leader, on whichever node that is) names it.
    """
    return (await node.read(kv_pb2.ReadRequest(ranges=[_PROBE]), timeout_ms)).versionstamp


async def reach(node: Reader, versionstamp: bytes, timeout_ms: int) -> None:
    """Return once the local state holds everything up to a versionstamp. Raises KvError."""
    eventual = kv_pb2.ReadRequest(
        ranges=[_PROBE], consistency=kv_pb2.CONSISTENCY_EVENTUAL, min_versionstamp=versionstamp
    )
    await node.read(eventual, timeout_ms)
