"""The seams between a node and the world: everything below is an interface, so that it can be simulated.

The node itself (driver, proposals, reads, gateway) is asyncio code without threads, sockets, clocks or
random numbers of its own; production plugs in gRPC, SQLite and the machine's clock, the simulator its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from kvnode.base.errors import KvError
from kvnode.codec.membership import Member
from kvnode.machine.sessions import NODES_OWN
from kvnode.proto.kv.internal.v1 import changelog_pb2, failover_pb2, peer_pb2
from kvnode.proto.kv.v1 import kv_pb2
from kvnode.raft.messages import Message


class Freshness(NamedTuple):
    """The leader's state as of the last heartbeat round that a quorum acknowledged."""

    commit_index: int
    log_time_ms: int
    sent_at_ms: int  # the leader's wall clock when it sent that round


class Held(NamedTuple):
    """How far a replica is, as the node that it follows knows it."""

    node_id: int
    durable_index: int  # the end of its log
    at_ms: int  # it holds what was committed by then, by a leader's wall clock; 0 = not known
    silent_ms: int = 0  # since the replica said so


class Awaited(NamedTuple):
    """How much a node has of the snapshot that it awaits."""

    held_bytes: int
    size_bytes: int  # 0 = it has not begun to come

    @property
    def is_complete(self) -> bool:
        """All of it is there; it is being verified or installed."""
        return 0 < self.size_bytes <= self.held_bytes


class LeaseAsk(NamedTuple):
    """A leader asks every member for the primary lease (node/promotion)."""

    term: int
    asked_at_ms: int  # on the leader's own monotonic clock


class LeaseGrant(NamedTuple):
    """What a member has granted."""

    node_id: int
    ask: LeaseAsk  # the newest that has reached it
    lease_ms: int  # for so long it votes for no promotion after that ask; 0 = it may
    wished_ms: int  # the lease that its configuration wants; 0 = none
    membership: int  # a digest of the newest one that it knows to be committed


class LeaseNews(NamedTuple):
    """What travels of a lease: the ask downward, grants upward."""

    ask: LeaseAsk | None
    grants: Sequence[LeaseGrant] = ()


class Origin(NamedTuple):
    """Whose operation it is: the client's session and what it has had answers to.

    `own_session`: `client_id` is that of a node's own session, which no client may name.
    """

    client_id: bytes
    lowest_unanswered: int
    database: int = 1
    own_session: bool = False

    @property
    def session_owner(self) -> int:
        """The owner that the session must have (machine/sessions.py)."""
        return NODES_OWN if self.own_session else self.database


class NodeIdentity(NamedTuple):
    """What a node says of itself in a Hello."""

    cluster_id: str
    epoch: int  # the latest that it knows of
    node_id: int
    name: str
    established_epoch: int = 0  # the one of its state
    ballot: int = 0  # of `epoch`
    member: Member | None = None  # itself, as the cluster knows it


Deliver = Callable[[kv_pb2.OperationResult], None]
"""Called once for each operation, on the node's loop, with the result whose id is the operation's."""


class Receiver(Protocol):
    """Takes results, and at one time only so many."""

    def cannot_take(self, size_bytes: int) -> KvError | None:
        """Why it refuses a read's result of that size now; None = it does not. On any thread."""


class BoundedDeliver(partial[None]):
    """A Deliver whose function has a Receiver as its first argument: what that cannot take need not be read."""

    def cannot_take(self, size_bytes: int) -> KvError | None:
        """See Receiver."""
        receiver: Receiver = self.args[0]
        return receiver.cannot_take(size_bytes)


class PeerHandler(Protocol):
    """What the transport calls, on the node's loop, when something arrives. None of these block."""

    def identity(self) -> NodeIdentity:
        """For the Hello of outgoing streams."""

    def check_hello(self, hello: peer_pb2.Hello) -> str:
        """Why a stream is refused (another cluster, a lower epoch, a wrong receiver, a removal); empty = welcome.

        It also learns from what is said: of a later epoch, which ends the node's part in its own, and of its removal.
        """

    def has_removed(self, node_id: int) -> bool:
        """Whether that node was a member, and was removed: nothing is taken from it any more, and nothing given."""

    def on_messages(self, sender: int, messages: Sequence[Message], freshness: Freshness | None) -> None:
        """Raft messages from a peer, in order but for the moment in which its lane takes over from the stream."""

    def on_held(self, rows: Sequence[Held]) -> None:
        """How far the replicas are that follow a peer."""

    def on_lease(self, news: LeaseNews) -> None:
        """A leader asks for the primary lease, or a member says what was granted."""

    def on_clock_sample(self, sender: int, theirs_ms: float, round_trip_ms: float) -> None:
        """The peer's wall clock minus our monotonic one, measured over one round trip."""

    def on_unreachable(self, node_id: int) -> None:
        """A stream to the peer broke or could not be opened."""

    def on_forwarded(self, origin: Origin, operation: kv_pb2.Operation, deliver: Deliver) -> None:
        """An operation that a peer forwarded: answer it here or with NOT_LEADER, never forward again."""

    def on_forwarded_open(self, owner: int, deliver: Callable[[bytes, kv_pb2.Error | None], None]) -> None:
        """A peer asks for a fresh client id of that owner: (client id, None) or (b"", error)."""


