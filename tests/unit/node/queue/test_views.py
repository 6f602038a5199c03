"""How queues look, from rows that the machine wrote, by reads that a node would take."""

from __future__ import annotations

import pytest

from kvnode.machine.keyspace import database_prefix
from kvnode.machine.queue import keys
from kvnode.machine.queue.push import encode_secret
from kvnode.machine.validate import validate_read
from kvnode.node.queue.views import QueueReader, list_queues
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.machine.queue.test_transactions import Database, act

SECRET = encode_secret(bytes(range(32)))


def reader(database: Database) -> QueueReader:
    prefix = database_prefix(keys.queue_space(1))

    async def read(request, timeout_ms=0, *, database: int, state=database.state) -> kv_pb2.ReadResponse:
        assert database == keys.queue_space(1)
        validate_read(request)
        response = kv_pb2.ReadResponse()
        for wanted in request.ranges:
            found = response.ranges.add()
            for row in state.scan(prefix + wanted.start, prefix + wanted.end, wanted.limit):
                found.entries.add(key=row.key[len(prefix) :], value=row.value)
        return response

    return QueueReader(read, 1, 1_000)


@pytest.mark.parametrize("named", ["", "mail"])
async def test_a_queue_says_where_it_is_pushed(named: str) -> None:
    database = Database()
    database.enqueue(queue="mail", delay_ms=7)
    database.enqueue(queue="other")
    push = {"url": "https://example.com/", "secret": SECRET, "concurrency": 3}
    database.run(act(configure={"queue": "mail", "keep_max_messages": True, "push": push}))
    database.run(act(push_note={"queue": "mail", "error": "refused"}))
    found = {status.queue: status for status in await list_queues(reader(database), named)}
    mail = found["mail"]
    assert (mail.waiting_count, mail.next_due_ms) == (1, database.now + 7)
    assert (mail.push_url, mail.push_concurrency, mail.push_timeout_ms) == ("https://example.com/", 3, 15_000)
    assert (mail.push_error, mail.push_failing_since_ms) == ("refused", database.now)
    assert bytes(range(32)) not in mail.SerializeToString()  # the key is nobody's business
    assert list(found) == ([named] if named else ["mail", "other"])
    assert all(not status.push_url for name, status in found.items() if name != "mail")
