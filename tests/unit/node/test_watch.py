"""Watches: whole states, the last one always, within bounds."""

from __future__ import annotations

import asyncio
import random

import pytest

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest, TooStale, Unavailable
from kvnode.base.watch_pace import ping_interval_ms, silence_ms
from kvnode.codec.row import Row
from kvnode.codec.versionstamp import versionstamp
from kvnode.node.stats import Stats
from kvnode.node.watch import Watch, WatchHub
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.api.fake_node import PREFIX, FakeState


class World:
    """A state and its hub; `run` applies one run of writes."""

    def __init__(self) -> None:
        self.state = FakeState()
        self.stats = Stats()
        self.confirmed_at_ms: float | None = None  # of the loop's clock; None = the age is not known
        self.hub = WatchHub(self.state, self.stats, self.age_ms)

    def age_ms(self) -> int:
        return -1 if self.confirmed_at_ms is None else int(self.now_ms() - self.confirmed_at_ms)

    def now_ms(self) -> float:
        return asyncio.get_running_loop().time() * 1_000

    def run(self, writes: dict[bytes, bytes | None], *, expire_at_ms: int = 0, database: int = 1) -> bytes:
        index = self.state.meta.applied_index + 1
        self.state.meta = self.state.meta._replace(applied_index=index)
        prefix = database.to_bytes(4, "big")
        changed: dict[bytes, Row | None] = {}
        for order, (key, value) in enumerate(writes.items()):
            full = prefix + key
            changed[full] = None if value is None else Row(full, value, 3, versionstamp(1, index, order), expire_at_ms)
        for full, row in changed.items():
            if row is None:
                self.state.rows.pop(full, None)
            else:
                self.state.rows[full] = row
        stamp = versionstamp(1, index, 65_535)
        self.hub.publish(changed, self.state.meta.log_time_ms)
        return stamp

    def keys(self, *keys: bytes, max_staleness_ms: int = 0) -> Watch:
        return self.hub.watch(kv_pb2.WatchRequest(keys=keys, max_staleness_ms=max_staleness_ms))

    def range(self, start: bytes, end: bytes) -> Watch:
        return self.hub.watch(kv_pb2.WatchRequest(prefix_start=start, prefix_end=end))


async def take(watch: Watch) -> kv_pb2.WatchResponse:
    async with asyncio.timeout(1):
        return await watch.__anext__()


async def nothing_comes(watch: Watch) -> bool:
    """Whether no frame is there now; leaves the watch usable."""
    task = asyncio.ensure_future(watch.__anext__())
    for _ in range(5):
        await asyncio.sleep(0)
    if task.done():
        return False
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return True


def shown(frame: kv_pb2.WatchResponse) -> list[tuple[bytes, bytes | None] | None]:
    return [
        (key.key, key.entry.value if key.HasField("entry") else None) if key.changed else None for key in frame.keys
    ]


async def test_the_first_frame_is_the_whole_state() -> None:
    world = World()
    stamp = world.run({b"a": b"1"})
    frame = await take(world.keys(b"b", b"a"))
    assert shown(frame) == [(b"b", None), (b"a", b"1")]
    assert frame.versionstamp == stamp
    entry = frame.keys[1].entry
    assert (entry.key, entry.encoding, entry.versionstamp) == (b"a", 3, versionstamp(1, 2, 0))


async def test_changes_are_coalesced_and_the_last_state_is_delivered() -> None:
    world = World()
    watch = world.keys(b"a", b"b")
    await take(watch)
    for number in range(100):
        stamp = world.run({b"a": b"%d" % number})
    frame = await take(watch)
    assert shown(frame) == [(b"a", b"99"), None]
    assert frame.versionstamp == stamp
    assert await nothing_comes(watch)


async def test_a_waiting_reader_is_woken() -> None:
    world = World()
    watch = world.keys(b"a")
    await take(watch)
    waiting = asyncio.ensure_future(take(watch))
    await asyncio.sleep(0.01)
    world.run({b"a": b"1"})
    assert shown(await waiting) == [(b"a", b"1")]


async def test_what_does_not_change_what_was_seen_is_not_sent() -> None:
    world = World()
    watch = world.keys(b"a")
    await take(watch)
    world.run({b"a": None})
    world.run({b"other": b"1"})
    world.run({b"a": b"1"}, database=2)
    assert await nothing_comes(watch)
    world.run({b"a": b"1"})
    world.run({b"a": None})  # absent before and after: no frame either
    assert await nothing_comes(watch)


