"""A node of kv.v1 in memory, with faults on demand. Several servers may share one store, as nodes share a log."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from kvnode.client import rpc
from kvnode.client.status import ERROR_METADATA_KEY
from kvnode.codec.versionstamp import versionstamp
from kvnode.proto.kv.v1 import admin_pb2, kv_pb2


@dataclass
class Store:
    """What the nodes have agreed on: rows, and the outcome of every request id."""

    rows: dict[bytes, kv_pb2.Entry] = field(default_factory=dict)
    index: int = 0
    sessions: dict[bytes, dict[int, kv_pb2.AtomicWriteResponse]] = field(default_factory=dict)
    lowest_unanswered: dict[bytes, int] = field(default_factory=dict)
    applied_count: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def open(self) -> bytes:
        self.index += 1
        client_id = versionstamp(0, self.index, 0)
        self.sessions[client_id] = {}
        return client_id

    def write(self, request: kv_pb2.AtomicWriteRequest) -> kv_pb2.AtomicWriteResponse:
        failed = [i for i, check in enumerate(request.checks) if self._stamp(check.key) != check.versionstamp]
        if failed:
            return kv_pb2.AtomicWriteResponse(status=kv_pb2.ATOMIC_WRITE_STATUS_CHECK_FAILED, failed_checks=failed)
        self.index += 1
        self.applied_count += 1
        stamp = versionstamp(0, self.index, 0)
        for mutation in request.mutations:
            self._mutate(mutation, stamp)
        self.changed.set()
        self.changed = asyncio.Event()
        return kv_pb2.AtomicWriteResponse(status=kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS, versionstamp=stamp)

    def _stamp(self, key: bytes) -> bytes:
        return self.rows[key].versionstamp if key in self.rows else b""

    def _mutate(self, mutation: kv_pb2.Mutation, stamp: bytes) -> None:
        kind = mutation.type
        if kind == kv_pb2.MUTATION_TYPE_DELETE:
            self.rows.pop(mutation.key, None)
            return
        if kind == kv_pb2.MUTATION_TYPE_DELETE_RANGE:
            for key in [key for key in self.rows if mutation.key <= key < mutation.end_key]:
                del self.rows[key]
            return
        if kind == kv_pb2.MUTATION_TYPE_SET_EXPIRY:
            if mutation.key in self.rows:
                self.rows[mutation.key].versionstamp = stamp
                self.rows[mutation.key].expire_at_ms = mutation.expire_at_ms
            return
        key, data = mutation.key, mutation.value.data
        if kind == kv_pb2.MUTATION_TYPE_SET_SUFFIX_VERSIONSTAMPED_KEY:
            key += b"\x02" + stamp.hex().encode() + b"\x00"
        elif kind != kv_pb2.MUTATION_TYPE_SET:
            data = self._combine(kind, key, data)
        self.rows[key] = kv_pb2.Entry(
            key=key,
            value=data,
            encoding=mutation.value.encoding,
            versionstamp=stamp,
            expire_at_ms=mutation.expire_at_ms,
        )

    def _combine(self, kind: int, key: bytes, data: bytes) -> bytes:
        if key not in self.rows:
            return data
        old, new = int.from_bytes(self.rows[key].value, "little"), int.from_bytes(data, "little")
        result = {
            kv_pb2.MUTATION_TYPE_SUM: (old + new) % 2**64,
            kv_pb2.MUTATION_TYPE_MIN: min(old, new),
            kv_pb2.MUTATION_TYPE_MAX: max(old, new),
        }[kind]
        return result.to_bytes(8, "little")

    def read(self, request: kv_pb2.ReadRequest) -> kv_pb2.ReadResponse:
        strong = request.consistency == kv_pb2.CONSISTENCY_STRONG
        response = kv_pb2.ReadResponse(versionstamp=versionstamp(0, self.index, 0), strongly_consistent=strong)
        for wanted in request.ranges:
            keys = sorted(key for key in self.rows if wanted.start <= key < wanted.end)
            if wanted.reverse:
                keys.reverse()
            result = response.ranges.add(count=len(keys))
            if not wanted.count_only:
                result.entries.extend(self.rows[key] for key in keys[: wanted.limit])
            if wanted.keys_only:
                for entry in result.entries:
                    entry.ClearField("value")
                    entry.ClearField("encoding")
        return response


@dataclass
class Faults:
    """What goes wrong, until it is changed back."""

    drop_before_apply_count: int = 0  # the next n writes break the stream unapplied
    drop_after_apply_count: int = 0  # the next n writes are applied, then break the stream unanswered
    hang: bool = False  # streams are taken and nothing is answered
    withhold_ids: bool = False  # there is no leader to give a client id
    hold_writes: bool = False  # reads are answered, writes are not: there is no leader
    answer_twice: bool = False
    age_ms: int = 0  # of the state that watches show
    errors: list[kv_pb2.Error] = field(default_factory=list)  # the next operations are answered with these
    refuse_open: kv_pb2.Error | None = None


class FakeServer:
    """One node."""

    def __init__(self, store: Store | None = None, name: str = "a") -> None:
        self.store = store or Store()
        self.name = name
        self.faults = Faults()
        self.messages: list[kv_pb2.SessionRequest] = []
        self.sessions_count = 0
        self.unary_count = 0
        self.address = ""
        self.status = admin_pb2.StatusResponse()
        self.cluster_status = admin_pb2.ClusterStatusResponse()
        self.unfenced: list[str] = []  # what a failover answers
        self.admin_requests: list[Any] = []
        self._server: grpc.aio.Server | None = None

    async def start(self, address: str = "127.0.0.1:0") -> FakeServer:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((_handlers("kv.v1.KV", self), _handlers("kv.v1.Admin", self)))
        port = server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        await server.start()
        self._server = server
        return self

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def __aenter__(self) -> FakeServer:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # ---- kv.v1.KV ----

    async def read(self, request: kv_pb2.ReadRequest, context: Any) -> kv_pb2.ReadResponse:
        self.unary_count += 1
        await self._misbehave(context)
        return self.store.read(request)

    async def atomic_write(self, request: kv_pb2.AtomicWriteRequest, context: Any) -> kv_pb2.AtomicWriteResponse:
        await self._misbehave(context)
        return self.store.write(request)

    async def _misbehave(self, context: Any) -> None:
        if self.faults.hang:
            await asyncio.sleep(3600)
        if self.faults.errors:
            await abort(context, self.faults.errors.pop(0))

    async def session(self, requests: AsyncIterator[kv_pb2.SessionRequest], context: Any) -> AsyncIterator[Any]:
        self.sessions_count += 1
        client_id = b""
        is_owed = False
        async for request in requests:
            self.messages.append(request)
            if self.faults.hang:
                await asyncio.sleep(3600)
            if request.HasField("open"):
                if self.faults.refuse_open is not None:
                    await abort(context, self.faults.refuse_open)
                is_owed = True
            if is_owed and not self.faults.withhold_ids:
                is_owed = False
                client_id = (request.open.client_id if request.HasField("open") else b"") or self.store.open()
                yield kv_pb2.SessionResponse(opened=kv_pb2.SessionOpened(client_id=client_id, node=self.name))
            self.store.lowest_unanswered[client_id] = request.lowest_unanswered
            response = kv_pb2.SessionResponse()
            for operation in request.operations:
                if self.faults.hold_writes and operation.HasField("write"):
                    continue
                response.results.append(await self._operate(client_id, operation, context))
            if response.results:
                yield response
                if self.faults.answer_twice:
                    yield response

    async def _operate(self, client_id: bytes, operation: kv_pb2.Operation, context: Any) -> kv_pb2.OperationResult:
        if self.faults.errors:
            return kv_pb2.OperationResult(id=operation.id, error=self.faults.errors.pop(0))
        if operation.HasField("read"):
            return kv_pb2.OperationResult(id=operation.id, read=self.store.read(operation.read))
        outcomes = self.store.sessions.get(client_id)
        if outcomes is None:
            error = kv_pb2.Error(
                code="SESSION_UNKNOWN", message="no such session", phase="commit", not_applied=not operation.resend
            )
            return kv_pb2.OperationResult(id=operation.id, error=error)
        if self.faults.drop_before_apply_count:
            self.faults.drop_before_apply_count -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "dropped")
        if operation.id not in outcomes:
            outcomes[operation.id] = self.store.write(operation.write)
        if self.faults.drop_after_apply_count:
            self.faults.drop_after_apply_count -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "dropped")
        return kv_pb2.OperationResult(id=operation.id, write=outcomes[operation.id])

    async def watch(self, request: kv_pb2.WatchRequest, context: Any) -> AsyncIterator[kv_pb2.WatchResponse]:
        if self.faults.hang:
            await asyncio.sleep(3600)
        seen: dict[bytes, bytes] | None = None
        while True:
            changed = self.store.changed
            stamps = {key: entry.versionstamp for key, entry in self.store.rows.items()}
            keys = list(request.keys) or sorted(
                key for key in set(stamps) | set(seen or {}) if request.prefix_start <= key < request.prefix_end
            )
            await self._refuse_if_stale(request, context)
            response = kv_pb2.WatchResponse(
                versionstamp=versionstamp(0, self.store.index, 0), age_ms=self.faults.age_ms
            )
            for key in keys:
                is_changed = (not request.prefix_end) if seen is None else stamps.get(key) != seen.get(key)
                if request.keys or is_changed:
                    response.keys.add(
                        key=key, changed=is_changed, entry=self.store.rows.get(key) if is_changed else None
                    )
            if seen is None or any(key.changed for key in response.keys):
                yield response
            seen = stamps
            while not changed.is_set():
                await self._refuse_if_stale(request, context)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), 0.02)

    async def _refuse_if_stale(self, request: kv_pb2.WatchRequest, context: Any) -> None:
        if 0 < request.max_staleness_ms < self.faults.age_ms:
            message = f"this node's state may be {self.faults.age_ms} ms old"
            await abort(context, kv_pb2.Error(code="TOO_STALE", message=message, phase="read", not_applied=True))

    # ---- kv.v1.Admin ----

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("admin_"):
            raise AttributeError(name)

        async def answer(request: Any, context: Any) -> Any:
            await self._misbehave(context)
            self.admin_requests.append(request)
            return self._admin_answer(name)

        return answer

    def _admin_answer(self, name: str) -> Any:
        answers = {
            "admin_status": self.status,
            "admin_cluster_status": self.cluster_status,
            "admin_member_list": admin_pb2.MemberListResponse(
                members=self.status.members, min_commit_dcs=self.status.min_commit_dcs
            ),
            "admin_transfer_leadership": admin_pb2.TransferLeadershipResponse(leader_id=2, term=7),
            "admin_snapshot": admin_pb2.SnapshotResponse(index=9, term=2, size_bytes=4096, digest="ab"),
            "admin_failover": admin_pb2.FailoverResponse(
                region="europe",
                epoch=2,
                last_index=904,
                source="europe-a",
                voters=["europe-a", "europe-b"],
                unfenced=self.unfenced,
            ),
            "admin_digest": admin_pb2.DigestResponse(applied_index=9, digest="ab", matches=True),
        }
        return answers.get(name, admin_pb2.MemberChangeResponse(members=self.status.members))


async def abort(context: Any, error: kv_pb2.Error) -> None:
    """End a call with an Error in its trailing metadata, as a node does."""
    context.set_trailing_metadata(((ERROR_METADATA_KEY, error.SerializeToString()),))
    await context.abort(grpc.StatusCode.UNAVAILABLE, error.message)


def _handlers(service: str, server: FakeServer) -> Any:
    methods = {
        "Read": (server.read, rpc.READ, grpc.unary_unary_rpc_method_handler),
        "AtomicWrite": (server.atomic_write, rpc.ATOMIC_WRITE, grpc.unary_unary_rpc_method_handler),
        "Session": (server.session, rpc.SESSION, grpc.stream_stream_rpc_method_handler),
        "Watch": (server.watch, rpc.WATCH, grpc.unary_stream_rpc_method_handler),
    }
    if service == "kv.v1.Admin":
        admin = {
            "Status": rpc.STATUS,
            "ClusterStatus": rpc.CLUSTER_STATUS,
            "MemberList": rpc.MEMBER_LIST,
            "MemberAdd": rpc.MEMBER_ADD,
            "MemberPromote": rpc.MEMBER_PROMOTE,
            "MemberRemove": rpc.MEMBER_REMOVE,
            "MemberReplace": rpc.MEMBER_REPLACE,
            "TransferLeadership": rpc.TRANSFER_LEADERSHIP,
            "Snapshot": rpc.SNAPSHOT,
            "Digest": rpc.DIGEST,
            "Failover": rpc.FAILOVER,
        }
        methods = {
            name: (getattr(server, "admin_" + _snake(name)), method, grpc.unary_unary_rpc_method_handler)
            for name, method in admin.items()
        }
    return grpc.method_handlers_generic_handler(
        service,
        {
            name: make(
                handler,
                request_deserializer=method.request.FromString,
                response_serializer=method.response.SerializeToString,
            )
            for name, (handler, method, make) in methods.items()
        },
    )


def _snake(name: str) -> str:
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in name).lstrip("_")


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
