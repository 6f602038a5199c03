"""What the integration tests share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from cluster.checker import Report, check
from cluster.launcher import THREE_DCS, LocalCluster
from cluster.workload import Workload, error_counts, now_ms
from kvnode.base.errors import KvError
from kvnode.client.session import Session
from kvnode.codec.keys import encode_key
from kvnode.proto.kv.v1 import kv_pb2

RAMP_UP_S = 1.0


@contextmanager
def three_nodes(folder: Path, *arguments: str) -> Iterator[LocalCluster]:
    """A node in each of three data centers, for a whole module; conftest.py has those of a single test.

    Args:
        folder: for their data and logs.
        arguments: of every `kvnode serve`.
    """
    with LocalCluster(THREE_DCS, folder, arguments=arguments) as cluster:
        cluster.start()
        yield cluster


@asynccontextmanager
async def under_load(cluster: LocalCluster, **options) -> AsyncIterator[Workload]:
    """Run a workload around the body; afterwards everything is read back."""
    workload = Workload([node.address for node in cluster.nodes.values()], **options)
    workload.start()
    try:
        await asyncio.sleep(RAMP_UP_S)
        yield workload
    finally:
        await workload.stop()


async def judge(cluster: LocalCluster, workload: Workload) -> Report:
    """Read everything back from every node, check the history, and compare the digests."""
    await workload.read_back()
    report = await asyncio.to_thread(check, workload.history.operations)
    assert report.ok, f"{report.summary()}\nerrors: {error_counts(workload.history)}"
    assert report.commits_count > 50, report.summary()
    await assert_equal_digests(cluster)
    return report


async def assert_equal_digests(cluster: LocalCluster) -> None:
    digests = await asyncio.to_thread(cluster.digests)
    assert len(digests) == len(cluster.nodes), digests
    assert len(set(digests.values())) == 1, digests


def write_request(name: str, value: bytes = b"value") -> kv_pb2.AtomicWriteRequest:
    return kv_pb2.AtomicWriteRequest(
        mutations=[
            kv_pb2.Mutation(
                type=kv_pb2.MUTATION_TYPE_SET,
                key=encode_key((name,)),
                value=kv_pb2.Value(data=value, encoding=kv_pb2.VALUE_ENCODING_BYTES),
            )
        ]
    )


def read_request(name: str, *, strong: bool = True) -> kv_pb2.ReadRequest:
    key = encode_key((name,))
    consistency = kv_pb2.CONSISTENCY_STRONG if strong else kv_pb2.CONSISTENCY_EVENTUAL
    return kv_pb2.ReadRequest(ranges=[kv_pb2.ReadRange(start=key, end=key + b"\x00", limit=1)], consistency=consistency)


async def put(address: str, name: str, value: bytes = b"value", timeout_ms: int = 15_000) -> bytes:
    """Write one key through one node; returns the versionstamp. Raises KvError."""
    async with Session([address]) as session:
        response = await session.write(write_request(name, value), timeout_ms)
        assert response.status == kv_pb2.ATOMIC_WRITE_STATUS_SUCCESS
        return response.versionstamp


async def get(address: str, name: str, *, strong: bool = True, timeout_ms: int = 15_000) -> bytes | None:
    """Read one key through one node. Raises KvError."""
    async with Session([address]) as session:
        response = await session.read(read_request(name, strong=strong), timeout_ms)
        entries = response.ranges[0].entries
        return entries[0].value if entries else None


async def fill(addresses: list[str], total_bytes: int, *, value_bytes: int = 32_768, prefix: str = "fill") -> int:
    """Write about `total_bytes`; returns how many keys."""
    count = max(1, total_bytes // value_bytes)
    async with Session(addresses) as session:
        limit = asyncio.Semaphore(32)

        async def one(number: int) -> None:
            async with limit:
                value = number.to_bytes(8, "big") * (value_bytes // 8)
                await session.write(write_request(f"{prefix}-{number:06d}", value), 60_000)

        await asyncio.gather(*(one(number) for number in range(count)))
    return count


async def error_of(attempt: Awaitable[object]) -> KvError:
    """The KvError that it fails with; a test fails when it succeeds."""
    try:
        result = await attempt
    except KvError as error:
        return error
    raise AssertionError(f"it was expected to fail, and returned {result!r}")


async def eventually(condition: Callable[[], bool], otherwise: str, timeout_s: float = 15.0) -> None:
    """Wait for a (blocking) condition."""
    deadline = now_ms() + timeout_s * 1_000
    while not await asyncio.to_thread(condition):
        assert now_ms() < deadline, otherwise
        await asyncio.sleep(0.05)


def a_follower(cluster: LocalCluster, *, other_than: str = "") -> str:
    """The name of a node that does not lead."""
    leader = cluster.wait_leader()
    return next(name for name in cluster.nodes if name not in (leader, other_than))


def newest_segment(data_dir: Path) -> Path:
    """The segment that was written last."""
    return max((data_dir / "log").glob("*.log"))


def end_of_records(data: bytes) -> int:
    """Behind the last byte that is not zero: segments are filled with zeros in advance."""
    return len(data.rstrip(b"\x00"))


def flip(path: Path, at: int | None = None) -> None:
    """Turn one bit, in the middle of what was written unless it is said where.

    In a byte that is not zero: between records stand a few zeros, in which a turned bit harms nothing.
    """
    data = bytearray(path.read_bytes())
    if at is None:
        middle = end_of_records(data) // 2
        at = next(place for place in range(middle, len(data)) if data[place])
    data[at] ^= 0x10
    path.write_bytes(data)
