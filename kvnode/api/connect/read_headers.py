"""Headers of our own, beside a protocol that has no place for what they say.

Of a request, on any endpoint:

    x-kvnode-max-staleness-ms: 2000                    how old the state of an eventual read may be
    x-kvnode-min-versionstamp: 00010000000000a1ffff    the state must hold this commit (read your writes)

Of the answer to a read on the endpoints `eventual` and `local`, and of the first frame of any watch:

    x-kvnode-age-ms: 612                               how old the state may be; -1 = not known
    x-kvnode-versionstamp: 00010000000000a1ffff        of the state that was read
"""

from __future__ import annotations

from kvnode.api.http import HttpError, Request
from kvnode.codec.versionstamp import VERSIONSTAMP_BYTES
from kvnode.proto.kv.v1 import kv_pb2

MAX_STALENESS = "x-kvnode-max-staleness-ms"
MIN_VERSIONSTAMP = "x-kvnode-min-versionstamp"
AGE = "x-kvnode-age-ms"
VERSIONSTAMP = "x-kvnode-versionstamp"
_MAX_DIGITS_COUNT = 15
_MAX_SHOWN_COUNT = 40  # characters of a wrong value, in the answer


def apply_request_headers(request: Request, read: kv_pb2.ReadRequest) -> None:
    """Put what the headers ask for into a read. Raises HttpError(400)."""
    staleness = request.header(MAX_STALENESS)
    if staleness:
        read.max_staleness_ms = _milliseconds(staleness)
    stamp = request.header(MIN_VERSIONSTAMP)
    if stamp:
        read.min_versionstamp = _stamp(stamp)


def response_headers(response: kv_pb2.ReadResponse) -> tuple[tuple[str, str], ...]:
    """What the answer to a read says of its state."""
    return (AGE, str(response.age_ms)), (VERSIONSTAMP, response.versionstamp.hex())


def watch_headers(first: kv_pb2.WatchResponse) -> tuple[tuple[str, str], ...]:
    """What the answer to a watch says of the state of its first frame."""
    return (AGE, str(first.age_ms)), (VERSIONSTAMP, first.versionstamp.hex())


def _milliseconds(text: str) -> int:
    # The length first: int() raises on its own beyond some thousands of digits.
    is_number = text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS_COUNT
    if not is_number or int(text) == 0:
        raise HttpError(
            400,
            f"{MAX_STALENESS} is a whole number of milliseconds above 0, of at most {_MAX_DIGITS_COUNT} digits, "
            f"not {_shown(text)}.",
        )
    return int(text)


def _shown(text: str) -> str:
    return repr(text) if len(text) <= _MAX_SHOWN_COUNT else f"{text[:_MAX_SHOWN_COUNT]!r}..."


def _stamp(text: str) -> bytes:
    try:
        stamp = bytes.fromhex(text)
    except ValueError:
        stamp = b""
    if len(stamp) != VERSIONSTAMP_BYTES:
        raise HttpError(400, f"{MIN_VERSIONSTAMP} is a versionstamp of 20 hexadecimal digits, not {_shown(text)}.")
    return stamp
