"""Client ids are guessed: what is answered to those who name the session of somebody else, from whatever node."""

from __future__ import annotations

from kvnode.node.ports import Origin
from tests.simulation.cluster import Server
from tests.unit.node.cluster import SUCCESS, Trio, add_one, number_of, on_trio, put, write
from tests.unit.node.test_directory import create
from tests.unit.node.test_proposals import client_of


async def strangers_are_refused(trio: Trio, server: Server, client: bytes, database: int) -> None:
    """Through that node nobody in that database writes under the session, in any of its sequences."""
    for number, lowest in ((1, 1), (2, 1), (1_000, 1_000)):
        for resend in (False, True):
            operation = write(put(b"stranger"), number=number, resend=resend)
            error = await trio.ask(server, operation, Origin(client, lowest, database)).error()
            assert (error.code, error.not_applied) == ("SESSION_UNKNOWN", not resend)


@on_trio
async def test_a_session_takes_writes_for_its_database_alone_whatever_node_it_was_opened_at(trio: Trio) -> None:
    leader, one, other = await trio.leader_and_followers()
    second = await create(trio, leader, "second")
    victims = {(await client_of(trio, server), 1) for server in (leader, one)}
    for server in (leader, one):
        client = await trio.within(server, trio.node(server).open_session(database=second))
        victims.add((client, second))
    await trio.everywhere()
    for client, database in victims:
        stranger = second if database == 1 else 1
        first = await trio.ask(other, write(put(b"k"), number=1), Origin(client, 1, database)).write()
        for server in trio.servers.values():
            await strangers_are_refused(trio, server, client, stranger)
        again = await trio.ask(leader, write(put(b"k"), number=1, resend=True), Origin(client, 1, database)).write()
        assert again.versionstamp == first.versionstamp
        fresh = await trio.ask(one, write(put(b"k"), number=2), Origin(client, 1, database)).write()
        assert fresh.status == SUCCESS and fresh.versionstamp > first.versionstamp


@on_trio
async def test_a_nodes_own_session_writes_to_every_database_and_takes_nothing_from_clients(trio: Trio) -> None:
    leader, one, _ = await trio.leader_and_followers()
    second = await create(trio, leader, "second")
    await trio.everywhere()
    for server in (leader, one):
        node = trio.node(server)
        for database in (1, second):
            await trio.within(server, node.write(write(add_one(b"n")).write, database=database))
        own = node.operations.own_session._client_id
        assert own
        for database in (1, second):
            for through in trio.servers.values():
                await strangers_are_refused(trio, through, own, database)
        await trio.within(server, node.write(write(add_one(b"n")).write))
    assert number_of(await trio.get(leader, b"n")) == 4
    assert await trio.get(leader, b"stranger") is None
