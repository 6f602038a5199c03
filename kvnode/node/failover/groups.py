"""Which groups of voters may still begin an epoch that a node has promised.

A node that promises one failover after another is the only witness of the earlier one: its coordinator may be slow and
not dead, and begins with the voters that still keep its promise. So whoever asks for the later promise is told of
every group that was promised before, and has to fence each of them (plan.unfenced), as a Paxos acceptor tells what it
has accepted (Lamport, Paxos Made Simple, section 2.2). What was promised before the last start of the node, or was
only heard of, is a group of which nothing but its epoch is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvnode.proto.kv.internal.v1.failover_pb2 import FailoverGroup

_UNKNOWN: tuple[int, ...] = ()


class Groups:
    """Those that one node has promised an epoch to since its start. Sets of voters recur, so they stay few."""

    def __init__(self) -> None:
        self._epochs: dict[tuple[int, ...], int] = {}  # of each group the latest

    def promised(self, epoch: int, voter_ids: Iterable[int], before: Iterable[FailoverGroup]) -> None:
        """This node has promised an epoch to a group.

        Args:
            before: the groups that it told of until then.
        """
        for group in before:
            if not group.voter_ids and group.epoch < epoch:
                self._epochs[_UNKNOWN] = group.epoch
        self._epochs[tuple(voter_ids)] = epoch

    def above(self, log_epoch: int, latest: int, known: Sequence[FailoverGroup] = ()) -> list[FailoverGroup]:
        """The groups whose epoch is above that of the node's log.

        Args:
            latest: the latest epoch that the node knows of; who votes in it is unknown unless it was promised here.
            known: of which more than that is known.
        """
        found = [FailoverGroup(epoch=of, voter_ids=ids) for ids, of in self._epochs.items() if of > log_epoch]
        if latest > log_epoch and not any(group.epoch == latest for group in (*known, *found)):
            found.append(FailoverGroup(epoch=latest))
        return found
