"""The queue drill, `make queue-drill`: no message is lost, whoever is killed.

Three data centers with a node each; a producer; consumers in a process each of Python, Deno and Node, whose handlers
fail at random. Meanwhile the leader is killed, consumer processes are killed, and the data center that leads is cut
off. When every message has come to its end, what producers and consumers wrote down is checked (queue_checker.py).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cluster.keeper import Keeper
from cluster.launcher import ClusterFailed, LocalCluster
from cluster.queue_checker import QueueReport, Violation, check
from cluster.queue_consumer import Settings, number_of
from cluster.queue_consumers import KINDS, ConsumerProcess, ConsumersMissing, consumer_processes
from cluster.queue_history import SUFFIX, Dead, Journal, Totals, Undelivered, read_history
from cluster.queue_nemesis import Places, QueueNemesis, Say, Times, places
from cluster.queue_producer import UNDELIVERED, Producer
from kvnode.base.errors import KvError
from kvnode.base.limits import MAX_PEEK_COUNT, MAX_QUEUE_MESSAGES_COUNT
from kvnode.client import Kv, open_kv
from kvnode.codec.values import decode_value
from kvnode.proto.kv.v1 import queue_pb2

QUEUE = "drill"
TOKEN = "queue-drill-access-token"
HANDLER_MS = 20.0
_REPORT_EVERY_S = 5.0
_POLL_S = 0.25
EXIT_BROKEN_PROMISE, EXIT_NOT_RUN, EXIT_INTERRUPTED = 1, 2, 130


class Options(NamedTuple):
    """What a user may choose.

    Args:
        messages: how many.
        rate: enqueued a second, at most.
        callers: enqueues under way at a time.
        consumers: of all processes together.
        concurrency: handlers of each at a time.
        fail_share: of handlers that fail.
        lease_ms: of a delivery.
        kinds: of consumer processes.
        deno: its executable; the one on PATH when empty.
        times: when what is killed.
        apart: each node in a network namespace of its own, where that can be.
        disturb_for_s: the disturbances end after this, or when nothing is left to do.
        timeout_s: for what is left then to come to its end.
        folder: for data, logs and the history; a temporary one, removed unless a promise is broken, when None.
    """

    messages: int = 100_000
    rate: float = 1_000.0
    callers: int = 64
    consumers: int = 8
    concurrency: int = 32
    fail_share: float = 0.1
    lease_ms: int = 10_000
    kinds: tuple[str, ...] = KINDS
    deno: str = ""
    times: Times = Times()
    apart: bool = True
    disturb_for_s: float = 600.0
    timeout_s: float = 600.0
    folder: Path | None = None


@dataclass(slots=True)
class Summary:
    """What came of it; the keys of --json, with those of the report."""

    report: QueueReport = field(default_factory=QueueReport)
    messages: int = 0
    consumers: int = 0
    kinds: Sequence[str] = ()
    leader_kills: int = 0
    consumer_kills: int = 0
    cuts: int = 0
    cut_by: str = ""
    digests_equal: bool = False
    per_second: float = 0.0
    seconds: float = 0.0
    history: str = ""

    @property
    def ok(self) -> bool:
        """Whether every promise was kept."""
        return self.report.ok and self.digests_equal

    def as_json(self) -> dict[str, object]:
        """One flat object."""
        own = {name: getattr(self, name) for name in self.__slots__ if name != "report"}
        own = {name: round(value, 1) if isinstance(value, float) else value for name, value in own.items()}
        return {**own, **self.report.as_json(), "ok": self.ok}


class Drill:
    """One run."""

    def __init__(self, options: Options, where: Places, folder: Path, say: Say) -> None:
        self._options = options
        self._where = where
        self._say = say
        self._keeper = Keeper()
        self._history = folder / "history"
        self._history.mkdir(parents=True)
        self._cluster = LocalCluster(where.specs(), folder / "cluster", arguments=["--access-token", TOKEN])
        self._journal = Journal(self._history / f"producer{SUFFIX}")
        self._summary = Summary(
            messages=options.messages, consumers=options.consumers, kinds=options.kinds, cut_by=where.how,
            history=str(self._history),
        )  # fmt: skip

    async def run(self) -> Summary:
        """Start, produce and consume under disturbances, check. Raises ClusterFailed, ConsumersMissing."""
        consumers: list[ConsumerProcess] = []
        try:
            consumers = self._consumers()
            await asyncio.to_thread(self._cluster.start)
            self._say(f"three nodes serve; {self._options.messages:,} messages, {self._options.consumers} consumers")
            async with open_kv(self._cluster.addresses) as kv:
                await self._through(kv, consumers)
                for consumer in consumers:
                    if not await asyncio.to_thread(consumer.stop):
                        raise ClusterFailed(
                            f"consumer {consumer.name} did not end well:\n{consumer.log_text()[-2000:]}"
                        )
                await self._write_end(kv)
            digests = await asyncio.to_thread(self._cluster.digests)
            self._summary.digests_equal = len({digest for _, digest in digests.values()}) == 1
        finally:
            for consumer in consumers:
                consumer.kill()
            self._cluster.close()
            self._keeper.close()
            self._journal.close()
        self._summary.report = await asyncio.to_thread(lambda: check(read_history(self._history)))
        if not self._summary.digests_equal:
            self._summary.report.violations.append(Violation("digests_differ", "the nodes' states are not equal"))
        return self._summary

    def _consumers(self) -> list[ConsumerProcess]:
        options = self._options
        settings = Settings(
            name="", journal="", addresses=self._cluster.addresses,
            urls=[f"http://{node.connect_address}" for node in self._cluster.nodes.values()], token=TOKEN, queue=QUEUE,
            consumers=options.consumers, concurrency=options.concurrency, lease_ms=options.lease_ms,
            fail_share=options.fail_share, handler_ms=HANDLER_MS,
        )  # fmt: skip
        return consumer_processes(options.kinds, settings, self._history, self._keeper, options.deno)

    async def _through(self, kv: Kv, consumers: list[ConsumerProcess]) -> None:
        """From the first message until the last has come to its end."""
        options, summary = self._options, self._summary
        if options.messages > MAX_QUEUE_MESSAGES_COUNT:
            await kv.queues.configure(QUEUE, max_messages=options.messages)
        nemesis = QueueNemesis(self._cluster, self._where, consumers, options.times, self._say)
        producer = Producer(kv, self._journal, QUEUE, rate=options.rate, callers=options.callers)
        begun_at = time.monotonic()
        for consumer in consumers:
            consumer.start()
        producing = asyncio.ensure_future(producer.run(options.messages))
        try:
            await self._disturbed(kv, producing, consumers, nemesis)
            self._say("no more disturbances")
            await producing
            await self._until_empty(kv, producing, consumers, options.timeout_s)
        finally:  # interrupted, for example: it writes to a journal that is closed next
            producing.cancel()
            await asyncio.gather(producing, return_exceptions=True)
        summary.seconds = time.monotonic() - begun_at
        summary.per_second = options.messages / summary.seconds
        summary.leader_kills, summary.cuts = nemesis.leader_kills_count, nemesis.cuts_count
        summary.consumer_kills = nemesis.consumer_kills_count

    async def _disturbed(
        self, kv: Kv, producing: asyncio.Future[None], consumers: Sequence[ConsumerProcess], nemesis: QueueNemesis
    ) -> None:
        """For as long as there is something to disturb; then everything runs again."""
        nemesis.start()
        try:
            await self._until_empty(kv, producing, consumers, self._options.disturb_for_s)
        except BaseException:  # what is down need not come back
            await nemesis.abandon()
            raise
        await nemesis.stop()

    async def _until_empty(
        self, kv: Kv, producing: asyncio.Future[None], consumers: Sequence[ConsumerProcess], timeout_s: float
    ) -> None:
        """Until nothing waits and nothing is under a lease, or the time is over, whether anybody leads or not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._emptied(kv, producing, consumers)

    async def _emptied(self, kv: Kv, producing: asyncio.Future[None], consumers: Sequence[ConsumerProcess]) -> None:
        report_at = time.monotonic() + _REPORT_EVERY_S
        while True:
            status = await _status(kv)
            if producing.done() and not status.waiting_count and not status.in_flight_count:
                return
            if time.monotonic() > report_at:
                report_at += _REPORT_EVERY_S
                self._say(
                    f"{status.enqueued_total:,} enqueued, {status.acknowledged_total:,} acknowledged, "
                    f"{status.waiting_count:,} wait, {status.in_flight_count:,} in flight, "
                    f"{status.redelivered_total:,} redelivered, {status.dead_total:,} dead letters"
                )
            for consumer in consumers:
                if not consumer.running:
                    self._say(f"consumer {consumer.name} has ended by itself: {consumer.log_text()[-500:]}")
                    consumer.start()
            await asyncio.sleep(_POLL_S)

    async def _write_end(self, kv: Kv) -> None:
        """How the queue stands: dead letters, keys_if_undelivered, counters."""
        after = b""
        while letters := await kv.queues.dead_letters(QUEUE, MAX_PEEK_COUNT, after):
            for letter in letters:
                value = decode_value(letter.payload.data, int(letter.payload.encoding))
                self._journal.write(Dead(number_of(value), letter.message_id.hex(), letter.deliveries_count))
            after = letters[-1].id
        async for entry in kv.list((UNDELIVERED,)):
            number = entry.key[1] if number_of(entry.value) == entry.key[1] else -1
            self._journal.write(Undelivered(int(number)))
        status = await _status(kv)
        self._journal.write(
            Totals(
                status.waiting_count, status.in_flight_count, status.dead_count, status.enqueued_total,
                status.delivered_total, status.redelivered_total, status.acknowledged_total,
            )
        )  # fmt: skip


