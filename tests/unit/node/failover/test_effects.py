"""What the error of a failover says of its effect: nothing before the promises, something after them."""

from __future__ import annotations

from kvnode.base.errors import InvalidRequest
from kvnode.node.failover.plan import Plan
from tests.unit.node.cluster import Trio, on_regions
from tests.unit.node.failover.test_failover import DOWN, lose_the_primary, ready


@on_regions
async def test_what_is_refused_before_the_promises_has_changed_nothing(trio: Trio) -> None:
    primary, replicas = await ready(trio)
    await lose_the_primary(trio, primary)
    error = await trio.refused(replicas[0], trio.node(replicas[0]).coordinator.execute(DOWN, keep_index=1 << 40))
    assert error.code == "FAILOVER_LESS_THAN_SHOWN" and isinstance(error, InvalidRequest)
    assert error.not_applied and "Nothing was begun" in error.message
    assert trio.node(replicas[0]).raft.promised_epoch <= 1


@on_regions
async def test_whatever_ends_a_failover_after_the_promises_has_changed_something(trio: Trio) -> None:
    primary, replicas = await ready(trio)
    await lose_the_primary(trio, primary)
    coordinator = trio.node(replicas[0]).coordinator

    async def refuse(_plan: Plan) -> None:
        raise InvalidRequest("FAILOVER_TAIL_MISSING", "by the test", phase="failover")

    coordinator._pull = refuse  # type: ignore[method-assign]
    error = await trio.refused(replicas[0], coordinator.execute(DOWN))
    assert error.code == "FAILOVER_TAIL_MISSING" and not error.not_applied
    assert trio.node(replicas[0]).raft.promised_epoch > 1
