"""What the API needs of a node; kvnode.node.node.Node has it, and so have the fakes of its tests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from kvnode.codec.membership import Member, Membership
from kvnode.machine.keyspace import DEFAULT_DATABASE
from kvnode.node.changelog.source import Sources
from kvnode.node.directory import Directory
from kvnode.node.failover.coordinator import Coordinator
from kvnode.node.failover.participant import Participant
from kvnode.node.ports import Deliver, Origin, PeerHandler, SnapshotSink
from kvnode.node.queue.queues import Queues
from kvnode.node.stats import Stats
from kvnode.node.watch import WatchHub
from kvnode.proto.kv.v1 import admin_pb2, kv_pb2


class MemberVerbs(Protocol):
    """Changes of membership, on the leader."""

    async def add(self, wanted: Member) -> Membership:
        """Add the node that listens at `wanted.address`, as a learner."""

    async def promote(self, node_id: int) -> Membership:
        """Let a caught-up learner vote."""

    async def remove(self, node_id: int, *, force: bool) -> Membership:
        """Remove a member."""

    async def replace(self, node_id: int, replacement: Member, timeout_ms: int) -> Membership:
        """Add, promote, remove."""


class ServedNode(Protocol):
    """A node of a cluster."""

    stats: Stats
    failed: asyncio.Future[BaseException]  # done when the node must stop
    directory: Directory

    @property
    def name(self) -> str:
        """The operator's name for it."""

    @property
    def cluster_id(self) -> str:
        """The cluster it belongs to."""

    @property
    def member(self) -> Member:
        """Itself, as the cluster knows it."""

    @property
    def membership(self) -> Membership:
        """The newest membership in its log."""

    @property
    def leader_id(self) -> int:
        """The leader it knows of; 0 = none."""

    @property
    def ready(self) -> tuple[bool, str]:
        """Whether it serves, and why not."""

    @property
    def peers(self) -> PeerHandler:
        """Takes what its peers say."""

    @property
    def watches(self) -> WatchHub:
        """Its watches."""

    @property
    def queues(self) -> Queues:
        """Its part in queues."""

    @property
    def changelog(self) -> Sources:
        """The replicas that follow it."""

    @property
    def failover(self) -> Participant:
        """Its part in failovers that others coordinate."""

    @property
    def coordinator(self) -> Coordinator:
        """Carries failovers out."""

    @property
    def members(self) -> MemberVerbs:
        """Changes of membership."""

    def submit(self, operations: Sequence[kv_pb2.Operation], origin: Origin, deliver: Deliver) -> None:
        """Take in operations; each is answered once through `deliver`, in any order."""

    async def read(
        self, request: kv_pb2.ReadRequest, timeout_ms: int = 0, *, database: int = DEFAULT_DATABASE
    ) -> kv_pb2.ReadResponse:
        """One read."""

    async def write(
        self,
        request: kv_pb2.AtomicWriteRequest,
        timeout_ms: int = 0,
        *,
        database: int = DEFAULT_DATABASE,
        settle: bool = False,
    ) -> kv_pb2.AtomicWriteResponse:
        """One atomic write under the node's own session; `settle`: until its outcome is known."""

    @property
    def can_begin_writes(self) -> bool:
        """Whether `begin` takes a write now: the node's own session is open."""

    def begin(self, operation: kv_pb2.Operation, database: int, deliver: Deliver) -> None:
        """As read, or as write with `settle`, by callback."""

    async def open_session(self, timeout_ms: int = 0, *, database: int = DEFAULT_DATABASE) -> bytes:
        """A fresh client id, opened through the log, for a client's writes to that database."""

    def status(self) -> admin_pb2.StatusResponse:
        """What it knows of itself and, when it leads, of its peers."""

    async def transfer_leadership(self, to: int) -> None:
        """Hand leadership to `to`, or to the most caught-up voter if 0."""

    async def snapshot_now(self) -> admin_pb2.SnapshotResponse:
        """Write a snapshot and compact the log behind it."""

    async def digest(self, *, scrub: bool) -> admin_pb2.DigestResponse:
        """The digest of the applied state."""

    def snapshot_sink(self) -> SnapshotSink:
        """For one incoming snapshot."""