async def _status(kv: Kv) -> queue_pb2.QueueStatus:
    """How the queue stands; asked again while nobody leads."""
    while True:
        try:
            return next(iter(await kv.queues.status(QUEUE)), queue_pb2.QueueStatus())
        except KvError:
            await asyncio.sleep(_POLL_S)


def run_drill(options: Options, say: Say) -> Summary:
    """Run it. Raises ClusterFailed, ConsumersMissing; KeyboardInterrupt, with its processes ended."""
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kvnode-queue-drill-"))
    is_kept = options.folder is not None
    try:
        with places(apart=options.apart) as where:
            summary = asyncio.run(Drill(options, where, folder, say).run())
        is_kept = is_kept or not summary.ok
    finally:
        if not is_kept:
            shutil.rmtree(folder, ignore_errors=True)
    if not is_kept:
        summary.history = ""
    return summary


def _options(arguments: Sequence[str] | None = None) -> tuple[Options, bool]:
    plain, times = Options(), Times()
    parser = argparse.ArgumentParser(prog="make queue-drill ARGS=...", description="No message is lost.")
    parser.add_argument("--messages", type=int, default=plain.messages)
    parser.add_argument("--rate", type=float, default=plain.rate, help="enqueued a second, at most")
    parser.add_argument("--consumers", type=int, default=plain.consumers, help="of all processes together")
    parser.add_argument("--concurrency", type=int, default=plain.concurrency, help="handlers of each at a time")
    parser.add_argument("--fail-share", type=float, default=plain.fail_share, help="of handlers that fail, 0 to 1")
    parser.add_argument("--lease-ms", type=int, default=plain.lease_ms, help="of a delivery")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of consumer processes: python, deno, node")
    parser.add_argument("--deno", default="", help="its executable; the one on PATH by default")
    parser.add_argument("--kill-leader-every", type=float, default=times.leader_every, metavar="S", help="0 = never")
    parser.add_argument("--kill-consumer-every", type=float, default=times.consumer_every, metavar="S")
    parser.add_argument("--cut-at", type=float, default=times.cut_at, metavar="S", help="and again after as long")
    parser.add_argument("--cut-for", type=float, default=times.cut_for, metavar="S")
    parser.add_argument("--no-namespaces", action="store_true", help="cut off by freezing")
    parser.add_argument("--disturb-for", type=float, default=plain.disturb_for_s, metavar="S", help="at most")
    parser.add_argument("--timeout", type=float, default=plain.timeout_s, metavar="S", help="after that")
    parser.add_argument("--data-dir", type=Path, help="an empty folder, kept; a temporary one by default")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    found = parser.parse_args(arguments)
    kinds = tuple(found.kinds.split(","))
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"--kinds {','.join(sorted(unknown))}: known are {', '.join(KINDS)}")
    when = Times(found.kill_leader_every, times.leader_down, found.kill_consumer_every, found.cut_at, found.cut_for)
    options = Options(
        found.messages, found.rate, plain.callers, found.consumers, found.concurrency, found.fail_share,
        found.lease_ms, kinds, found.deno, when, not found.no_namespaces, found.disturb_for,
        found.timeout, found.data_dir,
    )  # fmt: skip
    return options, found.json


