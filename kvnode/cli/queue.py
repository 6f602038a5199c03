"""queue send, list, stats, peek, dead-letters, requeue, purge, configure, push, remove."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, KvError, NotFound
from kvnode.cli.data import connect, parse_key, print_commit
from kvnode.cli.options import (
    DEFAULT_ENDPOINTS,
    DEFAULT_TIMEOUT,
    EndpointsOption,
    Output,
    OutputOption,
    TimeoutOption,
    parse_duration,
)
from kvnode.cli.run import fail, run
from kvnode.cli.show import compact, print_json, print_table, show_time
from kvnode.cli.value import BytesOption, FileOption, U64Option, encoded_value
from kvnode.machine.queue.keys import DEFAULT_QUEUE

if TYPE_CHECKING:
    from kvnode.client import CommitResult
    from kvnode.client.queue_admin import QueueAdmin
    from kvnode.proto.kv.v1 import kv_pb2, queue_pb2

COLUMNS = ("queue", "waiting", "in flight", "dead", "delivered", "redelivered", "acknowledged", "oldest due")
NUMBERS = COLUMNS[1:]
_ID = re.compile(r"[0-9a-fA-F]{24}")


def parse_backoff_schedule(text: str | list[int]) -> list[int]:
    """Milliseconds of "100ms,1s,5s"; none of "none". For typer, which names the option in its error."""
    if isinstance(text, list):
        return text
    intervals_ms = [] if text == "none" else [parse_duration(part) for part in text.split(",")]
    for interval_ms in intervals_ms:
        if interval_ms > limits.MAX_BACKOFF_INTERVAL_MS:
            raise typer.BadParameter(f"'{text}' has an interval of more than an hour")
    return intervals_ms


queue_app = typer.Typer(no_args_is_help=True, help="Queues: send a message, see how they stand, set them right.")


def parse_queue(text: str) -> str:
    """A queue's name for typer, which names the argument in its error.

    The empty one, of a variable that is not set, must not stand for the default queue, whose messages may be deleted,
    or which nobody may listen to.
    """
    if not text:
        raise typer.BadParameter("a queue's name is not empty; leave it out for the queue 'default'")
    return text


QueueArgument = Annotated[
    str,
    typer.Argument(
        metavar="QUEUE",
        parser=parse_queue,
        help="Its name; without one, the queue 'default'.",
        show_default=False,
    ),
]
QueueOption = Annotated[
    str,
    typer.Option(
        "--queue",
        metavar="QUEUE",
        parser=parse_queue,
        help="Where to; without it, the queue 'default'.",
        show_default=False,
    ),
]
IdOption = Annotated[
    str | None,
    typer.Option("--id", metavar="ID", help="This dead letter alone, by its own id, which is not its message's."),
]
DeadCountOption = Annotated[int, typer.Option("--count", "-n", metavar="N", min=0, help="How many at most; 0 = all.")]
CountOption = Annotated[int, typer.Option("--count", "-n", metavar="N", min=1, max=100, help="How many, up to 100.")]


@queue_app.command("send")
def send(
    value: Annotated[
        str | None,
        typer.Argument(
            metavar="VALUE",
            help="The message: JSON, or what --bytes or --u64 make of it; a negative number goes after --.",
        ),
    ] = None,
    as_bytes: BytesOption = False,
    as_u64: U64Option = False,
    file: FileOption = None,
    queue: QueueOption = DEFAULT_QUEUE,
    delay: Annotated[
        int, typer.Option(parser=parse_duration, metavar="DURATION", help="Deliver it after so long, up to 30d.")
    ] = "0ms",  # type: ignore[assignment]
    keys_if_undelivered: Annotated[
        list[str] | None,
        typer.Option(
            "--keys-if-undelivered",
            metavar="KEY",
            help="Where the value is written when the last attempt has failed, a JSON array; up to 10 times.",
        ),
    ] = None,
    backoff_schedule: Annotated[
        Any,  # a list of milliseconds; typer would take list[int] for an option that is given several times
        typer.Option(
            "--backoff-schedule",
            metavar="DURATION,...",
            parser=parse_backoff_schedule,
            help="The time before each further attempt, up to 10 of 1h at most; none: the first failure is the last. "
            "By default 100ms,1s,5s,30s,60s.",
        ),
    ] = None,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Put a message in a queue.

    Examples:

      kvnode queue send '{"to": "ada"}' --queue mail --delay 10m

      kvnode queue send --file order.json --bytes --queue orders

      kvnode queue send 7 --keys-if-undelivered '["lost", 7]' --backoff-schedule 1s,1m,10m
    """

    async def work() -> CommitResult:
        from kvnode.codec.values import EncodedValue

        message = EncodedValue(*encoded_value(value, file, as_bytes=as_bytes, as_u64=as_u64))
        keys = [parse_key(key) for key in keys_if_undelivered or ()]
        async with connect(endpoints, timeout) as kv:
            return await kv.enqueue(
                message, queue=queue, delay=delay, keys_if_undelivered=keys, backoff_schedule=backoff_schedule
            )

    print_commit(run(work(), output), output)


