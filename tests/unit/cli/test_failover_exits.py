"""What a script learns from `kvnode failover` and from a lost versionstamp: docs/reference/cli.md, exit statuses."""

from __future__ import annotations

import sys

import pytest
import typer

from kvnode.base.errors import InvalidRequest, KvError, OutcomeUnknown, Unavailable, VersionstampLost
from kvnode.cli import failover
from kvnode.cli.exits import Exit, exit_of
from kvnode.client.status import error_from_proto, error_to_proto
from kvnode.codec.membership import Member, MemberRole, Membership
from kvnode.node.failover.coordinator import _broke_off
from kvnode.node.failover.plan import Plan
from kvnode.proto.kv.internal.v1 import failover_pb2

REFUSALS = (
    "EPOCHS_EXHAUSTED",
    "EPOCH_PROMISED",
    "FAILOVER_FORKED",
    "FAILOVER_LAG_TOO_LARGE",
    "FAILOVER_LESS_THAN_SHOWN",
    "FAILOVER_NOTHING_HELD",
    "FAILOVER_NOT_FENCED",
    "FAILOVER_NO_PRIMARY",
    "FAILOVER_PRIMARY_ALIVE",
    "FAILOVER_SUPERSEDED",
    "FAILOVER_TAIL_MISSING",
    "REGION_IS_PRIMARY",
    "REGION_TOO_SMALL",
    "REGION_UNKNOWN",
)


def over_the_wire(error: KvError) -> KvError:
    return error_from_proto(error_to_proto(error, "a"))


@pytest.mark.parametrize("code", REFUSALS)
def test_what_the_node_refuses_has_the_status_of_a_refusal(code: str) -> None:
    error = over_the_wire(InvalidRequest(code, "no", phase="failover"))
    assert isinstance(error, InvalidRequest), "as docs/reference/errors.md has it"
    assert exit_of(error) is Exit.USAGE


@pytest.mark.parametrize("code", REFUSALS)
def test_the_same_after_nodes_have_promised_is_no_mere_refusal(code: str) -> None:
    error = InvalidRequest(code, "no", phase="failover")
    error.not_applied = False
    assert exit_of(over_the_wire(error)) is Exit.OUTCOME_UNKNOWN


def test_another_failover_that_is_under_way_is_waited_for() -> None:
    error = over_the_wire(Unavailable("a moment ago", code="FAILOVER_IN_PROGRESS", phase="failover"))
    assert isinstance(error, Unavailable)
    assert exit_of(error) is Exit.FAILED, "not 4: nodes did answer"


def test_a_failover_that_broke_off_does_not_say_that_nothing_was_changed() -> None:
    member = Member(4, "e1", "r2", "d", "e1:1", MemberRole.REPLICA)
    plan = Plan("r2", 2, 1, failover_pb2.FailoverReport(), Membership((member,), 2), (member,))
    error = over_the_wire(_broke_off(plan, member, Unavailable("gone", code="PEER_UNREACHABLE")))
    assert error.code == "FAILOVER_INCOMPLETE" and isinstance(error, OutcomeUnknown)
    assert not error.not_applied, "nodes have promised the epoch: they have left the primary"
    assert exit_of(error) is Exit.OUTCOME_UNKNOWN


def test_a_lost_versionstamp_is_not_no_answer() -> None:
    error = over_the_wire(VersionstampLost("lost"))
    assert exit_of(error) is Exit.FAILED, "status 4 says: no node answered; who retries on it never ends"


@pytest.mark.parametrize("how", ["no", "interrupted"])
def test_who_does_not_agree_is_told_apart_from_who_interrupts(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_question: str, *, err: bool) -> bool:
        assert err, "the question is no part of the output"
        if how == "interrupted":
            raise typer.Abort
        return False

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", answer)
    with pytest.raises(typer.Exit) as ended:
        failover._ask("europe")
    assert ended.value.exit_code == (Exit.INTERRUPTED if how == "interrupted" else Exit.FAILED)