def show(summary: Summary, say: Say) -> None:
    """For people."""
    report = summary.report
    say(
        f"{report.acknowledged:,} messages acknowledged, {report.handled:,} handled, {report.lost} lost; "
        f"{report.handlings:,} handlings, {report.redeliveries:,} of them redeliveries; {report.failures:,} failed; "
        f"{report.dead_letters:,} dead letters; {report.in_doubt} without an answer; "
        f"{report.succeeded_twice} succeeded twice"
    )
    say(
        f"{summary.leader_kills} leaders and {summary.consumer_kills} consumer processes killed, {summary.cuts} cuts "
        f"({summary.cut_by}); {summary.seconds:.0f} s, {summary.per_second:,.0f} messages a second"
    )
    for violation in report.violations[:20]:
        say(f"BROKEN: {violation}")
    say("every promise was kept" if summary.ok else f"broken promises; the history is in {summary.history}")


def main() -> int:
    """The exit status: 0 when every promise was kept, 1 when not, 2 when it could not be run, 130 on Ctrl-C."""
    options, as_json = _options()
    begun_at = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - begun_at:6.1f}  {line}", file=sys.stderr if as_json else sys.stdout, flush=True)

    try:
        summary = run_drill(options, say)
    except (ClusterFailed, ConsumersMissing) as error:
        print(f"queue-drill: {error}", file=sys.stderr)
        return EXIT_NOT_RUN
    except KeyboardInterrupt:
        print("queue-drill: interrupted; nothing was judged", file=sys.stderr)
        return EXIT_INTERRUPTED
    show(summary, say)
    if as_json:
        print(json.dumps(summary.as_json()))
    return 0 if summary.ok else EXIT_BROKEN_PROMISE


if __name__ == "__main__":
    sys.exit(main())
