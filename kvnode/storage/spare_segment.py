"""The next segment, made before it is needed, so that moving on to it costs an append nothing."""

from __future__ import annotations

import asyncio

from kvnode.storage.disk import Disk, File
from kvnode.storage.segment import segment_name


class SpareSegment:
    """Makes the file that will be the next segment: full size, zeros, durable with its name.

    Args:
        segment_bytes: its size.
    """

    def __init__(self, disk: Disk, directory: str, segment_bytes: int) -> None:
        self._disk = disk
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._task: asyncio.Task[File | OSError] | None = None

    def prepare(self, sequence: int) -> None:
        """Begin to make the segment `sequence` in the background, unless that was begun."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._make(sequence), name="next log segment")
            self._task.add_done_callback(_look)

    async def take(self, sequence: int) -> File:
        """The finished file. Raises OSError if it could not be made; the next call tries again."""
        self.prepare(sequence)
        task = self._task
        assert task is not None
        made = await asyncio.shield(task)
        self._task = None
        if isinstance(made, OSError):
            raise made
        return made

    async def _make(self, sequence: int) -> File | OSError:
        file: File | None = None
        try:
            file = self._disk.open(f"{self._directory}/{segment_name(sequence)}", create=True)
            await file.allocate(self._segment_bytes)
            await self._disk.sync_directory(self._directory)
        except OSError as error:
            if file is not None:
                file.close()
            return error
        return file

    async def close(self) -> None:
        """Wait for what was begun and release it; the file stays for the next start."""
        if self._task is not None:
            made = await self._task
            if not isinstance(made, OSError):
                made.close()


def _look(task: asyncio.Task[File | OSError]) -> None:
    """Whatever went wrong is raised by take(); asyncio need not complain when nobody comes to take."""
    if not task.cancelled():
        task.exception()
