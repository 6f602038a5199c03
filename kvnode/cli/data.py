"""get, set, delete, list, count, watch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvnode.base.errors import InvalidRequest
from kvnode.cli.exits import Exit
from kvnode.cli.options import (
    DEFAULT_ENDPOINTS,
    DEFAULT_TIMEOUT,
    ConsistencyOption,
    EndpointsOption,
    MaxStalenessOption,
    MinVersionstampOption,
    Output,
    OutputOption,
    Reading,
    TimeoutOption,
    WatchStalenessOption,
    parse_duration,
)
from kvnode.cli.progress import progress_bar
from kvnode.cli.run import fail, run
from kvnode.cli.selection import chosen
from kvnode.cli.show import ESCAPED, compact, entry_columns, entry_json, entry_row, print_json, print_table, value_json
from kvnode.cli.value import BytesOption, FileOption, U64Option, encoded_value

if TYPE_CHECKING:
    from kvnode.client import CommitResult, Entry, Kv
    from kvnode.codec.keys import Key

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="A JSON array, such as '[\"users\", 1]'.")]
OptionalPrefix = Annotated[
    str, typer.Argument(metavar="PREFIX", help="A JSON array: every key that begins with these parts. [] = all keys.")
]
StartOption = Annotated[str | None, typer.Option("--start", metavar="KEY", help="The first key, included.")]
EndOption = Annotated[str | None, typer.Option("--end", metavar="KEY", help="Where to stop, excluded.")]
IfVersionstampOption = Annotated[
    str | None,
    typer.Option(
        "--if-versionstamp",
        metavar="STAMP",
        help="Only if the key still has this versionstamp, or, with 'none', does not exist; else exit status 3.",
    ),
]

DEFAULT_LIST_LIMIT = 100


def connect(endpoints: str, timeout_ms: int) -> Kv:
    """The client for one command."""
    from kvnode.client import open_kv

    return open_kv(
        endpoints,
        database=chosen.database,
        token=chosen.token,
        credentials=chosen.credentials(),
        timeout_ms=timeout_ms,
        fail_fast=True,
    )


def parse_key(text: str) -> Key:
    """A key from the command line. Raises InvalidRequest: BAD_KEY_JSON."""
    from kvnode.codec.json_keys import key_from_json

    return key_from_json(text)


def print_commit(result: CommitResult, output: Output | None) -> None:
    """Say how a commit went; a failed check is exit status 3."""
    if output is Output.JSON:
        shown: dict[str, Any] = {"ok": result.ok, "versionstamp": result.versionstamp}
        print_json(shown if result.ok else {**shown, "failed_checks": list(result.failed_checks)})
    elif result.ok:
        print(f"OK {result.versionstamp}")
    else:
        failed = ", ".join(str(number) for number in result.failed_checks)
        print(
            f"kvnode: check {failed} did not hold: the key's versionstamp is another one; nothing was changed",
            file=sys.stderr,
        )
    if not result.ok:
        raise typer.Exit(Exit.CHECK_FAILED)


def get(
    key: KeyArgument,
    as_bytes: Annotated[
        bool, typer.Option("--bytes", help="Write the value's bytes as they are stored, without a newline.")
    ] = False,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="PATH", help="Write the value's bytes into this file.")
    ] = None,
    consistency: ConsistencyOption = Reading.STRONG,
    max_staleness: MaxStalenessOption = None,
    min_versionstamp: MinVersionstampOption = None,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Print the value of a key, as JSON. Exit status 6 when it does not exist.

    Examples:

      kvnode get '["users", "ada"]'

      kvnode get '["users", "ada"]' -o json | jq .versionstamp

      kvnode get '["photo"]' --file photo.jpg

      kvnode get '["users", "ada"]' -c eventual --max-staleness 2s
    """

    async def work() -> Entry:
        async with connect(endpoints, timeout) as kv:
            return await kv.get(
                parse_key(key),
                consistency=consistency.value,
                max_staleness_ms=max_staleness,
                min_versionstamp=min_versionstamp,
            )

    entry = run(work(), output)
    if output is Output.JSON:
        age = _age(consistency, entry.age_ms)
        print_json({**entry_json(entry), **age})
    elif output is Output.TABLE:
        print_table(entry_columns(), [entry_row(entry)])
    elif entry.exists and file is not None:
        file.write_bytes(_as_bytes(entry))
    elif entry.exists and as_bytes:
        sys.stdout.buffer.write(_as_bytes(entry))
        sys.stdout.buffer.flush()
    elif entry.exists:
        print(compact(value_json(entry)))
    else:
        print(f"kvnode: {compact(json.loads(key))} does not exist", file=sys.stderr)
    if not entry.exists:
        raise typer.Exit(Exit.NOT_FOUND)


