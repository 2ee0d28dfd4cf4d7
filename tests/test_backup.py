"""A backup is of one moment, whole or not there; a restored home runs on, runs nothing twice and loses nothing."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ENVIRON, SEED, THOROUGH, Tau, eventually, make_home, run
from test_database import contents, golden, next_schema, opened, version_of  # noqa: F401

import tau as module

COUNTING = """
    import os, time
    from pathlib import Path
    def it(ctx, block: bool = False):
        with open("ran", "a") as file:
            file.write(ctx.run_id + "\\n")
        with ctx.step("waiting"):
            while block and not Path("go").exists():
                time.sleep(0.01)
        return "done"
"""


def taud(tau: Tau, *words: Any) -> tuple[int, Any]:
    """`taud` with words that make it return: its exit code, and what it prints or refuses with."""
    done = run("taud", "--json", *words, cwd=tau.work, environ=tau.environ)
    assert "Traceback" not in done.err
    return done.exit, json.loads((done.out or done.err).splitlines()[-1])


def question(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """What a database answers."""
    db = sqlite3.connect(path)
    rows = db.execute(sql).fetchall()
    db.close()
    return rows


@pytest.fixture(scope="module")
def saved() -> Iterator[Tau]:
    """A stopped home with a backup, `work/saved.tau`, of two versions and three runs; tests only read it."""
    made = make_home()
    made.start()
    made.deploy_it("def it(ctx):\n    return 1\n")
    first = made("run", "it", "--key", "k")
    made.deploy_it("import rules\ndef it(ctx):\n    return rules.ANSWER\n") if False else made.deploy_it(COUNTING)
    made("run", "it")
    made("run", "it")
    answer = made("backup", "saved.tau")
    assert answer["runs"] == 3
    (made.work / "first").write_text(first["run_id"])
    made("shutdown")
    eventually(lambda: not made.remains())
    yield made
    made.stop()
    made.home.parent.rmdir()


def test_a_backup_made_while_runs_are_added_has_all_that_was_acknowledged(fresh: Tau) -> None:
    fresh.deploy_it(COUNTING)
    with fresh.connect() as wire, fresh.connect() as other:
        for number in range(200):
            wire.send({"id": number, "method": "run", "params": {"name": "it", "wait": False}})
        early = [wire.receive()["result"]["run_id"] for _ in range(50)]
        answer = other.call("backup", file=str(fresh.work / "b.tau"))
        late = [wire.receive()["result"]["run_id"] for _ in range(150)]
    path = fresh.work / "b.tau"
    assert question(path, "PRAGMA integrity_check") == [("ok",)]
    kept = {run_id for (run_id,) in question(path, "SELECT run_id FROM runs")}
    assert set(early) <= kept <= {*early, *late}
    assert (answer["runs"], answer["sources"]) == (len(kept), 1)
    assert answer["bytes"] == path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600
    assert not [one for one in os.listdir(fresh.work) if ".part" in one]
    assert question(fresh.home / "tau.db", "SELECT actor FROM events WHERE type = 'store.copied'")[0][0]
    fresh("cancel", late[-1])


def test_the_hint_for_a_damaged_store_names_the_newest_backup_of_all(fresh: Tau) -> None:
    fresh("namespace", "create", "acme")
    whole, part = (fresh(*words, "backup")["file"] for words in ([], ["--namespace", "acme"]))
    assert os.path.dirname(part) == f"{fresh.home}/backups/acme"
    assert whole in module.restore_hint(str(fresh.home / "tau.db"))


def test_a_path_is_meant_from_where_the_command_is_and_nothing_else_is_overwritten(fresh: Tau) -> None:
    there = fresh.work / "mine.tau"
    assert fresh("backup", "mine.tau")["file"] == str(there)
    before = there.read_bytes()
    assert fresh("backup", "mine.tau", exit=5)["code"] == "conflict"
    assert there.read_bytes() == before
    fresh.deploy_it("def it(ctx): ...\n")
    there.unlink()
    assert fresh("backup", "mine.tau")["sources"] == 1
    named = fresh("backup")["file"]
    assert os.path.dirname(named) == f"{fresh.home}/backups"
    assert named.endswith("Z.tau")
    (fresh.work / "letter").write_text("dear")
    (fresh.work / "link").symlink_to("letter")
    (fresh.work / "folder").mkdir()
    for place in ("letter", "link", "folder", fresh.home / "tau.db", fresh.home / "tau.toml", "no/where"):
        assert fresh("backup", place, exit=5)["code"] == "conflict"
    assert (fresh.work / "letter").read_text() == "dear"
    with fresh.connect() as wire:
        for path in ("relative", "/nul\0"):
            refused = wire.ask({"id": 1, "method": "backup", "params": {"file": path}})["error"]
            assert refused["data"]["code"] == "bad_request"


def test_what_a_crash_left_of_a_backup_is_swept(home: Tau) -> None:
    (home.home / "backups").mkdir()
    for name in (".tau-7-0.part", ".tau-7-0.part-journal", "y.tau"):
        (home.home / "backups" / name).touch()
    home.start()
    assert os.listdir(home.home / "backups") == ["y.tau"]


def test_a_restored_home_runs_on(home: Tau, saved: Tau) -> None:
    code, answer = taud(home, "--restore", saved.work / "saved.tau")
    assert (code, answer["runs"], answer["sources"], answer["moved_aside"]) == (0, 3, 2, None)
    assert (answer["lost"], answer["cancelled"], answer["deploy_again"]) == (0, 0, [])
    home.start()
    first = (saved.work / "first").read_text()
    assert home("inspect", first)["result"] == 1
    assert home("run", "it", "--key", "k", "--detach")["run_id"] == first
    assert home("run", "it")["result"] == "done"
    assert home("runs", "it")["runs"][0]["version"] == 2
    assert "return 1" in home("code", "it", "--version", "1")["source"]
    assert question(home.home / "tau.db", "SELECT count(*) FROM events WHERE type = 'store.restored'") == [(1,)]
    for path in home.home.rglob("*"):
        assert path.lstat().st_mode & 0o077 == 0 or "data" in str(path) or path.is_symlink(), path


def test_what_was_under_way_then_has_an_end_and_is_not_run_again(fresh: Tau, home: Tau) -> None:
    fresh.deploy_it(COUNTING)
    live = fresh("run", "it", "-p", "block=true", "--detach")["run_id"]
    eventually(lambda: fresh.call("inspect", run_id=live)["trace"]["steps"])
    others = [fresh("run", "it", "-p", "block=true", "--detach")["run_id"] for _ in range(10)]
    queued = fresh("runs", "--status", "queued")["runs"][0]["run_id"]
    assert queued in others
    path = fresh("backup")["file"]
    code, answer = taud(home, "--restore", path)
    assert (code, answer["lost"], answer["cancelled"]) == (0, 10, 1)
    home.start()
    for run_id, status, kind in ((live, "lost", "lost"), (queued, "cancelled", "cancelled")):
        run = home("inspect", run_id)
        assert (run["status"], run["error"]["kind"]) == (status, kind)
        assert "when the backup was made" in run["error"]["message"]
    assert home("inspect", live)["trace"]["steps"][0]["status"] == "failed"
    assert home("status")["runs"] == dict.fromkeys(module.MOVES, 0) | {"lost": 10, "cancelled": 1}
    assert home("run", "it")["result"] == "done"
    assert len((home.home / "data/it/ran").read_text().split()) == 1


def test_what_has_become_due_since_is_not_run_again(fresh: Tau, home: Tau) -> None:
    fresh.deploy_it(COUNTING)
    fresh("schedule", "it", "0 6 * * *")
    path = fresh("backup")["file"]
    db = sqlite3.connect(path)
    db.execute(
        "UPDATE schedules SET watermark_at = '2026-01-01T07:00:00.000Z', next_at = '2026-01-02T06:00:00.000Z',"
        " due_at = '2026-01-02T06:00:00.000Z'"
    )
    db.commit()
    db.close()
    assert taud(home, "--restore", path)[0] == 0
    home.start()
    skipped = "SELECT data FROM events WHERE type = 'tick.skipped'"
    (told,) = eventually(lambda: question(home.home / "tau.db", skipped))
    assert json.loads(told[0])["reason"] == "restored"
    assert home("runs", "it")["runs"] == []


def test_a_run_that_still_writes_its_journal_is_adopted_by_the_restored_home(fresh: Tau) -> None:
    fresh.deploy_it(COUNTING)
    live = fresh("run", "it", "-p", "block=true", "--detach")["run_id"]
    eventually(lambda: fresh.call("inspect", run_id=live)["trace"]["steps"])
    path = fresh("backup")["file"]
    later = fresh("run", "it")["run_id"]
    fresh.kill()
    (fresh.home / "tau.db").write_bytes(b"\0" * 5000)
    code, answer = taud(fresh, "--restore", path, "--replace")
    assert (code, answer["lost"], answer["moved_aside"]) == (0, 0, f"{fresh.home}/tau.db.replaced-1")
    fresh.start()
    assert fresh("inspect", live)["status"] == "running"
    assert fresh("inspect", later, exit=3)
    (fresh.home / "data/it/go").touch()
    assert fresh("wait", live)["status"] == "success"
    assert (fresh.home / "data/it/ran").read_text().split() == [live, later]


def test_a_store_is_replaced_only_when_told_and_never_while_it_is_served(fresh: Tau, saved: Tau) -> None:
    fresh.deploy_it("def it(ctx):\n    return 'old'\n")
    old = fresh("run", "it")["run_id"]
    path = saved.work / "saved.tau"
    code, refused = taud(fresh, "--restore", path, "--replace")
    assert (code, refused["error"]["code"], "serves" in refused["error"]["message"]) == (5, "conflict", True)
    fresh.kill()
    code, refused = taud(fresh, "--restore", path)
    assert (code, refused["error"]["hint"]) == (5, f"`taud --restore {path} --replace` moves it aside")
    code, answer = taud(fresh, "--restore", path, "--replace")
    aside = Path(answer["moved_aside"])
    assert question(aside, f"SELECT status FROM runs WHERE run_id = '{old}'") == [("success",)]
    fresh.start()
    assert fresh("inspect", old, exit=3)
    assert fresh("status")["runs"]["success"] == 3
    fresh.kill()
    assert taud(fresh, "--restore", path, "--replace")[1]["moved_aside"].endswith("tau.db.replaced-2")


def test_what_was_moved_aside_comes_back_with_what_its_log_has(fresh: Tau, saved: Tau) -> None:
    fresh.deploy_it("def it(ctx):\n    return 'old'\n")
    old = fresh("run", "it")["run_id"]
    fresh.kill()
    aside = Path(taud(fresh, "--restore", saved.work / "saved.tau", "--replace")[1]["moved_aside"])
    assert Path(f"{aside}-wal").stat().st_size > 0
    assert taud(fresh, "--restore", aside, "--replace")[0] == 0
    fresh.start()
    assert fresh("inspect", old)["status"] == "success"


def spoil(path: Path) -> None:
    """Pages in the middle were written over."""
    content = bytearray(path.read_bytes())
    content[3 * 4096 : 6 * 4096] = b"\xa5" * (3 * 4096)
    path.write_bytes(content)


def future(path: Path) -> None:
    """A Tau of the future made it."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()


