"""Peers that speak to this node and that its own membership does not know.

Raft lets a server follow a leader, and vote for a candidate, that its latest configuration does not hold (Ongaro's
dissertation, section 4.1): who was away while others joined can learn of them from nobody else. To answer them it must
know where they are, and its log will say so only once one of them has filled it up. So every Hello says it, and whoever
is unknown is connected to for as long as he speaks: one who was removed and has not heard of it falls silent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.codec.membership import Member
from kvnode.node.member_wire import member_from_wire
from kvnode.proto.kv.internal.v1 import peer_pb2

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Stranger:
    member: Member
    heard_ms: float


class Introductions:
    """The strangers, by node id. True when there are any.

    Args:
        own_id: this node's.
        is_known: whether the membership has that node.
        monotonic_ms: the clock.
        changed: told when somebody is to be connected to, or no more.
    """

    def __init__(
        self,
        own_id: int,
        is_known: Callable[[int], bool],
        monotonic_ms: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._own_id = own_id
        self._is_known = is_known
        self._monotonic_ms = monotonic_ms
        self._changed = changed
        self._strangers: dict[int, _Stranger] = {}

    def __bool__(self) -> bool:
        return bool(self._strangers)

    @property
    def members(self) -> list[Member]:
        """Those who are unknown still."""
        return [found.member for node_id, found in self._strangers.items() if not self._is_known(node_id)]

    def hear(self, hello: peer_pb2.Hello) -> None:
        """A peer that is welcome has said who it is."""
        member = self._stranger(hello)
        if member is None:
            return
        old = self._strangers.get(member.node_id)
        if old is None and len(self._strangers) >= limits.MAX_INTRODUCED_COUNT:
            del self._strangers[min(self._strangers, key=lambda node_id: self._strangers[node_id].heard_ms)]
        self._strangers[member.node_id] = _Stranger(member, self._monotonic_ms())
        if old is None or old.member.address != member.address:
            _log.info(
                "'%s' at %s is in no membership that this node knows of yet: it is answered",
                member.name,
                member.address,
            )
            self._changed()

    def spoke(self, node_id: int) -> None:
        """A message came from that peer."""
        found = self._strangers.get(node_id)
        if found is not None:
            found.heard_ms = self._monotonic_ms()

    def sweep(self) -> None:
        """Forget who has become known, and who has been silent for INTRODUCTION_LIFETIME_MS."""
        since_ms = self._monotonic_ms() - limits.INTRODUCTION_LIFETIME_MS
        gone = [i for i, found in self._strangers.items() if self._is_known(i) or found.heard_ms < since_ms]
        for node_id in gone:
            del self._strangers[node_id]
        if gone:
            self._changed()

    def _stranger(self, hello: peer_pb2.Hello) -> Member | None:
        said = hello.member
        if not said.address or said.node_id != hello.node_id or hello.node_id == self._own_id:
            return None
        if self._is_known(hello.node_id):
            return None
        try:
            return member_from_wire(said)
        except InvalidRequest:  # of a later version
            return None
