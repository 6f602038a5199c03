"""cron create, list, show, delete."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvnode.base.errors import NotFound
from kvnode.cli.data import connect
from kvnode.cli.options import (
    DEFAULT_ENDPOINTS,
    DEFAULT_TIMEOUT,
    EndpointsOption,
    Output,
    OutputOption,
    TimeoutOption,
)
from kvnode.cli.queue import QueueOption, payload_json
from kvnode.cli.run import fail, run
from kvnode.cli.show import compact, print_json, print_table, show_time
from kvnode.cli.value import json_value
from kvnode.machine.queue.keys import DEFAULT_QUEUE

if TYPE_CHECKING:
    from kvnode.client.cron_admin import CronAdmin
    from kvnode.proto.kv.v1 import queue_pb2

COLUMNS = ("cron", "schedule", "queue", "next tick", "last tick", "fired", "skipped", "missed", "blocked by")
NUMBERS = ("fired", "skipped", "missed")

cron_app = typer.Typer(no_args_is_help=True, help="Crons: messages that are sent to a queue by a schedule, in UTC.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Its name: letters, digits, spaces, _ and -.")]


@cron_app.command("create")
def create(
    name: NameArgument,
    schedule: Annotated[
        str,
        typer.Argument(
            metavar="SCHEDULE",
            help="Minute, hour, day of the month, month, day of the week; numbers of the last count from 1, Sunday.",
        ),
    ],
    value: Annotated[str, typer.Argument(metavar="JSON", help="What each message carries, as JSON.")] = "null",
    queue: QueueOption = DEFAULT_QUEUE,
    overlap: Annotated[
        bool, typer.Option("--overlap", help="Send although the message of the tick before is not handled yet.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Change the cron of that name; with the same schedule it goes on.")
    ] = False,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Send a message to a queue at each tick of a schedule.

    Examples:

      kvnode cron create nightly '30 3 * * *' '{"report": "sales"}' --queue reports

      kvnode cron create payday '0 9 LW * *' --queue payroll
    """

    async def act(crons: CronAdmin) -> int | None:
        from kvnode.codec.values import EncodedValue

        sent = EncodedValue(*json_value(value, 'bytes \'{"$bytes": "<base64>"}\''))
        return await crons.set(name, schedule, sent, queue=queue, allow_overlap=overlap, must_be_new=not replace)

    next_at_ms = _run(endpoints, timeout, output, act)
    if output is Output.JSON:
        print_json({"name": name, "next_at_ms": next_at_ms})
    else:
        print(f"OK the next tick is {show_time(next_at_ms)}" if next_at_ms else "OK")


@cron_app.command("list")
def list_crons(
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """List the crons of the database, with how each stands.

    Example:

      kvnode cron list
    """
    found = _run(endpoints, timeout, output, lambda crons: crons.status())
    if output is Output.JSON:
        for status in found:
            print_json(status_json(status))
        return
    print_table(COLUMNS, [_row(status) for status in found], right=NUMBERS)


@cron_app.command("show")
def show(
    name: NameArgument,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Print everything that is known of one cron. Exit status 6 when there is none of that name.

    Example:

      kvnode cron show nightly
    """
    status = _run(endpoints, timeout, output, lambda crons: crons.get(name))
    if status is None:
        missing = f"there is no cron '{name}'; see `kvnode cron list`"
        fail(NotFound(missing, code="CRON_NOT_FOUND", phase="read"), output)
    shown = {**status_json(status), "value": payload_json(status.message.payload)}
    shown["backoff_schedule"] = list(status.message.backoff_intervals_ms)
    if output is Output.JSON:
        print_json(shown)
        return
    for field, found in {**shown, "value": compact(shown["value"])}.items():
        print(f"{field}: {show_time(found) if field.endswith('_at_ms') else found}")


@cron_app.command("delete")
def delete(
    name: NameArgument,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Delete a cron. The messages that it has sent stay in their queue.

    Example:

      kvnode cron delete nightly
    """
    _run(endpoints, timeout, output, lambda crons: crons.delete(name))
    if output is Output.JSON:
        print_json({"deleted": name})
    else:
        print("OK deleted")


def status_json(status: queue_pb2.CronStatus) -> dict[str, Any]:
    """How a cron stands."""
    return {
        "name": status.name,
        "schedule": status.schedule,
        "queue": status.queue,
        "allow_overlap": status.allow_overlap,
        "next_at_ms": status.next_at_ms or None,
        "last_at_ms": status.last_at_ms or None,
        "fired_at_ms": status.fired_at_ms or None,
        "fired_total": status.fired_total,
        "skipped_total": status.skipped_total,
        "missed_total": status.missed_total,
        "blocked_by": status.blocked_by or None,
        "created_at_ms": status.created_at_ms,
    }


def _row(status: queue_pb2.CronStatus) -> list[str]:
    counts = [str(status.fired_total), str(status.skipped_total), str(status.missed_total)]
    times = [show_time(status.next_at_ms), show_time(status.last_at_ms) or "-"]
    return [status.name, status.schedule, status.queue, *times, *counts, status.blocked_by or "-"]


def _run(endpoints: str, timeout_ms: int, output: Output | None, act: Callable[[CronAdmin], Awaitable[Any]]) -> Any:
    async def work() -> Any:
        async with connect(endpoints, timeout_ms) as kv:
            return await act(kv.crons)

    return run(work(), output)
