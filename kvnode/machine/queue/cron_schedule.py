"""When a cron ticks: five fields, read by the rules of Deno.cron, in UTC.

    minute 0-59   hour 0-23   day of the month 1-31   month 1-12 or JAN-DEC   day of the week 1-7 or SUN-SAT

Deno's rules, which differ from crontab(5) in one point that surprises: *a day of the week as a number counts from 1,
Sunday, to 7, Saturday*, and 0 is refused. Each field is `*`, a value, a range `a-b`, either with a step `/n` (a value
with a step runs to the field's end), or a list of those. The day of the month may also be `L` (the last), `L-3`, `LW`
and `15W` (the weekday nearest to it, within the month); the day of the week `L` (Saturday), `FRIL` (the last Friday)
and `FRI#2` (the second). When both days are given, neither being a bare `*`, a day that either names is meant.

In one point this is stricter: a range that runs backwards is refused, because Deno makes FRI-SUN begin on Thursday.

Nothing here reads a clock. Times are Unix milliseconds; a tick is the first instant of its minute.
"""

from __future__ import annotations

import datetime
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, NoReturn

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest

MINUTE_MS = 60_000
_DAY_MINUTES = 1_440
_EPOCH_DAY = datetime.date(1970, 1, 1).toordinal()
_LAST_DAY = datetime.date.max.toordinal()
_ONE_DAY = datetime.timedelta(days=1)
_MAX_SEARCH_DAYS = 36_600  # a fifth Monday in February comes every 28 years, around 2100 after 40
_NUMBER_DIGITS = 2
_SATURDAY = 6

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


class _Field(NamedTuple):
    """One of the five: how it is called, what its numbers may be, and what 1 is called, 2, and so on."""

    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()
    offset: int = 0  # what is subtracted from a number to get the value

    @property
    def bounds(self) -> str:
        """For messages."""
        named = f" or {self.names[0]} to {self.names[-1]}" if self.names else ""
        return f"{self.least} to {self.most}{named}"


_MINUTE = _Field("minute", 0, 59)
_HOUR = _Field("hour", 0, 23)
_DAY = _Field("day of the month", 1, 31)
_MONTH = _Field("month", 1, 12, _MONTHS)
_WEEKDAY = _Field("day of the week", 1, 7, _WEEKDAYS, offset=1)
_FIELDS = (_MINUTE, _HOUR, _DAY, _MONTH, _WEEKDAY)


@dataclass(frozen=True, slots=True)
class _DayOfMonth:
    """Days by their number, the last but `from_last`, or the weekday nearest to one of these."""

    days: frozenset[int] = frozenset()
    from_last: int = -1
    nearest_weekday: bool = False

    def matches(self, date: datetime.date) -> bool:
        last = _days_in_month(date)
        if not self.nearest_weekday:
            return date.day == last - self.from_last if self.from_last >= 0 else date.day in self.days
        target = last - self.from_last if self.from_last >= 0 else min(self.days)
        return 1 <= target <= last and date.day == _nearest_weekday(date.replace(day=target), last)


