"""What each node answers to the one that coordinates a failover.

A failover asks in this order: *inspect* (what do you hold?), *promise* (take no part in an earlier epoch any more),
*pull* (fetch what you lack of what is kept), *begin* (append the epoch's first entry). Each answer is given only
when what it says is durable here, each may be asked again, and none depends on the coordinator living on: whatever was
begun is finished by a repeat under a higher epoch (raft/epochs.py says why that is safe).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from kvnode.base import limits
from kvnode.base.clock import Clock
from kvnode.base.errors import InvalidRequest, KvError, OutcomeUnknown, Unavailable
from kvnode.codec.entry import Entry
from kvnode.codec.epoch import EpochStart, decode_epoch_start, encode_epoch_start, epoch_entry, epoch_of_term
from kvnode.codec.membership import encode_membership
from kvnode.node.epochs import Epochs
from kvnode.node.failover.groups import Groups
from kvnode.node.failover.start import epoch_start
from kvnode.node.freshness import FreshnessTracker
from kvnode.node.guard import Guard
from kvnode.node.ports import Transport
from kvnode.node.settings import NodeSettings
from kvnode.node.wire import decode_entry
from kvnode.proto.kv.internal.v1 import failover_pb2, peer_pb2
from kvnode.raft.raft import Raft
from kvnode.storage.state_tables import StateMeta

_log = logging.getLogger(__name__)
_POLL_S = 0.002


class Participant:
    """One node's part in failovers.

    Args:
        meta: of the applied state, as of now.
        wake: tells the driver that the core has news.
        guard: around every entry into the core.
        on_seal: told when this node, leading, takes nothing in any more.
        ballot_wait_ms: until this node may vote for an automatic promotion; -1 = it does not.
        vouches: whether this node, if it leads, holds the primary lease or needs none.
        keep_tail: saves for the operator what the log holds behind an index, before it is dropped.
    """

    def __init__(
        self,
        settings: NodeSettings,
        raft: Raft,
        epochs: Epochs,
        meta: Callable[[], StateMeta],
        freshness: FreshnessTracker,
        transport: Transport,
        clock: Clock,
        wake: Callable[[], None],
        guard: Guard,
        on_seal: Callable[[], None],
        ballot_wait_ms: Callable[[], int] = lambda: -1,
        vouches: Callable[[], bool] = lambda: True,
        keep_tail: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self._keep_tail = keep_tail
        self._vouches = vouches
        self._ballot_wait_ms = ballot_wait_ms
        self._on_seal = on_seal
        self._settings = settings
        self._raft = raft
        self._epochs = epochs
        self._meta = meta
        self._freshness = freshness
        self._transport = transport
        self._clock = clock
        self._wake = wake
        self._guard = guard
        self._promised_at_ms: float | None = None  # monotonic; of the promise in force, if made since the start
        self._promised_region = ""
        self._groups = Groups()

    async def answer(self, request: failover_pb2.FailoverRequest) -> failover_pb2.FailoverResponse:
        """Serve one question. Raises KvError."""
        if request.cluster_id != self._settings.cluster_id or request.to_node_id not in (0, self._settings.node_id):
            raise InvalidRequest(
                "MEMBER_ID_MISMATCH",
                f"the node here is {self._settings.node_id} of cluster {self._settings.cluster_id}",
                phase="failover",
            )
        response = failover_pb2.FailoverResponse()
        ask = request.WhichOneof("ask")
        if ask == "promise":
            await self._promise(request)
        elif ask == "tail":
            self._tail(request.tail, response)
        elif ask == "pull":
            await self._pull(request)
        elif ask == "begin":
            await self._begin(request)
        elif ask == "seal":
            await self._seal(request)
        elif ask != "inspect":
            raise InvalidRequest("PEER_TOO_NEW", "a failover asks what this version does not know", phase="failover")
        response.report.CopyFrom(self.report())
        return response

    def report(self) -> failover_pb2.FailoverReport:
        """What this node knows of itself."""
        raft, meta, settings = self._raft, self._meta(), self._settings
        log = raft.log
        sealed = self._sealed()
        heard = self._freshness.latest
        ago_ms = -1 if self._promised_at_ms is None else int(self._clock.monotonic_ms() - self._promised_at_ms)
        # One that was taken in later and holds nothing yet knows of that epoch too: its number is not free.
        promised_epoch = max(self._latest_epoch, sealed.epoch if sealed is not None else 0)
        return failover_pb2.FailoverReport(
            node_id=settings.node_id,
            name=settings.name,
            region=settings.region,
            dc=settings.dc,
            state_epoch=meta.epoch,
            log_epoch=self._log_epoch,
            promised_epoch=promised_epoch,
            promised_ballot=raft.promised_ballot,
            promised_region=self._promised_region,
            promised_ago_ms=ago_ms,
            term=raft.term,
            last_index=log.last_index,
            last_term=log.last_term,
            commit_index=log.commit,
            commit_term=log.term(log.commit) or 0,
            epochs=self._epochs.of_log(),
            first_index=log.first_index(),
            leads=raft.own_term_committed and not raft.sealed,
            leader_id=raft.leader_id,
            membership=encode_membership(raft.membership),
            log_time_ms=meta.log_time_ms,
            now_ms=self._clock.now_ms(),
            age_ms=self._freshness.age_ms(),
            heard_sent_at_ms=heard.sent_at_ms if heard is not None else 0,
            heard_commit_index=heard.commit_index if heard is not None else 0,
            reached_sent_at_ms=self._freshness.reached_sent_at_ms(),
            sealed_epoch=sealed.epoch if sealed is not None else 0,
            wanted_commit_dcs=self._epochs.wanted_commit_dcs,
            ballot_wait_ms=self._ballot_wait_ms(),
            holds_lease=raft.own_term_committed and not raft.sealed and self._vouches(),
            groups=self._open_groups(),
        )

    @property
    def _latest_epoch(self) -> int:
        return max(self._raft.epoch, self._epochs.adopted_in)

    @property
    def _log_epoch(self) -> int:
        return self._raft.history.epoch or self._meta().epoch

    def _open_groups(self) -> list[failover_pb2.FailoverGroup]:
        sealed = self._sealed()
        found = [] if sealed is None else [failover_pb2.FailoverGroup(epoch=sealed.epoch, voter_ids=_voter_ids(sealed))]
        return found + self._groups.above(self._log_epoch, self._latest_epoch, known=found)

    def _sealed(self) -> EpochStart | None:
        """What the seal at the log's end, committed or not, says will follow."""
        index = self._raft.history.sealed_at
        if not index:
            return None
        entries = self._raft.log.entries(index, index + 1, 1)
        if entries:
            return decode_epoch_start(entries[0].data)
        return self._epochs.seal[0] if self._epochs.seal is not None else None

    async def _seal(self, request: failover_pb2.FailoverRequest) -> None:
        """End the epoch, as its leader; answers once the seal is committed."""
        raft, latest = self._raft, self._epochs.latest
        self._refuse_second(request)
        sealed = self._sealed()
        if sealed is not None and raft.is_leader:
            raise move_in_progress(self._settings.name, sealed.epoch)
        if request.epoch <= latest:
            raise superseded(self._settings.name, latest)
        membership = raft.membership
        voters = [m for m in membership.members if m.node_id in request.seal.voter_ids and m.region == request.region]
        if not voters:
            raise InvalidRequest("REGION_TOO_SMALL", "none of the new voters is known here", phase="failover")
        start = epoch_start(
            membership,
            voters,
            request.region,
            request.epoch,
            request.ballot,
            self._epochs.wanted_commit_dcs,
            planned=True,
        )
        with self._guard:
            index = raft.propose_seal(encode_epoch_start(start))
        term = raft.term
        self._on_seal()
        self._wake()
        await self._seal_committed(index, term)

    async def _seal_committed(self, index: int, term: int) -> None:
        """Wait until the log's history is settled up to the seal, whoever leads by then.

        The others may commit it and go on behind it, with another leader, before this node's disk has confirmed it. And
        what another leader puts in its place here counts only once that is committed: till then a third one may bring
        the seal back.

        Raises:
            Unavailable: LEADERSHIP_LOST, something else is committed in its place.
            InvalidRequest: FAILOVER_SUPERSEDED, another epoch begins there.
            OutcomeUnknown: FAILOVER_INCOMPLETE, nothing is committed there yet.
        """
        log = self._raft.log
        with suppress(Unavailable):
            await self._until(lambda: log.commit >= index, limits.PEER_CALL_TIMEOUT_MS)
        found = log.term(index) if log.commit >= index else None
        if found is None:
            raise OutcomeUnknown(
                f"'{self._settings.name}' has written the seal and not seen it committed; it may still be: look at "
                "`kvnode status`",
                code="FAILOVER_INCOMPLETE",
                phase="failover",
            )
        if epoch_of_term(found) != epoch_of_term(term):
            raise superseded(self._settings.name, epoch_of_term(found))
        if found != term:
            raise Unavailable(
                f"'{self._settings.name}' lost the leadership before its seal was committed, so nothing was changed: "
                "repeat the command",
                code="LEADERSHIP_LOST",
                phase="failover",
            )

    def take_up(self, start: EpochStart, index: int) -> None:
        """A seal is applied here, and this node is to vote behind it: begin the epoch.

        The seal is committed, so its word is the decision. Whoever has promised a later epoch since leaves it.
        """
        raft = self._raft
        voter_ids = _voter_ids(start)
        if self._settings.node_id not in voter_ids or raft.history.sealed_at != index:
            return
        try:
            with self._guard:
                raft.promise(start.epoch, start.ballot)
                raft.begin_epoch(epoch_entry(start, index + 1))
                if self._settings.node_id == max(voter_ids):  # fed last by its neighbours, who are ready to vote by now
                    raft.campaign()
        except KvError as error:
            _log.warning("epoch %d is not begun behind the seal at %d: %s", start.epoch, index, error)
        else:
            self._transport.announce()  # who was not told that the seal is committed learns it by this (heard_of)
        self._wake()

    def heard_of(self, epoch: int, ballot: int) -> None:
        """A peer is in, or has promised, that epoch under that ballot.

        If that is what the seal at the end of our log says will follow, the seal is committed: nobody promises it but
        who has applied the seal. The leader that sealed may be the one, and have left the epoch before it could tell
        us; and those who remain may be too few to elect another one.
        """
        raft = self._raft
        index = raft.history.sealed_at
        if not index or raft.log.commit >= index:
            return
        sealed = self._sealed()
        if sealed is None or (sealed.epoch, sealed.ballot) != (epoch, ballot):
            return
        with self._guard:
            raft.seal_is_committed()
        self._wake()

    async def _promise(self, request: failover_pb2.FailoverRequest) -> None:
        raft = self._raft
        self._refuse_second(request)
        held = (raft.promised_epoch, raft.promised_ballot)
        if request.epoch <= raft.epoch and not raft.fenced and held != (request.epoch, request.ballot):
            raise superseded(self._settings.name, raft.epoch)
        if request.promise.automatic:
            self._require_vote()
        before = self._open_groups()
        with self._guard:
            raft.promise(request.epoch, request.ballot)
        self._groups.promised(request.epoch, request.promise.voter_ids, before)
        if self._promised_at_ms is None or self._promised_region != request.region:
            self._promised_region = request.region
        self._promised_at_ms = self._clock.monotonic_ms()
        self._wake()
        await self._until(lambda: raft.durable_promise >= (request.epoch, 0), limits.PEER_CALL_TIMEOUT_MS)
        # A leader may count on this vote for a moment more (raft/holds.py): till then it may answer strong reads.
        hold_ms = self._settings.election_ticks * self._settings.tick_ms
        await self._until(lambda: not raft.holds_vote, hold_ms + limits.PEER_CALL_TIMEOUT_MS)
        self._require_promise(request)

    def _refuse_second(self, request: failover_pb2.FailoverRequest) -> None:
        """Another failover began a moment ago and has not come to its end: two at once help nobody."""
        raft = self._raft
        held = (raft.promised_epoch, raft.promised_ballot)
        if self._promised_at_ms is None or not raft.fenced or held == (request.epoch, request.ballot):
            return
        ago_ms = self._clock.monotonic_ms() - self._promised_at_ms
        if ago_ms < limits.FAILOVER_EXCLUSIVE_MS:
            raise failover_in_progress(self._settings.name, self._promised_region, held[0], ago_ms)

    def _require_vote(self) -> None:
        """The promise is a vote in a ballot: not while this node may have granted a primary lease."""
        wait_ms = self._ballot_wait_ms()
        if wait_ms:
            why = f"has granted the primary lease for {wait_ms} ms more" if wait_ms > 0 else "takes no part in ballots"
            raise Unavailable(
                f"node '{self._settings.name}' {why}: it votes for no promotion",
                code="BALLOT_REFUSED",
                phase="failover",
            )

    def _require_promise(self, request: failover_pb2.FailoverRequest) -> None:
        raft = self._raft
        if (raft.promised_epoch, raft.promised_ballot) != (request.epoch, request.ballot):
            raise InvalidRequest(
                "FAILOVER_SUPERSEDED",
                f"node '{self._settings.name}' has promised epoch {raft.promised_epoch} to another failover",
                phase="failover",
            )

    def _tail(self, ask: failover_pb2.FailoverTail, response: failover_pb2.FailoverResponse) -> None:
        """Give entries of the own log, up to the end that was agreed on, committed or not."""
        log = self._raft.log
        if log.term(ask.up_to_index) != ask.up_to_term:
            raise InvalidRequest(
                "FAILOVER_SUPERSEDED",
                f"node '{self._settings.name}' no longer holds entry {ask.up_to_index} of term {ask.up_to_term}",
                phase="failover",
            )
        own = log.term(ask.after_index)
        if own is None:
            raise InvalidRequest(
                "FAILOVER_TAIL_MISSING",
                f"the log of '{self._settings.name}' begins at {log.first_index()}: what follows {ask.after_index} is "
                "in it no more",
                phase="failover",
            )
        if own != ask.after_term:
            raise forked(self._settings.name, ask.after_index)
        entries = log.entries(ask.after_index + 1, ask.up_to_index + 1, limits.MAX_FAILOVER_TAIL_BYTES)
        for term, index, kind, data in entries:
            response.entries.add(term=term, index=index, kind=kind, data=data)
        response.more = bool(entries) and entries[-1].index < ask.up_to_index

    async def _pull(self, request: failover_pb2.FailoverRequest) -> None:
        """Fetch what lies between the own commit index and the agreed end from the node whose log is kept."""
        ask, raft = request.pull, self._raft
        self._require_promise(request)
        at = min(raft.log.commit, ask.up_to_index)
        while at < ask.up_to_index:
            tail = failover_pb2.FailoverTail(
                after_index=at,
                after_term=raft.log.term(at) or 0,
                up_to_index=ask.up_to_index,
                up_to_term=ask.up_to_term,
            )
            question = failover_pb2.FailoverRequest(
                cluster_id=request.cluster_id, to_node_id=ask.from_node_id, epoch=request.epoch, tail=tail
            )
            given = await self._transport.ask_failover(ask.from_address, question, limits.FAILOVER_ASK_TIMEOUT_MS)
            entries = [decode_entry(entry) for entry in given.entries]
            await self._save_before(entries)
            self._require_promise(request)
            with self._guard:
                taken = raft.take_tail(tail.after_index, tail.after_term, entries)
            if not taken or not entries:
                raise forked(self._settings.name, at)
            self._wake()
            at = entries[-1].index
        end = (ask.up_to_index, ask.up_to_term)
        if raft.log.term(end[0]) != end[1]:
            raise forked(self._settings.name, end[0])
        await self._until(lambda: raft.log.stable >= end[0], limits.FAILOVER_ASK_TIMEOUT_MS)
        self._require_promise(request)

    async def _begin(self, request: failover_pb2.FailoverRequest) -> None:
        entry = decode_entry(request.begin.entry)
        await self._save_before([entry])
        await self.begin(entry, campaign=request.begin.campaign)

    async def _save_before(self, entries: Sequence[Entry]) -> None:
        """Save what these entries will push out of the log."""
        log = self._raft.log
        first = next((e.index for e in entries if log.term(e.index) != e.term), None)
        if self._keep_tail is not None and first is not None and log.commit < first <= log.last_index:
            await self._keep_tail(first - 1)

    async def begin(self, entry: Entry, *, campaign: bool) -> None:
        """Append the first entry of the promised epoch, durably; with `campaign`, stand for election at once."""
        raft = self._raft
        with self._guard:
            raft.begin_epoch(entry)
        self._wake()
        await self._until(
            lambda: raft.log.stable >= entry.index and raft.log.term(entry.index) == entry.term,
            limits.PEER_CALL_TIMEOUT_MS,
        )
        if campaign and not raft.leader_id:
            with self._guard:
                raft.campaign()
            self._wake()

    async def _until(self, holds: Callable[[], bool], timeout_ms: int) -> None:
        """Wait for the driver's disk. Raises Unavailable."""
        deadline = self._clock.monotonic_ms() + timeout_ms
        while not holds():
            if self._clock.monotonic_ms() >= deadline:
                raise Unavailable("the disk did not confirm in time", code="DEADLINE_EXCEEDED", phase="failover")
            await asyncio.sleep(_POLL_S)


