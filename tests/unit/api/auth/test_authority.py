"""Judging tokens by the directory."""

from __future__ import annotations

import random
import uuid

import pytest

from kvnode.api.auth import access_token
from kvnode.api.auth.authority import Authority
from kvnode.api.auth.gate import Gate
from kvnode.api.connect.ports import Access, Database
from kvnode.base import limits
from kvnode.base.errors import Forbidden, KvError, NotFound, RateLimited, Unauthenticated, Unavailable
from kvnode.machine.directory import changes
from kvnode.machine.directory.rows import ALL_DATABASES, Right
from kvnode.machine.directory.view import DirectoryView
from tests.unit.machine.directory.directory import MemoryDirectory, token

STATIC = "a static token"


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> float:
        return float(self.ms)


class Ground:
    """A directory with a database `orders`, and what judges by it."""

    def __init__(self, *, static: str = "", keys: bool = True) -> None:
        self.clock = Clock()
        self.directory = MemoryDirectory()
        self.authority = Authority(self.directory.view, self.clock, static_token=static)
        self.access: Access = self.authority
        if keys:
            self.make(lambda view: changes.add_signing_key(view, b"s" * 32, now_ms=self.clock.ms))
        self.create("orders")

    def make(self, build) -> None:
        assert self.directory.make(build)

    def create(self, name: str) -> None:
        self.make(lambda view: changes.create_database(view, name, uuid=str(uuid.uuid4()), max_value_bytes=0, now_ms=1))

    def database(self, name: str = "orders") -> Database:
        found = self.access.find(name)
        assert found is not None
        return found

    def grant(self, database: int = 2, right: Right = Right.WRITE, **more) -> str:
        fresh = access_token.mint(random.SystemRandom())
        row = token(fresh.token_id, database, right, secret_hash=fresh.secret_hash, **more)
        self.make(lambda view: changes.create_token(view, row))
        return fresh.text

    def use(self, data: str, name: str = "orders", *, write: bool = True, size: int = 10):
        return self.access.authorize(self.database(name).uuid, data, write=write, size_bytes=size)


def code(work) -> str:
    with pytest.raises(KvError) as raised:
        work()
    assert raised.value.phase == "auth" and raised.value.not_applied
    return raised.value.code


def test_from_an_access_token_to_a_grant() -> None:
    ground = Ground()
    text = ground.grant()
    data, expires_ms = ground.access.exchange(ground.database(), text)
    assert expires_ms == ground.clock.ms + limits.DATA_TOKEN_LIFE_MS
    grant = ground.use(data)
    assert grant.can_write and grant.database == ground.database()
    assert ground.use(data) is grant, "judged anew although nothing has changed"
    assert text not in data


def test_a_token_that_only_reads() -> None:
    ground = Ground()
    data, _ = ground.access.exchange(ground.database(), ground.grant(right=Right.READ))
    assert not ground.use(data, write=False).can_write
    with pytest.raises(Forbidden):
        ground.use(data, write=True)


@pytest.mark.parametrize("wrong", ["", "x", "kvn_abcdefgh_", "kvn_" + "a" * 8 + "_" + "b" * 40, "kvd_x", "ä", STATIC])
def test_wrong_tokens(wrong: str) -> None:
    ground = Ground()
    assert code(lambda: ground.access.exchange(ground.database(), wrong)) == "NO_ACCESS_TOKENS"
    text = ground.grant()
    assert code(lambda: ground.access.exchange(ground.database(), wrong)) == "ACCESS_TOKEN_INVALID"
    assert code(lambda: ground.access.exchange(ground.database(), text + "x")) == "ACCESS_TOKEN_INVALID"
    assert code(lambda: ground.access.exchange(ground.database(), text[:-1])) == "ACCESS_TOKEN_INVALID"
    for data in (wrong, text):
        assert code(lambda data=data: ground.use(data)) == "ACCESS_TOKEN_INVALID"


def test_who_lacks_the_key_of_a_token_cannot_judge_it() -> None:
    ground = Ground()
    token, _ = ground.access.exchange(ground.database(), ground.grant())
    new_gateway = Authority(DirectoryView(), ground.clock)
    assert ground.authority.can_judge(token) and not new_gateway.can_judge(token)
    assert new_gateway.can_judge("nonsense"), "no key would make it genuine"


def test_without_tokens_the_text_says_how_to_make_one() -> None:
    ground = Ground()
    with pytest.raises(Unauthenticated, match="kvnode token create"):
        ground.access.exchange(ground.database(), "")


