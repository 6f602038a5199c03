"""A queue that is pushed to a receiver on this machine.

The load generator is both: it enqueues, and it is the HTTP server that the leader calls. So many messages are under way
at a time, each from its enqueue until its request has arrived; what the receiver does with it costs nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys

from bench.build import LOADGEN
from bench.kvnode import KvnodeGroup
from cluster.ports import free_ports
from kvnode.base.limits import MAX_PUSH_CONCURRENCY_COUNT

QUEUE = "bench-push"
HOST = "127.0.0.1"
ENVIRONMENT = {"KVNODE_PUSH_ALLOW": HOST}  # of the nodes: otherwise they call the public internet alone


def receiver() -> str:
    """An address for it."""
    (port,) = free_ports(1)
    return f"{HOST}:{port}"


def have_pushed(group: KvnodeGroup, to: str) -> None:
    """Set where the queue is pushed."""
    command = [sys.executable, "-m", "kvnode", "queue", "push", QUEUE, "--url", f"http://{to}/"]
    command += ["--concurrency", str(MAX_PUSH_CONCURRENCY_COUNT), "--endpoints", ",".join(group.cluster.addresses)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: the push could not be set: {done.stderr}")


def load_command(endpoint: str, to: str, pids: list[int], callers: str, options: tuple[float, float, int]) -> list[str]:
    """Loads, and receives at `to`; options: seconds of each measurement and of the warm-up, bytes of a payload."""
    duration, warmup, payload_bytes = options
    command = [str(LOADGEN), "-system", "kvnode", "-transport", "push", "-modes", "pass", "-endpoint", endpoint]
    command += ["-listen-endpoint", to, "-callers", callers, "-duration", f"{duration}s", "-warmup", f"{warmup}s"]
    return [*command, "-value-bytes", str(payload_bytes), "-pids", ",".join(map(str, pids))]


def measurements(output: str) -> list[dict[str, object]]:
    """What the load generator printed; `delivered` would say the same as the latency."""
    found = [json.loads(line) for line in output.splitlines()]
    return [{**item, "delivered_p50_ms": 0.0, "delivered_p99_ms": 0.0} for item in found]
