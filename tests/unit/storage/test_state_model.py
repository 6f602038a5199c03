"""The tables against a dict: any run of writes, any read."""

import sqlite3
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.base.invariant import InvariantViolation
from kvnode.codec.row import Row
from kvnode.storage.state_digest import DIGEST_MODULUS, digest_sum, row_digest
from kvnode.storage.state_tables import StateMeta, StateTables

keys = st.binary(min_size=1, max_size=3) | st.sampled_from([b"a", b"a\0", b"a\0\0", b"b", b"\xff", b"\xff\xff"])


def rows(key: bytes) -> st.SearchStrategy[Row]:
    expiry = st.just(0) | st.integers(1, 20) | st.just(2**62)
    return st.builds(
        Row, st.just(key), st.binary(max_size=40), st.integers(0, 3), st.binary(min_size=10, max_size=10), expiry
    )


writes = st.lists(keys.flatmap(lambda key: st.tuples(st.just(key), st.none() | rows(key))), max_size=30).map(dict)


@pytest.fixture
def tables() -> Iterator[StateTables]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    yield StateTables(connection, create=True)
    connection.close()


def put(tables: StateTables, index: int, writes: dict[bytes, Row | None], membership: bytes | None = None) -> StateMeta:
    return tables.apply(
        writes, applied_index=index, applied_term=index // 3, log_time_ms=index * 10, epoch=1, membership=membership
    )


def row(key: bytes, value: bytes = b"value", expire_at_ms: int = 0) -> Row:
    return Row(key, value, 1, b"\0" * 10, expire_at_ms)


@settings(max_examples=150, deadline=None)
@given(st.lists(writes, min_size=1, max_size=6), keys, keys, st.integers(1, 8), st.integers(0, 25))
def test_behaves_as_a_sorted_dict(
    batches: list[dict[bytes, Row | None]], low: bytes, high: bytes, limit: int, now_ms: int
) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        tables, model = StateTables(connection, create=True), {}
        for index, batch in enumerate(batches, 1):
            meta = put(tables, index, batch)
            for key, written in batch.items():
                model.pop(key, None) if written is None else model.__setitem__(key, written)
            assert meta.digest == digest_sum(map(row_digest, model.values())) % DIGEST_MODULUS
            assert meta == tables.meta == tables.load_meta()
        inside = [model[key] for key in sorted(model) if low <= key < high]
        assert tables.scan(low, high, limit) == inside[:limit]
        assert tables.scan(low, high, limit, reverse=True) == inside[::-1][:limit]
        assert tables.scan_keys(low, high, limit) == [found.key for found in inside[:limit]]
        assert [tables.get(key) for key in (low, high)] == [model.get(key) for key in (low, high)]
        expiring = sorted((found.expire_at_ms, found.key) for found in model.values() if found.expire_at_ms)
        assert tables.due(now_ms, limit) == [(key, at) for at, key in expiring if at <= now_ms][:limit]
        assert tables.next_expiry() == (expiring[0][0] if expiring else None)
    finally:
        connection.close()


@pytest.mark.parametrize("count", [1, 3, 4, 5, 16, 63, 64, 65, 256, 257, 700])
def test_every_batch_size_finds_the_old_digests(tables: StateTables, count: int) -> None:
    batch = [row(b"%06d" % number) for number in range(count)]
    first = put(tables, 1, {each.key: each for each in batch}).digest
    assert put(tables, 2, {each.key: each._replace(value=b"other") for each in batch}).digest != first
    assert put(tables, 3, {each.key: each for each in batch}).digest == first
    assert put(tables, 4, {each.key: None for each in batch}).digest == 0


@given(rows(b"k"), rows(b"k"))
def test_equal_digests_mean_equal_rows(one: Row, other: Row) -> None:
    assert (row_digest(one) == row_digest(other)) == (one == other)


def test_a_failed_apply_changes_nothing(tables: StateTables) -> None:
    before = put(tables, 1, {b"a": row(b"a")})
    bad = Row(b"c", None, 1, b"", 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        put(tables, 2, {b"b": row(b"b"), b"c": bad})
    unstorable = row(b"c")._replace(expire_at_ms=2**63 - 1, encoding=2**32 - 1, versionstamp="text")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        put(tables, 2, {b"b": row(b"b"), b"c": unstorable})
    assert tables.load_meta() == before
    assert tables.get(b"b") is None
    assert not tables.connection.in_transaction


def test_a_write_that_sqlite_refuses_is_rolled_back(tables: StateTables) -> None:
    before = put(tables, 1, {b"a": row(b"a")})
    tables.connection.execute("CREATE TEMP TRIGGER full BEFORE UPDATE ON meta BEGIN SELECT RAISE(ABORT, 'full'); END")
    with pytest.raises(sqlite3.IntegrityError):
        put(tables, 2, {b"a": None, b"b": row(b"b")})
    tables.connection.execute("DROP TRIGGER temp.full")
    assert (tables.load_meta(), tables.get(b"a"), tables.get(b"b")) == (before, row(b"a"), None)
    assert put(tables, 2, {}).digest == before.digest


def test_the_index_only_goes_up(tables: StateTables) -> None:
    put(tables, 5, {})
    with pytest.raises(InvariantViolation, match="5 after 5"):
        put(tables, 5, {})


def test_membership_stays_unless_it_is_given(tables: StateTables) -> None:
    assert put(tables, 1, {}, b"three").membership == b"three"
    assert put(tables, 2, {}).membership == b"three"
    assert put(tables, 3, {}, b"").membership == b""
    assert tables.load_meta() == StateMeta(3, 1, 30, 1, b"", 0)


def test_another_format_is_refused(tables: StateTables) -> None:
    tables.connection.execute("UPDATE meta SET format = 99")
    with pytest.raises(sqlite3.DatabaseError, match="format 99"):
        StateTables(tables.connection)
