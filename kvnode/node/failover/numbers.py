"""Which number a new epoch takes.

One that nobody else takes, although there may be others whom nobody here can ask. Behind a fence there are none: a
majority of the old voters has promised, and whoever asks any majority of them hears of it. Without one, somebody on
the other side of a cut may fail over too, knowing other epochs than we do. So numbers come in blocks. The first half of
each is for epochs behind a fence, which go up by one; the second has a number for each node, and an epoch without a
fence takes that of the first of its voters. A first voter has promised, durably, what it took part in, and says so when
it is asked next, so that it is never given the same number twice.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvnode.base.errors import InvalidRequest
from kvnode.codec.epoch import MAX_EPOCH
from kvnode.codec.membership import Member

BLOCK = 32  # numbers; the versionstamp has room for 2,048 blocks, of which a failover without a fence uses up one
_HALF = BLOCK // 2  # more nodes than that share numbers, and are told apart by their ballots as EPOCH_SPLIT


def fenced_epoch(latest: int) -> int:
    """The number of an epoch that begins behind a fence, or a seal.

    Args:
        latest: the greatest number that anybody who answers knows of.

    Raises:
        InvalidRequest: EPOCHS_EXHAUSTED.
    """
    epoch = latest + 1
    return _checked(epoch if epoch % BLOCK < _HALF else epoch + BLOCK - epoch % BLOCK)


def unfenced_epoch(latest: int, members: Iterable[Member], voters: Iterable[Member]) -> int:
    """The number of an epoch that begins although others may be alive.

    Args:
        latest: the greatest number that anybody who answers knows of.
        members: all of the cluster.
        voters: those of them that vote in the new epoch; at least one.

    Raises:
        InvalidRequest: EPOCHS_EXHAUSTED.
    """
    place = sorted(map(_order, members)).index(min(map(_order, voters)))
    wanted = _HALF + place % _HALF
    return _checked(latest + 1 + (wanted - latest - 1) % BLOCK)


def _order(member: Member) -> tuple[str, str, str, int]:
    return member.region, member.dc, member.name, member.node_id


def _checked(epoch: int) -> int:
    if epoch > MAX_EPOCH:
        raise InvalidRequest("EPOCHS_EXHAUSTED", f"epoch {epoch} has no place in a versionstamp", phase="failover")
    return epoch
