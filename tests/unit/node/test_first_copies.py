from __future__ import annotations

from kvnode.node.calls import Call
from kvnode.node.first_copies import FirstCopies, Waiters
from kvnode.node.ports import Origin
from kvnode.proto.kv.v1 import kv_pb2


def call(client: bytes, number: int) -> Call:
    return Call(kv_pb2.Operation(id=number), Origin(client, 1), None, None, 0.0, 1_000)


def opening() -> Call:
    return Call(None, Origin(b"", 0), None, None, 0.0, 1_000)


def test_a_resend_finds_what_the_first_copy_is_answered() -> None:
    copies = FirstCopies()
    waiters: Waiters = [(opening(), b"id"), (call(b"a", 1), "a1"), (call(b"b", 1), "b1")]
    assert copies.body(7, waiters, call(b"b", 1)) == "b1"
    waiters.append((call(b"a", 2), "a2"))
    assert copies.body(7, waiters, call(b"a", 2)) == "a2", "it came after the entry was joined for the first time"
    assert copies.body(7, waiters, call(b"a", 3)) is None


def test_an_entry_that_took_the_place_of_another_is_looked_at_anew() -> None:
    copies = FirstCopies()
    assert copies.body(7, [(call(b"a", 1), "old")], call(b"a", 1)) == "old"
    assert copies.body(7, [(call(b"a", 1), "new")], call(b"a", 1)) == "new"
    copies.forget(7)
    assert not copies._of_entry
    assert copies.body(7, [], call(b"a", 1)) is None
