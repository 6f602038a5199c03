"""Versionstamps that a failover cut off, and whose indexes the next epoch uses again: nobody takes them for its own."""

from __future__ import annotations

from kvnode.codec.versionstamp import split
from tests.unit.node.cluster import Trio, on_regions, read, value_of
from tests.unit.node.failover.test_request_ids import cut_in_two, lose_the_primary


@on_regions
async def test_who_waits_for_a_stamp_or_asks_later_hears_that_it_is_lost(trio: Trio) -> None:
    kept = await trio.put(await trio.leading(), b"k", b"kept")
    primary, replicas = await cut_in_two(trio)
    lost = [await trio.put(primary[n % 3], b"k", b"lost") for n in range(6)]
    ways = [(server, eventual) for server in replicas for eventual in (True, False)]
    waiting = [
        trio.ask(server, read(b"k", eventual=eventual, min_versionstamp=stamp, timeout_ms=60_000))
        for server, eventual in ways
        for stamp in lost
    ]
    await lose_the_primary(trio, primary, replicas)
    for asked in waiting:
        assert (await asked.error()).code == "VERSIONSTAMP_LOST"
    new = [await trio.put(replicas[0], b"k", b"new") for _ in range(6)]
    assert {split(stamp)[1] for stamp in lost} & {split(stamp)[1] for stamp in new}
    await trio.everywhere()
    for server in trio.servers.values():
        if not server.running:
            trio.start(server)
    await trio.everywhere()
    for server, eventual in ways:
        for stamp in lost:
            error = await trio.ask(server, read(b"k", eventual=eventual, min_versionstamp=stamp)).error()
            assert error.code == "VERSIONSTAMP_LOST"
        for stamp in (kept, new[-1]):
            answer = await trio.ask(server, read(b"k", eventual=eventual, min_versionstamp=stamp)).read()
            assert value_of(answer) == b"new"