class SnapshotSource(Protocol):
    """A snapshot on this node's disk, about to be sent."""

    @property
    def header(self) -> peer_pb2.SnapshotHeader:
        """Everything the receiver needs before the first byte; `hello` is filled by the transport."""

    async def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file."""

    def close(self) -> None:
        """The transfer is over; the file may be dropped."""


class ChangelogStream(Protocol):
    """What a replica follows (node/changelog)."""

    async def read(self) -> changelog_pb2.FollowResponse | None:
        """The next response; None when the stream has ended, for whatever reason."""

    async def acknowledge(self, request: changelog_pb2.FollowRequest) -> None:
        """Say what is held. On a stream that has ended nothing happens."""

    async def close(self) -> None:
        """End it."""


class Transport(Protocol):
    """Long-lived streams to the peers."""

    def set_members(self, members: Sequence[Member]) -> None:
        """Connect to these (self excluded by the caller), drop the others."""

    def send(self, to: int, messages: Sequence[Message], freshness: Freshness | None) -> None:
        """Queue messages to a peer; never blocks. What does not fit the bound, or has no stream, is dropped."""

    def announce(self) -> None:
        """Say Hello again on the open streams: what it says has changed."""

    def send_held(self, to: int, rows: Sequence[Held]) -> None:
        """Tell a peer how far the replicas are that follow this node; newer rows replace those not sent yet."""

    def send_lease(self, to: int, news: LeaseNews) -> None:
        """Tell a peer of the primary lease; newer news replace those not sent yet."""

    def forward(self, to: int, origin: Origin, operation: kv_pb2.Operation, deliver: Deliver) -> None:
        """Forward one operation; many of one loop pass travel in one message.

        When the stream breaks with the answer outstanding, `deliver` gets an error with the code
        FORWARD_BROKEN (not_applied False), or PEER_UNREACHABLE (not_applied True) if it never left.
        """

    def forward_open(self, to: int, owner: int, deliver: Callable[[bytes, kv_pb2.Error | None], None]) -> None:
        """Ask `to` for a fresh client id of that owner (machine/sessions.py)."""

    async def send_snapshot(self, to: int, source: SnapshotSource) -> bool:
        """Stream a snapshot, resuming at what the receiver holds; True once it is installed there."""

    def follow(self, to: int, first: changelog_pb2.FollowRequest) -> ChangelogStream:
        """Follow the changelog of `to`, from where `first` says; the transport adds the Hello."""

    async def identify(self, address: str) -> peer_pb2.IdentifyResponse:
        """Ask whoever listens there who it is. Raises KvError(code PEER_UNREACHABLE)."""

    async def adopt(self, address: str, request: peer_pb2.AdoptRequest) -> peer_pb2.AdoptResponse:
        """Ask an unjoined node to join. Raises KvError."""

    async def ask_failover(
        self, address: str, request: failover_pb2.FailoverRequest, timeout_ms: int
    ) -> failover_pb2.FailoverResponse:
        """Ask whoever listens there about a failover (node/failover). Raises KvError."""

    async def close(self) -> None:
        """End every stream."""


class SnapshotSink(Protocol):
    """Where an incoming snapshot goes; resumable by its id."""

    async def open(self, header: peer_pb2.SnapshotHeader) -> int:
        """Bytes already held of this snapshot id."""

    async def write(self, offset: int, data: bytes) -> int:
        """Add a chunk; returns the bytes held."""

    async def finish(self) -> None:
        """All bytes are there: verify, install. Raises KvError when the digest is wrong."""


SnapshotSinkFactory = Callable[[], SnapshotSink]


class WatchFrames(Protocol):
    """A watch in progress."""

    def __aiter__(self) -> AsyncIterator[kv_pb2.WatchResponse]:
        """Frames, each one consistent state."""
