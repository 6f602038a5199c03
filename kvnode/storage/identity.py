"""Who a data directory is: its lock, its node id, and the cluster it belongs to.

A node id is minted once, with the directory, and never used again: a node that came back under its old id with an
empty disk would vote a second time in a term, or deny what it had acknowledged. So an identity is only ever made in
an empty directory, and a directory with a log or a state but no identity is refused.
"""

from __future__ import annotations

import base64
import json
import random
from dataclasses import asdict, dataclass, replace
from zlib import crc32

from kvnode.base.errors import ConfigError, KvError, StorageFailed
from kvnode.storage.disk import DirectoryLock, Disk

IDENTITY_NAME = "identity.json"
LOCK_NAME = "LOCK"
FORMAT_VERSION = 1
_TEMPORARY_NAME = "identity.json.new"
_BELONGING = ("log", "state")  # what only a directory with an identity may hold


@dataclass(frozen=True, slots=True)
class Identity:
    """What the identity file holds. `cluster_id` is empty until the node is bootstrapped or adopted."""

    node_id: int
    name: str
    region: str
    dc: str
    cluster_id: str = ""
    epoch: int = 0
    initial_membership: bytes = b""  # of the cluster's first voters; empty for one that joined later


class DataDirectory:
    """A locked data directory. `close` gives the lock back."""

    def __init__(self, disk: Disk, path: str, lock: DirectoryLock) -> None:
        self._disk = disk
        self._lock = lock
        self.path = path

    @classmethod
    def open(cls, disk: Disk, path: str) -> DataDirectory:
        """Make the directory if need be, and lock it. Raises ConfigError, StorageFailed."""
        try:
            disk.make_directory(path)
            lock = disk.lock(f"{path}/{LOCK_NAME}")
        except BlockingIOError:
            raise ConfigError(
                f"the data directory {path} is in use by another kvnode process: stop that one, or give this one a "
                "directory of its own with --data-dir"
            ) from None
        except OSError as error:
            raise StorageFailed(f"the data directory {path} cannot be used: {error.strerror or error}") from error
        return cls(disk, path, lock)

    async def identity(self, *, name: str, region: str, dc: str, random_source: random.Random) -> Identity:
        """Read the identity, or mint one in an empty directory.

        Args:
            name, region, dc: of the configuration; they must be those that the directory was made with.
            random_source: for a new node id (63 bits, never 0).

        Raises:
            ConfigError: the directory is another node's.
            StorageFailed: the file is damaged, or is missing beside a log or a state.
        """
        known = self._read()
        if known is None:
            self._refuse_orphans()
            known = Identity(random_source.getrandbits(63) | 1, name, region, dc)
            await self._write(known)
            return known
        for field, wanted in (("name", name), ("region", region), ("dc", dc)):
            if getattr(known, field) != wanted:
                raise ConfigError(
                    f"the data directory {self.path} belongs to a node with the {field} '{getattr(known, field)}', "
                    f"and the configuration says '{wanted}': use the directory's own {field}, or another directory"
                )
        return known

    async def bind(self, identity: Identity, cluster_id: str, epoch: int, initial_membership: bytes) -> Identity:
        """Record, durably, that the node belongs to a cluster from now on.

        Raises:
            KvError: MEMBER_OF_ANOTHER_CLUSTER.
        """
        if identity.cluster_id not in ("", cluster_id):
            raise KvError(
                "MEMBER_OF_ANOTHER_CLUSTER",
                f"this node belongs to cluster {identity.cluster_id} and not to {cluster_id}",
                phase="admin",
            )
        bound = replace(identity, cluster_id=cluster_id, epoch=epoch, initial_membership=initial_membership)
        await self._write(bound)
        return bound

    def close(self) -> None:
        """Let another process in."""
        self._lock.release()

    def _read(self) -> Identity | None:
        path = f"{self.path}/{IDENTITY_NAME}"
        if not self._disk.exists(path):
            return None
        file = self._disk.open(path)
        try:
            data = file.read(0, file.size())
        finally:
            file.close()
        return _decode(data, path)

    def _refuse_orphans(self) -> None:
        for name in _BELONGING:
            if self._disk.exists(f"{self.path}/{name}"):
                raise StorageFailed(
                    f"{self.path} holds a {name} but no {IDENTITY_NAME}: whose they are cannot be known. Start with an "
                    "empty directory and `kvnode member replace` the old node",
                    code="IDENTITY_MISSING",
                )

    async def _write(self, identity: Identity) -> None:
        temporary, path = f"{self.path}/{_TEMPORARY_NAME}", f"{self.path}/{IDENTITY_NAME}"
        try:
            if self._disk.exists(temporary):
                self._disk.remove(temporary)
            file = self._disk.open(temporary, create=True)
            try:
                file.write(0, _encode(identity))
                await file.sync()
            finally:
                file.close()
            self._disk.rename(temporary, path)
            await self._disk.sync_directory(self.path)
        except OSError as error:
            raise StorageFailed(f"{path} cannot be written: {error.strerror or error}") from error


def _encode(identity: Identity) -> bytes:
    fields = asdict(identity)
    fields["initial_membership"] = base64.b64encode(identity.initial_membership).decode()
    body = json.dumps({"format": FORMAT_VERSION, **fields}, sort_keys=True)
    return json.dumps({"checksum": crc32(body.encode()), "identity": body}, indent=1).encode()


def _decode(data: bytes, path: str) -> Identity:
    try:
        outer = json.loads(data)
        body = outer["identity"]
        if crc32(body.encode()) != outer["checksum"]:
            raise ValueError("its checksum does not match")
        fields = json.loads(body)
        version = fields.pop("format")
        if version != FORMAT_VERSION:
            raise ValueError(f"its format {version} is not known to this version")
        fields["initial_membership"] = base64.b64decode(fields["initial_membership"])
        return Identity(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageFailed(
            f"the identity file {path} is damaged ({error}): restore it from a copy, or start with an empty directory "
            "and `kvnode member replace` the old node",
            code="IDENTITY_DAMAGED",
        ) from error
