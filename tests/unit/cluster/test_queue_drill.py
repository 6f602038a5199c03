"""The parts of the queue drill that need no cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.queue_consumer import content_of, number_of, rotated
from cluster.queue_consumers import ConsumersMissing, command_of
from cluster.queue_drill import Drill, Options, Summary
from cluster.queue_history import Enqueued, Journal, read_history
from cluster.queue_nemesis import QueueNemesis, Times, places
from cluster.queue_producer import Producer, schedule_of
from kvnode.base.errors import KvError, OutcomeUnknown, Unavailable


async def test_disturbances_end_in_time_while_nobody_answers() -> None:
    async def refuse(_queue: str) -> list[object]:
        raise Unavailable("nobody leads")

    drill = Drill.__new__(Drill)
    drill._say = print
    kv = SimpleNamespace(queues=SimpleNamespace(status=refuse))
    producing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    await asyncio.wait_for(drill._until_empty(kv, producing, [], 0.1), 10)  # type: ignore[arg-type]


@pytest.mark.parametrize("times", [Times(leader_every=0, consumer_every=0, cut_at=0), Times(leader_every=0.01)])
async def test_an_interrupted_drill_leaves_no_producer_behind(tmp_path: Path, times: Times) -> None:
    """It would write to a journal that is closed: a traceback, once in some hundred interruptions."""
    begun: list[int] = []
    ended: list[int] = []

    async def enqueue(value: object, **_more: object) -> None:
        begun.append(number_of(value))
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)  # a call that is given up takes its time, too
            ended.append(number_of(value))

    async def status(_queue: str) -> list[object]:
        return []

    def interrupt() -> str:
        raise KeyError("the disturbances have failed")

    drill = Drill.__new__(Drill)
    drill._options = Options(messages=8, callers=4, times=times, disturb_for_s=0.5 if times.leader_every else 60.0)
    drill._say, drill._summary, drill._journal = print, Summary(), Journal(tmp_path / "producer.jsonl")
    drill._cluster = SimpleNamespace(nodes={}, leader=interrupt)  # type: ignore[assignment]
    drill._where = SimpleNamespace()  # type: ignore[assignment]
    kv = SimpleNamespace(enqueue=enqueue, queues=SimpleNamespace(status=status))
    through = asyncio.ensure_future(drill._through(kv, []))  # type: ignore[arg-type]
    async with asyncio.timeout(20):
        while len(begun) < 4 or (times.leader_every and not through.done()):
            await asyncio.sleep(0.01)
    through.cancel()
    with pytest.raises((asyncio.CancelledError, KeyError)):
        await through
    assert sorted(ended) == [0, 1, 2, 3]


async def test_the_producer_writes_each_outcome_down_and_sends_again_only_what_was_refused(tmp_path: Path) -> None:
    answers: dict[int, list[KvError | None]] = {1: [Unavailable("no"), None], 2: [OutcomeUnknown("who knows")]}
    sent: list[int] = []

    async def enqueue(value: object, **_more: object) -> None:
        number = number_of(value)
        sent.append(number)
        answer = answers.get(number, [None]).pop(0)
        if answer is not None:
            raise answer

    journal = Journal(tmp_path / "producer.jsonl")
    producer = Producer(SimpleNamespace(enqueue=enqueue), journal, "q", rate=10_000, callers=2)  # type: ignore[arg-type]
    await producer.run(4)
    journal.close()
    assert sorted(sent) == [0, 1, 1, 2, 3]
    assert sorted(read_history(tmp_path).enqueued) == [
        Enqueued(0, 0, "acknowledged"), Enqueued(1, 1, "acknowledged"), Enqueued(1, 1, "refused"),
        Enqueued(2, 2, "unknown"), Enqueued(3, 3, "acknowledged"),
    ]  # fmt: skip
    assert [len(schedule_of(number)) for number in range(5)] == [0, 1, 2, 3, 0]


async def test_the_nemesis_heals_what_it_has_done() -> None:
    done: list[str] = []
    nodes = {name: SimpleNamespace() for name in "abc"}
    cluster = SimpleNamespace(
        nodes=nodes, leader=lambda: "a", kill=lambda name: done.append(f"kill {name}"),
        restart=lambda name, wait: done.append(f"restart {name}"), pause=lambda name: done.append(f"pause {name}"),
        resume=lambda name: done.append(f"resume {name}"), wait_ready=lambda _names, _timeout_s: done.append("ready"),
    )  # fmt: skip
    consumer = SimpleNamespace(name="python0", kills_count=0, kill=lambda: done.append("kill"), start=lambda: None)
    with places(apart=False) as where:
        assert "SIGSTOP" in where.how
        times = Times(leader_every=0.05, leader_down=60.0, consumer_every=0.01, cut_at=0.2, cut_for=60.0)
        nemesis = QueueNemesis(cluster, where, [consumer], times, done.append)  # type: ignore[arg-type,list-item]
        nemesis.start()
        async with asyncio.timeout(10):
            while "kill a" not in done or "kill" not in done:
                await asyncio.sleep(0.01)
        await asyncio.wait_for(nemesis.stop(), 10)  # at once, whatever was to last a minute
    assert nemesis.leader_kills_count == done.count("kill a") == done.count("restart a") > 0
    assert nemesis.cuts_count == done.count("pause a") == done.count("resume a")
    assert done[-1] == "ready"


def test_what_is_not_what_was_enqueued_is_nobodys() -> None:
    assert number_of(content_of(7)) == 7
    assert [number_of(value) for value in (None, {"number": 7}, {"number": 7, "text": "message 8"})] == [-1] * 3
    assert rotated(["a", "b", "c"], 4) == ["b", "c", "a"]


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command_of("python")[-1] == "cluster.queue_consumer"
    assert command_of("deno", "/opt/deno")[0] == "/opt/deno"
    assert Path(command_of("deno", "/opt/deno")[-1]).is_file()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConsumersMissing, match="node is not installed"):
        command_of("node")