@pytest.mark.parametrize("harm", [spoil, future, Path.unlink, lambda path: path.write_text("x" * 9000)])
def test_a_backup_that_cannot_be_used_changes_nothing(home: Tau, saved: Tau, harm: Callable[[Path], object]) -> None:
    for name in ("tau.db", "versions"):
        source = saved.home / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, home.home / name)
    path = home.work / "bad.tau"
    shutil.copy(saved.work / "saved.tau", path)
    harm(path)
    before = contents(home.home)
    code, refused = taud(home, "--restore", path, "--replace")
    assert (code, refused["error"]["code"]) == (5, "conflict")
    assert str(path) in refused["error"]["message"]
    assert refused["error"]["hint"].startswith("choose another backup")
    assert contents(home.home) == before


def deployed(db: sqlite3.Connection, sources: dict[str, bytes]) -> str:
    """The SQL that puts other sources, under their right digest, in the place of the live version's."""
    digest = module.digest_of(sources)
    db.execute("DELETE FROM sources")
    db.executemany("INSERT INTO sources VALUES (?, ?, ?)", [(digest, *source) for source in sources.items()])
    return f"UPDATE versions SET sha256 = '{digest}', entry = 'pipelines.py'"


PIPELINE = b"from tau import pipeline\n@pipeline\ndef it(ctx): return 'restored'\n"
#: What a hostile backup, or a damaged one, holds: SQL, or paths beside the pipeline.
HOSTILE: dict[str, Any] = {
    "absolute path": ("/tmp/tau-was-here",),
    "path upwards": ("../../../tau-was-here",),
    "path upwards inside": ("a/../../../../tau-was-here",),
    "NUL": ("a\0b",),
    "file and folder": ("a", "a/b"),
    "empty part": ("a//b",),
    "long path": ("a" * 513,),
    "too large": ("x" * 100, module.DEPLOYMENT_BYTES_MAX),
    "huge": ("x", 3 * module.RECORD_BYTES_MAX),
    "no sources": "DELETE FROM sources",
    "a source is lost": "DELETE FROM sources WHERE rowid = (SELECT min(rowid) FROM sources)",
    "a source differs": "UPDATE sources SET content = CAST(content || ' ' AS BLOB)",
    "the entry is lost": "UPDATE versions SET entry = 'other.py'",
    "sources of nobody": "INSERT INTO sources VALUES ('x', 'pipelines.py', x'')",
    "sources for later": "INSERT INTO sources SELECT sha256, 'json.py', x'' FROM sources",
    "digest": "UPDATE versions SET sha256 = '../../x'",
    "name": "UPDATE pipelines SET name = '../../x'; UPDATE versions SET pipeline = '../../x';"
    " UPDATE runs SET pipeline = '../../x'",
    "name with NUL": "UPDATE pipelines SET name = 'x' || char(0) || '/../x'; UPDATE versions SET pipeline ="
    " 'x' || char(0) || '/../x'; UPDATE runs SET pipeline = 'x' || char(0) || '/../x'",
    "run id": "UPDATE attempts SET run_id = '/' || run_id; UPDATE runs SET run_id = '/' || run_id",
    "resumed": "UPDATE runs SET resume_from = '..'",
    "journal": "UPDATE attempts SET journal = '../../x'",
    "environment": "UPDATE versions SET options = json_set(options, '$.environment', '../../x')",
    "trigger": "CREATE TRIGGER evil AFTER INSERT ON events BEGIN DELETE FROM keys; END",
    "another trigger": "DROP TRIGGER run_added; CREATE TRIGGER run_added AFTER INSERT ON runs BEGIN SELECT 1; END",
    "view": "DROP VIEW live; CREATE VIEW live AS SELECT 1 AS pipeline",
    "table": "CREATE TABLE more (a)",
    "statistics": "CREATE VIEW sqlite_stat AS SELECT 1",
    "reference": "DELETE FROM runs",
    "another program's": "PRAGMA application_id = 7",
    "a key that is no digest": "INSERT INTO keys VALUES ('k', 'zz', 'read', '[]', '2026-01-01T00:00:00.000Z', NULL, NULL, NULL, 'x')",
    "a list of options": "UPDATE namespaces SET options = '[]'",
    "no weight": "UPDATE namespaces SET options = '{\"weight\":0}'",
    "a weight in words": 'UPDATE namespaces SET options = \'{"weight":"x"}\'',
    "a quota that is none": "UPDATE namespaces SET options = '{\"runs_per_hour\":1}'",
    "a version without options": "UPDATE versions SET options = '{}'",
    "params of another type": "UPDATE versions SET options = json_set(options, '$.params', json('{\"type\":5}'))",
    "retries without end": "UPDATE versions SET options = json_set(options, '$.retries', 1e9)",
    "a delay of ages": "UPDATE versions SET options = json_set(options, '$.expect_success_within', 9e15)",
    "secrets of another type": "UPDATE versions SET secrets = '5'",
    "what is no JSON": "UPDATE versions SET options = '{'",
    "a schedule without options": "UPDATE schedules SET options = '{}'",
    "a cron of another type": "UPDATE schedules SET options = json_set(options, '$.cron', 5)",
    "a time that is none": "UPDATE schedules SET anchor_at = 'yesterday'",
    "a day that is none": "UPDATE pipelines SET created_at = '2026-02-30T00:00:00.000Z'",
    "an event of another form": "UPDATE events SET data = '5'",
    "a status that is none": "UPDATE runs SET status = 'odd'",
}


