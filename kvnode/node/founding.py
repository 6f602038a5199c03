"""The first election of a cluster.

A voter that has heard no leader waits for one to fall silent, one to two election timeouts long. In a cluster that was
founded a moment ago there has never been one, and whoever has founded it knows that: it stands for election as soon as
the others have joined. What it asks for are pre-votes, which disturb nobody, again and again until the streams of a
majority are up and the first term begins. It gives up soon: then the ordinary wait decides.
"""

from __future__ import annotations

import asyncio

from kvnode.node.context import NodeContext

RETRY_S = 0.05
TRIES_COUNT = 40


async def elect_first(context: NodeContext) -> None:
    """Stand for election until the first term begins; nothing where one has begun before, or on a damaged log."""
    raft = context.raft
    for _ in range(TRIES_COUNT):
        if raft.term or raft.leader_id or context.log.damage is not None:
            return
        with context.guard:
            raft.campaign()
        context.wake()
        await asyncio.sleep(RETRY_S)
