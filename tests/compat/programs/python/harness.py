"""What the Python programs share: a program declares features, each a small coroutine that asserts."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Feature:
    """One row of the table."""

    section: str
    title: str
    body: Callable[[Test], Awaitable[None]] | None
    absent: str
    slow: bool


FEATURES: list[Feature] = []
_section = ""


def section(title: str) -> None:
    """Name the section of the table to which the features that follow belong."""
    global _section  # noqa: PLW0603
    _section = title


def feature(title: str, *, slow: bool = False) -> Callable[[Callable[[Test], Awaitable[None]]], None]:
    """Declare a feature; `slow` leaves it out of the short form."""

    def declare(body: Callable[[Test], Awaitable[None]]) -> None:
        FEATURES.append(Feature(_section, title, body, "", slow))

    return declare


def absent(title: str, reason: str) -> None:
    """Declare that the client has no such thing, and why."""
    FEATURES.append(Feature(_section, title, None, reason, slow=False))


class Refused(Exception):
    """Ends a body whose point is proven by a refusal; carries the text that the user sees."""


@dataclass
class Environment:
    """Where and how the programs run."""

    url: str
    token: str
    run: str
    quick: bool
    prepared: dict[str, str]
    open_kv: Callable[..., Awaitable[Any]]


@dataclass
class Test:
    """What a body is given."""

    environment: Environment
    kv: Any
    number: int
    notes: list[str] = field(default_factory=list)

    @property
    def prefix(self) -> tuple[Any, ...]:
        """Of the keys of this feature's own."""
        return ("compat", self.environment.run, float(self.number))

    @property
    def quick(self) -> bool:
        """Whether this is the short form."""
        return self.environment.quick

    @property
    def prepared(self) -> dict[str, str]:
        """Databases and tokens that were made beforehand."""
        return self.environment.prepared

    @property
    def url(self) -> str:
        """Of the database."""
        return self.environment.url

    def key(self, *parts: Any) -> tuple[Any, ...]:
        """A key of this feature's own. An int becomes a float: denokv writes it as a bigint, and reads a number."""
        return (*self.prefix, *(float(part) if type(part) is int else part for part in parts))

    def equal(self, actual: object, expected: object) -> None:
        """Equal, of the same type, NaN equal to itself and -0.0 different from 0.0."""
        assert same(actual, expected), f"{actual!r} is not {expected!r}"

    async def error_of(self, action: Awaitable[object]) -> str:
        """The text of the error with which `action` fails, its causes included."""
        try:
            result = await action
        except Exception as error:
            return _described(error)
        raise AssertionError(f"it was expected to fail, and returned {result!r}")

    async def fails(self, action: Awaitable[object], expected: str) -> str:
        """`action` must fail with a text that has `expected` in it."""
        text = await self.error_of(action)
        assert expected in text, f"the error should say {expected!r}, and says {text!r}"
        return text

    async def refused(self, action: Awaitable[object], expected: str) -> NoReturn:
        """As `fails`; this refusal is the outcome."""
        raise Refused(await self.fails(action, expected))

    def note(self, text: str) -> None:
        """A figure for the report."""
        self.notes.append(text)

    async def until(self, condition: Callable[[], Awaitable[bool]], patience_s: float, otherwise: str) -> float:
        """Wait until it holds; returns the seconds that it took."""
        start = time.monotonic()
        while not await condition():
            assert time.monotonic() - start < patience_s, otherwise
            await asyncio.sleep(0.005)
        return time.monotonic() - start


def same(actual: object, expected: object) -> bool:
    """Equality that looks at types."""
    if isinstance(expected, float) and isinstance(actual, float):
        both_nan = math.isnan(expected) and math.isnan(actual)
        return both_nan or (actual == expected and math.copysign(1, actual) == math.copysign(1, expected))
    if isinstance(expected, list | tuple) and isinstance(actual, list | tuple):
        return len(actual) == len(expected) and all(map(same, actual, expected))
    return actual == expected and isinstance(actual, bool) == isinstance(expected, bool)


def _described(error: BaseException) -> str:
    parts = []
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        parts.append(f"{type(seen).__name__}: {text}" if text else type(seen).__name__)
        seen = seen.__cause__
    return "; ".join(parts)


async def collect(items: AsyncIterator[Any]) -> list[Any]:
    """Everything that an iterator gives."""
    return [item async for item in items]


async def run_feature(declared: Feature, environment: Environment, number: int) -> dict[str, Any]:
    """Run one feature and say how it ended."""
    report = {"section": declared.section, "title": declared.title, "status": "works", "detail": "", "ms": 0}
    if declared.body is None:
        return {**report, "status": "absent", "detail": declared.absent}
    start = time.monotonic()
    kv = await environment.open_kv()
    test = Test(environment, kv, number)
    try:
        await asyncio.wait_for(declared.body(test), PATIENCE_S)
        report["detail"] = "; ".join(test.notes)
    except Refused as refusal:
        report |= {"status": "refused", "detail": str(refusal)}
    except TimeoutError:
        report |= {"status": "fails", "detail": f"not finished after {PATIENCE_S:g} s"}
    except Exception as error:
        report |= {"status": "fails", "detail": _described(error)}
    finally:
        await kv.aclose()
    return {**report, "ms": round((time.monotonic() - start) * 1000)}
