"""A directory in memory: changes go through the machine's own resolve and apply, as in a node."""

from __future__ import annotations

from kvnode.base.errors import KvError
from kvnode.machine.directory.changes import Build
from kvnode.machine.directory.rows import DIRECTORY_PREFIX, Right, TokenRow
from kvnode.machine.directory.view import DirectoryView
from kvnode.machine.keyspace import SYSTEM_DATABASE
from kvnode.machine.resolve import Resolver
from kvnode.machine.validate import validate_write
from kvnode.machine.verdict import Accepted
from tests.unit.machine.fakes import MemoryState, entry

CLUSTER_ID = "cafe"


class MemoryDirectory:
    """What one node has."""

    def __init__(self) -> None:
        self.state = MemoryState()
        self.resolver = Resolver(self.state, 1)
        self.view = DirectoryView(CLUSTER_ID)
        self.view.load([])
        self.index = 0

    def make(self, build: Build) -> bool:
        """Judge by the view, write, follow. False: another change came first."""
        return self.write(build(self.view))

    def write(self, request) -> bool:
        validate_write(request)
        self.index += 1
        batch = self.resolver.begin(self.index, self.index)
        verdict = batch.add(request, SYSTEM_DATABASE, None)
        if not isinstance(verdict, Accepted):
            self.resolver.discard(batch)
            self.index -= 1
            return False
        run = self.state.apply([entry(self.index, batch.payload())])
        self.resolver.applied(self.index)
        self.view.update(run.writes)
        return True

    def rows(self):
        return [row for key, row in sorted(self.state.rows.items()) if key.startswith(DIRECTORY_PREFIX)]


def token(token_id="abcdefgh", database=1, right=Right.WRITE, **more) -> TokenRow:
    values = {
        "secret_hash": bytes(32),
        "last_characters": "wxyz",
        "label": "",
        "created_ms": 1,
        "expires_ms": 0,
        "requests_per_second": 0,
        "bytes_per_second": 0,
        **more,
    }
    return TokenRow(token_id=token_id, database=database, right=right, **values)


def code_of(work) -> str:
    """The code of the KvError that a call raises."""
    try:
        work()
    except KvError as error:
        return error.code
    raise AssertionError("not refused")
