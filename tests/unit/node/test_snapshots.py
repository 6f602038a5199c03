"""Snapshots between nodes: catching up, resuming, and what is not installed."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvnode.base import limits
from kvnode.base.errors import KvError, StorageFailed
from kvnode.base.invariant import InvariantViolation
from kvnode.codec.epoch import EpochStart, encode_epoch_start
from kvnode.node.guard import Guard
from kvnode.node.snapshots import FileSource, Snapshots
from kvnode.node.stats import Stats
from kvnode.node.wire import encode_message
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.raft.messages import Message, MessageKind
from kvnode.raft.types import SnapshotMeta
from kvnode.storage import snapshot_transfer
from tests.raft.harness import members
from tests.simulation.cluster import Server
from tests.unit.node.cluster import Trio, on_trio, until
from tests.unit.node.test_members import added, newcomer


async def filled(trio: Trio, server: Server, count: int = 60) -> None:
    """Write more than the log's retention."""
    for n in range(count):
        await trio.put(server, b"filler%d" % n, b"x" * 1_000)


async def source_of(trio: Trio, server: Server, to: Server) -> FileSource:
    """A snapshot of a node, as it is sent to another."""
    node = trio.node(server)
    snapshot = await trio.within(server, node.snapshots.make())
    message = Message(
        MessageKind.SNAPSHOT,
        to.member.node_id,
        server.member.node_id,
        node.raft.term,
        snapshot.term,
        snapshot.index,
        context=snapshot.membership,
    )
    return FileSource(snapshot, message, node.stats)


