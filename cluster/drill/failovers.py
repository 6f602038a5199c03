"""The rows in which the primary moves: because its region is gone, and as planned.

A forced failover cuts the history at a versionstamp that the command names. What must hold then: every acknowledged
write up to it is there, none behind it is, and what remains of the calls is strictly serializable.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from cluster.drill.judge import Measured, Verdict, judge, waits
from cluster.drill.pauses import Pauses, stolen_ms
from cluster.drill.record import Record
from cluster.drill.rows import Row
from cluster.drill.stage import Stage
from cluster.drill.traffic import Traffic
from cluster.drill.verify import is_cut, verify
from cluster.launcher import ClusterFailed, own_environment
from cluster.processes import run_command
from cluster.workload import now_ms
from kvnode.base.errors import KvError

SETTLE_S = 3.0
DEAD_S = 1.0  # from the loss to the operator's command
AFTERWARDS_S = 3.0
RETURN_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 90.0


class CommandFailed(Exception):
    """`kvnode failover` did not do what it was asked; the message is its own."""


async def run_failovers(
    row: Row, repetitions_count: int, make_stage: Callable[[str], Stage], say: Callable[[str], None]
) -> Verdict:
    """Play a row of this kind, each time on a stage of its own: afterwards the primary region is another one.

    Args:
        row: with the flags of the command.
        repetitions_count: how often.
        make_stage: from the name of a folder for data and logs, which no other repetition has.
        say: told what is going on.
    """
    runs = []
    for number in range(repetitions_count):
        say(f"{row.what} ({number + 1} of {repetitions_count})")
        stage = make_stage(f"{row.name}-{number + 1}")
        try:
            async with stage:
                runs.append(await _once(stage, row))
        except (KvError, ClusterFailed, CommandFailed) as error:
            runs.append(Measured(violations=[f"it could not be played to its end: {error}"]))
        finally:
            stage.close()
        say(f"  {runs[-1].line}")
    return judge(row, runs)


async def _once(stage: Stage, row: Row) -> Measured:
    traffic = Traffic(stage.clients, "failover")
    measured = Measured()
    fork = b""
    with Pauses() as pauses:
        traffic.start()
        try:
            await asyncio.sleep(SETTLE_S)
            victims = await asyncio.to_thread(row.victims, stage) if row.victims else []
            # A data center that is gone sends nothing more: what is on its way out of a killed process would arrive.
            cut = await asyncio.to_thread(stage.cluster.wan.isolate, *victims)
            killed = now_ms()
            for name in victims:
                await asyncio.to_thread(stage.cluster.kill, name)
            if victims:
                await asyncio.sleep(DEAD_S)
            commanded, stolen = now_ms(), stolen_ms()
            answer = await _command(stage, stage.away[0], *row.flags)
            measured.figures["command"] = now_ms() - commanded
            if victims:
                fork = bytes.fromhex(answer["last_versionstamp"])
                _losses(traffic.record, fork, killed, measured)
            await asyncio.sleep(AFTERWARDS_S)
            until, stolen = now_ms(), stolen_ms() - stolen
            await asyncio.to_thread(
                stage.cluster.wan.heal, cut
            )  # what was on its way arrives, of an epoch that is over
            for name in victims:
                await asyncio.to_thread(stage.cluster.restart, name, wait=False)
            await asyncio.to_thread(_wait_returned, stage)
            measured.figures["caught up"] = now_ms() - until
            await asyncio.sleep(AFTERWARDS_S)
        finally:
            await traffic.stop()
    measured.figures["own pause"] = pauses.longest_ms(commanded, until)
    measured.figures["stolen"] = stolen
    # The time counts from the command on: when an operator gives it is not the database's affair.
    measured.figures.update(waits(traffic.record, stage.home, stage.away, commanded, until))
    await verify(stage, traffic, measured, fork)
    return measured


async def _command(stage: Stage, region: str, *flags: str) -> dict[str, Any]:
    endpoints = ",".join(stage.cluster.nodes[name].address for name in stage.nodes_in(region))
    command = [
        sys.executable,
        "-m",
        "kvnode",
        "failover",
        "--to",
        region,
        *flags,
        "-o",
        "json",
        "--endpoints",
        endpoints,
    ]
    environment = {**own_environment(), "KVNODE_TOKEN": os.environ.get("KVNODE_TOKEN", "")}
    try:
        done = await run_command(command, environment, COMMAND_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"failover to {region}: no end after {COMMAND_TIMEOUT_S:g} s") from None
    if done.returncode:
        said = (done.stderr + done.stdout).strip()
        raise CommandFailed(f"failover to {region}: exit status {done.returncode}: {said}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _losses(record: Record, fork: bytes, killed_ms: float, measured: Measured) -> None:
    """What the cut costs: the acknowledged writes behind it, and how old the first of them was."""
    gone = [call for call in record.calls if call.kind == "write" and call.ok and is_cut(call.versionstamp, fork)]
    measured.figures["writes cut"] = float(len(gone))
    # What was still acknowledged while the kills were on their way was lost at that moment, and not before.
    measured.figures["loss"] = max([0.0, *(killed_ms - call.completed_ms for call in gone)])


def _wait_returned(stage: Stage) -> None:
    epochs = [status.epoch for node in stage.cluster.nodes.values() if (status := node.status())]
    newest = max(epochs, default=0)

    def all_follow() -> bool:
        found = [node.status() for node in stage.cluster.nodes.values()]
        return all(status is not None and status.epoch == newest and status.leader_id for status in found)

    stage.cluster.wait_until(all_follow, "not all nodes follow the new epoch", RETURN_TIMEOUT_S)
    stage.cluster.wait_ready(timeout_s=RETURN_TIMEOUT_S)
