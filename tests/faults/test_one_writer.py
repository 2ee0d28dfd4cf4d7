"""Only the writer's thread writes to the store or checkpoints it, whatever is asked of the daemon, and nothing is lost.

Up to SQLite 3.51.2 two connections that write or checkpoint at the same moment can lose a commit (sqlite.org/wal.html).
`TAU_FAULTS=100` makes the load last 20 seconds; without, a few.
"""

from __future__ import annotations

import itertools
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import THOROUGH, Tau, eventually, python, served
from test_retention import Past

import tau as module

SECONDS = 20.0 if THOROUGH else 3.0

#: Every connection to a store tells what it does, and what it may not do becomes a line of the file `violations`.
WATCHED = """
import os, sqlite3, threading
connect, HARMLESS = sqlite3.connect, ("SELECT", "BEGIN", "COMMIT", "ROLLBACK", "WITH")
READS = {
    sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_TRANSACTION,
    sqlite3.SQLITE_RECURSIVE, sqlite3.SQLITE_PRAGMA,
}

def is_writer():
    return threading.current_thread().name == "tau store"

def accuse(*words):
    with open("violations", "a") as file:
        file.write(f"{threading.current_thread().name}: {words}\\n")

def watched(place, *words, **more):
    db = connect(place, *words, **more)
    if "tau.db" not in str(place):
        return db
    def authorize(action, *about):
        # json_each() has a table declared, of which the authorizer hears though nothing is done.
        if action not in READS and about[0] != "sqlite_master" and not is_writer():
            accuse("authorizer", action, about)
        return sqlite3.SQLITE_OK
    def trace(statement):
        word = statement.split(None, 1)[0].upper()
        if word == "PRAGMA" and "wal_checkpoint" not in statement or word in HARMLESS or word.startswith("--"):
            return
        if not is_writer():
            accuse("trace", statement[:200])
    db.set_authorizer(authorize)
    db.set_trace_callback(trace)
    if "mode=ro" not in str(place):  # which cannot write or checkpoint, not even when it is closed
        watched.writers += 1
        if watched.writers > 1:
            accuse("a second connection that could write", place)
    return db

watched.writers = 0
sqlite3.connect = watched
"""

PIPELINES = """
from tau import pipeline

@pipeline
def quick(ctx):
    for number in range(ctx.params.get("lines", 20)):
        with ctx.step("one"):
            ctx.log(str(number))
    ctx.state["last"] = ctx.run_id
    return ctx.params
"""


class Load:
    """What many clients do at the same time until it is over."""

    def __init__(self, tau: Tau) -> None:
        self.tau, self.until = tau, time.monotonic() + SECONDS
        self.acknowledged: list[str] = []
        self.results: dict[str, Any] = {}
        self.problems: list[BaseException] = []
        self.counts: dict[str, int] = {}

    def repeat(self, work: Callable[[Any], None]) -> None:
        """Does it again and again, over a connection of its own."""
        try:
            with module.Client(home=str(self.tau.home)) as client:
                while time.monotonic() < self.until:
                    work(client.call)
                    self.counts[work.__name__] = self.counts.get(work.__name__, 0) + 1
                    time.sleep(0.02)  # other tests want the machine, too
        except BaseException as problem:
            self.problems.append(problem)

    def adds(self, call: Any) -> None:
        """Queues runs and remembers what was acknowledged."""
        self.acknowledged.append(call("run", {"name": "quick", "wait": False, "params": {"lines": 3}})["run_id"])

    def runs(self, call: Any) -> None:
        """Waits for a run and remembers its result."""
        number = len(self.results)
        run = call("run", {"name": "quick", "params": {"number": number}})
        self.results[run["run_id"]] = {"number": number}

    def deploys(self, call: Any) -> None:
        """Makes new versions, of which the old ones are pruned some day."""
        text = f"{PIPELINES}\n# {time.monotonic()}\n"
        call("deploy", {"files": [{"path": "quick.py", "text": text}], "take_over": True})
        time.sleep(0.5)

    def prunes(self, call: Any) -> None:
        """Removes some more of the past."""
        age = max(1.0, 400 - 400 * (1 - (self.until - time.monotonic()) / SECONDS) * 2)
        call("prune", {"older_than": f"{age:.0f}d", "keep": 5})

    def reads(self, call: Any) -> None:
        """Asks what people ask."""
        runs = call("runs", {"limit": 50})["runs"]
        call("inspect", {"run_id": runs[0]["run_id"]})
        call("logs", {"run_id": runs[-1]["run_id"]})
        call("status", {})
        call("prune", {"dry_run": True})

    def copies(self, call: Any) -> None:
        """Makes a backup, and a home of it that has all that had been acknowledged."""
        known, number = set(self.acknowledged), self.counts.get("copies", 0)
        path = self.tau.work / f"{number}.tau"
        call("backup", {"file": str(path)})
        home = self.tau.work / f"home-{number}"
        words = [*python("taud"), "--home", home, "--restore", path, "--json"]
        subprocess.run(words, env=self.tau.environ, check=True, capture_output=True)
        assert known <= ids(home / "tau.db")

    def examines(self, call: Any) -> None:
        """Runs `tau doctor`, which reads the store beside the daemon."""
        found = self.tau.command("doctor", "--json").json["checks"]
        assert next(one for one in found if one["name"] == "database")["status"] == "pass", found


