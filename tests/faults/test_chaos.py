"""A random load, hostile runs in it, under random kills; then the books are compared with a record that the pipelines have kept themselves.

`TAU_FAULTS=2000 TAU_SEED=7 python -m pytest tests/faults` kills two thousand times; without, a short while.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import FAULTS, SEED, Tau, eventually, is_running
from shelf import shelf, strays

import tau as module

KILLS = FAULTS
LINES = 40
#: A home is checked and left after so many kills: its runs are many by then.
KILLS_OF_A_HOME = 100

PIPELINES = """
import concurrent.futures, glob, multiprocessing, os, random, signal, subprocess, threading, time
import lib
from tau import pipeline

def note(ctx, word):
    file = os.open({record!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{{ctx.run_id}} {{ctx.attempt}} {{word}}\\n".encode())
    os.close(file)

def work(ctx):
    note(ctx, "begin")
    for number in range({lines}):
        with ctx.step(f"step {{number % 5}}"):
            ctx.log(str(number))
        time.sleep(ctx.params.get("pause", 0.001))
    note(ctx, "end")
    return {revision}

@pipeline
def plain(ctx):
    return work(ctx)

@pipeline(retries=2, retry_delay=0.05)
def stubborn(ctx):
    if ctx.attempt == 1:
        note(ctx, "begin")
        raise ValueError("the first attempt fails")
    return work(ctx)

@pipeline(every=1, misfire="all", overlap="allow")
def ticking(ctx):
    return work(ctx)

@pipeline
def pooled(ctx):
    # A pool, one of whose workers may be killed, and a daemon of its own that lives as long as the run.
    luck = random.Random(ctx.run_id)
    file = ctx.run_id + str(ctx.attempt)
    subprocess.run("setsid sleep 1000 & echo $! >" + file, shell=True, check=True)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
    child.start()
    child.terminate()
    child.join(60)
    note(ctx, "terminated" if child.exitcode == -signal.SIGTERM else "not-terminated")
    try:
        with concurrent.futures.ProcessPoolExecutor(2) as pool:
            made = [pool.submit(abs, number) for number in range(5)]
            if luck.random() < 0.5:
                os.kill(luck.choice([*pool._processes]), signal.SIGKILL)
            sum(one.result() for one in made)
    except concurrent.futures.process.BrokenProcessPool:
        note(ctx, "broken")
    try:
        os.kill(int(open(file).read()), 0)
    except ProcessLookupError:
        note(ctx, "orphan-lost")
    return work(ctx)

@pipeline
def handled(ctx):
    # An own handler, so that a run that is stopped returns all the same.
    over = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(1))
    note(ctx, "begin")
    for number in range({lines}):
        with ctx.step(f"step {{number % 5}}"):
            ctx.log(str(number))
        time.sleep(0.01)
        if over:
            note(ctx, "stopped")
            return "half"
    note(ctx, "end")
    return "whole"

@pipeline(retries=1, retry_delay=0.05)
def threaded(ctx):
    # An error, and a thread that does not end.
    note(ctx, "begin")
    threading.Thread(target=time.sleep, args=(1000,), name="heartbeat").start()
    raise ValueError("the truth")

FORGED = (
    b'{{"t":"start"}}', b'{{"t":"raised"}}', b'{{"t":"returned"}}', b'{{"t":"dropped","lines":1e30}}', b'{{"t":"end"}}', b"[[", b"\\xff\\0",
    b'{{"t":"end","at":1,"mono":1,"exit_code":0,"signal":null,"reason":null}}', b'{{"t":"returned","result":1,"waits_for":"x"}}',
    b'{{"t":"start","format":1,"pid":1,"started":"1","boot":"x","session":1,"server":{{}},"at":1e300,"mono":-1}}',
    b'{{"t":"secret","name":"../../tau.db"}}', b'{{"t":"stop","at":1}}', b'{{"t":"done","step":1e99,"at":NaN}}', b'{{"t":"log","message":' + b'"x' * 999999,
)

@pipeline
def hostile(ctx, way: str, pause: float = 0.0):
    luck = random.Random(ctx.run_id)
    files = glob.glob(os.path.join(ctx.data_dir, "..", "..", "runs", ctx.run_id + ".*"))
    if way == "forge":
        for file in files:
            with open(file, "ab") as journal:
                journal.write(b"\\n" + b"\\n".join(luck.choices(FORGED, k=20)) + luck.choice((b"", b"\\n")))
    elif way == "replace":
        for file in files:
            os.unlink(file)
            luck.choice((os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path), lambda path: None))(file)
    elif way == "flood":
        os.write(1, b"y" * 4000000)
        for number in range(30000):
            ctx.log(str(number))
    elif way == "leave":
        subprocess.Popen(["sleep", "1000"], start_new_session=luck.random() < 0.5)
    luck.choice((lambda: None, lambda: os._exit(3), lambda: os.kill(os.getpid(), signal.SIGKILL)))()
