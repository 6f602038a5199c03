"""Requests that offer an upgrade (RFC 9110, section 7.8), as `curl --http2` and Java's HttpClient do.

A server may ignore the offer, and has then to serve the request as the one over HTTP/1.1 that it is. llhttp takes for
granted that the connection speaks another protocol behind such a head: it reports the message complete without its
body. So the parser is exchanged for one that is told only how the body ends, and goes on behind the head.
"""

from __future__ import annotations

from typing import Protocol

import httptools


class ToldByParser(Protocol):
    """What a parser calls; see http1.Connection."""

    def on_message_begin(self) -> None:
        """A request's first byte."""

    def on_url(self, url: bytes) -> None:
        """A part of its target."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""

    def on_headers_complete(self) -> None:
        """The head is whole."""

    def on_body(self, chunk: bytes) -> None:
        """A part of its body."""

    def on_message_complete(self) -> None:
        """The request is whole."""


class BehindHead:
    """Makes a parser that goes on behind a head which was parsed before, and passes on what it says.

    Args:
        told: learns of the body's parts and its end, then of the requests that follow, and nothing of the head.
    """

    def __init__(self, told: ToldByParser) -> None:
        self._told = told
        self._in_head = True
        self.on_body = told.on_body
        self.on_message_complete = told.on_message_complete
        self.parser = httptools.HttpRequestParser(self)

    def begin(self, framing: bytes) -> None:
        """Bring the parser to where the body begins. Once.

        Args:
            framing: the head's line that says how the body ends, with its CRLF; empty = there is no body, which is
                told at once.

        Raises:
            httptools.HttpParserError: the framing is none, which nobody has looked at when an upgrade was offered.
        """
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % framing)
        self._in_head = False

    def on_message_begin(self) -> None:
        """A request's first byte."""
        if not self._in_head:
            self._told.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of its target."""
        if not self._in_head:
            self._told.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        if not self._in_head:
            self._told.on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if not self._in_head:
            self._told.on_headers_complete()
