"""due() as a table of cases; clocks that jump; two simulated years; schedules, chains and backfills as users see them."""

from __future__ import annotations

import asyncio
import bisect
import heapq
import json
import multiprocessing
import os
import random
import sqlite3
import time
import types
import zoneinfo
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, THOROUGH, Tau, eventually

import tau as module

#: 2026-06-01T00:00:00Z, a Monday.
MONDAY = 1_780_272_000
HOUR, DAY = 3_600, 86_400


def schedule(times: module.Times, watermark: int, **options: Any) -> tuple[dict[str, Any], module.Times]:
    """The row and the times of a schedule that is decided up to an instant."""
    row = {"pipeline": "p", "watermark_at": module.rfc3339(watermark), "options": module.SCHEDULE_OPTIONS | options}
    return row, times


HOURLY = module.interval(HOUR, MONDAY)


def decided(plan: module.Plan) -> list[tuple[Any, ...]]:
    """The decisions in brief: what, which hour, and why or how many."""
    brief = []
    for one in plan.decisions:
        hour = (one["tick"] - MONDAY) / HOUR
        extra = one.get("trigger") or one["reason"]
        brief.append((one["type"].partition(".")[2], hour, extra, *([one["ticks"]] if "ticks" in one else [])))
    return brief


#: (options, hours since the watermark, unfinished runs of earlier ticks) → decisions.
DUE: list[tuple[dict[str, Any], float, list[str], list[tuple[Any, ...]]]] = [
    ({}, 0.5, [], []),
    ({}, 1, [], [("fired", 1, "schedule")]),
    ({}, 1 + 10 / HOUR, [], [("fired", 1, "schedule")]),
    ({}, 1 + 11 / HOUR, [], [("fired", 1, "catchup")]),
    # Missed: the last one runs, unless one is due just now.
    ({}, 3.5, [], [("missed", 2, "misfire is last", 2), ("fired", 3, "catchup")]),
    ({}, 3, [], [("missed", 2, "misfire is last", 2), ("fired", 3, "schedule")]),
    ({"misfire": "skip"}, 3.5, [], [("missed", 3, "misfire is skip", 3)]),
    ({"misfire": "skip"}, 3, [], [("missed", 2, "misfire is skip", 2), ("fired", 3, "schedule")]),
    ({"misfire": "all"}, 3.5, [], [("fired", 1, "catchup"), ("fired", 2, "catchup"), ("fired", 3, "catchup")]),
    # Within the catch-up window only.
    ({"catchup_window_s": 60.0}, 3.5, [], [("missed", 3, "older than catchup_window", 3)]),
    ({"catchup_window_s": 3_600.0}, 3.5, [], [("missed", 2, "older than catchup_window", 2), ("fired", 3, "catchup")]),
    ({"catchup_window_s": 7_200.0, "misfire": "all"}, 3.5, [],
     [("missed", 1, "older than catchup_window", 1), ("fired", 2, "catchup"), ("fired", 3, "catchup")]),
    # Overlap.
    ({}, 1, ["r"], [("skipped", 1, "overlap")]),
    ({"overlap": "queue"}, 1, ["r"], [("fired", 1, "schedule")]),
    ({"overlap": "queue"}, 1, ["r"] * 101, [("dropped", 1, "cap")]),
    ({"overlap": "cancel_running"}, 1, ["r", "s"], [("fired", 1, "schedule")]),
    ({"overlap": "allow"}, 1, ["r"] * 200, [("fired", 1, "schedule")]),
    ({"misfire": "all"}, 2.5, ["r"], [("fired", 1, "catchup"), ("fired", 2, "catchup")]),
    ({"misfire": "all"}, 2, [], [("fired", 1, "catchup"), ("skipped", 2, "overlap")]),
    ({}, 1.5, ["r"], [("skipped", 1, "overlap")]),
]  # fmt: skip


@pytest.mark.parametrize("case", DUE, ids=lambda case: f"{case[0]} {case[1]:.4g}h {len(case[2])} active")
def test_due_decides(case: tuple[dict[str, Any], float, list[str], list[tuple[Any, ...]]]) -> None:
    options, hours, active, expected = case
    now = MONDAY + round(hours * HOUR)
    plan = module.due(*schedule(HOURLY, MONDAY, **options), now, active)
    assert decided(plan) == expected
    assert plan.watermark == now
    assert plan.next == HOURLY.next(now)
    assert plan.cancel == (active if options.get("overlap") == "cancel_running" else [])


def test_due_again_decides_nothing() -> None:
    one = schedule(HOURLY, MONDAY)
    plan = module.due(*one, MONDAY + 5 * HOUR, [])
    assert module.due(*schedule(HOURLY, plan.watermark), MONDAY + 5 * HOUR, []).decisions == []
    back = module.due(*schedule(HOURLY, plan.watermark), MONDAY + 2 * HOUR, [])
    assert (back.decisions, back.watermark, back.next) == ([], plan.watermark, (MONDAY + 6 * HOUR, False))


def test_a_cap_drops_the_oldest_of_many() -> None:
    minutely = module.interval(60, MONDAY)
    plan = module.due(*schedule(minutely, MONDAY, misfire="all"), MONDAY + 5 * HOUR + 30, [])
    dropped, *fired = plan.decisions
    assert (dropped["type"], dropped["reason"], dropped["ticks"]) == ("tick.dropped", "cap", 200)
    assert len(fired) == module.CATCHUP_MAX
    assert fired[-1]["tick"] == MONDAY + 5 * HOUR


def test_ten_years_are_decided_at_once() -> None:
    for timing in (module.interval(1, MONDAY), module.cron_times("* * * * *", module.Zone("UTC"))):
        plan = module.due(*schedule(timing, MONDAY), MONDAY + 3_650 * DAY + 30, [])
        missed, *rest = plan.decisions
        assert missed["ticks"] > module.COUNT_MAX
        assert missed["at_least"]
        assert [one["type"] for one in rest].count("tick.fired") == 1
        assert len(plan.decisions) <= 2 + module.ON_TIME_S + 1


def test_the_cause_of_a_miss_is_told_if_it_is_known() -> None:
    gap = {"from": MONDAY + 100, "until": MONDAY + 2 * HOUR + 900, "cause": "daemon_down"}
    plan = module.due(*schedule(HOURLY, MONDAY), MONDAY + 2 * HOUR + 901, [], [gap])
    cause = {"what": "daemon_down", "from": module.rfc3339(gap["from"]), "until": module.rfc3339(gap["until"])}
    assert [one["cause"] for one in plan.decisions] == [cause, cause]
    other = gap | {"until": MONDAY + HOUR}
    assert "cause" not in module.due(*schedule(HOURLY, MONDAY), MONDAY + 2 * HOUR + 901, [], [other]).decisions[-1]


def test_what_came_while_paused_does_not_run() -> None:
    gap = {"from": MONDAY + 1, "until": MONDAY + 5 * HOUR + 60, "cause": "paused"}
    plan = module.due(*schedule(HOURLY, MONDAY, misfire="all"), MONDAY + 6 * HOUR, [], [gap])
    assert decided(plan) == [("skipped", 5, "paused", 5), ("fired", 6, "schedule")]


def test_jitter_is_the_same_each_time_and_spreads_pipelines() -> None:
    delays = [module.delay_of(f"p{n}", 30.0) for n in range(300)]
    assert delays == [module.delay_of(f"p{n}", 30.0) for n in range(300)]
    assert {*delays} == {*range(31)}
    late = schedule(HOURLY, MONDAY, jitter_s=30.0)
    at = MONDAY + HOUR + module.delay_of("p", 30.0)
    assert module.due(*late, at - 1, []).decisions == []
    assert decided(module.due(*late, at, [])) == [("fired", 1, "schedule")]


def test_the_command_line_wins_over_the_decorator() -> None:
    live = {"schedule": "0 6 * * *", "every": None, "timezone": "Europe/London", "overlap": "queue", "misfire": "last"}
    live |= {"catchup_window": 86_400.0, "jitter": 0.0}
    of_decorator = module.schedule_options(live, {})
    assert (of_decorator["cron"], of_decorator["timezone"], of_decorator["overlap"]) == (
        "0 6 * * *",
        "Europe/London",
        "queue",
    )
    of_command = module.schedule_options(live, {"every_s": 60})
    assert (of_command["cron"], of_command["every_s"], of_command["timezone"]) == (None, 60, None)
    assert of_command["overlap"] == "queue"
    assert module.schedule_options(live, {"overlap": "allow"}) == of_decorator | {"overlap": "allow"}


#: Pipeline → those it comes after, and the circle that they make.
GRAPHS: list[tuple[dict[str, list[str]], str]] = [
    ({"a": []}, ""),
    ({"a": ["b"], "b": ["c"], "c": []}, ""),
    ({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}, ""),
    ({"a": ["a"]}, "aa"),
    ({"a": ["b"], "b": ["a"]}, "aba"),
    ({"x": ["a"], "a": ["b"], "b": ["c"], "c": ["a"]}, "abca"),
    ({**{f"n{n}": [f"n{n + 1}"] for n in range(5_000)}, "n5000": []}, ""),
]


@pytest.mark.parametrize(("graph", "circle"), GRAPHS, ids=lambda value: str(value)[:50])
def test_a_circle_is_found_wherever_it_is(tmp_path: Path, graph: dict[str, list[str]], circle: str) -> None:
    async def story(world: World) -> None:
        caller = module.Caller("me", "admin")
        pipelines = [{"name": name, "after": after} for name, after in graph.items()]
        if not circle:
            world.agenda.check_chains(pipelines, caller)
            return
        with pytest.raises(module.BadRequest, match="in a circle: ") as refused:
            world.agenda.check_chains(pipelines, caller)
        shown = str(refused.value).rpartition(": ")[2].split(" → ")
        assert (shown[0], len(shown)) == (shown[-1], len(circle))
        assert "".join(shown[1:]) in circle * 2

    in_world(tmp_path, story)