@queue_app.command("list")
def list_queues(
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """List the queues of the database, with how each stands.

    Example:

      kvnode queue list
    """
    _show(_run(endpoints, timeout, output, lambda queues: queues.status()), output)


@queue_app.command("stats")
def stats(
    queue: QueueArgument = DEFAULT_QUEUE,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Print everything that is known of one queue. Exit status 6 when it has never been used.

    Example:

      kvnode queue stats mail
    """
    shown = status_json(_run(endpoints, timeout, output, lambda queues: _existing(queues, queue)))
    if output is Output.JSON:
        print_json(shown)
    else:
        for name, value in shown.items():
            print(f"{name}: {value}")


@queue_app.command("peek")
def peek(
    queue: QueueArgument = DEFAULT_QUEUE,
    count: CountOption = 10,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Print the messages that are delivered next. They stay where they are. Exit status 6 when the queue has never been
    used.

    Example:

      kvnode queue peek mail -n 3
    """

    async def act(queues: QueueAdmin) -> list[queue_pb2.WaitingMessage]:
        await _existing(queues, queue)
        return await queues.peek(queue, count)

    found = _run(endpoints, timeout, output, act)
    rows = [
        {
            "id": message.id.hex(),
            "value": payload_json(message.payload),
            "due_at_ms": message.due_at_ms,
            "deliveries": message.deliveries_count,
            **tick_json(message),
        }
        for message in found
    ]
    _print_messages(rows, ("id",), "due_at_ms", output)


@queue_app.command("dead-letters")
def dead_letters(
    queue: QueueArgument = DEFAULT_QUEUE,
    count: DeadCountOption = 10,
    cursor: Annotated[
        str, typer.Option("--cursor", metavar="ID", help="Go on behind the dead letter where an earlier call stopped.")
    ] = "",
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Print the messages that were given up, the oldest first. Exit status 6 when the queue has never been used.

    A dead letter has an id of its own, for --id of `requeue` and `purge`; the message's id is the one that consumers
    and receivers of pushes knew. When there are more, the last line on standard error names the cursor to go on with.

    Examples:

      kvnode queue dead-letters mail

      kvnode queue dead-letters mail -n 0 -o json
    """

    async def act(queues: QueueAdmin) -> None:
        after = _dead_letter_cursor(cursor)
        dead_count = (await _existing(queues, queue)).dead_count
        rows: list[dict[str, Any]] = []
        shown_count = 0
        more = False
        page_count = min(count + 1, limits.MAX_PEEK_COUNT) if count else limits.MAX_PEEK_COUNT  # one tells of more
        async for dead in queues.each_dead_letter(queue, after=after, batch_size=page_count):
            more = 0 < count == shown_count
            if more:
                break
            shown_count += 1
            after = dead.id
            row = _dead_letter_json(dead)
            print_json(row) if output is Output.JSON else rows.append(row)
        if output is not Output.JSON:
            _print_messages(rows, ("id", "message_id"), "died_at_ms", output)
        if more:
            reached = f"limit of {count} reached, of the {dead_count} dead letters"
            print(f"{reached}; go on with --cursor {after.hex()}, or see all with -n 0", file=sys.stderr)

    _run(endpoints, timeout, output, act)


def _dead_letter_json(dead: queue_pb2.DeadLetter) -> dict[str, Any]:
    return {
        "id": dead.id.hex(),
        "message_id": dead.message_id.hex(),
        "value": payload_json(dead.payload),
        "died_at_ms": dead.died_at_ms,
        "deliveries": dead.deliveries_count,
        **tick_json(dead),
    }


def _dead_letter_cursor(text: str) -> bytes:
    """The dead letter that --cursor names; empty = from the beginning. Raises InvalidRequest: BAD_CURSOR."""
    if text and not _ID.fullmatch(text):
        raise InvalidRequest(
            "BAD_CURSOR", f"'{text}' is no cursor: give the one that `queue dead-letters` named, 24 hexadecimal digits"
        )
    return bytes.fromhex(text)


@queue_app.command("requeue")
def requeue(
    queue: QueueArgument = DEFAULT_QUEUE,
    dead_letter: IdOption = None,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Make dead letters messages again, with a fresh schedule: all of a queue, or one. Exit status 6 when the queue has
    never been used.

    Examples:

      kvnode queue requeue mail

      kvnode queue requeue mail --id 000100000000002a00000000
    """

    async def act(queues: QueueAdmin) -> int:
        named = _id(dead_letter)
        await _existing(queues, queue)
        with _dead_letter_explained():
            return await queues.requeue(queue, named)

    _done("requeued", _run(endpoints, timeout, output, act), output)


@queue_app.command("purge")
def purge(
    queue: QueueArgument = DEFAULT_QUEUE,
    dead: Annotated[bool, typer.Option("--dead-letters", help="Delete the dead letters, not the messages.")] = False,
    dead_letter: IdOption = None,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Delete the messages that wait, or the dead letters. What consumers are handling stays. Exit status 6 when the
    queue has never been used.

    Examples:

      kvnode queue purge mail

      kvnode queue purge mail --dead-letters
    """

    async def act(queues: QueueAdmin) -> int:
        named = _id(dead_letter)
        await _existing(queues, queue)
        with _dead_letter_explained():
            return await queues.purge(queue, dead_letters=dead, dead_letter=named)

    _done("deleted", _run(endpoints, timeout, output, act), output)


@queue_app.command("configure")
def configure(
    queue: QueueArgument = DEFAULT_QUEUE,
    *,
    max_messages: Annotated[
        int, typer.Option("--max-messages", metavar="N", min=0, help="Undelivered messages at most; 0 = 100000.")
    ],
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Set how many undelivered messages a queue may hold.

    Example:

      kvnode queue configure mail --max-messages 1000000
    """
    _run(endpoints, timeout, output, lambda queues: queues.configure(queue, max_messages=max_messages))
    _done("configured", 1, output)


@queue_app.command("push")
def push(
    queue: QueueArgument = DEFAULT_QUEUE,
    url: Annotated[str, typer.Option("--url", metavar="URL", help="POST the queue's messages there.")] = "",
    secret: Annotated[
        str, typer.Option("--secret", metavar="whsec_...", help="For the signatures; without it one is made.")
    ] = "",
    concurrency: Annotated[
        int, typer.Option("--concurrency", metavar="N", min=0, help="Requests at a time, up to 100; by default 10.")
    ] = 0,
    request_timeout: Annotated[
        int,
        typer.Option(
            "--request-timeout",
            parser=parse_duration,
            metavar="DURATION",
            help="Of one request, 1s to 5m; by default 15s.",
            show_default=False,
        ),
    ] = "0ms",  # type: ignore[assignment]
    off: Annotated[bool, typer.Option("--off", help="Push no longer.")] = False,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Push a queue's messages to a URL, or show where they are pushed. A secret that is made is printed once.

    Examples:

      kvnode queue push mail --url https://example.com/hook

      kvnode queue push mail

      kvnode queue push mail --off
    """
    wanted = bool(url or secret or concurrency or request_timeout)
    if off and wanted:
        fail(InvalidRequest("BAD_PUSH_FLAGS", "--off stands alone: it ends the push"), output)
    if not off and not wanted:
        _show_push(queue, _run(endpoints, timeout, output, lambda q: q.status(queue)), output)
        return
    if off:
        _run(endpoints, timeout, output, lambda queues: _push_off(queues, queue))
        _done("off", 1, output)
        return

    def act(queues: QueueAdmin) -> Awaitable[str]:
        return queues.push(queue, url, secret=secret, concurrency=concurrency, timeout_ms=request_timeout)

    known = _run(endpoints, timeout, output, act)
    if output is Output.JSON:
        print_json({"configured": 1, "secret": known or None})
        return
    _done("configured", 1, output)
    if known and not secret:
        print(f"secret: {known}")


async def _push_off(queues: QueueAdmin, queue: str) -> None:
    await _existing(queues, queue)  # else it would be made
    await queues.push_off(queue)


def _show_push(queue: str, found: list[queue_pb2.QueueStatus], output: Output | None) -> None:
    pushed = next((status for status in found if status.push_url), None)
    if pushed is None:
        missing = f"the queue '{queue}' is not pushed; `--url` sets where to"
        fail(NotFound(missing, code="PUSH_NOT_CONFIGURED", phase="read"), output)
    shown = push_json(pushed)
    if output is Output.JSON:
        print_json(shown)
        return
    for name, value in shown.items():
        if value is not None:
            print(f"{name}: {show_time(value) if name.endswith('_since_ms') else value}")


def push_json(status: queue_pb2.QueueStatus) -> dict[str, Any]:
    """Where a queue is pushed, and why nothing is if nothing is."""
    return {
        "url": status.push_url,
        "concurrency": status.push_concurrency,
        "timeout_ms": status.push_timeout_ms,
        "error": status.push_error or None,
        "failing_since_ms": status.push_failing_since_ms or None,
    }


@queue_app.command("remove")
def remove(
    queue: Annotated[str, typer.Argument(metavar="QUEUE", parser=parse_queue, help="Its name.")],
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Remove an empty queue, with its counters. Exit status 6 when it has never been used.

    Example:

      kvnode queue remove mail
    """

    async def act(queues: QueueAdmin) -> None:
        await _existing(queues, queue)
        await queues.remove(queue)

    _run(endpoints, timeout, output, act)
    _done("removed", 1, output)


async def _existing(queues: QueueAdmin, queue: str) -> queue_pb2.QueueStatus:
    """How a queue stands. Raises NotFound: QUEUE_NOT_FOUND."""
    found = await queues.status(queue)
    if not found:
        raise NotFound(f"there is no queue '{queue}'; see `kvnode queue list`", code="QUEUE_NOT_FOUND", phase="read")
    return found[0]


def status_json(status: queue_pb2.QueueStatus) -> dict[str, Any]:
    """How a queue stands."""
    return {
        "queue": status.queue,
        "waiting": status.waiting_count,
        "in_flight": status.in_flight_count,
        "dead": status.dead_count,
        "enqueued_total": status.enqueued_total,
        "delivered_total": status.delivered_total,
        "redelivered_total": status.redelivered_total,
        "acknowledged_total": status.acknowledged_total,
        "dead_total": status.dead_total,
        "dead_dropped_total": status.dead_dropped_total,
        "max_messages": status.max_messages_count,
        "next_due_ms": status.next_due_ms or None,
        "push": push_json(status) if status.push_url else None,
    }


def tick_json(message: queue_pb2.WaitingMessage | queue_pb2.DeadLetter) -> dict[str, Any]:
    """Which tick of a cron a message is for, if one sent it."""
    return {"cron": message.cron, "scheduled_at_ms": message.scheduled_at_ms} if message.cron else {}


def payload_json(payload: kv_pb2.Value) -> object:
    """A message's value as JSON has it."""
    from kvnode.codec.json_values import value_to_json

    return value_to_json(payload.data, payload.encoding)


def _show(found: list[queue_pb2.QueueStatus], output: Output | None) -> None:
    if output is Output.JSON:
        for status in found:
            print_json(status_json(status))
        return
    now_ms = time.time_ns() // 1_000_000
    print_table(
        COLUMNS,
        [
            [
                status.queue,
                str(status.waiting_count),
                str(status.in_flight_count),
                str(status.dead_count),
                str(status.delivered_total),
                str(status.redelivered_total),
                str(status.acknowledged_total),
                f"{now_ms - status.next_due_ms} ms ago" if 0 < status.next_due_ms <= now_ms else "-",
            ]
            for status in found
        ],
        right=NUMBERS,
    )


def _print_messages(rows: list[dict[str, Any]], ids: Sequence[str], time_name: str, output: Output | None) -> None:
    if output is Output.JSON:
        for row in rows:
            print_json(row)
        return
    print_table(
        (*ids, time_name.removesuffix("_at_ms"), "deliveries", "value"),
        [
            [*(row[name] for name in ids), show_time(row[time_name]), str(row["deliveries"]), compact(row["value"])]
            for row in rows
        ],
        right=("deliveries",),
    )


def _done(verb: str, count: int, output: Output | None) -> None:
    if output is Output.JSON:
        print_json({verb: count})
    else:
        print(f"OK {verb}" if verb in {"configured", "removed", "off"} else f"OK {count} {verb}")


def _id(text: str | None) -> bytes:
    """The dead letter that --id names; empty without the option. Raises InvalidRequest: BAD_DEAD_LETTER_ID."""
    if text is None:
        return b""
    if not _ID.fullmatch(text):  # the empty one, of a variable that is not set, must not stand for all of them
        raise InvalidRequest(
            "BAD_DEAD_LETTER_ID", f"'{text}' is no id of a dead letter, which has 24 hexadecimal digits"
        )
    return bytes.fromhex(text)


@contextmanager
def _dead_letter_explained() -> Iterator[None]:
    """Whoever names a dead letter that is not there may have named its message, as logs and receivers do."""
    try:
        yield
    except KvError as error:
        if error.code == "DEAD_LETTER_NOT_FOUND":
            error.message += " The id is the dead letter's own, not its message's: both are shown there."
        raise


def _run(endpoints: str, timeout_ms: int, output: Output | None, act: Callable[[QueueAdmin], Awaitable[Any]]) -> Any:
    async def work() -> Any:
        async with connect(endpoints, timeout_ms) as kv:
            return await act(kv.queues)

    return run(work(), output)
