"""Who owns a data directory: the lock of the process, and the identity of the node.

A node id is minted once and bound to its directory: an empty directory never starts under a used id, because
a voter that forgot its vote could vote twice. The identity file is written whole, synced and renamed into
place; a checksum covers it. It begins without a cluster; bootstrap and adoption bind the cluster id, the epoch
and the first membership in one such write, once.
"""

from __future__ import annotations

import base64
import json
from dataclasses import MISSING, asdict, dataclass, fields, replace
from random import Random
from zlib import crc32

from kvnode.base.errors import ConfigError, StorageFailed
from kvnode.storage.disk import DirectoryLock, Disk

IDENTITY_NAME = "identity.json"
LOCK_NAME = "lock"
FORMAT_VERSION = 1
_OWNED_NAMES = ("log", "state")
_NODE_ID_BITS = 63


@dataclass(frozen=True, slots=True)
class Identity:
    """What a data directory says of its node.

    Attributes:
        node_id: 63 bits, never 0, minted at random.
        name, region, dc: as the node was first started.
        cluster_id: empty until the node bootstrapped a cluster or was adopted by one.
        epoch, initial_membership: of the moment the cluster id was bound; the membership is encoded.
        storage_created: the log and the state were there once: if they are missing, they were lost.
    """

    node_id: int
    name: str
    region: str
    dc: str
    cluster_id: str = ""
    epoch: int = 0
    initial_membership: bytes = b""
    storage_created: bool = False


_FIELDS = frozenset(field.name for field in fields(Identity))
_REQUIRED_FIELDS = frozenset(field.name for field in fields(Identity) if field.default is MISSING)


class DataDirectory:
    """A data directory that this process holds. Made by `open`; `close` lets it go."""

    def __init__(self, disk: Disk, path: str, lock: DirectoryLock) -> None:
        self._disk = disk
        self._path = path
        self._lock = lock

    @property
    def path(self) -> str:
        """The directory."""
        return self._path

    @classmethod
    def open(cls, disk: Disk, path: str) -> DataDirectory:
        """Take the directory, making it if it is absent.

        Raises:
            StorageFailed: another process holds it (code DATA_DIRECTORY_IN_USE), or the disk failed.
        """
        try:
            disk.make_directory(path)
            lock = disk.lock(f"{path}/{LOCK_NAME}")
        except BlockingIOError as error:
            raise StorageFailed(
                f"another process uses the data directory {path}: stop it, or start this node with a directory"
                " of its own (--data-dir)",
                code="DATA_DIRECTORY_IN_USE",
            ) from error
        except OSError as error:
            raise StorageFailed(f"cannot use the data directory {path}: {error}") from error
        return cls(disk, path, lock)

    async def identity(self, *, name: str, region: str, dc: str, random_source: Random) -> Identity:
        """The node's identity; a new one is minted in an empty directory.

        Args:
            name, region, dc: what the configuration says; must be what the identity says.
            random_source: the node id comes from it.

        Raises:
            ConfigError: the directory belongs to a node with another name, region or data center.
            StorageFailed: the identity is damaged (IDENTITY_DAMAGED), or missing beside a log or a state
                (IDENTITY_MISSING), or of another version (IDENTITY_UNKNOWN_FORMAT), or the disk failed.
        """
        try:
            known = self._load()
            if known is None:
                self._check_empty()
                return await self._store(Identity(_mint(random_source), name, region, dc))
        except OSError as error:
            raise StorageFailed(f"cannot read or write the identity in {self._path}: {error}") from error
        if (known.name, known.region, known.dc) != (name, region, dc):
            raise ConfigError(
                f"the data directory {self._path} belongs to node {known.name!r} in {known.region}/{known.dc}, but"
                f" the configuration says {name!r} in {region}/{dc}: correct it, or name another --data-dir"
            )
        return known

    async def bind(self, identity: Identity, cluster_id: str, epoch: int, initial_membership: bytes) -> Identity:
        """Make the node part of a cluster, durably and once.

        Returns the new identity. Raises StorageFailed: it is part of another cluster (CLUSTER_MISMATCH), or
        the disk failed.
        """
        if identity.cluster_id == cluster_id:
            return identity
        if identity.cluster_id:
            raise StorageFailed(
                f"the data directory {self._path} belongs to cluster {identity.cluster_id}, not {cluster_id}",
                code="CLUSTER_MISMATCH",
            )
        return await self._update(
            replace(identity, cluster_id=cluster_id, epoch=epoch, initial_membership=initial_membership)
        )

    async def confirm_storage(self, identity: Identity) -> Identity:
        """Remember durably that log and state exist: from now on their absence is loss, not a first start."""
        if identity.storage_created:
            return identity
        return await self._update(replace(identity, storage_created=True))

    def close(self) -> None:
        """Let another process in."""
        self._lock.release()

    async def _update(self, identity: Identity) -> Identity:
        try:
            return await self._store(identity)
        except OSError as error:
            raise StorageFailed(f"cannot write the identity in {self._path}: {error}") from error

    def _load(self) -> Identity | None:
        path = f"{self._path}/{IDENTITY_NAME}"
        try:
            file = self._disk.open(path)
        except FileNotFoundError:
            return None
        data = file.read(0, file.size())
        file.close()
        return _decode(data, path)

    def _check_empty(self) -> None:
        for name in _OWNED_NAMES:
            path = f"{self._path}/{name}"
            if self._disk.exists(path) and self._disk.list_directory(path):
                raise StorageFailed(
                    f"the data directory {self._path} holds {name}/ but no {IDENTITY_NAME}: this node cannot know who"
                    " it is. Put the file back from where the directory was copied, or start with an empty"
                    " directory and let the cluster replace this node",
                    code="IDENTITY_MISSING",
                )

    async def _store(self, identity: Identity) -> Identity:
        path = f"{self._path}/{IDENTITY_NAME}"
        fresh = f"{path}.new"
        file = self._disk.open(fresh, create=True)
        try:
            file.truncate(0)
            file.write(0, _encode(identity))
            await file.sync()
        finally:
            file.close()
        self._disk.rename(fresh, path)
        await self._disk.sync_directory(self._path)
        return identity


