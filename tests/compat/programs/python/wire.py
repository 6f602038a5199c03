"""What no client sends, or sends only wrapped up: the protocol itself, over HTTP/1.1."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from harness import Refused, Test, feature, section
from wire_client import exchange, packed, pb, set_, u64, value

MISSING_UUID = "00000000-0000-4000-8000-00000000dead"


def key(t: Test, *parts: Any) -> bytes:
    """A packed key of this feature's own."""
    return packed(*t.key(*parts))


section("Opening and closing")


@feature("metadata: exactly the five members, the eventual endpoint first")
async def _(t: Test) -> None:
    metadata = t.kv.metadata
    t.equal(set(metadata), {"version", "databaseId", "endpoints", "token", "expiresAt"})
    t.equal([endpoint["consistency"] for endpoint in metadata["endpoints"]], ["eventual", "strong"])
    t.equal(metadata["version"], 3)


@feature("metadata: no body means version 1")
async def _(t: Test) -> None:
    metadata = await exchange(t.kv.session, t.url, t.environment.token, None)
    t.equal(metadata["version"], 1)
    assert all(endpoint["url"].startswith("http") for endpoint in metadata["endpoints"])


@feature("metadata: a body that is no JSON")
async def _(t: Test) -> None:
    await t.refused(exchange(t.kv.session, t.url, t.environment.token, b"{"), "400")


@feature("openKv: a wrong access token")
async def _(t: Test) -> None:
    await t.refused(exchange(t.kv.session, t.url, "not-the-access-token"), "401")


@feature("data path: a wrong data token")
async def _(t: Test) -> None:
    call = t.kv.call("snapshot_read", b"", headers={"authorization": "Bearer forged"})
    await t.refused(call, "401")


@feature("data path: the access token in place of the data token")
async def _(t: Test) -> None:
    header = {"authorization": f"Bearer {t.environment.token}"}
    await t.refused(t.kv.call("snapshot_read", b"", headers=header), "401")


@feature("data path: no authorization")
async def _(t: Test) -> None:
    await t.refused(t.kv.call("snapshot_read", b"", headers={"authorization": ""}), "401")


@feature("data path: protocol version 4")
async def _(t: Test) -> None:
    await t.refused(t.kv.call("snapshot_read", b"", headers={"x-denokv-version": "4"}), "400")


@feature("data path: another database's id")
async def _(t: Test) -> None:
    header = {"x-denokv-database-id": MISSING_UUID}
    await t.refused(t.kv.call("snapshot_read", b"", headers=header), "400")


@feature("data path: an unknown method")
async def _(t: Test) -> None:
    await t.refused(t.kv.call("no_such_method", b""), "404")


@feature("data path: GET")
async def _(t: Test) -> None:
    async with t.kv.session.get(f"{t.kv.urls['strong']}/snapshot_read", headers=t.kv.headers()) as response:
        t.equal(response.status, 405)
        raise Refused(f"{response.status} {await response.text()}")


@feature("data path: torn protobuf")
async def _(t: Test) -> None:
    await t.fails(t.kv.call("atomic_write", b"\x0a\xff"), "400")
    await t.refused(t.kv.call("snapshot_read", b"\x0a\x05abc"), "400")


@feature("data path: a body of 2 MiB")
async def _(t: Test) -> None:
    try:
        await t.kv.call("atomic_write", b"\x00" * 2_097_152)
    except aiohttp.ClientError as error:
        raise AssertionError(f"cut off rather than answered: {error!r}") from None
    except Exception as error:
        assert "413" in str(error), error
        raise Refused(str(error)) from error


section("Atomic operations")


@feature("atomic: without any operation")
async def _(t: Test) -> None:
    output = await t.kv.write()
    assert output.status == pb.AW_SUCCESS and len(output.versionstamp) == 10


@feature("atomic: the client says which check failed")
async def _(t: Test) -> None:
    stamp = (await t.kv.write(set_(key(t, "a")))).versionstamp
    checks = (
        pb.Check(key=key(t, "a"), versionstamp=stamp),
        pb.Check(key=key(t, "b"), versionstamp=stamp),
        pb.Check(key=key(t, "c")),
        pb.Check(key=key(t, "a")),
    )
    output = await t.kv.write(set_(key(t, "x")), checks=checks)
    t.equal((output.status, list(output.failed_checks), output.versionstamp), (pb.AW_CHECK_FAILURE, [1, 3], b""))
    t.equal(await t.kv.get(key(t, "x")), None)


