"""Every commit of a story fails, or the daemon dies just before it or just after it; then the story is told again.

The hook is in the test: a daemon is started whose SQLite connection counts its commits.  `TAU_FAULTS=100` takes every
commit; without, some of them.
"""

from __future__ import annotations

import functools
import json
import signal
import sqlite3
import threading
from collections import Counter
from typing import Any

import pytest
from conftest import PATIENCE_S, THOROUGH, Tau, eventually, forked, make_home

import tau as module

FAULTY = """
import os, signal, sqlite3, sys, threading, tau
mode, wanted = sys.argv[1], int(sys.argv[2])
count = 0

class Counting(sqlite3.Connection):
    def execute(self, statement, *more):
        global count
        if statement != "COMMIT" or threading.current_thread().name != "tau store":
            return super().execute(statement, *more)
        count += 1
        if count == wanted and mode == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if count == wanted and mode == "full":
            problem = sqlite3.OperationalError("database or disk is full")
            problem.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise problem
        answer = super().execute(statement, *more)
        if count == wanted and mode == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        with open("commits", "w") as file:
            file.write(str(count))
        return answer

connect = sqlite3.connect
sqlite3.connect = lambda *words, **more: connect(*words, **{"factory": Counting, **more})
del sys.argv[1:]
sys.exit(tau.taud())
"""

PIPELINES = """
import os, time
from tau import pipeline

def note(ctx):
    file = os.open("record", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{ctx.run_id} {ctx.attempt}\\n".encode())
    os.close(file)

@pipeline
def good(ctx):
    note(ctx)
    with ctx.step("one"):
        ctx.log("line")
    ctx.state["runs"] = ctx.state.get("runs", 0) + 1
    return "done"

@pipeline(retries=1)
def flaky(ctx):
    note(ctx)
    assert ctx.attempt == 2

@pipeline
def slow(ctx):
    note(ctx)
    time.sleep(300)

@pipeline(after="good")
def follower(ctx):
    note(ctx)
    return ctx.upstream["good"]["result"]
"""


class Story:
    """What a client does, whatever happens to the daemon meanwhile."""

    def __init__(self, tau: Tau, mode: str, wanted: int) -> None:
        self.tau = tau
        self.daemon, self.out = forked(tau, FAULTY, mode, wanted)
        self.ready = bool(self.out.readline())
        self.over = False
        self.watcher = threading.Thread(target=self.replace)
        self.watcher.start()

    def replace(self) -> None:
        """A daemon that dies has an heir."""
        self.daemon.wait(PATIENCE_S)
        if not self.over:
            self.tau.start()

    def ask(self, method: str, **params: Any) -> Any:
        """An answer, from this daemon or, once it has died, from the next."""
        for _ in range(50):
            try:
                with module.Client(home=str(self.tau.home)) as client:
                    return client.call(method, params)
            except (module.StorageFull, module.Unavailable):
                self.watcher.join(0.05)
        raise AssertionError("never answered")

    def tell(self) -> dict[str, Any]:
        """Deploys, runs, cancels, schedules, pauses, retries, undeploys: the documents of the runs."""
        self.ask("deploy", files=[{"path": "story.py", "text": PIPELINES}])
        found = {"good": self.ask("run", name="good", key="a"), "flaky": self.ask("run", name="flaky", key="b")}
        slow = self.ask("run", name="slow", key="c", wait=False)["run_id"]
        self.ask("cancel", run_id=slow)
        for name in ("good", "slow", "flaky"):
            self.ask("schedule", name=name, every=3600)
            self.ask("pause", name=name)
            self.ask("resume", name=name)
        found["slow"] = self.ask("wait", run_id=[slow])
        found["again"] = self.ask("retry", run_id=found["good"]["run_id"], key="d")
        for one in self.ask("runs", name="follower")["runs"]:
            self.ask("wait", run_id=[one["run_id"]])
        self.ask("undeploy", name="slow")
        return found

    def end(self) -> int:
        """How many commits there were; the daemon is gone."""
        self.over = True
        self.daemon.send_signal(signal.SIGTERM)
        self.watcher.join()
        self.out.close()
        path = self.tau.work / "commits"
        return int(path.read_text()) if path.exists() else 0


def check(tau: Tau, found: dict[str, Any]) -> None:
    """Everything happened once, and the books say so."""
    assert [found[name]["status"] for name in ("good", "flaky", "slow", "again")] == [
        "success", "success", "cancelled", "success"
    ]  # fmt: skip
    assert found["again"]["retry_of"] == found["good"]["run_id"]
    assert [one["status"] for one in found["flaky"]["attempts"]] == ["failed", "success"]
    for name in ("good", "flaky", "slow", "follower"):
        record = tau.home / "data" / name / "record"
        lines = record.read_text().splitlines() if record.exists() else []
        assert [line for line, count in Counter(lines).items() if count > 1] == [], f"an attempt of {name} ran twice"
    db = sqlite3.connect(f"file:{tau.home / 'tau.db'}?mode=ro", uri=True)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    marks = ", ".join("?" * len(module.FINAL))
    assert db.execute(f"SELECT count(*) FROM runs WHERE status NOT IN ({marks})", module.FINAL).fetchone() == (0,)
    runs = dict(db.execute("SELECT pipeline, count(*) FROM runs GROUP BY 1").fetchall())
    assert {name: runs[name] for name in ("good", "flaky", "slow")} == {"good": 2, "flaky": 1, "slow": 1}
    assert runs["follower"] == 2
    state = db.execute("SELECT state FROM states WHERE pipeline = 'good'").fetchone()
    assert json.loads(state[0]) == {"runs": 2}
    finished = db.execute(
        "SELECT run_id, count(*) FROM events WHERE type = 'run.finished' GROUP BY 1 HAVING count(*) > 1"
    )
    assert finished.fetchall() == []
    db.close()


def told(mode: str, wanted: int) -> int:
    """One story with one fault; how many commits it had."""
    tau = make_home("[daemon]\nstop_grace_s = 0.3\n")
    try:
        story = Story(tau, mode, wanted)
        try:
            found = story.tell()
            eventually(
                lambda: (counts := tau.call("status")["runs"])["queued"] + counts["running"] + counts["retrying"] == 0
            )
            check(tau, found)
        finally:
            commits = story.end()
        return commits
    finally:
        tau.stop()
        tau.home.parent.rmdir()


@functools.cache
def commits() -> int:
    """How many commits the story has."""
    count = told("none", 0)
    assert count > 20
    return count


#: Each test takes one commit in so many, from this one on: parts that can be worked on at once.
EVERY = 4 if THOROUGH else 16
FIRST = (1, 2, 3, 4) if THOROUGH else (1,)


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("mode", ["before", "after", "full"])
def test_a_fault_at_each_commit_costs_nothing_and_doubles_nothing(mode: str, first: int) -> None:
    if not THOROUGH:
        first = {"before": 1, "after": 5, "full": 9}[mode]
    for wanted in range(first, commits() + 1, EVERY):
        told(mode, wanted)