def test_a_token_of_another_database() -> None:
    ground = Ground()
    ground.create("other")
    text = ground.grant(2)
    other = ground.database("other")
    assert code(lambda: ground.access.exchange(other, text)) == "ACCESS_TOKEN_WRONG_DATABASE"
    data, _ = ground.access.exchange(ground.database(), text)
    assert code(lambda: ground.use(data, "other")) == "ACCESS_TOKEN_WRONG_DATABASE"
    everywhere = ground.grant(ALL_DATABASES)
    data, _ = ground.access.exchange(other, everywhere)
    assert ground.use(data, "other").database.name == "other"


def test_a_revoked_token_is_refused_at_once() -> None:
    ground = Ground()
    text = ground.grant()
    data, _ = ground.access.exchange(ground.database(), text)
    ground.use(data)
    told = []
    end = ground.access.follow(lambda: told.append(1))
    ground.make(lambda view: changes.revoke_token(view, access_token.id_of(text)))
    assert told == [1]
    end()
    with pytest.raises(Unauthenticated, match="revoked"):
        ground.use(data)
    ground.grant()
    assert told == [1]
    assert code(lambda: ground.access.exchange(ground.database(), text)) == "ACCESS_TOKEN_INVALID"


def test_expiry_of_both_tokens() -> None:
    ground = Ground()
    text = ground.grant(expires_ms=ground.clock.ms + 1_000)
    data, expires_ms = ground.access.exchange(ground.database(), text)
    assert expires_ms == ground.clock.ms + 1_000, "a data token outlives the access token"
    ground.use(data)
    ground.clock.ms += 1_000
    assert code(lambda: ground.use(data)) == "ACCESS_TOKEN_EXPIRED"
    assert code(lambda: ground.use(data)) == "ACCESS_TOKEN_EXPIRED"
    assert code(lambda: ground.access.exchange(ground.database(), text)) == "ACCESS_TOKEN_EXPIRED"
    lasting, _ = ground.access.exchange(ground.database(), ground.grant())
    ground.clock.ms += limits.DATA_TOKEN_LIFE_MS
    assert code(lambda: ground.use(lasting)) == "ACCESS_TOKEN_EXPIRED"


def test_a_deleted_database() -> None:
    ground = Ground()
    data, _ = ground.access.exchange(ground.database(), ground.grant(ALL_DATABASES))
    gone = ground.database().uuid
    ground.use(data)
    ground.make(lambda view: changes.delete_database(view, "orders", now_ms=1))
    with pytest.raises(NotFound):
        ground.access.authorize(gone, data, write=False, size_bytes=1)
    assert ground.access.find("orders") is None


def test_a_renamed_database_and_its_new_mode_are_seen_at_once() -> None:
    ground = Ground()
    data, _ = ground.access.exchange(ground.database(), ground.grant())
    ground.use(data)
    ground.make(lambda view: changes.set_database(view, "orders", mode="read-only", max_value_bytes=9))
    grant = ground.use(data)
    assert (grant.database.mode.value, grant.database.max_value_bytes) == ("read-only", 9)
    ground.make(lambda view: changes.rename_database(view, "orders", "bills"))
    assert ground.use(data, "bills").database.name == "bills"


def test_the_static_token_opens_everything_on_every_node() -> None:
    ground = Ground(static=STATIC)
    data, _ = ground.access.exchange(ground.database(), STATIC)
    assert ground.use(data).can_write
    another = Authority(ground.directory.view, ground.clock)  # of a node without the static token
    assert another.authorize(ground.database().uuid, data, write=True, size_bytes=1).can_write
    assert code(lambda: ground.access.exchange(ground.database(), STATIC + "x")) == "ACCESS_TOKEN_INVALID"


def test_a_gateway_judges_by_rows_that_it_was_sent() -> None:
    ground = Ground()
    text = ground.grant()
    view = DirectoryView()
    gateway = Authority(view, ground.clock)
    view.load(ground.directory.rows(), cluster_id="cafe")
    data, _ = gateway.exchange(ground.database(), text)
    assert ground.use(data).can_write
    assert view.find("") == ground.directory.view.find("")


