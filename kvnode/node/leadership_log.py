"""What the log says of leaders: who leads, since which term, and why this node does so no more."""

from __future__ import annotations

import logging

from kvnode.raft.raft import Raft

_log = logging.getLogger(__name__)


class LeadershipLog:
    """Writes a line for each change that this node sees.

    Args:
        raft: the node's core.
    """

    def __init__(self, raft: Raft) -> None:
        self._raft = raft
        self._led_term = 0  # 0 = this node did not lead

    def changed(self) -> None:
        """Role, term or leader is another one."""
        raft, led_term = self._raft, self._led_term
        self._led_term = raft.term if raft.is_leader else 0
        if raft.is_leader:
            _log.info("this node leads, in term %d", raft.term)
            return
        if led_term:
            _log.info("this node led in term %d, and does so no more: %s", led_term, raft.step_down_reason)
        if raft.leader_id:
            member = raft.membership.get(raft.leader_id)
            _log.info("'%s' leads, in term %d", member.name if member else raft.leader_id, raft.term)
        else:
            _log.info("no leader is known, in term %d", raft.term)
