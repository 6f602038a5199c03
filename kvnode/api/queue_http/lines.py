"""What a listener is told, one JSON object a line."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable

from kvnode.api.queue_http.answers import described
from kvnode.api.queue_http.bodies import ENCODINGS
from kvnode.base.errors import KvError
from kvnode.client.status import error_from_proto
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2

NDJSON = "application/x-ndjson"
PING = b'{"type":"ping"}\n'

_NAMES = {number: name for name, number in ENCODINGS.items()}


def of_response(response: queue_pb2.ListenResponse) -> list[bytes]:
    """The lines of one response."""
    lines = []
    if response.HasField("opened"):
        opened = response.opened
        lines.append(_line("opened", {"node": opened.node, "lease_ms": opened.lease_ms}))
    lines += map(_message, response.messages)
    lines += (failed(each.lease, error_from_proto(each.error)) for each in response.failed)
    if response.ping:
        lines.append(PING)
    return lines


def failed(lease: bytes, error: KvError) -> bytes:
    """A lease is not the listener's any more."""
    return _line("failed", {"lease": lease.hex(), **described(error)})


def end(error: KvError) -> bytes:
    """The last line: why nothing comes any more."""
    return _line("end", described(error))


def _message(message: kv_pb2.QueueMessage) -> bytes:
    """Built by hand: it takes a third of what json.dumps does, and all of its strings are plain."""
    payload = message.payload
    tick = f',"cron":"{message.cron}","scheduled_at_ms":{message.scheduled_at_ms}' if message.cron else ""
    return (
        f'{{"type":"message","id":"{message.id.hex()}","queue":"{message.queue}",'
        f'"payload":"{b64encode(payload.data).decode()}","encoding":"{_NAMES[payload.encoding]}",'
        f'"lease":"{message.lease.hex()}","attempt":{message.attempt},"enqueued_at_ms":{message.enqueued_at_ms},'
        f'"due_at_ms":{message.due_at_ms},"lease_expires_at_ms":{message.lease_expires_at_ms}{tick}}}\n'
    ).encode("ascii")


def _line(kind: str, found: dict[str, object]) -> bytes:
    return json.dumps({"type": kind, **found}, separators=(",", ":")).encode() + b"\n"


def results(settled: Iterable[bytes], failures: Iterable[tuple[bytes, KvError]]) -> dict[str, object]:
    """The answer to a settle: what is committed, and what could not be done."""
    return {
        "settled": [lease.hex() for lease in settled],
        "failed": [{"lease": lease.hex(), **described(error)} for lease, error in failures],
    }