async def test_an_expired_row_is_absent_before_it_is_deleted() -> None:
    world = World()
    world.run({b"a": b"1"}, expire_at_ms=1_000)  # the log time is 1,000
    watch = world.keys(b"a")
    assert shown(await take(watch)) == [(b"a", None)]
    world.run({b"a": None})
    assert await nothing_comes(watch)
    world.run({b"a": b"2"}, expire_at_ms=1_001)
    assert shown(await take(watch)) == [(b"a", b"2")]
    world.state.meta = world.state.meta._replace(log_time_ms=1_001)
    world.run({b"a": None})
    assert shown(await take(watch)) == [(b"a", None)]


async def test_what_was_shown_goes_with_its_time_in_the_frame_that_shows_what_came_after() -> None:
    """A transaction that found it expired may have made the other one: no state ever had both."""
    world = World()
    world.run({b"a": b"1"}, expire_at_ms=2_000)
    watch = world.keys(b"a", b"b")
    assert shown(await take(watch)) == [(b"a", b"1"), (b"b", None)]
    world.state.meta = world.state.meta._replace(log_time_ms=2_000)
    world.run({b"b": b"2"})
    assert shown(await take(watch)) == [(b"a", None), (b"b", b"2")]
    world.run({b"a": None})  # the tick that deletes it
    assert await nothing_comes(watch)


async def test_the_time_of_what_was_overwritten_takes_nothing_from_what_took_its_place() -> None:
    world = World()
    world.run({b"a": b"1"}, expire_at_ms=2_000)
    watch = world.keys(b"a", b"b")
    await take(watch)
    world.run({b"a": b"2"})
    assert shown(await take(watch)) == [(b"a", b"2"), None]
    world.state.meta = world.state.meta._replace(log_time_ms=2_000)
    world.run({b"b": b"1"})
    assert shown(await take(watch)) == [None, (b"b", b"1")]


async def test_a_slow_reader_is_not_shown_what_has_expired_since_it_was_written() -> None:
    world = World()
    watch = world.keys(b"a", b"b")
    await take(watch)
    world.run({b"a": b"1"}, expire_at_ms=2_000)
    world.state.meta = world.state.meta._replace(log_time_ms=2_000)
    world.run({b"b": b"2"})
    assert shown(await take(watch)) == [None, (b"b", b"2")]


async def test_of_a_range_too_what_has_expired_goes_with_what_came_after() -> None:
    world = World()
    world.run({b"p1": b"1", b"p2": b"1", b"o": b"1"}, expire_at_ms=2_000)
    watch = world.range(b"p", b"q")
    assert (await take(watch)).resync
    world.run({b"p2": b"2"}, expire_at_ms=3_000)
    world.run({b"p3": b"3"}, expire_at_ms=2_000)
    world.state.meta = world.state.meta._replace(log_time_ms=2_000)
    stamp = world.run({b"p4": b"4"})
    frame = await take(watch)
    assert shown(frame) == [(b"p1", None), (b"p2", b"2"), (b"p3", None), (b"p4", b"4")]
    assert frame.versionstamp == stamp
    world.run({b"p1": None, b"p3": None, b"o": None})  # the tick: the reader knows
    assert await nothing_comes(watch)
    world.run({b"p1": b"5"})
    world.run({b"p1": None})
    assert shown(await take(watch)) == [(b"p1", None)]


async def test_of_a_range_that_is_read_anew_everything_may_expire_again() -> None:
    """What was installed may be of another history, in which the key lives longer."""
    world = World()
    world.run({b"p1": b"1"}, expire_at_ms=2_000)
    watch = world.range(b"p", b"q")
    await take(watch)
    world.state.meta = world.state.meta._replace(log_time_ms=2_000)
    world.run({b"p2": b"2"})
    assert shown(await take(watch)) == [(b"p1", None), (b"p2", b"2")]
    full = PREFIX + b"p1"
    world.state.rows[full] = world.state.rows[full]._replace(expire_at_ms=3_000)
    world.hub.resync()
    assert (await take(watch)).resync
    world.state.meta = world.state.meta._replace(log_time_ms=3_000)
    world.run({b"p3": b"3"})
    assert shown(await take(watch)) == [(b"p1", None), (b"p3", b"3")]


