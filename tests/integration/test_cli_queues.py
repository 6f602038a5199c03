"""`kvnode queue`, `kvnode cron` and the enqueues of `kvnode atomic` against three real nodes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import datetime

import pytest

from cluster.launcher import LocalCluster
from kvnode.client import Kv, open_kv
from kvnode.client.queue import QueueMessage
from tests.integration.helpers import three_nodes
from tests.unit.cli.conftest import Cli


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with three_nodes(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cli(nodes: LocalCluster) -> Cli:
    return Cli(",".join(nodes.addresses))


@pytest.fixture
async def kv(nodes: LocalCluster) -> AsyncIterator[Kv]:
    async with open_kv(nodes.addresses) as made:
        yield made


async def fail_next(kv: Kv, queue: str) -> QueueMessage:
    """Take the next message and let it fail."""
    async with kv.messages(queue) as messages:
        message: QueueMessage = await asyncio.wait_for(anext(messages), 10)
        await message.nack()
        return message


async def test_a_message_takes_the_forms_of_a_value(cli: Cli, kv: Kv) -> None:
    forms = {'{"$bytes": "aGk="}': b"hi", '{"$bigint": "7"}': 7, '{"$v8": "/w8iAmhp"}': "hi"}
    for form in forms:
        assert (await cli("queue", "send", form, "--queue", "forms")).status == 0
    assert (await cli("queue", "send", "{hi}", "--bytes", "--queue", "forms")).status == 0
    async with kv.messages("forms", concurrency=4) as messages:
        found = [(await asyncio.wait_for(anext(messages), 10)).value for _ in range(4)]
    assert found == [*forms.values(), b"{hi}"]


async def test_the_message_of_a_cron_takes_the_forms_of_a_value(cli: Cli, kv: Kv) -> None:
    made = await cli("cron", "create", "hi", "0 0 1 JAN *", '{"$bytes": "aGk="}')
    assert made.status == 0, made.err
    cron = await kv.crons.get("hi")
    assert cron is not None and cron.message.payload.data == b"hi"
    assert 'value: {"$bytes": "aGk="}' in (await cli("cron", "show", "hi")).out


async def test_a_message_is_sent_with_a_schedule_and_keys_for_its_failure(cli: Cli, kv: Kv) -> None:
    options = ("--backoff-schedule", "none", "--keys-if-undelivered", '["lost", 1]', "--keys-if-undelivered", '["too"]')
    assert (await cli("queue", "send", "7", "--queue", "given-up", *options)).status == 0
    await fail_next(kv, "given-up")
    assert [(await kv.get(key)).value for key in (("lost", 1), ("too",))] == [7, 7]
    (dead,) = await kv.queues.dead_letters("given-up")
    assert dead.deliveries_count == 1


async def test_a_transaction_enqueues(cli: Cli, kv: Kv) -> None:
    message = {"value": 1, "queue": "atomic", "keys_if_undelivered": [["undelivered"]], "backoff_schedule": []}
    later = {"value": {"$bytes": "aGk="}, "queue": "later", "delay": 60_000}
    wanted = {"mutations": [{"type": "set", "key": ["beside"], "value": 1}], "enqueues": [message, later]}
    ran = await cli("atomic", stdin=json.dumps(wanted))
    assert ran.status == 0, ran.err
    await fail_next(kv, "atomic")
    assert [(await kv.get((key,))).value for key in ("beside", "undelivered")] == [1, 1]
    (waiting,) = await kv.queues.peek("later")
    assert (waiting.payload.data, waiting.due_at_ms - waiting.enqueued_at_ms) == (b"hi", 60_000)


async def test_an_empty_id_or_name_stands_for_nothing(cli: Cli, kv: Kv) -> None:
    """`kvnode queue purge mail --id "$ID"`, and ID is not set."""
    await kv.enqueue(1, queue="kept")
    await kv.enqueue(1)
    for arguments in (("purge", "kept", "--id", ""), ("requeue", "kept", "--id", ""), ("purge", "")):
        ran = await cli("queue", *arguments)
        assert ran.status == 2, ran.out
    assert [(await kv.queues.status(queue))[0].waiting_count for queue in ("kept", "default")] == [1, 1]


async def test_half_a_surrogate_pair_is_shown_escaped(cli: Cli, kv: Kv) -> None:
    """A string of JavaScript may hold one; what stands behind it is shown all the same."""
    await kv.enqueue("\ud800é", queue="odd")
    await kv.enqueue("behind it", queue="odd")
    for output in ("table", "json"):
        ran = await cli("queue", "peek", "odd", "-o", output)
        assert ran.status == 0, ran.err
        assert '"\\ud800é"' in ran.out and "behind it" in ran.out


async def test_a_dead_letter_says_which_message_it_was(cli: Cli, kv: Kv) -> None:
    """Handlers have logged the message's id, and receivers of pushes know it."""
    await kv.enqueue(1, queue="known", backoff_schedule=[])
    message = await fail_next(kv, "known")
    shown = (await cli("queue", "dead-letters", "known", "-o", "json")).json
    assert shown["message_id"] == message.id != shown["id"]
    assert message.id in (await cli("queue", "dead-letters", "known")).out
    mistaken = await cli("queue", "requeue", "known", "--id", message.id)
    assert (mistaken.status, "not its message's" in mistaken.err) == (2, True), mistaken.err
    assert (await cli("queue", "requeue", "known", "--id", shown["id"])).out == "OK 1 requeued\n"


