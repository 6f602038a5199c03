"""A node's account of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kvnode
from kvnode.codec.membership import Member, MemberRole
from kvnode.node.member_wire import member_to_wire
from kvnode.proto.kv.v1 import admin_pb2

if TYPE_CHECKING:
    from kvnode.node.node import Node


def node_status(node: Node) -> admin_pb2.StatusResponse:
    """Everything that `kvnode status` shows of one node."""
    raft, meta = node.raft, node.state.meta
    standing = node.member.role
    return admin_pb2.StatusResponse(
        self=member_to_wire(node.member),
        cluster_id=node.cluster_id,
        epoch=node.epoch,
        role=standing.value if standing is not MemberRole.VOTER and not raft.is_leader else raft.role.value,
        term=raft.term,
        leader_id=raft.leader_id,
        last_index=raft.last_index,
        commit_index=raft.commit,
        applied_index=meta.applied_index,
        durable_applied_index=node.state.durable_applied,
        first_index=node.log.first_index(),
        log_time_ms=meta.log_time_ms,
        peers=_peers(node),
        problems=_problems(node),
        version=kvnode.__version__,
        age_ms=node.freshness.age_ms(),
        resident_bytes=resident_bytes(),
        digest=f"{meta.digest:032x}",
        clock_offset_ms=int(node.timekeeper.offset_ms),
        members=[member_to_wire(m) for m in raft.membership.members],
        min_commit_dcs=raft.membership.min_commit_dcs,
        lag_ms=node.freshness.lag_ms(),
        lag_entries=max(0, max(raft.commit, node.follower.committed_index) - meta.applied_index),
        source=node.follower.source.name if node.follower.source is not None else "",
        replicas=_replicas(node),
        regions=_regions(node),
        snapshots=_snapshots(node),
        snapshot_wait=_snapshot_wait(node),
        on_replication_stall=node.replication.policy.value,
        max_unreplicated_ms=node.replication.max_unreplicated_ms,
        replication_stalled=node.replication.is_stalled,
        primary_lease=_primary_lease(node),
        leader_lease=_leader_lease(node),
    )


def _primary_lease(node: Node) -> admin_pb2.PrimaryLease:
    membership, promotion = node.raft.membership, node.promotion
    return admin_pb2.PrimaryLease(
        wanted=promotion.wished_ms > 0,
        lease_ms=membership.primary_lease_ms,
        ends=membership.lease_ends,
        remaining_ms=promotion.remaining_ms,
        promotions=promotion.promotions_count,
    )


def _leader_lease(node: Node) -> admin_pb2.LeaderLease | None:
    if not (node.raft.is_leader and node.settings.leader_lease):
        return None
    return admin_pb2.LeaderLease(remaining_ms=max(0, int(node.operations.lease.remaining_ms())))


def resident_bytes() -> int:
    """Resident memory of this process; 0 where /proc does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0


def _peers(node: Node) -> list[admin_pb2.PeerProgress]:
    if not node.raft.is_leader:
        return []
    last = node.raft.last_index
    members: dict[int, Member] = {m.node_id: m for m in node.raft.membership.members}
    rows = []
    for peer in node.raft.progress():
        if peer.node_id == node.node_id:
            continue
        member = members.get(peer.node_id)
        contact = peer.ticks_since_contact
        rows.append(
            admin_pb2.PeerProgress(
                node_id=peer.node_id,
                name=member.name if member else "",
                match_index=peer.match,
                lag_entries=max(0, last - peer.match),
                last_contact_ms=contact * node.settings.tick_ms if contact >= 0 else -1,
                state=peer.state,
            )
        )
    return rows


def _replicas(node: Node) -> list[admin_pb2.ReplicaProgress]:
    now, delivered = node.clock.now_ms(), node.raft.log.delivered
    return [
        admin_pb2.ReplicaProgress(
            node_id=source.node_id,
            name=source.name,
            region=source.region,
            durable_index=source.durable_index,
            applied_index=source.applied_index,
            lag_entries=max(0, delivered - source.durable_index),
            lag_ms=_replica_lag_ms(now - source.held_at_ms, source.held_at_ms, delivered <= source.durable_index),
        )
        for source in node.changelog.following
    ]


def _replica_lag_ms(since_ms: int, held_at_ms: int, is_current: bool) -> int:
    if is_current:
        return 0
    return max(0, since_ms) if held_at_ms else -1


def _regions(node: Node) -> list[admin_pb2.RegionProgress]:
    if not node.raft.is_leader:
        return []
    return [
        admin_pb2.RegionProgress(
            region=lag.region,
            node=_name_of(node, lag.node_id),
            durable_index=lag.durable_index,
            lag_entries=lag.lag_entries,
            lag_ms=lag.lag_ms,
            silent_ms=lag.silent_ms,
        )
        for lag in node.replication.lags()
    ]


def _snapshots(node: Node) -> list[admin_pb2.SnapshotProgress]:
    return [
        admin_pb2.SnapshotProgress(
            incoming=transfer.incoming,
            node_id=transfer.node_id,
            name=transfer.name or _name_of(node, transfer.node_id),
            index=transfer.snapshot_index,
            moved_bytes=transfer.moved_bytes,
            size_bytes=transfer.size_bytes,
        )
        for transfer in node.snapshots.transfers()
    ]


def _snapshot_wait(node: Node) -> admin_pb2.SnapshotWait | None:
    wait, source = node.follower.wait, node.follower.source
    if not wait.is_on() or (source is not None and wait.is_neighbour(source)):
        return None  # it needs none, or it comes
    shown = admin_pb2.SnapshotWait(waited_ms=wait.waited_ms)
    if wait.neighbour is not None:
        member, awaited = wait.neighbour
        shown.neighbour = member.name
        shown.held_bytes, shown.size_bytes = awaited
    return shown


def _name_of(node: Node, node_id: int) -> str:
    member = node.raft.membership.get(node_id)
    return member.name if member is not None else ""


def _problems(node: Node) -> list[str]:
    problems = []
    is_ready, why = node.ready
    if not is_ready:
        problems.append(why)
    if node.epochs.split:
        problems.append(node.epochs.split)
    if node.raft.fenced and not node.raft.leader_id and node.raft.promised_epoch:
        problems.append(
            f"this node has promised epoch {node.raft.promised_epoch} and found nobody in it yet: if no failover is "
            "under way, repeat `kvnode failover`; if the primary region lives, `kvnode failover --plan --to` that "
            "region"
        )
    if node.snapshots.failure:
        problems.append(f"a snapshot that comes in cannot be stored, and is tried again: {node.snapshots.failure}")
    offset_ms = node.timekeeper.offset_ms
    if abs(offset_ms) > node.settings.max_clock_offset_ms:
        result = "it leads, and would not be elected again" if node.raft.is_leader else "it does not lead"
        problems.append(
            f"this node's clock is {offset_ms:.0f} ms from the others' median: {result} until the clock is set right"
        )
    if stalled := node.replication.sentence():
        problems.append(stalled)
    problems.extend(node.promotion.problems())
    if node.raft.is_leader:
        limit = node.settings.election_ticks
        members = {m.node_id: m.name for m in node.raft.membership.members}
        problems.extend(
            f"node '{members.get(peer.node_id, peer.node_id)}' does not answer the leader"
            for peer in node.raft.progress()
            if peer.node_id != node.node_id and not 0 <= peer.ticks_since_contact <= limit
        )
    return problems
