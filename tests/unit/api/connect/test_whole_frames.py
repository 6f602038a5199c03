"""Every frame has every key."""

from __future__ import annotations

from kvnode.api.connect.whole_frames import WholeFrames
from kvnode.proto.kv.v1 import kv_pb2


def key(name: bytes, value: bytes | None, *, changed: bool = True) -> kv_pb2.WatchKey:
    entry = None if value is None else kv_pb2.Entry(key=name, value=value)
    return kv_pb2.WatchKey(key=name, changed=changed, entry=entry)


def seen(frame: kv_pb2.WatchResponse) -> list[tuple[bytes, bool, bytes | None]]:
    return [(k.key, k.changed, k.entry.value if k.HasField("entry") else None) for k in frame.keys]


def test_an_unchanged_key_is_sent_again() -> None:
    frames = WholeFrames()
    first = kv_pb2.WatchResponse(keys=[key(b"a", b"1"), key(b"b", None)])
    assert seen(frames.fill(first)) == [(b"a", True, b"1"), (b"b", True, None)]
    second = kv_pb2.WatchResponse(keys=[key(b"a", None, changed=False), key(b"b", b"2")], versionstamp=b"0123456789")
    filled = frames.fill(second)
    assert seen(filled) == [(b"a", True, b"1"), (b"b", True, b"2")]
    assert filled.versionstamp == b"0123456789"


def test_a_deleted_key_stays_deleted() -> None:
    frames = WholeFrames()
    frames.fill(kv_pb2.WatchResponse(keys=[key(b"a", b"1"), key(b"b", b"2")]))
    frames.fill(kv_pb2.WatchResponse(keys=[key(b"a", None), key(b"b", None, changed=False)]))
    last = kv_pb2.WatchResponse(keys=[key(b"a", None, changed=False), key(b"b", b"3")])
    assert seen(frames.fill(last)) == [(b"a", True, None), (b"b", True, b"3")]
