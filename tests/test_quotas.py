"""Quotas of namespaces: reached, refused, reset; whoever asks at once, and whatever dies meanwhile."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import Tau, eventually
from test_scheduler import DAY, HOUR, World, in_world

import tau as module

PIPELINES = """
import os, time
from tau import pipeline

@pipeline(memory="256M")
def waits(ctx):
    while not os.path.exists(ctx.params["go"]):
        time.sleep(0.02)

@pipeline(memory="256M")
def fills(ctx):
    with open("data", "wb") as file:
        file.write(b"x" * 70_000_000)
"""


async def add(world: World, name: str = "acme/p") -> str:
    """A queued run."""
    return str((await world.write(world.store.add_run, name, {}, None, "manual", "me"))[0])


async def limit(world: World, is_new: bool = False, **quotas: Any) -> None:
    """The namespace acme has these quotas; it has a pipeline."""
    await world.write(world.store.save_namespace, "acme", quotas, is_new, "me")
    if is_new:
        await world.deploy("acme/p")


async def refused(world: World, quota: str, name: str = "acme/p") -> dict[str, Any]:
    """What is said when a quota refuses a run."""
    before = world.rows("SELECT * FROM runs"), world.rows("SELECT * FROM namespaces")
    with pytest.raises(module.OverQuota) as raised:
        await add(world, name)
    assert (world.rows("SELECT * FROM runs"), world.rows("SELECT * FROM namespaces")) == before
    said = raised.value.to_json()
    assert (said["code"], said["retryable"], raised.value.exit, said["quota"]) == ("quota", True, 5, quota)
    return said


def used(world: World) -> dict[str, int]:
    """What `tau namespace show` says."""
    sql = world.store.sql
    return {quota: world.store.used(sql, sql.namespace("acme"), quota) for quota in module.QUOTAS}


def test_a_daily_quota_is_used_up_and_comes_back_at_midnight(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await limit(world, is_new=True)
        await add(world)  # what nobody counted then is counted now
        await limit(world, runs_per_day=10)
        for _ in range(9):
            await add(world)
        said = await refused(world, "runs_per_day")
        assert (said["limit"], said["used"], said["resets_at"]) == (10, 10, module.rfc3339(world.clock.wall + DAY))
        assert "10 of 10" in said["message"]
        (near,) = world.events("quota.near")
        assert (near["pipeline"], near["used"], near["limit"]) == ("acme/p", 7, 10)
        await world.finish_all()  # that gives none back
        await refused(world, "runs_per_day")
        await add(world, "p")  # others are not concerned
        world.clock.run(DAY - 1)
        await refused(world, "runs_per_day")
        world.clock.run(1)
        assert used(world)["runs_per_day"] == 0
        await add(world)
        assert used(world)["runs_per_day"] == 1
        await limit(world, runs_per_day=0)
        await add(world)
        await limit(world, runs_per_day=2)
        assert (await refused(world, "runs_per_day"))["used"] == 2

    in_world(tmp_path, story)


def test_a_full_queue_of_a_namespace_refuses_until_a_run_begins(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await limit(world, is_new=True, max_queued=5)
        ids = [await add(world) for _ in range(5)]
        assert (await refused(world, "max_queued"))["resets_at"] is None
        await world.write(world.finish, ids[0])
        await add(world)
        assert len(world.events("quota.near")) == 1  # once a day is enough
        await refused(world, "max_queued")

    in_world(tmp_path, story)


def test_who_fills_the_queue_of_the_daemon_leaves_others_their_part(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.store.settings = world.store.settings | {"max_queued": 10}
        await limit(world, is_new=True)
        await world.deploy("p")
        for _ in range(10):
            await add(world)
        for _ in range(5):
            await add(world, "p")
        for name in ("acme/p", "p"):
            with pytest.raises(module.QueueFull):
                await add(world, name)

    in_world(tmp_path, story)


def test_a_refused_tick_and_chain_are_told(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await limit(world, is_new=True, runs_per_day=1)
        await world.deploy("acme/after", after=["acme/p"])
        await world.set("acme/p", every_s=HOUR)
        await world.pass_time(2 * HOUR)
        await world.finish_all()
        await world.pass_time(HOUR)
        assert [event["reason"] for event in world.events("chain.skipped")] == ["quota"]
        assert {event["reason"] for event in world.events("tick.skipped")} == {"overlap", "quota"}
        with pytest.raises(module.OverQuota):
            await world.write(world.agenda.backfill, "acme/p", [module.rfc3339(world.clock.wall - DAY)], "all", "me")

    in_world(tmp_path, story)


def test_runs_beyond_max_running_wait(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await limit(world, is_new=True, max_running=2)
        ids = [await add(world) for _ in range(5)]
        other = await add(world, "p")
        begun = [job["run_id"] for job in await world.write(world.store.admit, 10, {})]
        assert sorted(begun) == [*ids[:2], other]
        assert await world.write(world.store.admit, 10, {}) == []
        await world.write(world.store.move, ids[0], "success")
        assert [job["run_id"] for job in await world.write(world.store.admit, 10, {})] == [ids[2]]
        await limit(world, max_running=0)
        assert len(await world.write(world.store.admit, 10, {})) == 2

    in_world(tmp_path, story)


def test_the_limits_of_running_runs_fit_into_the_memory_of_a_namespace(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await limit(world, is_new=True)
        await limit(world, memory_bytes=1000)
        with pytest.raises(module.BadRequest, match="has no limit of its memory"):
            await add(world)
        with pytest.raises(module.BadRequest, match="has no limit of its memory"):
            await world.deploy("acme/p")
        with pytest.raises(module.BadRequest, match="may have 1,001 bytes"):
            await world.deploy("acme/p", memory=1001)
        await world.deploy("acme/p", memory=400)
        await world.deploy("acme/large", memory=700)
        ids = [await add(world), await add(world, "acme/large"), await add(world), await add(world)]
        assert [job["run_id"] for job in await world.write(world.store.admit, 10, {})] == ids[:1]
        assert used(world)["memory_bytes"] == 400
        await world.write(world.store.move, ids[0], "success")  # the large one is next, however small the others are
        assert [job["run_id"] for job in await world.write(world.store.admit, 10, {})] == [ids[1]]
        await world.write(world.store.move, ids[1], "success")
        await limit(world, memory_bytes=300)  # too little for any of them: they wait
        assert await world.write(world.store.admit, 10, {}) == []
        await limit(world, memory_bytes=800)
        assert [job["run_id"] for job in await world.write(world.store.admit, 10, {})] == ids[2:]

    in_world(tmp_path, story)


def test_twenty_clients_at_once_do_not_exceed_a_quota_and_a_crash_neither_loses_nor_doubles_it(fresh: Tau) -> None:
    path = fresh.write(PIPELINES)
    fresh("namespace", "create", "acme", "--runs-per-day", "50", "--max-running", "1")
    fresh("deploy", path, "--namespace", "acme")
    answers: list[tuple[str, int]] = []
    asked = {"name": "acme/waits", "params": {"go": str(fresh.home / "go")}, "wait": False}

    def client(number: int) -> None:
        for nth in range(5):
            key = f"{number}-{nth}"
            while (key, 0) not in answers and (key, 50) not in answers:
                try:
                    with module.Client(home=str(fresh.home)) as asking:
                        asking.call("run", asked | {"key": key})
                        answers.append((key, 0))
                except module.Unavailable:  # it was killed: the same key asks for the same run
                    continue
                except module.OverQuota as said:
                    answers.append((key, said.detail["used"]))

    clients = [threading.Thread(target=client, args=(number,)) for number in range(20)]
    for each in clients:
        each.start()
    eventually(lambda: len(answers) > 20)
    fresh.kill()
    fresh.start()
    for each in clients:
        each.join()
    assert sorted(answer for _, answer in answers) == [0] * 50 + [50] * 50
    assert fresh("namespace", "show", "acme")["used"] | {"disk_bytes": 0} == {
        "max_running": 1, "max_queued": 49, "runs_per_day": 50, "memory_bytes": 256 << 20, "disk_bytes": 0,
    }  # fmt: skip
    (waits, *_) = fresh("runs", "acme/waits", "--status", "queued")["runs"]
    assert fresh("inspect", waits["run_id"])["held_by"] == "namespace max_running=1"
    blockers = {(one.get("quota"), one.get("used")) for one in fresh("why", "acme/waits")["held"]}
    assert blockers == {("runs_per_day", 50), ("max_running", 1)}


def test_data_beyond_the_quota_refuse_runs_until_they_are_gone(fresh: Tau) -> None:
    path = fresh.write(PIPELINES)
    fresh("namespace", "create", "acme", "--disk", "64M")
    fresh("deploy", path, "--namespace", "acme")
    fresh("run", "acme/fills")
    shown = fresh("namespace", "show", "acme")
    assert 70_000_000 < shown["used"]["disk_bytes"] < 71_000_000
    assert shown["disk_bytes"] == 64 << 20
    folder, elsewhere = fresh.home / "namespaces" / "acme", fresh.work / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)  # as that of a namespace with a system user is
    assert fresh("namespace", "show", "acme")["used"]["disk_bytes"] > 70_000_000
    said = fresh("run", "acme/fills", exit=5)
    assert (said["code"], said["quota"], said["resets_at"]) == ("quota", "disk_bytes", None)
    os.remove(fresh.home / "namespaces" / "acme" / "data" / "fills" / "data")
    assert fresh("namespace", "show", "acme")["used"]["disk_bytes"] < 1_000_000  # it measures
    fresh("run", "acme/fills", "--detach")
