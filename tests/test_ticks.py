"""Cron's true rule: cases reasoned from it by hand, and against a clock that is walked minute by minute."""

from __future__ import annotations

import calendar
import concurrent.futures
import datetime
import functools
import itertools
import sys
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from conftest import THOROUGH, Tau
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tau as module

#: (expression, zone, start in UTC, the next ticks in UTC; > marks one that a change of the clock has moved).
#:
#: The clocks: New York is set from 02:00 to 03:00 on 2026-03-08 (07:00Z) and from 02:00 to 01:00 on 2026-11-01
#: (06:00Z); London from 01:00 to 02:00 on 2026-03-29 (01:00Z) and from 02:00 to 01:00 on 2026-10-25 (01:00Z);
#: Lord Howe by half an hour, from 02:00 to 01:30 on 2026-04-05 (15:00Z the day before) and from 02:00 to 02:30 on
#: 2026-10-04 (15:30Z the day before); Santiago from 00:00 to 01:00 on 2026-09-06 (04:00Z).  Apia had no
#: 2011-12-30: at 10:00Z that day its clock went from UTC-10 to UTC+14.  Casey's went back by just three hours,
#: from 04:00 to 01:00, on 2018-03-11 (17:00Z the day before).
CASES = [
    # The fall-back night: 01:30 comes twice, at 05:30Z and at 06:30Z.
    ("30 1 * * *", "America/New_York", "2026-10-31 16:00", "11-01 05:30, 11-02 06:30, 11-03 06:30, 11-04 06:30, 11-05 06:30"),
    ("0 * * * *", "America/New_York", "2026-11-01 04:30", "11-01 05:00, 11-01 06:00, 11-01 07:00, 11-01 08:00, 11-01 09:00"),
    ("*/30 * * * *", "America/New_York", "2026-11-01 04:45", "11-01 05:00, 11-01 05:30, 11-01 06:00, 11-01 06:30, 11-01 07:00"),
    ("*/30 1 * * *", "America/New_York", "2026-11-01 04:45", "11-01 05:00, 11-01 05:30, 11-01 06:00, 11-01 06:30, 11-02 06:00"),
    ("0,30 1 * * *", "America/New_York", "2026-11-01 04:45", "11-01 05:00, 11-01 05:30, 11-02 06:00, 11-02 06:30, 11-03 06:00"),
    ("0 0-23 * * *", "America/New_York", "2026-11-01 04:30", "11-01 05:00, 11-01 07:00, 11-01 08:00, 11-01 09:00, 11-01 10:00"),
    ("0 */1 * * *", "America/New_York", "2026-11-01 04:30", "11-01 05:00, 11-01 06:00, 11-01 07:00, 11-01 08:00, 11-01 09:00"),
    # A start inside the first pass, inside the second, and at the instant when the clock is set back.
    ("45 1 * * *", "America/New_York", "2026-11-01 05:10", "11-01 05:45, 11-02 06:45, 11-03 06:45"),
    ("45 1 * * *", "America/New_York", "2026-11-01 06:10", "11-02 06:45, 11-03 06:45"),
    ("45 1 * * *", "America/New_York", "2026-11-01 06:00", "11-02 06:45, 11-03 06:45"),
    ("0 2 * * *", "America/New_York", "2026-11-01 06:10", "11-01 07:00, 11-02 07:00"),
    ("45 * * * *", "America/New_York", "2026-11-01 06:10", "11-01 06:45, 11-01 07:45"),
    # The spring-forward night: there is no 02:30; it is due when the clock is set, at 07:00Z.
    ("30 2 * * *", "America/New_York", "2026-03-07 05:00", "03-07 07:30, >03-08 07:00, 03-09 06:30, 03-10 06:30, 03-11 06:30"),
    ("5,35 2 * * *", "America/New_York", "2026-03-08 05:00", ">03-08 07:00, 03-09 06:05, 03-09 06:35, 03-10 06:05, 03-10 06:35"),
    ("0 2 * * *", "America/New_York", "2026-03-08 05:00", ">03-08 07:00, 03-09 06:00"),
    ("0 2,3 * * *", "America/New_York", "2026-03-08 05:00", "03-08 07:00, 03-09 06:00, 03-09 07:00"),
    ("30 2-3 * * *", "America/New_York", "2026-03-08 05:00", ">03-08 07:00, 03-08 07:30, 03-09 06:30, 03-09 07:30"),
    ("10 0-23 * * *", "America/New_York", "2026-03-08 06:00", "03-08 06:10, >03-08 07:00, 03-08 07:10, 03-08 08:10"),
    ("10 */1 * * *", "America/New_York", "2026-03-08 06:00", "03-08 06:10, 03-08 07:10, 03-08 08:10"),
    ("*/15 2 * * *", "America/New_York", "2026-03-08 05:00", "03-09 06:00, 03-09 06:15, 03-09 06:30, 03-09 06:45, 03-10 06:00"),
    ("*/30 * * * *", "America/New_York", "2026-03-08 06:15", "03-08 06:30, 03-08 07:00, 03-08 07:30, 03-08 08:00, 03-08 08:30"),
    ("30 2 8 3 *", "America/New_York", "2026-01-01 00:00", ">2026-03-08 07:00, 2027-03-08 07:30, 2028-03-08 07:30"),
    ("30 2 * * *", "America/New_York", "2026-03-08 07:00", "03-09 06:30"),
    ("30 2 * * *", "America/New_York", "2026-03-08 06:59", ">03-08 07:00, 03-09 06:30"),
    ("@hourly", "America/New_York", "2026-03-08 05:30", "03-08 06:00, 03-08 07:00, 03-08 08:00"),
    # London.
    ("30 1 * * *", "Europe/London", "2026-03-28 12:00", ">03-29 01:00, 03-30 00:30, 03-31 00:30, 04-01 00:30, 04-02 00:30"),
    ("30 1 * * *", "Europe/London", "2026-10-24 12:00", "10-25 00:30, 10-26 01:30, 10-27 01:30, 10-28 01:30, 10-29 01:30"),
    ("0 1 * * *", "Europe/London", "2026-10-24 12:00", "10-25 00:00, 10-26 01:00, 10-27 01:00"),
    ("0 */1 * * *", "Europe/London", "2026-10-24 23:30", "10-25 00:00, 10-25 01:00, 10-25 02:00, 10-25 03:00, 10-25 04:00"),
    ("@daily", "Europe/London", "2026-03-28 12:00", "03-29 00:00, 03-29 23:00, 03-30 23:00"),
    # Half an hour.
    ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04 00:00", "04-04 14:45, 04-05 15:15, 04-06 15:15, 04-07 15:15, 04-08 15:15"),
    ("*/15 * * * *", "Australia/Lord_Howe", "2026-04-04 14:20", "04-04 14:30, 04-04 14:45, 04-04 15:00, 04-04 15:15, 04-04 15:30"),
    ("15,45 1 * * *", "Australia/Lord_Howe", "2026-04-04 14:00", "04-04 14:15, 04-04 14:45, 04-05 14:45, 04-05 15:15, 04-06 14:45"),
    ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03 00:00", ">10-03 15:30, 10-04 15:15, 10-05 15:15, 10-06 15:15, 10-07 15:15"),
    ("30 2 * * *", "Australia/Lord_Howe", "2026-10-03 00:00", "10-03 15:30, 10-04 15:30"),
    ("*/15 * * * *", "Australia/Lord_Howe", "2026-10-03 15:10", "10-03 15:15, 10-03 15:30, 10-03 15:45, 10-03 16:00"),
    # Midnight itself is skipped.
    ("0 0 * * *", "America/Santiago", "2026-09-05 00:00", "09-05 04:00, >09-06 04:00, 09-07 03:00, 09-08 03:00, 09-09 03:00"),
    # A whole day is skipped: nothing is caught up.
    ("0 12 * * *", "Pacific/Apia", "2011-12-28 00:00", "2011-12-28 22:00, 2011-12-29 22:00, 2011-12-30 22:00, 2011-12-31 22:00, 2012-01-01 22:00"),
    ("0 0 30 * *", "Pacific/Apia", "2011-12-01 00:00", "2012-01-29 10:00, 2012-03-29 10:00, 2012-04-29 11:00, 2012-05-29 11:00, 2012-06-29 11:00"),
    ("0 0 * * *", "Pacific/Apia", "2011-12-28 12:00", "2011-12-29 10:00, 2011-12-30 10:00, 2011-12-31 10:00"),
    ("0 * * * *", "Pacific/Apia", "2011-12-30 08:30", "2011-12-30 09:00, 2011-12-30 10:00, 2011-12-30 11:00"),
    # Three hours back are a correction: the new time counts at once, for fixed times too.
    ("30 2 * * *", "Antarctica/Casey", "2018-03-10 00:00", "2018-03-10 15:30, 2018-03-10 18:30, 2018-03-11 18:30"),
    # Zones that stand still.
    ("0 9 * * 1-5", "Asia/Kolkata", "2026-01-02 00:00", "01-02 03:30, 01-05 03:30, 01-06 03:30, 01-07 03:30, 01-08 03:30"),
    ("0 6 * * *", "UTC", "2026-01-01 06:00", "01-02 06:00, 01-03 06:00, 01-04 06:00, 01-05 06:00, 01-06 06:00"),
    # 29 February; 2100 has none.
    ("0 0 29 2 *", "UTC", "2026-01-01 00:00", "2028-02-29 00:00, 2032-02-29 00:00, 2036-02-29 00:00, 2040-02-29 00:00, 2044-02-29 00:00"),
    ("0 0 29 2 *", "UTC", "2093-01-01 00:00", "2096-02-29 00:00, 2104-02-29 00:00, 2108-02-29 00:00"),
    ("0 0 29 2 */7", "UTC", "2026-01-01 00:00", "2032-02-29 00:00, 2060-02-29 00:00, 2088-02-29 00:00, 2128-02-29 00:00"),
    ("0 0 31 * *", "UTC", "2026-01-31 00:00", "03-31 00:00, 05-31 00:00, 07-31 00:00, 08-31 00:00, 10-31 00:00"),
    # Two day fields: either, unless one begins with *.  (2026-02-13 is a Friday; so are 05-01 and 07-31.)
    ("0 0 13 * 5", "UTC", "2026-02-01 00:00", "02-06 00:00, 02-13 00:00, 02-20 00:00, 02-27 00:00, 03-06 00:00"),
    ("0 0 */10 * 5", "UTC", "2026-01-01 00:00", "05-01 00:00, 07-31 00:00, 08-21 00:00, 09-11 00:00, 12-11 00:00"),
    ("0 0 13 * */5", "UTC", "2026-01-01 00:00", "02-13 00:00, 03-13 00:00, 09-13 00:00, 11-13 00:00, 12-13 00:00"),
    ("0 0 1-31 * 1", "UTC", "2026-01-01 00:00", "01-02 00:00, 01-03 00:00, 01-04 00:00, 01-05 00:00, 01-06 00:00"),
    ("0 0 31 2 1", "UTC", "2026-01-01 00:00", "02-02 00:00, 02-09 00:00, 02-16 00:00, 02-23 00:00, 2027-02-01 00:00"),
    ("0 0 * * 7", "UTC", "2026-01-01 00:00", "01-04 00:00, 01-11 00:00, 01-18 00:00"),
    ("0 0 * * 5-7", "UTC", "2026-01-01 00:00", "01-02 00:00, 01-03 00:00, 01-04 00:00, 01-09 00:00, 01-10 00:00"),
    ("0 0 * JAN,mar Mon-wed", "UTC", "2026-01-26 00:00", "01-27 00:00, 01-28 00:00, 03-02 00:00, 03-03 00:00, 03-04 00:00"),
    ("0 0 13 * 1,*", "UTC", "2026-01-01 00:00", "01-02 00:00, 01-03 00:00, 01-04 00:00"),
    # What croniter would read as the whole field.
    ("0 5-5 * * *", "UTC", "2026-01-01 00:00", "01-01 05:00, 01-02 05:00, 01-03 05:00"),
    ("0 0 * * 7-7", "UTC", "2026-01-01 00:00", "01-04 00:00, 01-11 00:00"),
    # Six fields: seconds come last.
    ("0 6 * * * 30", "UTC", "2026-01-01 00:00", "01-01 06:00:30, 01-02 06:00:30"),
    ("* * * * * */20", "UTC", "2026-01-01 00:00:10", "01-01 00:00:20, 01-01 00:00:40, 01-01 00:01:00"),
    # A step that is larger than its range leaves the first value, as Debian's cron has it; * still means both days.
    ("*/100 6 * * *", "UTC", "2026-01-01 00:00", "01-01 06:00, 01-02 06:00"),
    ("10-20/100 6 * * *", "UTC", "2026-01-01 00:00", "01-01 06:10, 01-02 06:10"),
    ("0 0 */40 * 4", "UTC", "2026-01-02 00:00", "2026-10-01 00:00, 2027-04-01 00:00"),
    ("0 0 * * */9", "UTC", "2026-01-01 00:00", "01-04 00:00, 01-11 00:00"),
    ("* * * * * */999999999", "UTC", "2026-01-01 00:00", "01-01 00:01, 01-01 00:02"),
    # Several expressions: their union, each by its own rule, and one tick an instant.
    ("0 6 * * * | 30 18 * * *", "UTC", "2026-01-01 00:00", "01-01 06:00, 01-01 18:30, 01-02 06:00"),
    ("0 6 * * *|0 6 * * mon-fri |  0 6 1 * *", "UTC", "2026-01-01 00:00", "01-01 06:00, 01-02 06:00, 01-03 06:00"),
    ("30 2 * * * | 0 * * * *", "America/New_York", "2026-03-08 06:30", "03-08 07:00, 03-08 08:00, 03-08 09:00"),
    ("30 1 * * * | */30 1 * * *", "America/New_York", "2026-11-01 05:10", "11-01 05:30, 11-01 06:00, 11-01 06:30, 11-02 06:00"),
    # L and #.
    ("0 0 L * *", "UTC", "2026-01-15 00:00", "01-31 00:00, 02-28 00:00, 03-31 00:00, 04-30 00:00, 05-31 00:00"),
    ("0 0 15,L 2 *", "UTC", "2028-01-15 00:00", "2028-02-15 00:00, 2028-02-29 00:00, 2029-02-15 00:00, 2029-02-28 00:00"),
    ("0 0 * * fri#2", "UTC", "2026-01-01 00:00", "01-09 00:00, 02-13 00:00, 03-13 00:00, 04-10 00:00, 05-08 00:00"),
    ("0 0 * * L5", "UTC", "2026-01-01 00:00", "01-30 00:00, 02-27 00:00, 03-27 00:00, 04-24 00:00, 05-29 00:00"),
]  # fmt: skip


