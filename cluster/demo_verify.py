"""Read everything back from one node and hold it against what was acknowledged."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from cluster.demo_rows import APPLIED, COUNT_KEY, SPACES, ExpectedRow, space_range
from kvnode.base.limits import MAX_READ_ENTRIES_COUNT
from kvnode.codec.keys import decode_key, encode_key
from kvnode.proto.kv.v1 import kv_pb2

ReadCall = Callable[[kv_pb2.ReadRequest], Awaitable[kv_pb2.ReadResponse]]
"""Reads from one node. Raises KvError."""


@dataclass(slots=True)
class Findings:
    """What one node showed under one consistency."""

    node: str
    strong: bool
    rows_count: int = 0
    lost: set[str] = field(default_factory=set)  # acknowledged, and a row of it is missing or different
    duplicated: set[str] = field(default_factory=set)  # applied more than once
    unacknowledged: set[str] = field(default_factory=set)  # applied, though the answer never came
    applied_count: int = 0  # different transactions that left their mark
    counted: int = 0  # what they added up to

    @property
    def duplicated_count(self) -> int:
        """Applications beyond the first: by the rows they left, or by the counter if it saw more of them."""
        return max(len(self.duplicated), self.counted - self.applied_count)

    @property
    def ok(self) -> bool:
        """Nothing lost, nothing doubled, nothing half applied."""
        return not self.lost and not self.duplicated and self.counted == self.applied_count


async def verify(
    node: str,
    read: ReadCall,
    expected: Mapping[bytes, ExpectedRow],
    newest: bytes,
    *,
    strong: bool,
    progress: Callable[[int], None] = lambda rows: None,
) -> Findings:
    """Scan every row from one node.

    Args:
        node: its name.
        read: asks that node and nobody else.
        expected: from expected_rows.
        newest: the greatest versionstamp acknowledged: an eventual read waits until the node has applied it.
        strong: whether to ask for strong or eventual reads.
        progress: told the number of rows of each page.
    """
    findings = Findings(node, strong)
    unseen = Counter(row.code for row in expected.values())
    applied: Counter[str] = Counter()

    async def scan(space: str) -> None:
        start, end = space_range(space)
        async for page in _pages(read, start, end, newest, strong):
            unseen.subtract(_judge(page, expected, findings))
            if space == APPLIED:
                applied.update(str(decode_key(entry.key)[1]) for entry in page)
            findings.rows_count += len(page)
            progress(len(page))

    await asyncio.gather(*(scan(space) for space in SPACES))
    findings.counted = await _count(read, newest, strong)
    findings.lost = {code for code, count in unseen.items() if count > 0}
    acknowledged = {row.code for row in expected.values()}
    findings.applied_count = len(applied)
    findings.duplicated |= {code for code, count in applied.items() if count > 1}
    findings.unacknowledged = applied.keys() - acknowledged
    return findings


def _judge(page: list[kv_pb2.Entry], expected: Mapping[bytes, ExpectedRow], findings: Findings) -> list[str]:
    """The transactions whose rows stand there as they must. Millions of rows pass here: one look at each field."""
    good: list[str] = []
    for entry in page:
        row = expected.get(entry.key)
        if row is None:
            continue
        code, value, versionstamp = row
        if entry.versionstamp != versionstamp:
            # Somebody wrote the row again; the demo's own transactions write each row once.
            findings.duplicated.add(code)
        if entry.value == value:
            good.append(code)
    return good


async def _pages(
    read: ReadCall, start: bytes, end: bytes, newest: bytes, strong: bool
) -> AsyncIterator[list[kv_pb2.Entry]]:
    while True:
        response = await read(_request(start, end, newest, strong))
        page = list(response.ranges[0].entries)
        if page:
            yield page
        if len(page) < MAX_READ_ENTRIES_COUNT:
            return
        start = page[-1].key + b"\x00"


async def _count(read: ReadCall, newest: bytes, strong: bool) -> int:
    key = encode_key(COUNT_KEY)
    response = await read(_request(key, key + b"\x00", newest, strong))
    entries = response.ranges[0].entries
    return int.from_bytes(entries[0].value, "little") if entries else 0


def _request(start: bytes, end: bytes, newest: bytes, strong: bool) -> kv_pb2.ReadRequest:
    wanted = kv_pb2.ReadRange(start=start, end=end, limit=MAX_READ_ENTRIES_COUNT)
    if strong:
        return kv_pb2.ReadRequest(ranges=[wanted], consistency=kv_pb2.CONSISTENCY_STRONG)
    return kv_pb2.ReadRequest(ranges=[wanted], consistency=kv_pb2.CONSISTENCY_EVENTUAL, min_versionstamp=newest)
