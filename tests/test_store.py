"""The store by itself: commits shared but failures not, moves only as MOVES allows, reads of one moment."""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import tau as module

SETTINGS = module.read_settings({}, None)
FOUND = [
    {
        "name": "p",
        "function": "p",
        "description": "",
        "tags": [],
        "params": {},
        "line": 1,
        "entry": "p.py",
        "origin": [],
    }
]


def with_store(tmp_path: Path, story: Callable[[module.Store], Awaitable[Any]]) -> Any:
    """Tells a story to an open store with one pipeline, `p`."""

    async def told() -> Any:
        store = module.Store(str(tmp_path), module.read_settings({}, None))
        store.open(asyncio.get_running_loop())
        try:
            await store.write(store.deploy, FOUND[0], "0" * 64, "me")
            return await story(store)
        finally:
            store.close()

    return asyncio.run(told())


def add(
    store: module.Store, key: str | None = None, params: dict[str, Any] | None = None
) -> Awaitable[tuple[str, str, bool]]:
    """A queued run of `p`."""
    return store.write(store.add_run, "p", params or {}, key, "manual", "me")


def state(**more: Any) -> dict[str, Any]:
    """What is kept of a process that has just been admitted."""
    position = {"journal": 10, "stdout": 0, "stderr": 0, "n": 0}
    return {
        "position": position, "process": {"server": {}}, "outcome": None, "ended": None, "log_lines": 0, "log_dropped": 0,
    } | more  # fmt: skip


