"""The drill's arithmetic: what it would say of calls made up here."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.drill import faults
from cluster.drill.__main__ import EXIT_NOT_RUN, main
from cluster.drill.judge import Measured, judge, waits
from cluster.drill.latency import Spread, eventual_reads
from cluster.drill.measures import lags_ms, longest_wait_ms, percentile, sights_ms, worst_wait_ms
from cluster.drill.page import page
from cluster.drill.pauses import Pauses, stolen_ms
from cluster.drill.record import Call, Kind, Record
from cluster.drill.report import Findings
from cluster.drill.rows import ROWS, SHORT
from cluster.drill.traffic import phase
from cluster.drill.verify import is_cut
from cluster.workload import now_ms
from kvnode.codec.versionstamp import versionstamp

ROW = next(row for row in ROWS if row.name == "leader-killed")


def call(
    at_ms: float,
    *,
    client: str = "a",
    region: str = "home",
    kind: Kind = "write",
    index: int = 0,
    error: str = "",
    since: float | None = None,
) -> Call:
    stamp, began_ms = versionstamp(1, index, 0), at_ms - 2 if since is None else since
    return Call(client, region, "grpc", kind, began_ms, at_ms, stamp, error, f"{kind} {at_ms}".encode())


def test_percentiles() -> None:
    assert percentile([], 0.5) == 0
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(list(range(100)), 0.99) == 99


def test_a_wait_is_between_good_answers_and_the_ends_of_the_time_looked_at() -> None:
    calls = [call(at, since=0) for at in (5, 15, 40, 90)] + [call(60, error="UNAVAILABLE"), call(500, since=80)]
    assert longest_wait_ms(calls, 10, 95) == 50
    assert longest_wait_ms(calls, 10, 200) == 110
    assert longest_wait_ms([call(500, since=0)], 10, 200) == 190
    assert longest_wait_ms([], 10, 200) == 0


def test_who_asks_now_and_then_waits_from_the_question_on() -> None:
    calls = [call(at, since=at - 20) for at in (220, 420, 620)]
    assert longest_wait_ms(calls, 0, 630) == 20
    calls.append(call(900, since=800, error="UNAVAILABLE"))
    calls.append(call(1_700, since=1_000))
    assert longest_wait_ms(calls, 0, 2_000) == 900, "an error is no answer"
    assert longest_wait_ms(calls, 0, 1_500) == 700, "it still waits then"
    assert longest_wait_ms(calls, 850, 2_000) == 850, "it had been waiting before"


def test_the_worst_wait_is_that_of_one_client() -> None:
    calls = [*(call(at, client="a") for at in range(0, 100, 10)), call(30, client="b"), call(90, client="b", since=30)]
    assert worst_wait_ms(calls, 0, 100) == 60
    assert longest_wait_ms(calls, 0, 100) <= 10


def test_lag_is_how_long_a_read_had_lacked_an_acknowledged_write() -> None:
    record = Record()
    record.calls = [call(10, index=1), call(20, index=2), call(30, index=3)]
    record.calls += [
        call(51, region="away", kind="eventual", index=1),
        call(61, region="away", kind="eventual", index=3),
    ]
    record.calls.append(call(70, region="away", kind="eventual", error="UNAVAILABLE"))
    assert lags_ms(record, "away") == [30, 0]


def test_a_write_is_seen_by_the_first_read_that_shows_it_and_counts_from_its_start() -> None:
    record = Record()
    record.calls = [call(at, index=index) for at, index in ((10, 1), (20, 2), (30, 3), (40, 4))]
    for at, index in ((15, 1), (55, 3), (50, 2), (60, 3)):
        record.calls.append(call(at, region="away", kind="eventual", index=index))
    record.calls.append(call(52, region="away", kind="eventual", index=9, error="UNAVAILABLE"))
    assert sights_ms(record, "away") == [50 - 18, 55 - 28], "the first was there before, the last never came"
    assert sights_ms(record, "elsewhere") == []


def test_waits_by_region() -> None:
    record = Record()
    record.calls = [call(at, since=0) for at in (0, 40, 100)] + [call(50, region="away", kind="eventual", since=10)]
    figures = waits(record, "home", ["away"], 0, 100)
    assert figures["writes"] == 60
    assert figures["reads away"] == 40
    assert figures["reads home"] == 0, "nobody reads there"


def test_a_promise_is_broken_by_a_loss_a_violation_a_difference_or_a_worst_case() -> None:
    good = Measured({"writes": 900.0}, acknowledged_count=9)
    assert judge(ROW, [good]).broken == []
    for bad, words in (
        (Measured({"writes": 900.0}, lost=2), "2 acknowledged writes are lost"),
        (Measured({"writes": 900.0}, violations=["real-time: ..."]), "real-time"),
        (Measured({"writes": 900.0}, differing=["asia-a"]), "asia-a"),
        (Measured({"writes": 5_001.0}), "5,001 ms"),
    ):
        verdict = judge(ROW, [good, good, bad])
        assert len(verdict.broken) == 1 and words in verdict.broken[0]


def test_a_planned_move_that_pauses_writes_for_two_seconds_breaks_a_promise() -> None:
    move = next(row for row in ROWS if row.name == "move")
    assert judge(move, [Measured({"all writes": 1_999.0})]).broken == []
    (broken,) = judge(move, [Measured({"all writes": 2_001.0})]).broken
    assert broken == "move: all writes, worst 2,001 ms, 2,000 at most"
    assert "writes pause < 2 s" in move.promise


def test_a_repetition_says_at_its_end_what_it_found() -> None:
    assert Measured({"writes": 1_900.0}, acknowledged_count=9).line == "0 of 9 lost, 0 errors; writes 1,900"
    bad = Measured({"writes": 1.0}, acknowledged_count=9, lost=2, violations=["real-time: x"], differing=["asia-a"])
    assert bad.line == "NOT SOUND: real-time: x; asia-a differs; 2 of 9 lost, 0 errors; writes 1"


def test_an_aim_is_missed_by_the_median_alone() -> None:
    runs = [Measured({"writes": value}) for value in (900.0, 4_000.0, 1_700.0)]
    verdict = judge(ROW, runs)
    assert verdict.broken == []
    assert verdict.missed == ["leader-killed: writes, median 1,700 ms, 1,600 at most"]
    assert judge(ROW, [runs[0], runs[0], runs[1]]).missed == []


def test_the_page_has_every_row_and_says_what_was_missed() -> None:
    findings = Findings(
        [judge(ROW, [Measured({"writes": 1_700.0, "all writes": 1_600.0}, acknowledged_count=9)])],
        [Spread("lag", "asia", 90, 100, 400, 500, 9, 344, "p99", 10_000), Spread("write", "home", 1, 1, 2, 3, 9)],
        {"cores": 2, "processor": "test", "load": 1.0, "stolen_s": 3.4, "repetitions": 1},
    )
    text = page(findings)
    assert f"| {ROW.what} | {ROW.promise} | 0 of 9 | 1,700 | 1,700 | 1,600 |" in text
    assert "- lag in asia: p99 400.0 ms, 344 at most" in text
    assert "## Promises broken\n\nNone." in text
    assert findings.as_json()["ok"] is True


def test_what_eventual_reads_take_at_the_node_is_read_from_its_metrics() -> None:
    name = "kvnode_eventual_read_latency_ms"
    counted = [("0.1", 1), ("0.2", 3), ("0.5", 3), ("5.0", 4), ("+Inf", 4)]
    lines = [f"# TYPE {name} histogram", *(f'{name}_bucket{{le="{bound}"}} {count}.0' for bound, count in counted)]
    text = "\n".join([*lines, f"{name}_count 4.0", f"{name}_sum 3.35", 'kvnode_other_ms_bucket{le="0.1"} 9.0', ""])
    found = eventual_reads(text)
    assert +found == Counter({0.1: 1, 0.2: 2, 5.0: 1})
    assert eventual_reads("") == Counter()


def test_two_data_centers_are_lost_also_when_the_leader_changes_meanwhile() -> None:
    leaders = iter(["us-east-a", "us-east-b"])
    cluster = SimpleNamespace(wait_leader=lambda: next(leaders))
    stage = SimpleNamespace(cluster=cluster, home="us-east", nodes_in=lambda _: ["us-east-a", "us-east-b", "us-east-c"])
    assert len(set(faults.majority(stage))) == 2  # type: ignore[arg-type]


async def test_a_flapping_link_is_whole_afterwards_whenever_it_ends() -> None:
    class Wan:
        def __init__(self) -> None:
            self.is_cut = False
            self.cuts_count = 0

        def cut_between(self, some: list[str], others: list[str]) -> list[str]:
            time.sleep(0.02)  # in a thread, which nobody can cancel
            self.is_cut, self.cuts_count = True, self.cuts_count + 1
            return [*some, *others]

        def heal(self, pairs: list[str]) -> None:
            del pairs
            self.is_cut = False

    cluster = SimpleNamespace(wan=Wan(), clients_site=lambda region: f"clients of {region}")
    stage = SimpleNamespace(cluster=cluster, home="us-east", away=["europe", "asia"], nodes_in=lambda region: [region])
    for lasts_s in (0.0, 0.01, 0.03, 0.06, 0.3):
        async with faults.flapping(0, 2, 0.05)(stage):  # type: ignore[arg-type]
            await asyncio.sleep(lasts_s)
        await asyncio.sleep(0.05)
        assert not cluster.wan.is_cut, f"ended after {lasts_s} s"
    assert cluster.wan.cuts_count > 4


async def test_the_drill_knows_when_it_stood_still() -> None:
    with Pauses() as pauses:
        assert not gc.isenabled()
        await asyncio.sleep(0.03)
        before = now_ms()
        time.sleep(0.2)
        await asyncio.sleep(0.03)
        after = now_ms()
    assert gc.isenabled()
    assert 150 < pauses.longest_ms(before, after) < after - before
    assert pauses.longest_ms(after, after + 1_000) == 0


def test_what_the_host_took_is_read_in_milliseconds(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  6020805 2208291 1285115 4535503 112167 0 191032 250 7 0\ncpu0 1 1 1 1 1 1 1 99 0 0\n")
    assert stolen_ms(stat) == 250 * 1_000 / os.sysconf("SC_CLK_TCK")
    stat.write_text("cpu  1 2 3 4\n")
    assert stolen_ms(stat) == 0, "an old kernel tells less"
    assert stolen_ms(tmp_path / "none") == 0


def test_the_calls_of_no_two_loops_begin_together() -> None:
    for count in (2, 9, 27):
        phases = sorted(phase(number) for number in range(count))
        apart = [later - earlier for earlier, later in itertools.pairwise([*phases, 1.0])]
        assert min(apart) > 0.3 / count


def test_rows_have_names_of_their_own_and_the_short_form_takes_from_them() -> None:
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names)) and set(SHORT) <= set(names)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rows", "leader-killed,nonsense"], "no row is called nonsense"),
        (["--rows", ""], "no row is called ''"),
        (["--repetitions", "0"], "not 0"),
        (["--repetitions", "-1"], "not -1"),
        (["--repetitions", "many"], "not many"),
    ],
)
def test_wrong_flags_are_named_and_are_no_broken_promise(
    flags: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["drill", *flags])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == EXIT_NOT_RUN
    assert said in capsys.readouterr().err


def test_what_is_cut_off_is_of_the_epoch_that_ended_and_behind_the_fork() -> None:
    fork = versionstamp(1, 7, 0)
    assert [is_cut(versionstamp(1, index, 0), fork) for index in (6, 7, 8)] == [False, False, True]
    assert not is_cut(versionstamp(2, 8, 0), fork), "the history that goes on"
    assert not is_cut(versionstamp(1, 8, 0), b""), "nothing was cut"