def failover_in_progress(name: str, region: str, epoch: int, ago_ms: float) -> KvError:
    """Another one is on its way."""
    where = f" to '{region}'" if region else ""
    wait_s = max(1, round((limits.FAILOVER_EXCLUSIVE_MS - ago_ms) / 1_000))
    return Unavailable(
        f"a failover{where} is under way: node '{name}' promised epoch {epoch} to it {ago_ms / 1_000:.1f} s ago. Wait "
        f"for its end; if it broke off, repeat in {wait_s} s",
        code="FAILOVER_IN_PROGRESS",
        phase="failover",
    )


def move_in_progress(name: str, epoch: int) -> KvError:
    """A planned one is."""
    return Unavailable(
        f"a planned move is under way: node '{name}' has sealed its epoch, and {epoch} begins behind it. Wait for its "
        "end; should the nodes that are to vote in it not come, a failover without --plan takes it back",
        code="FAILOVER_IN_PROGRESS",
        phase="failover",
    )


def superseded(name: str, epoch: int) -> KvError:
    """Another one came in between."""
    return InvalidRequest(
        "FAILOVER_SUPERSEDED",
        f"another failover was faster: node '{name}' is in epoch {epoch}, which it has begun, or knows of it. Look at "
        "`kvnode status`, and repeat the command if the primary is still to be moved",
        phase="failover",
    )


def forked(name: str, index: int) -> KvError:
    """A node's committed entries are others than those of the most advanced node."""
    return InvalidRequest(
        "FAILOVER_FORKED",
        f"what node '{name}' holds at {index} is another entry than the most advanced node's: one of the two belongs "
        "to a history that an earlier failover has ended",
        phase="failover",
    )


def question(
    settings: NodeSettings, to_node_id: int, epoch: int = 0, ballot: int = 0, region: str = ""
) -> failover_pb2.FailoverRequest:
    """A request without its question."""
    return failover_pb2.FailoverRequest(
        cluster_id=settings.cluster_id, to_node_id=to_node_id, epoch=epoch, ballot=ballot, region=region
    )


def entry_to_wire(entry: Entry) -> peer_pb2.LogEntry:
    """One entry."""
    return peer_pb2.LogEntry(term=entry.term, index=entry.index, kind=entry.kind, data=entry.data)


def _voter_ids(start: EpochStart) -> list[int]:
    return [voter.node_id for voter in start.membership.voters]