def ids(path: Path) -> set[str]:
    """The runs of a store."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    found = {run_id for (run_id,) in db.execute("SELECT run_id FROM runs")}
    db.close()
    return found


def fill(home: Path) -> None:
    """A store with a past that can be pruned."""
    db = sqlite3.connect(home / "tau.db")
    names = [name for (name,) in db.execute("SELECT name FROM pipelines")]
    assert names == ["quick"]
    past = Past(db)
    for number in range(2000):
        past.run(500 - number / 5, ("success", "failed")[number % 2], "quick", lines=20)
    db.commit()
    db.close()


def test_only_the_writer_writes_and_nothing_is_lost(home: Tau) -> None:
    home.start()
    home.deploy(PIPELINES, "quick.py")
    home("shutdown")
    eventually(lambda: not home.remains())
    fill(home.home)
    past = ids(home.home / "tau.db")
    violations = home.work / "violations"
    with served(home, code=WATCHED) as daemon:
        load = Load(home)
        works = (load.adds, load.adds, load.runs, load.deploys, load.prunes, load.reads, load.copies, load.examines)
        threads = [threading.Thread(target=load.repeat, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    assert load.problems == []
    assert not violations.exists(), violations.read_text()[:2000]
    assert all(load.counts.get(work.__name__) for work in works), load.counts
    left = ids(home.home / "tau.db")
    assert {*load.acknowledged, *load.results} <= left
    assert len(past & left) < len(past) / 2  # much of the past is gone
    home.start()
    for run_id, result in itertools.islice(load.results.items(), 50):
        assert home.call("inspect", run_id=run_id)["result"] == result
    home("shutdown")
    eventually(lambda: not home.remains())
    db = sqlite3.connect(home.home / "tau.db")
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    db.close()


@pytest.mark.parametrize("crime", ["db.execute('PRAGMA wal_checkpoint')", "db.execute('DELETE FROM memory')", "pass"])
def test_the_watch_sees_who_breaks_the_rule(tmp_path: Path, crime: str) -> None:
    db = sqlite3.connect(tmp_path / "tau.db")
    db.execute("CREATE TABLE memory (name TEXT)")
    db.commit()
    db.close()
    for place, more in ((f"{tmp_path}/tau.db", ""), (f"file:{tmp_path}/tau.db?mode=ro", ", uri=True")):
        code = f"{WATCHED}\ndb = sqlite3.connect({place!r}, isolation_level=None{more})\ntry:\n    {crime}\n"
        code += "except sqlite3.Error:\n    pass\n"
        if crime == "pass":
            code += f"sqlite3.connect({place!r}{more})\n"
        subprocess.run([*python("taud")[:1], "-c", code], cwd=tmp_path, check=True)
        told = tmp_path / "violations"
        assert told.exists() is (crime != "pass" or not more)
        told.unlink(missing_ok=True)
