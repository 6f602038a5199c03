"""What a Hello teaches of epochs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvnode.node.epochs import Epochs
from kvnode.proto.kv.internal.v1 import peer_pb2


def hello(epoch: int, established: int, ballot: int) -> peer_pb2.Hello:
    return peer_pb2.Hello(node_id=2, name="two", epoch=epoch, established_epoch=established, ballot=ballot)


@pytest.mark.parametrize(
    ("heard", "promised"),
    [
        (hello(3, 3, 77), [(3, 77)]),
        (hello(3, 2, 77), [(2, 0)]),  # the ballot is that of the epoch that is only promised there
        (hello(3, 1, 77), []),  # what is only promised may never begin
    ],
)
def test_an_epoch_that_has_begun_is_promised_with_the_ballot_of_its_own(
    heard: peer_pb2.Hello, promised: list[tuple[int, int]]
) -> None:
    told: list[tuple[int, int]] = []
    state: Any = SimpleNamespace(scan=lambda start, end, limit: [], get=lambda key: None)
    raft: Any = SimpleNamespace(epoch=1, promise=lambda epoch, ballot, *, has_begun: told.append((epoch, ballot)))
    meta: Any = SimpleNamespace(epoch=1)
    assert not Epochs(raft, state, lambda: meta, lambda: None).refusal(heard)
    assert told == promised
