"""What is answered in place of an answer that cannot wait to be read."""

from __future__ import annotations

import json

from kvnode.api.queue_http.answers import answered
from kvnode.api.queue_http.lines import results
from kvnode.base import limits


def test_leases_that_were_settled_are_not_said_to_be_unavailable() -> None:
    """Their answer may be large enough to be replaced on HTTP/2, and a 503 says that nothing was done."""
    response = answered(results([number.to_bytes(12, "big") for number in range(1_000)], []))
    assert len(response.body) > limits.HTTP2_UNCOUNTED_BYTES
    assert response.instead is not None and response.instead.status == 504
    found = json.loads(response.instead.body)
    assert (found["code"], found["retry"]) == ("OUTCOME_UNKNOWN", True)
    assert "unread" in found["message"] and "remedy" in found
