"""What a transaction on queues is told when it cannot be done. Texts begin with Deno's sentence where it has one."""

from __future__ import annotations

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, QueueFull
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows


def lease_lost(lease_id: bytes) -> InvalidRequest:
    """The lease has expired, was given back, or ended with an ack or nack."""
    return InvalidRequest(
        "LEASE_LOST",
        f"The lease {lease_id.hex() or '(empty)'} is not current: it has expired, was given back, or the message was "
        "acknowledged. Nothing of this transaction was done; the message is, or was, delivered again.",
    )


def queue_full(name: str, bound: int) -> QueueFull:
    """The queue holds as many undelivered messages as it may."""
    return QueueFull(
        f"The queue '{name}' is full: it takes at most {bound} undelivered messages, and nothing was enqueued. Add "
        "consumers, or raise the bound (`kvnode queue configure --max-messages`); the same may be sent again later.",
    )


def bad_deadline(detail: str) -> InvalidRequest:
    """A delay that is negative or too long."""
    return InvalidRequest(
        "BAD_DEADLINE",
        f"Invalid mutation enqueue deadline. {detail}: a message is delayed by 0 to "
        f"{limits.MAX_QUEUE_DELAY_MS} ms (30 days).",
    )


def too_many_queues(bound: int) -> InvalidRequest:
    """The database has as many queues as it may."""
    return InvalidRequest(
        "TOO_MANY_QUEUES",
        f"The database has {bound} queues, which is the limit. Put what tells them apart into the payload, or remove "
        "one that is empty (`kvnode queue remove`).",
    )


def queue_not_empty(name: str, queue: rows.QueueRow) -> InvalidRequest:
    """A queue with messages or dead letters is not removed."""
    return InvalidRequest(
        "QUEUE_NOT_EMPTY",
        f"The queue '{name}' holds {queue.waiting_count} waiting messages, {queue.in_flight_count} in flight and "
        f"{queue.dead_count} dead letters. Purge it first (`kvnode queue purge`).",
    )


def dead_letter_not_found(dead_id: bytes, name: str) -> InvalidRequest:
    """No such dead letter, or not any more."""
    return InvalidRequest(
        "DEAD_LETTER_NOT_FOUND",
        f"The queue '{name}' has no dead letter {dead_id.hex()}: it was requeued, purged, or made room for newer "
        "ones. See `kvnode queue dead-letters`.",
    )


def unknown_action() -> InvalidRequest:
    """A newer client, or an empty message."""
    return InvalidRequest("UNKNOWN_QUEUE_ACTION", "A queue action of this write is empty or not known to this node.")


def pull_of_a_client() -> InvalidRequest:
    """Pulls travel between nodes."""
    return InvalidRequest(
        "PULL_OF_A_CLIENT",
        "A session carries no pulls, which nodes send one another. Listen to the queue (Queue.Listen), or claim its "
        "messages in a write (QueueClaim).",
    )


def cron_exists(name: str) -> InvalidRequest:
    """There is a cron of that name, and a new one was wanted."""
    return InvalidRequest(
        "CRON_EXISTS", f"There is a cron '{name}' already. Replace it (`kvnode cron create --replace`), or delete it."
    )


def cron_not_found(name: str) -> InvalidRequest:
    """No such cron."""
    return InvalidRequest("CRON_NOT_FOUND", f"There is no cron '{name}' in this database. See `kvnode cron list`.")


def too_many_crons(bound: int) -> InvalidRequest:
    """The database has as many crons as it may."""
    return InvalidRequest(
        "TOO_MANY_CRONS", f"The database has {bound} crons, which is the limit. Delete one (`kvnode cron delete`)."
    )


def too_much_credit() -> InvalidRequest:
    """A consumer wants to hold more than it may."""
    return InvalidRequest(
        "TOO_MUCH_CREDIT",
        f"A consumer has at most {limits.MAX_CONSUMER_IN_FLIGHT_COUNT} messages in flight and in credit together: "
        "acknowledge what it holds, or open another stream.",
    )
