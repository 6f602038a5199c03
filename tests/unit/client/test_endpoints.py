from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from kvnode.base import limits
from kvnode.base.errors import KvError, Unauthenticated, Unavailable
from kvnode.client.endpoints import Endpoints
from kvnode.client.pending import PendingOperation, PendingTable
from kvnode.proto.kv.v1 import kv_pb2


def test_every_address_is_tried_before_a_pause_sets_in() -> None:
    endpoints = Endpoints(["a", "b", "c"], Random(1))
    tried = []
    pauses = []
    for _ in range(7):
        tried.append(endpoints.current)
        pauses.append(endpoints.failed(Unavailable("down")))
    assert tried == ["a", "b", "c", "a", "b", "c", "a"]
    assert pauses[:2] == [0, 0]
    assert all(0 < pause <= limits.MAX_CLIENT_BACKOFF_MS for pause in pauses[2:])


def test_pauses_grow_to_a_bound_and_start_anew_after_success() -> None:
    endpoints = Endpoints(["a"], Random(1))
    longest = max(endpoints.failed(Unavailable("down")) for _ in range(50))
    assert limits.MAX_CLIENT_BACKOFF_MS / 2 < longest <= limits.MAX_CLIENT_BACKOFF_MS
    endpoints.succeeded()
    assert endpoints.failed(Unavailable("down")) <= limits.CLIENT_BACKOFF_MS


def test_hopeless_is_when_every_address_says_so() -> None:
    refused = KvError("UNAUTHENTICATED", "no", phase="auth")
    endpoints = Endpoints(["a", "b"], Random(1))
    endpoints.failed(refused)
    assert endpoints.hopeless() is None
    endpoints.failed(Unavailable("down", phase="dial"))
    assert endpoints.hopeless() is None
    endpoints.failed(refused)
    endpoints.failed(refused)
    assert endpoints.hopeless() is refused


def test_exhausted_is_when_each_has_failed_since_one_last_succeeded() -> None:
    endpoints = Endpoints(["a", "b"], Random(1))
    endpoints.failed(Unavailable("down"))
    assert not endpoints.exhausted
    endpoints.failed(Unavailable("down"))
    assert endpoints.exhausted
    endpoints.succeeded()
    assert not endpoints.exhausted


def test_a_node_that_refuses_speaks_for_its_cluster() -> None:
    refused = Unauthenticated("revoked")
    endpoints = Endpoints(["a", "b"], Random(1))
    endpoints.failed(Unavailable("down", phase="dial"))
    endpoints.failed(refused)
    assert endpoints.hopeless() is refused


def test_fail_fast_gives_up_on_addresses_that_cannot_be_reached_only() -> None:
    endpoints = Endpoints(["a"], Random(1), fail_fast=True)
    endpoints.failed(Unavailable("no leader", phase="leader"))
    assert endpoints.hopeless() is None
    endpoints.failed(Unavailable("refused", phase="dial"))
    assert endpoints.hopeless() is not None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=60))
def test_the_pending_table_matches_a_plain_model(steps: list[tuple[bool, int]]) -> None:
    table = PendingTable()
    model: dict[int, bool] = {}
    for number, (is_write, remove) in enumerate(steps, 1):
        message = kv_pb2.Operation(id=number)
        if is_write:
            message.write.SetInParent()
        else:
            message.read.SetInParent()
        table.add(PendingOperation(message, lambda result: None, 10, number * 10.0))
        model[number] = is_write
        victim = table.get(remove)
        assert (victim is not None) == (remove in model)
        if victim is not None:
            table.remove(victim)
            del model[remove]
        assert len(table) == len(model)
        assert table.lowest_unanswered == min((n for n, write in model.items() if write), default=number + 1)
    found = table.expired(1e9)
    assert sorted(operation.id for operation in found) == sorted(model)
    for operation in found:
        table.remove(operation)
    assert table.size_bytes == 0