async def fail_many(kv: Kv, queue: str, count: int) -> None:
    """Take as many messages and let them fail."""
    async with kv.messages(queue, concurrency=count) as messages:
        async with asyncio.timeout(20):
            await asyncio.gather(*[(await anext(messages)).nack() for _ in range(count)])


async def test_dead_letters_are_paged_to_the_last(cli: Cli, kv: Kv) -> None:
    await asyncio.gather(*(kv.enqueue(number, queue="paged", backoff_schedule=[]) for number in range(205)))
    await fail_many(kv, "paged", 205)
    first = await cli("queue", "dead-letters", "paged", "-n", "150", "-o", "json")
    shown = [json.loads(line) for line in first.out.splitlines()]
    assert (first.status, len(shown)) == (0, 150)
    assert f"of the 205 dead letters; go on with --cursor {shown[-1]['id']}" in first.err
    rest = await cli("queue", "dead-letters", "paged", "-n", "55", "--cursor", shown[-1]["id"], "-o", "json")
    shown += [json.loads(line) for line in rest.out.splitlines()]
    assert sorted(row["value"] for row in shown) == list(range(205))
    assert rest.err == "", "these were the last"
    everything = await cli("queue", "dead-letters", "paged", "-n", "0", "-o", "json")
    assert ([json.loads(line) for line in everything.out.splitlines()], everything.err) == (shown, "")
    table = await cli("queue", "dead-letters", "paged")
    assert (table.out.count("\n") > 10, "--cursor" in table.err) == (True, True)
    # What was shown last can be taken alone, and the others all together.
    last = shown[-1]["id"]
    assert (await cli("queue", "requeue", "paged", "--id", last)).out == "OK 1 requeued\n"
    assert (await cli("queue", "purge", "paged", "--id", shown[-2]["id"])).out == "OK 1 deleted\n"
    gone = await cli("queue", "dead-letters", "paged", "--cursor", shown[-2]["id"])
    assert (gone.status, gone.out.count(last)) == (0, 0), "a cursor whose dead letter is gone is one all the same"
    assert (await cli("queue", "requeue", "paged")).out == "OK 203 requeued\n"
    wrong = await cli("queue", "dead-letters", "paged", "--cursor", "abc")
    assert (wrong.status, "BAD_CURSOR" in wrong.err, "'abc'" in wrong.err) == (2, True, True)
    await fail_many(kv, "paged", 204)
    assert (await cli("queue", "purge", "paged", "--dead-letters")).out == "OK 204 deleted\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("stats", "nosuch"),
        ("peek", "nosuch"),
        ("dead-letters", "nosuch"),
        ("requeue", "nosuch"),
        ("requeue", "nosuch", "--id", "0" * 24),
        ("purge", "nosuch"),
        ("purge", "nosuch", "--dead-letters"),
        ("remove", "nosuch"),
        ("push", "nosuch", "--off"),
    ],
)
async def test_a_queue_that_was_never_used_is_not_found_and_not_made(
    cli: Cli, kv: Kv, arguments: tuple[str, ...]
) -> None:
    ran = await cli("queue", *arguments)
    assert (ran.status, "QUEUE_NOT_FOUND" in ran.err) == (6, True)
    assert await kv.queues.status("nosuch") == []


async def test_since_when_nothing_is_pushed_is_shown_as_a_time(cli: Cli) -> None:
    assert (await cli("queue", "push", "refused", "--url", "http://127.0.0.1:1/")).status == 0
    async with asyncio.timeout(10):
        while not (shown := (await cli("queue", "push", "refused", "-o", "json")).json)["error"]:
            await asyncio.sleep(0.1)
    since = (await cli("queue", "push", "refused")).out.partition("failing_since_ms: ")[2].strip()
    assert datetime.fromisoformat(since).timestamp() * 1000 == pytest.approx(shown["failing_since_ms"], abs=1)
