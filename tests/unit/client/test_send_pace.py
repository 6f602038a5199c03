"""How long a listener pauses when its token's rate is exceeded, and how it goes on."""

from kvnode.api.auth.rate import RateLimit
from kvnode.base import limits
from kvnode.base.errors import RateLimited
from kvnode.client.send_pace import SendPace
from tests.unit.node.fakes import HandClock


def refusal(limit: RateLimit, now_ms: float) -> RateLimited | None:
    try:
        limit.take(1, now_ms)
    except RateLimited as error:
        return error
    return None


def test_a_pace_is_found_at_which_nothing_is_refused() -> None:
    for rate in (2, 5, 40):
        clock = HandClock()
        limit, pace = RateLimit(rate, 0, clock.at_ms), SendPace(clock)
        refused_at = []
        for number in range(300):
            error = refusal(limit, clock.at_ms)
            if error is not None:
                refused_at.append(number)
                clock.at_ms += pace.refused(error)
            else:
                clock.at_ms += pace.interval_ms()
        assert 1 <= len(refused_at) <= 3
        assert refused_at[-1] < 3 * rate


def test_the_time_that_a_node_names_is_kept() -> None:
    pace = SendPace(HandClock())
    assert pace.refused(RateLimited("Nothing was done: send it again in 64000 ms, send less.")) == 64_000
    assert pace.interval_ms() == limits.MAX_CLIENT_LISTEN_PACE_MS


def test_without_a_time_the_pauses_grow_up_to_a_bound() -> None:
    pace = SendPace(HandClock())
    pauses = [pace.refused(RateLimited("too much")) for _ in range(8)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (2 * limits.CLIENT_BACKOFF_MS, limits.MAX_CLIENT_LISTEN_PACE_MS)


def test_a_shorter_distance_is_tried_after_a_long_time() -> None:
    clock = HandClock()
    pace = SendPace(clock)
    pace.refused(RateLimited("send it again in 100 ms"))
    found = []
    for _ in range(4):
        found.append(pace.interval_ms())
        clock.pass_ms(limits.CLIENT_LISTEN_PACE_KEPT_MS)
    assert found == [200, 100, 50, 0]