def instant(text: str, year: int = 2026) -> int:
    """A time of the table as an instant."""
    whole = text if text.count("-") == 2 else f"{year}-{text}"
    return int(datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.UTC).timestamp())


def times_of(expression: str, zone: str) -> module.Times:
    """The ticks of an expression in a zone."""
    return module.cron_times(expression, module.Zone(zone))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]} {case[2]}")
def test_ticks_follow_from_the_rule(case: tuple[str, str, str, str]) -> None:
    expression, zone, start, expected = case
    wanted = [(instant(one.strip(">")), one.startswith(">")) for one in expected.split(", ")]
    found = itertools.islice(times_of(expression, zone).ticks(instant(start)), len(wanted))
    assert [*found] == wanted


def test_an_hourly_job_fires_25_times_on_the_fall_back_day_and_23_times_in_spring() -> None:
    zone = module.Zone("America/New_York")
    for day, count in (("2026-11-01", 25), ("2026-03-08", 23), ("2026-07-01", 24)):
        begin = module.parse_time(day, zone)
        end = module.parse_time(f"{day}T23:59:59", zone)
        assert len([*times_of("0 * * * *", zone.name).ticks(begin - 1, end)]) == count


# The brute-force walker: cron's main loop, one minute after another.

FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 6))
CORRECTION_MINUTES = 180


