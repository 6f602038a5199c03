"""Schedules: against a stepper that looks at every minute, and what Deno.cron reads or refuses."""

import calendar
import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.base.errors import InvalidRequest
from kvnode.machine.queue.cron_schedule import MINUTE_MS, parse_schedule

UTC = datetime.UTC
MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]


def ms(*moment):
    return int(datetime.datetime(*moment, tzinfo=UTC).timestamp() * 1000)


def shown(at_ms):
    return datetime.datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%a %Y-%m-%d %H:%M:%S")


def ticks(text, *moment, count=4):
    at, found = ms(*moment), []
    for _ in range(count):
        at = parse_schedule(text).next_after(at)
        found.append(shown(at))
    return found


# The stepper: each field is a text and the set of values that it names, made together.


def plain(least, most, names=()):
    """(text, values) of one part; numbers of the day of the week count from 1, its values too."""

    @st.composite
    def part(draw):
        def name_of(value):
            return names[value - least].lower() if names and draw(st.booleans()) else str(value)

        one, other = sorted((draw(st.integers(least, most)), draw(st.integers(least, most))))
        step = draw(st.integers(1, most - least))
        return draw(
            st.sampled_from(
                [
                    (name_of(one), {one}),
                    (f"{name_of(one)}-{name_of(other)}", set(range(one, other + 1))),
                    (f"{name_of(one)}-{name_of(other)}/{step}", set(range(one, other + 1, step))),
                    (f"{one}/{step}", set(range(one, most + 1, step))),
                    (f"*/{step}", set(range(least, most + 1, step))),
                ]
            )
        )

    def joined(parts):
        return ",".join(text for text, _ in parts), set().union(*(values for _, values in parts))

    lists = st.lists(part(), min_size=1, max_size=3).map(joined)
    return st.one_of(st.just(("*", set(range(least, most + 1)))), lists)


class Stepper:
    def __init__(self, minute, hour, day, month, weekday):
        self.minute, self.hour, self.month = minute[1], hour[1], month[1]
        self.day, self.weekday = day, weekday

    def matches(self, at):
        if at.minute not in self.minute or at.hour not in self.hour or at.month not in self.month:
            return False
        in_month, in_week = at.day in self.day[1], at.isoweekday() % 7 + 1 in self.weekday[1]
        if self.day[0] != "*" and self.weekday[0] != "*":
            return in_month or in_week
        return in_month and in_week

    def between(self, after, until):
        """Every tick later than one and not later than the other."""
        at = after.replace(second=0, microsecond=0)
        found = []
        while (at := at + datetime.timedelta(minutes=1)) <= until:
            if self.matches(at):
                found.append(int(at.timestamp() * 1000))
        return found


FIELDS = st.tuples(plain(0, 59), plain(0, 23), plain(1, 31), plain(1, 12, MONTHS), plain(1, 7, WEEKDAYS))
MOMENTS = st.datetimes(datetime.datetime(1999, 12, 1), datetime.datetime(2101, 3, 5), timezones=st.just(UTC))


@settings(max_examples=150, deadline=None)
@given(FIELDS, MOMENTS, st.integers(1, 4_000))
def test_it_ticks_in_the_minutes_that_a_stepper_finds(fields, begin, minutes):
    text = " ".join(field[0] for field in fields)
    try:
        schedule = parse_schedule(text)
    except InvalidRequest as error:
        assert "never comes" in error.message  # the 31st of a short month
        return
    end = begin + datetime.timedelta(minutes=minutes)
    wanted = Stepper(*fields).between(begin, end)
    begin_ms, end_ms = int(begin.timestamp() * 1000), int(end.timestamp() * 1000)
    found, at = [], begin_ms
    while (at := schedule.next_after(at)) is not None and at <= end_ms:
        found.append(at)
    assert found == wanted
    assert schedule.count_between(begin_ms, end_ms) == len(wanted)
    latest = schedule.latest_until(end_ms)
    if wanted:
        assert latest == wanted[-1]
    else:
        assert latest is None or latest <= begin_ms
    for tick in wanted[:3]:
        assert schedule.latest_until(tick) == tick
        assert schedule.latest_until(tick + MINUTE_MS - 1) >= tick


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["L", "LW", "L-3", "L-29W", "1W", "15W", "31W"]),
    st.sampled_from(["*", "FRIL", "2#5", "L"]),
    MOMENTS,
)
def test_days_that_a_month_s_shape_decides(day, weekday, begin):
    """Against a look at every day of three years, by the calendar module."""
    schedule = parse_schedule(f"0 0 {day} * {weekday}")
    at_ms, wanted = int(begin.timestamp() * 1000), []
    date = begin.date()
    for _ in range(3 * 366):
        date += datetime.timedelta(days=1)
        if by_month(day, date) or (weekday != "*" and by_week(weekday, date)):
            wanted.append(int(datetime.datetime(date.year, date.month, date.day, tzinfo=UTC).timestamp() * 1000))
    found, at = [], at_ms
    while (at := schedule.next_after(at)) is not None and len(found) < len(wanted):
        found.append(at)
    assert found == wanted
    assert schedule.count_between(at_ms, wanted[-1]) == len(wanted)


