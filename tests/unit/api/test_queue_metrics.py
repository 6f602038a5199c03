"""The queues' numbers, from rows that the machine wrote."""

from __future__ import annotations

from kvnode.api.cron_metrics import CronStats
from kvnode.api.queue_metrics import QueueStats
from kvnode.machine.directory.view import DirectoryView
from kvnode.node.push.stats import PushStats
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.machine.queue.test_transactions import Database, act


def test_each_queue_shows_how_it_stands() -> None:
    db = Database()
    for delay_ms in (0, 0, 5_000):
        db.enqueue(queue="mail", delay_ms=delay_ms)
    db.run(act(nack={"lease": db.claim(queue="mail")[0].lease, "delay_ms": 0}))
    db.claim(queue="mail")
    view = DirectoryView("c")
    view.load([])
    pushed = PushStats()
    pushed.of((1, "mail")).ok = 5
    pushed.of((1, "mail")).failed = 2
    pushed.of((9, "of a database that is gone")).ok = 1
    stats = QueueStats(db.state, view, lambda: db.now + 70, lambda: 3, pushed)
    families = list(stats.collect())
    pushes = [sample for family in families for sample in family.samples if sample.name == "kvnode_queue_pushed_total"]
    assert [(sample.labels["queue"], sample.labels["result"], sample.value) for sample in pushes] == [
        ("mail", "ok", 5),
        ("mail", "failed", 2),
    ]
    samples = {sample.name: sample for family in families for sample in family.samples if sample not in pushes}
    assert samples["kvnode_queue_waiting_count"].labels == {"database": "default", "queue": "mail"}
    assert {name.removeprefix("kvnode_queue_"): sample.value for name, sample in samples.items()} == {
        "waiting_count": 2,
        "in_flight_count": 1,
        "dead_count": 0,
        "oldest_due_ms": 70,
        "enqueued_total": 3,
        "delivered_total": 2,
        "redelivered_total": 1,
        "acknowledged_total": 0,
        "dead_total": 0,
        "consumers_count": 3,
    }


def test_what_came_back_unseen_counts_as_the_text_says() -> None:
    """A counter never falls: what was claimed for a consumer that had gone stays counted, and is no redelivery."""
    db = Database()
    db.enqueue()
    for _ in range(2):
        (message,) = db.claim()
        assert message.attempt == 1
        db.run(act(release={"lease": message.lease, "unseen": True}))
    view = DirectoryView("c")
    view.load([])
    families = {
        family.name: family for family in QueueStats(db.state, view, lambda: db.now, lambda: 0, PushStats()).collect()
    }
    delivered, redelivered = families["kvnode_queue_delivered"], families["kvnode_queue_redelivered"]
    assert (delivered.samples[0].value, redelivered.samples[0].value) == (2, 0)
    assert "before their consumer saw them" in delivered.documentation


def test_each_cron_shows_how_it_stands() -> None:
    db = Database()
    made = kv_pb2.CronSet(name="a cron", schedule="* * * * *")
    made.message.payload.encoding = kv_pb2.VALUE_ENCODING_BYTES
    db.run(act(cron_set=made))
    for after_ms in (60_000, 60_000, 180_000):  # fired; skipped; two passed over, and skipped
        db.tick(after_ms)
    view = DirectoryView("c")
    view.load([])
    samples = {sample.name: sample for family in CronStats(db.state, view).collect() for sample in family.samples}
    assert samples["kvnode_cron_fired_total"].labels == {"database": "default", "cron": "a cron"}
    assert {name.removeprefix("kvnode_cron_"): sample.value for name, sample in samples.items()} == {
        "fired_total": 1,
        "skipped_total": 2,
        "missed_total": 2,
        "blocked": 0,
    }
