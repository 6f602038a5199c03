"""Texts that no message of the protocol can carry."""

from collections.abc import Callable

import pytest

from kvnode.base.errors import InvalidRequest
from kvnode.client import Admin, Kv, open_kv

CUT = "half a \ud83d"


@pytest.mark.parametrize("text", [CUT, "\udcff", b"bytes", 7])
async def test_a_text_that_cannot_be_sent_is_named(text: str) -> None:
    async with open_kv("127.0.0.1:1") as kv:
        for code, call in (
            ("BAD_QUEUE_NAME", kv.enqueue(1, queue=text)),
            ("BAD_QUEUE_NAME", kv.listen_queue(print, queue=text)),
            ("BAD_TEXT", kv.listen_queue(print, consumer=text)),
            ("BAD_QUEUE_NAME", kv.queues.status(text)),
            ("BAD_QUEUE_NAME", kv.queues.peek(text)),
            ("BAD_QUEUE_NAME", kv.queues.dead_letters(text)),
            ("BAD_QUEUE_NAME", kv.queues.requeue(text)),
            ("BAD_QUEUE_NAME", kv.queues.requeue(text, bytes(12))),
            ("BAD_QUEUE_NAME", kv.queues.purge(text)),
            ("BAD_QUEUE_NAME", kv.queues.purge(text, dead_letter=bytes(12))),
            ("BAD_QUEUE_NAME", kv.queues.configure(text)),
            ("BAD_QUEUE_NAME", kv.queues.push(text, "http://a")),
            ("BAD_TEXT", kv.queues.push("q", text)),
            ("BAD_TEXT", kv.queues.push("q", "http://a", secret=text)),
            ("BAD_QUEUE_NAME", kv.queues.push_off(text)),
            ("BAD_QUEUE_NAME", kv.queues.remove(text)),
            ("BAD_CRON_NAME", kv.cron(text, "* * * * *")),
            ("BAD_CRON_SCHEDULE", kv.cron("c", text)),
            ("BAD_QUEUE_NAME", kv.cron("c", "* * * * *", queue=text)),
            ("BAD_CRON_NAME", kv.crons.delete(text)),
            ("BAD_CRON_NAME", kv.crons.get(text)),
        ):
            await assert_named(text, code, call)


@pytest.mark.parametrize("text", [CUT, "\udcff", b"bytes", 7])
async def test_so_is_one_that_an_administrator_gives(text: str) -> None:
    async with Admin("127.0.0.1:1") as admin:
        for code, call in (
            ("DATABASE_NAME_INVALID", admin.show_database(text)),
            ("DATABASE_NAME_INVALID", admin.create_database(text)),
            ("DATABASE_NAME_INVALID", admin.rename_database(text, "b")),
            ("DATABASE_NAME_INVALID", admin.rename_database("b", text)),
            ("DATABASE_NAME_INVALID", admin.set_database(text, "enabled")),
            ("BAD_TEXT", admin.set_database("b", text)),
            ("DATABASE_NAME_INVALID", admin.delete_database(text)),
            ("DATABASE_NAME_INVALID", admin.create_token(database=text)),
            ("BAD_TEXT", admin.create_token(label=text)),
            ("BAD_TEXT", admin.create_token(right=text)),
            ("BAD_TEXT", admin.revoke_token(text)),
            ("BAD_TEXT", admin.failover(text)),
        ):
            await assert_named(text, code, call)


async def assert_named(text: str, code: str, call: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await call  # type: ignore[misc]
    assert (refused.value.code, repr(text) in refused.value.message) == (code, True)


@pytest.mark.parametrize(
    "begin", [lambda kv: kv.messages(CUT), lambda kv: kv.atomic().enqueue(1, queue=CUT)], ids=["messages", "enqueue"]
)
async def test_it_is_refused_before_anything_is_begun(begin: Callable[[Kv], object]) -> None:
    async with open_kv("127.0.0.1:1") as kv:
        with pytest.raises(InvalidRequest, match="surrogate"):
            begin(kv)