class Written:
    """One field of a generated expression: its text and the values that it names."""

    def __init__(self, text: str, values: set[int]) -> None:
        self.text, self.values = text, values


def written(least: int, most: int) -> st.SearchStrategy[Written]:
    """A field as somebody may write it."""
    whole = st.integers(least, most)
    star = st.just(Written("*", {*range(least, most + 1)}))
    stepped = st.integers(1, most - least + 1).map(lambda n: Written(f"*/{n}", {*range(least, most + 1, n)}))
    listed = st.sets(whole, min_size=1, max_size=3).map(lambda some: Written(",".join(map(str, sorted(some))), some))
    ranged = st.tuples(whole, whole, st.integers(1, 7)).map(lambda three: ranged_of(*three))
    plain = st.one_of(star, stepped, listed, ranged)
    several = st.lists(plain, min_size=2, max_size=3).map(
        lambda parts: Written(",".join(part.text for part in parts), set().union(*(part.values for part in parts)))
    )
    return st.one_of(plain, several)


def ranged_of(one: int, other: int, step: int) -> Written:
    """A range, with a step if it is not 1."""
    low, high = sorted((one, other))
    return Written(f"{low}-{high}" + (f"/{step}" if step > 1 else ""), {*range(low, high + 1, step)})


def names(fields: list[Written], wall: datetime.datetime) -> bool:
    """Whether an expression names a time of the clock."""
    minute, hour, day, month, weekday = fields
    if not (wall.minute in minute.values and wall.hour in hour.values and wall.month in month.values):
        return False
    dates = (wall.day in day.values, wall.isoweekday() % 7 in weekday.values)
    both = day.text.startswith("*") or weekday.text.startswith("*")
    return all(dates) if both else any(dates)