def make_hostile(path: Path, harm: Any) -> None:
    """Does one of HOSTILE to a backup."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA foreign_keys = OFF")
    if isinstance(harm, tuple):
        size = [each for each in harm if isinstance(each, int)] or [1]
        sources = {each: bytes(size[0]) for each in harm if isinstance(each, str)}
        harm = deployed(db, {"pipelines.py": PIPELINE} | sources)
    if "sqlite_stat" in harm:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("INSERT INTO sqlite_master VALUES ('view', 'sqlite_stat1', 'sqlite_stat1', 0, ?)", (harm,))
    else:
        db.executescript(harm)
    db.commit()
    db.close()


@pytest.mark.parametrize("harm", HOSTILE)
def test_a_hostile_backup_is_refused_whole(home: Tau, saved: Tau, harm: str) -> None:
    path = home.work / "hostile.tau"
    shutil.copy(saved.work / "saved.tau", path)
    make_hostile(path, HOSTILE[harm])
    before = contents(home.home.parent)
    code, refused = taud(home, "--restore", path)
    assert (code, refused["error"]["code"]) == (5, "conflict"), refused
    assert str(path) in refused["error"]["message"]
    (home.home / "tau.lock").unlink()
    assert contents(home.home.parent) == before
    assert not os.path.lexists("/tmp/tau-was-here")


def test_what_was_remembered_and_counted_is_made_anew(home: Tau, saved: Tau) -> None:
    path = home.work / "odd.tau"
    shutil.copy(saved.work / "saved.tau", path)
    odd = "UPDATE totals SET runs = -5; UPDATE memory SET data = '5'; INSERT OR REPLACE INTO memory VALUES"
    odd += " ('gaps', '[{}]'), ('near', '[1]'), ('healing_paused', '7'), ('sessions', '{}'), ('alive', 'x')"
    make_hostile(path, odd)
    code, answer = taud(home, "--restore", path)
    assert code == 0, answer
    home.start()
    assert home("status")["runs"] == dict.fromkeys(module.MOVES, 0) | {"success": 3}
    assert home("status")["task_failures"] == []


def test_a_backup_with_other_sources_that_are_whole_is_restored(home: Tau, saved: Tau) -> None:
    path = home.work / "other.tau"
    shutil.copy(saved.work / "saved.tau", path)
    make_hostile(path, ("a..b/..c", "-x", "\n", "caf\u00e9 ☕"))
    assert taud(home, "--restore", path)[0] == 0
    home.start()
    assert home.call("run", name="it")["result"] == "restored"


def test_a_backup_of_a_store_that_has_lost_sources_fails(fresh: Tau) -> None:
    fresh.deploy_it("def it(ctx): ...\n")
    db = sqlite3.connect(fresh.home / "tau.db")
    db.execute("DELETE FROM sources")
    db.commit()
    refused = fresh("backup", "mine.tau", exit=5)
    assert "the sources of it v1 are missing" in refused["message"]
    assert not (fresh.work / "mine.tau").exists()
    db.close()


def test_keys_that_were_revoked_since_a_backup_stay_revoked(fresh: Tau) -> None:
    for name in ("old", "live", "lost"):
        fresh("key", "create", name)
    fresh("key", "revoke", "old")
    path = fresh("backup")["file"]
    fresh("key", "revoke", "lost")
    fresh.kill()
    code, answer = taud(fresh, "--restore", path, "--replace")
    assert (code, answer["revocations_known"]) == (0, True)
    status = {key["name"]: key["status"] for key in answer["keys"]}
    assert status == {"old": "revoked", "live": "live", "lost": "revoked"}
    fresh.start()
    assert {key["name"]: key["status"] for key in fresh("key", "list")["keys"]} == status
    fresh.kill()
    (fresh.home / "tau.db").write_bytes(b"x" * 9000)
    answer = taud(fresh, "--restore", path, "--replace")[1]
    assert (answer["revocations_known"], len(answer["keys"])) == (False, 3)


def locks(path: Path) -> int:
    """How many POSIX locks a file has."""
    inode = path.stat().st_ino
    return sum("POSIX" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())


def test_no_file_of_the_store_is_a_place_for_a_backup_and_none_is_opened(fresh: Tau) -> None:
    fresh.deploy_it("def it(ctx): ...\n")
    before = {end: locks(fresh.home / f"tau.db{end}") for end in ("", "-wal", "-shm")}
    assert before["-shm"] > 0
    for end in ("", "-wal", "-shm", "-journal"):
        link, hard = fresh.work / f"link{end}", fresh.work / f"hard{end}"
        link.symlink_to(fresh.home / f"tau.db{end}")
        if end != "-journal":
            hard.hardlink_to(fresh.home / f"tau.db{end}")
        for place in (fresh.home / f"tau.db{end}", link, *[hard] * (end != "-journal")):
            assert "of the store" in fresh("backup", place, exit=5)["message"]
    assert {end: locks(fresh.home / f"tau.db{end}") for end in before} == before


def test_a_backup_leaves_what_lies_beside_it_alone(fresh: Tau) -> None:
    for name in ("mine.partial", "mine.part", ".tau-mine", "mine.tau-journal"):
        (fresh.work / name).write_text(name)
    fresh("backup", "mine")
    fresh("backup", "mine.tau")
    assert all(
        (fresh.work / n).read_text() == n for n in ("mine.partial", "mine.part", ".tau-mine", "mine.tau-journal")
    )


@pytest.mark.usefixtures("next_schema")
def test_a_backup_of_an_older_schema_is_restored_and_then_migrated(tmp_path: Path) -> None:
    path, home = golden(tmp_path / "old.tau"), tmp_path / "home"
    home.mkdir()
    answer = module.restore_copy(module.Store(str(home), module.read_settings({}, None)), str(path), False)
    assert (answer["runs"], answer["lost"], answer["cancelled"]) == (7, 1, 1)
    assert version_of(home / "tau.db") == len(module.MIGRATIONS)
    assert opened(home, lambda store: store.ask.totals()["success"]) == 2


#: Does a work on a copy of a home again and again, each time killed before one more statement or change of a
#: name than the last time, until it is done.  After each death it says what the home is like; then it is done.
KILLED = """
import asyncio, itertools, os, shutil, signal, sqlite3, sys
import tau
work, home, original, copy, step = sys.argv[1:]
database = home + "/tau.db"
real = {"connect": sqlite3.connect, "rename": os.rename, "unlink": os.unlink}
def backup():
    tau.write_copy(database, copy)
