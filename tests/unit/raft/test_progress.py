"""Flow control towards one peer."""

from __future__ import annotations

from kvnode.raft.progress import PeerState, Progress
from kvnode.raft.types import RaftConfig

CONFIG = RaftConfig(1, max_inflight_count=2, max_inflight_bytes=100)


def replicating(match: int = 0) -> Progress:
    peer = Progress(2, match + 1, 0)
    peer.match = match
    peer.become_replicate()
    return peer


def test_probe_waits_for_each_answer() -> None:
    peer = Progress(2, 5, 0)
    assert peer.can_send(CONFIG)
    peer.sent(7, 3, 30)
    assert not peer.can_send(CONFIG)
    assert peer.next == 5
    assert peer.reject(4, 2)
    assert (peer.next, peer.can_send(CONFIG)) == (3, True)
    assert not peer.reject(4, 1), "a stale rejection"


def test_pipeline_is_bounded_by_count_and_bytes() -> None:
    peer = replicating()
    peer.sent(1, 1, 10)
    peer.sent(2, 1, 10)
    assert not peer.can_send(CONFIG), "by count"
    assert peer.acknowledge(1)
    assert peer.can_send(CONFIG)
    peer.sent(3, 1, 200)
    assert peer.acknowledge(2)
    assert not peer.can_send(CONFIG), "by bytes"
    assert peer.acknowledge(3)
    assert peer.can_send(CONFIG)
    assert not peer.acknowledge(2), "late"
    assert (peer.match, peer.next) == (3, 4)


def test_empty_appends_take_no_place() -> None:
    peer = replicating()
    for _ in range(5):
        peer.sent(0, 0, 0)
    assert peer.can_send(CONFIG)


def test_rejected_while_replicating() -> None:
    peer = replicating(3)
    peer.sent(9, 6, 200)
    assert not peer.reject(3, 0), "of what is known to match: stale"
    assert peer.reject(9, 5)
    assert (peer.state, peer.next) == (PeerState.PROBE, 4)
    peer.become_replicate()
    assert peer.can_send(CONFIG), "nothing is in flight any more"


def test_snapshot() -> None:
    peer = replicating(3)
    peer.become_snapshot(20)
    assert not peer.can_send(CONFIG)
    assert not peer.reject(3, 1)
    peer.become_probe()
    assert peer.next == 21