def test_limits_by_token() -> None:
    ground = Ground()
    text = ground.grant(requests_per_second=2)
    data, _ = ground.access.exchange(ground.database(), text)
    ground.use(data)
    ground.create("something-else")
    ground.use(data)
    with pytest.raises(RateLimited):
        ground.use(data)
    again, _ = ground.access.exchange(ground.database(), text)
    with pytest.raises(RateLimited):
        ground.use(again)
    ground.clock.ms += 500
    ground.use(data)


def test_a_size_that_is_known_afterwards_is_a_debt() -> None:
    ground = Ground()
    data, _ = ground.access.exchange(ground.database(), ground.grant(bytes_per_second=100))
    ground.use(data, size=0)
    ground.access.charge(data, 300)
    with pytest.raises(RateLimited, match="100 bytes"):
        ground.use(data, size=0)
    ground.clock.ms += 2_001
    ground.use(data, size=0)
    ground.access.charge("kvd_of-nobody", 300)


def test_keys_rotate_without_a_refusal() -> None:
    ground = Ground()
    text = ground.grant()
    old, _ = ground.access.exchange(ground.database(), text)
    ground.clock.ms += 60_000
    ground.make(lambda view: changes.add_signing_key(view, b"t" * 32, now_ms=ground.clock.ms))
    another = Authority(ground.directory.view, ground.clock)
    before, _ = ground.access.exchange(ground.database(), text)
    ground.clock.ms += limits.SIGNING_KEY_ACTIVATION_MS
    after, _ = ground.access.exchange(ground.database(), text)
    assert another.authorize(ground.database().uuid, old, write=True, size_bytes=1)
    key_of = {data: another._genuine(data) and data[9:14] for data in (old, before, after)}
    assert key_of[old] == key_of[before] != key_of[after], "a fresh key signs before all nodes can have it"
    ground.clock.ms += limits.SIGNING_KEY_OVERLAP_MS
    ground.make(lambda view: changes.drop_outlived(view, now_ms=ground.clock.ms))
    with pytest.raises(Unauthenticated):
        Authority(ground.directory.view, ground.clock).authorize(ground.database().uuid, old, write=True, size_bytes=1)


def test_before_the_first_leader_nothing_can_be_signed() -> None:
    ground = Ground(static=STATIC, keys=False)
    with pytest.raises(Unavailable):
        ground.access.exchange(ground.database(), STATIC)


def test_what_is_remembered_is_bounded(monkeypatch) -> None:
    ground = Ground()
    monkeypatch.setattr(limits, "MAX_VERIFIED_TOKENS_COUNT", 3)
    text = ground.grant()
    for _ in range(8):
        ground.clock.ms += 1
        data, _ = ground.access.exchange(ground.database(), text)
        ground.use(data)
        assert len(ground.authority._judged) <= 3


def metadata(token: str = "", database: str = ""):
    named = [("kv-database", database)] if database else []
    return [*named, ("authorization", f"Bearer {token}")] if token else named


async def refusal(work) -> str:
    with pytest.raises(KvError) as raised:
        await work
    assert raised.value.phase == "auth"
    return raised.value.code


async def test_the_gate_without_tokens() -> None:
    ground = Ground()
    gate = Gate(ground.authority, ground.clock, required=False)
    permit = await gate.permit(metadata(database="orders"))
    assert permit.database == 2 and permit.is_plain
    assert (await gate.permit(None)).database == 1
    assert await refusal(gate.permit(metadata(database="nobody"))) == "DATABASE_NOT_FOUND"
    assert await refusal(gate.permit(metadata("wrong"))) == "NO_ACCESS_TOKENS", "a token that is sent is judged"
    assert await refusal(gate.permit([("authorization", "Basic x")])) == "ACCESS_TOKEN_INVALID"
    await gate.require_admin(None)


async def test_what_is_permitted_in_a_database_that_a_failover_cut_off_is_not_in_another_of_its_number() -> None:
    ground = Ground()
    view = ground.authority.view
    permit = await Gate(ground.authority, ground.clock, required=False).permit(metadata(database="orders"))
    assert permit.refusal(write=True) is None
    view.databases[2] = view.databases[2]._replace(name="renamed")
    view.update({})
    assert permit.refusal(write=True) is None
    view.databases[2] = view.databases[2]._replace(uuid=str(uuid.uuid4()))
    view.update({})
    assert isinstance(permit.refusal(write=True), NotFound) and isinstance(permit.refusal(write=False), NotFound)
    assert not permit.is_plain


