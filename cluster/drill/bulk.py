"""Many changes at once, while somebody is away."""

from __future__ import annotations

import asyncio

from cluster.drill.clients import TIMEOUT_MS
from cluster.drill.stage import Stage
from kvnode.client.session import Session
from kvnode.codec.keys import encode_key
from kvnode.proto.kv.v1 import kv_pb2

CALLERS_COUNT = 512
VALUE = b"x" * 100


async def bulk_write(stage: Stage, space: str, count: int) -> None:
    """`count` transactions through the primary region. Raises KvError."""
    numbers = iter(range(count))
    addresses = [stage.cluster.nodes[name].address for name in stage.nodes_in(stage.home)]
    async with Session(addresses) as session:

        async def caller() -> None:
            for number in numbers:
                key = encode_key((space, number))
                value = kv_pb2.Value(data=VALUE, encoding=kv_pb2.VALUE_ENCODING_BYTES)
                mutation = kv_pb2.Mutation(type=kv_pb2.MUTATION_TYPE_SET, key=key, value=value)
                await session.write(kv_pb2.AtomicWriteRequest(mutations=[mutation]), TIMEOUT_MS)

        await asyncio.gather(*(caller() for _ in range(CALLERS_COUNT)))
