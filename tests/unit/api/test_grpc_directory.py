"""Databases and tokens over gRPC, and what tokens do to calls that last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from grpc.aio import AioRpcError

from kvnode.api.auth.authority import Authority
from kvnode.api.grpc_server import GrpcServer
from kvnode.base.clock import SystemClock
from kvnode.base.errors import Forbidden, KvError, NotFound, RateLimited, Unauthenticated
from kvnode.client import Admin, open_kv
from kvnode.client.selection import call_metadata
from kvnode.client.session import Session
from kvnode.codec.row import Row
from kvnode.codec.versionstamp import versionstamp
from kvnode.machine.directory import changes
from kvnode.machine.directory.view import DirectoryView
from kvnode.node.channels import open_channel
from kvnode.node.directory import Directory
from kvnode.proto.kv.v1 import directory_pb2, kv_pb2
from tests.unit.api.fake_node import FakeNode
from tests.unit.machine.directory.directory import CLUSTER_ID, MemoryDirectory

STATIC = "the-static-token"
SUCCESS = kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS


class DirectoryNode(FakeNode):
    """Keeps its system database in memory, by the machine's own rules."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster_id = CLUSTER_ID
        self.memory = MemoryDirectory()
        self.directory = Directory(self.memory.state, CLUSTER_ID)
        self.memory.view = self.directory.view
        self.databases: list[int] = []
        self.lose_next = False

    async def read(self, request, timeout_ms=0, *, database=1):
        self.databases.append(database)
        return await super().read(request, timeout_ms)

    async def write(self, request, timeout_ms=0, *, database=1):
        self.databases.append(database)
        if database:
            return await super().write(request, timeout_ms)
        before = dict(self.memory.state.rows)
        if not self.memory.write(request):
            return kv_pb2.AtomicWriteResponse(status=kv_pb2.ATOMIC_WRITE_STATUS_CHECK_FAILED)
        self.tell(before)
        return kv_pb2.AtomicWriteResponse(status=SUCCESS, versionstamp=versionstamp(1, 1, 0))

    def tell(self, before: dict[bytes, Row]) -> None:
        """Tell followers what the write changed, as the applier does."""
        now = self.memory.state.rows
        changed = {key: now.get(key) for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
        self.directory._tell(changed)


class Ground:
    def __init__(self, node: DirectoryNode, address: str) -> None:
        self.node = node
        self.address = address

    def admin(self, token: str = "") -> Admin:
        return Admin([self.address], token=token)

    def kv(self, database: str = "", token: str = ""):
        return open_kv([self.address], database=database, token=token, timeout_ms=30_000)


@asynccontextmanager
async def served(*, needs_token: bool = False) -> AsyncIterator[Ground]:
    node = DirectoryNode()
    authority = Authority(node.directory.view, SystemClock(), static_token=STATIC)
    server = GrpcServer(node, "127.0.0.1:0", authority=authority, needs_token=needs_token)
    port = await server.start()
    try:
        yield Ground(node, f"127.0.0.1:{port}")
    finally:
        await server.stop(0)


async def test_databases() -> None:
    async with served() as ground, ground.admin() as admin:
        made = (await admin.create_database("orders", 100_000)).database
        assert (made.name, made.number, made.mode, made.max_value_bytes) == ("orders", 2, "enabled", 100_000)
        assert [each.name for each in (await admin.databases()).databases] == ["default", "orders"]
        assert (await admin.rename_database(made.uuid, "bills")).database.uuid == made.uuid
        assert (await admin.set_database("bills", "read-only")).database.mode == "read-only"
        shown = await admin.show_database("bills", count_keys=True)
        assert shown.database.max_value_bytes == 100_000
        assert ground.node.databases[-1] == 2, "it counted another database"
        assert (await admin.delete_database("bills")).database.uuid == made.uuid
        purged = await admin.show_database("bills")
        assert not purged.HasField("database") and purged.purge.number == 2
        assert [each.uuid for each in (await admin.databases()).purges] == [made.uuid]
        with pytest.raises(NotFound) as gone:
            await admin.rename_database("bills", "x")
        assert (gone.value.code, gone.value.phase, gone.value.not_applied) == ("DATABASE_NOT_FOUND", "auth", True)
        with pytest.raises(Forbidden):
            await admin.delete_database("default")


async def test_tokens() -> None:
    async with served() as ground, ground.admin() as admin:
        await admin.create_database("orders")
        made = await admin.create_token(database="orders", right="read", label="reports", expires_in_ms=60_000)
        assert made.secret.startswith("kvn_") and made.secret.endswith(made.token.last_characters)
        everywhere = await admin.create_token(all_databases=True, right="admin", requests_per_second=5)
        listed = (await admin.tokens()).tokens
        assert {(each.token_id, each.database, each.right) for each in listed} == {
            (made.token.token_id, "orders", "read"),
            (everywhere.token.token_id, "", "admin"),
        }
        assert not any(made.secret in str(each) for each in listed)
        assert not any(made.secret.encode() in row.value for row in ground.node.memory.state.rows.values())
        assert (await admin.revoke_token(made.token.token_id)).token.label == "reports"
        with pytest.raises(NotFound, match="token list"):
            await admin.revoke_token(made.token.token_id)
        for bad in ({"right": "all"}, {"right": "admin"}, {"expires_in_ms": -1}, {"database": "nobody"}):
            with pytest.raises(KvError):
                await admin.create_token(**bad)


async def test_a_change_that_is_overtaken_is_made_all_the_same() -> None:
    async with served() as ground:
        node = ground.node
        plain = node.write
        overtaken = []

        async def overtake(request, timeout_ms=0, *, database=1):
            if len(overtaken) < 2:
                overtaken.append(1)
                name = f"other-{len(overtaken)}"
                node.memory.write(
                    changes.create_database(node.directory.view, name, uuid=name, max_value_bytes=0, now_ms=1)
                )
            return await plain(request, timeout_ms, database=database)

        node.write = overtake  # type: ignore[method-assign]
        async with ground.admin() as admin:
            assert (await admin.create_database("orders")).database.number == 4


async def test_calls_name_their_database() -> None:
    async with served() as ground, ground.admin() as admin:
        made = (await admin.create_database("orders")).database
        for name, number in (("", 1), ("default", 1), ("orders", 2), (made.uuid, 2)):
            async with ground.kv(name) as kv:
                await kv.get(("a",))
                assert ground.node.databases[-1] == number
                await kv.set(("a",), 1)
                assert ground.node.batches[-1][1].database == number
        async with ground.kv("nobody") as kv:
            with pytest.raises(NotFound, match="nobody"):
                await kv.set(("a",), 1)
            with pytest.raises(NotFound):
                await kv.get(("a",))
        with pytest.raises(KvError):
            ground.kv("ä")


async def test_who_has_no_token_is_told_so() -> None:
    async with served(needs_token=True) as ground:
        for work in (ground.kv().get(("a",)), ground.kv(token="wrong").get(("a",)), ground.kv().set(("a",), 1)):
            with pytest.raises(Unauthenticated) as refused:
                await work
            assert refused.value.phase == "auth" and refused.value.not_applied
        async with ground.admin() as admin:
            with pytest.raises(Unauthenticated):
                await admin.databases()
        async with ground.admin(STATIC) as admin:
            secret = (await admin.create_token(right="read")).secret
            assert (await admin.cluster_status()).nodes
        async with ground.admin(secret) as admin:
            with pytest.raises(Forbidden) as denied:
                await admin.databases()
            assert denied.value.code == "TOKEN_NOT_ADMIN"
        async with ground.kv(token=secret) as kv:
            await kv.get(("a",))
            with pytest.raises(Forbidden) as denied:
                await kv.set(("a",), 1)
            assert denied.value.code == "TOKEN_READ_ONLY"
            assert not ground.node.batches


async def test_a_mode_is_kept_for_every_call() -> None:
    async with served() as ground, ground.admin() as admin, ground.kv() as kv:
        await kv.set(("a",), 1)
        await admin.set_database("default", "read-only")
        with pytest.raises(Forbidden) as refused:
            await kv.set(("a",), 2)
        assert (refused.value.code, refused.value.not_applied) == ("DATABASE_READ_ONLY", True)
        await kv.get(("a",))
        await admin.set_database("default", "disabled")
        with pytest.raises(Forbidden) as refused:
            await kv.get(("a",))
        assert refused.value.code == "DATABASE_DISABLED"
        await admin.set_database("default", "enabled")
        await kv.set(("a",), 3)


async def test_a_session_ends_to_be_of_use_when_its_token_is_revoked() -> None:
    async with served(needs_token=True) as ground, ground.admin(STATIC) as admin:
        made = await admin.create_token()
        async with ground.kv(token=made.secret) as kv:
            await kv.set(("a",), 1)
            await admin.revoke_token(made.token.token_id)
            with pytest.raises(Unauthenticated, match="revoked"):
                await kv.set(("a",), 2)


async def test_watches_end_when_their_token_is_revoked_or_their_database_deleted() -> None:
    async with served(needs_token=True) as ground, ground.admin(STATIC) as admin:
        await admin.create_database("orders")
        made = await admin.create_token(all_databases=True)

        async def watch(database: str) -> None:
            async with ground.kv(database, made.secret) as kv:
                async for _ in kv.watch([("a",)], consistency="eventual"):
                    pass

        first, second = asyncio.ensure_future(watch("orders")), asyncio.ensure_future(watch(""))
        async with asyncio.timeout(30):
            while len(ground.node.watches) < 2:
                await asyncio.sleep(0.01)
            await admin.delete_database("orders")
            with pytest.raises(NotFound):
                await first
            assert not second.done()
            await admin.revoke_token(made.token.token_id)
            with pytest.raises(Unauthenticated):
                await second


async def test_limits_of_a_token() -> None:
    async with served() as ground, ground.admin() as admin:
        made = await admin.create_token(requests_per_second=3)
        async with Session([ground.address], metadata=call_metadata("", made.secret)) as session:
            mutation = kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_SET, key=b"k")
            request = kv_pb2.AtomicWriteRequest(mutations=[mutation])
            results = await asyncio.gather(*(session.write(request, 5_000) for _ in range(9)), return_exceptions=True)
        refused = [result for result in results if isinstance(result, RateLimited)]
        assert 5 <= len(refused) <= 6
        assert all(error.not_applied for error in refused)


