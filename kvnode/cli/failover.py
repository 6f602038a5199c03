"""failover: move the primary to another region, because it is gone or as planned."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvnode.base.errors import InvalidRequest
from kvnode.cli.ask import agrees
from kvnode.cli.exits import Exit
from kvnode.cli.options import DEFAULT_ENDPOINTS, EndpointsOption, Output, OutputOption, TimeoutOption
from kvnode.cli.run import fail, run
from kvnode.cli.selection import chosen
from kvnode.cli.show import print_json

if TYPE_CHECKING:
    from kvnode.client import Admin
    from kvnode.proto.kv.v1 import admin_pb2

FAILOVER_TIMEOUT = "60s"


def failover(
    to: Annotated[str, typer.Option("--to", metavar="REGION", help="The region that is to take the writes.")],
    plan: Annotated[
        bool, typer.Option("--plan", help="The primary region lives and hands over: nothing is lost.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask, for scripts.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and lost; change nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Although the region lags beyond the limit, is small, or the primary lives.")
    ] = False,
    primary_is_down: Annotated[
        bool,
        typer.Option(
            "--primary-is-down", help="Old voters that do not answer are down for certain: nobody can keep them back."
        ),
    ] = False,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = FAILOVER_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Move the primary to another region: it takes the writes from then on, under the same addresses.

    With the primary region gone, whatever it acknowledged and no other region received is lost: the command shows from
    where on, and asks. With --plan the primary region lives, hands over, and nothing is lost.

    Examples:

      kvnode failover --to europe --dry-run

      kvnode failover --to europe --primary-is-down

      kvnode failover --plan --to us-east --yes
    """

    if unused := [
        flag for flag, given in (("--force", force), ("--primary-is-down", primary_is_down)) if plan and given
    ]:
        fail(InvalidRequest("BAD_FLAGS", _unused_with_plan(unused)), output)

    async def shown() -> Any:
        async with await _near(endpoints, timeout, to) as admin:
            return await admin.failover(to, planned=plan, dry_run=True, force=force, primary_is_down=primary_is_down)

    async def done(keep_index: int) -> Any:
        async with await _near(endpoints, timeout, to) as admin:
            return await admin.failover(
                to, planned=plan, force=force, primary_is_down=primary_is_down, keep_index=keep_index
            )

    is_asked = not yes and not plan
    keep_index = 0
    if is_asked or dry_run:  # else nobody decides by it, and to wait for dead nodes costs seconds without writes
        before = run(shown(), output)
        if output is not Output.JSON or dry_run:
            _show(before, output, planned=plan)
        if dry_run:
            return
        _ask(to)
        keep_index = before.last_index
    after = run(done(keep_index), output)
    if output is Output.JSON:
        print_json(_fields(after))
        return
    if not is_asked:
        _show(after, output, planned=plan)
    pause = f"; writes paused for {after.pause_ms} ms" if plan else ""
    print(f"OK '{after.region}' is the primary region, in epoch {after.epoch}{pause}")


def _unused_with_plan(flags: list[str]) -> str:
    return (
        f"--plan excludes {' and '.join(flags)}: a primary region that hands over lives, and loses nothing; leave "
        f"{'it' if len(flags) == 1 else 'them'} out, or --plan if the region is gone"
    )


async def _near(endpoints: str, timeout_ms: int, region: str) -> Admin:
    """Administration at the nodes of that region, as far as an endpoint that answers knows them, then at the given."""
    from kvnode.client import Admin
    from kvnode.client.channel import parse_endpoints

    given = parse_endpoints(endpoints)
    async with Admin(given, token=chosen.token, credentials=chosen.credentials(), timeout_ms=timeout_ms) as admin:
        members = (await admin.members()).members
        last = admin.endpoint
    there = [member.address for member in members if member.region == region]
    addresses = list(dict.fromkeys([*there, last, *given]))
    return Admin(addresses, token=chosen.token, credentials=chosen.credentials(), timeout_ms=timeout_ms)


def _ask(region: str) -> None:
    if not sys.stdin.isatty():
        print("kvnode: nobody can be asked here: say --yes to go on", file=sys.stderr)
        raise typer.Exit(Exit.USAGE)
    if not agrees(f"Fail over to '{region}'?"):
        raise typer.Exit(Exit.FAILED)


def _fields(answer: admin_pb2.FailoverResponse) -> dict[str, Any]:
    return {
        "region": answer.region,
        "epoch": answer.epoch,
        "last_index": answer.last_index,
        "last_versionstamp": answer.last_versionstamp.hex(),
        "age_ms": answer.age_ms,
        "lag_ms": answer.lag_ms,
        "source": answer.source,
        "voters": list(answer.voters),
        "silent": list(answer.silent),
        "unfenced": list(answer.unfenced),
        "warnings": list(answer.warnings),
        "leader_id": answer.leader_id,
        "pause_ms": answer.pause_ms,
    }


def _show(answer: admin_pb2.FailoverResponse, output: Output | None, *, planned: bool) -> None:
    if output is Output.JSON:
        print_json(_fields(answer))
        return
    voters = ", ".join(answer.voters)
    print(f"Epoch {answer.epoch} begins in '{answer.region}', with the voters {voters}.")
    if answer.silent:
        print(f"No answer from {', '.join(answer.silent)}.")
    if planned:
        print("The primary region hands over; nothing is lost.")
    else:
        stamp = answer.last_versionstamp.hex()
        age = f"as of {_seconds(answer.age_ms)} ago" if answer.age_ms >= 0 else "of an unknown age"
        print(f"What is kept ends at versionstamp {stamp}, {age}, held by '{answer.source}'.")
        if answer.unfenced:
            print("Every write acknowledged after that is lost.")
        else:
            print("A majority of the old voters is fenced before anything else: no acknowledged write is lost.")
    if answer.unfenced:
        print(f"Not fenced: {', '.join(answer.unfenced)} may acknowledge until they hear of epoch {answer.epoch}.")
    for warning in answer.warnings:
        print(f"Note: {warning}.")


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:.1f} s"
