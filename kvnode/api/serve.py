"""`kvnode serve`: from a configuration to a running node, and back to nothing.

The order of a start: lock the data directory; read or mint the identity; if it belongs to no cluster yet, bootstrap
one or wait to be adopted; open the log and the state; start the node, the gRPC server and the ops port. A stop runs
the other way: leadership is handed over first, so that clients feel a pause and not a timeout, then calls are
drained, then everything is closed, within SHUTDOWN_TIMEOUT_MS.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
from functools import partial
from pathlib import Path

from kvnode.api.auth.authority import Authority
from kvnode.api.connect.metrics import ConnectStats
from kvnode.api.connect.node_backend import NodeBackend
from kvnode.api.connect.server import ConnectServer
from kvnode.api.cron_metrics import CronStats
from kvnode.api.grpc_server import GrpcServer
from kvnode.api.http import Tls
from kvnode.api.join import Joining, Wait, adopt_initial_members, plan_bootstrap, wait_for_adoption
from kvnode.api.ops import OpsServer
from kvnode.api.ops_waiting import WaitingOps
from kvnode.api.queue_http.node_queues import NodeQueues
from kvnode.api.queue_http.server import QueueHttp
from kvnode.api.queue_metrics import QueueStats
from kvnode.api.self_join import SelfJoin
from kvnode.api.serve_gateway import serve_gateway
from kvnode.api.shutdown import EXIT_FAILED, EXIT_OK, attempt, bounded_shutdown
from kvnode.api.stop_signals import stop_signals
from kvnode.api.tls import GrpcTls, grpc_tls
from kvnode.base import egress, garbage, limits
from kvnode.base.clock import Clock, SystemClock
from kvnode.base.config import PROMOTION_PRICE, NodeConfig
from kvnode.base.errors import ConfigError, KvError, StateDamaged
from kvnode.codec.epoch import FIRST_EPOCH
from kvnode.codec.membership import Member, MemberRole, Membership, decode_membership, encode_membership
from kvnode.node.directory_changes import learn_directory
from kvnode.node.directory_keeper import DirectoryKeeper
from kvnode.node.failover.fork import RejoinNeeded
from kvnode.node.node import Node
from kvnode.node.peer_calls import adopt, identify
from kvnode.node.ports import PeerHandler, Transport
from kvnode.node.push.addresses import AddressPolicy
from kvnode.node.push.pushers import Pushers
from kvnode.node.push.stats import PushStats
from kvnode.node.replication import StallPolicy
from kvnode.node.settings import NodeSettings
from kvnode.node.stats import Stats
from kvnode.node.transport import GrpcTransport
from kvnode.storage.disk import Disk
from kvnode.storage.fork_file import ForkFiles
from kvnode.storage.identity import DataDirectory, Identity
from kvnode.storage.log import Log
from kvnode.storage.rejoin import rejoin_if_decided
from kvnode.storage.state import State
from kvnode.storage.system_disk import SystemDisk

_log = logging.getLogger(__name__)


DRAIN_S = 1.0  # for what is owed when the node stops
EXIT_CONFIG = 2
_REJOIN = -1  # no exit status: the node is to be started again


def run(config: NodeConfig) -> int:
    """Serve until SIGTERM or SIGINT; returns the process's exit status."""
    import uvloop

    logging.basicConfig(
        level=config.log_level.upper(), stream=sys.stderr, format=f"%(asctime)s {config.name} %(levelname)s %(message)s"
    )
    egress.use_proxy(config.egress_proxy)
    try:
        return uvloop.run(serve_gateway(config) if config.role == "gateway" else _serve(config))
    except ConfigError as error:
        print(f"kvnode: {error.message}", file=sys.stderr)
        return EXIT_CONFIG
    except KvError as error:
        print(f"kvnode: {error}", file=sys.stderr)
        return EXIT_FAILED


