"""Which endpoint to ask next, and how long to wait before that."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from kvnode.base import limits
from kvnode.base.errors import KvError
from kvnode.client.status import is_final, is_refusal


class Endpoints:
    """The addresses of a cluster in the caller's order of preference; stays with one that answers, until it is told of
    a better one (go_back).

    After a failure the next one is tried at once; only when all have failed in a row does a pause set in,
    doubled with every further round and drawn at random below its bound, so that the clients of a
    restarted node do not arrive together.

    Args:
        addresses: host:port each, at least one.
        random: where the jitter comes from.
        fail_fast: give up when every address could not be reached once, rather than wait for one to come back.
    """

    def __init__(self, addresses: Sequence[str], random: Random, *, fail_fast: bool = False) -> None:
        self._addresses = list(addresses)
        self._random = random
        self._fail_fast = fail_fast
        self._position = 0
        self._failures_count = 0
        self._last_errors: dict[str, KvError] = {}

    def __len__(self) -> int:
        return len(self._addresses)

    @property
    def current(self) -> str:
        """The address to ask now."""
        return self._addresses[self._position]

    def succeeded(self) -> None:
        """The current address gave a useful answer."""
        self._failures_count = 0
        self._last_errors.clear()

    def turn(self) -> None:
        """Ask the next one from now on: this one answers, but another may know more."""
        self._position = (self._position + 1) % len(self._addresses)

    @property
    def preferred(self) -> list[str]:
        """The addresses that stand before the current one in the caller's order."""
        return self._addresses[: self._position]

    def go_back(self, address: str) -> None:
        """Ask this one, of those that are preferred, from now on."""
        self._position = self._addresses.index(address)

    def failed(self, error: KvError) -> float:
        """The current address failed: move on. Returns the pause in milliseconds before the next attempt."""
        self._last_errors[self.current] = error
        self._position = (self._position + 1) % len(self._addresses)
        self._failures_count += 1
        rounds = self._failures_count // len(self._addresses)
        if rounds == 0:
            return 0.0
        bound = min(limits.MAX_CLIENT_BACKOFF_MS, limits.CLIENT_BACKOFF_MS * 2 ** min(rounds - 1, 10))
        return self._random.uniform(0, bound)

    @property
    def exhausted(self) -> bool:
        """Whether every address has failed since one last succeeded."""
        return len(self._last_errors) == len(set(self._addresses))

    def hopeless(self) -> KvError | None:
        """The last error, if no address can be expected to answer; else None.

        A node that refuses the caller speaks for its cluster; what merely stands before one does not.
        """
        refusal = next((error for error in self._last_errors.values() if is_refusal(error)), None)
        if refusal is not None:
            return refusal
        if not self.exhausted:
            return None
        errors = list(self._last_errors.values())
        if all(is_final(error) or (self._fail_fast and error.phase in {"dial", "tls", "auth"}) for error in errors):
            return errors[-1]
        return None
