"""A URL that messages are pushed to: what it may look like, and its parts.

It says who is called and nothing more: a user and password in it would be shown to whoever lists the queues, and a
fragment is never sent. Names that are not ASCII are written as they are looked up ("xn--...").
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest

_PRINTABLE = re.compile(r"[!-~]+")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?\.?")
_PORTS = {"http": 80, "https": 443}
_MAX_HOST_BYTES = 253


class PushUrl(NamedTuple):
    """Where a request goes."""

    scheme: str
    host: str  # without the brackets of an IPv6 address
    port: int
    target: str  # path and query

    @property
    def is_tls(self) -> bool:
        """Whether the host must show a certificate for its name."""
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_push_url(text: str) -> PushUrl:
    """The parts of a URL. Raises InvalidRequest: BAD_PUSH_URL."""
    if len(text) > limits.MAX_PUSH_URL_BYTES:
        raise _bad(text, f"it has {len(text)} bytes and may have {limits.MAX_PUSH_URL_BYTES}")
    if not _PRINTABLE.fullmatch(text) or "\\" in text:
        raise _bad(text, "it holds a space, a backslash, or a character that is not ASCII")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _bad(text, str(error)) from None
    if parts.scheme not in _PORTS:
        raise _bad(text, "it must begin with http:// or https://")
    if "@" in parts.netloc:
        raise _bad("", "it names a user or a password: put a secret into the query, or check the signature")
    if "#" in text:
        raise _bad(text, "it has a fragment, which is never sent")
    if port is None:
        port = _PORTS[parts.scheme]
    if port == 0:
        raise _bad(text, "its port is 0")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return PushUrl(parts.scheme, _host(text, parts), port, target)


def _host(text: str, parts: SplitResult) -> str:
    host = parts.hostname or ""
    if "[" in parts.netloc:
        try:
            if "%" in host:
                raise ValueError
            ipaddress.IPv6Address(host)
        except ValueError:
            raise _bad(text, f"[{host}] is no IPv6 address") from None
        return host
    if not _HOST.fullmatch(host) or len(host) > _MAX_HOST_BYTES:
        raise _bad(text, f"'{host}' is no name of a host")
    return host


def _bad(text: str, why: str) -> InvalidRequest:
    shown = f" '{text[:200]}'" if text else ""
    return InvalidRequest("BAD_PUSH_URL", f"Messages cannot be pushed to the URL{shown}: {why}.")