@functools.cache
def clock(zone: str, begin: int, end: int) -> list[datetime.datetime]:
    """What a clock shows, minute by minute."""
    info = ZoneInfo(zone)
    return [datetime.datetime.fromtimestamp(at, info).replace(tzinfo=None) for at in range(begin, end, 60)]


def walk(fields: list[Written], zone: str, begin: int, end: int) -> list[int]:
    """The instants at which Debian's cron would start the job, found by looking at the clock each minute."""
    wildcard = fields[0].text.startswith("*") or fields[1].text.startswith("*")
    minute, found = datetime.timedelta(minutes=1), []
    before: datetime.datetime | None = None
    ahead: datetime.datetime | None = None  # the latest time shown before the clock was set back
    for at, wall in zip(range(begin, end, 60), clock(zone, begin, end), strict=True):
        shown = [wall]
        if before is not None:
            jumped = (wall - before) // minute - 1
            if not wildcard and 0 < jumped <= CORRECTION_MINUTES:
                shown = [before + minute * n for n in range(1, jumped + 2)]
            elif not wildcard and -CORRECTION_MINUTES < jumped < 0:
                ahead = before
            elif jumped:
                ahead = None
        before = wall
        if ahead is not None and wall <= ahead:
            continue
        if any(names(fields, one) for one in shown):
            found.append(at)
    return found