def restore():
    tau.restore_copy(tau.Store(home, tau.read_settings({}, None)), copy, True)
def runs(path):
    try:
        if tau.examine(path) == 0:
            return "none"
        db = real["connect"](path)
        found = db.execute("SELECT count(*) FROM runs").fetchone()[0]
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        db.close()
        return str(found)
    except tau.Conflict as refused:
        return "refused"
for fatal in range(1, 1000):
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(original, home)
    if work == "backup" and os.path.exists(copy):
        os.unlink(copy)
    pid = os.fork()
    if not pid:
        left, statements = fatal, itertools.count(1)
        def count():
            global left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        def connect(*words, **more):
            db = real["connect"](*words, **more)
            db.set_trace_callback(lambda statement: next(statements) % int(step) or count())
            return db
        def counted(name):
            def call(*words, **more):
                count()
                return real[name](*words, **more)
            return call
        sqlite3.connect, os.rename, os.unlink = connect, counted("rename"), counted("unlink")
        globals()[work]()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    print(status, runs(database), runs(copy), end=" ", flush=True)
    if status:
        globals()[work]()
    print(runs(database), runs(copy), *[name for name in os.listdir(home) if name.startswith("tau.db.repl")])
    if status == 0:
        break
"""


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    """A home whose newest runs are only in its log, as a killed daemon leaves it: 8 runs, one of them there."""
    (tmp_path / "original").mkdir()
    path = golden(tmp_path / "original" / "tau.db")
    opened(path.parent)
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("INSERT INTO runs SELECT * FROM (SELECT * FROM runs LIMIT 1) WHERE 0")
    names = [name for (name,) in db.execute("SELECT name FROM pragma_table_info('runs')")]
    values = ", ".join("'x'" if name == "run_id" else "NULL" if name == "key" else name for name in names)
    db.execute(f"INSERT INTO runs SELECT {values} FROM runs LIMIT 1")
    db.commit()
    log, file = Path(f"{path}-wal").read_bytes(), path.read_bytes()
    db.close()
    path.write_bytes(file)
    Path(f"{path}-wal").write_bytes(log)
    return path.parent


def deaths(torn: Path, work: str, copy: Path) -> list[list[str]]:
    """What each death left, word by word."""
    code = [sys.executable, "-P", "-c", KILLED, work, torn.parent / "home", torn, copy]
    code.append("1" if THOROUGH else "4")  # every statement, or some of them
    done = subprocess.run([*map(str, code)], env=ENVIRON, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_a_backup_killed_anywhere_is_whole_or_not_there(torn: Path) -> None:
    seen = deaths(torn, "backup", torn.parent / "copy.tau")
    assert len(seen) > 5
    assert {(home, copy) for _, home, copy, *_ in seen[:-1]} == {("8", "none"), ("8", "8")}
    assert {tuple(rest) for (*_,) in [line[3:] for line in seen] for rest in [_]} == {("8", "8")}


def test_a_restore_killed_anywhere_can_be_done_again_and_keeps_the_old_store(torn: Path) -> None:
    copy = golden(torn.parent / "copy.tau")
    seen = deaths(torn, "restore", copy)
    assert len(seen) > 20
    stages = [home for _, home, *_ in seen]
    # The old store; its log alone, which is refused; none, which a home with sources refuses; the new one.
    assert list(dict.fromkeys(stages)) == ["8", "refused", "none", "7"]
    for _, _, kept, home, after, *aside in seen:
        assert (kept, home, after) == ("7", "7", "7")
        assert sorted(aside) in (["tau.db.replaced-1", "tau.db.replaced-1-wal"], ["tau.db.replaced-1"])


NAMES = (
    "a",
    "B",
    "é",
    "☕",
    " ",
    "-",
    "'",
    '"',
    "\n",
    "\t",
    "\\",
    "..x",
    ".bak-1",
    "~",
    "%2e",
    "`",
    "$x",
    ";",
    "*",
    "\x1b",
    "\u202e",
)
COUNTING_FILES = """
from pathlib import Path
from tau import pipeline
import helper, package.part
@pipeline(name={name!r})
def it(ctx):
    here = Path(__file__).parent
    files = [path for path in here.rglob("*") if path.is_file()]
    return [helper.WHO, package.part.WHO, len(files), sum(path.stat().st_size for path in files)]
