"""Watches that a client does not read leave its other answers half of the connection's window."""

from __future__ import annotations

import asyncio

from kvnode.api.http.http2_window import FIRST_WINDOW_BYTES, SharedWindow
from kvnode.api.http.unread import ConnectionAccounts, Unread

DENO_BYTES = 5_242_880


async def test_a_watch_waits_while_half_of_the_window_is_out() -> None:
    window = SharedWindow(lambda _: None, lambda _: None, may_share=True)
    accounts = ConnectionAccounts(Unread(), lambda: None)
    window.on_given, accounts.is_window_low = accounts.eased, lambda: window.is_low
    window.given(DENO_BYTES - FIRST_WINDOW_BYTES)
    account = accounts.open(1, whole=False)
    await asyncio.wait_for(account.room(), 5)
    window.use(DENO_BYTES // 2 + 1)
    waiting = asyncio.ensure_future(account.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    window.given(DENO_BYTES // 2)
    await asyncio.wait_for(waiting, 5)
