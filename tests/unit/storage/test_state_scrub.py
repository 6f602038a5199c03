"""The scrub finds what SQLite does not, and is not confused by writes beside it."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.base.errors import StateDamaged
from kvnode.codec.row import Row
from kvnode.storage.state_digest import DIGEST_MODULUS, row_digest
from kvnode.storage.state_scrub import Scrub, ScrubPage, scrub_file
from tests.unit.storage.state_helpers import fill, opened, put, row

keys = st.integers(0, 9).map(lambda number: b"%d" % number)
writes = st.tuples(keys, st.none() | st.binary(max_size=2))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(keys, st.binary(max_size=2)), st.lists(writes, max_size=40), st.data())
def test_the_sum_is_that_of_the_newest_state_whatever_is_written_between(
    start: dict[bytes, bytes], changes: list[tuple[bytes, bytes | None]], data: st.DataObject
) -> None:
    """Pages of 3 rows; each is read at some moment, and taken in later than further writes."""
    state = {key: row(key, value) for key, value in start.items()}
    scrub, index, pending = Scrub(), 0, list(changes)

    def number(of: Row) -> int:
        return int.from_bytes(row_digest(of), "little")

    def write_some() -> None:
        nonlocal index
        for _ in range(data.draw(st.integers(0, min(4, len(pending))))):
            key, value = pending.pop()
            index += 1
            if key in state:
                scrub.observe(index, key, -number(state.pop(key)))
            if value is not None:
                state[key] = row(key, value)
                scrub.observe(index, key, number(state[key]))

    more = True
    while more:
        write_some()
        page = [state[key] for key in sorted(state) if key > scrub.after][:3]
        read = ScrubPage(index, page[-1].key if page else None, sum(map(number, page)), None)
        write_some()
        more = scrub.add(read)
    write_some()
    assert scrub.verdict(sum(map(number, state.values())) % DIGEST_MODULUS) is None


async def test_a_scrub_beside_apply_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.storage.state_scrub.SCRUB_PAGE_ROWS_COUNT", 20)
    async with opened(tmp_path) as state:
        fill(state, 1, 200)
        scrubbing = asyncio.ensure_future(state.scrub())
        index = 200
        while not scrubbing.done():
            index += 1
            fill(state, index, index)
            put(state, index := index + 1, {b"key%03d" % (index % 1_000): None})
            if state.maintenance_due:
                await state.maintain()
            await asyncio.sleep(0)
        assert await scrubbing, state.damage
        assert index > 210
        assert state._file.tables.observer is None


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE rows SET value = x'00' WHERE key = CAST('key007' AS BLOB)",
        "UPDATE rows SET expire_at_ms = 5 WHERE key = CAST('key007' AS BLOB)",
        "DELETE FROM rows WHERE key = CAST('key007' AS BLOB)",
        "INSERT INTO rows SELECT x'ff', value, encoding, versionstamp, expire_at_ms, digest FROM rows LIMIT 1",
        "UPDATE meta SET digest = zeroblob(16)",
    ],
)
async def test_any_change_beside_apply_is_found(tmp_path: Path, damage: str) -> None:
    async with opened(tmp_path) as state:
        fill(state, 1, 50)
        assert await state.scrub()
        assert state._file.tables.connection.execute(damage).rowcount == 1
        state._file.tables.load_meta()
        assert not await state.scrub()
        assert state.damage is not None
        assert "state-1.db" in state.damage
        assert "rebuild this node" in state.damage


async def test_an_expiry_index_that_lost_an_entry_is_found(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        put(state, 1, {b"a": row(b"a", expire_at_ms=5), b"b": row(b"b", expire_at_ms=6)})
        assert await state.scrub()
        connection = state._file.tables.connection
        root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'rows_by_expiry'").fetchone()[0]
        await state.make_durable()
    with (tmp_path / "state-1.db").open("r+b") as file:
        file.seek((root - 1) * 4096 + 3)
        file.write(b"\x00\x01")  # the leaf has one cell from now on
    async with opened(tmp_path) as state:
        assert len(state.due(10, 10)) == 1
        assert not await state.scrub()
        assert "expiry" in (state.damage or "")


async def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        fill(state, 1, 50)
        snapshot = await state.create_snapshot()
        assert (await scrub_file(snapshot.path)) == state.meta
        data = bytearray(snapshot.path.read_bytes())
        at = data.index(b"50505050")
        data[at] ^= 1
        snapshot.path.write_bytes(data)
        with pytest.raises(StateDamaged, match="does not match its digest"):
            await scrub_file(snapshot.path)
