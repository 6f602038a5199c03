"""The bodies of requests: what counts as absent, and what is no text."""

from __future__ import annotations

import json

import pytest

from kvnode.api.queue_http.bodies import parse_enqueue, parse_listen, parse_settle
from kvnode.base.errors import InvalidRequest

LEASE = "00" * 12
MESSAGE = {"payload": "eA==", "encoding": "bytes"}


def test_a_field_that_is_null_counts_as_absent() -> None:
    optional = ("delay_ms", "backoff_schedule", "keys_if_undelivered")
    nulls = {**MESSAGE, **dict.fromkeys(optional)}
    absent = parse_enqueue("q", json.dumps({"messages": [MESSAGE]}).encode())
    assert parse_enqueue("q", json.dumps({"messages": [nulls]}).encode()) == absent
    assert parse_listen("q", json.dumps(dict.fromkeys(("credit", "lease_ms", "consumer", "held"))).encode()) == (
        parse_listen("q", b"")
    )
    settle = parse_settle("q", json.dumps({"nack": [{"lease": LEASE, "delay_ms": None}], "ack": None}).encode())
    ((_, action),) = settle.actions
    assert not action.nack.HasField("delay_ms")


@pytest.mark.parametrize("missing", ["payload", "encoding"])
def test_a_field_that_is_needed_is_not_null(missing: str) -> None:
    with pytest.raises(InvalidRequest, match=f"lacks `{missing}`"):
        parse_enqueue("q", json.dumps({"messages": [{**MESSAGE, missing: None}]}).encode())


def test_half_of_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(InvalidRequest, match="`consumer` in the body has half of a surrogate pair") as caught:
        parse_listen("q", b'{"consumer": "\\ud800"}')
    assert caught.value.code == "MALFORMED_REQUEST"
    assert parse_listen("q", b'{"consumer": "\\ud83d\\ude00"}').opening.consumer == "\U0001f600"
