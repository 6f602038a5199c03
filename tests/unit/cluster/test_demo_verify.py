"""The demo's accounting sees what is lost, doubled, half applied or applied without an answer."""

from __future__ import annotations

from dataclasses import replace

from cluster.demo_input import Character
from cluster.demo_rows import APPLIED, CHARACTER, COUNT_KEY, WORD, expected_rows
from cluster.demo_verify import Findings, verify
from cluster.history import Mutation, MutationKind, Range, Write
from cluster.replay import Model
from kvnode.base.limits import MAX_READ_ENTRIES_COUNT
from kvnode.codec.keys import encode_key
from kvnode.codec.values import encode_value
from kvnode.codec.versionstamp import versionstamp
from kvnode.proto.kv.v1 import kv_pb2

A = Character("000041", ("A", "CAPITAL", "LETTER"), {"name": "A"})
B = Character("000042", ("B", "CAPITAL", "LETTER"), {"name": "B"})


def write_of(character: Character) -> Write:
    record, _ = encode_value(character.record)
    return Write(
        (),
        (
            Mutation(MutationKind.SET, encode_key((CHARACTER, character.code)), record),
            *(Mutation(MutationKind.SET, encode_key((WORD, word, character.code))) for word in character.words),
            Mutation(MutationKind.SET_SUFFIX_VERSIONSTAMPED_KEY, encode_key((APPLIED, character.code))),
            Mutation(MutationKind.SUM, encode_key(COUNT_KEY), (1).to_bytes(8, "little")),
        ),
    )


class Node:
    """Answers reads from a model."""

    def __init__(self) -> None:
        self.model = Model()
        self.index = 0
        self.requests: list[kv_pb2.ReadRequest] = []

    def apply(self, write: Write) -> bytes:
        self.index += 1
        stamp = versionstamp(1, self.index, 0)
        self.model.apply(write, stamp)
        return stamp

    async def read(self, request: kv_pb2.ReadRequest) -> kv_pb2.ReadResponse:
        self.requests.append(request)
        asked = request.ranges[0]
        rows = list(self.model.range_rows(Range(asked.start, asked.end)))[: asked.limit]
        entries = [kv_pb2.Entry(key=key, value=row.value, versionstamp=row.versionstamp) for key, row in rows]
        return kv_pb2.ReadResponse(ranges=[kv_pb2.ReadRangeResult(entries=entries)])


async def found(node: Node, acknowledged: dict[str, bytes], *, strong: bool = True) -> Findings:
    expected = expected_rows([A, B], acknowledged)
    return await verify("a", node.read, expected, max(acknowledged.values(), default=b""), strong=strong)


async def test_all_there_once() -> None:
    node = Node()
    acknowledged = {A.code: node.apply(write_of(A)), B.code: node.apply(write_of(B))}
    findings = await found(node, acknowledged)
    assert findings.ok
    assert (findings.rows_count, findings.counted, findings.duplicated_count) == (10, 2, 0)


async def test_an_eventual_read_waits_for_the_newest_acknowledged_write() -> None:
    node = Node()
    stamp = node.apply(write_of(A))
    assert (await found(node, {A.code: stamp}, strong=False)).ok
    assert {request.min_versionstamp for request in node.requests} == {stamp}


async def test_lost() -> None:
    node = Node()
    acknowledged = {A.code: node.apply(write_of(A)), B.code: versionstamp(1, 9, 0)}
    findings = await found(node, acknowledged)
    assert not findings.ok
    assert findings.lost == {B.code}


async def test_half_applied() -> None:
    node = Node()
    whole = write_of(A)
    acknowledged = {A.code: node.apply(replace(whole, mutations=(*whole.mutations[:2], *whole.mutations[3:])))}
    assert (await found(node, acknowledged)).lost == {A.code}


async def test_a_counter_that_missed_one() -> None:
    node = Node()
    whole = write_of(A)
    acknowledged = {A.code: node.apply(replace(whole, mutations=whole.mutations[:-1]))}
    assert not (await found(node, acknowledged)).ok


async def test_applied_twice_before_or_after_the_acknowledged_time() -> None:
    for acknowledged_first in (True, False):
        node = Node()
        stamps = [node.apply(write_of(A)), node.apply(write_of(A))]
        findings = await found(node, {A.code: stamps[0 if acknowledged_first else 1]})
        assert not findings.ok
        assert findings.duplicated == {A.code}
        assert findings.duplicated_count == 1


async def test_applied_without_an_answer_is_not_a_fault() -> None:
    node = Node()
    acknowledged = {A.code: node.apply(write_of(A))}
    node.apply(write_of(B))
    findings = await found(node, acknowledged)
    assert findings.ok
    assert findings.unacknowledged == {B.code}


async def test_reads_page_by_page() -> None:
    node = Node()
    acknowledged, characters = {}, []
    for number in range(MAX_READ_ENTRIES_COUNT + 1):
        character = Character(f"{number:06X}", ("WORD",), {"name": str(number)})
        characters.append(character)
        acknowledged[character.code] = node.apply(write_of(character))
    expected = expected_rows(characters, acknowledged)
    seen: list[int] = []
    findings = await verify("a", node.read, expected, b"", strong=True, progress=seen.append)
    assert findings.ok
    assert sum(seen) == findings.rows_count == 3 * len(characters)
