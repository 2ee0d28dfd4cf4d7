"""Who gets the next slot: fair shares of namespaces, priorities within one, and what neither may do to the other."""

from __future__ import annotations

import asyncio
import heapq
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually, make_home, running
from test_scheduler import DAY, HOUR, World

import tau as module


class Slots(World):
    """A store whose runs take as long as it is told, in so many slots."""

    def __init__(self, home: Path, slots: int, **weights: int) -> None:
        super().__init__(home)
        self.slots, self.weights = slots, weights
        self.lasts: dict[str, float] = {}  # pipeline → how long its runs take
        self.ends: list[tuple[float, str, str]] = []  # when a run ends that runs
        self.taken: Counter[str] = Counter()  # namespace → the slot-seconds of its runs
        self.waited: dict[str, list[float]] = {}  # pipeline → how long its runs waited
        self.queued_at: dict[str, float] = {}
        self.backlog: dict[str, int] = {}  # pipeline → how many of its runs always wait

    async def begin(self) -> None:
        """The namespaces are there, and a pipeline in each."""
        self.open()
        for name, weight in self.weights.items():
            await self.weigh(name, weight, is_new=True)
            await self.deploy(f"{name}/p")

    async def weigh(self, name: str, weight: int, is_new: bool = False) -> None:
        """A namespace has this weight."""
        await self.write(self.store.save_namespace, name, {"weight": weight}, is_new, "me")

    async def add(self, name: str, count: int = 1) -> list[str]:
        """So many runs of a pipeline are queued."""
        ids = [(await self.write(self.store.add_run, name, {}, None, "manual", "me"))[0] for _ in range(count)]
        self.queued_at |= dict.fromkeys(ids, self.clock.awake)
        return ids

    async def turn(self) -> None:
        """What ends now has ended; what always waits is filled up; the free slots are given away."""
        while self.ends and self.ends[0][0] <= self.clock.awake:
            _, run_id, name = heapq.heappop(self.ends)
            took = self.lasts[name]
            self.taken[module.namespace_of(name)] += took
            self.store.sql.set("attempts", {"run_id": run_id}, duration_ms=took * 1000)
            await self.write(self.store.move, run_id, "success")
        for name, most in self.backlog.items():
            if (waiting := self.waiting(name)) <= most / 2:
                await self.add(name, most - waiting)
        teams = await self.write(self.store.look)
        free = self.slots - len(self.ends)
        for job in await self.write(self.store.admit, free, {}, teams) if free else ():
            name, run_id = job["pipeline"], job["run_id"]
            self.waited.setdefault(name, []).append(self.clock.awake - self.queued_at.pop(run_id))
            heapq.heappush(self.ends, (self.clock.awake + self.lasts[name], run_id, name))

    def waiting(self, name: str) -> int:
        """How many runs of a pipeline wait."""
        return int(self.rows("SELECT count(*) FROM runs WHERE status = 'queued' AND pipeline = ?", name)[0][0])

    def running(self) -> Counter[str]:
        """How many slots each namespace has."""
        return Counter(module.namespace_of(name) for _, _, name in self.ends)

    async def pass_time(self, seconds: float) -> None:
        """Time passes, from one end of a run to the next."""
        until = self.clock.awake + seconds
        await self.turn()
        while self.ends and self.ends[0][0] <= until:
            self.clock.run(self.ends[0][0] - self.clock.awake)
            await self.turn()
        self.clock.run(until - self.clock.awake)

    def shares(self) -> dict[str, float]:
        """The part of all slot-seconds that each has had, with that of runs that go on."""
        taken = Counter(self.taken)
        for end, _, name in self.ends:
            taken[module.namespace_of(name)] += self.lasts[name] - (end - self.clock.awake)
        return {name: taken[name] / (taken.total() or 1) for name in self.weights}


def in_slots(slots: int, story: Callable[[Slots], Coroutine[Any, Any, None]], **weights: int) -> Slots:
    """Tells a story of namespaces with these weights."""

    async def told() -> Slots:
        with tempfile.TemporaryDirectory() as home:
            world = Slots(Path(home), slots, **weights)
            await world.begin()
            try:
                await story(world)
            finally:
                world.end()
        return world

    return asyncio.run(told())


