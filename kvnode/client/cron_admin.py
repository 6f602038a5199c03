"""Crons: messages that a database sends to its queues by a schedule; what `kvnode cron` does."""

from __future__ import annotations

from collections.abc import Sequence

from kvnode.client import rpc
from kvnode.client.atomic import message_of
from kvnode.client.numbers import parse_flag
from kvnode.client.queue_admin import Commit
from kvnode.client.texts import CRON_NAME, sendable
from kvnode.client.unary import UnaryCaller
from kvnode.codec.keys import AnyKey
from kvnode.proto.kv.v1 import kv_pb2, queue_pb2


class CronAdmin:
    """The crons of one database (`kv.crons`). Every method raises KvError.

    Args:
        unary: calls the nodes.
        commit: commits a transaction.
        timeout_ms: of each call.
    """

    def __init__(self, unary: UnaryCaller, commit: Commit, timeout_ms: int) -> None:
        self._unary = unary
        self._commit = commit
        self._timeout_ms = timeout_ms

    async def set(
        self,
        name: str,
        schedule: str,
        value: object = None,
        *,
        queue: str = "",
        keys_if_undelivered: Sequence[AnyKey] = (),
        backoff_schedule: Sequence[float] | None = None,
        allow_overlap: bool = False,
        must_be_new: bool = False,
    ) -> int | None:
        """Make a cron, or change it.

        Set again with the same schedule it goes on where it was, so that a program may set its crons at every start.

        Args:
            name: 1 to 64 letters, digits, spaces, _ and -; one for each database.
            schedule: minute, hour, day of the month, month, day of the week, in UTC, by the rules of Deno.cron: a day
                of the week as a number counts from 1, Sunday.
            value: what each message carries; its `cron` and `scheduled_at_ms` say which tick it is for.
            queue, keys_if_undelivered, backoff_schedule: of the messages, as AtomicOperation.enqueue has them.
            allow_overlap: send at a tick although the message of the one before is not handled yet.
            must_be_new: refuse to change one (CRON_EXISTS).

        Returns:
            Its next tick, milliseconds since 1970; None when the write had to be sent again.
        """
        made = kv_pb2.CronSet(
            name=_named(name),
            schedule=sendable("schedule", schedule, "BAD_CRON_SCHEDULE"),
            allow_overlap=parse_flag("allow_overlap", allow_overlap),
            must_be_new=parse_flag("must_be_new", must_be_new),
        )
        made.message.CopyFrom(message_of(value, queue, keys_if_undelivered, backoff_schedule))
        response = await self._act(kv_pb2.QueueAction(cron_set=made))
        return response.results[0].next_at_ms if response.results else None

    async def delete(self, name: str) -> None:
        """Remove a cron; the messages that it has sent stay. Raises KvError: CRON_NOT_FOUND."""
        await self._act(kv_pb2.QueueAction(cron_delete=kv_pb2.CronDelete(name=_named(name))))

    async def status(self) -> list[queue_pb2.CronStatus]:
        """How each cron of the database stands, by name."""
        return await self._crons("")

    async def get(self, name: str) -> queue_pb2.CronStatus | None:
        """How one stands, with the message that it sends; None when there is none of that name."""
        found = await self._crons(name)
        return found[0] if found else None

    async def _crons(self, name: str) -> list[queue_pb2.CronStatus]:
        request = queue_pb2.CronsRequest(name=_named(name))
        return [*(await self._unary.call(rpc.CRONS, request, self._timeout_ms)).crons]

    async def _act(self, action: kv_pb2.QueueAction) -> kv_pb2.AtomicWriteResponse:
        return await self._commit(kv_pb2.AtomicWriteRequest(actions=[action]), self._timeout_ms)


def _named(cron: str) -> str:
    return sendable("name", cron, CRON_NAME)
