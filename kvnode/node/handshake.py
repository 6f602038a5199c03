"""The Hello that begins every stream between two nodes: what a node says of itself, and whom it lets speak."""

from __future__ import annotations

from collections.abc import Callable

from kvnode.node.address_book import AddressBook
from kvnode.node.context import NodeContext
from kvnode.node.epochs import Epochs
from kvnode.node.ports import NodeIdentity
from kvnode.node.removal import Removal, removal_sentence
from kvnode.proto.kv.internal.v1 import peer_pb2


class Handshake:
    """One node's side of it.

    Args:
        context: the node.
        epochs: its view of epochs; a peer of an ended one is refused.
        removal: who was removed; they are refused too.
        book: who it is itself, and whom it knows.
        heard_of: told of the epoch and ballot of everybody who is of this cluster (failover/participant.py).
    """

    def __init__(
        self,
        context: NodeContext,
        epochs: Epochs,
        removal: Removal,
        book: AddressBook,
        heard_of: Callable[[int, int], None],
    ) -> None:
        self._settings = context.settings
        self._log = context.log
        self._epochs = epochs
        self._removal = removal
        self._book = book
        self._heard_of = heard_of

    def identity(self) -> NodeIdentity:
        """What this node says of itself."""
        settings, epochs = self._settings, self._epochs
        return NodeIdentity(
            settings.cluster_id,
            epochs.latest,
            settings.node_id,
            settings.name,
            epochs.established,
            epochs.ballot,
            self._book.own,
        )

    def check(self, hello: peer_pb2.Hello) -> str:
        """Why the peer is refused, empty = it is welcome; learns from what it says. See ports.PeerHandler."""
        own = self._settings
        if hello.cluster_id != own.cluster_id:
            return f"node '{hello.name}' is of cluster {hello.cluster_id}, this node is of {own.cluster_id}"
        if hello.to_node_id and hello.to_node_id != own.node_id:
            return (
                f"node '{hello.name}' expects node {hello.to_node_id} here, but this is '{own.name}' with the id "
                f"{own.node_id}: a new data directory is a new node; use `kvnode member replace`"
            )
        if self._log.damage is not None:
            return ""
        self._heard_of(hello.epoch, hello.ballot)
        if refusal := self._epochs.refusal(hello):
            return refusal
        self._removal.hear(hello)
        if hello.node_id in self._removal:
            return f"MEMBER_REMOVED: {removal_sentence(hello.name)}"
        self._book.introductions.hear(hello)
        return ""