def a_day(slots: int, seconds: float, **weights: int) -> Slots:
    """A day in which `long` always has runs of an hour waiting, and `short` quick ones."""

    async def story(world: Slots) -> None:
        world.lasts = {"long/p": HOUR, "short/p": seconds}
        world.backlog = {"long/p": 8, "short/p": 200}
        await world.pass_time(DAY)

    return in_slots(slots, story, **weights)


@pytest.mark.parametrize(
    ("slots", "weights"), [(4, {"long": 1, "short": 1}), (8, {"long": 3, "short": 1}), (8, {"long": 1, "short": 3})]
)
def test_a_day_is_shared_by_weight_whatever_runs_take(slots: int, weights: dict[str, int]) -> None:
    shares = a_day(slots, 60.0, **weights).shares()
    for name, weight in weights.items():
        wanted = weight / sum(weights.values())
        assert abs(shares[name] - wanted) <= 0.05 * wanted, (name, shares)


def test_who_runs_once_an_hour_waits_for_one_slot_only() -> None:
    async def story(world: Slots) -> None:
        world.lasts = {"a/p": 1.0, "b/p": 1.0}
        for _ in range(5):
            await world.add("a/p", 2_000)
            await world.add("b/p")
            await world.pass_time(200)
        assert max(world.waited["b/p"]) <= 1.0
        assert world.shares()["a"] > 0.99  # and nothing is kept back for who has no work
        await world.add("b/p", 50)  # it has saved nothing up by its rest
        before = world.taken["a"]
        await world.pass_time(20)
        assert world.taken["a"] - before >= 35

    in_slots(4, story, a=1, b=1)


def test_weights_hold_from_the_moment_that_they_change() -> None:
    async def story(world: Slots) -> None:
        world.lasts = {"a/p": 10.0, "b/p": 10.0}
        world.backlog = {"a/p": 50, "b/p": 50}
        for a, b in ((1, 1), (3, 1), (1, 7)):
            await world.weigh("a", a)
            await world.weigh("b", b)
            before = Counter(world.taken)
            await world.pass_time(4_000)
            taken = world.taken - before
            assert abs(taken["a"] / taken.total() - a / (a + b)) < 0.05

    in_slots(8, story, a=1, b=1)


def test_a_storm_of_retries_takes_no_more_than_its_share() -> None:
    async def story(world: Slots) -> None:
        world.lasts = {"a/p": 1.0, "b/p": 1.0}
        await world.add("a/p", 3_000)
        for (run_id,) in world.rows("SELECT run_id FROM runs"):
            world.store.move(run_id, "running")
            world.store.move(run_id, "retrying", retry_at=world.store.now(60))
        await world.add("b/p", 400)
        await world.pass_time(50)  # they cost nothing while they wait, and earn nothing
        assert (world.taken["a"], world.taken["b"]) == (0, 200)
        world.clock.run(10)
        await world.pass_time(50)
        assert abs(world.taken["a"] - (world.taken["b"] - 200)) <= 8
        assert world.rows("SELECT count(*) FROM runs WHERE attempt = 2")[0][0] >= 100

    in_slots(4, story, a=1, b=1)


def test_who_has_no_slot_gets_the_next_one_of_however_many_wait() -> None:
    async def story(world: Slots) -> None:
        world.lasts = dict.fromkeys(("a/p", "b/p", "c/p"), 10.0)
        await world.add("a/p", 500)
        await world.pass_time(5)
        await world.add("c/p")
        await world.add("b/p", 10)
        await world.pass_time(5)
        assert world.running() == {"a": 1, "b": 1, "c": 1}

    in_slots(3, story, a=1000, b=1, c=1)


def test_whose_own_limits_hold_it_up_saves_nothing_up() -> None:
    async def story(world: Slots) -> None:
        world.lasts = {"a/p": 1.0, "b/p": 1.0}
        await world.write(world.store.save_namespace, "b", {"max_running": 1}, False, "me")
        await world.add("b/p", 400)
        await world.add("a/p", 1_000)
        await world.pass_time(100)
        assert (world.taken["a"], world.taken["b"]) == (300, 100)
        await world.write(world.store.save_namespace, "b", {"max_running": 0}, False, "me")
        await world.pass_time(50)
        assert abs(world.taken["a"] - 400) <= 8

    in_slots(4, story, a=1, b=1)


