"""What a node's data directory says of a snapshot that comes to it.

All of it may be over within 0.1 s, which a test's process may well stand still for on a busy machine: whoever waits for
a moment in the middle looks for the end, `is_moved`, too.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

MAX_MISSES_COUNT = 5
"""How often in a row a moment may be missed before the test gives up."""


class Install:
    """One snapshot on its way, from before the node that is to have it is started.

    Args:
        data_dir: the node's.
        size_bytes: of the snapshot.
    """

    def __init__(self, data_dir: Path, size_bytes: int) -> None:
        self._state = data_dir / "state"
        self._size_bytes = size_bytes
        self._before = self._generations()

    def _generations(self) -> set[str]:
        return {path.name for path in self._state.glob("state-*.db")}

    def held_bytes(self) -> int:
        """Of the snapshot, so far."""
        sizes = [0]
        for part in self._state.glob("incoming/*.part"):
            with contextlib.suppress(FileNotFoundError):
                sizes.append(part.stat().st_size)
        return max(sizes)

    def has_part(self, part: float) -> bool:
        """So much of it has arrived, and not all."""
        return part * self._size_bytes < self.held_bytes() < self._size_bytes

    def is_complete(self) -> bool:
        """All of it has arrived: it is being verified."""
        return self.held_bytes() == self._size_bytes

    def is_moved(self) -> bool:
        """It is verified, and is being put in the state's place, or has been."""
        return bool(self._generations() - self._before)
