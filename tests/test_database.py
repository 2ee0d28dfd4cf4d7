"""The file: a killed store opens, a crash leaves a migration undone or done, damage is refused untouched."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ENVIRON, PATIENCE_S, Tau, eventually, make_home, python

import tau as module

#: A migration that might come next.
NEXT = """
CREATE TABLE notes (run_id TEXT PRIMARY KEY, note TEXT NOT NULL) STRICT;
CREATE TABLE more (x INTEGER) STRICT;
ALTER TABLE runs ADD COLUMN note TEXT;
UPDATE runs SET note = status;
CREATE INDEX runs_noted ON runs (note) WHERE note IS NOT NULL;
INSERT INTO notes SELECT run_id, note FROM runs
"""


@functools.cache
def killed_store() -> bytes:
    """The database of a daemon that was killed with a run under way, its log taken in."""
    made = make_home("[scheduler]\nmax_concurrent = 1\n")
    made.start()
    live_through(made)
    made.kill()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tau.db"
        db = sqlite3.connect(made.home / "tau.db")
        with sqlite3.connect(path) as copy:
            db.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
        copy.close()
        db.close()
        made.start()
        made.stop()
        return path.read_bytes()


def golden(path: Path) -> Path:
    """That database, at *path*."""
    path.write_bytes(killed_store())
    return path


@pytest.fixture
def next_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """This Tau has one more migration."""
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, NEXT))


def tables(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table."""
    db = sqlite3.connect(path)
    db.row_factory = sqlite3.Row
    names = [row["name"] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {name: [dict(row) for row in db.execute(f"SELECT * FROM {name}")] for name in names}
    db.close()
    return found


def still_there(before: dict[str, list[dict[str, Any]]], after: dict[str, list[dict[str, Any]]]) -> None:
    """Fails unless every row is there still, with the values it had."""
    for table, rows in before.items():
        now = [{key: row[key] for key in rows[0]} for row in after[table]] if rows else []
        assert all(row in now for row in rows), table


def version_of(path: Path) -> int:
    """The schema of a database."""
    db = sqlite3.connect(path)
    number = db.execute("PRAGMA user_version").fetchone()[0]
    db.close()
    return int(number)


def opened(home: Path, ask: Callable[[module.Store], Any] = lambda store: None) -> Any:
    """What an opened store answers."""

    async def told() -> Any:
        store = module.Store(str(home), module.read_settings({}, None))
        store.open(asyncio.get_running_loop())
        try:
            return ask(store)
        finally:
            store.close()

    return asyncio.run(told())


def test_a_killed_store_opens_with_its_runs(tmp_path: Path) -> None:
    before = tables(golden(tmp_path / "tau.db"))

    def ask(store: module.Store) -> None:
        runs, total = store.ask.runs(None, None, 100)
        assert total == len(before["runs"]) == 7
        assert {run["run_id"]: run["status"] for run in runs} == {
            run["run_id"]: run["status"] for run in before["runs"]
        }
        assert store.ask.totals() == dict.fromkeys(module.MOVES, 0) | {
            "queued": 1, "running": 1, "success": 2, "failed": 1, "cancelled": 2
        }  # fmt: skip
        assert [len(store.ask.unfinished()), store.ask.failures(10)[1]] == [1, 1]
        done = next(run for run in runs if run["status"] == "success")
        call = types.SimpleNamespace(
            ask=store.ask, daemon=store, settings=store.settings, caller=module.Caller("me", "admin")
        )
        document = module.describe(call, done["run_id"])
        assert document["result"] == {"total": 12.5, "day": "e"}
        assert document["trace"]["log_tail"] == ["fetched", "printed", "slow"]
        assert document["trace"]["steps"][0]["name"] == "extract"
        assert store.ask.pipelines(10)[0][0]["name"] == "orders"

    opened(tmp_path, ask)
    still_there(before, tables(tmp_path / "tau.db"))
    db = sqlite3.connect(tmp_path / "tau.db")
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    assert db.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    db.close()


@pytest.mark.usefixtures("next_schema")
def test_before_a_migration_there_is_a_whole_copy(tmp_path: Path) -> None:
    before = tables(golden(tmp_path / "tau.db"))
    opened(tmp_path)
    number = len(module.MIGRATIONS)
    copy = tmp_path / f"tau.db.before-v{number}"
    assert (version_of(copy), copy.stat().st_mode & 0o777) == (number - 1, 0o600)
    assert tables(copy) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tau.db", copy.name]
    after = tables(tmp_path / "tau.db")
    still_there(before, after)
    assert {row["note"] for row in after["notes"]} == {run["status"] for run in before["runs"]}


@pytest.mark.usefixtures("next_schema")
def test_without_a_copy_nothing_is_migrated(tmp_path: Path) -> None:
    path, number = golden(tmp_path / "tau.db"), len(module.MIGRATIONS)
    (tmp_path / f"tau.db.before-v{number}").mkdir()
    with pytest.raises(module.Conflict, match=f"cannot be migrated from schema {number - 1}"):
        opened(tmp_path)
    assert version_of(path) == number - 1


@pytest.mark.parametrize("schema", [1, 3, 4, 5, 6, 7])
def test_an_old_store_is_migrated_and_its_schedule_goes_on(home: Tau, schema: int) -> None:
    db = sqlite3.connect(home.home / "tau.db")
    rows = (Path(__file__).parent / "data" / f"store-v{schema}.sql").read_text()
    db.executescript(";".join(module.MIGRATIONS[:schema]) + ";" + rows)
    db.executescript(f"PRAGMA application_id = {module.APPLICATION_ID}; PRAGMA user_version = {schema}")
    before = dict(db.execute("SELECT type, count(*) FROM events GROUP BY type"))
    own = "SELECT status FROM runs WHERE pipeline = 'nightly' AND trigger <> 'catchup' ORDER BY run_id DESC"
    statuses = [status for (status,) in db.execute(own)]
    db.close()
    (home.home / "tau.db").chmod(0o600)
    (home.home / "data" / "nightly").mkdir(parents=True)
    (home.home / "data" / "nightly" / "orders.csv").write_text("id,price\n1,2.5\n")
    home.start()
    assert version_of(home.home / "tau.db") == len(module.MIGRATIONS)
    assert version_of(home.home / f"tau.db.before-v{len(module.MIGRATIONS)}") == schema
    shown = home("schedule", "nightly")
    assert (shown["cron"], shown["overlap"], shown["start"], shown["end"]) == ("30 7 * * *", "queue", None, None)
    assert home("schedule", "nightly", "--clear")["cron"] == "0 6 * * *"
    assert home("run", "nightly")["status"] == "success"
    now = home.call("runs", name="nightly")
    runs = [run for run in now["runs"] if run["trigger"] != "catchup"]  # a tick may have passed since it was written
    assert [run["status"] for run in runs] == ["success", *statuses]
    db = sqlite3.connect(home.home / "tau.db")
    after = dict(db.execute("SELECT type, count(*) FROM events GROUP BY type"))
    assert after["schedule.changed"] == before["schedule.changed"] + 1  # by --clear
    db.close()


#: Opens the store of a home again and again, each time killed before one more statement than the last time,
#: until it opens.  The parent says of each corpse what it is.
KILLED = """
import asyncio, os, shutil, signal, sqlite3, sys
import tau
home, golden, migration = sys.argv[1:]
tau.MIGRATIONS += (migration,)
connect = sqlite3.connect
def opening():
    tau.sweep_copies(home)
    store = tau.Store(home, tau.read_settings({}, None))
    loop = asyncio.new_event_loop()
    store.open(loop)
    store.close()
    loop.close()
for fatal in range(1, 1000):
    shutil.rmtree(home, ignore_errors=True)
    os.mkdir(home)
    shutil.copy(golden, home + "/tau.db")
    pid = os.fork()
    if not pid:
        left = fatal
        def count(statement):
            global left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        def counted(*words, **more):
            db = connect(*words, **more)
            db.set_trace_callback(count)
            return db
        sqlite3.connect = counted
        opening()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    corpse = connect(home + "/tau.db")
    print(status, corpse.execute("PRAGMA user_version").fetchone()[0],
          corpse.execute("SELECT count(*) FROM runs").fetchone()[0],
          corpse.execute("PRAGMA integrity_check").fetchone()[0],
          len(corpse.execute("SELECT name FROM sqlite_master").fetchall()), flush=True)
    corpse.close()
    if status == 0:
        break
    opening()
    corpse = connect(home + "/tau.db")
    assert corpse.execute("PRAGMA user_version").fetchone()[0] == len(tau.MIGRATIONS)
    assert corpse.execute("SELECT count(*) FROM runs").fetchone()[0] == 7
    corpse.close()
    assert not [name for name in os.listdir(home) if name.startswith(".tau-")]
"""


def test_a_migration_killed_at_any_statement_is_done_or_undone(tmp_path: Path) -> None:
    path = golden(tmp_path / "golden.db")
    code = [sys.executable, "-P", "-c", KILLED, tmp_path / "home", path, NEXT]
    done = subprocess.run(code, env=ENVIRON, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = [line.split() for line in done.stdout.splitlines()]
    number = len(module.MIGRATIONS)
    now = str(number + 1)
    assert len(seen) > 10 + NEXT.count(";")
    assert seen[-1][:2] == ["0", now]
    assert {status for status, *_ in seen[:-1]} == {"9"}
    assert len({(schema, tables) for _, schema, _, _, tables in seen}) == 2  # never half
    assert {schema for _, schema, *_ in seen} == {str(number), now}
    assert {(runs, sound) for _, _, runs, sound, _ in seen} == {("7", "ok")}


def test_whoever_looks_into_the_store_meanwhile_takes_nothing_away(fresh: Tau) -> None:
    fresh.deploy_it("def it(ctx): ...\n")
    db = sqlite3.connect(fresh.home / "tau.db")
    assert db.execute("SELECT count(*) FROM runs").fetchone() == (0,)
    db.close()  # as the last one, as far as it can see, it would take in the log and remove it
    assert (fresh.home / "tau.db-wal").exists()
    run_id = fresh("run", "it")["run_id"]
    fresh.kill()
    fresh.start()
    assert fresh("inspect", run_id)["status"] == "success"


# What cannot be used is refused, and left as it is.


@pytest.fixture(scope="module")
def lived_in() -> Iterator[Path]:
    """A home that was served, stopped, and has a backup; tests take copies."""
    made = make_home()
    made.start()
    made.deploy_it("def it(ctx):\n    return list(range(2000))\n")
    for _ in range(3):
        made("run", "it")
    made("shutdown")
    eventually(lambda: not made.remains())
    (made.home / "backups").mkdir()
    shutil.copy(made.home / "tau.db", made.home / "backups" / "yesterday.tau")
    yield made.home
    made.stop()
    made.home.parent.rmdir()


def zero_header(path: Path) -> None:
    """The first bytes are gone."""
    path.write_bytes(b"\0" * 100 + path.read_bytes()[100:])


def garbage(path: Path) -> None:
    """Pages in the middle were written over."""
    content = bytearray(path.read_bytes())
    content[3 * 4096 : 6 * 4096] = b"\xa5" * (3 * 4096)
    path.write_bytes(content)


def truncate(path: Path) -> None:
    """The second half is missing."""
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    """Nothing is left but the name."""
    os.truncate(path, 0)


def lose(path: Path) -> None:
    """The file is gone, and what it had not taken in is still there."""
    path.rename(f"{path}-wal")


def without_log(path: Path) -> None:
    """A copy of the file alone, while everything was still in the log."""
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.close()


def newer(path: Path) -> None:
    """A Tau of the future was here."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()


def newer_in_the_log(path: Path) -> None:
    """A Tau of the future was killed here: what it changed is still in the log."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    log = Path(f"{path}-wal").read_bytes()
    before = path.read_bytes()
    db.close()
    path.write_bytes(before)
    Path(f"{path}-wal").write_bytes(log)


def somebody_elses(path: Path) -> None:
    """Another program's database."""
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE customers (name TEXT)")
    db.close()


BROKEN = [
    (zero_header, "is not a usable database: file is not a database"),
    (garbage, "is not a usable database"),
    (truncate, "is not a usable database"),
    (empty, "is empty, but"),
    (lose, "is still in its -wal"),
    (without_log, "is empty, but"),
    (newer, "was written by a newer Tau (schema 99"),
    (newer_in_the_log, "was written by a newer Tau (schema 99"),
    (somebody_elses, "belongs to another program"),
]


def contents(home: Path) -> dict[str, bytes]:
    """Every file of a home that must not change when its database is refused."""
    files = [path for path in home.rglob("*") if path.is_file()]
    return {
        path.name: path.read_bytes() for path in files if path.name not in ("tau.lock", "tau.db-shm")
    }  # -shm is an index of -wal, made anew by whoever looks


@pytest.mark.parametrize(("damage", "why"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_what_cannot_be_used_is_refused_untouched(
    home: Tau, lived_in: Path, damage: Callable[[Path], None], why: str
) -> None:
    shutil.copytree(lived_in, home.home, dirs_exist_ok=True)
    damage(home.home / "tau.db")
    before = contents(home.home)
    error = refusal_of(home)
    assert (error["code"], why in error["message"]) == ("conflict", True), error
    if damage is not somebody_elses:
        assert f"taud --restore {home.home}/backups/yesterday.tau --replace" in error["hint"]
    assert contents(home.home) == before
    again = refusal_of(home)
    assert again == error


def refusal_of(home: Tau) -> Any:
    """The error that `taud` ends with."""
    done = subprocess.run(python("taud"), env=home.environ, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, "Traceback" in done.stderr) == (5, False), done.stderr
    return json.loads(done.stderr.splitlines()[-1])["error"]


def test_without_a_backup_the_refusal_says_so(home: Tau, lived_in: Path) -> None:
    shutil.copytree(lived_in, home.home, dirs_exist_ok=True)
    shutil.rmtree(home.home / "backups")
    zero_header(home.home / "tau.db")
    assert "no backup lies beside it" in refusal_of(home)["hint"]


def test_a_large_database_is_not_looked_through_whole(
    home: Tau, lived_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(lived_in, home.home, dirs_exist_ok=True)
    path = home.home / "tau.db"
    db = sqlite3.connect(path)
    page = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'logs'").fetchone()[0]
    db.close()
    content = bytearray(path.read_bytes())
    content[(page - 1) * 4096 : page * 4096] = b"\xa5" * 4096
    path.write_bytes(content)
    with pytest.raises(module.Conflict, match="not a usable database"):
        module.examine(str(path))
    monkeypatch.setattr(module, "CHECK_BYTES", 1000)
    assert module.examine(str(path)) == len(module.MIGRATIONS)
    garbage(path)
    with pytest.raises(module.Conflict, match="not a usable database"):
        module.examine(str(path))


#: Opens the store of a home as a user who may not write everything there.
UNPRIVILEGED = """
import asyncio, os, sqlite3, sys, tau
import hashlib, random, queue, threading
settings = tau.read_settings({}, None)
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    tau.Store(sys.argv[1], settings).open(asyncio.new_event_loop())
except tau.Conflict as refused:
    print(refused, "|", refused.hint)
"""


@pytest.mark.parametrize(("place", "mode"), [("tau.db", 0o400), (".", 0o500), ("tau.db", 0o000)])
def test_a_place_that_cannot_be_written_is_refused_by_name(tmp_path: Path, place: str, mode: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    opened(home)
    if os.geteuid() == 0:
        for path in (home, home / "tau.db"):
            os.chown(path, 65534, 65534)
        for parent in home.parents[:3]:
            parent.chmod(0o755)
    (home / place).chmod(mode)
    code = [sys.executable, "-P", "-c", UNPRIVILEGED, home]
    done = subprocess.run(code, env=ENVIRON, capture_output=True, text=True, timeout=PATIENCE_S)
    (home / place).chmod(0o700)
    assert f"{home}/tau.db cannot be written" in done.stdout, done.stderr
    assert "denied" in done.stdout or "unable to open" in done.stdout or "readonly" in done.stdout
    assert "| make it and its directory writable" in done.stdout


STORY = """
from tau import pipeline

@pipeline(description="Paid orders", tags=["daily"], schedule="0 6 * * *", timezone="Europe/London")
def orders(ctx, bad: bool = False):
    with ctx.step("extract") as step:
        step.rows_out = 2
        with ctx.step("page 1"):
            ctx.log("fetched", rows=2)
    rows = ctx.transform([{"id": 1, "paid": True}], steps=[lambda rows: rows])
    ctx.check(len(list(rows)) == 1)
    ctx.metric("rejected", 0)
    ctx.progress(1, 2, "half")
    ctx.state["runs"] = ctx.state.get("runs", 0) + 1
    if bad:
        with ctx.step("sum"):
            raise KeyError("amount")
    print("printed")
    ctx.log("slow", level="warning")
    return {"total": 12.5, "day": "é"}

@pipeline
def waits(ctx):
    import time
    with ctx.step("waiting"):
        time.sleep(600)
"""


def live_through(made: Tau) -> None:
    """Runs of every kind, one of them under way and one queued, in two versions."""
    made.deploy(STORY, "orders.py")
    made.command("run", "orders", "--key", "first")
    made.command("run", "orders", "-p", "bad=true")
    made.deploy(STORY.replace("é", "e"), "orders.py")
    made.command("run", "orders", "--params", '{"bad": false}')
    for end in (True, False):
        run_id = made("run", "waits", "--detach")["run_id"]
        eventually(lambda run_id=run_id: made.call("inspect", run_id=run_id)["trace"]["steps"])
        if end:
            made("cancel", run_id)
    made("run", "orders", "--detach", "--key", "queued")
    made("cancel", made("run", "orders", "--detach")["run_id"])
    made("undeploy", "waits")
    made.deploy('from tau import pipeline\n@pipeline(after=["orders"])\ndef report(ctx): ...\n')
    made("pause", "orders")
    made.call("key_create", name="ci", scope="read", pipelines="orders*", expires="3650d")
