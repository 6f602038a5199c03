"""The replica's side of the changelog: follow the best source there is.

Theory of operation. One stream at a time feeds the core. A source that breaks, refuses, or says nothing for
CHANGELOG_SILENCE_MS is left for the next (choice.py). Other reasons to leave one are looked into *beside* the stream,
and it is only given up for a source that has answered: every CHANGELOG_BETTER_INTERVAL_MS those that are better are
tried again, so that a region's first replica that comes back takes its neighbours over without a gap; and when a source
lives but has heard nothing of the leader for CHANGELOG_STALE_MS, one whose news are newer is looked for.

A source that awaits a snapshot itself has nothing to give, and is only followed while nobody else answers: what it
says is how far it is. Who needs a snapshot as well stays with a voter meanwhile, which holds its own back, and looks
every NEIGHBOUR_SNAPSHOT_PROBE_MS whether the neighbour has it (snapshot_wait.py).

Each stream begins where the own log ends durably, so whatever the previous one had under way comes again, and the core
leaves out what it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from math import inf

from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.base.errors import InvalidRequest, KvError
from kvnode.codec.membership import Member, Membership
from kvnode.node.changelog.choice import all_others, neighbours, sources
from kvnode.node.changelog.pieces import take_entries
from kvnode.node.changelog.snapshot_wait import SnapshotWait
from kvnode.node.freshness import FreshnessTracker
from kvnode.node.marks import Marks
from kvnode.node.ports import Awaited, ChangelogStream, Freshness, LeaseNews, Transport
from kvnode.node.wire import decode_awaited, decode_lease, encode_lease
from kvnode.proto.kv.internal.v1 import changelog_pb2, failover_pb2, peer_pb2
from kvnode.raft.raft import Raft

_log = logging.getLogger(__name__)

Opened = tuple[Member, ChangelogStream, changelog_pb2.FollowResponse]


class _Looks:
    """When a better source than the present one was last looked for, for each reason, in monotonic milliseconds."""

    __slots__ = ("better_ms", "newer_ms", "useful_ms")

    def __init__(self, now_ms: float) -> None:
        self.better_ms = now_ms
        self.newer_ms = self.useful_ms = -inf  # at once


class ChangelogFollower:
    """Keeps one replica fed.

    Args:
        node_id, region: this node's.
        membership: the members that it knows of, as of now.
        epoch: the latest that it knows of: no source of an earlier one is followed.
        is_active: whether it follows at all just now.
        learn: given the Hello of a source that refuses.
        forked: given the answer of a source whose history parts from this node's own.
        begun: the epochs that the own log has.
        heard_from: who told of the latest epoch; 0 = nobody.
        lease_news: what this node and those behind it have granted.
        on_lease: told of a source's ask.
        coming: how much this node has of a snapshot that is sent to it.
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
        begun: Callable[[], Iterable[failover_pb2.FailoverEpoch]] = tuple,
        heard_from: Callable[[], int] = lambda: 0,
        lease_news: Callable[[], LeaseNews | None] = lambda: None,
        on_lease: Callable[[LeaseNews], None] = lambda _news: None,
        coming: Callable[[], Awaited] = lambda: Awaited(0, 0),
    ) -> None:
        self._lease_news = lease_news
        self._on_lease = on_lease
        self._heard_from = heard_from
        self._begun = begun
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
        self._end = 0, 0  # of the own log, durably: index and term
        self.committed_index = 0  # of the group, as far as the sources say
        self.held_at_ms = 0  # what was committed by then is in the log durably, by a leader's clock
        self.source: Member | None = None
        self.wait = SnapshotWait(clock, self._neighbours, coming)

    @property
    def awaits_snapshot(self) -> bool:
        """Whether it follows somebody, and needs a snapshot to go on."""
        return self.source is not None and self.wait.is_needed

    def look(self) -> None:
        """It may have to follow from here on, or somebody else."""
        self._something.set()

    async def run(self) -> None:
        """Follow for ever, whenever this node is to."""
        opened: Opened | None = None
        try:
            while True:
                if opened is None and not self._is_active():
                    self.source = None
                    self.wait.settle()
                    self._something.clear()
                    await self._something.wait()
                    continue
                if opened is None:
                    opened = await self._open_first(self._sources(), or_any=True)
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

    def _neighbours(self) -> list[Member]:
        return [] if self._raft.fenced else neighbours(self._membership(), self._node_id, self._region)

    async def _open_first(
        self, candidates: list[Member], newer_than_ms: int = 0, *, or_any: bool = False
    ) -> Opened | None:
        """The first of them that answers and is of use.

        Args:
            newer_than_ms: its news are from after that time; 0 = whatever their age.
            or_any: if none is of use, the first that answers.
        """
        spare: Opened | None = None
        try:
            for member in candidates:
                opened = await self._open(member, newer_than_ms)
                if opened is not None and self._is_useful(member, opened[2]):
                    return opened
                if opened is not None and spare is None and or_any:
                    spare = opened
                elif opened is not None:
                    await opened[1].close()
            kept, spare = spare, None
            return kept
        finally:
            if spare is not None:
                await spare[1].close()

    async def _open(self, member: Member, newer_than_ms: int) -> Opened | None:
        """A stream from that source, if it answers and does not refuse."""
        where = self._where(member)
        where.hold_snapshot = True  # whoever is only looked at is to send none; the first acknowledgement asks for it
        where.begun.extend(self._begun())
        stream = self._transport.follow(member.node_id, where)
        opened: Opened | None = None
        try:
            first = await self._read(stream, limits.PEER_CONNECT_TIMEOUT_MS)
            refused = first.refused if first is not None else "no answer"
            if first is not None and first.HasField("hello"):
                self._learn(first.hello)
            if first is not None and first.HasField("awaited"):
                self.wait.hear(member, decode_awaited(first.awaited))
            refused = refused or self._is_of_the_past(first)
            if first is not None and first.forked and self._forked is not None and not self._is_of_the_past(first):
                await self._forked(member, first)
            is_newer = first is not None and (not newer_than_ms or first.freshness.sent_at_ms > newer_than_ms)
            if refused:
                self._say(member, refused)
            elif first is not None and is_newer:
                opened = member, stream, first
            return opened
        finally:
            if opened is None:
                await stream.close()

    def _is_useful(self, member: Member, first: changelog_pb2.FollowResponse) -> bool:
        """Whether a source that answers has something to give. A neighbour that is behind this node has not."""
        if first.HasField("awaited"):
            return False
        return not (self.wait.is_needed and self.wait.is_neighbour(member)) or first.snapshot or bool(first.entries)

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
        looks = _Looks(self._clock.monotonic_ms())
        response: changelog_pb2.FollowResponse | None = first
        try:
            while response is not None and self._take(member, response):
                await self._acknowledge(member, stream)
                if better is not None and better.done():
                    found, better = better.result(), None
                    if found is not None:
                        return found
                search = self._search(member, response, looks) if better is None else None
                if search is not None:
                    better = asyncio.get_running_loop().create_task(search)
                response = await self._read(stream, limits.CHANGELOG_SILENCE_MS)
            if response is None:
                self._say(member, f"silent for {limits.CHANGELOG_SILENCE_MS} ms, or gone")
            return None
        finally:
            if better is not None:
                await _abandon(better)

    def _search(
        self, member: Member, response: changelog_pb2.FollowResponse, looks: _Looks
    ) -> Coroutine[None, None, Opened | None] | None:
        """A search for a source that is to take this one's place, if there is a reason for one."""
        now = self._clock.monotonic_ms()
        is_waiting = self.wait.is_on() and not self.wait.is_neighbour(member)
        pause_ms = limits.NEIGHBOUR_SNAPSHOT_PROBE_MS if is_waiting else limits.CHANGELOG_BETTER_INTERVAL_MS
        if now >= looks.better_ms + pause_ms:
            looks.better_ms = now
            better = self._better_than(member)
            return self._open_first(better) if better else None
        if now >= looks.newer_ms + limits.CHANGELOG_STALE_MS and self._is_stale(response):
            looks.newer_ms = now
            return self._look_for_newer(member, response.freshness.sent_at_ms)
        if now >= looks.useful_ms + limits.NEIGHBOUR_SNAPSHOT_PROBE_MS and response.HasField("awaited"):
            looks.useful_ms = now
            return self._open_first([other for other in self._sources() if other.node_id != member.node_id])
        return None

    def _better_than(self, member: Member) -> list[Member]:
        """Those that it prefers to one.

        Who waits for a neighbour to have a snapshot looks at neighbours only, also at one that it left for its age a
        moment ago. Whom one comes to stays: every other source would begin from the start.
        """
        found = self._sources()
        if self.wait.is_on():
            found = self._neighbours()
        elif self.wait.is_needed and self.wait.is_coming():
            return []
        ids = [other.node_id for other in found]
        return found[: ids.index(member.node_id)] if member.node_id in ids else found

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
        self._note_need(member, response)
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

    def _note_need(self, member: Member, response: changelog_pb2.FollowResponse) -> None:
        """Whether it takes a snapshot to go on."""
        if response.HasField("awaited"):
            self.wait.hear(member, decode_awaited(response.awaited))
        elif response.snapshot:
            if not self.wait.is_needed:
                _log.info("what comes next is no longer in the log of '%s': awaiting a snapshot", member.name)
            self.wait.need()
        else:
            self.wait.settle()

    def _shun(self, member: Member) -> None:
        self._shunned[member.node_id] = self._clock.monotonic_ms() + limits.CHANGELOG_SHUN_MS

    async def _acknowledge(self, member: Member, stream: ChangelogStream) -> None:
        if self._raft.log.snapshot is not None:
            return
        now = self._clock.monotonic_ms()
        if now - self._acknowledged_at >= limits.CHANGELOG_ACKNOWLEDGE_INTERVAL_MS:
            self._acknowledged_at = now
            await stream.acknowledge(self._where(member))

    def _where(self, member: Member) -> changelog_pb2.FollowRequest:
        """Where the own log ends durably, for that source."""
        log = self._raft.log
        if log.snapshot is None:  # else the core counts it as held already, and the disk does not have it yet
            self._end = log.stable, log.term(log.stable) or 0
        index, term = self._end
        self.held_at_ms = self._held.reached(index) or self.held_at_ms
        request = changelog_pb2.FollowRequest(
            region=self._region,
            index=index,
            term=term,
            applied_index=self._applied_index(),
            held_at_ms=self.held_at_ms,
            hold_snapshot=self.wait.holds_back(member),
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