@dataclass(frozen=True, slots=True)
class _DayOfWeek:
    """Days of the week, 0 = Sunday: all of them in a month, its last (`nth` -1), or its nth."""

    days: frozenset[int]
    nth: int = 0

    def matches(self, date: datetime.date) -> bool:
        if date.isoweekday() % 7 not in self.days:
            return False
        if self.nth < 0:
            return date.day + 7 > _days_in_month(date)
        return not self.nth or (date.day - 1) // 7 + 1 == self.nth


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule that was read. Made by parse_schedule."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: frozenset[int]
    day_of_month: _DayOfMonth | None  # None: any
    day_of_week: _DayOfWeek | None

    def next_after(self, at_ms: int) -> int | None:
        """The first tick later than `at_ms`; None when there is none for a hundred years."""
        day, minute = divmod(at_ms // MINUTE_MS + 1, _DAY_MINUTES)
        for found in self._days(day, 1):
            rank = self._rank(minute - 1) if found == day else 0
            if rank < self._ticks_a_day:
                return self._at(found, rank)
        return None

    def latest_until(self, at_ms: int) -> int | None:
        """The last tick that is not later than `at_ms`; None when there was none for a hundred years."""
        day, minute = divmod(at_ms // MINUTE_MS, _DAY_MINUTES)
        for found in self._days(day, -1):
            rank = self._rank(minute) if found == day else self._ticks_a_day
            if rank:
                return self._at(found, rank - 1)
        return None

    def count_between(self, after_ms: int, until_ms: int) -> int:
        """How many ticks are later than `after_ms` and not later than `until_ms`."""
        first, first_minute = divmod(after_ms // MINUTE_MS, _DAY_MINUTES)
        last, last_minute = divmod(until_ms // MINUTE_MS, _DAY_MINUTES)
        count = 0
        for day in self._days(first, 1):
            if day > last:
                break
            count += self._rank(last_minute) if day == last else self._ticks_a_day
            count -= self._rank(first_minute) if day == first else 0
        return count

    @property
    def _ticks_a_day(self) -> int:
        return len(self.hours) * len(self.minutes)

    def _rank(self, minute_of_day: int) -> int:
        """How many ticks of a day come at that minute or before."""
        hour, minute = divmod(minute_of_day, 60)
        at = bisect_left(self.hours, hour)
        count = at * len(self.minutes)
        if at < len(self.hours) and self.hours[at] == hour:
            count += bisect_right(self.minutes, minute)
        return count

    def _at(self, day: int, rank: int) -> int:
        hour, minute = divmod(rank, len(self.minutes))
        return (day * _DAY_MINUTES + self.hours[hour] * 60 + self.minutes[minute]) * MINUTE_MS

    def _days(self, day: int, step: int) -> Iterator[int]:
        """The days since 1970 that have ticks, from `day` on, or backwards from it."""
        until = day + step * _MAX_SEARCH_DAYS
        while (until - day) * step > 0 and 1 < day + _EPOCH_DAY < _LAST_DAY:
            date = datetime.date.fromordinal(day + _EPOCH_DAY)
            if date.month not in self.months:
                edge = _days_in_month(date) if step > 0 else 1
                day += edge - date.day + step
                continue
            if self._matches(date):
                yield day
            day += step

    def _matches(self, date: datetime.date) -> bool:
        in_month, in_week = self.day_of_month, self.day_of_week
        if in_month is None:
            return in_week is None or in_week.matches(date)
        return in_month.matches(date) or (in_week is not None and in_week.matches(date))


@lru_cache(maxsize=1024)
def parse_schedule(text: str) -> Schedule:
    """Read a schedule.

    Raises:
        InvalidRequest: BAD_CRON_SCHEDULE; it names the field.
    """
    if len(text.encode()) > limits.MAX_CRON_SCHEDULE_BYTES:
        raise InvalidRequest(
            "BAD_CRON_SCHEDULE", f"A schedule has at most {limits.MAX_CRON_SCHEDULE_BYTES} bytes: shorten it."
        )
    parts = [part for part in text.replace("\t", " ").split(" ") if part]
    if len(parts) != len(_FIELDS):
        raise InvalidRequest(
            "BAD_CRON_SCHEDULE",
            f"The schedule '{text}' has {len(parts)} fields and needs five: minute, hour, day of the month, month, day "
            "of the week. For example '30 3 * * *': every day at 03:30 UTC.",
        )
    try:
        schedule = Schedule(
            tuple(sorted(_values(parts[0], _MINUTE))),
            tuple(sorted(_values(parts[1], _HOUR))),
            frozenset(_values(parts[3], _MONTH)),
            _day_of_month(parts[2]),
            _day_of_week(parts[4]),
        )
    except _Wrong as wrong:
        raise InvalidRequest("BAD_CRON_SCHEDULE", f"The schedule '{text}' cannot be read: {wrong}.") from None
    if schedule.next_after(0) is None:
        raise InvalidRequest("BAD_CRON_SCHEDULE", f"The schedule '{text}' never comes: no month has such a day.")
    return schedule


class _Wrong(Exception):
    """What is wrong with a field."""


def _wrong(field: _Field, text: str, why: str) -> NoReturn:
    raise _Wrong(f"the {field.name} '{text}' {why}")


def _values(text: str, field: _Field) -> set[int]:
    values: set[int] = set()
    for part in text.split(","):
        values |= _part(part, field)
    return values


def _part(text: str, field: _Field) -> set[int]:
    if not text:
        _wrong(field, text, "is empty: a list has a value on both sides of each comma")
    base, slash, step_text = text.partition("/")
    most = field.most - field.offset
    if base == "*":
        start, end = field.least - field.offset, most
    elif "-" in base:
        first, _, last = base.partition("-")
        start, end = _value(first, field), _value(last, field)
        if start > end:
            _wrong(field, text, "runs backwards: name its values in a list, or give two ranges")
    else:
        start = _value(base, field)
        end = most if slash else start
    return set(range(start, end + 1, _step(step_text, field) if slash else 1))


def _step(text: str, field: _Field) -> int:
    most = field.most - field.least
    step = _number(text)
    if step is None or not 1 <= step <= most:
        _wrong(field, f"/{text}", f"is no step: give one of 1 to {most}")
    return step


def _value(text: str, field: _Field) -> int:
    name = text.upper()
    if name in field.names:
        return field.names.index(name) + field.least - field.offset
    number = _number(text)
    if number is None or not field.least <= number <= field.most:
        hint = ", and 1 is Sunday, as for Deno.cron" if field is _WEEKDAY and number == 0 else ""
        _wrong(field, text, f"is not one of {field.bounds}{hint}")
    return number - field.offset


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _NUMBER_DIGITS else None


def _day_of_month(text: str) -> _DayOfMonth | None:
    if text == "*":
        return None
    weekday = text.endswith("W")
    base = text.removesuffix("W")
    if base == "L":
        return _DayOfMonth(from_last=0, nearest_weekday=weekday)
    if base.startswith("L-"):
        number = _number(base[2:])
        if number is None or not 1 <= number < _DAY.most:
            _wrong(_DAY, text, "is no last day but some: give L-1 to L-30")
        return _DayOfMonth(from_last=number, nearest_weekday=weekday)
    if weekday:
        return _DayOfMonth(days=frozenset({_value(base, _DAY)}), nearest_weekday=True)
    return _DayOfMonth(days=frozenset(_values(text, _DAY)))


def _day_of_week(text: str) -> _DayOfWeek | None:
    if text == "*":
        return None
    if text == "L":
        return _DayOfWeek(frozenset({_SATURDAY}))
    day, mark, nth = text.partition("#")
    if mark:
        number = _number(nth)
        if number is None or not 1 <= number <= 5:
            _wrong(_WEEKDAY, text, "names none of a month's: give #1 to #5")
        return _DayOfWeek(frozenset({_value(day, _WEEKDAY)}), number)
    if text.endswith("L"):
        return _DayOfWeek(frozenset({_value(text[:-1], _WEEKDAY)}), -1)
    return _DayOfWeek(frozenset(_values(text, _WEEKDAY)))


def _days_in_month(date: datetime.date) -> int:
    if date.month == 12:
        return 31
    return (datetime.date(date.year, date.month + 1, 1) - _ONE_DAY).day


def _nearest_weekday(date: datetime.date, last: int) -> int:
    """The day of the month of the weekday nearest to `date`, in its month."""
    weekday = date.isoweekday()
    if weekday == 6:
        return date.day - 1 if date.day > 1 else date.day + 2
    if weekday == 7:
        return date.day + 1 if date.day < last else date.day - 2
    return date.day