"""
#: How often each is killed.
WEIGHTS = {"daemon": 6, "fork server": 3, "warm": 6, "run": 1}
#: What the hostile pipeline does.
WAYS = ("forge", "forge", "replace", "flood", "leave")


class Chaos:
    """A load, a killer, and what they know."""

    def __init__(self, tau: Tau, seed: int) -> None:
        self.tau, self.random = tau, random.Random(seed)
        self.record = tau.work / "record"
        self.record.touch()
        self.known: list[str] = []  # runs whose ids were acknowledged
        self.keys = itertools.count(1)
        self.kills: Counter[str] = Counter()
        self.over = threading.Event()
        self.loads = [threading.Thread(target=self.work, args=(self.random.random(),)) for _ in range(3)]
        self.problems: list[BaseException] = []

    def work(self, seed: float) -> None:
        """One request after another, each repeated until it is answered."""
        choices = [*[self.run] * 6, self.attack, self.cancel, self.retry, self.retry, self.deploy]
        luck = random.Random(seed)
        try:
            while not self.over.is_set():
                luck.choice(choices)(luck)
        except BaseException as problem:
            self.problems.append(problem)

    def ask(self, method: str, **params: Any) -> Any:
        """The answer of a daemon, however often it is killed meanwhile."""
        while not self.over.is_set():
            try:
                with module.Client(home=str(self.tau.home)) as client:
                    return client.call(method, params)
            except (module.Unavailable, module.QueueFull):
                self.over.wait(0.01)
            except (module.Conflict, module.NotFound):
                return None
        return None

    def note_run(self, answer: Any) -> None:
        """An acknowledged run must be there for ever."""
        if answer is not None:
            self.known.append(answer["run_id"])

    def run(self, luck: random.Random) -> None:
        """One more run, with a key, so that the request may be repeated."""
        names = ("plain", "plain", "plain", "stubborn", "stubborn", "pooled", "handled", "threaded")
        name, pause = luck.choice(names), luck.choice([0.0, 0.001, 0.01])
        answer = self.ask("run", name=name, wait=False, key=f"key {next(self.keys)}", params={"pause": pause})
        self.note_run(answer)

    def attack(self, luck: random.Random) -> None:
        """A run that harms its own files and processes; nothing but its own outcome may suffer."""
        params = {"way": luck.choice(WAYS)}
        self.note_run(self.ask("run", name="hostile", wait=False, key=f"key {next(self.keys)}", params=params))

    def retry(self, luck: random.Random) -> None:
        """A finished run again."""
        if self.known:
            run_id = luck.choice(self.known)
            self.note_run(self.ask("retry", run_id=run_id, wait=False, key=f"key {next(self.keys)}"))

    def cancel(self, luck: random.Random) -> None:
        """One of the latest runs."""
        if self.known:
            self.ask("cancel", run_id=luck.choice(self.known[-3:]))

    def deploy(self, luck: random.Random) -> None:
        """Another version."""
        self.ask("deploy", files=[{"path": "chaos.py", "text": self.source(luck.randrange(1000))}])

    def source(self, revision: int) -> str:
        """The deployed file."""
        return PIPELINES.format(record=str(self.record), lines=LINES, revision=revision)

    def kill(self, luck: random.Random) -> None:
        """Something dies, at once; a dead daemon gets an heir.  A warm process must be given time to become one."""
        until = time.monotonic() + luck.choice([0.0, 0.0, 0.0, 0.0, 3.0])
        while True:
            try:
                status = self.tau.call("status")
            except (AssertionError, OSError, TypeError):
                return
            warm = [{"role": "warm", "pid": one["pid"]} for one in status["warm"] if one["pid"]]
            if warm or time.monotonic() > until:
                break
            time.sleep(0.02)
        found = status["processes"] + warm
        roles = [one for one in found if one["role"] in WEIGHTS]
        weights = [WEIGHTS[one["role"]] for one in roles]
        chosen = luck.choices(roles, weights)[0]
        try:
            os.kill(chosen["pid"], signal.SIGKILL)
        except ProcessLookupError:
            return
        self.kills[chosen["role"]] += 1
        if chosen["role"] == "daemon":
            eventually(lambda: not is_running(chosen["pid"]))
            assert self.tau.start()["changed"] is True

    def torment(self, kills: int) -> None:
        """The load goes on while things are killed, then everything may end in peace."""
        self.ask("deploy", files=[{"path": "chaos.py", "text": self.source(0)}])
        luck = random.Random(self.random.random())
        for load in self.loads:
            load.start()
        try:
            while sum(self.kills.values()) < kills and not self.problems:
                self.over.wait(luck.uniform(0.0, 0.12))
                self.kill(luck)
        finally:
            self.over.set()
            for load in self.loads:
                load.join()
        if self.problems:
            raise self.problems[0]


def settled(tau: Tau) -> Any:
    """The daemon's counts, when no run waits or lives any more."""
    counts = tau.call("status")["runs"]
    return counts if not counts["queued"] + counts["running"] + counts["retrying"] else None