#: Days on which clocks are set, and the next day in zones where they are not.
DAYS = [
    ("America/New_York", "2026-03-08"), ("America/New_York", "2026-11-01"), ("Europe/London", "2026-03-29"),
    ("Europe/London", "2026-10-25"), ("Australia/Lord_Howe", "2026-04-05"), ("Australia/Lord_Howe", "2026-10-04"),
    ("Pacific/Apia", "2011-12-30"), ("Asia/Kolkata", "2026-03-01"), ("UTC", "2028-02-29"), ("Asia/Beirut", "2026-03-29"),
    ("America/Santiago", "2026-09-06"), ("Antarctica/Casey", "2018-03-11"), ("Antarctica/Casey", "2016-10-22"),
    ("Africa/Casablanca", "2026-02-15"), ("Antarctica/Troll", "2026-03-29"), ("Antarctica/Troll", "2026-10-25"),
    ("America/Havana", "2026-11-01"), ("Pacific/Chatham", "2026-04-05"),
]  # fmt: skip


@settings(max_examples=200 if THOROUGH else 60)
@given(
    fields=st.tuples(*(written(least, most) for _, least, most in FIELDS)),
    day=st.sampled_from(DAYS),
    start=st.integers(-24 * 60, 36 * 60),
)
def test_ticks_are_those_of_a_clock_that_is_walked(
    fields: tuple[Written, ...], day: tuple[str, str], start: int
) -> None:
    zone, date = day
    try:
        times = times_of(" ".join(field.text for field in fields), zone)
    except module.BadRequest:
        assert not any(comes(fields, year) for year in (2028, 2029))
        return
    noon = instant(f"{date} 00:00")
    begin, end, after = noon - 48 * 3600, noon + 60 * 3600, noon + start * 60
    walked = [at for at in walk([*fields], zone, begin, end) if at > after]
    found = [at for at, _ in times.ticks(after, end - 60)]
    assert found == walked


def comes(fields: tuple[Written, ...], year: int) -> bool:
    """Whether a year has a date that an expression with a starred weekday names, whatever the weekday."""
    _, _, day, month, _ = fields
    return any(d <= calendar.monthrange(year, m)[1] for m in month.values for d in day.values)


@settings(max_examples=60 if THOROUGH else 30)
@given(
    case=st.sampled_from(CASES),
    start=st.integers(-3 * 86_400, 3 * 86_400),
    span=st.integers(0, 40 * 86_400),
    most=st.integers(1, 20),
)
@example(case=CASES[0], start=0, span=0, most=1)
def test_the_latest_ticks_are_the_last_of_all(case: Any, start: int, span: int, most: int) -> None:
    begin = instant(case[2]) + start
    times = times_of(case[0], case[1])
    every = [*times.ticks(begin, begin + span)]
    assert times.latest(begin, begin + span, most) == every[-most:]
    assert [at for at, _ in every] == sorted({at for at, _ in every})
    assert all(at > begin for at, _ in every)


def test_ten_years_are_skipped_and_not_counted() -> None:
    class Counted(module.Cron):
        __slots__ = ("asked",)

        def next(self, wall: int) -> int | None:
            self.asked = getattr(self, "asked", 0) + 1
            return super().next(wall)

    begin, end = instant("2016-01-01 00:00"), instant("2026-01-01 00:00")
    zone = module.Zone("Europe/London")
    for expression, last in (("* * * * *", end), ("0 0 29 2 *", instant("2024-02-29 00:00")), ("* * * * * *", end)):
        cron = Counted(expression)
        times = module.Times("fixed", lambda after, cron=cron: module.clock_ticks(cron, zone, after))
        assert times.latest(begin, end, 1) == [(last, False)]
        assert cron.asked < 1_000
    assert module.interval(7, begin).latest(begin, end, 2)[-1][0] == end - (end - begin) % 7


def test_an_interval_counts_from_its_anchor() -> None:
    times = module.interval(3600, 1_000)
    for after, ticks in ((4_599, [4_600, 8_200]), (4_600, [8_200, 11_800]), (-2_700, [-2_600, 1_000])):
        assert [at for at, _ in itertools.islice(times.walk(after), 2)] == ticks
    within = module.Times("interval", times.walk, 4_600, 8_200)
    assert [at for at, _ in within.ticks(0)] == [4_600, 8_200]
    assert (within.next(4_600), within.next(8_200)) == ((8_200, False), None)
    once = module.times_of(module.SCHEDULE_OPTIONS | {"at": "1970-01-01T00:00:05.000Z"}, 0, module.Zone("UTC"))
    assert once is not None
    assert (once.next(4), once.next(5)) == ((5, False), None)


