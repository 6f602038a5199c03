"""queue send, list, stats, peek, dead-letters, requeue, purge, configure, push, remove."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvnode.base.errors import InvalidRequest, NotFound
from kvnode.cli.data import connect, print_commit
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

if TYPE_CHECKING:
    from kvnode.client.queue_admin import QueueAdmin
    from kvnode.proto.kv.v1 import kv_pb2, queue_pb2

COLUMNS = ("queue", "waiting", "in flight", "dead", "delivered", "redelivered", "acknowledged", "oldest due")
NUMBERS = COLUMNS[1:]

queue_app = typer.Typer(no_args_is_help=True, help="Queues: send a message, see how they stand, set them right.")

QueueArgument = Annotated[str, typer.Argument(metavar="[QUEUE]", help="Its name; without one, the queue 'default'.")]
IdOption = Annotated[str, typer.Option("--id", metavar="ID", help="This dead letter alone.")]
CountOption = Annotated[int, typer.Option("--count", "-n", metavar="N", min=1, max=100, help="How many, up to 100.")]


@queue_app.command("send")
def send(
    value: Annotated[str, typer.Argument(metavar="JSON", help="The message, as JSON.")],
    queue: Annotated[str, typer.Option("--queue", metavar="QUEUE", help="Where to.")] = "",
    delay: Annotated[
        int, typer.Option(parser=parse_duration, metavar="DURATION", help="Deliver it after so long, up to 30d.")
    ] = "0ms",  # type: ignore[assignment]
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Put a message in a queue.

    Examples:

      kvnode queue send '{"to": "ada"}' --queue mail --delay 10m
    """
    payload = parse_payload(value, output)

    async def work() -> Any:
        async with connect(endpoints, timeout) as kv:
            return await kv.enqueue(payload, queue=queue, delay=delay)

    print_commit(run(work(), output), output)


def parse_payload(text: str, output: Output | None) -> Any:
    """What a message carries, from the command line; ends the process when it is no JSON."""
    try:
        return json.loads(text)
    except ValueError as error:
        fail(InvalidRequest("BAD_VALUE_JSON", f"the message is not JSON: {error}; see --help"), output)


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
    queue: QueueArgument = "",
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Print everything that is known of one queue. Exit status 6 when it has never been used.

    Example:

      kvnode queue stats mail
    """
    found = _run(endpoints, timeout, output, lambda queues: queues.status(queue or "default"))
    if not found:
        missing = f"there is no queue '{queue or 'default'}'; see `kvnode queue list`"
        fail(NotFound(missing, code="QUEUE_NOT_FOUND", phase="read"), output)
    shown = status_json(found[0])
    if output is Output.JSON:
        print_json(shown)
    else:
        for name, value in shown.items():
            print(f"{name}: {value}")


@queue_app.command("peek")
def peek(
    queue: QueueArgument = "",
    count: CountOption = 10,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Print the messages that are delivered next. They stay where they are.

    Example:

      kvnode queue peek mail -n 3
    """
    found = _run(endpoints, timeout, output, lambda queues: queues.peek(queue, count))
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
    _print_messages(rows, "due_at_ms", output)


@queue_app.command("dead-letters")
def dead_letters(
    queue: QueueArgument = "",
    count: CountOption = 10,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Print the messages that were given up, the oldest first.

    Example:

      kvnode queue dead-letters mail
    """
    found = _run(endpoints, timeout, output, lambda queues: queues.dead_letters(queue, count))
    rows = [
        {
            "id": dead.id.hex(),
            "value": payload_json(dead.payload),
            "died_at_ms": dead.died_at_ms,
            "deliveries": dead.deliveries_count,
            **tick_json(dead),
        }
        for dead in found
    ]
    _print_messages(rows, "died_at_ms", output)


@queue_app.command("requeue")
def requeue(
    queue: QueueArgument = "",
    dead_letter: IdOption = "",
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Make dead letters messages again, with a fresh schedule: all of a queue, or one.

    Examples:

      kvnode queue requeue mail

      kvnode queue requeue mail --id 000100000000002a00000000
    """
    _done("requeued", _run(endpoints, timeout, output, lambda q: q.requeue(queue, _id(dead_letter))), output)


@queue_app.command("purge")
def purge(
    queue: QueueArgument = "",
    dead: Annotated[bool, typer.Option("--dead-letters", help="Delete the dead letters, not the messages.")] = False,
    dead_letter: IdOption = "",
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Delete the messages that wait, or the dead letters. What consumers are handling stays.

    Examples:

      kvnode queue purge mail

      kvnode queue purge mail --dead-letters
    """
    count = _run(endpoints, timeout, output, lambda q: q.purge(queue, dead_letters=dead, dead_letter=_id(dead_letter)))
    _done("deleted", count, output)


@queue_app.command("configure")
def configure(
    queue: QueueArgument = "",
    max_messages: Annotated[
        int, typer.Option("--max-messages", metavar="N", min=0, help="Undelivered messages at most; 0 = 100000.")
    ] = 0,
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
    queue: QueueArgument = "",
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
        _show_push(queue, _run(endpoints, timeout, output, lambda q: q.status(queue or "default")), output)
        return
    if off:
        _run(endpoints, timeout, output, lambda queues: queues.push_off(queue))
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


def _show_push(queue: str, found: list[queue_pb2.QueueStatus], output: Output | None) -> None:
    pushed = next((status for status in found if status.push_url), None)
    if pushed is None:
        missing = f"the queue '{queue or 'default'}' is not pushed; `--url` sets where to"
        fail(NotFound(missing, code="PUSH_NOT_CONFIGURED", phase="read"), output)
    shown = push_json(pushed)
    if output is Output.JSON:
        print_json(shown)
        return
    for name, value in shown.items():
        if value is not None:
            print(f"{name}: {value}")


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
    queue: Annotated[str, typer.Argument(metavar="QUEUE", help="Its name.")],
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Remove an empty queue, with its counters.

    Example:

      kvnode queue remove mail
    """
    _run(endpoints, timeout, output, lambda queues: queues.remove(queue))
    _done("removed", 1, output)


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


def _print_messages(rows: list[dict[str, Any]], time_name: str, output: Output | None) -> None:
    if output is Output.JSON:
        for row in rows:
            print_json(row)
        return
    print_table(
        ("id", time_name.removesuffix("_at_ms"), "deliveries", "value"),
        [[row["id"], show_time(row[time_name]), str(row["deliveries"]), compact(row["value"])] for row in rows],
        right=("deliveries",),
    )


def _done(verb: str, count: int, output: Output | None) -> None:
    if output is Output.JSON:
        print_json({verb: count})
    else:
        print(f"OK {verb}" if verb in {"configured", "removed", "off"} else f"OK {count} {verb}")


def _id(text: str) -> bytes:
    from kvnode.base.errors import InvalidRequest

    try:
        return bytes.fromhex(text)
    except ValueError:
        raise InvalidRequest("BAD_LEASE", f"'{text}' is no id: it has 24 hexadecimal digits") from None


def _run(endpoints: str, timeout_ms: int, output: Output | None, act: Callable[[QueueAdmin], Awaitable[Any]]) -> Any:
    async def work() -> Any:
        async with connect(endpoints, timeout_ms) as kv:
            return await act(kv.queues)

    return run(work(), output)
