"""member list, add, promote, remove, replace; leader transfer."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvnode.base.errors import InvalidRequest
from kvnode.cli.options import DEFAULT_ENDPOINTS, EndpointsOption, Output, OutputOption, TimeoutOption
from kvnode.cli.run import run
from kvnode.cli.selection import chosen
from kvnode.cli.show import print_json, print_table

if TYPE_CHECKING:
    from kvnode.client import Admin
    from kvnode.proto.kv.v1 import admin_pb2

CHANGE_TIMEOUT = "60s"  # a replacement waits for the new node to catch up
COLUMNS = ("id", "name", "region", "dc", "address", "role")

member_app = typer.Typer(
    no_args_is_help=True, help="Who belongs to the cluster: list, add, promote, remove and replace members."
)
leader_app = typer.Typer(no_args_is_help=True, help="The leader: transfer its office to another voter.")

MemberArgument = Annotated[str, typer.Argument(metavar="MEMBER", help="A member's name or id.")]
AddressArgument = Annotated[
    str, typer.Argument(metavar="ADDRESS", help="host:port of the new node, started with 'kvnode serve', unjoined.")
]


def administer(endpoints: str, timeout_ms: int, output: Output | None, work: Callable[[Admin], Awaitable[Any]]) -> Any:
    """Run one command's calls on the cluster; a KvError ends the process with its exit status."""

    async def connected() -> Any:
        from kvnode.client import Admin
        from kvnode.client.channel import parse_endpoints

        async with Admin(
            parse_endpoints(endpoints), token=chosen.token, credentials=chosen.credentials(), timeout_ms=timeout_ms
        ) as admin:
            return await work(admin)

    return run(connected(), output)


async def _find(admin: Admin, wanted: str) -> admin_pb2.Member:
    """The member of that name or id. Raises InvalidRequest: MEMBER_UNKNOWN."""
    members = (await admin.members()).members
    for member in members:
        if wanted in {member.name, str(member.node_id)}:
            return member
    known = ", ".join(f"{member.name} ({member.node_id})" for member in members) or "none"
    raise InvalidRequest("MEMBER_UNKNOWN", f"no member is called '{wanted}'; members are {known}", phase="admin")


def _print_members(members: Any, output: Output | None) -> None:
    from kvnode.cli.status import message_json

    if output is Output.JSON:
        print_json({"members": [message_json(member) for member in members]})
    else:
        rows = [[str(m.node_id), m.name, m.region, m.dc, m.address, m.role] for m in members]
        print_table(COLUMNS, rows)


@member_app.command("list")
def list_members(
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = "10s",  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """List the members, with their ids, places and roles.

    Example:

      kvnode member list
    """
    _print_members(administer(endpoints, timeout, output, lambda admin: admin.members()).members, output)


@member_app.command("add")
def add_member(
    address: AddressArgument,
    replica: Annotated[
        bool, typer.Option("--replica", help="As a replica of another region: it follows the changelog, never votes.")
    ] = False,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = CHANGE_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Add a running, unjoined node as a learner, or as a replica: it receives everything and does not vote.

    Its name, region and data center are its own; start it without --bootstrap. Promote a learner when it has caught up.

    Examples:

      kvnode member add 10.0.0.4:4510

      kvnode member add 10.1.0.1:4510 --replica
    """

    async def work(admin: Admin) -> admin_pb2.MemberChangeResponse:
        wanted = _new_member(address)
        wanted.role = "replica" if replica else ""
        return await admin.add(wanted)

    _print_members(administer(endpoints, timeout, output, work).members, output)


def _new_member(address: str) -> admin_pb2.Member:
    from kvnode.client.channel import parse_endpoints
    from kvnode.proto.kv.v1 import admin_pb2

    (parsed,) = parse_endpoints([address])
    return admin_pb2.Member(address=parsed)


@member_app.command("promote")
def promote_member(
    member: MemberArgument,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = CHANGE_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Make a learner that has caught up a voter.

    Example:

      kvnode member promote d
    """

    async def work(admin: Admin) -> admin_pb2.MemberChangeResponse:
        return await admin.promote((await _find(admin, member)).node_id)

    _print_members(administer(endpoints, timeout, output, work).members, output)


@member_app.command("remove")
def remove_member(
    member: MemberArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Although losing one more data center would then stop writes.")
    ] = False,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = CHANGE_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Remove a member for good; its data directory can never come back under the same id.

    Example:

      kvnode member remove a
    """

    async def work(admin: Admin) -> admin_pb2.MemberChangeResponse:
        return await admin.remove((await _find(admin, member)).node_id, force=force)

    _print_members(administer(endpoints, timeout, output, work).members, output)


@member_app.command("replace")
def replace_member(
    member: MemberArgument,
    address: AddressArgument,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = CHANGE_TIMEOUT,  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Replace a member: add the new node, promote it once it has caught up, then remove the old one.

    The new node is started with an empty data directory, and may have the old one's name and address. When the
    command broke off, run it again: it goes on with what is left to do.

    Example:

      kvnode member replace b 10.0.0.4:4510 --timeout 10m
    """

    async def work(admin: Admin) -> admin_pb2.MemberChangeResponse | admin_pb2.MemberListResponse:
        replacement = _new_member(address)
        try:
            old = await _find(admin, member)
        except InvalidRequest:
            known = await admin.members()
            if not any((m.address, m.role) == (replacement.address, "voter") for m in known.members):
                raise
            print(f"kvnode: no member is called '{member}' any more, and {address} votes: done", file=sys.stderr)
            return known
        try:
            return await admin.replace(old.node_id, replacement)
        except InvalidRequest as error:
            if error.code != "MEMBER_NOT_REPLACED" or not await _is_sound(admin, old.node_id):
                raise
            said = f"'{member}' is the node at {address} (id {old.node_id}) already, and it is well: nothing to do"
            print(f"kvnode: {said}", file=sys.stderr)
            return await admin.members()

    _print_members(administer(endpoints, timeout, output, work).members, output)


async def _is_sound(admin: Admin, node_id: int) -> bool:
    """Whether a member answers and reports no problem: what was replaced under its own name, and not what is to be."""
    nodes = (await admin.cluster_status()).nodes
    return any(n.member.node_id == node_id and n.HasField("status") and not n.status.problems for n in nodes)


@leader_app.command("transfer")
def transfer(
    member: Annotated[
        str | None, typer.Argument(metavar="MEMBER", help="The voter's name or id; nothing = the most caught-up one.")
    ] = None,
    endpoints: EndpointsOption = DEFAULT_ENDPOINTS,
    timeout: TimeoutOption = "10s",  # type: ignore[assignment]
    output: OutputOption = None,
) -> None:
    """Hand leadership to another voter, without an election timeout.

    Examples:

      kvnode leader transfer

      kvnode leader transfer c
    """

    async def work(admin: Admin) -> tuple[admin_pb2.TransferLeadershipResponse, str]:
        names = {each.node_id: each.name for each in (await admin.members()).members}
        to = (await _find(admin, member)).node_id if member else 0
        answer = await admin.transfer_leadership(to)
        return answer, names.get(answer.leader_id) or str(answer.leader_id)

    answer, name = administer(endpoints, timeout, output, work)
    if output is Output.JSON:
        print_json({"leader_id": answer.leader_id, "term": answer.term})
    else:
        print(f"OK '{name}' leads, in term {answer.term}")


@leader_app.callback()
def _leader() -> None:
    """Keep `transfer` a command of its own, so that others can join it."""
