"""Numbers as callers give them, judged before they go into a message of the protocol, which has errors of its own."""

from __future__ import annotations

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.machine.queue.errors import bad_deadline

_MAX_UINT32 = (1 << 32) - 1


def whole_number(value: float, least: int, most: int) -> int | None:
    """The whole number nearest to `value`; None if it is none from `least` to `most`: not finite, or no number."""
    if isinstance(value, bool):
        return None  # round(True) is 1, and nobody means that
    try:
        found = round(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if least <= found <= most else None


def parse_timeout_ms(timeout_ms: float) -> int:
    """A caller's patience in milliseconds. Raises InvalidRequest: BAD_TIMEOUT."""
    found = whole_number(timeout_ms, 1, limits.MAX_CLIENT_TIMEOUT_MS)
    if found is None:
        raise InvalidRequest(
            "BAD_TIMEOUT",
            f"timeout_ms is {timeout_ms!r}: give 1 to {limits.MAX_CLIENT_TIMEOUT_MS} milliseconds (30 days).",
        )
    return found


def parse_delay_ms(delay: float) -> int:
    """Milliseconds until a message is delivered. Raises InvalidRequest: BAD_DEADLINE."""
    found = whole_number(delay, 0, limits.MAX_QUEUE_DELAY_MS)
    if found is None:
        raise bad_deadline(f"The delay is {delay!r}")
    return found


def parse_backoff_ms(interval: float) -> int:
    """Milliseconds before a further attempt; the node judges how long. Raises InvalidRequest: BAD_DEADLINE."""
    return _required(
        interval,
        0,
        _MAX_UINT32,
        "BAD_DEADLINE",
        f"An interval of backoff_schedule is {interval!r}: each is 0 to {limits.MAX_BACKOFF_INTERVAL_MS} ms (an hour).",
    )


def parse_lease_ms(lease_ms: float) -> int:
    """How long the leases of a listener last, 0 = the default. Raises InvalidRequest: BAD_LEASE_TIME."""
    found = whole_number(lease_ms, 0, limits.MAX_QUEUE_LEASE_MS)
    if found is None or 0 < found < limits.MIN_QUEUE_LEASE_MS:
        raise InvalidRequest(
            "BAD_LEASE_TIME",
            f"lease_ms is {lease_ms!r}: give {limits.MIN_QUEUE_LEASE_MS} to {limits.MAX_QUEUE_LEASE_MS} ms, or 0 for "
            f"{limits.DEFAULT_QUEUE_LEASE_MS}.",
        )
    return found


def parse_concurrency(concurrency: float) -> int:
    """How many messages a listener may hold. Raises InvalidRequest: BAD_CONCURRENCY."""
    most = limits.MAX_CONSUMER_IN_FLIGHT_COUNT
    refusal = f"concurrency is {concurrency!r}: give 1 to {most}, how many messages may be held at a time."
    return _required(concurrency, 1, most, "BAD_CONCURRENCY", refusal)


def parse_count(name: str, count: float, least: int, most: int) -> int:
    """How many are asked for by the argument called `name`. Raises InvalidRequest: BAD_COUNT."""
    return _required(count, least, most, "BAD_COUNT", f"{name} is {count!r}: give a number from {least} to {most}.")


def parse_push_limit(name: str, value: float) -> int:
    """A limit of a push, 0 = as it is; the node judges how large. Raises InvalidRequest: BAD_PUSH_LIMIT."""
    return _required(
        value, 0, _MAX_UINT32, "BAD_PUSH_LIMIT", f"{name} is {value!r}: give a number within its bounds, or 0."
    )


def parse_flag(name: str, value: object) -> bool:
    """The argument called `name`. Raises TypeError: to Python "false" is true, as every text is."""
    if isinstance(value, int):
        return bool(value)
    raise TypeError(f"{name} is {value!r}: give True or False")


def _required(value: float, least: int, most: int, code: str, refusal: str) -> int:
    found = whole_number(value, least, most)
    if found is None:
        raise InvalidRequest(code, refusal)
    return found
