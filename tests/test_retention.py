"""What is old goes, what is needed stays, nobody waits for it, and the file gets smaller."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sqlite3
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, Tau, eventually, python
from test_store import with_store

import tau as module

NOW = time.time()
DAY = module.DAY_S
SETTINGS = module.read_settings({}, None)
TERMS = module.retention_terms(SETTINGS)
ERROR = module.encode_json(module.bare_error("exception", "ValueError", "as planned"))


class Past:
    """Puts runs of long ago into a store, by hand."""

    def __init__(self, db: sqlite3.Connection, now: float = NOW) -> None:
        self.db, self.now, self.made = db, now, 0

    def run(
        self, days: float, status: str = "success", name: str = "p", *, version: int = 1, lines: int = 2, steps: int = 1,
        ended: float | None = None,
    ) -> str:  # fmt: skip
        """The id of a run that was queued so many days ago, and ended then or *ended* days ago."""
        self.made += 1
        at = self.now - days * DAY
        run_id = module.spell_id(module.read_id(module.id_at(at)) + self.made)
        final = status in module.FINAL
        finished = module.rfc3339(self.now - (days if ended is None else ended) * DAY) if final else None
        self.db.execute(
            "INSERT INTO runs (run_id, pipeline, version, status, trigger, attempt, params, queued_at, finished_at, error)"
            " VALUES (?, ?, ?, ?, 'manual', 1, '{}', ?, ?, ?)",
            (run_id, name, version, status, module.rfc3339(at), finished, ERROR if status in module.FAILURES else None),
        )  # fmt: skip
        if status != "queued":
            self.db.execute(
                "INSERT INTO attempts (run_id, attempt, journal, position, log_lines, log_dropped)"
                " VALUES (?, 1, 'j', '{}', ?, 0)",
                (run_id, lines),
            )
        rows = [(run_id, n, module.rfc3339(at), "x" * 80) for n in range(lines)]
        self.db.executemany("INSERT INTO logs VALUES (?, 1, ?, ?, 'info', NULL, NULL, ?, NULL)", rows)
        self.db.executemany(
            "INSERT INTO steps (run_id, attempt, step, name, path, status, started_at, n)"
            " VALUES (?, 1, ?, 's', 's', 'success', ?, 1)",
            [(run_id, n, module.rfc3339(at)) for n in range(steps)],
        )
        for kind in ("run.queued", "run.finished"):
            self.event(days, kind, name, run_id)
        return run_id

    def event(self, days: float, kind: str, name: str | None = None, run_id: str | None = None) -> None:
        """An event of so many days ago."""
        self.db.execute(
            "INSERT INTO events (at, type, pipeline, run_id, data, actor) VALUES (?, ?, ?, ?, '{}', 'me')",
            (module.rfc3339(self.now - days * DAY), kind, name, run_id),
        )


def told(
    tmp_path: Path, fill: Callable[[Past], Any], story: Callable[[module.Store, module.Retention, Any], Awaitable[Any]]
) -> Any:  # fmt: skip
    """A story of a store that was filled before, and of what keeps it small."""

    async def begin(store: module.Store) -> Any:
        filled = await store.write(lambda: fill(Past(store.db)))
        retention = module.Retention(store, lambda: True)
        return await story(store, retention, filled)

    answer = with_store(tmp_path, begin)
    db = sqlite3.connect(tmp_path / "tau.db")
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    counted = dict(db.execute("SELECT status, count(*) FROM runs GROUP BY status").fetchall())
    assert {status: runs for status, runs in db.execute("SELECT status, runs FROM totals") if runs} == counted
    for table in ("attempts", "logs", "steps", "observations"):
        orphans = f"SELECT count(*) FROM {table} WHERE run_id NOT IN (SELECT run_id FROM runs)"
        assert db.execute(orphans).fetchone() == (0,), table
    db.close()
    return answer


def ids(store: module.Store) -> set[str]:
    """The runs that are left."""
    return {row["run_id"] for row in store.ask.runs(None, None, 10_000)[0]}


def test_every_final_status_has_an_age() -> None:
    assert sorted(status for statuses, _ in module.AGES for status in statuses) == sorted(module.FINAL)


def test_runs_go_by_age_and_failed_ones_later(tmp_path: Path) -> None:
    stays = [(89, "success"), (89, "cancelled"), (91, "failed"), (364, "timed_out"), (364, "lost")]
    goes = [(91, "success"), (91, "cancelled"), (366, "failed"), (400, "timed_out"), (366, "lost")]

    def fill(past: Past) -> tuple[set[str], set[str]]:
        last = past.run(1.5)
        kept = {past.run(*one) for one in stays} | {last}
        waiting = {past.run(500, "queued"), past.run(500, "running"), past.run(500, "retrying")}
        just_ended = past.run(500, "success", ended=0.5)
        return kept | waiting | {just_ended}, {past.run(*one) for one in goes}

    async def story(store: module.Store, retention: module.Retention, filled: tuple[set[str], set[str]]) -> None:
        removed = await retention.prune(TERMS, NOW, "me")
        assert ids(store) == filled[0]
        assert (removed["runs"], removed["pipelines"]) == (5, [{"name": "p", "runs": 5}])
        for run_id in filled[1]:
            with pytest.raises(module.NotFound):
                store.ask.pick_run(None, run_id)
        again = await retention.prune(TERMS, NOW, "me")
        assert again["runs"] == again["log_lines"] == again["events"] == 0

    told(tmp_path, fill, story)


def test_the_last_run_the_last_success_and_what_is_referred_to_stay(tmp_path: Path) -> None:
    def fill(past: Past) -> set[str]:
        past.run(999)
        state, chain = past.run(990), past.run(980)
        past.db.execute("INSERT INTO states VALUES ('p', '{}', ?, 'T')", (state,))
        past.db.execute("INSERT INTO chains VALUES ('q', 'p', ?)", (chain,))
        success = past.run(900)
        past.run(800, "failed")
        return {state, chain, success, past.run(700, "cancelled")}

    async def story(store: module.Store, retention: module.Retention, stays: set[str]) -> None:
        await retention.prune(TERMS, NOW, "me")
        assert ids(store) == stays

    told(tmp_path, fill, story)


def test_runs_go_by_number_but_nothing_young(tmp_path: Path) -> None:
    def fill(past: Past) -> set[str]:
        past.db.execute("INSERT INTO pipelines SELECT 'q', 1, 1, created_at, updated_at FROM pipelines")
        past.db.execute("INSERT INTO versions SELECT 'q', 1, sha256, entry, function, options, deployed_at, actor, NULL, NULL, NULL, NULL FROM versions")  # fmt: skip
        young = {past.run(0.9 - n / 100) for n in range(8)}
        failed = [past.run(10 - n, "failed") for n in range(8)]
        past.run(5)  # eight younger ones are enough
        others = [past.run(20 - n, status, "q") for n, status in enumerate(["success", "cancelled"] * 4)]
        return young | set(failed[-5:]) | set(others[-5:])

    async def story(store: module.Store, retention: module.Retention, stays: set[str]) -> None:
        await retention.prune(module.retention_terms(SETTINGS, None, 5), NOW, "me")
        assert ids(store) == stays

    told(tmp_path, fill, story)


def test_asked_for_by_hand_the_young_go_too_but_not_the_fresh(tmp_path: Path) -> None:
    def fill(past: Past) -> list[str]:
        return [past.run(2 / 24), past.run(1 / 24, "failed"), past.run(30 / DAY), past.run(20 / DAY, "failed")]

    async def story(store: module.Store, retention: module.Retention, runs: list[str]) -> None:
        await retention.prune(module.retention_terms(SETTINGS, 0.0), NOW, "me")
        assert ids(store) == set(runs[2:])

    told(tmp_path, fill, story)


def test_logs_go_before_their_runs_and_the_runs_say_so(tmp_path: Path) -> None:
    def fill(past: Past) -> list[str]:
        return [
            past.run(31, lines=3000), past.run(60, "failed", lines=5), past.run(40, "running", lines=4), past.run(29, lines=3),
        ]  # fmt: skip

    async def story(store: module.Store, retention: module.Retention, runs: list[str]) -> None:
        removed = await retention.prune(TERMS, NOW, "me")
        assert (removed["runs"], removed["log_lines"]) == (0, 3005)
        found = [store.ask.logs(run_id, (), None, 10, None)[1:] for run_id in runs]
        assert found == [(0, 3000), (0, 5), (4, 0), (3, 0)]

    told(tmp_path, fill, story)


def test_the_ledger_keeps_other_events_longer_and_never_uses_a_number_twice(tmp_path: Path) -> None:
    def fill(past: Past) -> None:
        past.db.execute("DELETE FROM events")
        for days in (400, 366, 364):
            past.event(days, "pipeline.deployed", "p")
        past.run(1.5)
        past.run(100)  # the newest two events are of a run that goes

    async def story(store: module.Store, retention: module.Retention, _: None) -> None:
        last = store.ask.value("SELECT max(seq) FROM events")
        removed = await retention.prune(TERMS, NOW, "me")
        assert removed["events"] == 3  # two old ones and one of the run: the newest stays
        left = store.ask.rows("SELECT seq, type FROM events ORDER BY seq")
        assert [row["type"] for row in left].count("pipeline.deployed") == 1
        assert (left[-1]["type"], left[-1]["seq"]) == ("store.pruned", last + 1)

    told(tmp_path, fill, story)


def test_versions_that_nothing_needs_go_with_their_directories(tmp_path: Path) -> None:
    def fill(past: Past) -> None:
        past.db.execute("DELETE FROM versions")
        past.db.execute("UPDATE pipelines SET version = 6")
        for number, days in ((1, 200), (2, 200), (3, 200), (4, 10), (5, 300), (6, 200)):
            digest, environment = str(number) * 64, {3: "e3", 2: "e2"}.get(number)
            options = json.dumps({"params": {}, "environment": environment})
            values = ("p", number, digest, "p.py", "p", options, module.rfc3339(NOW - days * DAY), "me")
            past.db.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL, NULL, NULL)", values)
            (tmp_path / "versions" / digest / "sub").mkdir(parents=True)
        past.db.execute("UPDATE versions SET sha256 = ? WHERE version = 5", ("6" * 64,))
        for name in ("e2", "e3"):
            (tmp_path / "environments" / name / "bin").mkdir(parents=True)
        past.run(100, version=1)  # goes, and with it the need for its version
        past.run(50, version=2)

    async def story(store: module.Store, retention: module.Retention, _: None) -> None:
        retention.deploying = 1
        assert (await retention.prune(TERMS, NOW, "me"))["versions"] == 3
        assert len(os.listdir(tmp_path / "versions")) == 6  # somebody may be about to name one of them
        retention.deploying = 0
        await store.write(store.db.execute, "UPDATE runs SET version = 4")
        assert (await retention.prune(TERMS, NOW, "me"))["versions"] == 1
        assert [row["version"] for row in store.ask.rows("SELECT version FROM versions")] == [4, 6]
        assert sorted(os.listdir(tmp_path / "versions")) == [n * 64 for n in "46"]
        assert os.listdir(tmp_path / "environments") == []
        await store.write(store.db.execute, "UPDATE pipelines SET version = 4")  # rolled back: the newest stays
        assert (await retention.prune(TERMS, NOW, "me"))["versions"] == 0

    told(tmp_path, fill, story)


def test_incidents_go_when_they_are_closed_and_old_or_have_no_run_left(tmp_path: Path) -> None:
    def fill(past: Past) -> None:
        kept, gone = past.run(1.5), past.run(400, "failed")
        for name, status, days, run_id in (
            ("old", "closed", 366, kept),
            ("recent", "closed", 364, gone),
            ("open", "open", 400, kept),
            ("left", "open", 400, gone),
        ):
            row = {"incident": name, "pipeline": "p", "fingerprint": name, "status": status, "count": 1, "type": "E"}
            row |= {"message": "m", "versions": [1], "first_at": "t", "last_run": run_id}
            module.Sql(past.db).put("incidents", row | {"last_at": module.rfc3339(past.now - days * DAY)})

    async def story(store: module.Store, retention: module.Retention, _: None) -> None:
        foreseen = module.foresee(store.database.path, TERMS, NOW)
        removed = await retention.prune(TERMS, NOW, "me")
        assert (removed["incidents"], foreseen["incidents"]) == (2, 2)
        assert [row["incident"] for row in store.ask.incidents(10, {})[0]] == ["open", "recent"]
        await store.write(store.delete_pipeline, "p")
        assert store.ask.incidents(10, {}) == ([], 0)

    told(tmp_path, fill, story)


def test_too_large_a_database_loses_logs_first_then_the_oldest_runs(tmp_path: Path) -> None:
    def fill(past: Past) -> dict[str, list[str]]:
        return {
            "old": [past.run(20 - n / 100, "failed" if n % 2 else "success", lines=20) for n in range(500)],
            "young": [past.run(0.9 - n / 1000, lines=20) for n in range(100)],
            "fresh": [past.run(0.01 - n / 100_000, lines=20) for n in range(20)],
        }

    async def story(store: module.Store, retention: module.Retention, runs: dict[str, list[str]]) -> None:
        whole = store.ask.used_bytes()
        before = ids(store)
        removed = await retention.prune(TERMS | {"bytes": int(whole * 0.6)}, NOW, "me")
        assert (removed["runs"], removed["forced"]) == (0, ["logs older than 1d"])
        assert ids(store) == before
        assert store.ask.logs(runs["old"][0], (), None, 10, None)[1] == 0
        assert store.ask.logs(runs["young"][0], (), None, 10, None)[1] == 20
        await retention.prune(TERMS | {"log_s": DAY}, NOW, "me")
        most = int(store.ask.used_bytes() * 0.95)
        removed = await retention.prune(TERMS | {"bytes": most}, NOW, "me")
        assert removed["forced"] == ["runs older than 1d"]
        assert 0 < removed["runs"] < 500
        assert set(runs["old"][removed["runs"] :]) <= ids(store)  # the oldest went
        assert store.ask.used_bytes() <= most
        removed = await retention.prune(TERMS | {"bytes": 1}, NOW, "me")
        assert removed["forced"][-2:] == ["logs older than 1h", "runs older than 1h"]
        assert ids(store) == set(runs["fresh"])
        forced = store.ask.rows("SELECT data FROM events WHERE type = 'retention.forced'")
        assert [row["data"]["what"] for row in forced][-4:] == ["runs", "runs", "logs", "runs"]
        again = await retention.prune(TERMS | {"bytes": 1}, NOW, "me")
        assert (
            again["forced"] == []
        )  # what must stay is too large: that is said in the log, not each hour in the ledger

    told(tmp_path, fill, story)


def test_what_is_foreseen_is_what_happens(tmp_path: Path) -> None:
    chance = random.Random(7)

    def fill(past: Past) -> None:
        for name in "abc":
            past.db.execute("INSERT INTO pipelines SELECT ?, 9, 1, created_at, updated_at FROM pipelines WHERE name = 'p'", (name,))  # fmt: skip
            for number in range(1, 10):
                at = module.rfc3339(NOW - chance.uniform(50, 200) * DAY)
                past.db.execute(
                    "INSERT INTO versions VALUES (?, ?, 'x', 'p.py', 'p', '{}', ?, 'me', NULL, NULL, NULL, NULL)",
                    (name, number, at),
                )
        for _ in range(600):
            status = chance.choice(list(module.MOVES))
            past.run(
                chance.uniform(0, 500), status, chance.choice("abc"), version=chance.randint(1, 9),
                lines=0 if status == "queued" else chance.randint(0, 30),
            )  # fmt: skip
            past.event(chance.uniform(0, 0.1), "tick.skipped", "a")

    async def story(store: module.Store, retention: module.Retention, _: None) -> None:
        for age, keep in ((None, None), (None, 20), (30 * DAY, None), (0.5 * DAY, 3)):
            terms = module.retention_terms(SETTINGS, age, keep)
            seen, left = module.foresee(store.database.path, terms, NOW), ids(store)
            assert ids(store) == left
            done = await retention.prune(terms, NOW, "me")
            keys = ("runs", "log_lines", "events", "versions", "pipelines", "forced")
            assert {key: seen[key] for key in keys} == {key: done[key] for key in keys}
            assert seen["runs"] > 0
            assert len(ids(store)) == len(left) - done["runs"]

    told(tmp_path, fill, story)


def test_the_file_shrinks_and_others_go_first(tmp_path: Path) -> None:
    def fill(past: Past) -> None:
        past.run(200, lines=10_000, steps=5_000)
        for n in range(2000):
            past.run(100 - n / 200, lines=20)
        past.run(1.5)

    async def story(store: module.Store, retention: module.Retention, _: None) -> None:
        size = (tmp_path / "tau.db").stat().st_size + (tmp_path / "tau.db-wal").stat().st_size
        writes, write = [], store.write

        def counted(work: Any, *arguments: Any) -> Any:
            writes.append(work)
            return write(work, *arguments)

        retention.store = store
        store.write = counted  # type: ignore[method-assign]
        pruning = asyncio.ensure_future(retention.prune(TERMS, NOW, "me", thorough=True))
        answers = 0
        while not pruning.done():
            await write(store.add_run, "p", {}, None, "manual", "me")
            answers += 1
        removed = await pruning
        assert (removed["runs"], removed["log_lines"]) == (2001, 50_000)
        assert len(writes) > 30
        assert answers > 30  # each of them waited for one batch at most
        assert removed["bytes_after"] < removed["bytes_before"] / 5
        assert removed["bytes_after"] < size / 5

    told(tmp_path, fill, story)
    assert (tmp_path / "tau.db").stat().st_size < 1 << 20


def test_memos_go_with_the_logs_or_with_their_run(tmp_path: Path) -> None:
    def fill(past: Past) -> list[str]:
        runs = [past.run(*one) for one in ((29, "failed"), (31, "failed"), (500, "failed"), (40, "retrying"))]
        for run_id in [*runs, module.id_at(NOW)]:
            (tmp_path / "memos" / run_id).mkdir(parents=True)
        return runs

    async def story(store: module.Store, retention: module.Retention, runs: list[str]) -> None:
        await retention.prune(TERMS, NOW, "me")
        assert sorted(os.listdir(tmp_path / "memos")) == sorted([runs[0], runs[3]])

    told(tmp_path, fill, story)


# Through the daemon.


def filled(tau: Tau, count: int, days: float = 100.0) -> list[str]:
    """Old runs in the store of a stopped daemon."""
    db = sqlite3.connect(tau.home / "tau.db")
    past = Past(db, time.time())
    with db:
        runs = [past.run(days - n / 100_000, name="it") for n in range(count)]
    db.close()
    return runs


def test_a_daemon_removes_what_is_old_by_itself(home: Tau) -> None:
    home.start()
    home.deploy_it("def it(ctx): ...\n")
    new = home("run", "it")["run_id"]
    home("shutdown")
    filled(home, 50)
    home.start()
    eventually(lambda: home.call("status")["runs"]["success"] == 1)
    assert home("runs", "it")["runs"][0]["run_id"] == new


def test_prune_tells_first_and_then_does_it(home: Tau) -> None:
    (home.home / "tau.toml").write_text("[retention]\nrun_days = 3650.0\nlog_days = 3650.0\n")
    home.start()
    home.deploy_it("def it(ctx): ...\n")
    home("run", "it")
    home("shutdown")
    old = filled(home, 30)
    home.start()
    seen = home("prune", "--dry-run", "--older-than", "30d")
    assert (seen["dry_run"], seen["runs"], seen["log_lines"], seen["bytes_after"]) == (True, 30, 60, None)
    assert home("prune")["runs"] == 0
    assert home("prune", "--keep", "21")["runs"] == 10
    done = home("prune", "--older-than", "30d")
    assert (done["dry_run"], done["pipelines"]) == (False, [{"name": "it", "runs": 20}])
    assert home("inspect", old[-1], exit=3)["code"] == "not_found"
    for words in (["--keep", "0"], ["--older-than", "soon"], ["--older-than", "-3"]):
        assert home("prune", *words, exit=2)["code"] == "bad_request"
    assert home("run", "it")["status"] == "success"


def test_a_daemon_killed_while_it_removes_goes_on_later(home: Tau) -> None:
    home.start()
    home.deploy_it("def it(ctx): ...\n")
    home("run", "it")
    home("shutdown")
    filled(home, 10_000)
    home.start()
    pruning = subprocess.Popen(
        [*python("main"), "prune"], env=home.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    eventually(lambda: home.call("status")["runs"]["success"] < 9_500)
    home.kill()
    pruning.communicate(timeout=PATIENCE_S)
    db = sqlite3.connect(home.home / "tau.db")
    left = db.execute("SELECT count(*) FROM runs").fetchone()[0]
    assert 1 < left < 9_500
    assert db.execute("SELECT runs FROM totals WHERE status = 'success'").fetchone() == (left,)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert db.execute("SELECT count(*) FROM attempts WHERE run_id NOT IN (SELECT run_id FROM runs)").fetchone() == (0,)
    db.close()
    home.start()
    home("prune")
    assert home("status")["runs"]["success"] == 1


def test_the_version_that_would_come_back_stays(fresh: Tau) -> None:
    for number in range(4):
        fresh.deploy(f"from tau import pipeline\n@pipeline\ndef kept(ctx): return {number}\n", "kept.py")
    fresh("shutdown")
    with contextlib.closing(sqlite3.connect(fresh.home / "tau.db")) as db, db:
        db.execute("UPDATE versions SET deployed_at = '2026-01-02T00:00:00.000Z'")
    fresh.start()
    fresh("prune")
    assert [row["version"] for row in fresh("versions", "kept")["versions"]] == [4, 3]
    assert fresh("rollback", "kept")["version"] == 3
