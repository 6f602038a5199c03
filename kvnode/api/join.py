"""Before a node belongs to a cluster: who are you, and be one of us.

A node with an empty data directory listens only for these two questions. One node is started with `bootstrap`: it
asks the initial voters who they are, mints the cluster id, records both durably, and then asks each to adopt them.
If it dies in between, it repeats the asking at its next start; adopting twice is harmless. A node that is added
later is adopted by the leader (`kvnode member add`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

import grpc
from grpc import aio

from kvnode.api import grpc_status
from kvnode.api.listen import bind
from kvnode.base.errors import ConfigError, InvalidRequest, KvError
from kvnode.base.topology import other_region, topology_problems
from kvnode.codec.membership import Member, MemberRole, Membership, decode_membership
from kvnode.node.channels import SERVER_OPTIONS
from kvnode.node.member_wire import member_from_wire, member_to_wire
from kvnode.proto.kv.internal.v1 import peer_pb2

_log = logging.getLogger(__name__)

IDENTIFY_RETRY_S = 0.2

Identify = Callable[[str], Awaitable[peer_pb2.IdentifyResponse]]
Adopt = Callable[[str, peer_pb2.AdoptRequest], Awaitable[peer_pb2.AdoptResponse]]


class Wait:
    """What a node waits for that belongs to no cluster yet, as a sentence."""

    def __init__(self) -> None:
        self.text = "it is about to ask"

    def for_each(self, identify: Identify) -> Identify:
        """`identify`, which notes whom it asks."""

        async def noted(address: str) -> peer_pb2.IdentifyResponse:
            self.text = f"waiting for the node at {address}, which is to be started without --bootstrap"
            return await identify(address)

        return noted


class Joining:
    """Answers Identify and Adopt for a node that waits to be joined.

    Args:
        member: who the node is.
        cluster_id: the cluster it belongs to already; empty while it waits.
    """

    def __init__(self, member: Member, cluster_id: str = "") -> None:
        self.member = member
        self.cluster_id = cluster_id
        self.adopted: asyncio.Future[tuple[str, int, bytes]] = asyncio.get_running_loop().create_future()

    def identify(self) -> peer_pb2.IdentifyResponse:
        """Who this node is."""
        return peer_pb2.IdentifyResponse(
            member=member_to_wire(self.member), cluster_id=self.cluster_id, joined=bool(self.cluster_id)
        )

    async def adopt(self, request: peer_pb2.AdoptRequest) -> peer_pb2.AdoptResponse:
        """Take on a cluster; the caller records it when `adopted` is done. Raises InvalidRequest."""
        check_adoption(self.member, self.cluster_id, request)
        self.cluster_id = request.cluster_id
        if not self.adopted.done():
            self.adopted.set_result((request.cluster_id, request.epoch, request.membership))
        return peer_pb2.AdoptResponse(member=member_to_wire(self.member))


def check_adoption(member: Member, cluster_id: str, request: peer_pb2.AdoptRequest) -> None:
    """Raise InvalidRequest unless this node may become (or is) part of the cluster that asks."""
    if request.node_id != member.node_id:
        raise InvalidRequest(
            "MEMBER_ID_MISMATCH", f"the node here is {member.node_id} ('{member.name}'), not {request.node_id}"
        )
    if cluster_id not in ("", request.cluster_id):
        raise InvalidRequest(
            "MEMBER_OF_ANOTHER_CLUSTER",
            f"node '{member.name}' belongs to cluster {cluster_id} and will not join {request.cluster_id}: "
            "give it an empty data directory",
        )


async def wait_for_adoption(
    joining: Joining, address: str, credentials: grpc.ServerCredentials | None = None
) -> tuple[str, int, bytes]:
    """Listen on `address` until a cluster adopts this node; returns (cluster id, epoch, initial membership)."""
    server = aio.server(options=SERVER_OPTIONS)

    async def identify(_request: bytes, _context: aio.ServicerContext) -> bytes:
        return joining.identify().SerializeToString()

    async def adopt(request: bytes, context: aio.ServicerContext) -> bytes:
        try:
            answer = await joining.adopt(peer_pb2.AdoptRequest.FromString(request))
            return answer.SerializeToString()
        except KvError as error:
            await grpc_status.abort(context, error, address)

    handlers = {
        "Identify": grpc.unary_unary_rpc_method_handler(identify),
        "Adopt": grpc.unary_unary_rpc_method_handler(adopt),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("kv.internal.v1.Peer", handlers),))
    bind(server, address, credentials)
    await server.start()
    try:
        return await joining.adopted
    finally:
        await server.stop(0.2)


async def plan_bootstrap(
    me: Member,
    peers: list[str],
    min_commit_dcs: int,
    identify: Identify,
    random_source: random.Random,
    *,
    allow_unsafe: bool = False,
) -> tuple[str, Membership]:
    """Ask every initial voter who it is. Returns a fresh cluster id and the initial membership.

    Args:
        allow_unsafe: found it although the loss of one data center would stop writes.

    Raises:
        ConfigError: a peer belongs to a cluster already, two peers claim the same name, or place one data center in two
            regions, or the placement is unsafe.
    """
    members = [me]
    for address in peers:
        if address == me.address:
            continue
        answer = await _identify(address, identify)
        if answer.joined:
            raise ConfigError(
                f"the node at {address} belongs to cluster {answer.cluster_id} already: bootstrap is for new clusters. "
                "To join that cluster start this node without --bootstrap and run `kvnode member add`"
            )
        member = member_from_wire(answer.member)
        members.append(Member(member.node_id, member.name, member.region, member.dc, address, MemberRole.VOTER))
    for field in ("name", "node_id", "address"):
        values = [getattr(member, field) for member in members]
        if len(set(values)) != len(values):
            raise ConfigError(f"two of the initial voters have the same {field}: {sorted(values)}")
    _check_regions(members)
    _check_placement(members, min_commit_dcs, allow_unsafe)
    cluster_id = f"{random_source.getrandbits(128):032x}"
    return cluster_id, Membership(tuple(members), min_commit_dcs)


def _check_regions(members: list[Member]) -> None:
    places = [(member.dc, member.region) for member in members]
    for member in members:
        if region := other_region(member.dc, member.region, places):
            raise ConfigError(
                f"node '{member.name}' says {member.region}/{member.dc}, and another initial voter says that the data "
                f"center {member.dc} stands in the region {region}: correct --region or --dc of one of them"
            )


def _check_placement(members: list[Member], min_commit_dcs: int, allow_unsafe: bool) -> None:
    """A cluster that could commit nothing is refused in any case: it would lead, look healthy and answer nobody."""
    dcs_count = len({member.dc for member in members})
    if dcs_count < min_commit_dcs:
        raise ConfigError(
            f"the initial voters stand in {dcs_count} data center(s) and a commit needs {min_commit_dcs}: nothing "
            "could commit. Name voters in other data centers (--peers, and --dc at each), or say --min-commit-dcs "
            f"{dcs_count} for what is durable in fewer"
        )
    places = [(member.dc, member.region, True) for member in members]
    unsafe = [problem.text for problem in topology_problems(places, min_commit_dcs) if problem.severity == "error"]
    if unsafe and not allow_unsafe:
        raise ConfigError("; ".join(unsafe) + ". To found this cluster all the same, say --allow-unsafe-topology")


async def adopt_initial_members(
    me: Member, cluster_id: str, epoch: int, initial: bytes, identify: Identify, adopt: Adopt
) -> None:
    """Ask each initial member until it has joined. Ends when all have."""
    membership = decode_membership(initial)
    wire = [member_to_wire(member) for member in membership.members]
    for member in membership.members:
        if member.node_id == me.node_id:
            continue
        request = peer_pb2.AdoptRequest(
            cluster_id=cluster_id, epoch=epoch, node_id=member.node_id, members=wire, membership=initial
        )
        while True:
            answer = await _identify(member.address, identify)
            if answer.joined:
                break
            try:
                await adopt(member.address, request)
                break
            except KvError as error:
                _log.warning("node at %s does not join yet: %s", member.address, error)
                await asyncio.sleep(IDENTIFY_RETRY_S)


async def _identify(address: str, identify: Identify) -> peer_pb2.IdentifyResponse:
    said = False
    while True:
        try:
            return await identify(address)
        except KvError as error:
            if not said:
                _log.info(
                    "waiting for the node at %s, which is to be started without bootstrap: %s", address, error.message
                )
                said = True
            await asyncio.sleep(IDENTIFY_RETRY_S)
