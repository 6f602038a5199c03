"""Import and export against a node in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

import pytest

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, KvError, OutcomeUnknown
from kvnode.client import Kv, open_kv
from kvnode.client.transfer.exporting import export_pages
from kvnode.client.transfer.importing import ImportCount, import_rows
from kvnode.client.transfer.rows import TransferRow
from kvnode.codec.keys import encode_key
from kvnode.codec.values import BYTES
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.client.fake_server import FakeServer

NOW = 1_800_000_000_000


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer() as running:
        yield running


@pytest.fixture
async def kv(server: FakeServer) -> AsyncIterator[Kv]:
    async with open_kv([server.address], random=Random(1)) as client:
        yield client


def row(number: int, data: bytes = b"v", *, key: object = None, expire_at_ms: int = 0) -> TransferRow:
    parts = ("n", number if key is None else key)
    return TransferRow(f"line {number}", encode_key(parts), data, BYTES, expire_at_ms)  # type: ignore[arg-type]


async def run(kv: Kv, rows, *, done=lambda count, position: None, **more):
    numbered = ((one, position) for position, one in enumerate(rows, 1))
    return await import_rows(kv, numbered, timeout_ms=5_000, now_ms=lambda: NOW, done=done, **more)


async def test_every_row_is_set_in_bounded_transactions(kv: Kv, server: FakeServer) -> None:
    rows = [row(n, b"%d" % n, expire_at_ms=NOW + n if n % 2 else 0) for n in range(1, 1_201)]
    reports: list[tuple[ImportCount, int]] = []
    count = await run(kv, rows, done=lambda *report: reports.append(report))
    assert count == (1_200, 0, 0)
    assert [position for _, position in reports] == [500, 1_000, 1_200]
    assert [counted.written for counted, _ in reports] == [500, 500, 200]
    assert server.store.applied_count == 3
    entries = [entry async for entry in kv.list(("n",))]
    assert [(entry.raw[0], entry.expire_at_ms) for entry in entries] == [
        (one.data, one.expire_at_ms or None) for one in rows
    ]
    assert await run(kv, rows) == (1_200, 0, 0)


async def test_large_rows_close_a_transaction(kv: Kv, server: FakeServer) -> None:
    await run(kv, [row(n, bytes(65_536)) for n in range(1, 11)])
    assert server.store.applied_count == 4  # three of 64 KiB with their keys, and the last alone
    server.store.applied_count = 0
    await run(kv, [row(n, key="k" * 2_000 + str(n)) for n in range(1, 101)])
    assert server.store.applied_count == 3  # by the size of the keys


async def test_expired_rows_are_left_out(kv: Kv) -> None:
    reports: list[tuple[ImportCount, int]] = []
    rows = [row(1, expire_at_ms=NOW), row(2, expire_at_ms=NOW + 1), row(3, expire_at_ms=1), row(4)]
    assert await run(kv, rows, done=lambda *report: reports.append(report)) == (2, 0, 2)
    assert reports == [(ImportCount(2, 0, 2), 4)]
    assert await run(kv, [row(n, expire_at_ms=1) for n in range(1_001)]) == (0, 0, 1_001)
    assert await run(kv, []) == (0, 0, 0)


async def test_what_exists_may_be_left_as_it_is(kv: Kv) -> None:
    await run(kv, [row(n, b"old") for n in range(0, 250, 3)])
    assert await run(kv, [row(n, b"new") for n in range(250)], if_absent=True) == (166, 84, 0)
    assert [entry.raw[0] async for entry in kv.list(("n",))] == [b"new" if n % 3 else b"old" for n in range(250)]
    assert await run(kv, [row(n, b"newer") for n in range(250)], if_absent=True) == (0, 250, 0)


async def test_the_later_of_two_rows_counts(kv: Kv) -> None:
    many = [row(n, b"%d" % n, key="same") for n in range(30)]
    assert await run(kv, many) == (30, 0, 0)
    assert (await kv.get(("n", "same"))).value == b"29"
    assert await run(kv, [row(n, b"%d" % n, key="other") for n in range(5)], if_absent=True) == (1, 4, 0)
    assert (await kv.get(("n", "other"))).value == b"0"


async def test_a_row_that_the_node_refuses_is_named(
    kv: Kv, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = server.store.write

    def judged(request: kv_pb2.AtomicWriteRequest) -> kv_pb2.AtomicWriteResponse:
        for position, mutation in enumerate(request.mutations):
            if mutation.value.data == b"bad":
                raise InvalidRequest("VALUE_TOO_LARGE", f"That of mutation {position}.")
        return write(request)

    reports: list[int] = []

    async def session_write(request, timeout_ms):
        return judged(request)

    monkeypatch.setattr(kv.session, "write", session_write)
    rows = [row(n, b"bad" if n == 777 else b"good") for n in range(1, 1_001)]
    with pytest.raises(InvalidRequest, match=r"line 777: That of mutation 0\.") as caught:
        await run(kv, rows, done=lambda count, position: reports.append(position))
    assert caught.value.code == "BAD_IMPORT_LINE"
    assert reports == [500]
    assert len(server.store.rows) >= 776


async def test_a_lost_node_ends_it_with_what_is_known(kv: Kv, server: FakeServer) -> None:
    reports: list[int] = []
    server.faults.hold_writes = True
    numbered = ((row(n), n) for n in range(600))
    with pytest.raises(KvError) as caught:
        await import_rows(
            kv,
            numbered,
            timeout_ms=200,
            now_ms=lambda: NOW,
            done=lambda count, position: reports.append(position),
        )
    assert isinstance(caught.value, OutcomeUnknown)
    assert reports == []


async def test_pages_and_what_was_written_meanwhile(kv: Kv) -> None:
    for number in range(25):
        await kv.set(("n", number), number)
    await kv.set(("other",), 1)
    seen: list[bytes] = []
    marked = 0
    async for page in export_pages(kv, ("n",), page_count=10):
        if not seen:
            start = page.start_versionstamp
            changed = await kv.set(("n", 17), "changed")
        assert page.start_versionstamp == start
        seen += page.lines.splitlines()
        marked += page.after_start_count
    assert len(seen) == 25 and marked == 1
    assert [number for number, line in enumerate(seen) if b'"after_start": true' in line] == [17]
    assert (changed.versionstamp or "").encode() in seen[17]
    rest = [
        line
        async for page in export_pages(kv, ("n",), after=encode_key(("n", 19)), start_versionstamp=start, page_count=3)
        for line in page.lines.splitlines()
    ]
    assert rest == seen[20:]
    assert [page async for page in export_pages(kv, ("none",), page_count=3)] == []


def test_bounds_fit_each_other() -> None:
    assert limits.IMPORT_BATCH_ROWS_COUNT <= limits.MAX_MUTATIONS_COUNT
    assert limits.HARD_MAX_VALUE_BYTES + limits.MAX_WRITE_KEY_BYTES <= limits.MAX_TRANSACTION_BYTES