def by_month(rule, date):
    last = calendar.monthrange(date.year, date.month)[1]
    base, nearest = rule.removesuffix("W"), rule.endswith("W")
    target = last - int(base[2:] or 0) if base[0] == "L" else int(base)
    if not 1 <= target <= last:
        return False
    if nearest:
        weekdays = [d for d in range(1, last + 1) if calendar.weekday(date.year, date.month, d) < 5]
        # The nearer one; of a Saturday the Friday, of a Sunday the Monday, where the month has them.
        target = min(weekdays, key=lambda d: (abs(d - target), d))
    return date.day == target


def by_week(rule, date):
    weekday = WEEKDAYS[date.isoweekday() % 7]
    if rule == "L":
        return weekday == "SAT"
    if rule == "FRIL":
        return weekday == "FRI" and (date + datetime.timedelta(days=7)).month != date.month
    return weekday == "MON" and date.day >= 29


def test_numbers_of_weekdays_count_from_sunday_1_as_for_deno():
    assert ticks("0 0 * * 4", 2024, 1, 1, count=1) == ["Wed 2024-01-03 00:00:00"]
    assert ticks("0 0 * * WED", 2024, 1, 1, count=1) == ["Wed 2024-01-03 00:00:00"]
    assert ticks("0 0 * * 7,1", 2024, 1, 1, count=2) == ["Sat 2024-01-06 00:00:00", "Sun 2024-01-07 00:00:00"]


def test_a_day_that_either_field_names_is_meant():
    assert ticks("0 12 13 * FRI", 2024, 9, 5) == [
        "Fri 2024-09-06 12:00:00",
        "Fri 2024-09-13 12:00:00",
        "Fri 2024-09-20 12:00:00",
        "Fri 2024-09-27 12:00:00",
    ]
    assert ticks("0 12 13 * *", 2024, 9, 5, count=2) == ["Fri 2024-09-13 12:00:00", "Sun 2024-10-13 12:00:00"]


def test_a_tick_is_later_than_the_moment_that_is_asked_about():
    assert ticks("*/15 * * * *", 2024, 2, 29, 23, 45, count=2) == ["Fri 2024-03-01 00:00:00", "Fri 2024-03-01 00:15:00"]
    assert ticks("* * * * *", 2024, 2, 29, 23, 44, 59, 999_000, count=1) == ["Thu 2024-02-29 23:45:00"]


def test_rare_days_are_found():
    assert ticks("0 0 29 2 *", 2096, 3, 1, count=1) == ["Fri 2104-02-29 00:00:00"]
    assert ticks("0 0 * 2 MON#5", 2072, 3, 1, count=1) == ["Mon 2112-02-29 00:00:00"]


@pytest.mark.parametrize(
    ("text", "field", "why"),
    [
        ("60 * * * *", "minute '60'", "0 to 59"),
        ("* 24 * * *", "hour '24'", "0 to 23"),
        ("* * 0 * *", "day of the month '0'", "1 to 31"),
        ("* * * 13 *", "month '13'", "JAN to DEC"),
        ("* * * JANUARY *", "month 'JANUARY'", "JAN to DEC"),
        ("* * * * 0", "day of the week '0'", "1 is Sunday"),
        ("* * * * 8", "day of the week '8'", "SUN to SAT"),
        ("* * * * FRI-SUN", "day of the week 'FRI-SUN'", "backwards"),
        ("30-10 * * * *", "minute '30-10'", "backwards"),
        ("*/0 * * * *", "minute '/0'", "1 to 59"),
        ("*/60 * * * *", "minute '/60'", "1 to 59"),
        ("* */x * * *", "hour '/x'", "1 to 23"),
        ("1,,2 * * * *", "minute ''", "empty"),
        ("-5 * * * *", "minute ''", "0 to 59"),
        ("1.5 * * * *", "minute '1.5'", "0 to 59"),
        ("٣ * * * *", "minute '٣'", "0 to 59"),
        ("001 * * * *", "minute '001'", "0 to 59"),
        ("* * L-31 * *", "day of the month 'L-31'", "L-1 to L-30"),
        ("* * 1,L * *", "day of the month 'L'", "1 to 31"),
        ("* * 32W * *", "day of the month '32'", "1 to 31"),
        ("* * * * FRI#6", "day of the week 'FRI#6'", "#1 to #5"),
        ("* * * * #1", "day of the week ''", "SUN to SAT"),
    ],
)
def test_a_bad_field_is_named(text, field, why):
    with pytest.raises(InvalidRequest) as raised:
        parse_schedule(text)
    assert raised.value.code == "BAD_CRON_SCHEDULE"
    assert field in raised.value.message
    assert why in raised.value.message


@pytest.mark.parametrize("text", ["", "* * * *", "* * * * * *", "@daily", "0 0 31 2 *", "0 0 30 FEB *", "* " * 200])
def test_what_is_no_schedule_is_refused(text):
    with pytest.raises(InvalidRequest, match=r"five|never comes|at most"):
        parse_schedule(text)


@given(st.text(max_size=40) | st.text("0123456789*,-/LW#JANSUN ", max_size=40))
def test_any_text_is_read_or_refused(text):
    try:
        schedule = parse_schedule(text)
    except InvalidRequest as error:
        assert error.code == "BAD_CRON_SCHEDULE"
    else:
        at = schedule.next_after(ms(2026, 5, 1))
        assert at is not None
        assert schedule.latest_until(at) == at


def test_the_end_of_time_is_no_error():
    assert parse_schedule("0 0 1 1 *").next_after(ms(9999, 6, 1)) is None
    assert parse_schedule("* * * * *").next_after(10**18) is None
