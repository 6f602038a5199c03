"""What a gateway makes of its configuration, and what it holds for its databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kvnode.api.remote_backend import RemoteBackend
from kvnode.api.serve_gateway import _static_token
from kvnode.base import limits
from kvnode.base.config import load_config
from kvnode.base.errors import NotFound, Unavailable
from kvnode.machine.directory.rows import DatabaseMode, DatabaseRow
from kvnode.machine.directory.view import DirectoryView
from kvnode.proto.kv.v1 import kv_pb2


@pytest.mark.parametrize(
    ("shown_to_nodes", "good_for_clients"),
    [("a-token-of-the-users-own", "a-token-of-the-users-own"), ("kvn_abcdefgh_" + "a" * 40, ""), ("", "")],
)
def test_a_token_that_the_cluster_made_is_a_gateways_towards_the_nodes_alone(
    shown_to_nodes: str, good_for_clients: str
) -> None:
    flags = {"role": "gateway", "peers": "node:4510", "access_token": shown_to_nodes}
    assert _static_token(load_config(flags, {}).config) == good_for_clients


class Answers:
    """What was delivered, in order."""

    def __init__(self) -> None:
        self.errors: list[kv_pb2.Error] = []

    def __call__(self, result: kv_pb2.OperationResult) -> None:
        self.errors.append(result.error)


@pytest.fixture
def view() -> DirectoryView:
    """Of two databases."""
    made = DirectoryView()
    for number in (2, 3):
        create(made, number)
    return made


def create(view: DirectoryView, number: int) -> None:
    row = DatabaseRow(number, f"{number:032x}", f"d{number}", DatabaseMode.ENABLED, limits.MAX_VALUE_BYTES, 0)
    view.databases[number] = row
    view.update({})


def delete(view: DirectoryView, number: int) -> None:
    del view.databases[number]
    view.update({})


@pytest.fixture
async def backend(view: DirectoryView) -> AsyncIterator[RemoteBackend]:
    made = RemoteBackend("gateway", ["127.0.0.1:1"], view)
    yield made
    await made.close()


def operation(size_bytes: int = 1) -> kv_pb2.Operation:
    made = kv_pb2.Operation()
    made.write.mutations.add(type=kv_pb2.MUTATION_TYPE_SET, key=b"k").value.data = bytes(size_bytes)
    return made


async def test_what_is_held_is_bounded_for_all_databases_together(
    backend: RemoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_HELD_REQUEST_BYTES", 2_000)
    for database in (2, 3):
        backend.begin(operation(1_000), database=database, deliver=Answers())
    for database in (2, 3):
        with pytest.raises(Unavailable) as refused:
            backend.begin(operation(), database=database, deliver=Answers())
        assert refused.value.code == "TOO_MANY_HELD"
    assert (backend.held_count, 2_000 < backend.held_bytes < 2_200) == (2, True)
    backend.give_up_unsent()
    assert (backend.held_count, backend.held_bytes) == (0, 0)


async def test_a_count_of_small_ones_is_bounded_too(backend: RemoteBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HELD_REQUESTS_COUNT", 3)
    for database in (2, 3, 2):
        backend.begin(operation(), database=database, deliver=Answers())
    with pytest.raises(Unavailable, match="too many"):
        await backend.read(kv_pb2.ReadRequest(), database=3)


async def test_what_no_node_has_is_refused_when_the_gateway_stops(backend: RemoteBackend) -> None:
    answers = Answers()
    backend.begin(operation(), database=2, deliver=answers)
    backend.give_up_unsent()
    assert [(error.code, error.not_applied) for error in answers.errors] == [("CLIENT_CLOSED", True)]


# The sessions of databases that are deleted.


async def used(backend: RemoteBackend, database: int) -> None:
    """Have a session that holds nothing."""
    answers = Answers()
    backend.begin(operation(), database=database, deliver=answers)
    for session in backend.sessions:
        session.give_up_unsent()
    assert len(answers.errors) == 1


async def test_the_session_of_a_deleted_database_goes_with_it(backend: RemoteBackend, view: DirectoryView) -> None:
    for number in range(10, 30):
        create(view, number)
        await used(backend, number)
        delete(view, number)
    await used(backend, 2)
    async with asyncio.timeout(5):
        while len(backend.sessions) > 1:
            await asyncio.sleep(0.01)
    assert [session.is_started for session in backend.sessions] == [True], "that of a database which is there stays"
    with pytest.raises(NotFound):
        await backend.read(kv_pb2.ReadRequest(), database=10)
    assert len(backend.sessions) == 1


async def test_a_database_with_the_number_of_one_that_a_failover_cut_off_has_a_session_of_its_own(
    backend: RemoteBackend, view: DirectoryView
) -> None:
    """A gateway that was cut off meanwhile learns of both in one message."""
    await used(backend, 2)
    (lost,) = backend.sessions
    view.databases[2] = view.databases[2]._replace(uuid="f" * 32, name="another")
    view.update({})
    await used(backend, 2)
    assert lost not in backend._sessions.values() and len(backend._sessions) == 1
    assert dict(backend.reach(2).metadata)["kv-database"] == "f" * 32
    async with asyncio.timeout(5):
        while lost in backend.sessions:
            await asyncio.sleep(0.01)


async def test_what_the_session_of_a_deleted_database_holds_is_answered_first(
    backend: RemoteBackend, view: DirectoryView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SESSION_LEAVE_INTERVAL_MS", 5)
    answers = Answers()
    backend.begin(operation(), database=2, deliver=answers)
    (session,) = backend.sessions
    delete(view, 2)
    await asyncio.sleep(0.05)
    assert not answers.errors and session.is_started and backend.held_count == 1
    backend.give_up_unsent()
    assert [error.code for error in answers.errors] == ["CLIENT_CLOSED"]
    async with asyncio.timeout(5):
        while backend.sessions:
            await asyncio.sleep(0.01)
    assert not backend.sessions and backend.held_count == 0


async def test_a_gateway_that_stops_closes_what_is_on_its_way_out(view: DirectoryView) -> None:
    backend = RemoteBackend("gateway", ["127.0.0.1:1"], view)
    answers = Answers()
    backend.begin(operation(), database=2, deliver=answers)
    (session,) = backend.sessions
    delete(view, 2)
    await backend.close()
    assert not session.is_started and len(answers.errors) == 1 and not backend.sessions