@on_trio
async def test_a_node_behind_the_log_is_caught_up_by_a_snapshot(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    trio.kill(one)
    await filled(trio, leader)
    for server in (leader, other):
        await trio.within(server, trio.node(server).snapshot_now())
    assert trio.node(leader).log.first_index() > 10
    trio.start(one)
    await until(lambda: one.node is not None, 5)
    await until(lambda: trio.node(one).stats.snapshots_installed == 1, 20, "no snapshot was installed")
    await trio.put(leader, b"after")
    await trio.everywhere()
    digests = {trio.node(server).state.meta.digest for server in trio.serving}
    assert len(digests) == 1
    assert trio.node(one).log.first_index() > 1
    trio.crash(one)
    trio.start(one)
    await until(lambda: one.node is not None, 5)
    await trio.everywhere()
    assert trio.node(one).state.meta.digest in digests


@on_trio
async def test_a_snapshot_that_ends_at_a_seal_seals_the_log_behind_it(trio: Trio) -> None:
    """Else its node, elected in the epoch that has ended, would take writes there while the next one has begun."""
    leader, one, other = await trio.leader_and_followers()
    trio.kill(one)
    await filled(trio, leader)
    raft = trio.node(leader).raft
    elsewhere = members("1:a/replica 2:b/replica 3:c/replica 4:d 5:e")
    sealed_at = raft.propose_seal(encode_epoch_start(EpochStart(2, 1, "eu", elsewhere, 1, planned=True)))
    trio.node(leader).wake()
    for server in (leader, other):
        await until(lambda server=server: trio.node(server).applied_index == sealed_at, 5)  # type: ignore[misc]
        await trio.within(server, trio.node(server).snapshot_now())
    trio.start(one)
    await until(lambda: one.node is not None, 5)
    await until(lambda: trio.node(one).stats.snapshots_installed == 1, 20, "no snapshot was installed")
    await asyncio.sleep(0.1)
    assert trio.node(one).raft.history.sealed_at == sealed_at
    assert trio.node(one).raft.log.ceiling == sealed_at


@on_trio
async def test_retention_drops_only_what_is_durably_applied(trio: Trio) -> None:
    leader = await trio.leading()
    await filled(trio, leader, 40)
    log, state = trio.node(leader).log, trio.node(leader).state
    await asyncio.sleep(3)
    assert log.first_index() - 1 <= state.durable_applied
    await until(lambda: log.first_index() > 1, 90, "the log was never compacted")
    assert log.first_index() - 1 <= state.durable_applied


@on_trio
async def test_an_interrupted_transfer_is_resumed_where_it_broke(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await filled(trio, leader, 20)
    source = await source_of(trio, leader, one)
    size = source.header.size_bytes
    sink = trio.node(one).snapshot_sink()
    assert await sink.open(source.header) == 0
    held = await sink.write(0, await source.read(0, size // 2))
    again = trio.node(one).snapshot_sink()
    assert await again.open(source.header) == held > 0
    source.close()
    other = await source_of(trio, leader, one)
    different = peer_pb2.SnapshotHeader()
    different.CopyFrom(other.header)
    different.snapshot_id = "another"
    assert await trio.node(one).snapshot_sink().open(different) == 0, "the bytes of one are not those of another"
    other.close()


@on_trio
async def test_a_new_node_is_not_ready_before_it_has_its_first_copy(trio: Trio) -> None:
    """It knows the leader, and would show an empty database."""
    leader, *_ = await trio.leader_and_followers()
    await filled(trio, leader)
    for server in trio.servers.values():
        await trio.within(server, trio.node(server).snapshot_now())
    assert trio.node(leader).log.first_index() > 10
    new = newcomer(trio)

    def not_yet(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as disk:
        disk.setattr(snapshot_transfer, "_write_all", not_yet)
        await added(trio, new)
        await until(lambda: trio.node(new).raft.leader_id == leader.member.node_id, 10)
        assert trio.node(new).ready == (False, "waiting for the first copy of the cluster's data")
    await until(lambda: trio.node(new).stats.snapshots_installed == 1, 20, "no snapshot was installed")
    await until(lambda: trio.node(new).ready == (True, "ok"), 20)


@on_trio
async def test_a_snapshot_for_which_there_is_no_room_is_a_problem_of_the_node(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    trio.kill(one)
    await filled(trio, leader)
    for server in (leader, other):
        await trio.within(server, trio.node(server).snapshot_now())

    def no_room(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def problems() -> list[str]:
        return list(trio.node(one).status().problems) if one.node is not None else []

    with pytest.MonkeyPatch.context() as disk:
        disk.setattr(snapshot_transfer, "_write_all", no_room)
        trio.start(one)
        await until(lambda: any("No space left" in text and "tried again" in text for text in problems()), 20)
        assert trio.node(one).stats.snapshots_installed == 0 and not trio.node(one).failed.done()
    await until(lambda: trio.node(one).stats.snapshots_installed == 1, 20, "no snapshot was installed")
    await trio.everywhere()
    await until(lambda: not problems(), 20, "it still sees a problem")


@on_trio
async def test_a_damaged_transfer_is_refused_and_changes_nothing(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await trio.put(leader, b"k")
    await trio.everywhere()
    source = await source_of(trio, leader, one)
    data = bytearray(await source.read(0, source.header.size_bytes))
    data[len(data) // 2] ^= 1
    node = trio.node(one)
    sink = node.snapshot_sink()
    await sink.open(source.header)
    await sink.write(0, bytes(data))
    before = node.state.meta
    error = await trio.refused(one, sink.finish())
    source.close()
    assert "SNAPSHOT" in error.code or "DAMAGED" in error.code, error
    assert node.state.meta == before and not node.failed.done()
    await trio.put(one, b"l")


@on_trio
async def test_a_snapshot_of_what_is_applied_already_is_not_installed(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    await trio.put(leader, b"k")
    await trio.everywhere()
    source = await source_of(trio, leader, one)
    node = trio.node(one)
    sink = node.snapshot_sink()
    await sink.open(source.header)
    await sink.write(0, await source.read(0, source.header.size_bytes))
    started_s = asyncio.get_running_loop().time()
    error = await trio.refused(one, sink.finish())
    source.close()
    assert error.code == "SNAPSHOT_STALE"
    assert asyncio.get_running_loop().time() - started_s < 1, "meanwhile the sender could send no other one"
    assert node.stats.snapshots_installed == 0 and not node.failed.done()


class FakeReceiver:
    """A transfer that is complete."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    async def finish(self) -> None:
        """All bytes are there and right."""

    def close(self) -> None:
        """The transfer is over."""


def header(index: int) -> peer_pb2.SnapshotHeader:
    message = Message(MessageKind.SNAPSHOT, 1, 2, 1, 1, index)
    return peer_pb2.SnapshotHeader(
        snapshot_id=f"s{index}", index=index, raft_message=encode_message(message).SerializeToString()
    )


class Receiving:
    """Snapshots on noted neighbours: a core that wants the first it hears of, and a state that installs anything."""

    def __init__(self) -> None:
        self.installed: list[Path] = []
        self.failures: list[BaseException] = []
        self.log = SimpleNamespace(snapshot=None)
        self.meta = SimpleNamespace(applied_index=10, applied_term=1)
        self.incoming_directory = Path("nowhere")
        core: Any = self
        self.snapshots = Snapshots(core, core, core, core, Stats(), lambda: None, Guard(self.failures.append))

    def step(self, message: Message) -> None:
        """The core."""
        if self.log.snapshot is None:
            self.log.snapshot = SimpleNamespace(index=message.index)

    async def install_snapshot(self, path: Path, *, index: int, term: int) -> None:
        """The state."""
        self.installed.append(path)

    async def reset(self, index: int, term: int) -> None:
        """The log."""

    def arrive(self, index: int, name: str) -> asyncio.Future[None]:
        """The last byte of a snapshot arrives."""
        receiver: Any = FakeReceiver(name)
        return asyncio.ensure_future(self.snapshots.receive_finish(header(index), receiver))

    async def install(self, index: int) -> None:
        """The driver comes to it."""
        membership: Any = None
        await self.snapshots.install(SnapshotMeta(index, 1, membership))


async def test_a_second_transfer_does_not_take_the_place_of_the_one_to_be_installed() -> None:
    """The core may refuse the second (a deposed leader's, say) and want the first, while the driver is busy."""
    ground = Receiving()
    first, second = ground.arrive(10, "first"), ground.arrive(20, "second")
    await asyncio.sleep(0.01)
    await ground.install(10)
    await asyncio.wait_for(first, 1)
    assert ground.installed == [Path("first")]
    with pytest.raises(KvError, match="not wanted any more"):
        await second
    with pytest.raises(KvError, match="no received snapshot at index 10"):
        await ground.install(10)


async def test_two_senders_of_one_snapshot_end_it_once() -> None:
    ground = Receiving()
    receiver: Any = FakeReceiver("shared")
    first = asyncio.ensure_future(ground.snapshots.receive_finish(header(10), receiver))
    await asyncio.sleep(0.01)
    with pytest.raises(KvError, match="another sender"):
        await ground.snapshots.receive_finish(header(10), receiver)
    await ground.install(10)
    await asyncio.wait_for(first, 1)


async def test_a_transfer_that_another_one_has_displaced_is_told_so(tmp_path: Path) -> None:
    ground = Receiving()
    ground.incoming_directory = tmp_path
    displaced = await ground.snapshots.receive_open(header(10))
    await ground.snapshots.receive_open(header(20))
    with pytest.raises(KvError, match="another sender"):
        await ground.snapshots.receive_finish(header(10), displaced)
    await ground.snapshots.close()


async def test_an_install_that_outlasts_the_senders_patience_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SNAPSHOT_INSTALL_MS", 10)
    ground = Receiving()
    with pytest.raises(KvError, match="still being installed"):
        await asyncio.wait_for(ground.arrive(10, "slow"), 1)
    await ground.install(10)
    assert ground.installed == [Path("slow")]


async def test_a_sender_that_leaves_does_not_take_an_accepted_snapshot_along() -> None:
    ground = Receiving()
    transfer = ground.arrive(10, "kept")
    await asyncio.sleep(0.01)
    transfer.cancel()
    await asyncio.gather(transfer, return_exceptions=True)
    with pytest.raises(KvError, match="another snapshot is being installed"):
        await ground.snapshots.receive_open(header(20))  # its receiver would delete the other's file
    await ground.install(10)
    assert ground.installed == [Path("kept")]


async def test_a_core_that_breaks_on_a_snapshot_ends_the_node() -> None:
    ground = Receiving()

    def broken(message: Message) -> None:
        raise InvariantViolation("by the test")

    ground.step = broken  # type: ignore[method-assign]
    with pytest.raises(InvariantViolation):
        await ground.arrive(10, "any")
    assert len(ground.failures) == 1


async def test_an_accepted_snapshot_that_a_later_one_has_replaced_is_let_go() -> None:
    """Or no other transfer would ever begin again."""
    ground = Receiving()

    def newest(message: Message) -> None:
        ground.log.snapshot = SimpleNamespace(index=message.index)

    ground.step = newest  # type: ignore[method-assign]
    transfers = [ground.arrive(10, "older")]
    await asyncio.sleep(0.01)
    transfers.append(ground.arrive(20, "newer"))
    await asyncio.sleep(0.01)
    await ground.install(20)
    await asyncio.wait_for(asyncio.gather(*transfers), 1)
    assert ground.installed == [Path("newer")] and not ground.snapshots.coming.size_bytes
    assert not ground.snapshots._accepted


async def test_a_snapshot_that_cannot_be_read_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file may be gone; the next attempt must not fail for the same reason."""
    reported: list[bool] = []
    made: list[int] = []
    node: Any = SimpleNamespace(
        report_snapshot=lambda node_id, ok: reported.append(ok),
        first_index=lambda: 1,
        send_snapshot=lambda to, source: asyncio.sleep(0, True),
    )

    async def create_snapshot() -> Any:
        made.append(1)
        return SimpleNamespace(index=9, term=1, membership=b"")

    def source(snapshot: object, message: Message, stats: Stats) -> Any:
        if len(made) == 1:
            raise StorageFailed("its file is gone")
        return SimpleNamespace(close=lambda: None)

    node.create_snapshot = create_snapshot
    monkeypatch.setattr("kvnode.node.snapshots.FileSource", source)
    snapshots = Snapshots(node, node, node, node, Stats(), lambda: None, Guard(pytest.fail))
    for _ in range(2):
        await snapshots.send(Message(MessageKind.SNAPSHOT, 2, 1, 1, 1, 9))
    assert reported == [False, True] and len(made) == 2