async def test_the_gate_with_tokens() -> None:
    ground = Ground(static=STATIC)
    gate = Gate(ground.authority, ground.clock, required=True)
    text = ground.grant(right=Right.READ)
    assert await refusal(gate.permit(metadata(database="orders"))) == "ACCESS_TOKEN_INVALID"
    assert await refusal(gate.permit(metadata(text))) == "ACCESS_TOKEN_WRONG_DATABASE"
    permit = await gate.permit(metadata(text, "orders"))
    assert not permit.is_plain
    permit.use(1, write=False)
    assert permit.refusal(write=True).code == "TOKEN_READ_ONLY"
    assert await refusal(gate.require_admin(None)) == "ACCESS_TOKEN_INVALID"
    assert await refusal(gate.require_admin(metadata(text))) == "TOKEN_NOT_ADMIN"
    await gate.require_admin(metadata(STATIC))
    await gate.require_admin(metadata(ground.grant(ALL_DATABASES, Right.ADMIN)))
    await gate.require_admin(gate.node_metadata())
    data, _ = ground.access.exchange(ground.database(), STATIC)
    assert await refusal(gate.require_admin(metadata(data))) == "TOKEN_NOT_ADMIN"


async def test_a_permit_follows_the_directory() -> None:
    ground = Ground()
    gate = Gate(ground.authority, ground.clock, required=True)
    text = ground.grant()
    permit = await gate.permit(metadata(text, "orders"))
    assert permit.is_plain
    ground.make(lambda view: changes.set_database(view, "orders", mode="read-only", max_value_bytes=0))
    assert permit.refusal(write=False) is None
    assert permit.refusal(write=True).code == "DATABASE_READ_ONLY"
    ground.make(lambda view: changes.set_database(view, "orders", mode="disabled", max_value_bytes=0))
    assert permit.refusal(write=False).code == "DATABASE_DISABLED"
    ground.make(lambda view: changes.set_database(view, "orders", mode="enabled", max_value_bytes=0))
    assert permit.is_plain
    ground.make(lambda view: changes.revoke_token(view, access_token.id_of(text)))
    assert permit.refusal(write=False).code == "ACCESS_TOKEN_INVALID"
    anonymous = await Gate(ground.authority, ground.clock, required=False).permit(metadata(database="orders"))
    ground.make(lambda view: changes.delete_database(view, "orders", now_ms=1))
    assert anonymous.refusal(write=True).code == "DATABASE_NOT_FOUND"


async def test_a_gateway_that_has_just_started_waits_for_the_directory() -> None:
    """The static token needs no directory to be known, but the default database has the uuid of its cluster."""
    ground = Ground()
    reached = False
    view = DirectoryView()

    async def learn() -> None:
        if not reached:
            raise Unavailable("no node has been reached yet")
        view.load(ground.directory.rows(), cluster_id="cafe")

    authority = Authority(view, ground.clock, static_token=STATIC, learn=learn)
    gate = Gate(authority, ground.clock, required=True)
    with pytest.raises(Unavailable):
        await gate.permit(metadata(STATIC))
    with pytest.raises(Unavailable):
        authority.find("")
    reached = True
    permit = await gate.permit(metadata(STATIC))
    assert view.databases[permit.database].uuid == ground.directory.view.find("").uuid
    assert authority.find("") is not None


async def test_a_permit_ends_with_its_token() -> None:
    ground = Ground()
    text = ground.grant(expires_ms=ground.clock.ms + 10, requests_per_second=1)
    permit = await Gate(ground.authority, ground.clock, required=True).permit(metadata(text, "orders"))
    permit.use(1, write=True)
    with pytest.raises(RateLimited):
        permit.use(1, write=True)
    ground.clock.ms += 10
    assert permit.refusal(write=False).code == "ACCESS_TOKEN_EXPIRED"


async def test_nobody_is_refused_before_the_view_has_caught_up() -> None:
    ground = Ground()
    learned = []

    async def learn() -> None:
        learned.append(1)
        if not ground.access.find("fresh"):
            ground.create("fresh")

    ground.authority = Authority(ground.directory.view, ground.clock, learn=learn)
    gate = Gate(ground.authority, ground.clock, required=False)
    assert (await gate.permit(metadata(database="fresh"))).database == 3
    assert learned == [1]

    async def cannot() -> None:
        raise Unavailable("no leader")

    blind = Authority(ground.directory.view, ground.clock, learn=cannot)
    gate = Gate(blind, ground.clock, required=False)
    assert await refusal(gate.permit(metadata(database="nobody"))) == "DATABASE_NOT_FOUND"
