"""kvnode.js reads what a node pushes, in the real Deno and the real Node."""

from __future__ import annotations

import json
import subprocess
import time
from base64 import b64encode
from pathlib import Path

import pytest

from kvnode.api.queue_http import module
from kvnode.codec.values import encode_value
from kvnode.machine.queue.push import encode_secret
from kvnode.machine.queue.push_url import parse_push_url
from kvnode.node.push.request import Signer
from kvnode.proto.kv.v1 import kv_pb2
from tests.compat.clients import deno_binary, environment, install, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")

KEY = bytes(range(32))
MODULE = Path(module.__file__).with_name("kvnode.js")

READER = """
const { readPush } = await import(MODULE);
for (const { headers, body, secret } of JOB) {
  const bytes = Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
  const request = new Request("http://here/", { method: "POST", headers, body: bytes });
  try {
    const { value, id, queue, attempts, enqueuedAt, cron, scheduledAt } = await readPush(request, secret);
    const shown = value instanceof Uint8Array ? `bytes ${value}` : JSON.stringify(value);
    console.log(shown, id.length, queue, attempts, enqueuedAt.getTime(), ...(cron ? [cron, +scheduledAt] : []));
  } catch (error) {
    console.log(error.code, error.status);
  }
}
"""


def pushed(
    value: object, *, age_s: int = 0, body: bytes | None = None, key: bytes = KEY, cron: str = ""
) -> dict[str, object]:
    """One request, as a node sends it."""
    message = kv_pb2.QueueMessage(id=bytes(12), queue="mail", lease=bytes(12), attempt=2, enqueued_at_ms=7)
    if cron:
        message.cron, message.scheduled_at_ms = cron, 60_000
    message.payload.data, message.payload.encoding = encode_value(value)
    raw = Signer(parse_push_url("http://here/"), KEY, "default").request(message, int(time.time()) - age_s)
    head, _, sent = raw.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    del headers["content-length"], headers["host"]
    return {
        "headers": headers,
        "body": b64encode(sent if body is None else body).decode(),
        "secret": encode_secret(key),
    }


def test_a_push_is_read_and_a_forged_one_is_not(tmp_path: Path) -> None:
    install()
    (tmp_path / "kvnode.mjs").write_text(MODULE.read_text())
    job = [
        pushed({"to": "ada", "list": [1, 2.5]}),
        pushed(b"\x00\xff"),
        pushed("tick", cron="every minute"),
        pushed("x", body=b"forged"),
        pushed("x", key=bytes(32)),
        pushed("x", age_s=3_600),
    ]
    module_url = (tmp_path / "kvnode.mjs").as_uri()
    script = f"const JOB = {json.dumps(job)};\nconst MODULE = {json.dumps(module_url)};\n{READER}"
    path = tmp_path / "reader.mjs"
    path.write_text(script)
    for command in ([deno_binary(), "run", "-A", "--no-lock"], ["node", "--no-warnings"]):
        done = subprocess.run(
            [*command, str(path)], env=environment("-"), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            '{"to":"ada","list":[1,2.5]} 24 mail 2 7',
            "bytes 0,255 24 mail 2 7",
            '"tick" 24 mail 2 7 every minute 60000',
            "PUSH_NOT_SIGNED 401",
            "PUSH_NOT_SIGNED 401",
            "PUSH_TOO_OLD 401",
        ]
