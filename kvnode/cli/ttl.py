"""ttl: when a key goes away, and changing that without its value."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kvnode.cli.data import KeyArgument, connect, parse_key, print_commit
from kvnode.cli.exits import Exit
from kvnode.cli.options import (
    DEFAULT_ENDPOINTS,
    DEFAULT_TIMEOUT,
    ConsistencyOption,
    EndpointsOption,
    Output,
    OutputOption,
    Reading,
    TimeoutOption,
    parse_duration,
)
from kvnode.cli.run import run
from kvnode.cli.show import compact, key_json, print_json, show_time

if TYPE_CHECKING:
    from kvnode.client import AtomicOperation, CommitResult, Entry
    from kvnode.codec.keys import Key

ttl_app = typer.Typer(no_args_is_help=True, help="See, set and remove a key's expiry; its value stays as it is.")

LifeArgument = Annotated[
    int, typer.Argument(metavar="DURATION", parser=parse_duration, help="From now on: 500ms, 30s, 12h, 7d.")
]


@ttl_app.command("get")
def get(
    key: KeyArgument,
    consistency: ConsistencyOption = Reading.STRONG,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Print how long a key has left; 'never' if it does not expire. Exit status 6 when it does not exist.

    Examples:

      kvnode ttl get '["sessions", "ada"]'
    """

    async def work() -> Entry:
        async with connect(endpoints, timeout) as kv:
            return await kv.get(parse_key(key), consistency=consistency.value, keys_only=True)

    entry = run(work(), output)
    left_ms = entry.expires_in()
    if output is Output.JSON:
        shown = {"key": key_json(entry), "versionstamp": entry.versionstamp}
        print_json({**shown, "expire_at_ms": entry.expire_at_ms, "expires_in_ms": left_ms})
    elif entry.exists:
        print("never" if left_ms is None else f"{left_ms} ms, until {show_time(entry.expire_at_ms)}")
    if not entry.exists:
        _not_found(key, output)


@ttl_app.command("set")
def set_(
    key: KeyArgument,
    duration: LifeArgument,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Have a key go away after a time from now on, sooner or later than before. Exit status 6 when it does not exist.

    The key gets a new versionstamp, as by every write.

    Examples:

      kvnode ttl set '["sessions", "ada"]' 30m
    """
    _change(key, duration, endpoints, timeout, output)


@ttl_app.command("clear")
def clear(
    key: KeyArgument,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Have a key stay until it is deleted. Exit status 6 when it does not exist.

    Examples:

      kvnode ttl clear '["sessions", "ada"]'
    """
    _change(key, None, endpoints, timeout, output)


def _change(key: str, expire_in: int | None, endpoints: str, timeout: int, output: Output | None) -> None:
    def add(operation: AtomicOperation, parsed: Key) -> AtomicOperation:
        if expire_in is None:
            return operation.clear_expiry(parsed)
        return operation.set_expiry(parsed, expire_in=expire_in)

    async def work() -> CommitResult | None:
        parsed = parse_key(key)
        async with connect(endpoints, timeout) as kv:
            while True:
                # The check tells a key that exists from one that does not; a write in between means: look again.
                entry = await kv.get(parsed, keys_only=True)
                if not entry.exists:
                    return None
                result = await add(kv.atomic().check(entry), parsed).commit()
                if result.ok:
                    return result

    result = run(work(), output)
    if result is None:
        if output is Output.JSON:
            print_json({"ok": False, "versionstamp": None})
        _not_found(key, output)
    else:
        print_commit(result, output)


def _not_found(key: str, output: Output | None) -> None:
    if output is not Output.JSON:
        print(f"kvnode: {compact(json.loads(key))} does not exist", file=sys.stderr)
    raise typer.Exit(Exit.NOT_FOUND)
