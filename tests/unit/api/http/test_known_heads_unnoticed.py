"""Nobody can tell whether a head was known: any stream, in any pieces, is answered the same."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kvnode.api.http import HttpError, Request, Response, Stream, WholeRequest
from kvnode.api.http.http1 import Connections
from kvnode.api.http.messages import BodyBudget, TakeWhole
from kvnode.base import limits
from tests.unit.api.http.known_heads import (
    MAX_BODY,
    described,
    post,
)
from tests.unit.api.http.wire import converse, passes


async def _answered(pieces: Sequence[bytes], take: TakeWhole | None, *, calm: bool, half_closes: bool) -> bytes:
    """What a fresh server writes to one client. `calm`: it answers what has come before more comes."""

    async def handle(request: Request) -> Response | Stream:
        if request.path == "/refused":
            return Response(401, b"no")
        if request.path == "/error":
            raise HttpError(409, "by the test")
        return await described(request)

    shared = Connections(handle, "http", BodyBudget(), None, take)
    for raw in (SHORT, OTHER):
        await converse(shared, [raw], calm=True, half_closes=True)
    return await converse(shared, pieces, calm=calm, half_closes=half_closes)


SHORT = post(b"abc", "/short?q=1", "x-note: 1")
OTHER = post(b"defgh")
GOOD = (
    SHORT,
    SHORT,
    OTHER,
    post(b"xyz", "/short?q=1", "x-note: 1"),
    post(b"\r\n\r", "/short?q=1", "x-note: 1"),
    post(b"\r\n\r\n\r"),
    post(SHORT),
    post(b"", "/nothing"),
    post(b"", "/nothing"),
    post(b"abc", "/refused"),
    post(b"abc", "/error"),
    post(b"abc", "/expecting", "expect: 100-continue"),
    b"\r\n" + SHORT,
    SHORT + SHORT,
    b"GET /get HTTP/1.1\r\nhost: x\r\n\r\n",
    b"HEAD /head HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /chunked HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    post(b"abc", "/kept", "connection: keep-alive", version="1.0"),
)
ENDING = (
    post(b"abc", "/short?q=1", "x-note: 1", "connection: close"),
    post(b"abc", version="1.0"),
    SHORT + b"x",
    SHORT[:-1],
    b"nonsense\r\n\r\n",
    post(b"abc", "/", "content-length: 3"),
    post(bytes(MAX_BODY + 1)),
    b"POST / HTTP/1.1\r\nhost: x\r\n\r",
)


def _pieces(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    at = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    return [stream[start:end] for start, end in pairwise(at)]


def _take_at_once(request: WholeRequest) -> bool:
    task = asyncio.get_running_loop().create_task(described(request))  # its body is there, so one pass is enough
    task.add_done_callback(lambda done: request.respond(done.result()))
    return True


def _take_in_a_while(request: WholeRequest) -> bool:
    async def later(asked: Request) -> Response:
        await passes(3)
        return await described(asked)

    request.serve_by(later)
    return True


def _same(pieces: Sequence[bytes], take: TakeWhole | None, *, calm: bool, half_closes: bool) -> None:
    answered = asyncio.run(_answered(pieces, take, calm=calm, half_closes=half_closes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "MAX_KNOWN_HEAD_BYTES", 0)
        parsed = asyncio.run(_answered(pieces, None, calm=calm, half_closes=half_closes))
    assert answered == parsed


TAKES = (None, lambda request: False, _take_at_once, _take_in_a_while)


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    good=st.lists(st.sampled_from(GOOD), max_size=5),
    ending=st.sampled_from((b"", b"", *ENDING)),
    whole=st.booleans(),
    cuts=st.lists(st.integers(1, 600), max_size=5),
    take=st.sampled_from(TAKES),
    half_closes=st.booleans(),
)
def test_any_stream_in_any_pieces_is_answered_as_if_no_head_were_known(
    good: list[bytes], ending: bytes, whole: bool, cuts: list[int], take: TakeWhole | None, half_closes: bool
) -> None:
    requests = [*good, ending] if ending else good
    pieces = [piece for piece in requests if piece] if whole else _pieces(b"".join(requests), cuts)
    _same(pieces, take, calm=True, half_closes=half_closes)


@hypothesis_settings(max_examples=75, deadline=None)
@given(
    good=st.lists(st.sampled_from(GOOD), max_size=5),
    whole=st.booleans(),
    cuts=st.lists(st.integers(1, 600), max_size=5),
    take=st.sampled_from(TAKES),
)
def test_so_is_one_that_does_not_wait_for_answers(
    good: list[bytes], whole: bool, cuts: list[int], take: TakeWhole | None
) -> None:
    pieces = good if whole else _pieces(b"".join(good), cuts)
    _same(pieces, take, calm=False, half_closes=False)


@pytest.mark.parametrize("take", TAKES)
def test_a_known_pair_cut_anywhere_is_answered_as_if_no_head_were_known(take: TakeWhole | None) -> None:
    stream = SHORT + OTHER
    for cut in range(1, len(stream)):
        _same(_pieces(stream, [cut]), take, calm=True, half_closes=False)