def compare(chaos: Chaos) -> Counter[str]:
    """The books against the record of the pipelines; how the runs ended."""
    tau = chaos.tau
    tau("schedule", "ticking", "--disable")
    eventually(lambda: settled(tau))
    db = sqlite3.connect(f"file:{tau.home / 'tau.db'}?mode=ro", uri=True)
    db.row_factory = sqlite3.Row
    runs = {row["run_id"]: dict(row) for row in db.execute("SELECT * FROM runs")}
    assert set(chaos.known) <= set(runs), "an acknowledged run is lost"
    noted = Counter(tuple(line.split()) for line in chaos.record.read_text().splitlines())
    assert [key for key, count in noted.items() if count > 1] == [], "an attempt ran twice"
    for run_id, run in runs.items():
        check_run(db, run, noted)
        assert run_id in runs
    ticks = Counter(run["scheduled_for"] for run in runs.values() if run["scheduled_for"] and not run["retry_of"])
    assert all(count == 1 for count in ticks.values()), "a tick ran twice"
    assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    db.close()
    eventually(lambda: not strays(tau))
    return Counter(run["status"] for run in runs.values())


def check_run(db: sqlite3.Connection, run: dict[str, Any], noted: Counter[tuple[str, ...]]) -> None:
    """A run's books say what it says itself."""
    run_id, attempt = run["run_id"], str(run["attempt"])
    assert run["status"] in module.FINAL
    if run["status"] == "success" and run["pipeline"] != "hostile":
        assert noted[run_id, attempt, "end"] == 1
        logged = [row["message"] for row in db.execute(
            "SELECT message FROM logs WHERE run_id = ? AND attempt = ? ORDER BY n", (run_id, attempt))]  # fmt: skip
        assert logged == [str(number) for number in range(LINES)], "lines are missing or doubled"
        steps = db.execute(
            "SELECT count(*), sum(status = 'success') FROM steps WHERE run_id = ? AND attempt = ?", (run_id, attempt)
        ).fetchone()
        assert tuple(steps) == (LINES, LINES), "steps are missing or doubled"
    words = {word for one, number, word in noted if (one, number) == (run_id, attempt)}
    assert not words & {"orphan-lost", "not-terminated"}, "a run lost a process of its own"
    error = json.loads(run["error"] or "null")
    if "stopped" in words:
        assert (run["status"], run["result"]) in {("cancelled", '"half"'), ("failed", None), ("lost", None)}, dict(run)
    if run["pipeline"] == "threaded":
        assert run["status"] in ("failed", "cancelled", "lost"), "a thread hides what was raised"
        if error["kind"] == "exception":
            asked = "SELECT stopping FROM attempts WHERE run_id = ? AND attempt = ?"
            is_cancelled = db.execute(asked, (run_id, attempt)).fetchone()[0] == "cancelled"  # which wins over a retry
            assert (error["message"], run["attempt"] == 2 or is_cancelled) == ("the truth", True)
    attempts = {int(key[1]) for key in noted if key[0] == run_id and key[2] == "begin"}
    assert not attempts or max(attempts) <= run["attempt"], "an attempt that nobody knows of"
    ends = db.execute("SELECT count(*) FROM events WHERE run_id = ? AND type = 'run.finished'", (run_id,))
    assert ends.fetchone()[0] == 1, "an outcome is recorded more or less than once"


@pytest.fixture
def victim() -> Iterator[Tau]:
    """A daemon that is going to be killed.  It takes no more runs than end in time, however fast the machine is."""
    with shelf("[scheduler]\nmax_concurrent = 4\nmax_queued = 100\n") as made:
        made.install("lib")
        yield made.start().tau


ROUNDS = [min(KILLS_OF_A_HOME, KILLS - done) for done in range(0, KILLS, KILLS_OF_A_HOME)]


@pytest.mark.parametrize("number", range(len(ROUNDS)))
def test_the_books_are_right_after_random_kills(victim: Tau, number: int) -> None:
    chaos = Chaos(victim, SEED * 1000 + number)
    chaos.torment(ROUNDS[number])
    ended = compare(chaos)
    assert victim.call("status")["task_failures"] == []
    print(json.dumps({"seed": SEED, "round": number, "kills": chaos.kills, "known": len(chaos.known), "ended": ended}))
    assert ended["success"] > 0
