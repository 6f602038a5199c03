"""Texts as callers give them, judged before they go into a message of the protocol, which has errors of its own."""

from __future__ import annotations

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.machine.queue.keys import ID_BYTES
from kvnode.machine.queue.validate import validate_queue_name

QUEUE_NAME = "BAD_QUEUE_NAME"
CRON_NAME = "BAD_CRON_NAME"
DATABASE_NAME = "DATABASE_NAME_INVALID"


def sendable(argument: str, text: str, code: str = "BAD_TEXT") -> str:
    """`text` itself, which a message can carry; what the node makes of it is the node's to say.

    Args:
        argument: what the caller knows it by.
        code: of the error.

    Raises:
        InvalidRequest: it is no str, or has half of a surrogate pair: a JavaScript string cut in the middle of a
            character, or bytes of a command line that are not UTF-8.
    """
    if not isinstance(text, str):
        raise InvalidRequest(code, f"{argument} is {text!r}: give a str.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            code,
            f"{argument} is {text!r}: the character at {error.start} is half of a surrogate pair, which UTF-8 cannot "
            "carry. Was a text cut in two, or is it not UTF-8?",
        ) from None
    return text


def listened_queue(queue: str) -> str:
    """The name of a queue that is listened to, empty for the default one. Raises InvalidRequest: BAD_QUEUE_NAME."""
    validate_queue_name(sendable("queue", queue, QUEUE_NAME))
    return queue


def consumer_name(consumer: str) -> str:
    """What a listener calls itself. Raises InvalidRequest: BAD_TEXT, CONSUMER_NAME_TOO_LONG."""
    size_bytes = len(sendable("consumer", consumer).encode())
    if size_bytes > limits.MAX_QUEUE_CONSUMER_BYTES:
        raise InvalidRequest(
            "CONSUMER_NAME_TOO_LONG",
            f"consumer is {consumer!r:.200}, of {size_bytes} bytes: a name has at most "
            f"{limits.MAX_QUEUE_CONSUMER_BYTES}.",
        )
    return consumer


def dead_letter_id(argument: str, given: bytes) -> bytes:
    """The id of a dead letter, or the b"" that stands for none. Raises InvalidRequest: BAD_DEAD_LETTER_ID."""
    if isinstance(given, bytes) and len(given) in (0, ID_BYTES):
        return given
    raise InvalidRequest(
        "BAD_DEAD_LETTER_ID",
        f"{argument} is {given!r:.200}: give the {ID_BYTES} bytes that are the `id` of a dead letter "
        "(kv.queues.dead_letters); of the digits that people see, bytes.fromhex.",
    )
