"""Whatever a caller puts into the fields of a request: it is answered, no node stops, and all states stay equal."""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kvnode.codec.keys import encode_key
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.node.cluster import Trio, on_trio, put, write

OPERATIONS_COUNT = 500
GOOD_KEYS = [*(encode_key((name,)) for name in "abc"), encode_key(("n", 1))]
KEYS = [*GOOD_KEYS * 6, b"", b"\xff", b"k" * 3_000]
NUMBERS = [0, 1, 2, 3, 10, 1_000, 70_000, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1, -1, -2, -(2**31)]
NUMBERS += [1_800_000_000_000, 1_800_000_000_500, -(2**63)]  # the simulation's clock begins at the former
TEXTS = ["", "q", "default", "reports", "no such", "x" * 200, "é", "*/5 * * * *", "0 0 30 2 *", "nightly"]
DATA = [b"", bytes(8), bytes(7), bytes(9), bytes(10), bytes(12), bytes(16), b"\xff\x0fI\x02", b"\xff\x0fN" + bytes(8)]
DATA += [b"\xff\x10Z\x12\x08" + b"\xff" * 8, b"\xff\x0f", b"\x01" * 70_000, *GOOD_KEYS]
BITS = {
    FieldDescriptor.TYPE_INT32: (32, True),
    FieldDescriptor.TYPE_UINT32: (32, False),
    FieldDescriptor.TYPE_INT64: (64, True),
    FieldDescriptor.TYPE_UINT64: (64, False),
}
# What a session's own layer sets; and a wait that holds the test up.
LEFT_OUT = {"wait_ms", "min_versionstamp"}


def number(draw: random.Random, kind: int) -> int:
    bits, signed = BITS[kind]
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return min(high, max(low, draw.choice(NUMBERS)))


def scalar(draw: random.Random, field: Any) -> Any:
    if field.type in BITS:
        return number(draw, field.type)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return draw.choice([*[value for value in field.enum_type.values_by_number if value] * 5, 0, 77])
    if field.type == FieldDescriptor.TYPE_BOOL:
        return draw.random() < 0.5
    return draw.choice(TEXTS) if field.type == FieldDescriptor.TYPE_STRING else draw.choice(DATA)


def fill(draw: random.Random, message: Message, depth: int = 0) -> None:
    """Set some of the fields to values that may or may not make sense."""
    for field in message.DESCRIPTOR.fields:
        if field.name in LEFT_OUT or draw.random() < 0.35:
            continue
        if field.message_type is not None:
            for _ in range(draw.choice((0, 1, 1, 2)) if field.is_repeated else 1):
                inner = getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name)
                inner.SetInParent()
                fill(draw, inner, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(scalar(draw, field) for _ in range(draw.randrange(3)))
        elif field.type == FieldDescriptor.TYPE_BYTES and ("key" in field.name or field.name in ("start", "end")):
            setattr(message, field.name, draw.choice(KEYS))
        else:
            setattr(message, field.name, scalar(draw, field))


def strange(draw: random.Random) -> kv_pb2.Operation:
    operation = kv_pb2.Operation(id=1)
    if draw.random() < 0.3:
        operation.read.SetInParent()
        fill(draw, operation.read)
    else:
        operation.write.SetInParent()
        fill(draw, operation.write)
        for kind in ("checks", "actions", "enqueues", "crons"):  # else something is nearly always wrong
            if hasattr(operation.write, kind) and draw.random() < 0.6:
                operation.write.ClearField(kind)
    return operation


@pytest.mark.parametrize("seed", range(4))
def test_every_strange_request_is_answered(tmp_path: Any, seed: int) -> None:
    @on_trio
    async def story(trio: Trio) -> None:
        draw = random.Random(seed)
        servers = list((await trio.leader_and_followers())[: 2 + seed % 2])
        outcomes: dict[str, int] = {}
        for _ in range(OPERATIONS_COUNT // 10):
            asked = [trio.ask(draw.choice(servers), strange(draw)) for _ in range(10)]
            for one in asked:
                result = await one.result()
                kind = result.error.code if result.HasField("error") else str(result.WhichOneof("result"))
                outcomes[kind] = outcomes.get(kind, 0) + 1
                assert not result.HasField("error") or (result.error.message and result.error.phase), result
        assert not {"INTERNAL", "UNKNOWN", ""} & set(outcomes), outcomes
        assert outcomes.get("write", 0) > 20 and outcomes.get("read", 0) > 20 and len(outcomes) > 15, outcomes
        assert (await trio.ask(servers[0], write(put(b"after"))).write()).versionstamp
        await trio.everywhere()  # at each index the observer has compared the digests

    story(tmp_path)
