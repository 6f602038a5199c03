"""PostgreSQL as a queue, as people build it: a table, and workers that take rows FOR UPDATE SKIP LOCKED.

A caller of pgbench puts a row in and takes the one that is due first, not his own, as the callers of kvnode do whose
messages all go through one queue. Both statements are commits that a standby has confirmed. Nobody polls an empty
table and nobody is notified: that costs a real worker more, and here nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.postgres import PostgresGroup

TABLE = """
CREATE TABLE queue (id bigserial PRIMARY KEY, due timestamptz NOT NULL DEFAULT now(), payload text NOT NULL);
CREATE INDEX ON queue (due);
"""
PASS = """INSERT INTO queue (payload) VALUES (repeat('x', {bytes}));
DELETE FROM queue WHERE id = (
  SELECT id FROM queue WHERE due <= now() ORDER BY due FOR UPDATE SKIP LOCKED LIMIT 1
) RETURNING payload;
"""


class PostgresQueue(PostgresGroup):
    """A primary and two standbys with one queue."""

    def __init__(self, folder: Path, programs: Path) -> None:
        super().__init__(folder, programs)

    def start(self) -> None:
        super().start()
        self.sql(TABLE)

    def passing(self, callers: int, seconds: int, payload_bytes: int) -> dict[str, Any]:
        """Messages in and out; the same fields as the load generator's."""
        return self.pgbench("pass", " ".join(PASS.format(bytes=payload_bytes).split("\n")), callers, seconds)
