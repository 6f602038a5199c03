"""The names of databases: what a URL's path and a call's metadata can carry, and no route of the server's own."""

from __future__ import annotations

import re
import uuid

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest

DEFAULT_NAME = "default"
RESERVED_NAMES = frozenset(
    {"databases", "data", "eventual", "v2", "queues", "kvnode.js", "health", "metrics", "admin", DEFAULT_NAME}
)
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


def check_name(name: str) -> None:
    """Refuse a name that no database may bear. Raises InvalidRequest: DATABASE_NAME_INVALID."""
    if name in RESERVED_NAMES:
        raise _invalid(f"the name '{name}' is reserved; choose another one")
    if not _NAME.fullmatch(name) or len(name) > limits.MAX_DATABASE_NAME_CHARACTERS_COUNT:
        raise _invalid(
            f"{name!r} is no name for a database: 1 to {limits.MAX_DATABASE_NAME_CHARACTERS_COUNT} of the letters a-z, "
            "digits and hyphens, not a hyphen at either end"
        )
    if is_uuid(name):
        raise _invalid(f"'{name}' has the form of a uuid, by which another database could be meant; choose a name")


def is_uuid(text: str) -> bool:
    """Whether it has the form of a database's uuid."""
    return _UUID.fullmatch(text) is not None


def default_uuid(cluster_id: str) -> str:
    """The uuid of the default database: of the cluster, so that one that is older than its directory has it too."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"kvnode:{cluster_id}:default"))


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest("DATABASE_NAME_INVALID", message)