async def test_a_range_is_read_anew_when_too_much_has_expired_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_EXPIRED_KEYS_PER_TICK_COUNT", 3)
    world = World()
    world.run({b"o%d" % number: b"1" for number in range(4)}, expire_at_ms=2_000)
    watch = world.range(b"p", b"q")
    await take(watch)
    world.state.meta = world.state.meta._replace(log_time_ms=2_000)
    stamp = world.run({b"p1": b"1"})
    frame = await take(watch)
    assert (frame.resync, frame.versionstamp) == (True, stamp)
    world.run({b"o%d" % number: None for number in range(4)})
    world.run({b"p2": b"2"})
    assert shown(await take(watch)) == [(b"p2", b"2")]


async def test_after_a_snapshot_install_keys_are_read_anew() -> None:
    world = World()
    world.run({b"a": b"1", b"b": b"1"})
    watch = world.keys(b"a", b"b")
    await take(watch)
    full = PREFIX + b"b"
    world.state.rows[full] = Row(full, b"2", 3, versionstamp(1, 50, 0))
    world.state.meta = world.state.meta._replace(applied_index=50)
    world.hub.resync()
    frame = await take(watch)
    assert shown(frame) == [None, (b"b", b"2")]
    assert frame.versionstamp == versionstamp(1, 50, 65_535)


async def test_a_frame_between_an_install_and_the_news_of_it_mixes_nothing() -> None:
    world = World()
    world.run({b"a": b"1", b"b": b"1"})
    keys, of_range = world.keys(b"a", b"b"), world.range(b"a", b"c")
    await take(keys)
    await take(of_range)
    world.run({b"a": b"2"})  # waits for its readers
    for name in (b"a", b"b"):
        full = PREFIX + name
        world.state.rows[full] = Row(full, b"3", 3, versionstamp(1, 50, 0))
    world.state.meta = world.state.meta._replace(applied_index=50)
    frame = await take(keys)
    assert shown(frame) == [(b"a", b"3"), (b"b", b"3")] and frame.versionstamp == versionstamp(1, 50, 65_535)
    frame = await take(of_range)
    assert frame.resync and frame.versionstamp == versionstamp(1, 50, 65_535)


async def test_a_range_begins_with_a_resync_and_then_names_what_changed() -> None:
    world = World()
    stamp = world.run({b"p1": b"1"})
    watch = world.range(b"p", b"q")
    first = await take(watch)
    assert (first.resync, list(first.keys), first.versionstamp) == (True, [], stamp)
    world.run({b"p2": b"2", b"q": b"x", b"o": b"x", b"p": b"0"})
    stamp = world.run({b"p1": None})
    frame = await take(watch)
    assert shown(frame) == [(b"p", b"0"), (b"p1", None), (b"p2", b"2")]
    assert (frame.resync, frame.versionstamp) == (False, stamp)
    world.run({b"q": b"y"})
    world.run({b"p3": b"x"}, database=2)
    assert await nothing_comes(watch)


async def test_a_range_that_falls_behind_is_told_to_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PREFIX_WATCH_PENDING_KEYS_COUNT", 10)
    world = World()
    watch = world.range(b"p", b"q")
    await take(watch)
    for number in range(30):
        stamp = world.run({b"p%d" % number: b"v"})
    frame = await take(watch)
    assert (frame.resync, frame.versionstamp, list(frame.keys)) == (True, stamp, [])
    assert await nothing_comes(watch)
    world.run({b"p": b"v"})
    assert shown(await take(watch)) == [(b"p", b"v")]
    assert world.stats.watch_resyncs == 2
    world.hub.resync()
    assert (await take(watch)).resync