@feature("atomic: a check on a versionstamp that is none")
async def _(t: Test) -> None:
    await t.refused(t.kv.write(checks=(pb.Check(key=key(t, "a"), versionstamp=b"short"),)), "400 Invalid versionstamp.")


@feature("atomic: an unknown type of mutation")
async def _(t: Test) -> None:
    for kind in (0, 4 + 4, 99):
        mutation = pb.Mutation(key=key(t, "a"), value=value(b"v"), mutation_type=kind)
        await t.fails(t.kv.write(set_(key(t, "x")), mutation), "400 Invalid mutation kind or arguments.")
    t.equal(await t.kv.get(key(t, "x")), None)
    await t.refused(t.kv.write(pb.Mutation(key=key(t, "a"), mutation_type=pb.M_SET)), "400 ")


@feature("atomic: a failing mutation changes nothing")
async def _(t: Test) -> None:
    await t.kv.write(set_(key(t, "text")))
    add = pb.Mutation(key=key(t, "text"), value=u64(1), mutation_type=pb.M_SUM)
    await t.fails(t.kv.write(set_(key(t, "x")), add, set_(key(t, "y"))), "400 Failed to perform 'sum' mutation")
    t.equal([await t.kv.get(key(t, "x")), await t.kv.get(key(t, "y"))], [None, None])


@feature("atomic: a KvU64 of 7 bytes")
async def _(t: Test) -> None:
    await t.refused(t.kv.write(set_(key(t, "a"), b"\x01" * 7, pb.VE_LE64)), "400")


@feature("atomic: an unknown encoding of a value")
async def _(t: Test) -> None:
    await t.refused(t.kv.write(set_(key(t, "a"), b"v", 9)), "400 The value encoding 9 is unknown.")


@feature("set: an empty key")
async def _(t: Test) -> None:
    await t.refused(t.kv.write(set_(b"")), "400")


@feature("expireIn: a negative expire_at_ms, and one in the past")
async def _(t: Test) -> None:
    await t.kv.write(set_(key(t, "never"), expire_at_ms=-1), set_(key(t, "gone"), expire_at_ms=1))
    await asyncio.sleep(0.3)
    assert await t.kv.get(key(t, "never")) is not None
    t.equal(await t.kv.get(key(t, "gone")), None)
    await t.refused(t.kv.write(set_(key(t, "a"), expire_at_ms=-2)), "400 Invalid mutation expire at.")


section("Numbers: sum, min, max")


@feature("sum: with an operand that is no KvU64")
async def _(t: Test) -> None:
    add = pb.Mutation(key=key(t, "n"), value=value(b"text"), mutation_type=pb.M_SUM)
    await t.refused(t.kv.write(add), "400 Failed to perform 'sum' mutation on a non-U64 operand")


@feature("sum: of a KvU64 with min and max")
async def _(t: Test) -> None:
    add = pb.Mutation(key=key(t, "n"), value=u64(1), mutation_type=pb.M_SUM, sum_max=b"\xff\x0fZ\x10\x01")
    await t.refused(t.kv.write(add), "400 Cannot use min/max parameters with KvU64 operands")


@feature("sum: bounds of another type than the operand")
async def _(t: Test) -> None:
    operand = value(b"\xff\x0fI\x02", pb.VE_V8)
    add = pb.Mutation(key=key(t, "n"), value=operand, mutation_type=pb.M_SUM, sum_max=b"\xff\x0fZ\x10" + bytes(8))
    await t.refused(t.kv.write(add), "400 Min/max parameters have different types than the operand")


section("Limits")


@feature("limit: a read of 1,000 entries")
async def _(t: Test) -> None:
    ranges = [pb.ReadRange(start=key(t, n), end=key(t, n) + b"\xff", limit=500) for n in range(2)]
    t.equal(len((await t.kv.read(*ranges)).ranges), 2)


@feature("limit: a read of 1,001 entries")
async def _(t: Test) -> None:
    ranges = [pb.ReadRange(start=key(t, n), end=key(t, n) + b"\xff", limit=limit) for n, limit in enumerate((500, 501))]
    text = "400 The total number of entries requested across read ranges in the read request is too large."
    await t.refused(t.kv.read(*ranges), text)


@feature("limit: a range without a limit")
async def _(t: Test) -> None:
    read = t.kv.read(pb.ReadRange(start=key(t), end=key(t) + b"\xff"))
    await t.refused(read, "400 The read range limit of the snapshot read request is invalid.")


