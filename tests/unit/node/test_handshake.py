"""From whose Hello a node learns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvnode.node.handshake import Handshake
from kvnode.proto.kv.internal.v1 import peer_pb2


@pytest.mark.parametrize("damage", [None, "by the test"])
def test_with_a_damaged_log_it_hears_of_nothing_and_refuses_nobody(damage: str | None) -> None:
    """It could keep no promise; and who speaks to it is to see what is wrong with it."""
    heard: list[object] = []
    context: Any = SimpleNamespace(
        settings=SimpleNamespace(cluster_id="c", node_id=1, name="one"), log=SimpleNamespace(damage=damage)
    )
    epochs: Any = SimpleNamespace(refusal=lambda hello: "EPOCH_ENDED")
    nothing: Any = None
    handshake = Handshake(context, epochs, nothing, nothing, lambda *told: heard.append(told))
    hello = peer_pb2.Hello(cluster_id="c", node_id=2, to_node_id=1, epoch=3, ballot=77)
    assert handshake.check(hello) == ("" if damage else "EPOCH_ENDED")
    assert heard == ([] if damage else [(3, 77)])