def test_writes_of_one_turn_share_a_commit_and_their_failures_are_their_own(tmp_path: Path) -> None:
    async def story(store: module.Store) -> None:
        def bug() -> None:
            raise RuntimeError("a bug")

        before = store.db.total_changes
        answers = await asyncio.gather(
            add(store), store.write(store.add_run, "absent", {}, None, "manual", "me"), store.write(bug), add(store),
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
        params = {"x": "y" * 100_000}
        with pytest.raises(module.StorageFull):
            await add(store, params=params)
        assert store.ask.totals()["queued"] == 1
        store.db.execute(f"PRAGMA max_page_count = {pages * 10}")
        assert (await add(store, params=params))[0] > run_id

    with_store(tmp_path, story)


def test_the_options_of_a_version_that_was_rolled_back_are_not_those_of_the_next(tmp_path: Path) -> None:
    async def story(store: module.Store) -> Any:
        def broken() -> None:
            store.deploy(FOUND[0] | {"queue_timeout": 5.0}, "1" * 64, "me")
            store.add_run("p", {}, None, "manual", "me")
            raise RuntimeError("a bug")

        with pytest.raises(module.Internal):
            await store.write(broken)
        await store.write(store.deploy, FOUND[0], "2" * 64, "me")
        return store.ask.run((await add(store))[0])

    run = with_store(tmp_path, story)
    assert (run["version"], run["expires_at"]) == (2, None)


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
    done = {"status": "success", "duration_ms": 1.0, "rows_in": None, "rows_out": 2, "error": None}
    done |= dict.fromkeys((*module.SEEN_COLUMNS, "blank"))
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


def test_the_database_is_backed_up_before_it_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        with pytest.raises(module.Conflict, match=f"cannot be migrated from schema {len(module.MIGRATIONS) - 1}"):
            with_store(tmp_path, nothing)
    with_store(tmp_path, nothing)
    db = sqlite3.connect(tmp_path / "tau.db")
    assert db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'more'").fetchone() == (0,)
    db.close()


class Hands(module.Clock):
    """A clock that is set by hand."""

    now = 1_800_000_000.0

    def time(self) -> float:
        """What it shows."""
        return self.now


NAMES, SOURCES, KEYS = st.sampled_from("pq"), st.sampled_from("ab"), st.sampled_from([None, None, "k", "l"])


class Books(RuleBasedStateMachine):
    """The store against a dictionary: whatever is done, in whatever order, both answer alike."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop, self.clock = asyncio.new_event_loop(), Hands()
        self.live: dict[str, tuple[bool, int, str]] = {}  # pipeline → in service, version, source
        self.runs: dict[str, dict[str, Any]] = {}
        self.open()

    def open(self) -> None:
        """The store is open, with our clock."""
        self.store = module.Store(self.folder.name, SETTINGS)
        self.store.clock = self.clock
        self.store.open(self.loop)
        self.retention = module.Retention(self.store, lambda: True)

    def teardown(self) -> None:
        """Nothing is left open, and the file is sound."""
        self.store.close()
        self.loop.close()
        db = sqlite3.connect(f"{self.folder.name}/tau.db")
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        db.close()
        self.folder.cleanup()

    def do(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """What a write answers."""

        async def done() -> Any:
            return await self.store.write(work, *arguments)

        return self.loop.run_until_complete(done())

    def of(self, *statuses: str) -> list[str]:
        """The runs of these statuses, oldest first."""
        return [run_id for run_id, run in sorted(self.runs.items()) if run["status"] in statuses]

    def end(self, run_id: str, status: str) -> None:
        """What the books say of a run that has ended now."""
        self.runs[run_id] |= {"status": status, "finished_at": module.rfc3339(self.clock.now)}

    @initialize(source=SOURCES)
    def begin(self, source: str) -> None:
        self.deploy("p", source)
        self.deploy("q", source)

    @rule(name=NAMES, statuses=st.lists(st.sampled_from(module.FINAL), min_size=3, max_size=8))
    def run_to_the_end(self, name: str, statuses: list[str]) -> None:
        for status in statuses:
            if self.live[name][0]:
                self.add_run(name, None, {})
                self.admit(30)
                self.finish(0, status)
                self.clock.now += 3600

    @rule(name=NAMES, source=SOURCES)
    def deploy(self, name: str, source: str) -> None:
        served, version, known = self.live.get(name, (False, 0, ""))
        changed = source != known
        self.live[name] = (True, version + changed, source)
        answer = self.do(self.store.deploy, FOUND[0] | {"name": name}, source * 64, "me")
        assert answer == {"name": name, "version": version + changed, "changed": changed or not served}

    @rule(name=NAMES)
    def undeploy(self, name: str) -> None:
        served, version, known = self.live.get(name, (False, 0, ""))
        waiting = [run_id for run_id in self.of("queued") if self.runs[run_id]["pipeline"] == name]
        answer = self.do(self.store.undeploy, name, "me")
        assert answer == (waiting if served else None)
        if served:
            self.live[name] = (False, version, known)
            for run_id in waiting:
                self.end(run_id, "cancelled")

    @rule(name=NAMES, key=KEYS, params=st.sampled_from([{}, {"x": 1}]))
    def add_run(self, name: str, key: str | None, params: dict[str, Any]) -> None:
        served, version, _ = self.live.get(name, (False, 0, ""))
        same = [one for one, run in self.runs.items() if key and (run["pipeline"], run["key"]) == (name, key)]
        asked = (self.store.add_run, name, params, key, "manual", "me")
        if not served or (same and self.runs[same[0]]["params"] != params):
            with pytest.raises(module.Conflict if served else module.NotFound):
                self.do(*asked)
        elif same:
            assert self.do(*asked) == (same[0], self.runs[same[0]]["status"], True)
        else:
            run_id, status, known = self.do(*asked)
            assert (status, known, run_id > max(self.runs, default="")) == ("queued", False, True)
            self.runs[run_id] = {
                "pipeline": name, "version": version, "status": status, "key": key, "params": params, "finished_at": None,
            }  # fmt: skip

    @rule(free=st.integers(1, 3))
    def admit(self, free: int) -> None:
        chosen = self.of("queued")[:free]
        jobs = self.do(self.store.admit, free, {})
        assert [(job["run_id"], job["version"]) for job in jobs] == [(one, self.runs[one]["version"]) for one in chosen]
        for run_id in chosen:
            self.runs[run_id]["status"] = "running"

    @rule(number=st.integers(0, 20), status=st.sampled_from(module.FINAL))
    def finish(self, number: int, status: str) -> None:
        begun = self.of("running", *module.FINAL)
        begun = [one for one in begun if self.store.ask.rows("SELECT 1 FROM attempts WHERE run_id = ?", one)]
        if not begun:
            return
        run_id = begun[-1 - number % len(begun)]
        error = None if status == "success" else module.bare_error("died", "ProcessDied", "x")
        ended = {"at": self.clock.now, "exit_code": 0, "signal": None}
        outcome = module.Outcome(status, {"n": number} if error is None else None, error)
        self.do(self.store.finish, run_id, 1, [], state(ended=ended), outcome)
        if self.runs[run_id]["status"] == "running":  # else it comes too late
            self.end(run_id, status)

    @rule(number=st.integers(0, 20))
    def cancel(self, number: int) -> None:
        if self.runs:
            run_id = sorted(self.runs)[-1 - number % len(self.runs)]
            waits = self.runs[run_id]["status"] == "queued"
            assert self.do(self.store.cancel_waiting, run_id, "me") == waits
            if waits:
                self.end(run_id, "cancelled")

    @rule(hours=st.sampled_from([0.01, 1, 30, 1000, 3000]))
    def pass_time(self, hours: float) -> None:
        self.clock.now += 3600 * hours

    @rule(
        days=st.sampled_from([None, None, 0.5, 20]), keep=st.sampled_from([None, 1, 3]),
        later=st.sampled_from([0, 1, 2, 30, 100, 400]),
    )  # fmt: skip
    def prune(self, days: float | None, keep: int | None, later: float) -> None:
        self.clock.now += later * module.DAY_S
        terms = module.retention_terms(SETTINGS, None if days is None else days * module.DAY_S, keep)
        doomed = {run_id for name in self.live for run_id in self.old(name, terms)}
        removed = self.loop.run_until_complete(self.retention.prune(terms, self.clock.now, "me"))
        assert removed["runs"] == len(doomed)
        self.runs = {run_id: run for run_id, run in self.runs.items() if run_id not in doomed}

    def old(self, name: str, terms: dict[str, Any]) -> list[str]:
        """The runs of a pipeline that go."""
        mine = [run_id for run_id in sorted(self.runs, reverse=True) if self.runs[run_id]["pipeline"] == name]
        kept = set(mine[:1]) | set([one for one in mine if self.runs[one]["status"] == "success"][:1])
        young, found = self.clock.now - terms["young_s"], []
        for statuses, age in ((["success", "cancelled"], "run_s"), (module.FAILURES, "failed_s")):
            some = [one for one in mine if self.runs[one]["status"] in statuses]
            for place, run_id in enumerate(some):
                aged = run_id < module.id_at(self.clock.now - terms[age]) or place >= terms["runs"]
                aged = (
                    aged and run_id < module.id_at(young) and self.runs[run_id]["finished_at"] < module.rfc3339(young)
                )
                found += [run_id] if aged and run_id not in kept else []
        return found

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()

    @invariant()
    def answers_are_alike(self) -> None:
        ask, newest = self.store.ask, sorted(self.runs, reverse=True)
        assert ask.totals() == {status: len(self.of(status)) for status in module.MOVES}
        assert {one: ask.status_of(one) for one in newest} == {one: self.runs[one]["status"] for one in newest}
        for name, status in ((None, None), ("p", None), ("q", "success"), (None, "failed")):
            wanted = [
                one for one in newest
                if name in (None, self.runs[one]["pipeline"]) and status in (None, self.runs[one]["status"])
            ]  # fmt: skip
            rows, total = ask.runs(name, status, 5)
            assert ([row["run_id"] for row in rows], total) == (wanted[:5], len(wanted))
        broken = sorted(self.of(*module.FAILURES), key=lambda one: (self.runs[one]["finished_at"], one), reverse=True)
        rows, total = ask.failures(5)
        assert ([row["run_id"] for row in rows], total) == (broken[:5], len(broken))
        for name in self.live:
            last = [one for one in newest if self.runs[one]["pipeline"] == name][:1]
            try:
                assert [ask.pick_run(name, None)] == last
            except module.NotFound:
                assert last == []
        served = sorted(name for name, (deployed, _, _) in self.live.items() if deployed)
        assert [row["name"] for row in ask.pipelines(10)[0]] == served


#: More of them, and others each time, with for example EXAMPLES=2000.
EXAMPLES = int(os.environ.get("EXAMPLES", "0"))
Books.TestCase.settings = settings(
    max_examples=EXAMPLES or 15, stateful_step_count=40, derandomize=not EXAMPLES
)  # fmt: skip
TestBooks = Books.TestCase


class SetClock(module.Clock):
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def time(self) -> float:
        """What it was set to."""
        return self.now


def test_a_clock_set_back_a_day_makes_nobody_wait_a_day(tmp_path: Path) -> None:
    clock = SetClock()

    async def told() -> None:
        store = module.Store(str(tmp_path), SETTINGS, clock)
        store.open(asyncio.get_running_loop())
        try:
            options = {"retries": 1, "retry_delay": 5.0, "queue_timeout": 9.0}
            await store.write(store.deploy, FOUND[0] | options, "0" * 64, "me")
            failing, waiting = (await add(store))[0], (await add(store))[0]
            await store.write(store.admit, 1, {})
            failed = module.Outcome("failed", None, module.bare_error("died", "ProcessDied", "x"))
            await store.write(store.finish, failing, 1, [], state(), failed)
            assert store.ask.value("SELECT retry_at FROM runs WHERE run_id = ?", failing) == module.rfc3339(
                clock.now + 5
            )
            clock.now -= 86_400
            await store.write(store.shift_waiting, -86_400)
            assert store.ask.value("SELECT retry_at FROM runs WHERE run_id = ?", failing) == module.rfc3339(
                clock.now + 5
            )
            clock.now += 5
            jobs = await store.write(store.admit, 1, {})
            assert [(job["run_id"], job["attempt"]) for job in jobs] == [(failing, 2)]
            clock.now += 4.5
            assert store.ask.value("SELECT expires_at FROM runs WHERE run_id = ?", waiting) <= module.rfc3339(clock.now)
            await store.write(store.expire_queued)
            assert store.ask.status_of(waiting) == "timed_out"
            assert (await add(store))[0] > waiting  # ids go on
        finally:
            store.close()

    asyncio.run(told())
