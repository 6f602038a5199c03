"""Failovers over gRPC: what nodes ask each other, and what an administrator asks of the one that coordinates."""

from __future__ import annotations

import grpc
from grpc import aio

from kvnode.api.grpc_handlers import Handlers
from kvnode.api.ports import ServedNode
from kvnode.node.failover.plan import Plan, Wishes
from kvnode.proto.kv.internal.v1 import failover_pb2
from kvnode.proto.kv.v1 import admin_pb2

SERVICE = "kv.internal.v1.Failover"


class FailoverService:
    """Serves kv.internal.v1.Failover.

    Args:
        node: whose part in failovers is asked for.
    """

    def __init__(self, node: ServedNode) -> None:
        self._node = node

    def handlers(self, build: Handlers) -> dict[str, grpc.RpcMethodHandler]:
        """Method names to handlers."""
        return {"Ask": build.unary(failover_pb2.FailoverRequest, self._ask)}

    async def _ask(
        self, request: failover_pb2.FailoverRequest, context: aio.ServicerContext
    ) -> failover_pb2.FailoverResponse:
        del context
        return await self._node.failover.answer(request)


async def fail_over(node: ServedNode, request: admin_pb2.FailoverRequest) -> admin_pb2.FailoverResponse:
    """Say what a failover would do, or carry it out. Raises KvError."""
    wishes = Wishes(request.region, force=request.force, primary_is_down=request.primary_is_down)
    coordinator = node.coordinator
    if request.planned:
        return await _move(node, request)
    if request.dry_run:
        return plan_to_wire(await coordinator.prepare(wishes))
    done = plan_to_wire(await coordinator.execute(wishes, request.keep_index))
    done.leader_id = node.leader_id
    return done


async def _move(node: ServedNode, request: admin_pb2.FailoverRequest) -> admin_pb2.FailoverResponse:
    if request.dry_run:
        return plan_to_wire(await node.coordinator.prepare_move(request.region))
    plan, pause_ms = await node.coordinator.move(request.region)
    done = plan_to_wire(plan)
    done.leader_id, done.pause_ms = node.leader_id, pause_ms
    return done


def plan_to_wire(plan: Plan) -> admin_pb2.FailoverResponse:
    """What an administrator is shown."""
    return admin_pb2.FailoverResponse(
        region=plan.region,
        epoch=plan.epoch,
        last_index=plan.end[1],
        last_versionstamp=plan.last_versionstamp,
        age_ms=plan.age_ms,
        lag_ms=plan.lag_ms,
        source=plan.source.name,
        voters=[member.name for member in plan.voters],
        silent=[member.name for member in plan.silent],
        unfenced=[member.name for member in plan.unfenced],
        warnings=plan.warnings,
    )