async def _serve(config: NodeConfig) -> int:
    stopping = stop_signals()
    tls = grpc_tls(config)
    stats = Stats()
    disk = SystemDisk(observe_sync=lambda seconds: stats.fsync_ms.observe(seconds * 1_000))
    directory = DataDirectory.open(disk, str(config.data_dir))
    try:
        identity = await directory.identity(
            name=config.name, region=config.region, dc=config.dc, random_source=random.SystemRandom()
        )
        asking = SelfJoin(config, _member(config, identity), tls.peers)
        try:
            if not identity.cluster_id:
                bound = await _join_observed(config, directory, identity, stopping, tls, asking)
                if bound is None:
                    return EXIT_OK
                identity = bound
            while True:
                status = await _run_node(config, disk, directory, identity, stats, stopping, tls, asking)
                if status != _REJOIN or stopping.is_set():
                    return max(EXIT_OK, status)
                _log.warning("beginning anew as a replica of what a failover has kept")
        finally:
            await asking.stop()
    finally:
        directory.close()


async def _join_observed(
    config: NodeConfig,
    directory: DataDirectory,
    identity: Identity,
    stopping: asyncio.Event,
    tls: GrpcTls,
    asking: SelfJoin,
) -> Identity | None:
    """Wait to be part of a cluster, and answer probes meanwhile. None = it was stopped before."""
    wait = Wait()
    ops = WaitingOps(config.ops_listen, lambda: asking.waits_for or wait.text)
    await ops.start()
    try:
        asking.begin()
        joined = asyncio.ensure_future(_join(config, directory, identity, tls, wait))
        return await _unless_stopped(joined, stopping)
    finally:
        await ops.stop()


async def _unless_stopped(work: asyncio.Future[Identity], stopping: asyncio.Event) -> Identity | None:
    stop = asyncio.ensure_future(stopping.wait())
    await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if work.done():
        return work.result()
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work
    return None


async def _join(config: NodeConfig, directory: DataDirectory, identity: Identity, tls: GrpcTls, wait: Wait) -> Identity:
    me = _member(config, identity)
    if config.bootstrap:
        _log.info("bootstrapping a new cluster")
        cluster_id, membership = await plan_bootstrap(
            me,
            list(config.peers),
            config.min_commit_dcs,
            wait.for_each(partial(identify, credentials=tls.peers)),
            random.SystemRandom(),
            allow_unsafe=config.allow_unsafe_topology,
        )
        return await directory.bind(identity, cluster_id, FIRST_EPOCH, encode_membership(membership))
    wait.text = (
        f"waiting at {config.listen} to be adopted, by a node that is started with --bootstrap and names it in "
        f"--peers, or by `kvnode member add {me.address}`"
    )
    _log.info("this node (id %d) belongs to no cluster yet: %s", me.node_id, wait.text)
    cluster_id, epoch, initial = await wait_for_adoption(Joining(me), config.listen, tls.server)
    return await directory.bind(identity, cluster_id, epoch, initial)


def _member(config: NodeConfig, identity: Identity) -> Member:
    address = config.advertise or config.listen
    return Member(identity.node_id, config.name, config.region, config.dc, address, MemberRole.VOTER)


async def _open_storage(
    config: NodeConfig, disk: Disk, directory: DataDirectory, identity: Identity, clock: Clock
) -> tuple[Log, State]:
    data_dir = Path(directory.path)
    log = await Log.open(
        str(data_dir / "log"), disk, segment_bytes=config.segment_bytes, must_exist=identity.storage_created
    )
    try:
        state = await State.open(data_dir / "state", clock=clock)
        try:
            await rejoin_if_decided(disk, directory.path, log, state)
            await _fit_together(log, state, identity, config.min_commit_dcs)
            _check_place(state, identity)
            _look_at_address(state, identity, config.advertise or config.listen)
            await directory.confirm_storage(identity)
        except BaseException:
            await state.close()
            raise
    except BaseException:
        await log.close()
        raise
    return log, state