# A scheduler without a daemon: the real store and the real decisions under a clock that the test moves.


class FakeClock(module.Clock):
    """Time that passes when it is told to."""

    def __init__(self, now: float) -> None:
        self.wall, self.awake, self.gone = now, 0.0, 0.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.awake

    def elapsed(self) -> float:
        return self.gone

    def run(self, seconds: float) -> None:
        """Time passes."""
        self.wall, self.awake, self.gone = self.wall + seconds, self.awake + seconds, self.gone + seconds

    def sleep(self, seconds: float) -> None:
        """Time passes while the machine is suspended."""
        self.wall, self.gone = self.wall + seconds, self.gone + seconds

    def step(self, seconds: float) -> None:
        """Somebody sets the clock."""
        self.wall += seconds


class Killed(Exception):
    """The daemon dies before its transaction is committed."""


class FakeRunner:
    """Takes what the scheduler asks of the runner."""

    def __init__(self) -> None:
        self.paused, self.starter = False, types.SimpleNamespace(server={})
        self.stopped: list[str] = []

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        work.close()


class World:
    """A home whose daemon may die and whose clock may jump; runs are moved by hand."""

    def __init__(self, home: Path, now: float = MONDAY) -> None:
        self.home, self.clock = str(home), FakeClock(now)
        self.kill_next = False
        self.writes = 0

    def open(self) -> None:
        """A daemon begins, as far as it is about schedules."""
        settings = module.read_settings({}, None) | {"max_concurrent": 0}  # runs are admitted by hand
        self.store = module.Store(self.home, settings, self.clock)
        self.store.open(asyncio.get_running_loop())
        self.store.db.execute("PRAGMA synchronous = OFF")
        self.store.db.execute("PRAGMA cache_size = -200000")
        self.store.write = self.write  # type: ignore[method-assign]
        self.store.ask = module.Questions(self.store.db)  # which sees what is not committed yet
        self.agenda = module.Agenda(self.store, "UTC")
        self.agenda.open()
        self.runner = FakeRunner()
        self.scheduler = module.Scheduler(self.agenda, self.runner)  # type: ignore[arg-type]

    async def begin(self) -> None:
        """A daemon begins, and takes over."""
        self.open()
        await self.look()

    async def look(self) -> None:
        """What is decided at the end of a group of writes, and when the timer rings at once."""
        due_at: float | None = 0.0
        while due_at is not None and due_at <= self.clock.wall:
            decided, admitted = await self.write(self.scheduler.decide), await self.write(self.scheduler.admit)
            stops, _ = self.scheduler.settled(decided, admitted)
            self.runner.stopped += stops
            due_at = self.scheduler.due_at

    def end(self) -> None:
        """It is gone."""
        if "write" in vars(self.store) and self.store.db.in_transaction:  # else the writer's own thread ends its own
            self.store.db.execute("COMMIT")
        self.store.close()

    async def write(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Does work here and now, as a whole or not at all; a hundred such share a transaction, to be quick."""
        db = self.store.db
        if not db.in_transaction:
            db.execute("BEGIN IMMEDIATE")
        db.execute("SAVEPOINT work")
        try:
            answer = work(*arguments)
            if self.kill_next:
                raise Killed
        except BaseException:
            db.execute("ROLLBACK TO work")
            db.execute("RELEASE work")
            raise
        db.execute("RELEASE work")
        self.writes += 1
        if self.writes % 100 == 0:
            db.execute("COMMIT")
        return answer

    async def deploy(self, *names: str, **options: Any) -> None:
        """Pipelines are deployed."""
        plain = {"description": "", "tags": [], "params": {"type": "object"}, "entry": "p.py", "origin": []}
        found = [{"name": name, "function": name, **plain, **options} for name in names]
        await self.write(self.agenda.deploy, found, "0" * 64, module.Caller("me", "admin"), "me")

    async def set(self, name: str, enabled: bool | None = None, **command: Any) -> None:
        """What `tau schedule` does."""
        await self.write(self.agenda.set_schedule, name, command, enabled, "me")

    async def pass_time(self, seconds: float) -> None:
        """Time passes with a look each second, as far as anything can be due."""
        end = self.clock.gone + seconds
        while self.clock.gone < end:
            due = self.agenda.next_due(self.clock.wall)
            wait = end - self.clock.gone
            if due is not None and (sooner := due - self.clock.wall) > 0:
                wait = min(wait, sooner)
            self.clock.run(wait)
            self.note_look()
            await self.look()

    def note_look(self) -> None:
        """As if somebody had looked just before, which somebody does each second."""
        clocks = self.clock.time(), self.clock.monotonic(), self.clock.elapsed()
        self.scheduler.seen = tuple(value - 0.001 for value in clocks)  # type: ignore[assignment]

    def finish(self, run_id: str, status: str = "success") -> None:
        """A run that is queued or runs has ended so."""
        self.store.move(run_id, "running")
        self.store.move(run_id, status)

    async def finish_all(self, status: str = "success") -> None:
        """All runs have ended so."""
        for (run_id,) in self.rows("SELECT run_id FROM runs WHERE status IN ('queued', 'running')"):
            await self.write(self.finish, run_id, status)

    def rows(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        """What the database answers."""
        return [tuple(row) for row in self.store.db.execute(question, values)]

    def events(self, *types: str) -> list[dict[str, Any]]:
        """The ledger, as far as it is of these types, oldest first."""
        marks, columns = ", ".join("?" * len(types)), "seq, at, type, pipeline, run_id, scheduled_for, data, actor"
        rows = self.store.db.execute(f"SELECT {columns} FROM events WHERE type IN ({marks}) ORDER BY seq", types)
        return [{**event["data"], **event} for event in map(module.to_document, rows)]

    def ticks(self, name: str = "p") -> list[float]:
        """The ticks that have runs, in hours since MONDAY."""
        rows = self.rows("SELECT scheduled_for FROM runs WHERE pipeline = ? ORDER BY scheduled_for", name)
        return [(module.instant_of(text) - MONDAY) / HOUR for (text,) in rows]


def in_world(tmp_path: Path, story: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    """Tells a story in a world with one pipeline, `p`."""

    async def told() -> None:
        world = World(tmp_path)
        await world.begin()
        try:
            await world.deploy("p")
            await story(world)
        finally:
            world.end()

    asyncio.run(told())


def test_ticks_fire_in_time_and_once(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="*/30 * * * *", overlap="allow")
        await world.pass_time(2 * HOUR)
        assert world.ticks() == [0.5, 1, 1.5, 2]
        assert [event["trigger"] for event in world.events("tick.fired")] == ["schedule"] * 4

    in_world(tmp_path, story)


def test_a_suspended_machine_catches_up_and_the_ledger_says_why(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 * * * *")
        await world.pass_time(HOUR + 60)
        await world.finish_all()
        world.clock.sleep(8 * HOUR)
        await world.look()
        assert world.ticks() == [1, 9]
        (gap,) = world.events("scheduler.gap")
        assert (gap["cause"], gap["seconds"]) == ("suspended", 8 * HOUR)
        (missed,) = world.events("tick.missed")
        assert (missed["ticks"], missed["cause"]["what"]) == (7, "suspended")
        assert world.events("tick.fired")[-1]["trigger"] == "catchup"

    in_world(tmp_path, story)


def test_a_clock_that_is_set_forward_is_a_miss(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 * * * *")
        await world.pass_time(60)
        world.clock.step(3_650 * DAY)
        await world.look()
        assert len(world.ticks()) == 1
        assert [gap["cause"] for gap in world.events("scheduler.gap")] == ["clock_set_forward"]
        assert world.events("tick.missed")[0]["at_least"]

    in_world(tmp_path, story)


def test_a_clock_that_is_set_back_repeats_nothing(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="*/10 * * * *", overlap="allow")
        await world.pass_time(HOUR)
        world.clock.step(-HOUR)
        await world.look()
        await world.pass_time(HOUR + 600)
        assert world.ticks() == [n / 6 for n in range(1, 8)]
        (back,) = world.events("clock.set_back")
        assert back["seconds"] == -HOUR

    in_world(tmp_path, story)


def test_a_clock_that_was_ahead_silences_nothing(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 * * * *", overlap="allow")
        await world.pass_time(60)
        world.clock.step(180 * DAY)
        await world.look()
        world.clock.step(-180 * DAY)
        await world.look()
        await world.pass_time(2 * HOUR)
        assert [tick for tick in world.ticks() if tick < 24] == [1, 2]

    in_world(tmp_path, story)


def test_a_run_waits_as_long_when_the_clock_is_set_forward(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.deploy("q", queue_timeout=600.0)
        await world.write(world.store.add_run, "q", {}, None, "manual", "me")
        world.note_look()
        world.clock.step(2 * HOUR)
        await world.look()
        assert world.rows("SELECT status FROM runs WHERE pipeline = 'q'") == [("queued",)]
        await world.pass_time(601)
        assert world.rows("SELECT status FROM runs WHERE pipeline = 'q'") == [("timed_out",)]

    in_world(tmp_path, story)


def test_a_tick_that_jitter_delays_is_the_next_one(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 6 * * *", jitter_s=3_000.0, overlap="allow")
        late = module.delay_of("p", 3_000.0)
        assert late > 60
        await world.pass_time(6 * HOUR + 60)
        assert world.ticks() == []
        await world.write(world.agenda.fire_next, "p", "me")
        await world.pass_time(2 * DAY)
        await world.finish_all()
        assert world.ticks()[:2] == [6, 30]

    in_world(tmp_path, story)


def test_now_means_no_tick_of_the_past(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 6 * * *")
        await world.write(world.agenda.pause, "", "test", "me")
        await world.pass_time(3 * DAY)
        fired = await world.write(world.agenda.fire_next, "p", "me")
        assert fired["scheduled_for"] == module.rfc3339(MONDAY + 3 * DAY + 6 * HOUR)

    in_world(tmp_path, story)


def test_a_small_step_back_does_not_end_the_run_that_has_just_begun(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 * * * *", overlap="cancel_running")
        await world.pass_time(HOUR)
        ((run_id,),) = world.rows("SELECT run_id FROM runs")
        await world.write(world.store.move, run_id, "running")
        world.clock.run(1)
        world.note_look()
        world.clock.step(-3)
        await world.look()
        await world.pass_time(60)
        assert world.runner.stopped == []
        assert world.ticks() == [1]

    in_world(tmp_path, story)


def test_what_waits_keeps_its_time_when_a_clock_that_was_never_set_is_set(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.deploy("q", queue_timeout=600.0)
        await world.write(world.store.add_run, "q", {}, None, "manual", "me")
        world.end()
        world.clock.wall = 60.0
        await world.begin()
        world.clock.step(MONDAY + 60 - world.clock.wall)
        await world.look()
        assert world.rows("SELECT expires_at FROM runs") == [(module.rfc3339(MONDAY + 600),)]

    in_world(tmp_path, story)


def test_an_edit_of_params_leaves_a_tick_that_has_its_run(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 6 * * *")
        await world.write(world.agenda.fire_next, "p", "me")
        await world.set("p", cron="0 6 * * *", params={"limit": 5})
        (row,) = world.rows("SELECT next_at FROM schedules WHERE pipeline = 'p'")
        assert row == (module.rfc3339(MONDAY + DAY + 6 * HOUR),)

    in_world(tmp_path, story)


def test_what_is_disabled_follows_no_upstream(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.deploy("down", after=["p"])
        await world.set("down", enabled=False)
        run_id = (await world.write(world.store.add_run, "p", {}, None, "manual", "me"))[0]
        await world.write(world.finish, run_id)
        assert world.ticks("down") == []
        assert [event["reason"] for event in world.events("chain.skipped")] == ["disabled"]

    in_world(tmp_path, story)


def test_a_pause_does_not_come_again_when_the_clock_is_set_back(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.write(world.agenda.pause, "", "test", "me")
        await world.pass_time(2 * HOUR)
        await world.write(world.agenda.pause, "", None, "me")
        world.clock.step(-HOUR)
        await world.look()
        await world.set("p", cron="*/30 * * * *", overlap="allow")
        await world.pass_time(HOUR)
        assert world.ticks() == [1.5, 2]

    in_world(tmp_path, story)


def test_an_interval_keeps_its_distance_when_the_clock_is_set_back(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", every_s=600, overlap="allow")
        await world.pass_time(HOUR)
        world.clock.step(-HOUR)
        await world.look()
        await world.pass_time(HOUR)
        assert len(world.ticks()) == 11
        assert len({*world.ticks()}) == 11
        world.clock.step(-90)
        await world.look()
        await world.pass_time(HOUR)
        assert len({*world.ticks()}) == 17

    in_world(tmp_path, story)


def test_a_clock_that_was_never_set_decides_nothing(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", every_s=60)
        world.clock.step(-world.clock.wall + 1_000)
        await world.look()
        await world.pass_time(HOUR)
        assert world.ticks() == []
        world.clock.step(MONDAY + 2 * HOUR - world.clock.wall)
        await world.look()
        assert world.ticks() == [2]
        assert len(world.events("clock.unset")) == 1

    in_world(tmp_path, story)


def test_a_clock_that_starts_at_1970_decides_nothing_until_it_is_set(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 * * * *", misfire="all")
        await world.pass_time(HOUR + 60)
        world.end()
        world.clock.wall = 60.0  # no battery: the machine was switched on a minute ago
        await world.begin()
        for _ in range(3):
            await world.look()
            world.clock.run(600)
        assert world.ticks() == [1]
        (told,) = world.events("clock.unset")
        assert told["at"].startswith("1970-01-01")
        world.clock.step(MONDAY + 3 * HOUR + 60 - world.clock.wall)
        await world.look()
        assert world.ticks() == [1, 2, 3]
        causes = [event.get("cause", {}).get("what") for event in world.events("tick.fired")]
        assert causes[1:] == ["clock_set_forward", "clock_set_forward"]

    in_world(tmp_path, story)


def test_a_leap_second_is_nothing_whether_stepped_or_smeared(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="* * * * *", overlap="allow")
        await world.pass_time(3 * 60 - 1)
        for step in (0.0, -1.0, 0.5, -0.5, 1.0):
            world.clock.step(step)
            world.clock.run(1)
            await world.look()
        await world.pass_time(120)
        assert [round(tick * 60) for tick in world.ticks()] == [1, 2, 3, 4, 5]
        assert world.events("clock.set_back", "scheduler.gap") == []

    in_world(tmp_path, story)


def write_zone(folder: Path, hours: int) -> None:
    """A time zone `Here/There`, so many hours east (tzfile(5), version 1)."""
    counts = [0, 0, 0, 0, 1, 4]  # one type, whose name has four bytes
    head = b"TZif" + bytes(16) + b"".join(count.to_bytes(4, "big") for count in counts)
    (folder / "Here").mkdir(exist_ok=True)
    (folder / "Here" / "There").write_bytes(head + (hours * 3600).to_bytes(4, "big") + bytes(2) + b"XST\0")


def test_a_time_zone_that_changes_moves_what_is_due(tmp_path: Path) -> None:
    zones = tmp_path / "zones"
    zones.mkdir()
    before = zoneinfo.TZPATH

    async def story(world: World) -> None:
        write_zone(zones, 0)
        zoneinfo.reset_tzpath([zones])
        for name in ("p", "q"):
            await world.set(name, cron="0 6 * * *", timezone="Here/There")
        write_zone(zones, 2)  # the country has moved its clocks, and the system has new data
        await world.pass_time(HOUR)
        await world.write(world.agenda.refresh, int(world.clock.wall))  # what is done each day
        await world.pass_time(3 * HOUR)
        assert (world.ticks("p"), world.ticks("q")) == ([4], [4])
        write_zone(zones, 3)
        world.end()
        await world.begin()  # and at each start
        await world.finish_all()
        await world.pass_time(DAY + 2 * HOUR)
        assert world.ticks("p") == [4, 27]

    async def two(world: World) -> None:
        await world.deploy("q")
        await story(world)

    try:
        in_world(tmp_path, two)
    finally:
        zoneinfo.reset_tzpath(before)
        zoneinfo.ZoneInfo.clear_cache()


def test_a_daemon_that_was_down_says_from_when_until_when(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 6 * * *")
        await world.pass_time(5 * HOUR)
        world.end()
        world.clock.run(3 * HOUR)
        await world.begin()
        await world.look()
        assert world.ticks() == [6]
        cause = world.events("tick.fired")[0]["cause"]
        assert (cause["what"], cause["from"][11:16], cause["until"][11:16]) == ("daemon_down", "05:00", "08:00")

    in_world(tmp_path, story)


def test_a_kill_before_the_commit_changes_nothing(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 6 * * *")
        await world.pass_time(5 * HOUR + 3_590)
        world.clock.run(12)
        world.kill_next = True
        with pytest.raises(Killed):
            await world.look()
        world.kill_next = False
        assert world.ticks() == []
        world.end()
        await world.begin()
        await world.look()
        await world.look()
        assert world.ticks() == [6]
        assert len(world.events("tick.fired")) == 1

    in_world(tmp_path, story)


def test_edits_pauses_and_disabling_move_the_watermark_to_now(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 * * * *", misfire="all")
        for stop, go in (
            (
                lambda: world.write(world.agenda.pause, "p", "test", "me"),
                lambda: world.write(world.agenda.pause, "p", None, "me"),
            ),
            (
                lambda: world.write(world.agenda.pause, "", "test", "me"),
                lambda: world.write(world.agenda.pause, "", None, "me"),
            ),
            (
                lambda: world.set("p", False, cron="0 * * * *", misfire="all"),
                lambda: world.set("p", True, cron="0 * * * *", misfire="all"),
            ),
        ):
            before = len(world.ticks())
            await stop()
            await world.pass_time(3 * HOUR + 60)
            assert len(world.ticks()) == before
            await go()
            await world.look()
            assert len(world.ticks()) == before
            await world.pass_time(HOUR)
            assert len(world.ticks()) == before + 1
            await world.finish_all()
        skipped = world.events("tick.skipped")
        assert [one["reason"] for one in skipped] == ["paused", "paused", "disabled"]
        assert [one["ticks"] for one in skipped] == [3, 3, 3]
        await world.set("p", cron="30 * * * *")
        await world.pass_time(HOUR)
        assert world.ticks()[-1] % 1 == 0.5

    in_world(tmp_path, story)


def test_a_tick_that_is_undecided_when_its_schedule_is_edited_is_told(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 * * * *")
        world.clock.run(2 * HOUR + 60)
        await world.set("p", cron="30 * * * *")
        await world.look()
        assert world.ticks() == []
        (skipped,) = world.events("tick.skipped")
        assert (skipped["reason"], skipped["ticks"]) == ("edited", 2)

    in_world(tmp_path, story)


def test_overlapping_ticks_wait_are_skipped_or_take_over(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        for name, overlap in (("s", "skip"), ("q", "queue"), ("c", "cancel_running"), ("a", "allow")):
            await world.deploy(name, overlap=overlap)
            await world.set(name, every_s=HOUR)
        await world.pass_time(HOUR)
        assert len(await world.write(world.store.admit, 10, {})) == 4
        await world.pass_time(2 * HOUR)
        assert [len(world.ticks(name)) for name in "sqca"] == [1, 3, 3, 3]
        skipped = world.events("tick.skipped")
        assert [one["pipeline"] for one in skipped] == ["s", "s"]
        assert skipped[0]["run_id"] is None
        run_id = json.loads(world.rows("SELECT data FROM events WHERE type = 'tick.skipped'")[0][0])["run_id"]
        assert world.rows("SELECT pipeline, status FROM runs WHERE run_id = ?", run_id) == [("s", "running")]
        # Queued ticks wait until the one before has ended; so does the one that takes over.
        assert {job["pipeline"] for job in await world.write(world.store.admit, 10, {})} == {"a"}
        statuses = world.rows("SELECT status FROM runs WHERE pipeline = 'c' ORDER BY run_id")
        assert statuses == [("running",), ("cancelled",), ("queued",)]
        assert {*world.runner.stopped} == {world.rows("SELECT min(run_id) FROM runs WHERE pipeline = 'c'")[0][0]}
        (told,) = world.events("run.cancelling")
        assert (told["actor"], {told["data"]["run_id"]}) == ("scheduler", {*world.runner.stopped})

    in_world(tmp_path, story)


def test_a_pipelines_limit_holds_and_holds_up_nobody_else(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.deploy("one", max_concurrent=1)
        await world.deploy("other")
        for _ in range(module.PASSED_MAX + 150):
            await world.write(world.store.add_run, "one", {}, None, "manual", "me")
        for _ in range(3):
            await world.write(world.store.add_run, "other", {}, None, "manual", "me")
        admitted = [job["pipeline"] for job in await world.write(world.store.admit, 5, {})]
        assert admitted == ["one", "other"]
        assert [job["pipeline"] for job in await world.write(world.store.admit, 5, {})] == ["other"]
        assert [job["pipeline"] for job in await world.write(world.store.admit, 5, {})] == ["other"]
        assert await world.write(world.store.admit, 5, {}) == []
        (live,) = world.rows("SELECT run_id FROM runs WHERE pipeline = 'one' AND status = 'running'")
        await world.write(world.finish, live[0])
        assert [job["pipeline"] for job in await world.write(world.store.admit, 5, {})] == ["one"]

    in_world(tmp_path, story)


def test_chains_run_when_all_they_come_after_have_succeeded(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.deploy("a", "b")
        await world.deploy("both", after=["a", "b"])
        await world.deploy("first", after=["a"])

        async def succeed(name: str, status: str = "success") -> str:
            run_id = str((await world.write(world.store.add_run, name, {}, None, "manual", "me"))[0])
            await world.write(world.finish, run_id, status)
            return run_id

        def chained(name: str) -> list[dict[str, str]]:
            return [json.loads(text) for (text,) in world.rows("SELECT upstream FROM runs WHERE pipeline = ?", name)]

        await succeed("a", "failed")
        assert chained("first") == []
        one = await succeed("a")
        two = await succeed("a")
        assert chained("first") == [{"a": one}, {"a": two}]
        assert chained("both") == []
        three = await succeed("b")
        assert chained("both") == [{"a": two, "b": three}]
        await succeed("b")
        assert len(chained("both")) == 1
        assert world.rows("SELECT DISTINCT trigger FROM runs WHERE pipeline = 'both'") == [("chain",)]
        await world.write(world.agenda.pause, "both", "test", "me")
        await succeed("a")
        assert len(chained("both")) == 1
        assert [event["reason"] for event in world.events("chain.skipped")] == ["paused"]

    in_world(tmp_path, story)


def test_failures_in_a_row_pause_a_pipeline_until_it_is_resumed(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.deploy("p", pause_after_failures=3)
        await world.set("p", every_s=60)
        for status in ("failed", "failed", "success", "lost", "failed", "failed"):
            await world.pass_time(60)
            await world.finish_all(status)
        (paused,) = world.events("pipeline.paused")
        assert paused["reason"] == "3 failures in a row"
        await world.pass_time(HOUR)
        assert len(world.ticks()) == 6
        await world.write(world.agenda.pause, "p", None, "me")
        for _ in range(2):
            await world.pass_time(60)
            await world.finish_all("failed")
        assert not world.agenda.sql.pause("p")
        await world.pass_time(60)
        await world.finish_all("failed")
        assert world.agenda.sql.pause("p")

    in_world(tmp_path, story)


def test_an_overdue_success_is_told_once_also_after_a_downtime(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.deploy("p", expect_success_within=25 * 3600.0)
        await world.pass_time(20 * HOUR)
        run_id = (await world.write(world.store.add_run, "p", {}, None, "manual", "me"))[0]
        await world.write(world.finish, run_id)
        await world.pass_time(24 * HOUR)
        assert world.events("success.overdue") == []
        world.end()
        world.clock.run(30 * HOUR)
        await world.begin()
        await world.pass_time(60 * HOUR)
        (overdue,) = world.events("success.overdue")
        assert overdue["last_success_at"][:13] == "2026-06-01T20"
        run_id = (await world.write(world.store.add_run, "p", {}, None, "manual", "me"))[0]
        await world.write(world.finish, run_id)
        await world.pass_time(26 * HOUR)
        assert len(world.events("success.overdue")) == 2

    in_world(tmp_path, story)


def test_a_daemon_that_could_not_look_says_so(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 * * * *")
        await world.pass_time(HOUR - 5)
        world.clock.run(60)
        await world.look()
        assert [gap["cause"] for gap in world.events("scheduler.gap")] == ["daemon_busy"]
        assert world.events("tick.fired")[0]["cause"]["what"] == "daemon_busy"

    in_world(tmp_path, story)


def test_what_is_due_and_cannot_be_done_is_not_asked_for_without_a_pause(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 * * * *")
        await world.write(world.agenda.pause, "", "test", "me")
        world.clock.run(HOUR)
        _, due_at = await world.write(world.scheduler.admit)
        assert due_at is None  # until everything is resumed
        run_id = (await world.write(world.store.add_run, "p", {}, None, "manual", "me"))[0]
        world.store.move(run_id, "running")
        world.store.move(run_id, "retrying", retry_at=module.rfc3339(world.clock.wall + 60))
        assert (await world.write(world.scheduler.admit))[1] == world.clock.wall + 60
        world.clock.run(60)
        assert (await world.write(world.scheduler.admit))[1] is None  # until there is a slot
        await world.write(world.agenda.pause, "", None, "me")
        await world.set("p", cron="*/10 * * * *")
        world.clock.run(HOUR)
        assert (await world.write(world.scheduler.admit))[1] is not None
        world.runner.paused = True  # taud waits for live runs before it ends
        assert (await world.write(world.scheduler.admit))[1] is None

    in_world(tmp_path, story)


def test_what_the_clock_did_is_told_although_the_first_commit_after_it_fails(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 * * * *")
        world.clock.sleep(2 * HOUR + 60)
        world.kill_next = True
        with pytest.raises(Killed):
            await world.look()
        world.kill_next = False
        await world.look()
        assert [gap["cause"] for gap in world.events("scheduler.gap")] == ["suspended"]
        assert world.events("tick.fired")[0]["cause"]["what"] == "suspended"

    in_world(tmp_path, story)


def test_a_time_zone_that_the_system_has_lost_stops_nobody_else(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.deploy("lost")
        await world.set("p", cron="0 * * * *")
        await world.set("lost", cron="0 * * * *", timezone="Europe/London")
        world.store.db.execute("UPDATE schedules SET options = replace(options, 'Europe/London', 'Atlantis/Town')")
        await world.pass_time(2 * HOUR)
        assert (world.ticks("p"), world.ticks("lost")) == ([1], [])
        (broken,) = world.events("schedule.broken")
        assert (broken["pipeline"], broken["message"]) == ("lost", "there is no time zone 'Atlantis/Town'")

    in_world(tmp_path, story)


def test_a_scheduler_that_is_closed_ends_whatever_comes_at_the_same_moment(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        for turns in range(40):
            world.end()
            world.open()
            del world.store.write  # the writer's own thread does it
            world.store.database.on_commit = lambda run_ids, *due: world.scheduler.begin(*due)
            world.scheduler.open()
            for turn in range(turns % 8):
                await asyncio.sleep(0)
                if turn == turns % 3:
                    world.store.database.ring()
            world.store.database.ring()
            await asyncio.wait_for(world.scheduler.close(), 10)
            assert world.scheduler.timer is None or world.scheduler.timer.cancelled()

    in_world(tmp_path, story)


# Two simulated years.

ZONES = (
    *("UTC", "America/New_York", "Europe/London", "Australia/Lord_Howe", "Asia/Kolkata", "America/Santiago"),
    *("Africa/Casablanca", "Pacific/Chatham", "Antarctica/Troll"),
)
#: So many schedules share a world; TAU_SIMULATION=full simulates eight of them, a process each.
WORLD = 25 if THOROUGH or "TAU_SIMULATION" in os.environ else 5
SCHEDULES = 8 * WORLD if os.environ.get("TAU_SIMULATION") == "full" else WORLD
YEARS_S = 730 * DAY
SEED = int(os.environ.get("TAU_SEED", "20260101"))


class Regime:
    """A schedule while nobody changed it: its ticks after *begin* until *end*, decided by certain ledger entries."""

    def __init__(self, times: module.Times | None, begin: int, seq: int) -> None:
        self.times, self.begin, self.seq = times, begin, seq
        self.end, self.last_seq = begin, seq

    def close(self, end: int, seq: int) -> None:
        """It has ended."""
        self.end, self.last_seq = end, seq


class Simulation(World):
    """Many schedules, a clock that jumps, a daemon that dies, people who edit and pause, runs that are slow."""

    def __init__(self, home: Path, seed: int, count: int) -> None:
        super().__init__(home, MONDAY)
        self.random = random.Random(seed)
        self.names = [f"p{n}" for n in range(count)]
        self.regimes: dict[str, list[Regime]] = {name: [] for name in self.names}
        self.ends: list[tuple[float, str]] = []  # when runs end, by elapsed time
        self.paused: set[str] = set()
        self.disabled: set[str] = set()
        self.live: dict[str, str] = {}  # run → its pipeline
        self.doomed = False  # whether the daemon dies before it commits what it decides next

    def timing(self) -> dict[str, Any]:
        """When something is due, about a thousand times in two years."""
        pick, zone = self.random, {"timezone": self.random.choice(ZONES)}
        minute, hour = pick.randrange(60), pick.randrange(24)
        days = ",".join(map(str, sorted(pick.sample(range(7), 3))))
        return pick.choice(
            [
                {"cron": f"{minute} {hour} * * *", **zone},
                {"cron": f"{minute} {hour},{(hour + 9) % 24} * * *", **zone},
                {"cron": f"*/30 {pick.randrange(4)} * * *", **zone},
                {"cron": f"{minute} */8 * * {days}", **zone},
                {"cron": f"{minute},{(minute + 30) % 60} 0-1 1,15 * {days}", **zone},
                {"cron": f"{minute} {hour} */2 * 1-5", **zone},
                {"cron": f"*/20 {hour} * * {days}", **zone},
                {"every_s": pick.choice([4 * HOUR, 5 * HOUR, 7 * HOUR + 7, DAY])},
                {"cron": f"{minute} */5 * * *", **zone},
            ]
        )

    def command(self) -> dict[str, Any]:
        """A schedule as somebody may set it."""
        pick = self.random
        policies = {
            "misfire": pick.choice(module.MISFIRES),
            "overlap": pick.choice(module.OVERLAPS),
            "catchup_window_s": pick.choice([600.0, 86_400.0, 864_000.0]),
            "jitter_s": pick.choice([0.0, 0.0, 30.0]),
        }
        return self.timing() | policies

    def seq(self) -> int:
        """The last entry of the ledger."""
        return int(self.rows("SELECT coalesce(max(seq), 0) FROM events")[0][0])

    def turn(self, name: str, before: dict[str, Any]) -> None:
        """The schedule of a pipeline is another one from here; *before* is its row until now."""
        row, seq = self.agenda.row(name), self.seq()
        if self.regimes[name] and all(row[key] == before[key] for key in ("options", "watermark_at")):
            return
        if self.regimes[name]:
            self.regimes[name][-1].close(max(module.instant_of(before["watermark_at"]), int(self.clock.wall)), seq)
        times = module.times_of(
            row["options"], module.instant_of(row["anchor_at"]), module.Zone(row["options"]["timezone"] or "UTC")
        )
        self.regimes[name].append(Regime(times, module.instant_of(row["watermark_at"]), seq))

    async def edit(self, name: str) -> None:
        """Somebody sets another schedule, enables or disables it."""
        before, enabled = self.agenda.row(name), self.random.random() < 0.8
        await self.set(name, enabled, **(self.command() if self.random.random() < 0.7 else before["command"]))
        (self.disabled.discard if enabled else self.disabled.add)(name)
        self.turn(name, before)

    async def toggle_pause(self, name: str) -> None:
        """Somebody pauses a pipeline or everything (''), or resumes it."""
        before = self.agenda.row(name)
        if name in self.paused:
            await self.write(self.agenda.pause, name, None, "me")
            self.paused.discard(name)
        else:
            await self.write(self.agenda.pause, name, "test", "me")
            self.paused.add(name)
        if name:
            self.turn(name, before)

    async def restart(self, down: float) -> None:
        """The daemon ends, and another begins."""
        self.end()
        self.clock.run(down)
        await self.begin()

    async def step_clock(self, seconds: float) -> None:
        """Somebody sets the clock, and the scheduler sees it."""
        rows = {name: self.agenda.row(name) for name in self.names}
        self.clock.step(seconds)
        await self.look()
        for name, before in rows.items():
            if self.agenda.row(name)["anchor_at"] != before["anchor_at"]:
                self.regimes[name][-1].close(module.instant_of(before["watermark_at"]), self.seq())
                row = self.agenda.row(name)
                times = module.times_of(
                    row["options"],
                    module.instant_of(row["anchor_at"]),
                    module.Zone(row["options"]["timezone"] or "UTC"),
                )
                first = times.next(module.instant_of(row["anchor_at"])) if times else None
                begin = (first[0] if first else 0) - 1
                self.regimes[name].append(Regime(times, begin, self.seq_of_step()))

    def seq_of_step(self) -> int:
        """The ledger entry that says that the clock was set back."""
        return int(self.rows("SELECT max(seq) FROM events WHERE type = 'clock.set_back'")[0][0])

    async def incident(self) -> None:
        """Something happens."""
        pick, name = self.random, self.random.choice(self.names)
        kind = pick.randrange(20)
        if kind < 5:
            await self.edit(name)
        elif kind < 10:
            await self.toggle_pause(name)
        elif kind == 10 or "" in self.paused:
            await self.toggle_pause("")
        elif kind < 13:
            await self.restart(pick.choice([0.5, 5, 60, HOUR, DAY]) * pick.random())
        elif kind < 15:
            self.doomed = True
        elif kind < 17:
            self.clock.sleep(pick.choice([30, HOUR, DAY]) * pick.random())
            await self.look()
        elif kind == 17:
            await self.step_clock(pick.choice([5, HOUR, DAY]) * pick.random() + 2)
        else:
            await self.step_clock(-pick.choice([5, HOUR, 3 * HOUR]) * pick.random() - 2)

    async def look(self) -> None:
        """What the scheduler does when it wakes, and the runner after it; a kill is survived."""
        self.kill_next = self.doomed
        try:
            await super().look()
            self.kill_next = False
        except Killed:
            self.kill_next = self.doomed = False
            await self.restart(self.random.choice([0.2, 2, 30]))
        for run_id in self.runner.stopped:
            heapq.heappush(self.ends, (self.clock.gone + 1, run_id))
        self.runner.stopped.clear()
        if self.store.ask.totals()["queued"]:
            await self.write(self.admit)

    def admit(self) -> None:
        """Queued runs begin as far as they may; none of them where it must not."""
        for row in self.store.choose(20, self.store.look()):
            name, run_id = row["pipeline"], row["run_id"]
            assert row["overlap"] == "allow" or name not in self.live.values(), name
            self.store.move(run_id, "running")
            self.live[run_id] = name
            took = self.random.choice([5, 60, 300, 300, 300, 300, 2 * HOUR, DAY]) * self.random.random()
            heapq.heappush(self.ends, (self.clock.gone + took, run_id))

    def end_runs(self) -> None:
        """Runs whose time has come have ended."""
        while self.ends and self.ends[0][0] <= self.clock.gone:
            _, run_id = heapq.heappop(self.ends)
            if self.live.pop(run_id, None) is not None:
                self.finish(run_id, "success" if self.random.random() < 0.9 else "failed")

    async def run(self, seconds: float, incidents: int) -> None:
        """The whole story."""
        for begin in range(0, len(self.names), 50):
            await self.deploy(*self.names[begin : begin + 50])
        for name in self.names:
            await self.edit(name)
        happens = sorted(self.random.uniform(0, seconds) for _ in range(incidents))
        for at in [*happens, seconds]:
            await self.wait(at)
            if at < seconds:
                await self.incident()
        for name in self.names:
            regime = self.regimes[name][-1]
            regime.close(module.instant_of(self.agenda.row(name)["watermark_at"]), self.seq())

    async def wait(self, until: float) -> None:
        """Elapsed time passes, with a look when something is due."""
        while self.clock.gone < until:
            due = self.agenda.next_due(self.clock.wall)
            wait = until - self.clock.gone
            if due is not None:
                wait = min(wait, max(due - self.clock.wall, 0.01))
            self.clock.run(wait)
            if self.ends and self.ends[0][0] <= self.clock.gone:
                await self.write(self.end_runs)
            self.note_look()
            await self.look()

    # What must be true in the end.

    def check(self) -> int:
        """Every tick has one decision, and ledger and runs agree; how many ticks there were."""
        decisions = self.events("tick.fired", "tick.skipped", "tick.missed", "tick.dropped")
        runs = {
            run_id: (name, tick) for run_id, name, tick in self.rows("SELECT run_id, pipeline, scheduled_for FROM runs")
        }
        fired = {
            one["run_id"]: (one["pipeline"], one["scheduled_for"]) for one in decisions if one["type"] == "tick.fired"
        }
        assert fired == runs
        assert len({*fired.values()}) == len(fired)
        of_pipeline: dict[str, list[dict[str, Any]]] = {name: [] for name in self.names}
        for one in decisions:
            of_pipeline[one["pipeline"]].append(one)
        return sum(
            self.check_regime(name, regime, of_pipeline[name]) for name in self.names for regime in self.regimes[name]
        )

    def check_regime(self, name: str, regime: Regime, decisions: list[dict[str, Any]]) -> int:
        """The ticks of a regime are decided once each, by its decisions and by nothing else."""
        if regime.times is None:
            return 0
        ticks = [at for at, _ in regime.times.ticks(regime.begin, regime.end)]
        decided = dict.fromkeys(ticks, 0)
        for one in decisions:
            if not regime.seq < one["seq"] <= regime.last_seq:
                continue
            last = module.instant_of(one["scheduled_for"])
            first = module.instant_of(one["data"].get("from", one["scheduled_for"]))
            begin, end = bisect.bisect_left(ticks, first), bisect.bisect_right(ticks, last)
            assert ticks[begin] == first, (name, one)
            assert ticks[end - 1] == last, (name, one)
            assert one["data"].get("ticks", 1) == end - begin or one["data"].get("at_least"), (name, one)
            for at in ticks[begin:end]:
                decided[at] += 1
        wrong = {module.rfc3339(at): count for at, count in decided.items() if count != 1}
        assert not wrong, (name, module.rfc3339(regime.begin), module.rfc3339(regime.end), wrong)
        return len(ticks)


def simulate(home: Path, seed: int, count: int) -> int:
    """Two years of so many schedules, checked; how many ticks there were."""

    async def told() -> int:
        world = Simulation(home, seed, count)
        await world.begin()
        try:
            await world.run(YEARS_S, 4 * count)
            return world.check()
        finally:
            world.end()

    return asyncio.run(told())


def test_two_years_with_everything_that_can_happen(tmp_path: Path) -> None:
    homes = [tmp_path / str(n) for n in range(SCHEDULES // WORLD)]
    for home in homes:
        home.mkdir()
    if len(homes) == 1:
        ticks = simulate(homes[0], SEED, WORLD)
    else:
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            seeds = range(SEED, SEED + len(homes))
            ticks = sum(pool.map(simulate, homes, seeds, [WORLD] * len(homes)))
    print(f"seed {SEED}: {ticks:,} ticks of {SCHEDULES} schedules")
    assert ticks > SCHEDULES * 500


# As users see it.

HELLO = "from tau import pipeline\n@pipeline\ndef {name}(ctx):\n    return str(ctx.scheduled_for)\n"


def hello(tau: Tau, name: str) -> str:
    """A deployed pipeline that says when it was due."""
    if name not in {one["name"] for one in tau.call("list", limit=module.LIST_MAX)["pipelines"]}:
        tau.deploy(HELLO.format(name=name), f"{name}.py")
    return name


def test_a_schedule_is_set_shown_disabled_and_cleared(tau: Tau) -> None:
    name = hello(tau, "sched_story")
    nothing = tau("schedule", name)
    assert (nothing["source"], nothing["kind"], nothing["ticks"], nothing["changed"]) == (None, None, [], False)
    set_ = tau("schedule", name, "30 2 8 3 *", "--timezone", "America/New_York", "--overlap", "queue", "--jitter", "1m")
    assert (set_["source"], set_["cron"], set_["kind"]) == ("command line", "30 2 8 3 *", "fixed")
    assert (set_["overlap"], set_["jitter_s"], set_["timezone"], set_["changed"]) == (
        "queue",
        60.0,
        "America/New_York",
        True,
    )
    assert len(set_["ticks"]) == len(set_["local"]) == 5
    skipped = [local for local, moved in zip(set_["local"], set_["moved"], strict=True) if moved]
    assert all(local[11:16] == "03:00" for local in skipped)
    assert not tau("schedule", name, "30 2 8 3 *", "--timezone", "America/New_York")["changed"]
    assert tau("schedule", name, "--disable")["next_at"] is None
    assert tau("why", name)["held"][0]["by"] == "disabled"
    assert tau("schedule", name, "--enable")["next_at"] == set_["next_at"]
    shown = tau("show", name)["schedule"]
    assert (shown["source"], shown["next_at"]) == ("command line", set_["next_at"])
    assert tau("schedule", name, "--clear")["source"] is None
    assert tau("show", name)["schedule"] is None


def test_the_decorator_holds_until_the_command_line_says_otherwise(tau: Tau) -> None:
    text = (
        "from tau import pipeline\n@pipeline(schedule='0 6 * * *', timezone='Asia/Kolkata')\ndef decorated(ctx): ...\n"
    )
    tau.deploy(text)
    assert tau("show", "decorated")["schedule"]["source"] == "decorator"
    assert tau("schedule", "decorated")["ticks"][0][11:16] == "00:30"
    assert tau("schedule", "decorated", "--every", "1h30m")["every_s"] == 5_400
    tau.deploy(text.replace("0 6", "0 7"))
    assert tau("schedule", "decorated")["every_s"] == 5_400
    cleared = tau("schedule", "decorated", "--clear")
    assert (cleared["source"], cleared["cron"]) == ("decorator", "0 7 * * *")
    assert tau("deploy", tau.write(text), "--schedule", "0 8 * * *")["changed"]
    assert tau("schedule", "decorated")["cron"] == "0 8 * * *"
    tau("undeploy", "decorated")
    assert tau("schedule", "decorated", exit=3)["code"] == "not_found"


def test_several_expressions_and_bounds_are_one_schedule(tau: Tau) -> None:
    text = (
        "import datetime\nfrom tau import pipeline\n"
        "@pipeline(schedule=['0 6 * * *', '30 18 * * *', '0 6 1 * *'], start='2090-01-01', end='2090-01-03T06:00',"
        " timezone='Asia/Kolkata')\ndef twice(ctx): ...\n"
        "@pipeline(every='1h', start=datetime.datetime(2090, 1, 1, 0, 10), end='2090-01-01T02:10:00.999Z')\n"
        "def counted(ctx): ...\n"
    )
    tau.deploy(text)
    shown = tau("schedule", "twice")
    assert shown["cron"] == "0 6 * * * | 30 18 * * * | 0 6 1 * *"
    days = ("01T06:00", "01T18:30", "02T06:00", "02T18:30", "03T06:00")
    assert shown["local"] == [f"2090-01-{day}:00+05:30" for day in days]
    assert tau("schedule", "counted")["ticks"] == [f"2090-01-01T0{hour}:10:00.000Z" for hour in range(3)]
    assert tau("ticks", "0 6 * * * | 5 6 * * *", "--after", "2026-01-01")["ticks"][1] == "2026-01-01T06:05:00.000Z"
    # What the command line says of when replaces all that the decorator says of it.
    words = ("schedule", "twice", "0 7 * * * | 0 8 * * *", "--start", "2091-01-01T07:30", "--timezone", "UTC")
    assert [at[:13] for at in tau(*words)["ticks"][:2]] == ["2091-01-01T08", "2091-01-02T07"]
    assert tau("schedule", "twice", "--end", "2091-01-01T08:00")["ticks"] == ["2091-01-01T08:00:00.000Z"]
    once = tau("schedule", "twice", "0 8 * * *", "--start", "2091-01-01T08:00", "--end", "2091-01-01T08:00")
    assert once["ticks"] == ["2091-01-01T08:00:00.000Z"]
    assert tau("schedule", "twice", "0 9 * * *")["end"] is None
    assert "never be due" in tau("schedule", "twice", "0 9 * * *", "--end", "2026-01-01", exit=2)["message"]
    assert tau("schedule", "twice", "--clear")["local"] == shown["local"]
    for wrong in (
        "start='soon'",
        "end=7",
        "schedule=['0 6 * * *', 7]",
        "schedule=['0 6 * * *', '61 * * * *']",
        "schedule=[]",
    ):
        assert tau.deploy(f"from tau import pipeline\n@pipeline({wrong})\ndef f(ctx): ...\n", exit=2)["hint"], wrong
    for name in ("twice", "counted"):
        tau("undeploy", name)


def test_while_all_is_paused_nothing_is_next_or_late(fresh: Tau) -> None:
    text = "from tau import pipeline\n@pipeline(every='1h')\ndef waits(ctx): ...\n"
    fresh.deploy(text)
    assert fresh("list")["pipelines"][0]["next_at"]
    fresh("pause", "--all")
    again = fresh.deploy(text + "# another\n")["pipelines"][0]
    assert (
        again["next_at"] is fresh("list")["pipelines"][0]["next_at"] is fresh("status")["scheduler"]["next_at"] is None
    )
    seen = fresh.call("watch")
    assert (seen["ticks"], seen["late"]) == ([], [])
    assert fresh.call("calendar")["pipelines"][0]["coming"] == []
    fresh("resume", "--all")
    assert fresh("list")["pipelines"][0]["next_at"]


def test_a_time_of_a_new_schedule_is_in_its_own_zone(tau: Tau) -> None:
    tau.deploy(
        "from tau import pipeline\n@pipeline(schedule='0 6 * * *', timezone='Europe/Berlin')\ndef zoned(ctx): ...\n"
    )
    for _ in range(2):
        assert tau("schedule", "zoned", "--at", "2099-01-01T06:00")["next_at"] == "2099-01-01T06:00:00.000Z"
    tau("undeploy", "zoned")


def test_a_deployment_says_that_it_changes_a_schedule(tau: Tau) -> None:
    path = tau.write("from tau import pipeline\n@pipeline\ndef timed(ctx): ...\n", "timed.py")
    said = [tau("deploy", path, "--schedule", cron)["changed"] for cron in ("@daily", "@daily", "@hourly", "@hourly")]
    assert said == [True, False, True, False]
    tau("undeploy", "timed")


def test_why_tells_of_a_backfill_and_of_a_success_that_was_passed_over(fresh: Tau) -> None:
    fresh.deploy(
        "from tau import pipeline\n@pipeline(schedule='@hourly')\ndef first(ctx): ...\n"
        "@pipeline(after=['first'])\ndef second(ctx): ...\n"
    )
    begin = module.rfc3339((time.time() // 3600 - 2) * 3600)
    (row,) = fresh("backfill", "first", "--from", begin, "--to", begin)["runs"]
    fresh("wait", row["run_id"])
    told = fresh("why", "first", "--at", begin)
    assert f"{row['run_id']} (backfill): success" in told["answer"]
    eventually(lambda: fresh("runs", "second")["total"] == 1)
    assert "(chain)" in fresh("why", "second")["answer"]
    fresh("pause", "second")
    fresh("run", "first")
    eventually(lambda: "was passed over (paused)" in fresh("why", "second")["answer"])
    assert "Nothing ran: the success of first at " in fresh("why", "second")["answer"]
    again = fresh("backfill", "first", "--from", begin, "--to", begin)
    assert (again["runs"], again.get("hint")) == ([], None)


def test_now_fires_the_next_tick_as_that_tick_and_once(tau: Tau) -> None:
    name = hello(tau, "early")
    assert "no tick to come" in tau("schedule", name, "--now", exit=2)["message"]
    tick = tau("schedule", name, "0 6 * * *")["next_at"]
    fired = tau("schedule", name, "--now")
    assert (fired["scheduled_for"], fired["changed"], fired["next_at"] > tick) == (tick, True, True)
    ended = tau("wait", fired["run_id"])
    assert (ended["trigger"], ended["scheduled_for"]) == ("schedule", tick)
    again = tau("schedule", name, "--now")
    assert (again["run_id"], again["changed"]) == (fired["run_id"], False)
    at = tau("why", name, "--at", tick)
    assert (at["tick"]["decision"], at["tick"]["run_id"]) == ("fired", fired["run_id"])
    assert f"The tick of {tick} has run {fired['run_id']}: success." in at["answer"]
    assert f"It runs next at {fired['next_at'][:19]}" in tau("why", name)["answer"]
    tau("schedule", name, "--clear")


def test_another_time_zone_of_the_settings_runs_nothing_again(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 6 * * *")
        await world.pass_time(12 * HOUR)
        assert world.ticks() == [6]
        await world.finish_all()
        world.agenda.timezone = "America/New_York"  # 06:00 there was at 10:00
        await world.write(world.agenda.refresh, int(world.clock.wall))
        await world.look()
        assert world.ticks() == [6]
        await world.pass_time(24 * HOUR)
        assert world.ticks() == [6, 34]

    in_world(tmp_path, story)


def test_a_tick_that_ran_early_does_not_run_again(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 * * * *")
        fired = await world.write(world.agenda.fire_next, "p", "me")
        await world.finish_all()
        await world.pass_time(2 * HOUR + 1)
        assert world.ticks() == [1, 2]
        assert world.events("tick.fired")[0]["run_id"] == fired["run_id"]
        assert world.events("tick.skipped") == []  # each tick has one decision

    in_world(tmp_path, story)


DAY_PARAM = "from tau import pipeline\n@pipeline\ndef changed(ctx, {param}): ...\n"


def test_a_changed_param_under_a_schedule_of_the_command_line_locks_nobody_out(tau: Tau) -> None:
    tau.deploy(DAY_PARAM.format(param="day: str"))
    tau("schedule", "changed", "0 6 * * *", "-p", "day=monday")
    row = tau.deploy(DAY_PARAM.format(param="when: str"))["pipelines"][0]
    assert (row["changed"], row["held"]["by"]) == (True, "invalid")
    assert "unknown key 'day'" in row["held"]["reason"]
    held = tau("why", "changed")["held"][0]
    assert held == row["held"]
    shown = tau("schedule", "changed")
    assert (shown["held"], shown["next_at"], shown["params"]) == ("invalid", None, {"day": "monday"})
    assert tau("show", "changed")["schedule"]["next_at"] is None
    assert "'day'" in tau("schedule", "changed", "--overlap", "queue", exit=2)["message"]
    # Each way out.
    assert tau("schedule", "changed", "--disable")["held"] == "disabled"
    assert tau("schedule", "changed", "-p", "when=now", "--enable")["held"] is None
    tau.deploy(DAY_PARAM.format(param="day: str"))
    assert tau("schedule", "changed")["held"] == "invalid"
    tau("undeploy", "changed")
    assert tau("schedule", "changed", exit=3)["code"] == "not_found"
    assert tau("schedule", "changed", "--overlap", "queue", exit=3)["code"] == "not_found"
    cleared = tau("schedule", "changed", "--clear")
    assert (cleared["changed"], cleared["held"], cleared["cron"]) == (True, "undeployed", None)
    assert tau("schedule", "nobody.knows", "--clear", exit=3)["code"] == "not_found"
    assert "held" not in tau.deploy(DAY_PARAM.format(param="day: str"))["pipelines"][0]
    # A file that cannot run by itself is refused all the same, whatever the command line has set.
    tau("schedule", "changed", "0 6 * * *", "-p", "day=monday")
    text = DAY_PARAM.format(param="when: str").replace("@pipeline", "@pipeline(schedule='0 6 * * *')")
    assert "'when' is missing" in tau.deploy(text, exit=2)["message"]
    text = DAY_PARAM.format(param="when: str")
    assert "unknown key" in tau("deploy", tau.write(text), "--schedule", "0 7 * * *", exit=2)["message"]
    tau("schedule", "changed", "--clear")


def test_a_schedule_that_can_no_longer_be_read_is_held_and_can_be_replaced(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.set("p", cron="0 6 * * *")
        world.store.db.execute("UPDATE schedules SET command = replace(command, '0 6 *', '0 0 6 *'), due_at = next_at,"
                               " options = replace(options, '0 6 *', '0 0 6 *')")  # fmt: skip
        await world.pass_time(7 * HOUR)
        assert world.rows("SELECT held, due_at FROM schedules") == [("invalid", None)]
        await world.deploy("p")
        assert world.rows("SELECT held, due_at FROM schedules") == [("invalid", None)]
        await world.set("p", cron="0 8 * * *")
        await world.pass_time(2 * HOUR)
        assert world.ticks() == [8]

    in_world(tmp_path, story)


def test_an_interval_runs_again_and_again_and_why_says_so(tau: Tau) -> None:
    name = hello(tau, "often")
    tau("schedule", name, "--every", "1")
    runs = eventually(lambda: (found := tau("runs", name)["runs"])[2:] and found)
    ticks = [module.instant_of(run["scheduled_for"]) for run in runs]
    assert ticks == [*range(ticks[0], ticks[0] - len(ticks), -1)]
    assert {run["trigger"] for run in runs} == {"schedule"}
    told = tau("why", name)
    assert told["tick"]["decision"] == "fired"
    assert told["answer"].startswith("The tick of ")
    tau("schedule", name, "--disable")
    run = eventually(lambda: tau("inspect", runs[0]["run_id"]))
    assert run["scheduled_for"] == runs[0]["scheduled_for"]
    at = tau("why", name, "--at", runs[1]["scheduled_for"])
    assert (at["tick"]["run_id"], at["tick"]["decision"]) == (runs[1]["run_id"], "fired")
    beside = tau("why", name, "--at", "2026-01-01T00:00:00Z")["tick"]
    assert (beside["decision"], beside["before"]) == ("none", None)


def test_once_means_once(tau: Tau) -> None:
    name = hello(tau, "once")
    when = module.rfc3339(int(time.time()) + 2)
    assert tau("schedule", name, "--at", when)["ticks"] == [when]
    eventually(lambda: tau("runs", name)["runs"])
    assert tau("schedule", name)["ticks"] == []
    assert "No tick is to come." in tau("why", name)["answer"]


BAD = [
    (["schedule", "bad_input", "61 * * * *"], "expected 0 to 59"),
    (["schedule", "bad_input", "0 0 31 2 *"], "never comes"),
    (["schedule", "bad_input", "* * * * *", "--timezone", "Mars/Base"], "no time zone"),
    (["schedule", "bad_input", "--every", "-5"], "from 0 to 10 years"),
    (["schedule", "bad_input", "--every", "0"], "at least one"),
    (["schedule", "bad_input", "--at", "2020-01-01"], "is in the past"),
    (["schedule", "bad_input", "--at", "soon"], "is not a time"),
    (["schedule", "bad_input", "* * * * *", "--every", "5"], "give one of"),
    (
        ["schedule", "bad_input", "--misfire", "never"],
        '\'misfire\': expected one of "last", "skip", "all", given string "never"',
    ),
    (["schedule", "bad_input", "--overlap", "skipp"], '\'overlap\': expected one of "skip", "queue"'),
    (["schedule", "bad_input", "--catchup-window", "-1"], "'catchup_window' must be"),
    (["schedule", "bad_input", "--disable", "--enable"], "opposites"),
    (["backfill", "bad_input"], "'backfill' needs 'from'"),
    (["backfill", "bad_input", "--from", "2026-01-01"], "has no schedule"),
    (["why", "bad_input", "--at", "whenever"], "is not a time"),
    (["pause"], "or --all"),
    (["pause", "bad_input", "--all"], "or --all"),
]


@pytest.mark.parametrize(
    ("words", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_says_what_was_expected(tau: Tau, words: list[str], message: str) -> None:
    hello(tau, "bad_input")
    error = tau(*words, exit=2)
    assert error["code"] == "bad_request"
    assert message in error["message"]
    assert error["hint"]


def test_bad_schedules_and_chains_are_refused_at_deploy(tau: Tau) -> None:
    def refused(options: str, *more: str) -> str:
        text = "from tau import pipeline\n" + "".join(
            f"@pipeline({one})\ndef chain_{letter}(ctx): ...\n"
            for letter, one in zip("abc", (options, *more), strict=False)
        )
        return str(tau.deploy(text, exit=2)["message"])

    assert "expected 0 to 59" in refused("schedule='61 * * * *'")
    assert "no time zone" in refused("schedule='0 6 * * *', timezone='Mars/Base'")
    assert "comes after 'nobody'" in refused("after='nobody'")
    assert "in a circle: chain_" in refused("after='chain_b'", "after='chain_a'")
    assert "chain_a → chain_a" in refused("after=['chain_a']")
    tau.deploy(
        "from tau import pipeline\n@pipeline\ndef chain_a(ctx): ...\n@pipeline(after='chain_a')\ndef chain_b(ctx): ...\n"
    )
    assert "in a circle" in refused("after='chain_b'")
    shown = tau("show", "chain_a")
    assert (shown["upstream"], shown["downstream"]) == ([], ["chain_b"])
    assert tau("show", "chain_b")["upstream"] == ["chain_a"]
    text = "from tau import pipeline\n@pipeline(schedule='0 6 * * *')\ndef needy(ctx, day: str): ...\n"
    assert "'day' is missing" in tau.deploy(text, exit=2)["message"]
    assert "'day' is missing" in tau.deploy(text.replace("schedule='0 6 * * *'", "after='chain_a'"), exit=2)["message"]
    tau.deploy(text.replace("(schedule='0 6 * * *')", ""))
    assert "'day' is missing" in tau("schedule", "needy", "0 6 * * *", exit=2)["message"]
    assert tau("schedule", "needy", "0 6 * * *", "-p", "day=monday")["params"] == {"day": "monday"}
    many = "from tau import pipeline\n@pipeline\ndef one(ctx): ...\n@pipeline\ndef two(ctx): ...\n"
    assert "which one" in tau("deploy", tau.write(many), "--schedule", "0 6 * * *", exit=2)["message"]


def test_a_chain_hands_on_run_ids_and_results(tau: Tau) -> None:
    tau.deploy(
        "from tau import pipeline\n@pipeline\ndef spring(ctx):\n    return {'rows': 7}\n"
        "@pipeline(after='spring')\ndef river(ctx):\n    return ctx.upstream\n"
    )
    first = tau("run", "spring")
    run = eventually(lambda: (found := tau("runs", "river")["runs"]) and found[0]["status"] == "success" and found[0])
    assert run["trigger"] == "chain"
    assert tau("inspect", run["run_id"])["result"] == {"spring": {"run_id": first["run_id"], "result": {"rows": 7}}}


def test_large_results_of_an_upstream_do_not_pass_through_the_fork_server(tau: Tau) -> None:
    tau.deploy(
        "import os\nfrom tau import pipeline\n@pipeline\ndef sea(ctx):\n    return '~' * 900_000\n"
        "@pipeline(after='sea')\ndef cloud(ctx):\n    files = [*os.scandir(os.environ['RUNS'])]\n"
        "    sizes = [file.stat().st_size for file in files if file.name == f'{ctx.run_id}.1.upstream']\n"
        "    return {'job': len(str(ctx._job)), 'read': len(ctx.upstream['sea']['result']), 'sizes': sizes}\n".replace(
            "os.environ['RUNS']", repr(str(tau.home / "runs"))
        )
    )
    tau("run", "sea")
    ended = eventually(lambda: [run for run in tau.call("runs", name="cloud")["runs"] if run["status"] == "success"])
    found = tau("inspect", ended[0]["run_id"])["result"]
    assert found["job"] < 10_000
    assert (found["read"], len(found["sizes"])) == (900_000, 1)
    eventually(lambda: not [*(tau.home / "runs").glob("*.upstream")])


def test_a_backfill_runs_each_past_tick_once_and_failed_ones_again(tau: Tau) -> None:
    text = (
        "import os\nfrom tau import pipeline\n@pipeline(schedule='0 6 * * *')\ndef filled(ctx):\n"
        "    assert ctx.scheduled_for.day != 3 or os.path.exists('mended')\n    return ctx.scheduled_for.day\n"
    )
    tau.deploy(text)
    words = ("backfill", "filled", "--from", "2026-01-01", "--to", "2026-01-05")
    assert [run["scheduled_for"][:10] for run in tau(*words, "--dry-run")["runs"]] == [
        f"2026-01-0{n}" for n in range(1, 5)
    ]
    part = tau(*words, "--limit", "1")
    assert (len(part["runs"]), part["truncated"]["total"]) == (1, 4)
    assert len(tau(*words)["runs"]) == 3
    assert tau(*words)["runs"] == []
    ended = eventually(
        lambda: len(found := [r for r in tau("runs", "filled")["runs"] if r["status"] != "queued"]) == 4 and found
    )
    assert {run["trigger"] for run in ended} == {"backfill"}
    eventually(lambda: tau("runs", "filled", "--status", "failed")["runs"])
    eventually(lambda: len(tau("runs", "filled", "--status", "success")["runs"]) == 3)
    (tau.home / "data" / "filled" / "mended").touch()
    again = tau(*words, "--only", "failed")["runs"]
    assert [run["scheduled_for"][:10] for run in again] == ["2026-01-03"]
    assert tau("wait", again[0]["run_id"])["result"] == 3
    assert tau(*words, "--only", "all")["runs"] == []
    assert '\'only\': expected one of "missing", "failed", "all"' in tau(*words, "--only", "some", exit=2)["message"]


def test_a_pause_holds_schedules_and_chains_but_not_tau_run(tau: Tau) -> None:
    name = hello(tau, "restful")
    tau("schedule", name, "--every", "1")
    assert tau("pause", name, "--reason", "a rest")["changed"]
    assert not tau("pause", name)["changed"]
    told = tau("why", name)
    assert [(one["by"], one["reason"]) for one in told["held"] if one["by"] == "paused"] == [("paused", "a rest")]
    assert told["answer"].endswith("It does not run by itself: paused.")
    assert tau("schedule", name)["next_at"] is None
    assert tau("run", name)["status"] == "success"
    assert tau("resume", name)["changed"]
    assert not tau("resume", name)["changed"]
    eventually(lambda: tau("why", name)["tick"]["decision"] == "fired")
    tau("schedule", name, "--clear")


def test_a_kill_in_the_middle_of_many_schedules_runs_none_twice(home: Tau) -> None:
    count = 10_000 if THOROUGH else 1_500
    home.start("--max-concurrent", "1")
    home.deploy(HELLO.format(name="many"), "many.py")
    home("shutdown")
    eventually(lambda: not home.remains())
    when = int(time.time()) - 1
    multiply(home.home / "tau.db", count, when)
    db = sqlite3.connect(home.home / "tau.db")

    def queued() -> int:
        return int(db.execute("SELECT count(*) FROM runs WHERE scheduled_for IS NOT NULL").fetchone()[0])

    home.start("--max-concurrent", "1")
    eventually(queued)
    home.kill()
    before = queued()
    assert before < count
    home.start("--max-concurrent", "1")
    eventually(lambda: queued() == count)
    assert home("status", timeout=PATIENCE_S)["queued"] > 0
    assert db.execute("SELECT max(n) FROM (SELECT count(*) AS n FROM runs GROUP BY pipeline)").fetchone() == (1,)
    fired = db.execute("SELECT count(*), count(DISTINCT pipeline) FROM events WHERE type = 'tick.fired'").fetchone()
    assert fired == (count, count)
    db.close()


def multiply(path: Path, count: int, when: int) -> None:
    """The database has *count* pipelines like its only one, all due at an instant."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA foreign_keys = OFF")
    (name,) = db.execute("SELECT name FROM pipelines").fetchone()
    text = module.rfc3339(when)
    options = json.dumps(module.SCHEDULE_OPTIONS | {"at": text})
    with db:
        for table, column in (("pipelines", "name"), ("versions", "pipeline"), ("schedules", "pipeline")):
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})") if row[1] != column]
            row = db.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE {column} = ?", (name,)).fetchone()
            marks = ", ".join("?" * (len(columns) + 1))
            rows = ((f"p{number:05}", *row) for number in range(count))
            db.executemany(f"INSERT INTO {table} ({column}, {', '.join(columns)}) VALUES ({marks})", rows)
        db.execute(
            "UPDATE schedules SET options = ?, watermark_at = ?, next_at = ?, due_at = ? WHERE pipeline <> ?",
            (options, module.rfc3339(when - 1), text, text, name),
        )
    db.close()


