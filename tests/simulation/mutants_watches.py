"""Planted bugs of watches, for seeds that have readers."""

from __future__ import annotations

from typing import Any

from kvnode.node.watch import KeyWatch, Watch, WatchHub
from tests.simulation.planting import Patch, replaced


def mix_two_states() -> Patch:
    """A frame takes one changed key; the others of the same run come with the next."""
    original = KeyWatch._frame

    def frame(self: KeyWatch) -> Any:
        kept = dict(list(self._slots.items())[1:]) if not self._stale else {}
        for key in kept:
            del self._slots[key]
        made = original(self)
        self._slots.update(kept)
        return made

    return replaced(KeyWatch, "_frame", frame)


def look_at_the_age_with_changes_only() -> Patch:
    """A bounded watch of keys that do not change goes on, however old the state becomes."""
    return replaced(Watch, "_wait_ms", lambda self, ping_in_ms, age_ms: 3_600_000)


def ignore_the_bound_of_a_watch() -> Patch:
    """Frames are sent whatever their age."""
    return replaced(WatchHub, "age_within", lambda self, bound_ms: self._age_ms())


def go_on_after_an_install() -> Patch:
    """A watch takes no notice of a snapshot in whose place its state came."""
    return replaced(WatchHub, "resync", lambda self: None)


def show_what_has_expired() -> Patch:
    """A row whose time has come is shown until the entry that deletes it."""
    return replaced(WatchHub, "log_time_ms", property(lambda self: 0))


WATCH_MUTANTS = (
    mix_two_states,
    look_at_the_age_with_changes_only,
    ignore_the_bound_of_a_watch,
    go_on_after_an_install,
    show_what_has_expired,
)