async def _fit_together(log: Log, state: State, identity: Identity, min_commit_dcs: int) -> None:
    """Found a new state; begin the log behind a state that a snapshot brought. Raises StateDamaged."""
    if not state.meta.membership:
        initial = identity.initial_membership or encode_membership(Membership((), min_commit_dcs))
        state.apply({}, applied_index=0, applied_term=0, log_time_ms=0, epoch=FIRST_EPOCH, membership=initial)
        await state.make_durable()
    if log.damage is not None:
        return
    applied, term = state.meta.applied_index, state.meta.applied_term
    if applied + 1 < log.first_index():
        raise StateDamaged(
            f"the state ends at {applied} and the log begins at {log.first_index()}: the state was lost or put back "
            "from an old copy. Start with an empty directory and `kvnode member replace` this node"
        )
    if log.term(applied) != term:
        # A snapshot was installed and the crash came before the log was reset behind it; the hard state stays.
        await log.reset(applied, term)


def _check_place(state: State, identity: Identity) -> None:
    """Commits are counted by data center and regions fail over whole: a node stands where the cluster has it."""
    known = decode_membership(state.meta.membership).get(identity.node_id)
    if known is not None and (known.region, known.dc) != (identity.region, identity.dc):
        raise ConfigError(
            f"the cluster knows node '{known.name}' in {known.region}/{known.dc}, but this node says "
            f"{identity.region}/{identity.dc}: correct the configuration, or replace the node by one that stands there "
            "(`kvnode member replace`); nothing was changed"
        )


def _look_at_address(state: State, identity: Identity, own: str) -> None:
    """Say that a directory was moved to where nobody looks for it. No error: both addresses may lead here."""
    known = decode_membership(state.meta.membership).get(identity.node_id)
    if known is not None and known.address != own:
        _log.warning(
            "the cluster reaches this node at %s, and its configuration says %s: unless the first leads here too, "
            "nobody reaches it and it hears of no leader. Start it where it was (--listen, --advertise), or put a new "
            "node with an empty data directory in its place (`kvnode member replace %s %s`)",
            known.address,
            own,
            known.name,
            own,
        )


def _adopted_as_replica(identity: Identity) -> bool:
    if not identity.initial_membership:
        return False
    member = decode_membership(identity.initial_membership).get(identity.node_id)
    return member is not None and member.role is MemberRole.REPLICA