def test_a_daemon_that_was_down_catches_up_and_can_say_why(home: Tau) -> None:
    home.start()
    hello(home, "nightly")
    missed = int(time.time()) // 60 * 60 - 2 * HOUR
    minute, hour = time.strftime("%M %H", time.gmtime(missed)).split()
    home("schedule", "nightly", f"{int(minute)} {int(hour)} * * *")
    home("shutdown")
    eventually(lambda: not home.remains())
    db = sqlite3.connect(home.home / "tau.db")
    with db:
        before, tick = module.rfc3339(missed - HOUR), module.rfc3339(missed)
        db.execute("UPDATE schedules SET watermark_at = ?, next_at = ?, due_at = ?", (before, tick, tick))
        db.execute("UPDATE memory SET data = ? WHERE name = 'alive'", (json.dumps({"until": missed - HOUR}),))
    db.close()
    home.start()
    told = eventually(lambda: (found := home("why", "nightly"))["tick"].get("status") == "success" and found)
    assert (told["tick"]["scheduled_for"], told["tick"]["trigger"]) == (tick, "catchup")
    assert told["tick"]["cause"]["what"] == "daemon_down"
    assert f"daemon down from {before}" in told["answer"]
    home("shutdown")


def test_a_backfill_that_the_queue_cuts_short_says_so(home: Tau) -> None:
    (home.home / "tau.toml").write_text("[scheduler]\nmax_queued = 5\nmax_concurrent = 1\n")
    home.start()
    home.deploy_held()
    home.deploy(
        (home.work / "pipelines.py")
        .read_text()
        .replace("@pipeline", '@pipeline(schedule="0 6 * * *", start="2020-01-01")')
    )
    done = home("backfill", "it", "--from", "2020-01-01", "--to", "2020-02-01")
    assert 0 < len(done["runs"]) < 31
    assert "asked again later, it goes on" in done["hint"]
    assert done["truncated"]["get"].startswith("tau backfill it --from 2020-01-01 --to 2020-02-01")
    home("shutdown", "--cancel")