async def test_a_gateway_follows_the_directory() -> None:
    async with served(needs_token=True) as ground, ground.admin(STATIC) as admin:
        await admin.create_database("before")
        view = DirectoryView()
        async with open_channel(ground.address, None) as channel:
            call = channel.unary_stream("/kv.v1.Admin/WatchDirectory")(b"", metadata=call_metadata(token=STATIC))

            async def take() -> directory_pb2.WatchDirectoryResponse:
                response = directory_pb2.WatchDirectoryResponse.FromString(await call.read())
                rows = {
                    row.key: None if row.gone else Row(row.key, row.value, 3, row.versionstamp) for row in response.rows
                }
                if response.full:
                    view.load([row for row in rows.values() if row], cluster_id=response.cluster_id)
                else:
                    view.update(rows)
                return response

            assert (await take()).full
            assert view.databases == ground.node.directory.view.databases
            made = await admin.create_token(database="before")
            await take()
            assert set(view.tokens) == {made.token.token_id}
            await admin.delete_database("before")
            assert not (await take()).full
            assert not view.tokens and view.find("before") is None
            assert view.version == ground.node.directory.view.version
            ground.node.directory.replaced()
            assert (await take()).full
            ground.node.leader_id = 0
            began = time.monotonic()
            with pytest.raises(AioRpcError, match="no leader"):
                await call.read()
            assert time.monotonic() - began < 2, "a node without a leader keeps its followers"
        async with ground.admin("wrong-token") as stranger:
            with pytest.raises(Unauthenticated):
                await stranger.tokens()