def _as_bytes(entry: Entry) -> bytes:
    from kvnode.codec import values

    data, encoding = entry.raw
    return data if encoding == values.BYTES else compact(value_json(entry)).encode(errors=ESCAPED)


def set_(
    key: KeyArgument,
    value: Annotated[
        str | None,
        typer.Argument(
            metavar="VALUE", help="JSON, or what --bytes or --u64 make of it; a negative number goes after --."
        ),
    ] = None,
    as_bytes: BytesOption = False,
    as_u64: U64Option = False,
    file: FileOption = None,
    expire_in: Annotated[
        int | None,
        typer.Option("--expire-in", metavar="DURATION", parser=parse_duration, help="When it goes away: 30s, 12h, 7d."),
    ] = None,
    if_versionstamp: IfVersionstampOption = None,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Set a key.

    Examples:

      kvnode set '["users", "ada"]' '{"born": 1815}'

      kvnode set '["visits"]' 0 --u64

      kvnode set '["photo"]' --file photo.jpg --bytes

      kvnode set '["lock"]' true --expire-in 30s --if-versionstamp none
    """

    async def work() -> CommitResult:
        data, encoding = encoded_value(value, file, as_bytes=as_bytes, as_u64=as_u64)
        parsed = parse_key(key)
        async with connect(endpoints, timeout) as kv:
            operation = kv.atomic()
            if if_versionstamp is not None:
                operation.check(parsed, _stamp(if_versionstamp))
            return await operation.set_raw(parsed, data, encoding, expire_in=expire_in).commit()

    print_commit(run(work(), output), output)


def _stamp(text: str) -> str | None:
    return None if text.lower() == "none" else text


def delete(
    keys: Annotated[list[str], typer.Argument(metavar="KEY", help="Keys, each a JSON array; all or none go.")],
    prefix: Annotated[
        bool,
        typer.Option(
            "--prefix", help="Delete every key below each KEY, 1,000 in a transaction; KEY itself stays. [] = all keys."
        ),
    ] = False,
    if_versionstamp: IfVersionstampOption = None,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Delete keys; one that does not exist is no error.

    Examples:

      kvnode delete '["users", "ada"]'

      kvnode delete --prefix '["sessions"]'
    """
    if prefix and if_versionstamp is not None:
        fail(InvalidRequest("BAD_FLAGS", "--prefix and --if-versionstamp exclude each other"), output)

    async def delete_prefixes() -> int:
        prefixes = [parse_key(key) for key in keys]
        async with connect(endpoints, timeout) as kv:
            return sum([await _delete_prefix(kv, prefix) for prefix in prefixes])

    async def delete_keys() -> CommitResult:
        async with connect(endpoints, timeout) as kv:
            operation = kv.atomic()
            for key in map(parse_key, keys):
                if if_versionstamp is not None:
                    operation.check(key, _stamp(if_versionstamp))
                operation.delete(key)
            return await operation.commit()

    if not prefix:
        print_commit(run(delete_keys(), output), output)
        return
    count = run(delete_prefixes(), output)
    print_json({"ok": True, "deleted": count}) if output is Output.JSON else print(f"OK {count} deleted")


async def _delete_prefix(kv: Kv, prefix: Key) -> int:
    total = await kv.count(prefix) if sys.stderr.isatty() else None
    with progress_bar("deleting", "keys", total) as advance:
        shown = 0

        def deleted(count: int) -> None:
            nonlocal shown
            advance(count - shown)
            shown = count

        return await kv.delete_prefix(prefix, progress=deleted)


def list_(
    prefix: OptionalPrefix = "[]",
    start: StartOption = None,
    end: EndOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="Entries at most; 0 = all.")] = DEFAULT_LIST_LIMIT,
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="The last entry first.")] = False,
    keys_only: Annotated[bool, typer.Option("--keys-only", "-k", help="Leave the values out.")] = False,
    cursor: Annotated[str, typer.Option("--cursor", help="Go on where an earlier list stopped.")] = "",
    consistency: ConsistencyOption = Reading.STRONG,
    max_staleness: MaxStalenessOption = None,
    min_versionstamp: MinVersionstampOption = None,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """List entries in the order of their keys. With -o json, one object a line.

    When there is more, the last line on standard error names the cursor to go on with.

    Examples:

      kvnode list '["users"]'

      kvnode list --limit 0 --keys-only -o json | wc -l

      kvnode list '["log"]' --start '["log", "2030"]' --reverse --limit 1
    """

    async def work() -> None:
        async with connect(endpoints, timeout) as kv:
            listing = kv.list(
                parse_key(prefix),
                start=parse_key(start) if start else None,
                end=parse_key(end) if end else None,
                limit=limit or None,
                reverse=reverse,
                consistency=consistency.value,
                max_staleness_ms=max_staleness,
                min_versionstamp=min_versionstamp,
                cursor=cursor,
                keys_only=keys_only,
                batch_size=min(limit, 1_000) or 1_000,
            )
            rows: list[list[str]] = []
            count = 0
            async for entry in listing:
                count += 1
                if output is Output.JSON:
                    print_json(entry_json(entry, keys_only=keys_only))
                else:
                    rows.append(entry_row(entry, keys_only=keys_only))
            if output is not Output.JSON:
                print_table(entry_columns(keys_only=keys_only), rows)
            if limit and count == limit:
                print(f"limit of {limit} reached; go on with --cursor {listing.cursor}", file=sys.stderr)

    run(work(), output)