"""


def random_deployment(chance: random.Random, name: str, count: int) -> dict[str, bytes]:
    """Files with odd names beside a pipeline, a module and a package: sources, data, backups, others' caches."""
    sources = {"main.py": COUNTING_FILES.format(name=name).encode(), "helper.py": f"WHO = {name!r}".encode()}
    sources |= {"package/__init__.py": b"", "package/part.py": b"WHO = __name__", "main.py.bak-1": b"not Python ("}
    while len(sources) < count:
        parts = ["".join(chance.choices(NAMES, k=chance.randint(1, 6))) for _ in range(chance.randint(1, 3))]
        path = "/".join(["data", *parts])
        if not any(f"{path}/".startswith(f"{other}/") or other.startswith(f"{path}/") for other in sources):
            sources[path] = chance.randbytes(chance.choice((0, 1, 100, 5000)))
    return sources


def test_what_comes_back_of_random_deployments_runs_and_is_equal(fresh: Tau, home: Tau) -> None:
    chance = random.Random(SEED)
    names = [f"it{number}" for number in range(40 if THOROUGH else 2)]
    many = module.DEPLOYMENT_FILES_MAX if THOROUGH else 200
    for name in names:
        sources = random_deployment(chance, name, many if name == "it0" else chance.randint(5, 40))
        files = [{"path": path, "base64": base64.b64encode(text).decode()} for path, text in sources.items()]
        chance.shuffle(files)
        fresh.call("deploy", files=files, entry="main.py")
        assert fresh.call("code", name=name)["files"] == sorted(sources)
    before = [(fresh.call("run", name=name)["result"], fresh.call("code", name=name)) for name in names]
    path = fresh.call("backup", file=str(fresh.work / "b.tau"))["file"]
    assert taud(home, "--restore", path)[0] == 0
    home.start()
    assert [(home.call("run", name=name)["result"], home.call("code", name=name)) for name in names] == before
    assert before[0][0][:3] == ["it0", "package.part", many]


