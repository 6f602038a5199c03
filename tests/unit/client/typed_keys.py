"""What a type checker says of keys: `make lint` checks this module, nothing runs it.

A `type: ignore` that hides nothing is an error in strict mode: each line that has one is a call that must be refused.
"""

from __future__ import annotations

from kvnode.client import BigInt, Entry, Kv
from kvnode.client.atomic import COMMIT_VERSIONSTAMP


async def accepted(kv: Kv, names: list[str], entry: Entry) -> None:
    await kv.get(("users", 7, 1.5, True, b"\x00", BigInt(1)))
    await kv.get(names)
    await kv.get(entry.key)
    await kv.get_many([("a",), ["b", 1]])
    await kv.set(("log", COMMIT_VERSIONSTAMP), 1)
    await kv.enqueue("message", keys_if_undelivered=[("lost", 1)])
    kv.list(prefix=())
    kv.atomic().check(entry).check(("a",)).delete_range(("a",), ["b"])


async def refused(kv: Kv) -> None:
    await kv.get("users")  # type: ignore[arg-type]
    await kv.get(b"users")  # type: ignore[arg-type]
    await kv.get_many(("users", "ada"))  # type: ignore[arg-type]
    await kv.set("users", 1)  # type: ignore[arg-type]
    await kv.delete("users")  # type: ignore[arg-type]
    await kv.get(("users", None))  # type: ignore[arg-type]
    await kv.get(("log", COMMIT_VERSIONSTAMP))  # type: ignore[arg-type]
    await kv.enqueue("message", keys_if_undelivered=["lost"])  # type: ignore[list-item]
    kv.list(prefix="users")  # type: ignore[arg-type]
    kv.watch(["users"])  # type: ignore[list-item]
    kv.atomic().check("users")  # type: ignore[arg-type]
    kv.atomic().sum("users", 1)  # type: ignore[arg-type]
