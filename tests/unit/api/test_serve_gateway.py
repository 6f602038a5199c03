"""What a gateway makes of its configuration."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from kvnode.api.remote_backend import RemoteBackend
from kvnode.api.serve_gateway import _static_token
from kvnode.base import limits
from kvnode.base.config import load_config
from kvnode.base.errors import Unavailable
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
async def backend() -> AsyncIterator[RemoteBackend]:
    view = DirectoryView()
    for number in (2, 3):
        row = DatabaseRow(number, f"{number:032x}", f"d{number}", DatabaseMode.ENABLED, limits.MAX_VALUE_BYTES, 0)
        view.databases[number] = row
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