def count(
    prefix: OptionalPrefix = "[]",
    start: StartOption = None,
    end: EndOption = None,
    consistency: ConsistencyOption = Reading.STRONG,
    max_staleness: MaxStalenessOption = None,
    min_versionstamp: MinVersionstampOption = None,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Count keys, at the node: nothing but the number travels.

    Examples:

      kvnode count

      kvnode count '["users"]' --consistency eventual
    """

    async def work() -> int:
        async with connect(endpoints, timeout) as kv:
            return await kv.count(
                parse_key(prefix),
                start=parse_key(start) if start else None,
                end=parse_key(end) if end else None,
                consistency=consistency.value,
                max_staleness_ms=max_staleness,
                min_versionstamp=min_versionstamp,
            )

    found = run(work(), output)
    print_json({"count": found}) if output is Output.JSON else print(found)


def watch(
    keys: Annotated[
        list[str], typer.Argument(metavar="KEY", help="Up to 10 keys, or with --prefix one, each a JSON array.")
    ],
    prefix: Annotated[bool, typer.Option("--prefix", help="Print the changes of every key below KEY.")] = False,
    consistency: ConsistencyOption = Reading.STRONG,
    max_staleness: WatchStalenessOption = None,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    output: OutputOption = None,
) -> None:
    """Print keys whenever they change, until Ctrl-C. With -o json, one object a state; age_ms says how old it may be,
    if it is an eventual one.

    The first state comes at once. States in between may be left out, the last one never. Lost nodes are replaced
    silently.

    Examples:

      kvnode watch '["jobs", 7]'

      kvnode watch --prefix '["jobs"]' -o json

      kvnode watch '["price", 7]' --consistency eventual --max-staleness 5s
    """
    if prefix and len(keys) != 1:
        fail(InvalidRequest("BAD_FLAGS", "--prefix takes one KEY"), output)

    async def work() -> None:
        async with connect(endpoints, 1) as kv:
            if prefix:
                await _watch_prefix(kv, parse_key(keys[0]), consistency, max_staleness, output)
            parsed = [parse_key(key) for key in keys]
            states = kv.watch(parsed, consistency=consistency.value, max_staleness_ms=max_staleness)
            async for entries in states:
                _print_state(entries, _age(consistency, states.age_ms), output)

    run(work(), output)


async def _watch_prefix(
    kv: Kv, prefix: Key, consistency: Reading, max_staleness_ms: int | None, output: Output | None
) -> None:
    async for changes in kv.watch_prefix(prefix, consistency=consistency.value, max_staleness_ms=max_staleness_ms):
        if output is Output.JSON:
            shown = [entry_json(entry) for entry in changes.entries]
            of = {"versionstamp": changes.versionstamp, "resync": changes.resync, **_age(consistency, changes.age_ms)}
            print_json({**of, "entries": shown})
            continue
        if changes.resync:
            note = f"# at {changes.versionstamp}; earlier changes are not shown, list the prefix to see its state"
            print(note, flush=True)
        for entry in changes.entries:
            print("  ".join(entry_row(entry)), flush=True)


def _age(consistency: Reading, age_ms: int) -> dict[str, int]:
    """How old what is shown may be; only of what is read from the node itself."""
    return {"age_ms": age_ms} if consistency is Reading.EVENTUAL else {}


def _print_state(entries: list[Entry], age: dict[str, int], output: Output | None) -> None:
    if output is Output.JSON:
        print_json({**age, "entries": [entry_json(entry) for entry in entries]})
    elif len(entries) == 1:
        print("  ".join(entry_row(entries[0])), flush=True)
    else:
        print_table(entry_columns(), [entry_row(entry) for entry in entries])