SHOP = """
from tau import pipeline

@pipeline(schedule="0 6 * * *", retries=1, retry_delay=0)
def orders(ctx, day: str = "x"):
    ctx.state["seen"] = day
    if day == "bad":
        raise ValueError("bad day")
    with ctx.step("sum"):
        return {"day": day}
"""


def lived_in(made: Tau, namespace: str) -> None:
    made.deploy(SHOP, "orders.py", "--namespace", namespace)
    made("run", "orders", "-p", f"day={namespace}", TAU_NAMESPACE=namespace)
    made.command("run", "orders", "-p", "day=bad", TAU_NAMESPACE=namespace)


def test_one_namespace_is_backed_up_and_restored_into_another_daemon(home: Tau, fresh: Tau) -> None:
    for name in ("acme", "beta"):
        fresh("namespace", "create", name, "--weight", 3)
        lived_in(fresh, name)
    lived_in(fresh, "default")
    fresh("--namespace", "acme", "key", "create", "ci")
    path = fresh.work / "acme.tau"
    written = fresh("backup", path, "--namespace", "acme")
    assert (written["runs"], written["sources"]) == (2, 1)
    assert b"beta" not in path.read_bytes()
    assert fresh("backup", path, "--namespace", "nobody", exit=3)["code"] == "not_found"

    home.start()
    lived_in(home, "default")
    before = home.call("runs")["runs"]
    home("shutdown")
    code, answer = taud(home, "--restore", path)
    assert (code, answer["runs"], answer["moved_aside"], answer["deploy_again"]) == (0, 2, None, [])
    home.start()
    assert [run for run in home.call("runs")["runs"] if "/" not in run["pipeline"]] == before
    assert home("namespace", "show", "acme")["weight"] == 3
    assert home("namespace", "list")["total"] == 2
    assert [key["name"] for key in home("key", "list")["keys"]] == ["acme/ci"]
    assert home("state", "acme/orders")["state"] == {"seen": "acme"}
    assert home("errors", "acme/orders")["incidents"][0]["message"] == "bad day"
    assert home("run", "acme/orders")["result"] == {"day": "x"}
    assert home.call("status")["runs"]["success"] == 3
    types = [event["type"] for event in home.call("events", pipeline="acme/orders", limit=1000)["events"]]
    assert (types[0], types.count("run.queued")) == ("pipeline.deployed", 3)
    home("shutdown")
    code, refused = taud(home, "--restore", path)
    # A key that was revoked is forgotten with its namespace: nobody knows that it was.
    assert answer["revocations_known"] is False
    remedy = "`taud --detach; tau namespace remove acme --force; tau shutdown` removes it, with data and secrets that"
    assert (code, refused["error"]["hint"]) == (5, f"{remedy} no backup has")


