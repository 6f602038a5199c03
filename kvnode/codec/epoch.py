"""Epochs: the histories that failovers divide the log into, and the entry with which each begins.

The first entry of an epoch has the kind EPOCH and says which nodes vote from here on. Terms tell epochs apart: those
of epoch E are E * TERMS_PER_EPOCH and above, so that an entry of one epoch never has the index and term of an entry of
another, and the greater of two logs by Raft's comparison is also the one of the later epoch. A cluster's first epoch
has the terms below TERMS_PER_EPOCH, whatever its number is.

A SEAL is the last entry of an epoch whose primary moves as planned. It holds what the EPOCH entry behind it will hold,
byte for byte, so that whoever has applied the seal knows the entry that follows.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from kvnode.codec.entry import Entry, EntryKind
from kvnode.codec.membership import Membership, decode_membership, encode_membership

TERMS_PER_EPOCH = 1_000_000_000  # elections of one epoch; in decimal, so that 2000000003 reads as epoch 2, term 3
FIRST_EPOCH = 1  # of a cluster that was founded, and of a state that holds no entry yet
MAX_EPOCH = 65_535  # it has 16 bits of a versionstamp


class EpochStart(NamedTuple):
    """What begins an epoch.

    Attributes:
        epoch: its number.
        ballot: drawn by the failover that began it; two failovers that took one number differ here.
        region: the primary one from here on.
        membership: from here on.
        wanted_commit_dcs: what the cluster asks for where its voters stand in enough data centers.
        planned: behind a seal; nothing was lost.
    """

    epoch: int
    ballot: int
    region: str
    membership: Membership
    wanted_commit_dcs: int = 2
    planned: bool = False


def first_term(epoch: int) -> int:
    """The term of the entry that begins the epoch; the elections of its voters are in later ones."""
    return epoch * TERMS_PER_EPOCH


def epoch_of_term(term: int) -> int:
    """The epoch that a term belongs to; 0 for the cluster's first one, whatever its number."""
    return term // TERMS_PER_EPOCH


def epoch_entry(start: EpochStart, index: int) -> Entry:
    """The entry that begins the epoch, at that index."""
    return Entry(first_term(start.epoch), index, EntryKind.EPOCH, encode_epoch_start(start))


def encode_epoch_start(start: EpochStart) -> bytes:
    """JSON: rare, small, and readable in a hex dump of a damaged log. The same bytes from the same start."""
    fields = {
        "format": 1,
        "epoch": start.epoch,
        "ballot": start.ballot,
        "region": start.region,
        "wanted_commit_dcs": start.wanted_commit_dcs,
        "planned": start.planned,
        "membership": encode_membership(start.membership).decode(),
    }
    return json.dumps(fields).encode()


def decode_epoch_start(data: bytes) -> EpochStart:
    """The inverse of encode_epoch_start. Raises ValueError on anything else."""
    fields = json.loads(data)
    if fields.get("format") != 1:
        raise ValueError(f"epoch format {fields.get('format')!r} is not known; this node is too old for it")
    return EpochStart(
        int(fields["epoch"]),
        int(fields["ballot"]),
        str(fields["region"]),
        decode_membership(fields["membership"].encode()),
        int(fields["wanted_commit_dcs"]),
        bool(fields["planned"]),
    )


def membership_of(entry: Entry) -> Membership | None:
    """The membership that an entry puts in force; None when it leaves it as it is."""
    if entry.kind is EntryKind.MEMBERSHIP:
        return decode_membership(entry.data)
    if entry.kind is EntryKind.EPOCH:
        return decode_epoch_start(entry.data).membership
    return None
