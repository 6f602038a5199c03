"""The replica's side of the changelog: follow the best source there is.

Theory of operation. One stream at a time feeds the core. A source that breaks, refuses, or says nothing for
CHANGELOG_SILENCE_MS is left for the next (choice.py). Other reasons to leave one are looked into *beside* the stream,
and it is only given up for a source that has answered: every CHANGELOG_BETTER_INTERVAL_MS those that are better are
tried again, so that a region's first replica that comes back takes its neighbours over without a gap; and when a source
lives but has heard nothing of the leader for CHANGELOG_STALE_MS, one whose news are newer is looked for.

Each stream begins where the own log ends durably, so whatever the previous one had under way comes again, and the core
leaves out what it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.base.errors import InvalidRequest, KvError
from kvnode.codec.membership import Member, Membership
from kvnode.node.changelog.choice import all_others, sources
from kvnode.node.changelog.pieces import take_entries
from kvnode.node.freshness import FreshnessTracker
from kvnode.node.marks import Marks
from kvnode.node.ports import ChangelogStream, Freshness, LeaseNews, Transport
from kvnode.node.wire import decode_lease, encode_lease
from kvnode.proto.kv.internal.v1 import changelog_pb2, peer_pb2
from kvnode.raft.raft import Raft

_log = logging.getLogger(__name__)

Opened = tuple[Member, ChangelogStream, changelog_pb2.FollowResponse]


class ChangelogFollower:
    """Keeps one replica fed.

    Args:
        node_id, region: this node's.
        membership: the members that it knows of, as of now.
        epoch: the latest that it knows of: no source of an earlier one is followed.
        is_active: whether it follows at all just now.
        learn: given the Hello of a source that refuses.
        forked: given the answer of a source whose history parts from this node's own.
        heard_from: who told of the latest epoch; 0 = nobody.
        lease_news: what this node and those behind it have granted.
        on_lease: told of a source's ask.
        transport: opens streams.
        wake: tells the driver that the core has news.
    """

    def __init__(
        self,
        node_id: int,
        region: str,
        membership: Callable[[], Membership],
        epoch: Callable[[], int],
        raft: Raft,
        freshness: FreshnessTracker,
        applied_index: Callable[[], int],
        transport: Transport,
        clock: Clock,
        wake: Callable[[], None],
        *,
        is_active: Callable[[], bool] = lambda: True,
        learn: Callable[[peer_pb2.Hello], object] = lambda _hello: None,
        forked: Callable[[Member, changelog_pb2.FollowResponse], Awaitable[None]] | None = None,
        heard_from: Callable[[], int] = lambda: 0,
        lease_news: Callable[[], LeaseNews | None] = lambda: None,
        on_lease: Callable[[LeaseNews], None] = lambda _news: None,
    ) -> None:
        self._lease_news = lease_news
        self._on_lease = on_lease
        self._heard_from = heard_from
        self._is_active = is_active
        self._learn = learn
        self._forked = forked
        self._something = asyncio.Event()
        self._node_id = node_id
        self._region = region
        self._membership = membership
        self._epoch = epoch
        self._raft = raft
        self._freshness = freshness
        self._applied_index = applied_index
        self._transport = transport
        self._clock = clock
        self._wake = wake
        self._shunned: dict[int, float] = {}  # node id: until when, monotonic
        self._acknowledged_at = 0.0
        self._said: dict[int, str] = {}  # what was last logged of each source
        self._held: Marks[int] = Marks(limits.MAX_HELD_MARKS_COUNT)  # moments at their commit indexes
        self._heard_at_ms = 0  # the newest of them
        self.committed_index = 0  # of the group, as far as the sources say
        self.held_at_ms = 0  # what was committed by then is in the log durably, by a leader's clock
        self.source: Member | None = None
        self.awaits_snapshot = False

    def look(self) -> None:
        """It may have to follow from here on, or somebody else."""
        self._something.set()

    async def run(self) -> None:
        """Follow for ever, whenever this node is to."""
        opened: Opened | None = None
        try:
            while True:
                if opened is None and not self._is_active():
                    self.source, self.awaits_snapshot = None, False
                    self._something.clear()
                    await self._something.wait()
                    continue
                if opened is None:
                    opened = await self._open_first(self._sources())
                if opened is None:
                    self.source = None
                    await self._pause()
                    continue
                current, opened = opened, None
                began = self._clock.monotonic_ms()
                try:
                    opened = await self._follow(*current)
                finally:
                    await current[1].close()
                if opened is None and self._clock.monotonic_ms() - began < limits.CHANGELOG_RETRY_MS:
                    await asyncio.sleep(limits.CHANGELOG_RETRY_MS / 1_000)  # it answers, and is of no use
        finally:
            if opened is not None:
                await opened[1].close()

    async def _pause(self) -> None:
        """Before the next round of attempts; cut short when there is news."""
        self._something.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.CHANGELOG_RETRY_MS / 1_000):
                await self._something.wait()

    def _sources(self) -> list[Member]:
        now = self._clock.monotonic_ms()
        membership = self._membership()
        if self._raft.fenced:
            found = all_others(membership, self._node_id, self._heard_from())
        else:
            found = sources(membership, self._node_id, self._region, self._raft.leader_id)
        return sorted(found, key=lambda m: self._shunned.get(m.node_id, 0.0) > now)

    async def _open_first(self, candidates: list[Member], newer_than_ms: int = 0) -> Opened | None:
        """The first of them that answers, with news from after that time if one is given."""
        for member in candidates:
            stream = self._transport.follow(member.node_id, self._where())
            first: changelog_pb2.FollowResponse | None = None
            try:
                first = await self._read(stream, limits.PEER_CONNECT_TIMEOUT_MS)
                refused = first.refused if first is not None else "no answer"
                if first is not None and first.HasField("hello"):
                    self._learn(first.hello)
                refused = refused or self._is_of_the_past(first)
                if first is not None and first.forked and self._forked is not None and not self._is_of_the_past(first):
                    await self._forked(member, first)
                is_newer = first is not None and (not newer_than_ms or first.freshness.sent_at_ms > newer_than_ms)
                if not refused and first is not None and is_newer:
                    return member, stream, first
                first = None
                if refused:
                    self._say(member, refused)
            finally:
                if first is None:
                    await stream.close()
        return None

    def _is_of_the_past(self, response: changelog_pb2.FollowResponse | None) -> str:
        """Why a source is not followed: an epoch that it is not in has begun or been promised. Empty = it is in it."""
        if response is not None and response.epoch and response.epoch < self._epoch():
            return f"it is of epoch {response.epoch}, which ended: this node knows of {self._epoch()}"
        return ""

    async def _follow(
        self, member: Member, stream: ChangelogStream, first: changelog_pb2.FollowResponse
    ) -> Opened | None:
        """Feed the core from a stream until it ends; the better one that takes its place, if that is why."""
        self.source = member
        self._say(member, "")
        better: asyncio.Task[Opened | None] | None = None
        look_at = self._clock.monotonic_ms() + limits.CHANGELOG_BETTER_INTERVAL_MS
        fresher_at = 0.0
        response: changelog_pb2.FollowResponse | None = first
        try:
            while response is not None and self._take(member, response):
                await self._acknowledge(stream)
                if better is not None and better.done():
                    found, better = better.result(), None
                    if found is not None:
                        return found
                now = self._clock.monotonic_ms()
                if better is None and now >= look_at:
                    look_at = now + limits.CHANGELOG_BETTER_INTERVAL_MS
                    better = self._look_for_better(member)
                elif better is None and now >= fresher_at and self._is_stale(response):
                    fresher_at = now + limits.CHANGELOG_STALE_MS
                    search = self._look_for_newer(member, response.freshness.sent_at_ms)
                    better = asyncio.get_running_loop().create_task(search)
                response = await self._read(stream, limits.CHANGELOG_SILENCE_MS)
            if response is None:
                self._say(member, f"silent for {limits.CHANGELOG_SILENCE_MS} ms, or gone")
            return None
        finally:
            if better is not None:
                await _abandon(better)

    def _look_for_better(self, than: Member) -> asyncio.Task[Opened | None] | None:
        better = self._sources()
        ids = [member.node_id for member in better]
        better = better[: ids.index(than.node_id)] if than.node_id in ids else better
        return asyncio.get_running_loop().create_task(self._open_first(better)) if better else None

    async def _look_for_newer(self, than: Member, sent_at_ms: int) -> Opened | None:
        """A source that is left for its age is not the better one again so soon."""
        others = [member for member in self._sources() if member.node_id != than.node_id]
        found = await self._open_first(others, sent_at_ms + limits.CHANGELOG_STALE_MS // 2)
        if found is not None:
            self._shun(than)
        return found

    def _is_stale(self, response: changelog_pb2.FollowResponse) -> bool:
        return self._clock.now_ms() - response.freshness.sent_at_ms > limits.CHANGELOG_STALE_MS

    def _take(self, member: Member, response: changelog_pb2.FollowResponse) -> bool:
        """Hand a response to the core; whether to go on with this source."""
        if response.refused:  # in the middle of a stream: this node was removed
            self._learn(response.hello)
            self._say(member, response.refused)
            return False
        if not self._is_active():
            return False
        if ended := self._is_of_the_past(response):
            self._say(member, ended)
            return False
        if response.snapshot and not self.awaits_snapshot:
            _log.info("what comes next is no longer in the log of '%s': awaiting a snapshot", member.name)
        self.awaits_snapshot = response.snapshot
        try:
            piece = take_entries(response)
            if not piece.entries:  # a notice has no place in the log
                piece = piece._replace(previous_index=0, previous_term=0)
            in_order = self._raft.receive_committed(piece)
        except (InvalidRequest, ValueError) as error:
            self._say(member, str(error))
            self._shun(member)
            return False
        self.committed_index = max(self.committed_index, response.committed_index)
        if response.HasField("freshness"):
            heard = response.freshness
            freshness = Freshness(heard.commit_index, heard.log_time_ms, heard.sent_at_ms)
            self._freshness.heard(freshness, self._applied_index())
            if heard.sent_at_ms > self._heard_at_ms:
                self._heard_at_ms = heard.sent_at_ms
                self._held.add(heard.commit_index, heard.sent_at_ms)
        if response.HasField("lease"):
            self._on_lease(decode_lease(response.lease))
        self._wake()
        if not in_order:
            self._say(member, "it left entries out")
        return in_order

    def _shun(self, member: Member) -> None:
        self._shunned[member.node_id] = self._clock.monotonic_ms() + limits.CHANGELOG_SHUN_MS

    async def _acknowledge(self, stream: ChangelogStream) -> None:
        if self._raft.log.snapshot is not None:
            return  # the core counts it as held already, and the disk does not have it yet
        now = self._clock.monotonic_ms()
        if now - self._acknowledged_at >= limits.CHANGELOG_ACKNOWLEDGE_INTERVAL_MS:
            self._acknowledged_at = now
            await stream.acknowledge(self._where())

    def _where(self) -> changelog_pb2.FollowRequest:
        """Where the own log ends durably."""
        index = self._raft.log.stable
        self.held_at_ms = self._held.reached(index) or self.held_at_ms
        request = changelog_pb2.FollowRequest(
            region=self._region,
            index=index,
            term=self._raft.log.term(index) or 0,
            applied_index=self._applied_index(),
            held_at_ms=self.held_at_ms,
        )
        news = self._lease_news()
        if news is not None:
            request.lease.CopyFrom(encode_lease(news))
        return request

    async def _read(self, stream: ChangelogStream, timeout_ms: int) -> changelog_pb2.FollowResponse | None:
        """The next response; None when the stream has ended or is silent."""
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                return await stream.read()
        except (TimeoutError, KvError):
            return None

    def _say(self, member: Member, text: str) -> None:
        """Log what became of a source, once."""
        if self._said.get(member.node_id) != text:
            self._said[member.node_id] = text
            if text:
                _log.info("the changelog does not come from '%s' (any more): %s", member.name, text)
            else:
                _log.info("the changelog comes from '%s' in %s", member.name, member.region)


async def _abandon(task: asyncio.Task[Opened | None]) -> None:
    """Nobody wants what it finds."""
    task.cancel()
    (found,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(found, tuple):
        await found[1].close()
