"""atomic: a transaction from JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.cli.data import connect, print_commit
from kvnode.cli.options import DEFAULT_ENDPOINTS, DEFAULT_TIMEOUT, EndpointsOption, OutputOption, TimeoutOption
from kvnode.cli.run import run

if TYPE_CHECKING:
    from kvnode.client import AtomicOperation, CommitResult
    from kvnode.codec.keys import Key

COMMIT_VERSIONSTAMP_PART = {"$commit_versionstamp": True}
_ENQUEUE_FIELDS = {"value", "queue", "delay", "keys_if_undelivered", "backoff_schedule"}


def atomic(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Where the transaction stands; - or nothing = standard input."),
    ] = None,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Commit a transaction, all of it or nothing, from JSON. Exit status 3 when a check does not hold.

    The JSON is an object with "checks", "mutations" and "enqueues", all optional:

      {"checks": [{"key": ["a"], "versionstamp": null}],
       "mutations": [{"type": "set", "key": ["a"], "value": 1, "expire_in": 60000},
                     {"type": "sum", "key": ["n"], "value": 1}],
       "enqueues": [{"value": {"to": "ada"}, "queue": "mail", "delay": 60000,
                     "keys_if_undelivered": [["lost", "ada"]], "backoff_schedule": [1000, 60000]}]}

    Mutations: set, delete, sum, min, max (a whole number is a KvU64), set_expiry ("expire_in", null = never; the
    value stays), delete_prefix ("key" is the prefix) and delete_range ("key" to "end"). The last part of a set's key
    may be {"$commit_versionstamp": true}.

    Of an enqueue only "value" is needed. Times are milliseconds; "backoff_schedule" [] means that the first failure is
    the last, without it the schedule is 100, 1000, 5000, 30000, 60000.

    Examples:

      echo '{"mutations": [{"type": "sum", "key": ["visits"], "value": 1}]}' | kvnode atomic

      kvnode atomic transaction.json
    """

    async def work() -> CommitResult:
        described = _parse(_read(file))
        async with connect(endpoints, timeout) as kv:
            return await build(kv.atomic(), described).commit()

    print_commit(run(work(), output), output)


def _read(file: Path | None) -> str:
    is_standard_input = file is None or str(file) == "-"
    try:
        return (sys.stdin.buffer.read() if file is None or is_standard_input else file.read_bytes()).decode()
    except (OSError, UnicodeDecodeError) as error:
        where = "standard input" if is_standard_input else file
        why = error.strerror if isinstance(error, OSError) else error
        raise InvalidRequest("BAD_TRANSACTION", f"cannot read {where}: {why}") from None


