from __future__ import annotations

from kvnode.base import limits
from kvnode.client.failure_detector import FailureDetector

HANG_MS = limits.CLIENT_HANG_TIMEOUT_MS


class Endpoint:
    """A stream to an endpoint that resumes the session, and what the detector says of it; time is virtual."""

    def __init__(self, endpoints_count: int = 1, *, answers_probes: bool = True) -> None:
        self.detector = FailureDetector(lambda: 1, endpoints_count)
        self.answers_probes = answers_probes
        self.now_ms = 0.0

    def waited_ms(self) -> float:
        """How long it is borne with after operations were sent."""
        detector = self.detector
        detector.began(self.now_ms)
        detector.heard(self.now_ms)
        detector.useful(self.now_ms, owes_more=False, resumed=True)
        detector.asked(self.now_ms)
        begun_ms = self.now_ms
        while detector.judge(self.now_ms, is_open=True, owes=True) is None:
            self.now_ms += limits.CLIENT_SWEEP_INTERVAL_MS
            if detector.take_probe() and self.answers_probes:
                detector.heard(self.now_ms)
        detector.ended()
        return self.now_ms - begun_ms

    def answers(self) -> None:
        """An operation is answered."""
        self.detector.useful(self.now_ms, owes_more=False)


def about(waited_ms: float, expected_ms: float) -> bool:
    return expected_ms < waited_ms <= expected_ms + 3 * limits.CLIENT_SWEEP_INTERVAL_MS


def test_an_endpoint_without_answers_is_given_more_time_each_round() -> None:
    endpoint = Endpoint()
    for factor in (1, 2, 4, 8, 8):
        assert about(endpoint.waited_ms(), HANG_MS * factor), f"the bound was to be {factor} times its least"
    endpoint.answers()
    assert about(endpoint.waited_ms(), HANG_MS)


def test_a_silent_endpoint_is_given_more_time_each_round() -> None:
    endpoint = Endpoint(answers_probes=False)
    for factor in (1, 2, 4, 8):
        expected_ms = limits.CLIENT_PROBE_AFTER_MS + factor * limits.CLIENT_PROBE_TIMEOUT_MS
        assert about(endpoint.waited_ms(), expected_ms), f"the probe's bound was to be {factor} times its least"
    endpoint.answers()
    assert about(endpoint.waited_ms(), limits.CLIENT_PROBE_AFTER_MS + limits.CLIENT_PROBE_TIMEOUT_MS)


def test_each_endpoint_is_asked_once_before_any_is_given_more_time() -> None:
    endpoint = Endpoint(endpoints_count=3)
    for factor in (1, 1, 1, 2, 2, 2, 4):
        assert about(endpoint.waited_ms(), HANG_MS * factor)