@feature("limit: 11 keys in a getMany")
async def _(t: Test) -> None:
    read = t.kv.read(*(pb.ReadRange(start=key(t, n), end=key(t, n) + b"\x00", limit=1) for n in range(11)))
    await t.refused(read, "400 Too many read ranges requested in one read request.")


@feature("limit: a key of 2,049 bytes to write")
async def _(t: Test) -> None:
    await t.fails(t.kv.write(pb.Mutation(key=b"k" * 2_049, mutation_type=pb.M_DELETE)), "400 A key exceeds")
    await t.refused(t.kv.write(set_(b"k" * 2_049)), "400 A key exceeds the key size limit.")


@feature("limit: a key of 2,050 bytes to read")
async def _(t: Test) -> None:
    await t.kv.read(pb.ReadRange(start=b"k" * 2_049, end=b"l" * 2_049, limit=1))
    await t.fails(t.kv.read(pb.ReadRange(start=b"k", end=b"l" * 2_050, limit=1)), "400 A key exceeds")
    await t.refused(t.kv.read(pb.ReadRange(start=b"k" * 2_050, end=b"l", limit=1)), "400 A key exceeds")


@feature("limit: a value of 65,537 bytes")
async def _(t: Test) -> None:
    await t.kv.write(set_(key(t, "a"), bytes(65_536)))
    await t.refused(t.kv.write(set_(key(t, "a"), bytes(65_537))), "400 A value exceeds the value size limit.")


@feature("limit: 101 checks")
async def _(t: Test) -> None:
    checks = tuple(pb.Check(key=key(t, n)) for n in range(101))
    t.equal((await t.kv.write(checks=checks[:100])).status, pb.AW_SUCCESS)
    await t.refused(t.kv.write(checks=checks), "400 Too many checks included in atomic write.")


@feature("limit: 1,001 mutations")
async def _(t: Test) -> None:
    deletes = [pb.Mutation(key=key(t, n), mutation_type=pb.M_DELETE) for n in range(1_001)]
    t.equal((await t.kv.write(*deletes[:1_000])).status, pb.AW_SUCCESS)
    await t.refused(t.kv.write(*deletes), "400 Too many mutations / enqueues included in atomic write.")


@feature("limit: a transaction of more than 819,200 bytes")
async def _(t: Test) -> None:
    sets = [set_(key(t, n), bytes(65_536)) for n in range(13)]
    await t.refused(t.kv.write(*sets), "400 The total size of the atomic write is too large.")


@feature("limit: 11 keys in a watch")
async def _(t: Test) -> None:
    watch = t.kv.watch(*(key(t, n) for n in range(11)))
    await t.refused(anext(watch), "400 Too many keys watched in a single watch request.")


section("Watching")


@feature("watch: the state at the start, then changes")
async def _(t: Test) -> None:
    await t.kv.write(set_(key(t, "a")))
    watch = t.kv.watch(key(t, "a"), key(t, "b"))
    first = await _frame(watch)
    t.equal([entry.changed for entry in first.keys], [True, True])
    t.equal([entry.HasField("entry_if_changed") for entry in first.keys], [True, False])
    await t.kv.write(set_(key(t, "b"), b"new"))
    second = await _frame(watch)
    t.equal([entry.changed for entry in second.keys][1], True)
    t.equal(second.keys[1].entry_if_changed.value, b"new")
    await watch.aclose()


async def _frame(watch: Any) -> Any:
    while (frame := await asyncio.wait_for(anext(watch), 10)) is None:
        pass
    assert frame.status == pb.SR_SUCCESS
    return frame


@feature("watch: pings every 5 seconds", slow=True)
async def _(t: Test) -> None:
    watch = t.kv.watch(key(t, "a"))
    await _frame(watch)
    for _ in range(2):
        t.equal(await asyncio.wait_for(anext(watch), 7), None)
    await watch.aclose()


section("Queues")


@feature("enqueue")
async def _(t: Test) -> None:
    written = await t.kv.write(enqueues=(pb.Enqueue(payload=b"\xff\x0f0", deadline_ms=0),))
    t.equal(written.status, pb.AW_SUCCESS)


@feature("atomic: enqueue beside a set")
async def _(t: Test) -> None:
    await t.kv.write(set_(key(t, "a")), enqueues=(pb.Enqueue(payload=b"\xff\x0f0"),))
    t.equal(await t.kv.get(key(t, "a")) is None, False)
