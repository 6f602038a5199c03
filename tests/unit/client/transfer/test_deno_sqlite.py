"""The SQLite file of a real Deno (fixtures/make_deno_kv.ts made it), and files that are none."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from kvnode.base.errors import InvalidRequest
from kvnode.client.transfer.deno_sqlite import DenoSqlite
from kvnode.codec.bigint import BigInt
from kvnode.codec.keys import decode_key, encode_key
from kvnode.codec.values import BYTES, LE64, V8, decode_value

FIXTURE = Path(__file__).parent / "fixtures" / "deno_kv.sqlite"
ROWS_COUNT = 72


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(shutil.copy(FIXTURE, tmp_path / "kv ?#%.sqlite"))


def test_what_deno_wrote_is_read(file: Path) -> None:
    before = file.read_bytes()
    with DenoSqlite(file) as database:
        rows = {decode_key(row.key): row for row, _ in database.rows()}
        assert (database.rows_count(), database.queued_count()) == (ROWS_COUNT, 1)
    assert len(rows) == ROWS_COUNT
    string = rows["values", "string"]
    assert decode_value(string.data, string.encoding) == "Ada Lovelace"
    assert string.place == 'the row of ["values", "string"]'
    assert (rows["values", "bytes"].data, rows["values", "bytes"].encoding) == (b"\x00\x01\xfe\xff", BYTES)
    assert (rows["values", "u64"].data, rows["values", "u64"].encoding) == (b"\xff" * 8, LE64)
    assert rows["values", "bigint"].encoding == V8
    assert rows["keys", BigInt(-(2**80))] and rows["keys", b"\x00\xff"] and rows["keys", True, False]
    assert rows["values", "string"].expire_at_ms == 0
    assert 1_700_000_000_000 < rows["ttl", "over"].expire_at_ms < rows["ttl", "long"].expire_at_ms
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.read_bytes() == before


def test_reading_goes_on_behind_a_key(file: Path) -> None:
    with DenoSqlite(file) as database:
        keys = [key for _, key in database.rows()]
        assert keys == sorted(keys)
        assert [key for _, key in database.rows(keys[30])] == keys[31:]
        assert database.rows_count(keys[30]) == ROWS_COUNT - 31


def test_commits_that_stand_in_the_wal_alone_count(file: Path) -> None:
    deno = sqlite3.connect(file)
    deno.execute("PRAGMA wal_autocheckpoint = 0")
    deno.execute("INSERT INTO kv (k, v, v_encoding, version) VALUES (?, ?, 3, 999)", (encode_key(("wal",)), b"new"))
    deno.commit()
    try:
        with DenoSqlite(file) as database:
            assert database.rows_count() == ROWS_COUNT + 1
            deno.execute("DELETE FROM kv")
            deno.commit()
            assert len(list(database.rows())) == ROWS_COUNT + 1
    finally:
        deno.close()


def test_a_program_that_comes_in_between_is_noticed(file: Path) -> None:
    with DenoSqlite(file) as database:
        rows = database.rows()
        next(rows)
        deno = sqlite3.connect(file)
        deno.execute("UPDATE data_version SET version = version + 1")
        deno.commit()
        with pytest.raises(InvalidRequest, match="another program opened it meanwhile"):
            list(rows)
        deno.close()


def test_files_of_an_early_version_have_no_expiry(tmp_path: Path) -> None:
    made = sqlite3.connect(tmp_path / "old.sqlite")
    made.executescript(
        "CREATE TABLE kv (k blob primary key, v blob not null, v_encoding integer not null, version integer not null)"
        " without rowid; INSERT INTO kv VALUES (x'026100', x'01', 3, 1);"
    )
    made.close()
    with DenoSqlite(tmp_path / "old.sqlite") as database:
        ((row, key),) = database.rows()
    assert row == ('the row of ["a"]', key, b"\x01", BYTES, 0)


def test_an_expiry_of_0_is_a_time_and_not_never(file: Path) -> None:
    changed = sqlite3.connect(file)
    changed.execute("UPDATE kv SET expiration_ms = 0")
    changed.commit()
    changed.close()
    with DenoSqlite(file) as database:
        assert {row.expire_at_ms for row, _ in database.rows()} == {1}


@pytest.mark.parametrize(
    ("content", "code", "text"),
    [
        (b"", "NOT_A_DENO_KV_FILE", "it is no SQLite database"),
        (b'{"key": ["a"], "value": 1}\n', "NOT_A_DENO_KV_FILE", "it is no SQLite database"),
        (b"SQLite format 3\x00" + b"\xff" * 200, "SQLITE_FILE_UNREADABLE", "cannot read"),
    ],
)
def test_what_is_no_database(tmp_path: Path, content: bytes, code: str, text: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InvalidRequest, match=text) as caught:
        DenoSqlite(tmp_path / "x")
    assert caught.value.code == code


def test_what_is_none_of_deno_kv(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="No such file"):
        DenoSqlite(tmp_path / "missing")
    with pytest.raises(InvalidRequest, match="cannot read"):
        DenoSqlite(tmp_path)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE users (id)")
    with pytest.raises(InvalidRequest, match="it has no table kv"):
        DenoSqlite(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE kv (k, value)")
    with pytest.raises(InvalidRequest, match="its table kv lacks v, v_encoding, version"):
        DenoSqlite(tmp_path / "other.sqlite")
    other.close()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            "UPDATE kv SET v_encoding = 9 WHERE k = x'0274746c00026c6f6e6700'",
            r'the row of \["ttl", "long"\]: .*encoding 9',
        ),
        ("UPDATE kv SET v = 'text'", "not of the type"),
    ],
)
def test_a_bad_row_is_named(file: Path, change: str, text: str) -> None:
    changed = sqlite3.connect(file)
    changed.execute(change)
    changed.commit()
    changed.close()
    with DenoSqlite(file) as database, pytest.raises(InvalidRequest, match=text):
        list(database.rows())


def test_a_damaged_page_is_an_error(file: Path) -> None:
    data = bytearray(file.read_bytes())
    for offset in range(4096 * 3, len(data), 4096):
        data[offset : offset + 200] = b"\xff" * 200
    file.write_bytes(data)
    with pytest.raises(InvalidRequest, match="cannot read"), DenoSqlite(file) as database:
        list(database.rows())
