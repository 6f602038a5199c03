"""The barrier of those who go on to look at the local state."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.base.errors import Unavailable, VersionstampLost
from kvnode.node.strong_read import catch_up
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.node.cluster import Trio, on_trio, until


class Reader:
    """Answers reads and keeps them."""

    def __init__(self, versionstamp: bytes = b"stamp of 1", *, fails_at: int = -1) -> None:
        self.asked: list[tuple[kv_pb2.ReadRequest, int]] = []
        self._versionstamp = versionstamp
        self._fails_at = fails_at

    async def read(self, request: kv_pb2.ReadRequest, timeout_ms: int = 0) -> kv_pb2.ReadResponse:
        if len(self.asked) == self._fails_at:
            raise Unavailable("no leader")
        self.asked.append((request, timeout_ms))
        return kv_pb2.ReadResponse(versionstamp=self._versionstamp)


async def test_a_strong_read_names_the_state_that_an_eventual_one_waits_for() -> None:
    reader = Reader()
    await catch_up(reader, 700)
    (strong, first_ms), (eventual, second_ms) = reader.asked
    assert strong.consistency == kv_pb2.CONSISTENCY_STRONG and not strong.min_versionstamp
    assert eventual.consistency == kv_pb2.CONSISTENCY_EVENTUAL and eventual.min_versionstamp == b"stamp of 1"
    assert (first_ms, second_ms) == (700, 700)
    assert all(item.limit == 1 and item.keys_only for request, _ in reader.asked for item in request.ranges)


@pytest.mark.parametrize("step", [0, 1])
async def test_what_goes_wrong_is_the_callers_to_know(step: int) -> None:
    with pytest.raises(Unavailable, match="no leader"):
        await catch_up(Reader(fails_at=step), 700)


async def test_whoever_named_no_versionstamp_is_not_told_that_one_is_lost() -> None:
    """A failover cut off what the leader that answered had: the one of the history that goes on is asked."""

    class FailedOver(Reader):
        async def read(self, request: kv_pb2.ReadRequest, timeout_ms: int = 0) -> kv_pb2.ReadResponse:
            if request.min_versionstamp == b"stamp of 1":
                self._versionstamp = b"stamp of 2"
                raise VersionstampLost("a failover kept nothing beyond")
            return await super().read(request, timeout_ms)

    reader = FailedOver()
    await catch_up(reader, 700)
    assert [request.min_versionstamp for request, _ in reader.asked] == [b"", b"", b"stamp of 2"]


@on_trio
async def test_a_follower_has_all_that_was_acknowledged_before(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    node = trio.node(one)
    for n in range(10):
        await trio.put(leader, b"k%d" % n)
        acknowledged = trio.node(leader).raft.commit
        await trio.within(one, catch_up(node, 5_000))
        assert node.applied_index >= acknowledged


@on_trio
async def test_a_node_that_is_cut_off_does_not_pass(trio: Trio) -> None:
    _, one, _ = await trio.leader_and_followers()
    trio.cut(one)
    began_s = asyncio.get_running_loop().time()
    error = await trio.refused(one, catch_up(trio.node(one), 1_000))
    assert error.code == "DEADLINE_EXCEEDED"
    assert asyncio.get_running_loop().time() - began_s < 3
    trio.heal()
    await until(lambda: bool(trio.node(one).leader_id), 20)
    await trio.within(one, catch_up(trio.node(one), 5_000))