def test_a_backup_of_a_namespace_tells_nothing_of_others_circumstances(fresh: Tau) -> None:
    fresh("namespace", "create", "acme")
    lived_in(fresh, "acme")
    fresh("shutdown")
    fresh.environ["ONLY_OF_OTHERS"] = "x"  # its name is among the circumstances of runs from now on
    fresh.start()
    lived_in(fresh, "default")
    with contextlib.closing(sqlite3.connect(fresh.home / "tau.db")) as db, db:
        assert db.execute("SELECT count(*) FROM circumstances WHERE data LIKE '%ONLY_OF_OTHERS%'").fetchone() == (1,)
        elsewhere = "UPDATE attempts SET circumstances = NULL WHERE run_id = (SELECT min(run_id) FROM runs)"
        db.execute(elsewhere)  # as of a run on another machine
    fresh("backup", fresh.work / "acme.tau", "--namespace", "acme")
    assert b"ONLY_OF_OTHERS" not in (fresh.work / "acme.tau").read_bytes()


def test_a_backup_of_a_namespace_that_holds_others_is_refused(home: Tau, fresh: Tau) -> None:
    fresh("namespace", "create", "acme")
    lived_in(fresh, "acme")
    path = fresh.work / "acme.tau"
    fresh("backup", path, "--namespace", "acme")
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO pauses VALUES ('orders', '2026-01-01T00:00:00.000Z', 'mine', 'x')")
    db.close()
    home.start()
    home("shutdown")
    code, refused = taud(home, "--restore", path)
    assert (code, "pauses of other namespaces" in refused["error"]["message"]) == (5, True)