#: An expression that is refused → what the message names.
REFUSED = {
    "61 * * * *": "minute (field 1): found '61', expected 0 to 59",
    "0 24 * * *": "hour (field 2): found '24', expected 0 to 23",
    "0 0 0 * *": "day of month (field 3): found '0', expected 1 to 31",
    "0 0 * 13 *": "month (field 4): found '13', expected 1 to 12 or jan to dec",
    "0 0 * * 8": "day of week (field 5): found '8', expected 0 to 7 or sun to sat",
    "0 0 * * * 60": "second (field 6): found '60', expected 0 to 59",
    "5,61 * * * *": "minute (field 1): found '5,61'",
    "0 0 * foo *": "month (field 4): found 'foo'",
    "22-2 * * * *": "minute (field 1): found '22-2', expected 0 to 59, a range that goes up",
    "0 0 * * fri-mon": "found 'fri-mon', expected 0 to 7 or sun to sat",
    "0 0 * * sat-sun": "found 'sat-sun', expected 0 to 7 or sun to sat",
    "1-70 * * * *": "minute (field 1): found '1-70'",
    "*/0 * * * *": "minute (field 1): found '*/0', expected 0 to 59, a range that goes up, or a step",
    "0 6 * * * | 61 * * * *": "minute (field 1): found '61', expected 0 to 59",
    "0 6 * * * |": "has 0 fields",
    "0 0 6 * * *": "'0 0 6 * * *' seems to begin with its seconds",
    "*/30 * * * * *": "'*/30 * * * * *' seems to begin with its seconds",
    "0 */5 * * * *": "seems to begin with its seconds",
    "0 0 12 * * MON-FRI": "'0 0 12 * * MON-FRI' seems to begin with its seconds",
    "0 0 12 ? * 2": "seems to begin with its seconds",
    "0 0 12 * * mon": "seems to begin with its seconds",
    "5/10 * * * *": "found '5/10', expected 0 to 59, a range that goes up, or a step after * or a range",
    "1,,2 * * * *": "minute (field 1): found '1,,2'",
    "1, * * * *": "minute (field 1): found '1,'",
    "-5 * * * *": "minute (field 1): found '-5'",
    "+5 * * * *": "minute (field 1): found '+5'",
    "1.5 * * * *": "minute (field 1): found '1.5'",
    "** * * * *": "minute (field 1): found '**'",
    "? * * * *": "minute (field 1): found '?'",
    "0 0 ? * *": "day of month (field 3): found '?'",
    "0 0 15W * *": "day of month (field 3): found '15w'",
    "H * * * *": "minute (field 1): found 'h'",
    "H(0-5) * * * *": "minute (field 1): found 'h(0",
    "0 0 L-3 * *": "day of month (field 3): found 'l-3'",
    "0 L * * *": "hour (field 2): found 'l'",
    "0 0 * * 5#6": "day of week (field 5): found '5#6', expected 0 to 7 or sun to sat, or days such as 5#2 and L5",
    "0 0 * * 5#0": "day of week (field 5): found '5#0'",
    "0 0 * * 5L": "day of week (field 5): found '5l'",
    "0 0 * * 1,5#2": "day of week (field 5): found '1,5#2', expected # and L only with *",
    "0 0 13 * 5#2": "day of week (field 5): found '5#2', expected # and L only with * as day of month",
    "0 0 31 2 *": "day of month (field 3): found '31', expected a real date: this never comes in month (field 4) '2'",
    "0 0 30 2 *": "never comes",
    "0 0 30,31 2 *": "never comes",
    "0 0 31 4,6,9,11 *": "never comes",
    "0 0 31 2 */2": "never comes",
    "0 0 */20 2 5#5": "never comes",
    "@reboot": "found '@reboot', expected one of @yearly",
    "@every 5m": "found '@every 5m'",
    "@DAILY": "found '@DAILY'",
    "@daily 5": "found '@daily 5'",
    "@": "found '@'",
    "": "has 0 fields, expected five",
    "* * * *": "has 4 fields, expected five",
    "0 6 * * * 0 2026": "has 7 fields, expected five",
    "0 0 * * \N{ARABIC-INDIC DIGIT THREE}": "day of week (field 5): found '\N{ARABIC-INDIC DIGIT THREE}'",
    "0\N{NO-BREAK SPACE}0 * * *": "has 4 fields",
    "0\N{NO-BREAK SPACE}0 * * * *": r"minute (field 1): found '0\xa00'",
    "0\n0 * * *": "has 4 fields",
    "0 6 * * *\n": r"day of week (field 5): found '*\n'",
    "0\x0b0 * * * *": r"minute (field 1): found '0\x0b0'",
    "0 0 * * *\0": r"day of week (field 5): found '*\x00'",
    "5" * 2_000: "a short text",
}  # fmt: skip


