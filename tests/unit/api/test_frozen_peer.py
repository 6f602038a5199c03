"""A process that is frozen, not dead: its kernel acknowledges, it does not."""

from __future__ import annotations

import asyncio
import signal
import sys

from kvnode.base.clock import SystemClock
from kvnode.codec.membership import Member
from kvnode.node.channels import KEEPALIVE_INTERVAL_MS, KEEPALIVE_TIMEOUT_MS
from kvnode.node.transport import GrpcTransport
from tests.unit.api.fake_node import FakeNode
from tests.unit.api.serving import until


async def test_a_frozen_peer_is_noticed_and_found_again() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.unit.api.frozen_peer", stdout=asyncio.subprocess.PIPE
    )
    near = FakeNode(1, "near")
    transport = GrpcTransport(near, SystemClock())
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        transport.set_members([Member(2, "far", "r", "d", f"127.0.0.1:{port}")])
        await until(lambda: transport.connected(2))
        loop = asyncio.get_running_loop()
        frozen_at = loop.time()
        process.send_signal(signal.SIGSTOP)
        await until(lambda: 2 in near.unreachable, timeout=15)
        assert loop.time() - frozen_at < (KEEPALIVE_INTERVAL_MS + KEEPALIVE_TIMEOUT_MS) / 1_000 + 2
        thawed_at = loop.time()
        process.send_signal(signal.SIGCONT)
        await until(lambda: transport.connected(2), timeout=15)
        assert loop.time() - thawed_at < 3
    finally:
        await transport.close()
        process.kill()
        await process.wait()
