"""Limits on what one token may ask of this node in a second.

Two token buckets (requests and bytes), each holding one second's worth. A request passes while both are above zero and
is then taken from them, so that one larger than a second's bytes passes too, and is paid for afterwards. Each node
counts what it serves itself: through n nodes a client gets up to n times the limit.
"""

from __future__ import annotations

from kvnode.base.errors import RateLimited


class RateLimit:
    """The buckets of one token.

    Args:
        requests_per_second, bytes_per_second: 0 = no limit.
        now_ms: a monotonic time.
    """

    __slots__ = ("_bytes", "_bytes_left", "_requests", "_requests_left", "_then_ms")

    def __init__(self, requests_per_second: int, bytes_per_second: int, now_ms: float) -> None:
        self._requests = requests_per_second
        self._bytes = bytes_per_second
        self._requests_left = float(requests_per_second)
        self._bytes_left = float(bytes_per_second)
        self._then_ms = now_ms

    @property
    def limits(self) -> tuple[int, int]:
        """Requests and bytes a second."""
        return self._requests, self._bytes

    def take(self, size_bytes: int, now_ms: float) -> None:
        """Count one request. Raises RateLimited, and counts nothing, when there is none left."""
        passed_s = max(0.0, now_ms - self._then_ms) / 1000
        self._then_ms = now_ms
        self._requests_left = min(self._requests, self._requests_left + passed_s * self._requests)
        self._bytes_left = min(self._bytes, self._bytes_left + passed_s * self._bytes)
        if self._requests and self._requests_left < 1:
            raise _limited(f"{self._requests} requests", (1 - self._requests_left) / self._requests)
        if self._bytes and self._bytes_left <= 0:
            raise _limited(f"{self._bytes} bytes", -self._bytes_left / self._bytes)
        self._requests_left -= 1
        self.charge(size_bytes)

    def charge(self, size_bytes: int) -> None:
        """Count bytes of a request that has passed."""
        self._bytes_left -= size_bytes


def _limited(what: str, wait_s: float) -> RateLimited:
    wait_ms = max(1, round(wait_s * 1000))
    return RateLimited(
        f"This token may ask this node for {what} a second and has used them up. Nothing was done: send it again in "
        f"{wait_ms} ms, send less, or use a token with other limits."
    )
