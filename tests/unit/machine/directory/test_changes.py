"""Databases and tokens come, change and go; two changes never pass each other."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvnode.base import limits
from kvnode.codec.row import Row
from kvnode.machine.directory import changes
from kvnode.machine.directory.names import RESERVED_NAMES, check_name, default_uuid, is_uuid
from kvnode.machine.directory.rows import ALL_DATABASES, DIRECTORY_PREFIX, DatabaseMode, Right
from kvnode.machine.directory.view import DirectoryView
from tests.unit.machine.directory.directory import CLUSTER_ID, MemoryDirectory, code_of, token


def create(directory: MemoryDirectory, name: str, **more) -> str:
    fresh = str(uuid.uuid4())
    values = {"max_value_bytes": 0, "now_ms": 5, **more}
    assert directory.make(lambda view: changes.create_database(view, name, uuid=fresh, **values))
    return fresh


def test_the_default_database_is_there_without_a_row() -> None:
    view = MemoryDirectory().view
    default = view.find("")
    assert default is not None
    assert (default.number, default.name, default.mode) == (1, "default", DatabaseMode.ENABLED)
    assert default.uuid == default_uuid(CLUSTER_ID) and is_uuid(default.uuid)
    assert view.find("default") == view.find(default.uuid) == default
    assert view.find("other") is None
    assert view.max_value_bytes(77) == limits.MAX_VALUE_BYTES


def test_a_database_is_found_by_name_and_uuid_and_its_number_is_never_used_again() -> None:
    directory = MemoryDirectory()
    first = create(directory, "orders", max_value_bytes=100_000)
    assert directory.view.find("orders") == directory.view.find(first)
    assert directory.view.find("orders").number == 2
    assert directory.view.max_value_bytes(2) == 100_000
    assert directory.make(lambda view: changes.delete_database(view, "orders", now_ms=6))
    assert directory.view.find("orders") is None and directory.view.find(first) is None
    purge = directory.view.purges[2]
    assert directory.make(lambda view: changes.purge_progress(view, purge, 40))
    assert directory.view.purge_of("orders").deleted_keys == 40
    assert directory.make(lambda view: changes.purge_finished(view, view.purges[2]))
    second = create(directory, "orders")
    assert second != first
    assert directory.view.find("orders").number == 3


def test_a_name_is_unique_and_can_be_changed() -> None:
    directory = MemoryDirectory()
    uuid = create(directory, "a")
    create(directory, "b")
    assert code_of(lambda: create(directory, "a")) == "DATABASE_EXISTS"
    assert code_of(lambda: directory.make(lambda v: changes.rename_database(v, "b", "a"))) == "DATABASE_EXISTS"
    assert directory.make(lambda view: changes.rename_database(view, uuid, "c"))
    assert directory.view.find("a") is None
    assert directory.view.find("c").uuid == uuid
    assert code_of(lambda: changes.rename_database(directory.view, "a", "d")) == "DATABASE_NOT_FOUND"


def test_the_default_database_stays() -> None:
    directory = MemoryDirectory()
    assert code_of(lambda: changes.delete_database(directory.view, "", now_ms=1)) == "DATABASE_IS_DEFAULT"
    assert code_of(lambda: changes.rename_database(directory.view, "default", "x")) == "DATABASE_IS_DEFAULT"
    assert directory.make(lambda view: changes.set_database(view, "", mode="read-only", max_value_bytes=7))
    default = directory.view.find("")
    assert (default.mode, default.max_value_bytes) == (DatabaseMode.READ_ONLY, 7)
    assert directory.make(lambda view: changes.set_database(view, "", mode="", max_value_bytes=8))
    assert directory.view.find("").mode is DatabaseMode.READ_ONLY


@pytest.mark.parametrize(
    "name",
    ["", "A", "a b", "-a", "a-", "a/b", "ä", "x" * 64, "a.b", default_uuid("x"), "a\n", *sorted(RESERVED_NAMES)],
)
def test_names_that_no_database_may_bear(name: str) -> None:
    assert code_of(lambda: check_name(name)) == "DATABASE_NAME_INVALID"


@pytest.mark.parametrize("name", ["a", "0", "orders-2030", "x" * 63])
def test_names_that_it_may(name: str) -> None:
    check_name(name)


def test_bad_settings() -> None:
    view = MemoryDirectory().view
    assert code_of(lambda: changes.set_database(view, "", mode="off", max_value_bytes=0)) == "DATABASE_MODE_UNKNOWN"
    too_large = limits.HARD_MAX_VALUE_BYTES + 1
    refused = code_of(lambda: changes.set_database(view, "", mode="", max_value_bytes=too_large))
    assert refused == "MAX_VALUE_BYTES_INVALID"
    assert limits.HARD_MAX_VALUE_BYTES + limits.MAX_WRITE_KEY_BYTES <= limits.MAX_TRANSACTION_BYTES


def test_tokens_come_and_go_and_go_with_their_database() -> None:
    directory = MemoryDirectory()
    create(directory, "orders")
    for each in (token("aaaaaaaa", 2), token("bbbbbbbb", ALL_DATABASES, Right.ADMIN), token("cccccccc", 1)):
        assert directory.make(lambda view, each=each: changes.create_token(view, each))
    assert set(directory.view.tokens) == {"aaaaaaaa", "bbbbbbbb", "cccccccc"}
    assert directory.make(lambda view: changes.revoke_token(view, "cccccccc"))
    assert directory.make(lambda view: changes.delete_database(view, "orders", now_ms=6))
    assert set(directory.view.tokens) == {"bbbbbbbb"}
    assert code_of(lambda: changes.revoke_token(directory.view, "cccccccc")) == "TOKEN_NOT_FOUND"
    assert code_of(lambda: changes.create_token(directory.view, token(database=2))) == "DATABASE_NOT_FOUND"
    assert code_of(lambda: changes.create_token(directory.view, token(right=Right.ADMIN))) == "TOKEN_INVALID"
    assert code_of(lambda: changes.create_token(directory.view, token(expires_ms=1))) == "TOKEN_INVALID"
    assert code_of(lambda: changes.create_token(directory.view, token(label="x" * 201))) == "TOKEN_INVALID"


def test_too_many(monkeypatch) -> None:
    directory = MemoryDirectory()
    monkeypatch.setattr(limits, "MAX_DATABASES_COUNT", 2)
    monkeypatch.setattr(limits, "MAX_TOKENS_COUNT", 1)
    create(directory, "a")
    assert code_of(lambda: create(directory, "b")) == "TOO_MANY_DATABASES"
    assert directory.make(lambda view: changes.create_token(view, token()))
    assert code_of(lambda: changes.create_token(directory.view, token("zzzzzzzz"))) == "TOO_MANY_TOKENS"


def test_a_change_judged_on_an_older_view_does_not_pass() -> None:
    directory = MemoryDirectory()
    early = changes.create_database(directory.view, "same", uuid="u1", max_value_bytes=0, now_ms=1)
    create(directory, "same")
    assert not directory.write(early)
    late = changes.create_token(directory.view, token())
    create(directory, "other")
    assert not directory.write(late)


def test_signing_keys_overlap() -> None:
    directory = MemoryDirectory()
    assert directory.make(lambda view: changes.add_signing_key(view, b"k1", now_ms=0))
    assert directory.view.find("").uuid == default_uuid(CLUSTER_ID)
    directory.view.load(directory.rows(), cluster_id="another")
    assert directory.view.find("").uuid == default_uuid(CLUSTER_ID), "it changes with the cluster id"
    rotation = limits.SIGNING_KEY_ROTATION_MS
    assert directory.make(lambda view: changes.add_signing_key(view, b"k2", now_ms=rotation))
    soon, late = rotation + limits.SIGNING_KEY_OVERLAP_MS - 1, rotation + limits.SIGNING_KEY_OVERLAP_MS
    assert changes.drop_outlived(directory.view, now_ms=soon) is None
    assert directory.make(lambda view: changes.drop_outlived(view, now_ms=late))
    assert {key: row.secret for key, row in directory.view.signing_keys.items()} == {2: b"k2"}
    assert changes.drop_outlived(directory.view, now_ms=late + 10 * rotation) is None, "the last one stays"


def test_tokens_that_expired_long_ago_are_dropped() -> None:
    directory = MemoryDirectory()
    assert directory.make(lambda view: changes.create_token(view, token(expires_ms=100)))
    retention = limits.EXPIRED_TOKEN_RETENTION_MS
    assert changes.drop_outlived(directory.view, now_ms=99 + retention) is None
    assert directory.make(lambda view: changes.drop_outlived(view, now_ms=100 + retention))
    assert not directory.view.tokens


def test_a_row_of_a_newer_version_is_left_aside() -> None:
    directory = MemoryDirectory()
    create(directory, "known")
    strange = Row(DIRECTORY_PREFIX + b"d\x00\x00\x00\x09", b"\x02anything", 3, bytes(10))
    directory.view.update({strange.key: strange, b"elsewhere": None})
    assert set(directory.view.databases) == {1, 2}


class Comparison(RuleBasedStateMachine):
    """Two views, one that follows and one that is loaded anew, always agree; and names lead to one database."""

    NAMES = st.sampled_from(["a", "b", "c", "d"])

    def __init__(self) -> None:
        super().__init__()
        self.directory = MemoryDirectory()
        self.numbers: set[int] = {1}

    def attempt(self, build) -> None:
        try:
            self.directory.make(build)
        except Exception as error:
            assert getattr(error, "code", ""), error

    @rule(name=NAMES)
    def create(self, name: str) -> None:
        before = set(self.directory.view.databases)
        fresh = str(uuid.uuid4())
        self.attempt(lambda view: changes.create_database(view, name, uuid=fresh, max_value_bytes=0, now_ms=1))
        for number in set(self.directory.view.databases) - before:
            assert number not in self.numbers, "a number was given twice"
            self.numbers.add(number)

    @rule(old=NAMES, new=NAMES)
    def rename(self, old: str, new: str) -> None:
        self.attempt(lambda view: changes.rename_database(view, old, new))

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        self.attempt(lambda view: changes.delete_database(view, name, now_ms=1))

    @rule(name=NAMES, mode=st.sampled_from(DatabaseMode))
    def set_mode(self, name: str, mode: DatabaseMode) -> None:
        self.attempt(lambda view: changes.set_database(view, name, mode=mode.value, max_value_bytes=0))

    @rule()
    def purge(self) -> None:
        for purge in list(self.directory.view.purges.values()):
            self.attempt(lambda view, purge=purge: changes.purge_finished(view, purge))

    @rule(name=NAMES, token_id=st.sampled_from(["aaaaaaaa", "bbbbbbbb"]))
    def grant(self, name: str, token_id: str) -> None:
        found = self.directory.view.find(name)
        if found is not None:
            self.attempt(lambda view: changes.create_token(view, token(token_id, found.number)))

    @rule(token_id=st.sampled_from(["aaaaaaaa", "bbbbbbbb"]))
    def revoke(self, token_id: str) -> None:
        self.attempt(lambda view: changes.revoke_token(view, token_id))

    @invariant()
    def they_agree(self) -> None:
        followed, loaded = self.directory.view, DirectoryView(CLUSTER_ID)
        loaded.load(self.directory.rows())
        for name in ("databases", "tokens", "signing_keys", "purges", "version", "next_database"):
            assert getattr(followed, name) == getattr(loaded, name), name

    @invariant()
    def names_are_unique(self) -> None:
        view = self.directory.view
        assert len({row.name for row in view.databases.values()}) == len(view.databases)
        assert all(view.find(row.name) == view.find(row.uuid) == row for row in view.databases.values())
        assert all(row.database in {*view.databases, ALL_DATABASES} for row in view.tokens.values())


TestComparison = Comparison.TestCase
TestComparison.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