@pytest.mark.parametrize("expression", REFUSED)
def test_what_is_no_expression_is_refused_with_its_place(expression: str) -> None:
    with pytest.raises(module.BadRequest) as refused:
        module.cron_times(expression, module.Zone("UTC"))
    assert REFUSED[expression] in str(refused.value)
    assert refused.value.hint


def test_other_crons_words_are_answered_with_ours() -> None:
    for expression, hint in (
        ("@every 5m", "--every"), ("@reboot", "tau run"), ("? * * * *", "*"), ("0 0 15W * *", "1-5"), ("H * * * *", "--jitter"),
        ("@DAILY", "@daily"), ("0 0 * * wedn", '"0 6 * * *"'), ("0 0 6 * * *", 'seconds come last: "0 6 * * *"'),
        ("*/30 * * * * *", 'seconds come last: "* * * * * */30"'),
        ("0 0 12 * * MON-FRI", 'seconds come last: "0 12 * * mon-fri"'), ("15 0 12 ? * 5#2", '"0 12 * * 5#2 15"'),
    ):  # fmt: skip
        with pytest.raises(module.BadRequest) as refused:
            module.Cron(expression)
        assert hint in refused.value.hint, expression


def test_the_kind_is_told_by_how_minute_and_hour_begin() -> None:
    for expression, kind in (
        ("10 0-23 * * *", "fixed"), ("10 */1 * * *", "wildcard"), ("*/5 2 * * *", "wildcard"), ("@hourly", "wildcard"),
        ("@daily", "fixed"), ("0-59 0-23 * * *", "fixed"), ("5 5 * * * 0", "fixed"),
    ):  # fmt: skip
        assert module.Cron(expression).kind == kind


DURATIONS: dict[Any, float | None] = {
    30: 30.0, 1.5: 1.5, "30": 30.0, "30s": 30.0, "1.5s": 1.5, "15m": 900.0, "1h30m": 5_400.0, "24h": 86_400.0,
    "2d": 172_800.0, "1w": 604_800.0, 0: 0.0, "0": 0.0,
    -1: None, "-5": None, "": None, "soon": None, "m": None, "15 m": None, "30m1h": None, "1h1h": None, "1e3": None,
    float("nan"): None, float("inf"): None, "nan": None, "inf": None, True: None, 1e12: None, "9" * 200: None,
    "\N{ARABIC-INDIC DIGIT THREE}m": None,
}  # fmt: skip


@pytest.mark.parametrize("value", [*DURATIONS, None, [], {}], ids=repr)
def test_durations_are_numbers_or_short_texts(value: Any) -> None:
    wanted = DURATIONS.get(value) if isinstance(value, (str, int, float)) and value is not True else None
    if wanted is None:
        with pytest.raises(module.BadRequest, match="from 0 to 10 years"):
            module.parse_duration(value)
    else:
        assert module.parse_duration(value) == wanted
        assert module.parse_duration(module.duration_text(wanted)) == wanted


@pytest.mark.parametrize("value", [0, "0s", 0.5, "1.5s", -1, "-1h"])
def test_an_interval_is_whole_seconds(value: float | str) -> None:
    with pytest.raises(module.BadRequest):
        module.parse_interval(value)


TIMES: dict[str, tuple[str, str] | None] = {
    "2026-01-01T06:00:00Z": ("UTC", "2026-01-01 06:00"),
    "2026-01-01T06:00:00.000Z": ("America/New_York", "2026-01-01 06:00"),
    "2026-01-01T06:00:00.001Z": ("UTC", "2026-01-01 06:00"),
    "2026-01-01T05:59:59.999999999Z": ("UTC", "2026-01-01 05:59:59"),
    "2026-01-01 05:59:59.9": ("America/New_York", "2026-01-01 10:59:59"),
    "2026-01-01T06:00:00+05:30": ("UTC", "2026-01-01 00:30"),
    "2026-01-01 06:00": ("America/New_York", "2026-01-01 11:00"),
    "2026-07-01T06:00": ("America/New_York", "2026-07-01 10:00"),
    "2026-07-01": ("Europe/London", "2026-06-30 23:00"),
    "2026-03-08T02:30": ("America/New_York", "2026-03-08 07:00"),
    "2026-11-01T01:30": ("America/New_York", "2026-11-01 05:30"),
    "2011-12-30T12:00": ("Pacific/Apia", "2011-12-30 10:00"),
    "tomorrow": None, "2026-13-01": None, "2026-02-30": None, "20260101": None, "2026-W01": None, "06:00": None,
    "2026-01-01T25:00": None, "1969-12-31": None, "9999-12-31": None, "": None, "2026-01-01T06:00:00+99:00": None,
}  # fmt: skip