def test_priority_goes_before_age_but_not_for_ever() -> None:
    async def story(world: Slots) -> None:
        for name, priority in (("first", 1), ("usual", 3), ("last", 5)):
            await world.deploy(f"a/{name}", priority=priority)
        world.lasts = dict.fromkeys(("a/first", "a/usual", "a/last"), 1.0)
        ids = {name: (await world.add(f"a/{name}"))[0] for name in ("last", "usual", "first")}
        old = (await world.add("a/last"))[0]
        world.clock.run(2_401)  # four steps of ten minutes
        young = (await world.add("a/first"))[0]
        order = [row["run_id"] for row in world.store.choose(10, world.store.look())]
        assert order == [ids["first"], ids["usual"], ids["last"], old, young]

    in_slots(1, story, a=1)


def test_a_long_backfill_holds_up_no_other_run_of_its_pipeline() -> None:
    async def story(world: Slots) -> None:
        await world.deploy("a/many")
        world.lasts = {"a/many": 1.0}
        for _ in range(module.PASSED_MAX * 3):
            await world.write(world.store.add_run, "a/many", {}, None, "backfill", "me")
        by_hand = (await world.write(world.store.add_run, "a/many", {}, None, "manual", "me"))[0]
        chosen = [row["run_id"] for row in world.store.choose(10, world.store.look())]
        assert by_hand in chosen
        assert len(chosen) == 1 + world.store.settings["backfill_concurrent"]

    in_slots(10, story, a=1)


def test_priority_goes_first_behind_a_long_queue_too() -> None:
    async def story(world: Slots) -> None:
        for name, priority in (("many", 3), ("urgent", 1), ("later", 5)):
            await world.deploy(f"a/{name}", priority=priority, **({"max_concurrent": 1} if name == "many" else {}))
        world.lasts = dict.fromkeys(("a/many", "a/urgent", "a/later"), 1.0)
        await world.add("a/many", module.PASSED_MAX * 3)
        late, urgent = (await world.add("a/later"))[0], (await world.add("a/urgent"))[0]
        order = [row["run_id"] for row in world.store.choose(3, world.store.look())]
        assert order.index(urgent) < order.index(late)

    in_slots(3, story, a=1)


def test_the_head_of_a_queue_is_found_without_its_neighbours(tmp_path: Path) -> None:
    async def story(world: Slots) -> None:
        world.lasts = {}
        await world.deploy(*(f"a/p{n}" for n in range(20)), max_concurrent=1)
        for n in range(module.PASSED_MAX * 30):
            await world.write(world.store.add_run, f"a/p{n % 20}", {}, None, "manual", "me")
        await world.write(world.store.add_run, "b/p", {}, None, "manual", "me")
        steps: list[int] = []
        world.store.db.set_progress_handler(lambda: steps.append(1), 100)
        chosen = await world.write(world.store.choose, 2, world.store.look())
        world.store.db.set_progress_handler(None, 0)
        assert {row["pipeline"].partition("/")[0] for row in chosen} == {"a", "b"}
        assert len(steps) < 50

    in_slots(2, story, a=1, b=1)


PIPELINES = """
import time
from tau import pipeline

@pipeline(priority=1)
def quick(ctx):
    pass

@pipeline
def endless(ctx):
    while True:
        time.sleep(0.05)
"""


def test_the_queue_of_one_team_does_not_hold_up_another() -> None:
    with running(make_home("[scheduler]\nmax_concurrent = 2\n[daemon]\nstop_grace_s = 0.5\n")) as tau:
        path = tau.write(PIPELINES)
        for name in ("acme", "beta"):
            tau("namespace", "create", name)
            tau("deploy", path, "--namespace", name)
        ids = [tau.call("run", name="acme/endless", wait=False)["run_id"] for _ in range(100)]
        eventually(lambda: tau.call("namespace_show", name="acme")["used"]["max_running"] == 2)
        begun = [tau.call("run", name="beta/quick", wait=False)["run_id"] for _ in range(3)]
        tau("cancel", ids[0])  # the slot that becomes free is theirs, though others wait for longer
        ended = [tau("wait", run_id)["finished_at"] for run_id in begun]
        later = eventually(lambda: tau.call("inspect", run_id=ids[2])["started_at"])
        assert max(ended) <= later
        for run_id in ids[1:]:
            tau.call("cancel", run_id=run_id)
