"""Exit statuses: what a script may rely on. docs/reference/cli.md shows this table."""

from __future__ import annotations

from enum import IntEnum

from kvnode.base.errors import (
    ConfigError,
    InvalidRequest,
    KvError,
    NotFound,
    OutcomeUnknown,
    RateLimited,
    StorageFailed,
    VersionstampLost,
)


class Exit(IntEnum):
    """The process's exit status."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CHECK_FAILED = 3
    UNAVAILABLE = 4
    OUTCOME_UNKNOWN = 5
    NOT_FOUND = 6
    UNHEALTHY = 7
    DENIED = 8
    INTERRUPTED = 130


MEANINGS: dict[Exit, str] = {
    Exit.OK: "done",
    Exit.FAILED: "it failed at the node, or in a way that has no status of its own; nothing was changed",
    Exit.USAGE: "a flag, key, value or configuration is wrong, or the node refused the request; nothing was changed",
    Exit.CHECK_FAILED: "a check of the transaction did not hold; nothing was changed",
    Exit.UNAVAILABLE: "no node answered, or there was no leader, within the time given; nothing was changed",
    Exit.OUTCOME_UNKNOWN: (
        "the write was sent and not confirmed: it may or may not have been applied; failover: it broke off after nodes "
        "had promised to leave the primary"
    ),
    Exit.NOT_FOUND: "get: the key does not exist; else: no database, token, queue or cron has that name or id",
    Exit.UNHEALTHY: "status: something is wrong with the cluster; the first line says what",
    Exit.DENIED: "the node refused the caller: no token, a wrong one, one that may not do this; or the database's mode",
    Exit.INTERRUPTED: "interrupted by Ctrl-C",
}

_NOT_FOUND_CODES = frozenset({"CRON_NOT_FOUND"})  # by which a transaction is refused that names what is not there
_UNAVAILABLE_PHASES = frozenset({"dial", "tls", "leader", "commit", "read"})


def exit_of(error: KvError) -> Exit:
    """The exit status for an error."""
    if isinstance(error, OutcomeUnknown):
        return Exit.OUTCOME_UNKNOWN
    if isinstance(error, NotFound) or error.code in _NOT_FOUND_CODES:
        return Exit.NOT_FOUND
    if isinstance(error, InvalidRequest | ConfigError):
        return Exit.USAGE
    if isinstance(error, RateLimited):
        return Exit.UNAVAILABLE
    if error.phase == "auth":
        return Exit.DENIED
    if isinstance(error, StorageFailed | VersionstampLost):  # to ask again, here or elsewhere, cannot help
        return Exit.FAILED
    return Exit.UNAVAILABLE if error.phase in _UNAVAILABLE_PHASES else Exit.FAILED
