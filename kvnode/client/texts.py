"""Texts as callers give them, judged before they go into a message of the protocol, which has errors of its own."""

from __future__ import annotations

from kvnode.base.errors import InvalidRequest

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