async def _run_node(
    config: NodeConfig,
    disk: Disk,
    directory: DataDirectory,
    identity: Identity,
    stats: Stats,
    stopping: asyncio.Event,
    tls: GrpcTls,
    asking: SelfJoin,
) -> int:
    clock = SystemClock()
    log, state = await _open_storage(config, disk, directory, identity, clock)
    if log.damage is not None:
        _log.critical(
            "LOG_DAMAGED: %s. This node neither votes, campaigns nor acknowledges; rebuild it from its peers under a "
            "new id: start one with an empty directory and `kvnode member replace` this one",
            log.damage,
        )
    if config.automatic_promotion:
        _log.warning(PROMOTION_PRICE.format(lease_ms=config.primary_lease_ms))
    settings = NodeSettings(
        node_id=identity.node_id,
        name=config.name,
        region=config.region,
        dc=config.dc,
        address=config.advertise or config.listen,
        cluster_id=identity.cluster_id,
        epoch=identity.epoch,
        replica=_adopted_as_replica(identity),
        tick_ms=config.tick_ms,
        election_ticks=max(2, config.election_timeout_ms // config.tick_ms),
        leader_lease=config.leader_lease,
        log_retention_bytes=config.log_retention_bytes,
        log_retention_age_ms=config.log_retention_age_ms,
        on_replication_stall=StallPolicy(config.on_replication_stall),
        max_unreplicated_ms=config.max_unreplicated_ms,
        automatic_promotion=config.automatic_promotion,
        primary_lease_ms=config.primary_lease_ms,
    )

    def make_transport(handler: PeerHandler) -> Transport:
        return GrpcTransport(handler, clock, stats=stats, credentials=tls.peers)

    try:
        forks = ForkFiles(disk, directory.path)
        node = Node(settings, log, state, clock, random.SystemRandom(), make_transport, stats, forks)
    except BaseException:
        await state.close()  # a process that leaves a connection to SQLite open never ends
        await log.close()
        raise
    authority = Authority(
        node.directory.view,
        clock,
        static_token=config.access_token,
        learn=lambda: learn_directory(node, limits.PEER_CALL_TIMEOUT_MS),
    )
    server = GrpcServer(
        node,
        config.listen,
        tls.server,
        peer_credentials=tls.peers,
        adoption=Joining(_member(config, identity), identity.cluster_id),
        authority=authority,
        needs_token=config.grpc_auth,
    )
    keeper = DirectoryKeeper(node, state, clock, random.SystemRandom())
    connect_stats = ConnectStats()
    connect = _connect_server(config, node, authority, connect_stats)
    push_stats = PushStats()
    pushers = Pushers(node, state, AddressPolicy(config.push_allow), push_stats, clock)
    queue_stats = QueueStats(state, node.directory.view, clock.now_ms, lambda: node.queues.consumers_count, push_stats)
    cron_stats = CronStats(state, node.directory.view)
    ops = OpsServer(node, config.ops_listen, [*([connect_stats] if connect else []), queue_stats, cron_stats])
    helpers: list[asyncio.Task[None]] = []
    if not state.meta.applied_index:
        asking.begin()  # it was adopted, and ended before the cluster had listed it
    try:
        await server.start()
        await node.start()
        await ops.start()
        if connect is not None:
            await connect.start()
        helpers += [asyncio.ensure_future(keeper.run()), asyncio.ensure_future(pushers.run())]
        if config.bootstrap and identity.initial_membership:
            helpers.append(asyncio.ensure_future(_found(config, identity, identity.initial_membership, node, tls)))
        _log.info(
            "serving gRPC on %s, KV Connect on %s, ops on %s, cluster %s",
            config.listen,
            config.connect_listen or "no port",
            config.ops_listen,
            identity.cluster_id,
        )
        garbage.settle()
        return await _until_stopped(node, stopping)
    finally:
        for helper in helpers:
            helper.cancel()
        await _shut_down(node, server, ops, connect, pushers)


async def _found(config: NodeConfig, identity: Identity, initial: bytes, node: Node, tls: GrpcTls) -> None:
    """Have the other initial members join, then lead."""
    await adopt_initial_members(
        _member(config, identity),
        identity.cluster_id,
        identity.epoch,
        initial,
        partial(identify, credentials=tls.peers),
        partial(adopt, credentials=tls.peers),
    )
    await node.elect_first()


def _connect_server(config: NodeConfig, node: Node, authority: Authority, stats: ConnectStats) -> ConnectServer | None:
    if not config.connect_listen:
        return None
    tls = Tls(Path(config.tls_cert), Path(config.tls_key)) if config.tls_cert else None
    queues = QueueHttp(NodeQueues(node), authority, SystemClock(), stats)
    return ConnectServer(NodeBackend(node), authority, config.connect_listen, tls=tls, stats=stats, queues=queues)


async def _until_stopped(node: Node, stopping: asyncio.Event) -> int:
    stop = asyncio.ensure_future(stopping.wait())
    await asyncio.wait((stop, node.failed), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if node.failed.done():
        error = node.failed.result()
        if isinstance(error, RejoinNeeded):
            return _REJOIN
        _log.critical("the node stops, nothing more is acknowledged: %s", error, exc_info=error)
        return EXIT_FAILED
    _log.info("stopping: handing over, draining")
    return EXIT_OK


async def _shut_down(
    node: Node, server: GrpcServer, ops: OpsServer, connect: ConnectServer | None, pushers: Pushers
) -> None:
    """Leadership first, then the ports, then the node itself, which closes log and state whatever came before it."""
    async with bounded_shutdown():
        await attempt(node.hand_over())
        await attempt(pushers.close())
        if connect is not None:
            await attempt(connect.stop())
        await attempt(server.stop(DRAIN_S))
        await attempt(ops.stop())
        await node.stop()