def _parse(text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("BAD_TRANSACTION", f"the transaction is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidRequest("BAD_TRANSACTION", 'a transaction is an object with "checks", "mutations" and "enqueues"')
    _known(parsed, {"checks", "mutations", "enqueues"}, "the transaction")
    return parsed


def build(operation: AtomicOperation, described: dict[str, Any]) -> AtomicOperation:
    """Add what the JSON describes. Raises InvalidRequest that names the place."""
    for number, check in enumerate(_objects(described, "checks")):
        where = f"check {number}"
        _known(check, {"key", "versionstamp"}, where)
        operation.check(_key(check, where), check.get("versionstamp"))
    for number, mutation in enumerate(_objects(described, "mutations")):
        where = f"mutation {number}"
        kind = mutation.get("type")
        if kind not in _MUTATIONS:
            raise InvalidRequest(
                "BAD_TRANSACTION", f"{where}: the type is one of {', '.join(_MUTATIONS)}, not {kind!r}"
            )
        _known(mutation, {"type", "key", *_FIELDS[kind]}, where)
        _MUTATIONS[kind](operation, mutation, where)
    for number, enqueue in enumerate(_objects(described, "enqueues")):
        _enqueue(operation, enqueue, f"enqueue {number}")
    return operation


def _enqueue(operation: AtomicOperation, enqueue: dict[str, Any], where: str) -> None:
    from kvnode.codec.values import EncodedValue

    _known(enqueue, _ENQUEUE_FIELDS, where)
    queue = enqueue.get("queue", "")
    if not isinstance(queue, str):
        raise InvalidRequest("BAD_TRANSACTION", f'{where}: "queue" is the name of a queue, a string')
    schedule = enqueue.get("backoff_schedule")
    if schedule is not None:
        for interval_ms in _list(schedule, where, "backoff_schedule"):
            _milliseconds(interval_ms, where, "backoff_schedule", limits.MAX_BACKOFF_INTERVAL_MS)
    operation.enqueue(
        EncodedValue(*_value(enqueue, where)),
        queue=queue,
        delay=_milliseconds(enqueue.get("delay", 0), where, "delay", limits.MAX_QUEUE_DELAY_MS),
        keys_if_undelivered=_keys_if_undelivered(enqueue, where),
        backoff_schedule=schedule,
    )


def _keys_if_undelivered(enqueue: dict[str, Any], where: str) -> list[Key]:
    from kvnode.codec.json_keys import key_from_parts

    listed = _list(enqueue.get("keys_if_undelivered", []), where, "keys_if_undelivered")
    return [key_from_parts(parts) for parts in listed]


def _value(described: dict[str, Any], where: str) -> tuple[bytes, int]:
    from kvnode.codec.json_values import value_from_json

    if "value" not in described:
        raise InvalidRequest("BAD_TRANSACTION", f'{where}: "value" is missing')
    return value_from_json(described["value"])


def _list(found: Any, where: str, name: str) -> list[Any]:
    if not isinstance(found, list):
        raise InvalidRequest("BAD_TRANSACTION", f'{where}: "{name}" is a list')
    return found


def _milliseconds(found: Any, where: str, name: str, most: int) -> int:
    if type(found) is not int or not 0 <= found <= most:
        raise InvalidRequest(
            "BAD_TRANSACTION", f'{where}: "{name}" takes whole numbers of milliseconds, 0 to {most}, not {found!r}'
        )
    return found


def _set(operation: AtomicOperation, mutation: dict[str, Any], where: str) -> None:
    from kvnode.client.atomic import COMMIT_VERSIONSTAMP
    from kvnode.codec.json_keys import key_from_parts

    data, encoding = _value(mutation, where)
    parts = mutation.get("key")
    if isinstance(parts, list) and parts and parts[-1] == COMMIT_VERSIONSTAMP_PART:
        key: Any = (*key_from_parts(parts[:-1]), COMMIT_VERSIONSTAMP)
    else:
        key = _key(mutation, where)
    operation.set_raw(key, data, encoding, expire_in=_expire_in(mutation, where))


def _set_expiry(operation: AtomicOperation, mutation: dict[str, Any], where: str) -> None:
    expire_in = _expire_in(mutation, where)
    if expire_in is None:
        operation.clear_expiry(_key(mutation, where))
    else:
        operation.set_expiry(_key(mutation, where), expire_in=expire_in)


def _expire_in(mutation: dict[str, Any], where: str) -> int | None:
    expire_in = mutation.get("expire_in")
    if expire_in is not None and (not isinstance(expire_in, int) or isinstance(expire_in, bool)):
        raise InvalidRequest("BAD_TRANSACTION", f'{where}: "expire_in" is a whole number of milliseconds')
    return expire_in


def _delete(operation: AtomicOperation, mutation: dict[str, Any], where: str) -> None:
    operation.delete(_key(mutation, where))


def _delete_prefix(operation: AtomicOperation, mutation: dict[str, Any], where: str) -> None:
    operation.delete_prefix(_key(mutation, where))


def _delete_range(operation: AtomicOperation, mutation: dict[str, Any], where: str) -> None:
    operation.delete_range(_key(mutation, where), _key(mutation, where, "end"))


def _number(name: str) -> Callable[[AtomicOperation, dict[str, Any], str], None]:
    def add(operation: AtomicOperation, mutation: dict[str, Any], where: str) -> None:
        from kvnode.codec.json_values import value_from_json
        from kvnode.codec.values import decode_value

        value = mutation.get("value")
        operand = value if type(value) is int else decode_value(*value_from_json(value))
        getattr(operation, name)(_key(mutation, where), operand)

    return add


_MUTATIONS: dict[str, Callable[[AtomicOperation, dict[str, Any], str], None]] = {
    "set": _set,
    "set_expiry": _set_expiry,
    "delete": _delete,
    "sum": _number("sum"),
    "min": _number("min"),
    "max": _number("max"),
    "delete_prefix": _delete_prefix,
    "delete_range": _delete_range,
}
_FIELDS: dict[str, set[str]] = {
    "set": {"value", "expire_in"},
    "set_expiry": {"expire_in"},
    "delete": set(),
    "sum": {"value"},
    "min": {"value"},
    "max": {"value"},
    "delete_prefix": set(),
    "delete_range": {"end"},
}


def _key(described: dict[str, Any], where: str, name: str = "key") -> Any:
    from kvnode.codec.json_keys import key_from_parts

    if name not in described:
        raise InvalidRequest("BAD_TRANSACTION", f'{where}: "{name}" is missing')
    return key_from_parts(described[name])


def _objects(described: dict[str, Any], name: str) -> list[dict[str, Any]]:
    listed = described.get(name, [])
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise InvalidRequest("BAD_TRANSACTION", f'"{name}" is a list of objects')
    return listed


def _known(described: dict[str, Any], names: set[str], where: str) -> None:
    for name in described:
        if name not in names:
            allowed = ", ".join(sorted(names))
            raise InvalidRequest("BAD_TRANSACTION", f'{where} has no "{name}"; it may have {allowed}')
