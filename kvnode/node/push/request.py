"""What a push sends: the payload as it is, and headers that say the rest, signed as Standard Webhooks has it."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import NamedTuple
from urllib.parse import quote

from kvnode import __version__
from kvnode.machine.queue.push_url import PushUrl
from kvnode.proto.kv.v1 import kv_pb2

_ENCODINGS = {
    kv_pb2.VALUE_ENCODING_V8: ("v8", "application/vnd.kvnode.v8"),
    kv_pb2.VALUE_ENCODING_LE64: ("le64", "application/octet-stream"),
    kv_pb2.VALUE_ENCODING_BYTES: ("bytes", "application/octet-stream"),
}


class Signer(NamedTuple):
    """What all requests of one queue have in common."""

    url: PushUrl
    key: bytes
    database: str  # its name

    def request(self, message: kv_pb2.QueueMessage, timestamp_s: int) -> bytes:
        """Head and body of the request for one delivery.

        Args:
            message: under its lease.
            timestamp_s: of this attempt, seconds since 1970; signed, so that an old request cannot be sent again.
        """
        body = message.payload.data
        encoding, content_type = _ENCODINGS.get(message.payload.encoding, ("bytes", "application/octet-stream"))
        head: tuple[str, ...] = (
            f"POST {self.url.target} HTTP/1.1",
            f"host: {self.url.authority}",
            f"user-agent: kvnode/{__version__}",
            "accept: */*",
            f"content-type: {content_type}",
            f"content-length: {len(body)}",
            f"webhook-id: {message.id.hex()}",
            f"webhook-timestamp: {timestamp_s}",
            f"webhook-signature: {signature(self.key, message.id.hex(), timestamp_s, body)}",
            f"kvnode-database: {self.database}",
            f"kvnode-queue: {message.queue}",
            f"kvnode-encoding: {encoding}",
            f"kvnode-attempt: {message.attempt}",
            f"kvnode-enqueued-at-ms: {message.enqueued_at_ms}",
            f"kvnode-lease: {message.lease.hex()}",
        )
        if message.cron:
            head += (f"kvnode-cron: {quote(message.cron)}", f"kvnode-scheduled-at-ms: {message.scheduled_at_ms}")
        return "\r\n".join((*head, "", "")).encode("ascii", "replace") + body


def signature(key: bytes, message_id: str, timestamp_s: int, body: bytes) -> str:
    """HMAC-SHA256 over "id.timestamp.body", as the header has it."""
    signed = hmac.new(key, f"{message_id}.{timestamp_s}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(signed).decode()}"