def _mint(random_source: Random) -> int:
    while not (node_id := random_source.getrandbits(_NODE_ID_BITS)):
        pass
    return node_id


def _encode(identity: Identity) -> bytes:
    """One line of JSON for people, and a line with its CRC-32."""
    described = asdict(identity) | {
        "format": FORMAT_VERSION,
        "initial_membership": base64.b64encode(identity.initial_membership).decode(),
    }
    body = json.dumps(described).encode()
    return b"%s\n%08x\n" % (body, crc32(body))


def _decode(data: bytes, path: str) -> Identity:
    body, _, checksum = data.partition(b"\n")
    if checksum != b"%08x\n" % crc32(body):
        raise StorageFailed(
            f"the identity {path} is damaged: put it back from a copy, or let the cluster replace this node and"
            " start it with an empty directory",
            code="IDENTITY_DAMAGED",
        )
    described = json.loads(body)
    version = described.pop("format", None)
    if version != FORMAT_VERSION:
        raise _strange(path, f"has format {version}; this version of kvnode reads {FORMAT_VERSION}")
    if unknown := sorted(described.keys() - _FIELDS):
        raise _strange(path, f"has fields that are unknown to this version of kvnode: {', '.join(unknown)}")
    if missing := sorted(_REQUIRED_FIELDS - described.keys()):
        raise _strange(path, f"lacks fields that this version of kvnode needs: {', '.join(missing)}")
    encoded = described.pop("initial_membership", "")
    return Identity(**described, initial_membership=base64.b64decode(encoded))


def _strange(path: str, what: str) -> StorageFailed:
    """A whole file of another version. To pass over what it says might forget what the node was bound to."""
    return StorageFailed(
        f"the identity {path} {what}. Start the node with the version of kvnode that wrote the file, most likely a "
        "newer one; nothing was changed",
        code="IDENTITY_UNKNOWN_FORMAT",
    )
