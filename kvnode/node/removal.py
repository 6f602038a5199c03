"""Who was removed from the cluster, and whether this node was.

The membership itself remembers whom it has lost (codec/membership.py): that somebody is missing from it says little. A
node that joins replays memberships of before its time, which hold neither it nor those who came later, and an epoch may
have begun elsewhere of which this node has yet to learn. Only what is applied counts here: a removal that is merely in
the log may still be taken back.

A node that is removed may never apply that: nobody feeds it any more. So everybody else tells it, by the Hello that
goes with a refusal. What was told holds for the epoch in which it was said: a failover may have lost the removal, and
the epoch that it begins then knows the node as a member.
"""

from __future__ import annotations

from kvnode.codec.membership import Membership
from kvnode.node.epochs import Epochs
from kvnode.proto.kv.internal.v1 import peer_pb2

THIS_NODE = (
    "this node was removed from the cluster: it gets nothing new, and serves nothing but eventual reads, which grow "
    "old. Stop it; to bring it back, give it an empty data directory and `kvnode member add` it"
)


class Removal:
    """Removals, as one node knows of them.

    Args:
        own_id: this node's.
        epochs: its view of epochs.
        membership: the applied one.
    """

    def __init__(self, own_id: int, epochs: Epochs, membership: Membership) -> None:
        self._own_id = own_id
        self._epochs = epochs
        self._ids = frozenset(membership.removed_ids)
        self._told_in = 0  # the epoch of those who said that this node was removed

    def __contains__(self, node_id: object) -> bool:
        """Whether the node of that id was removed."""
        return node_id in self._ids

    @property
    def own(self) -> str:
        """That this node was removed, and what to do; empty = it was not."""
        epochs = self._epochs
        is_applied = self._own_id in self._ids and epochs.established == epochs.latest
        return THIS_NODE if is_applied or self._told_in == epochs.latest else ""

    def applied(self, membership: Membership) -> None:
        """A membership is in force, for good."""
        self._ids = frozenset(membership.removed_ids)

    def hear(self, hello: peer_pb2.Hello) -> None:
        """A peer of the latest epoch has said who it is, and perhaps that this node was removed."""
        if hello.removed:
            self._told_in = hello.established_epoch


def removal_sentence(name: str) -> str:
    """What is said of a node that was removed and speaks on."""
    return f"node '{name}' was removed from this cluster: stop it, or give it an empty data directory"
