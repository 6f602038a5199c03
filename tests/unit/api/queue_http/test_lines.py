"""The lines that a listener reads are JSON, whatever the message is."""

from __future__ import annotations

import json

import pytest

from kvnode.api.queue_http.lines import of_response
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2


@pytest.mark.parametrize(("cron", "scheduled_at_ms"), [("", 0), ("A nightly_cron-2", 1_800_000_000_000)])
def test_a_message_says_which_tick_of_a_cron_it_is_for(cron: str, scheduled_at_ms: int) -> None:
    message = kv_pb2.QueueMessage(id=b"i" * 12, queue="q", lease=b"l" * 12, cron=cron, scheduled_at_ms=scheduled_at_ms)
    message.payload.data, message.payload.encoding = b"x", kv_pb2.VALUE_ENCODING_BYTES
    (line,) = of_response(queue_pb2.ListenResponse(messages=[message]))
    found = json.loads(line)
    assert (found["type"], found["queue"], found["lease_expires_at_ms"]) == ("message", "q", 0)
    assert (found.get("cron", ""), found.get("scheduled_at_ms", 0)) == (cron, scheduled_at_ms)
