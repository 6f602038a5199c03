"""The errors that reach a user: a stable code, what was wrong, and what to do.

`code` is part of the API: docs/reference/errors.md names each of them.
"""

from __future__ import annotations


class KvError(Exception):
    """An operation failed.

    Args:
        code: a stable upper-case name, for example KEY_TOO_LARGE.
        message: what was wrong and what to do, in one or two sentences.
        phase: where: validate, dial, tls, auth, leader, commit, read, admin, storage.
        endpoint: the node that answered or could not be reached; empty if unknown.
        not_applied: True when the operation is known to have changed nothing.
    """

    def __init__(
        self, code: str, message: str, *, phase: str = "validate", endpoint: str = "", not_applied: bool = True
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.phase = phase
        self.endpoint = endpoint
        self.not_applied = not_applied

    def __str__(self) -> str:
        where = f" at {self.endpoint}" if self.endpoint else ""
        return f"{self.message} [{self.code}, phase {self.phase}{where}]"


class InvalidRequest(KvError):
    """The request itself is wrong; sending it again cannot help, but for QueueFull."""


class QueueFull(InvalidRequest):
    """The queue holds as many undelivered messages as it may; when consumers have made room the same may succeed."""

    def __init__(self, message: str) -> None:
        super().__init__("QUEUE_FULL", message)


class NotLeader(KvError):
    """This node may not answer; the operation was not applied and may go to the leader."""

    def __init__(self, message: str = "this node is not the leader", *, leader_id: int = 0) -> None:
        super().__init__("NOT_LEADER", message, phase="leader")
        self.leader_id = leader_id


class Unavailable(KvError):
    """No leader or no room just now; the operation was not applied and may be sent again."""

    def __init__(self, message: str, *, code: str = "UNAVAILABLE", phase: str = "leader") -> None:
        super().__init__(code, message, phase=phase)


class OutcomeUnknown(KvError):
    """The write may or may not have been applied; resend it under the same request id to settle it."""

    def __init__(self, message: str, *, code: str = "OUTCOME_UNKNOWN", phase: str = "commit") -> None:
        super().__init__(code, message, phase=phase, not_applied=False)


class DeadlineExceeded(KvError):
    """The time given to an operation ran out before it could have any effect."""

    def __init__(self, message: str, *, phase: str, endpoint: str = "") -> None:
        super().__init__("DEADLINE_EXCEEDED", message, phase=phase, endpoint=endpoint)


class Unauthenticated(KvError):
    """Nobody knows who calls: no token, a wrong one, an expired or a revoked one."""

    def __init__(self, message: str, *, code: str = "ACCESS_TOKEN_INVALID") -> None:
        super().__init__(code, message, phase="auth")


class Forbidden(KvError):
    """The caller is known and may not do this, or the database's mode does not allow it."""

    def __init__(self, message: str, *, code: str = "TOKEN_READ_ONLY") -> None:
        super().__init__(code, message, phase="auth")


class RateLimited(KvError):
    """The caller's token has used up its requests or bytes for now."""

    def __init__(self, message: str, *, code: str = "RATE_LIMITED") -> None:
        super().__init__(code, message, phase="auth")


class NotFound(KvError):
    """What the request names does not exist, or not any more."""

    def __init__(self, message: str, *, code: str = "DATABASE_NOT_FOUND", phase: str = "auth") -> None:
        super().__init__(code, message, phase=phase)


class TooStale(KvError):
    """No node whose state is as new as the read or watch demands could be reached."""

    def __init__(self, message: str) -> None:
        super().__init__("TOO_STALE", message, phase="read")


class VersionstampLost(KvError):
    """The write that the versionstamp names did not survive a failover; no state will ever show it."""

    def __init__(self, message: str) -> None:
        super().__init__("VERSIONSTAMP_LOST", message, phase="read")


class StorageFailed(KvError):
    """A disk or file failed; the node takes no further part in commits."""

    def __init__(self, message: str, *, code: str = "STORAGE_FAILED") -> None:
        super().__init__(code, message, phase="storage", not_applied=False)


class LogDamaged(StorageFailed):
    """A part of the log that had been fsynced is damaged or missing: rebuild under a new node id."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="LOG_DAMAGED")


class StateDamaged(StorageFailed):
    """The state does not match its digest, or SQLite cannot read it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="STATE_DAMAGED")


class ConfigError(KvError):
    """The configuration is wrong; the node does not start."""

    def __init__(self, message: str) -> None:
        super().__init__("CONFIG_INVALID", message, phase="config")