def test_a_backup_of_a_namespace_can_be_a_whole_store(home: Tau, fresh: Tau) -> None:
    fresh("namespace", "create", "acme")
    lived_in(fresh, "acme")
    path = fresh.work / "acme.tau"
    fresh("backup", path, "--namespace", "acme")
    assert taud(home, "--restore", path)[0] == 0
    home.start()
    assert home("run", "acme/orders")["status"] == "success"
    again = home("backup", home.work / "all.tau")["file"]
    with contextlib.closing(sqlite3.connect(again)) as db:
        assert db.execute("SELECT count(*) FROM memory WHERE name = ?", (module.ONLY,)).fetchone() == (0,)


def test_hints_of_restoring_name_the_home(fresh: Tau) -> None:
    lived_in(fresh, "default")
    fresh("backup", fresh.work / "x.tau")
    fresh("shutdown")
    elsewhere = fresh.environ | {"TAU_HOME": str(fresh.work / "other")}
    done = run("taud", "--home", fresh.home, "--restore", fresh.work / "x.tau", cwd=fresh.work, environ=elsewhere)
    assert done.error["hint"].startswith(f"`taud --home {fresh.home} --restore {fresh.work}/x.tau --replace`")
    assert "is a directory" in taud(fresh, "--restore", fresh.work)[1]["error"]["message"]


def test_events_of_two_restores_have_other_numbers(fresh: Tau) -> None:
    lived_in(fresh, "default")
    fresh("backup", fresh.work / "x.tau")
    lasts = []
    for _ in range(2):
        fresh("shutdown")
        taud(fresh, "--restore", fresh.work / "x.tau", "--replace")
        fresh.start()
        lasts.append(fresh.call("events")["next"])
    assert lasts[0] < lasts[1] < 1 << 53
