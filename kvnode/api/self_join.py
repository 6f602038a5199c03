"""A node that asks to be taken in (`join`), so that nobody has to run `kvnode member add` for it.

It asks the members at the addresses of `join`, one after the other, until one says that it is listed; the leader then
calls it back and adopts it, as ever. It asks only as long as nothing of a cluster's log has come here: a member that
was removed stays removed, whatever its configuration says. A refusal does not end the node: it may still be adopted,
by `kvnode member replace` for example.
"""

from __future__ import annotations

import asyncio
import logging

import grpc

from kvnode.base import limits
from kvnode.base.config import NodeConfig
from kvnode.base.errors import KvError, Unavailable
from kvnode.client.admin import Admin
from kvnode.codec.membership import Member, MemberRole
from kvnode.proto.kv.v1 import admin_pb2

_log = logging.getLogger(__name__)

_PATIENT_ATTEMPTS_COUNT = 30


class SelfJoin:
    """Asks in the background, from `begin` until it is listed or `stop`.

    Args:
        config: its `join`, `replica` and `access_token`.
        me: this node.
        credentials: for TLS towards the others; None = plain text.
    """

    def __init__(self, config: NodeConfig, me: Member, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._addresses = [address for address in config.join if address != me.address]
        self._token = config.access_token
        self._credentials = credentials
        self._me = me
        role = MemberRole.REPLICA if config.replica else MemberRole.LEARNER
        self._wanted = admin_pb2.Member(node_id=me.node_id, address=me.address, role=role.value)
        self._asking: asyncio.Task[None] | None = None
        self._said: set[str] = set()
        self._refused = ""
        self._attempts_count = 0

    @property
    def waits_for(self) -> str:
        """As a sentence; empty when nobody is asked."""
        if self._asking is None or self._asking.done():
            return ""
        return f"asking to be taken in, of {', '.join(sorted(self._addresses))}" + self._refused

    def begin(self) -> None:
        """Ask, unless there is nobody to ask or it has begun already."""
        if self._addresses and self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())

    async def stop(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self) -> None:
        role = self._wanted.role
        _log.info("asking to be taken in as a %s, of %s", role, ", ".join(self._addresses))
        while True:
            self._attempts_count += 1
            try:
                await self._ask_once()
            except KvError as error:
                self._refused = f"; the last answer: {error}"
                self._say(error)
                # The next one first: this one may be no member itself, or gone for good.
                self._addresses.append(self._addresses.pop(0))
            else:
                _log.info("this node (id %d) is a member of the cluster", self._me.node_id)
                return
            await asyncio.sleep(limits.SELF_JOIN_RETRY_MS / 1_000)

    async def _ask_once(self) -> None:
        async with Admin(
            self._addresses, token=self._token, credentials=self._credentials, timeout_ms=limits.SELF_JOIN_TIMEOUT_MS
        ) as admin:
            members = (await admin.members()).members
            if all(member.node_id != self._me.node_id for member in members):
                await admin.add(self._wanted)

    def _say(self, error: KvError) -> None:
        """Once for each reason, not once for each attempt. Of nodes that are started together all may wait at first."""
        is_early = self._attempts_count <= _PATIENT_ATTEMPTS_COUNT
        may_pass = isinstance(error, Unavailable) or (error.code == "NOT_A_KVNODE" and is_early)
        reason = error.code if may_pass else str(error)
        if reason in self._said:
            return
        self._said.add(reason)
        if may_pass:
            _log.info("not taken in yet, asking on: %s", error)
        else:
            _log.error("not taken in, asking on: %s", error)