@pytest.mark.parametrize("text", TIMES)
def test_times_are_rfc_3339_or_those_of_a_clock(text: str) -> None:
    if (case := TIMES[text]) is None:
        with pytest.raises(module.BadRequest, match="is not a time"):
            module.parse_time(text, module.Zone("UTC"))
    else:
        assert module.parse_time(text, module.Zone(case[0])) == instant(case[1])


#: What is no name of a zone → its hint, which guesses nothing.
ABBREVIATION = (
    "an abbreviation stands for several zones: name the place whose clock is meant, such as America/Los_Angeles,"
    " Europe/London, Asia/Kolkata"
)
ZONES = {
    **dict.fromkeys(("PST", "BST", "EST9XYZ"), ABBREVIATION),
    "UTC+2": "that is Etc/GMT-2, signed the other way round; a place, for example Europe/London, has summer time too",
    "GMT-05:00": "that is Etc/GMT+5, signed the other way round; a place, for example Europe/London, has summer time too",
    "+02:00": "that is Etc/GMT-2, signed the other way round; a place, for example Europe/London, has summer time too",
    **dict.fromkeys(("UTC+99", "GMT+15", "GMT-13", "Etc/GMT-15", "Etc/GMT+13"), "for example Europe/London"),
    **dict.fromkeys(("UTC+0", "-00:00", "Z"), "write UTC"),
    "UTC+14": "that is Etc/GMT-14, signed the other way round; a place, for example Europe/London, has summer time too",
    "utc": "write UTC",
    "Pacific Time": "for example Europe/London",
    "europe/london": "did you mean 'Europe/London'?",
    "Tokyo": "did you mean 'Asia/Tokyo'?",
    "Rome": "did you mean 'Europe/Rome'?",
    "America/Berlin": "did you mean 'Europe/Berlin'?",
    "Mars/Base": "for example Europe/London",
}


@pytest.mark.parametrize("name", ZONES)
def test_what_is_no_time_zone_is_refused_without_guessing(name: str) -> None:
    with pytest.raises(module.BadRequest, match="there is no time zone") as refused:
        module.Zone(name)
    assert refused.value.hint == ZONES[name]


def test_ticks_previews_without_a_pipeline(tau: Tau) -> None:
    words = ("30 2 * * *", "--timezone", "America/New_York", "--after", "2026-03-07", "--limit", "2")
    assert tau("ticks", *words) == {
        "ticks": ["2026-03-07T07:30:00.000Z", "2026-03-08T07:00:00.000Z"],
        "local": ["2026-03-07T02:30:00-05:00", "2026-03-08T03:00:00-04:00"],
        "moved": [False, True],
        "kind": "fixed",
        "timezone": "America/New_York",
    }
    hours = tau("ticks", "--every", "1h30m", "--after", "2026-01-01T00:10:00Z")
    assert hours["ticks"][:2] == ["2026-01-01T01:40:00.000Z", "2026-01-01T03:10:00.000Z"]
    assert (hours["kind"], len(hours["ticks"])) == ("interval", 5)
    assert tau.call("ticks", every=3600, after="2026-01-01")["ticks"][0] == "2026-01-01T01:00:00.000Z"
    assert tau("ticks", "@hourly")["kind"] == "wildcard"


def test_threads_share_what_was_read_of_an_expression() -> None:
    usual, shared = sys.getswitchinterval(), module.cron_times("*/7 3-20 * * *", module.Zone("Europe/London"))

    def walk(times: module.Times, after: int) -> list[module.Tick]:
        return [*itertools.islice(times.ticks(after), 300)]

    starts = [1_780_000_000 + 86_400 * number for number in range(8)]
    alone = [walk(module.cron_times("*/7 3-20 * * *", module.Zone("Europe/London")), after) for after in starts]
    sys.setswitchinterval(1e-6)
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert [*pool.map(functools.partial(walk, shared), starts)] == alone
    finally:
        sys.setswitchinterval(usual)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["61 * * * *"], "found '61', expected 0 to 59"),
        (["0 0 31 2 *"], "never comes"),
        (["* * * * *", "--timezone", "Mars/Base"], "no time zone 'Mars/Base'"),
        (["--every", "-5"], "from 0 to 10 years"),
        (["--every", "0"], "at least one"),
        (["--every", "soon"], "from 0 to 10 years"),
        (["* * * * *", "--after", "later"], "'later' is not a time"),
        (["* * * * *", "--every", "5"], "give one of"),
        ([], "give one of"),
        (["* * * * *", "--limit", "0"], "expected a whole number from 1 to 1,000"),
        (["* * * * *", "--limit", "1001"], "expected a whole number from 1 to 1,000"),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(tau: Tau, words: list[str], message: str) -> None:
    error = tau("ticks", *words, exit=2)
    assert error["code"] == "bad_request"
    assert message in error["message"]