async def test_what_a_range_is_behind_fits_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended with RESOURCE_EXHAUSTED, which no client takes for a reason to go on."""
    monkeypatch.setattr(limits, "MAX_PREFIX_WATCH_PENDING_BYTES", 10_000)
    world = World()
    watch = world.range(b"a", b"z")
    await take(watch)
    for _ in range(50):
        world.run({b"same": b"x" * 1_000})  # overwritten: no more than one waits
    frame = await take(watch)
    assert (frame.resync, [key.key for key in frame.keys]) == (False, [b"same"])
    for number in range(10):
        stamp = world.run({b"key%d" % number: b"x" * 1_000})
    frame = await take(watch)
    assert (frame.resync, frame.versionstamp, list(frame.keys)) == (True, stamp, [])
    for keys_bytes in (2_000, 1):
        world.run({b"k" * keys_bytes + b"%d" % number: b"x" for number in range(4)})
    frame = await take(watch)
    assert frame.resync, "keys travel twice"
    world.run({b"k%d" % number: None for number in range(100)})
    frame = await take(watch)
    assert (frame.resync, len(frame.keys)) == (False, 100)
    assert frame.ByteSize() <= limits.MAX_PREFIX_WATCH_PENDING_BYTES


async def test_silence_is_broken_by_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WATCH_PING_INTERVAL_MS", 20)
    world = World()
    watch = world.keys(b"a")
    await take(watch)
    for _ in range(2):
        frame = await take(watch)
        assert frame.ping and not frame.keys
    world.run({b"a": b"1"})
    assert shown(await take(watch)) == [(b"a", b"1")]


async def test_a_state_of_unknown_age_is_not_shown_where_there_is_a_bound() -> None:
    world = World()
    watch = world.keys(b"a", max_staleness_ms=10_000)
    with pytest.raises(TooStale, match=r"unknown age.*10000 ms"):
        await take(watch)
    assert not watch.open and world.stats.watches == 0
    assert world.stats.watches_too_stale == 1
    assert shown(await take(world.keys(b"a"))) == [(b"a", None)], "without a bound any state will do"


async def test_a_watch_ends_when_its_state_grows_too_old_although_nothing_changes() -> None:
    world = World()
    world.confirmed_at_ms = world.now_ms()
    watch, patient = world.keys(b"a", max_staleness_ms=200), world.keys(b"a")
    assert (await take(watch)).age_ms <= 200
    await take(patient)
    with pytest.raises(TooStale, match="the watch allows 200 ms"):
        await take(watch)
    assert 200 <= world.age_ms() < 400
    assert await nothing_comes(patient)


async def test_a_watch_goes_on_while_its_state_is_kept_fresh_and_shows_nothing_older() -> None:
    world = World()
    world.confirmed_at_ms = world.now_ms()
    watch = world.keys(b"a", max_staleness_ms=200)
    await take(watch)
    for number in range(6):
        waiting = asyncio.ensure_future(take(watch))
        await asyncio.sleep(0.1)
        world.confirmed_at_ms = world.now_ms()
        world.run({b"a": b"%d" % number})
        assert shown(await waiting) == [(b"a", b"%d" % number)]
    world.confirmed_at_ms -= 1_000
    world.run({b"a": b"too late"})
    with pytest.raises(TooStale):
        await take(watch)


async def test_a_watch_with_a_bound_is_pinged_as_often_as_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MIN_WATCH_PING_INTERVAL_MS", 30)
    world = World()
    world.confirmed_at_ms = world.now_ms()
    watch = world.keys(b"a", max_staleness_ms=60)
    await take(watch)

    async def keep_fresh() -> None:
        while True:
            world.confirmed_at_ms = world.now_ms()
            await asyncio.sleep(0.01)

    keeping = asyncio.ensure_future(keep_fresh())
    began = world.now_ms()
    frames = [await take(watch) for _ in range(3)]
    keeping.cancel()
    assert all(frame.ping and 0 <= frame.age_ms <= 60 for frame in frames)
    assert 170 <= world.now_ms() - began < 900


def test_pings_come_within_limits_and_silence_is_three_of_them() -> None:
    assert [ping_interval_ms(bound_ms) for bound_ms in (0, 1, 2_000, 60_000)] == [5_000, 1_000, 2_000, 5_000]
    assert [silence_ms(bound_ms) for bound_ms in (0, 1, 2_000, 60_000)] == [15_000, 3_000, 6_000, 15_000]


async def test_closing_ends_the_iteration_and_forgets_the_watch() -> None:
    world = World()
    watches = [world.keys(b"a"), world.keys(b"a", b"b"), world.range(b"p", b"q"), world.range(b"p", b"q")]
    assert world.stats.watches == len(world.hub) == 4
    reader = asyncio.ensure_future(_frames(watches[0]))
    await asyncio.sleep(0.01)
    watches[0].close()
    watches[0].close()
    assert len(await reader) == 1
    world.hub.close()
    assert world.stats.watches == len(world.hub) == 0
    assert not (world.hub._by_key or world.hub._ranges or world.hub._range_count)
    with pytest.raises(StopAsyncIteration):
        await take(watches[3])
    with pytest.raises(Unavailable, match="stopping"):
        world.keys(b"a")


async def _frames(watch: Watch) -> list[kv_pb2.WatchResponse]:
    return [frame async for frame in watch]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (kv_pb2.WatchRequest(), "WATCH_INVALID"),
        (kv_pb2.WatchRequest(keys=[b"a"], prefix_start=b"a", prefix_end=b"b"), "WATCH_INVALID"),
        (kv_pb2.WatchRequest(prefix_start=b"b", prefix_end=b"b"), "WATCH_INVALID"),
        (kv_pb2.WatchRequest(keys=[b"k%d" % i for i in range(11)]), "TOO_MANY_WATCHED_KEYS"),
        (kv_pb2.WatchRequest(keys=[bytes(2_050)]), "KEY_TOO_LARGE"),
        (kv_pb2.WatchRequest(prefix_start=b"a", prefix_end=b"b" * 2_050), "KEY_TOO_LARGE"),
    ],
)
async def test_what_cannot_be_watched_is_refused(request_: kv_pb2.WatchRequest, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        World().hub.watch(request_)
    assert caught.value.code == code


async def test_there_is_room_for_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_WATCHES_COUNT", 3)
    monkeypatch.setattr(limits, "MAX_PREFIX_WATCHES_COUNT", 1)
    world = World()
    world.range(b"a", b"b").close()
    world.range(b"a", b"b")
    with pytest.raises(Unavailable, match="ranges"):
        world.range(b"c", b"d")
    world.keys(b"a")
    world.keys(b"a")
    with pytest.raises(Unavailable) as caught:
        world.keys(b"a")
    assert caught.value.code == "TOO_MANY_WATCHES"


@pytest.mark.parametrize("seed", range(20))
async def test_every_frame_is_one_real_state(seed: int) -> None:
    """Against the history of all states: frames go forward, each equals the state at its versionstamp."""
    chance = random.Random(seed)
    world = World()
    names = [b"a", b"b", b"c", b"p1", b"p2", b"p3"]
    history: dict[bytes, dict[bytes, bytes | None]] = {versionstamp(1, 1, 65_535): {}}
    keys, spans = world.keys(b"a", b"b", b"c"), world.range(b"p", b"q")
    seen_keys: dict[bytes, bytes | None] = {}
    seen_range: dict[bytes, bytes | None] = {}

    def check(seen: dict[bytes, bytes | None], frame: kv_pb2.WatchResponse, wanted: list[bytes]) -> None:
        state = history[frame.versionstamp]
        if frame.resync:
            seen.clear()
            seen.update({key: state.get(key) for key in wanted})
        for key in frame.keys:
            if key.changed:
                seen[key.key] = key.entry.value if key.HasField("entry") else None
        assert {key: seen.get(key) for key in wanted} == {key: state.get(key) for key in wanted}

    for step in range(200):
        writes = {key: chance.choice([None, b"%d" % step]) for key in chance.sample(names, chance.randint(1, 4))}
        before = dict(history[versionstamp(1, world.state.meta.applied_index, 65_535)])
        stamp = world.run(writes)
        history[stamp] = {**before, **writes}
        if chance.random() < 0.05:
            world.hub.resync()
        if chance.random() < 0.4 and (keys._stale or keys._slots) and not await nothing_pending(keys):
            check(seen_keys, await take(keys), names[:3])
        if chance.random() < 0.4 and (spans._stale or spans._slots):
            check(seen_range, await take(spans), names[3:])
    final = history[versionstamp(1, world.state.meta.applied_index, 65_535)]
    if not await nothing_pending(keys):
        check(seen_keys, await take(keys), names[:3])
    assert {key: seen_keys.get(key) for key in names[:3]} == {key: final.get(key) for key in names[:3]}


async def nothing_pending(watch: Watch) -> bool:
    """Whether the slots hold only what the reader has seen already; found without consuming a frame."""
    slots = {key: watch._hub.row(key) for key in watch.keys}
    return all(watch._seen.get(key) == (row and row.versionstamp,) for key, row in slots.items())
