"""A node that answers from a dictionary and notes what its peers say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvnode.base.errors import InvalidRequest, KvError
from kvnode.codec.membership import Member, MemberRole, Membership
from kvnode.codec.row import Row
from kvnode.codec.versionstamp import versionstamp
from kvnode.node.directory import Directory
from kvnode.node.member_wire import member_to_wire
from kvnode.node.ports import BoundedDeliver, Deliver, Freshness, Held, LeaseNews, NodeIdentity, Origin
from kvnode.node.stats import Stats
from kvnode.node.watch import WatchHub
from kvnode.proto.kv.internal.v1 import peer_pb2
from kvnode.proto.kv.v1 import admin_pb2, kv_pb2
from kvnode.raft.messages import Message

PREFIX = (1).to_bytes(4, "big")


class Meta(NamedTuple):
    epoch: int = 1
    applied_index: int = 1
    log_time_ms: int = 1_000


class FakeState:
    def __init__(self) -> None:
        self.rows: dict[bytes, Row] = {}
        self.meta = Meta()

    def get(self, key: bytes) -> Row | None:
        return self.rows.get(key)

    def scan(self, start: bytes, end: bytes, limit: int, *, reverse: bool = False) -> list[Row]:
        keys = sorted((key for key in self.rows if start <= key < end), reverse=reverse)
        return [self.rows[key] for key in keys[:limit]]

    def due(self, now_ms: int, limit: int) -> list[tuple[bytes, int]]:
        due = sorted((row.expire_at_ms, key) for key, row in self.rows.items() if 0 < row.expire_at_ms <= now_ms)
        return [(key, at_ms) for at_ms, key in due[:limit]]


class FakeSink:
    def __init__(self, node: FakeNode) -> None:
        self.node = node

    async def open(self, header: peer_pb2.SnapshotHeader) -> int:
        self.node.snapshot_headers.append(header)
        return len(self.node.snapshot)

    async def write(self, offset: int, data: bytes) -> int:
        assert offset == len(self.node.snapshot)
        self.node.snapshot += data
        if self.node.break_snapshot_at is not None and len(self.node.snapshot) >= self.node.break_snapshot_at:
            self.node.break_snapshot_at = None
            raise ConnectionError("the receiver broke")
        return len(self.node.snapshot)

    async def finish(self) -> None:
        if self.node.refuse_snapshot:
            raise KvError("SNAPSHOT_DAMAGED", "the digest is wrong", phase="storage")
        self.node.snapshot_finished = True


class FakeQueues:
    def peer_left(self, node_id: int) -> None:
        pass


class FakeMembers:
    def __init__(self, node: FakeNode) -> None:
        self.node = node

    async def add(self, wanted: Member) -> Membership:
        self.node.membership = Membership((*self.node.membership.members, wanted), 1)
        return self.node.membership

    async def promote(self, node_id: int) -> Membership:
        raise KvError("LEARNER_NOT_CAUGHT_UP", f"node {node_id} lacks 7 entries", phase="admin")

    async def remove(self, node_id: int, *, force: bool) -> Membership:
        assert force
        return self.node.membership

    async def replace(self, node_id: int, replacement: Member, timeout_ms: int) -> Membership:
        assert timeout_ms == 7
        return await self.add(replacement)


class FakeNode:
    """Holds answers while `hold` is true; forwards nothing."""

    def __init__(self, node_id: int = 1, name: str = "a") -> None:
        self.node_id = node_id
        self.name = name
        self.cluster_id = "c"
        self.epoch = 1
        self.stats = Stats()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.member = Member(node_id, name, "r", f"dc-{name}", "127.0.0.1:1", MemberRole.VOTER)
        self.membership = Membership((self.member,), 1)
        self.leader_id = node_id
        self.ready = (True, "ok")
        self.state = FakeState()
        self.watches = WatchHub(self.state, self.stats)
        self.queues = FakeQueues()
        self.directory = Directory(self.state, self.cluster_id)
        self.members = FakeMembers(self)
        self.hold = False
        self.held: list[Callable[[], None]] = []
        self.batches: list[tuple[int, Origin]] = []
        self.bounded: list[bool] = []  # of each batch, whether its results go where only so many can
        self.read_error: BaseException | None = None
        self.timeouts: list[int] = []
        self.opened = 0
        self.owners: list[int] = []
        self.refuse = ""
        self.removed: set[int] = set()
        self.leader_comes: asyncio.Event | None = None  # no client id before that
        self.messages: list[tuple[int, list[Message], Freshness | None]] = []
        self.held_rows: list[Held] = []
        self.lease_news: list[LeaseNews] = []
        self.clock_samples: list[tuple[int, float, float]] = []
        self.unreachable: list[int] = []
        self.forwarded: list[tuple[Origin, int]] = []
        self.snapshot = b""
        self.snapshot_headers: list[peer_pb2.SnapshotHeader] = []
        self.snapshot_finished = False
        self.refuse_snapshot = False
        self.break_snapshot_at: int | None = None
        self.arrived = asyncio.Event()
        self.read_bytes = 0

    # Operations.

    def submit(self, operations: Sequence[kv_pb2.Operation], origin: Origin, deliver: Deliver) -> None:
        self.batches.append((len(operations), origin))
        self.bounded.append(isinstance(deliver, BoundedDeliver))
        for operation in operations:
            if self.hold:
                self.held.append(lambda operation=operation: deliver(self._answer(operation)))
            else:
                deliver(self._answer(operation))

    def release(self) -> None:
        held, self.held = self.held, []
        for answer in held:
            answer()

    def _answer(self, operation: kv_pb2.Operation) -> kv_pb2.OperationResult:
        result = kv_pb2.OperationResult(id=operation.id)
        if operation.HasField("write"):
            mutation = operation.write.mutations[0]
            if mutation.key == b"bad":
                result.error.code = "KEY_BAD"
                return result
            self.put(mutation.key, mutation.value.data)
            result.write.status = kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS
            result.write.versionstamp = versionstamp(1, self.state.meta.applied_index, 0)
        else:
            result.read.CopyFrom(self._read(operation.read))
        return result

    def put(self, key: bytes, value: bytes, expire_at_ms: int = 0) -> None:
        index = self.state.meta.applied_index + 1
        self.state.meta = self.state.meta._replace(applied_index=index)
        row = Row(PREFIX + key, value, 3, versionstamp(1, index, 0), expire_at_ms)
        self.state.rows[PREFIX + key] = row
        self.watches.publish({row.key: row}, self.state.meta.log_time_ms)

    def delete(self, *keys: bytes) -> None:
        index = self.state.meta.applied_index + 1
        self.state.meta = self.state.meta._replace(applied_index=index)
        for key in keys:
            self.state.rows.pop(PREFIX + key, None)
        changed = {PREFIX + key: None for key in keys}
        self.watches.publish(changed, self.state.meta.log_time_ms)

    def _read(self, request: kv_pb2.ReadRequest) -> kv_pb2.ReadResponse:
        response = kv_pb2.ReadResponse(versionstamp=versionstamp(1, self.state.meta.applied_index, 65_535))
        for wanted in request.ranges:
            part = response.ranges.add()
            row = self.state.rows.get(PREFIX + wanted.start)
            if row is not None:
                part.entries.add(key=wanted.start, value=row.value, encoding=3, versionstamp=row.versionstamp)
            if self.read_bytes:
                part.entries.add(key=b"big", value=bytes(self.read_bytes))
        return response

    async def read(self, request: kv_pb2.ReadRequest, timeout_ms: int = 0, *, database: int = 1) -> kv_pb2.ReadResponse:
        self.timeouts.append(timeout_ms)
        if self.read_error is not None:
            raise self.read_error
        return self._read(request)

    async def write(
        self, request: kv_pb2.AtomicWriteRequest, timeout_ms: int = 0, *, database: int = 1, settle: bool = False
    ) -> kv_pb2.AtomicWriteResponse:
        self.timeouts.append(timeout_ms)
        if not request.mutations:
            raise InvalidRequest("NO_MUTATION", "nothing to do")
        return self._answer(kv_pb2.Operation(write=request)).write

    async def open_session(self, timeout_ms: int = 0, *, database: int = 1) -> bytes:
        if self.leader_comes is not None:
            await self.leader_comes.wait()
        self.opened += 1
        self.owners.append(database)
        return versionstamp(1, self.opened, 0)

    # Administration.

    def status(self) -> admin_pb2.StatusResponse:
        return admin_pb2.StatusResponse(
            self=member_to_wire(self.member),
            cluster_id=self.cluster_id,
            role="leader" if self.leader_id == self.node_id else "follower",
            term=3,
            leader_id=self.leader_id,
            commit_index=9,
            applied_index=8,
            members=[member_to_wire(member) for member in self.membership.members],
            peers=[admin_pb2.PeerProgress(node_id=2, name="b", lag_entries=4, last_contact_ms=70)],
        )

    async def transfer_leadership(self, to: int) -> None:
        self.leader_id = to

    async def snapshot_now(self) -> admin_pb2.SnapshotResponse:
        return admin_pb2.SnapshotResponse(index=8, term=3, size_bytes=1, digest="d")

    async def digest(self, *, scrub: bool) -> admin_pb2.DigestResponse:
        return admin_pb2.DigestResponse(applied_index=8, digest="d", scrubbed=scrub, matches=scrub)

    # Peers.

    @property
    def peers(self) -> FakeNode:
        return self

    def identity(self) -> NodeIdentity:
        return NodeIdentity(self.cluster_id, self.epoch, self.node_id, self.name)

    def check_hello(self, hello: peer_pb2.Hello) -> str:
        if self.refuse:
            return self.refuse
        if hello.cluster_id != self.cluster_id:
            return f"another cluster: {hello.cluster_id}"
        return "" if hello.to_node_id == self.node_id else f"this is node {self.node_id}"

    def has_removed(self, node_id: int) -> bool:
        return node_id in self.removed

    def on_messages(self, sender: int, messages: Sequence[Message], freshness: Freshness | None) -> None:
        self.messages.append((sender, list(messages), freshness))
        self.arrived.set()

    def on_held(self, rows: Sequence[Held]) -> None:
        self.held_rows.extend(rows)

    def on_lease(self, news: LeaseNews) -> None:
        self.lease_news.append(news)

    def on_clock_sample(self, sender: int, theirs_ms: float, round_trip_ms: float) -> None:
        self.clock_samples.append((sender, theirs_ms, round_trip_ms))

    def on_unreachable(self, node_id: int) -> None:
        self.unreachable.append(node_id)

    def on_forwarded(self, origin: Origin, operation: kv_pb2.Operation, deliver: Deliver) -> None:
        self.forwarded.append((origin, operation.id))
        self.submit((operation,), origin, deliver)

    def on_forwarded_open(self, owner: int, deliver: Callable[[bytes, kv_pb2.Error | None], None]) -> None:
        self.opened += 1
        self.owners.append(owner)
        if self.refuse_snapshot:
            deliver(b"", kv_pb2.Error(code="NOT_LEADER"))
        else:
            deliver(versionstamp(1, self.opened, 0), None)

    def snapshot_sink(self) -> FakeSink:
        return FakeSink(self)
