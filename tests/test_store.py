"""The store by itself: commits shared but failures not, moves only as MOVES allows, reads of one moment."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import tau as module

FOUND = [
    {"name": "p", "function": "p", "description": "", "tags": [], "params": {}, "line": 1, "entry": "p.py"}
]


def with_store(tmp_path: Path, story: Callable[[module.Store], Awaitable[Any]]) -> Any:
    """Tells a story to an open store with one pipeline, `p`."""

    async def told() -> Any:
        store = module.Store(str(tmp_path), module.read_settings({}, None))
        store.open(asyncio.get_running_loop())
        try:
            await store.write(store.deploy, FOUND, "0" * 64, "me")
            return await story(store)
        finally:
            store.close()

    return asyncio.run(told())


def add(store: module.Store, key: str | None = None, params: str = "{}") -> Awaitable[tuple[str, str, bool]]:
    """A queued run of `p`."""
    return store.write(store.add_run, "p", params, key, "manual", "me")


def state(**more: Any) -> dict[str, Any]:
    """What is kept of a process that has just been admitted."""
    position = {"journal": 10, "stdout": 0, "stderr": 0, "n": 0, "bad": 0}
    return {
        "position": position, "process": {"server": {}}, "outcome": None, "ended": None, "log_lines": 0, "log_dropped": 0,
    } | more  # fmt: skip


def test_writes_of_one_turn_share_a_commit_and_their_failures_are_their_own(tmp_path: Path) -> None:
    async def story(store: module.Store) -> None:
        def bug() -> None:
            raise RuntimeError("a bug")

        before = store.db.total_changes
        answers = await asyncio.gather(
            add(store), store.write(store.add_run, "absent", "{}", None, "manual", "me"), store.write(bug), add(store),
            return_exceptions=True,
        )  # fmt: skip
        assert [type(answer) for answer in answers] == [tuple, module.NotFound, module.Internal, tuple]
        assert store.ask.totals()["queued"] == 2
        assert store.db.total_changes > before

    with_store(tmp_path, story)


def test_a_full_disk_refuses_and_recovers_by_itself(tmp_path: Path) -> None:
    async def story(store: module.Store) -> None:
        run_id = (await add(store))[0]
        pages = store.db.execute("PRAGMA page_count").fetchone()[0]
        store.db.execute(f"PRAGMA max_page_count = {pages}")
        params = '{"x": "' + "y" * 100_000 + '"}'
        with pytest.raises(module.StorageFull):
            await add(store, params=params)
        assert store.ask.totals()["queued"] == 1
        store.db.execute(f"PRAGMA max_page_count = {pages * 10}")
        assert (await add(store, params=params))[0] > run_id

    with_store(tmp_path, story)


def test_every_move_is_guarded_by_the_table(tmp_path: Path) -> None:
    async def story(store: module.Store) -> None:
        for source, target in itertools.product(module.MOVES, repeat=2):
            run_id = (await add(store))[0]

            def put(run_id: str = run_id, source: str = source) -> None:
                store.db.execute("UPDATE runs SET status = ? WHERE run_id = ?", (source, run_id))

            await store.write(put)
            moved = await store.write(store.move, run_id, target)
            assert moved == (target in module.MOVES[source]), (source, target)
            assert store.ask.status_of(run_id) == (target if moved else source)

    with_store(tmp_path, story)


def test_ids_grow_whatever_the_clock_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instants = iter([2_000.0, 1_000.0, 1_500.0, 3_000.0, 3_000.0])

    async def story(store: module.Store) -> list[str]:
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda: next(instants))
            return [store.new_id() for _ in range(5)]

    ids = with_store(tmp_path, story)
    assert ids == sorted(set(ids))


def test_a_step_that_began_and_ended_apart_is_one_row(tmp_path: Path) -> None:
    begin = {"t": "step", "n": 1, "started_at": "T", "step": 1, "parent": None, "name": "s", "path": "s"}
    done = {
        "status": "success",
        "duration_ms": 1.0,
        "rows_in": None,
        "rows_out": 2,
        "columns": None,
        "error": None,
    }
    end = {"t": "done", "n": 2, "finished_at": "U", "step": 1, **done}

    async def story(store: module.Store) -> None:
        for batches in ([[begin, end]], [[begin], [end]], [[begin, begin], [end], [begin]]):
            run_id = (await add(store))[0]
            await store.write(store.admit, 1, {})
            for batch in batches:
                await store.write(store.add_trace, run_id, 1, batch, state())
            _, attempt, steps, *_ = store.ask.whole_run(run_id)
            assert [(step["status"], step["rows_out"]) for step in steps] == [("success", 2)]
            assert attempt is not None
            assert attempt["position"]["journal"] == 10

    with_store(tmp_path, story)


def test_what_a_run_left_unfinished_ends_with_it(tmp_path: Path) -> None:
    begin = {"t": "step", "n": 1, "started_at": "T", "step": 1, "parent": None, "name": "s", "path": "s"}

    async def story(store: module.Store) -> None:
        for status, step_status in (("failed", "failed"), ("cancelled", "cancelled")):
            run_id = (await add(store))[0]
            await store.write(store.admit, 1, {})
            outcome = module.Outcome(status, None, module.bare_error("died", "ProcessDied", "x"))
            await store.write(store.finish, run_id, 1, [begin], state(), outcome)
            run, _, steps, *_ = store.ask.whole_run(run_id)
            assert (run["status"], run["error"]["step"], steps[0]["status"]) == (status, "s", step_status)
            again = module.Outcome("success", 1, None)
            await store.write(store.finish, run_id, 1, [], state(), again)
            assert store.ask.status_of(run_id) == status  # a final status never changes

    with_store(tmp_path, story)


def test_the_store_is_what_it_was_after_closing(tmp_path: Path) -> None:
    async def first(store: module.Store) -> str:
        return (await add(store, key="k"))[0]

    async def second(store: module.Store) -> tuple[str, str, bool]:
        return await add(store, key="k")

    run_id = with_store(tmp_path, first)
    assert with_store(tmp_path, second) == (run_id, "queued", True)
    db = sqlite3.connect(tmp_path / "tau.db")
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    assert db.execute("PRAGMA application_id").fetchone() == (module.APPLICATION_ID,)
    assert db.execute("PRAGMA user_version").fetchone() == (len(module.MIGRATIONS),)
    db.close()


def test_the_database_is_backed_up_before_it_is_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(store: module.Store) -> None: ...

    with_store(tmp_path, nothing)
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, "CREATE TABLE more (x INTEGER) STRICT"))
    with_store(tmp_path, nothing)
    now = len(module.MIGRATIONS)
    for name, version in (("tau.db", now), (f"tau.db.before-v{now}", now - 1)):
        db = sqlite3.connect(tmp_path / name)
        assert db.execute("PRAGMA user_version").fetchone() == (version,)
        assert db.execute("SELECT name FROM pipelines").fetchone() == ("p",)
        db.close()
    assert (tmp_path / f"tau.db.before-v{now}").stat().st_mode & 0o077 == 0


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(store: module.Store) -> None: ...

    with_store(tmp_path, nothing)
    broken = "CREATE TABLE more (x INTEGER) STRICT; CREATE TABLE pipelines (x INTEGER)"
    with monkeypatch.context() as patch:
        patch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, broken))
        with pytest.raises(
            module.Conflict, match=f"cannot be migrated from schema {len(module.MIGRATIONS) - 1}"
        ):
            with_store(tmp_path, nothing)
    with_store(tmp_path, nothing)
    db = sqlite3.connect(tmp_path / "tau.db")
    assert db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'more'").fetchone() == (0,)
    db.close()
