"""Operations on the cluster itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from types import TracebackType
from typing import TypeVar

import grpc

from kvnode.base import limits
from kvnode.base.clock import SystemClock
from kvnode.base.errors import KvError, NotLeader
from kvnode.client import rpc
from kvnode.client.channel import parse_endpoints
from kvnode.client.numbers import parse_count, parse_timeout_ms
from kvnode.client.rpc import Method
from kvnode.client.selection import call_metadata
from kvnode.client.texts import DATABASE_NAME, sendable
from kvnode.client.unary import UnaryCaller
from kvnode.proto.kv.v1 import admin_pb2, directory_pb2

Request = TypeVar("Request")
Response = TypeVar("Response")

_MAX_UINT32 = (1 << 32) - 1
_MAX_INT64 = (1 << 63) - 1
_MAX_UINT64 = (1 << 64) - 1
_FINAL_AT_THE_LEADER = frozenset({"PEER_UNREACHABLE"})  # of a node that is to join: others say only who leads


class Admin:
    """Administration of one cluster, at whichever endpoint answers; changes go to the leader. All raise KvError.

    Args:
        addresses: host:port of nodes of one cluster, in order of preference; or one string, separated by commas.
        timeout_ms: for each call.
        token: an access token with the right admin; needed where the nodes ask for one (`grpc_auth`).
        credentials: for TLS; None = plain text.
        fail_fast: raise when no address could be reached, rather than wait until the deadline.
        random: the source of back-off jitter.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        token: str = "",
        timeout_ms: int = limits.DEFAULT_OPERATION_TIMEOUT_MS,
        credentials: grpc.ChannelCredentials | None = None,
        fail_fast: bool = True,
        random: Random | None = None,
    ) -> None:
        self._timeout_ms = parse_timeout_ms(timeout_ms)
        self._credentials = credentials
        self._metadata = call_metadata(token=token)
        self._addresses = addresses = parse_endpoints(addresses if isinstance(addresses, str) else list(addresses))
        self._random = random or Random()
        self._clock = SystemClock()
        self._caller = UnaryCaller(
            addresses, credentials=credentials, metadata=self._metadata, fail_fast=fail_fast, random=random
        )

    async def __aenter__(self) -> Admin:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._caller.close()

    @property
    def endpoint(self) -> str:
        """The address that answered last, or is asked next."""
        return self._caller.endpoint

    async def status(self) -> admin_pb2.StatusResponse:
        """What the answering node says of itself."""
        return await self._caller.call(rpc.STATUS, admin_pb2.StatusRequest(), self._timeout_ms)

    async def cluster_status(self) -> admin_pb2.ClusterStatusResponse:
        """What every member says, asked by the answering node, which gives those that are silent up in time."""
        # The silent members' timeout must leave room for the answer itself.
        request = admin_pb2.ClusterStatusRequest(timeout_ms=min(1_000, max(1, self._timeout_ms // 2)))
        return await self._caller.call(rpc.CLUSTER_STATUS, request, self._timeout_ms)

    async def members(self) -> admin_pb2.MemberListResponse:
        """The membership as the answering node knows it."""
        return await self._caller.call(rpc.MEMBER_LIST, admin_pb2.MemberListRequest(), self._timeout_ms)

    async def add(self, member: admin_pb2.Member) -> admin_pb2.MemberChangeResponse:
        """Add a running, unjoined node as a learner."""
        request = admin_pb2.MemberAddRequest(member=member)
        return await self._change(rpc.MEMBER_ADD, request)

    async def promote(self, node_id: int) -> admin_pb2.MemberChangeResponse:
        """Make a learner that has caught up a voter."""
        request = admin_pb2.MemberPromoteRequest(node_id=_node_id(node_id))
        return await self._change(rpc.MEMBER_PROMOTE, request)

    async def remove(self, node_id: int, *, force: bool = False) -> admin_pb2.MemberChangeResponse:
        """Remove a member for good. `force`: although the cluster then breaks a promise of its topology."""
        request = admin_pb2.MemberRemoveRequest(node_id=_node_id(node_id), force=force)
        return await self._change(rpc.MEMBER_REMOVE, request)

    async def replace(self, node_id: int, replacement: admin_pb2.Member) -> admin_pb2.MemberChangeResponse:
        """Add `replacement`, promote it when it has caught up, then remove `node_id`."""
        request = admin_pb2.MemberReplaceRequest(
            node_id=_node_id(node_id),
            replacement=replacement,
            timeout_ms=max(1, self._timeout_ms - self._timeout_ms // 10),
        )
        return await self._change(rpc.MEMBER_REPLACE, request)

    async def transfer_leadership(self, to_node_id: int = 0) -> admin_pb2.TransferLeadershipResponse:
        """Hand leadership to a voter; 0 = the most caught-up one."""
        request = admin_pb2.TransferLeadershipRequest(to_node_id=_node_id(to_node_id))
        return await self._change(rpc.TRANSFER_LEADERSHIP, request)

    async def failover(
        self,
        region: str,
        *,
        planned: bool = False,
        dry_run: bool = False,
        force: bool = False,
        primary_is_down: bool = False,
        keep_index: int = 0,
    ) -> admin_pb2.FailoverResponse:
        """Move the primary to another region, coordinated by the answering node: preferably one that stands there.

        Args:
            region: that is to be the primary one.
            planned: the old primary lives, and ends its epoch itself: nothing is lost.
            dry_run: say what would be done, and change nothing.
            force: although the region lags or is small, or the primary lives.
            primary_is_down: old voters that do not answer acknowledge nothing any more, for certain.
            keep_index: what a dry run said would be kept (last_index); with less, nothing is done.
        """
        request = admin_pb2.FailoverRequest(
            region=sendable("region", region),
            planned=planned,
            dry_run=dry_run,
            force=force,
            primary_is_down=primary_is_down,
            keep_index=keep_index,
        )
        if dry_run:
            return await self._caller.call(rpc.FAILOVER, request, self._timeout_ms)
        return await self._once(rpc.FAILOVER, request)

    async def snapshot(self) -> admin_pb2.SnapshotResponse:
        """Write a snapshot at the answering node now, and compact its log behind it."""
        return await self._caller.call(rpc.SNAPSHOT, admin_pb2.SnapshotRequest(), self._timeout_ms)

    async def digest(self, *, scrub: bool = False) -> admin_pb2.DigestResponse:
        """The digest of the answering node's state. `scrub`: also recompute it from every row."""
        return await self._caller.call(rpc.DIGEST, admin_pb2.DigestRequest(scrub=scrub), self._timeout_ms)

    async def databases(self) -> directory_pb2.DatabaseListResponse:
        """All databases, and the deleted ones whose rows are still being removed."""
        return await self._caller.call(rpc.DATABASE_LIST, directory_pb2.DatabaseListRequest(), self._timeout_ms)

    async def show_database(
        self, database: str = "", *, count_keys: bool = False
    ) -> directory_pb2.DatabaseShowResponse:
        """One database by name or uuid, or how far the removal of a deleted one is. `count_keys` reads them all."""
        request = directory_pb2.DatabaseShowRequest(database=_database(database), count_keys=count_keys)
        return await self._caller.call(rpc.DATABASE_SHOW, request, self._timeout_ms)

    async def create_database(self, name: str, max_value_bytes: int = 0) -> directory_pb2.DatabaseResponse:
        """A database of that name; `max_value_bytes` 0 = Deno KV's own limit."""
        request = directory_pb2.DatabaseCreateRequest(name=_database(name), max_value_bytes=_size(max_value_bytes))
        return await self._once(rpc.DATABASE_CREATE, request)

    async def rename_database(self, database: str, name: str) -> directory_pb2.DatabaseResponse:
        """Another name for a database, which was named by name or uuid."""
        return await self._once(
            rpc.DATABASE_RENAME, directory_pb2.DatabaseRenameRequest(database=_database(database), name=_database(name))
        )

    async def set_database(
        self, database: str, mode: str = "", max_value_bytes: int = 0
    ) -> directory_pb2.DatabaseResponse:
        """Another mode (enabled, read-only, disabled) or limit for a database; empty or 0 = as it is."""
        request = directory_pb2.DatabaseSetRequest(
            database=_database(database), mode=sendable("mode", mode), max_value_bytes=_size(max_value_bytes)
        )
        return await self._once(rpc.DATABASE_SET, request)

    async def delete_database(self, database: str) -> directory_pb2.DatabaseResponse:
        """Delete a database: its name and tokens at once, its rows afterwards."""
        return await self._once(rpc.DATABASE_DELETE, directory_pb2.DatabaseDeleteRequest(database=_database(database)))

    async def tokens(self) -> directory_pb2.TokenListResponse:
        """All access tokens, without the tokens themselves."""
        return await self._caller.call(rpc.TOKEN_LIST, directory_pb2.TokenListRequest(), self._timeout_ms)

    async def create_token(
        self,
        *,
        database: str = "",
        all_databases: bool = False,
        right: str = "write",
        label: str = "",
        expires_in_ms: int = 0,
        requests_per_second: int = 0,
        bytes_per_second: int = 0,
    ) -> directory_pb2.TokenCreateResponse:
        """A token; `secret` of the answer is the only time that it is shown.

        Args:
            database: name or uuid; none = the default one.
            all_databases: instead of `database`.
            right: read, write or admin; admin goes with all databases.
            label: whose it is.
            expires_in_ms: its life; 0 = for ever.
            requests_per_second, bytes_per_second: at each node; 0 = no limit.
        """
        request = directory_pb2.TokenCreateRequest(
            database=_database(database),
            all_databases=all_databases,
            right=sendable("right", right),
            label=sendable("label", label),
            expires_in_ms=parse_count("expires_in_ms", expires_in_ms, 0, _MAX_INT64),
            requests_per_second=parse_count("requests_per_second", requests_per_second, 0, _MAX_UINT32),
            bytes_per_second=parse_count("bytes_per_second", bytes_per_second, 0, _MAX_INT64),
        )
        return await self._once(rpc.TOKEN_CREATE, request)

    async def revoke_token(self, token_id: str) -> directory_pb2.TokenRevokeResponse:
        """Revoke a token by its id."""
        return await self._once(
            rpc.TOKEN_REVOKE, directory_pb2.TokenRevokeRequest(token_id=sendable("token_id", token_id))
        )

    async def _once(self, method: Method[Request, Response], request: Request) -> Response:
        """A change that any node makes; it is not sent again when its outcome is unknown."""
        return await self._caller.call(method, request, self._timeout_ms, repeatable=False)

    async def _change(self, method: Method[Request, Response], request: Request) -> Response:
        """Call at the leader; wait for one, and ask again where leadership has moved meanwhile."""
        deadline_ms = self._clock.monotonic_ms() + self._timeout_ms
        while True:
            addresses = await self._leader_first(self._left_ms(deadline_ms))
            left_ms = self._left_ms(deadline_ms)
            caller = UnaryCaller(
                addresses, credentials=self._credentials, metadata=self._metadata, fail_fast=True, random=self._random
            )
            try:
                return await caller.call(method, request, left_ms, repeatable=False, final_codes=_FINAL_AT_THE_LEADER)
            except KvError as error:
                pause_ms = self._random.uniform(limits.CLIENT_BACKOFF_MS, 4 * limits.CLIENT_BACKOFF_MS)
                is_over = self._clock.monotonic_ms() + pause_ms >= deadline_ms
                if is_over or not (isinstance(error, NotLeader) or error.code == "NOT_LEADER"):
                    raise
                self._caller.turn()  # it may be cut off from a leader that others know
                await asyncio.sleep(pause_ms / 1000)
            finally:
                await caller.close()

    def _left_ms(self, deadline_ms: float) -> int:
        return max(1, int(deadline_ms - self._clock.monotonic_ms()))

    async def _leader_first(self, timeout_ms: int) -> list[str]:
        """The leader's address as its nodes know it, then the given ones: it may not be reachable from here."""
        status = await self._caller.call(rpc.STATUS, admin_pb2.StatusRequest(), timeout_ms)
        leader = [member.address for member in status.members if member.node_id == status.leader_id]
        return [*leader, *(address for address in self._addresses if address not in leader)]


def _node_id(number: int) -> int:
    return parse_count("node_id", number, 0, _MAX_UINT64)


def _size(max_value_bytes: float) -> int:
    """What the field holds; the node judges how large."""
    return parse_count("max_value_bytes", max_value_bytes, 0, _MAX_UINT32)


def _database(name: str) -> str:
    return sendable("the database's name", name, DATABASE_NAME)
