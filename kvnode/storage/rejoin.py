"""Letting go of a history that a failover has ended, and beginning anew as a replica, whatever a crash interrupts.

Theory of operation. State is never edited back (what was applied cannot be taken out), so both state and log are given
up and come again from the others. A file, `rejoin.json`, is the decision: once it is durable, every start carries it
out before anything else reads log or state, and removes it at the end. Each step may be repeated.

What stays is the hard state: the node keeps its id, so it must not forget a term, a vote or a promise. That the id may
stay although the log goes: the node's copies were counted for commits of the epoch that has ended, whose end is
decided; in the epoch that has begun it is no voter, and one again only after it was brought up to date and promoted.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from zlib import crc32

from kvnode.base.errors import StorageFailed
from kvnode.codec.epoch import FIRST_EPOCH
from kvnode.codec.row import Row
from kvnode.storage.disk import Disk
from kvnode.storage.generations import create_empty_state
from kvnode.storage.log import Log
from kvnode.storage.state_errors import storage_errors
from kvnode.storage.state_tables import StateMeta

_NAME = "rejoin.json"


class RejoiningState(Protocol):
    """What is needed of a State."""

    @property
    def meta(self) -> StateMeta:
        """See State."""

    @property
    def incoming_directory(self) -> Path:
        """See State."""

    async def install_snapshot(self, path: Path, *, index: int, term: int) -> StateMeta:
        """See State."""

    def apply(
        self,
        writes: Mapping[bytes, Row | None],
        *,
        applied_index: int,
        applied_term: int,
        log_time_ms: int,
        epoch: int,
        membership: bytes | None = None,
    ) -> StateMeta:
        """See State."""

    async def make_durable(self) -> None:
        """See State."""


async def decide_to_rejoin(disk: Disk, directory: str, membership: bytes) -> None:
    """Make it durable that this node is to begin anew, as a member of `membership`. Raises StorageFailed."""
    body = json.dumps({"membership": base64.b64encode(membership).decode()}).encode()
    path = f"{directory}/{_NAME}"
    try:
        file = disk.open(f"{path}.new", create=True)
        try:
            file.truncate(0)
            file.write(0, b"%s\n%08x\n" % (body, crc32(body)))
            await file.sync()
        finally:
            file.close()
        disk.rename(f"{path}.new", path)
        await disk.sync_directory(directory)
    except OSError as error:
        raise StorageFailed(f"cannot write {path}: {error}") from error


async def rejoin_if_decided(disk: Disk, directory: str, log: Log, state: RejoiningState) -> bool:
    """Carry the decision out if there is one; True when log and state are those of a new replica.

    Raises StorageFailed. A damaged log is left alone, as evidence.
    """
    path = f"{directory}/{_NAME}"
    if not disk.exists(path) or log.damage is not None:
        return False
    with storage_errors(Path(path)):
        membership = _read(disk, path)
    empty = state.incoming_directory / "empty.db"
    with storage_errors(empty):
        empty.parent.mkdir(parents=True, exist_ok=True)
        create_empty_state(empty)
    await state.install_snapshot(empty, index=0, term=0)
    await log.reset(0, 0, discard=True)
    # The epoch is that of what the state holds, not of what the node knows: reads would take an empty state in a later
    # epoch for one that is beyond all versionstamps of the earlier ones.
    state.apply({}, applied_index=0, applied_term=0, log_time_ms=0, epoch=FIRST_EPOCH, membership=membership)
    await state.make_durable()
    with storage_errors(Path(path)):
        disk.remove(path)
        await disk.sync_directory(directory)
    return True


def _read(disk: Disk, path: str) -> bytes:
    file = disk.open(path)
    try:
        body, _, checksum = file.read(0, file.size()).partition(b"\n")
    finally:
        file.close()
    if checksum != b"%08x\n" % crc32(body):
        raise StorageFailed(f"{path} is damaged: let the cluster replace this node", code="IDENTITY_DAMAGED")
    return base64.b64decode(json.loads(body)["membership"])
