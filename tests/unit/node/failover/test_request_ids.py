"""Writes that are sent again across a failover: what is found, what is applied anew, and what nobody can tell."""

from __future__ import annotations

from kvnode.codec.versionstamp import split
from kvnode.node.failover.plan import Wishes
from kvnode.node.ports import Origin
from tests.simulation.cluster import Server
from tests.simulation.failover_observer import EpochObserver
from tests.unit.node.cluster import (
    CHECK_FAILED,
    SUCCESS,
    Trio,
    absent,
    add_one,
    number_of,
    on_regions,
    put,
    until,
    write,
)
from tests.unit.node.test_proposals import client_of

_EPOCH = 19  # the first one without a fence of two voters of r2, behind three nodes of r1


async def cut_in_two(trio: Trio) -> tuple[list[Server], list[Server]]:
    """Both regions, each alone from here on."""
    await trio.everywhere()
    servers = list(trio.servers.values())
    primary, replicas = servers[:3], servers[3:]
    trio.wire.cuts |= {
        pair
        for one in primary
        for other in replicas
        for pair in (
            (one.member.node_id, other.member.node_id),
            (other.member.node_id, one.member.node_id),
        )
    }
    return primary, replicas


async def lose_the_primary(trio: Trio, primary: list[Server], replicas: list[Server]) -> None:
    """What it did alone is cut off."""
    assert isinstance(trio.observer, EpochObserver)
    trio.observer.vouched.add(_EPOCH)
    for server in primary:
        trio.crash(server)
    trio.heal()
    await trio.within(replicas[0], trio.node(replicas[0]).coordinator.execute(Wishes("r2", primary_is_down=True)))
    await until(lambda: all(trio.node(s).epoch == _EPOCH and trio.node(s).leader_id for s in replicas), 30)


@on_regions
async def test_of_a_write_that_is_sent_again_what_was_kept_is_found_and_what_was_lost_is_applied_once(
    trio: Trio,
) -> None:
    client = await client_of(trio, await trio.leading())
    origin = Origin(client, 1)
    leader = await trio.leading()
    kept = await trio.ask(leader, write(add_one(b"n"), number=1), origin).write()
    primary, replicas = await cut_in_two(trio)
    lost = await trio.ask(primary[0], write(add_one(b"n"), number=2), origin).write()
    await lose_the_primary(trio, primary, replicas)
    for server in (*replicas, *replicas):
        found = await trio.ask(server, write(add_one(b"n"), number=1, resend=True), origin).write()
        assert found.versionstamp == kept.versionstamp
    again = {
        (await trio.ask(server, write(add_one(b"n"), number=2, resend=True), origin).write()).versionstamp
        for server in (*replicas, *replicas)
    }
    assert len(again) == 1 and split(again.pop())[0] == _EPOCH != split(lost.versionstamp)[0]
    assert number_of(await trio.get(replicas[0], b"n")) == 2
    fresh = await trio.ask(replicas[1], write(add_one(b"n"), number=3), Origin(client, 3)).write()
    assert fresh.status == SUCCESS
    late = await trio.ask(replicas[0], write(add_one(b"n"), number=2, resend=True), Origin(client, 2)).error()
    assert late.code == "SEQUENCE_ANSWERED", "the client itself has said that it was answered"
    assert number_of(await trio.get(replicas[1], b"n")) == 3


@on_regions
async def test_a_session_that_was_lost_is_said_to_be_unknown_and_nothing_of_it_is_executed(trio: Trio) -> None:
    primary, replicas = await cut_in_two(trio)
    client = await client_of(trio, primary[0])
    origin = Origin(client, 1)
    await trio.ask(primary[0], write(add_one(b"n"), number=1), origin).write()
    await lose_the_primary(trio, primary, replicas)
    for resend in (True, False):
        error = await trio.ask(replicas[1], write(add_one(b"n"), number=1, resend=resend), origin).error()
        assert (error.code, error.not_applied) == ("SESSION_UNKNOWN", not resend)
    assert await trio.get(replicas[0], b"n") is None


@on_regions
async def test_a_copy_that_was_held_is_applied_although_the_refusal_of_another_was_answered_and_lost(
    trio: Trio,
) -> None:
    """A write of which the client was told that its check had failed may appear behind a failover, once.

    The refusal was judged on what is lost and is lost with it, in the log and everywhere: for the history that goes on
    the copy is the first that anybody sees of the write.
    """
    client = await client_of(trio, await trio.leading())
    origin = Origin(client, 1)
    primary, replicas = await cut_in_two(trio)
    held = trio.ask(replicas[1], write(put(b"k", b"late"), checks=(absent(b"k"),), number=1, timeout_ms=60_000), origin)
    await trio.put(primary[0], b"k", b"lost")
    copy = write(put(b"k", b"late"), checks=(absent(b"k"),), number=1, resend=True)
    assert (await trio.ask(primary[1], copy, origin).write()).status == CHECK_FAILED
    await lose_the_primary(trio, primary, replicas)
    applied = await held.write()
    assert applied.status == SUCCESS and split(applied.versionstamp)[0] == _EPOCH
    assert await trio.get(replicas[0], b"k") == b"late"
    for server in replicas:
        again = await trio.ask(server, copy, origin).write()
        assert again.versionstamp == applied.versionstamp
