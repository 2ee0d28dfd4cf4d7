"""The daemon dies in the middle of its start, of a deploy, of its stop: at whatever it was just about to do.

What it does to the system it tells (PEP 578): each of these events is a place to die at.  `TAU_FAULTS=100` takes every
place; without, some of them.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE_S, THOROUGH, Tau, eventually, forked
from nursery import Child

#: A daemon that dies at an event, counted from its start, or from when the file `armed` appears; at 0 it never dies,
#: and leaves in the files `ready` and `over` how many there were until then.
MORTAL = """
import os, signal, sys, tau
fatal, armed = int(sys.argv[1]), sys.argv[2]
count, daemon = 0, os.getpid()
def on_event(name, arguments):
    global count
    if os.getpid() != daemon:  # what it has forked lives on
        return
    if name.startswith(("import", "compile", "exec", "marshal", "object", "sys.", "code.", "cpython")):
        return
    if armed and not os.path.exists(armed):
        return
    count += 1
    if count == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
def note(name):
    seen = str(count)
    if not fatal:
        with open(name, "w") as file:
            file.write(seen)
def announce(*words, real=tau.announce):
    note("ready")
    return real(*words)
tau.announce = announce
sys.addaudithook(on_event)
del sys.argv[1:]
code = tau.taud()
note("over")
sys.exit(code)
"""

#: `it` says which text it is; it runs, or waits for a file.
TEXT = """
import time
from pathlib import Path
from tau import pipeline
@pipeline
def it(ctx):
    with open("ran", "a") as file:
        file.write(ctx.run_id + "\\n")
    ctx.log("in")
    while ctx.params.get("wait") and not Path("go").exists():
        time.sleep(0.01)
    return {number}
"""


class Mortal:
    """A home and its daemons, of which each dies when it is told to."""

    def __init__(self, tau: Tau) -> None:
        self.tau = tau
        self.armed = tau.work / "armed"
        self.daemon: Child | None = None

    def serve(self, fatal: int, armed: bool = False) -> bool:
        """Starts a daemon; whether it became ready before it died."""
        place = str(self.armed) if armed else ""
        self.daemon, out = forked(self.tau, MORTAL, fatal, place)
        with out:
            return bool(out.readline())

    def end(self) -> int:
        """How it ended; it is told to if it did not die by itself."""
        assert self.daemon is not None
        self.daemon.send_signal(signal.SIGTERM)
        return self.daemon.wait(PATIENCE_S)

    def places(self, until: str, most: int) -> list[int]:
        """Where to die, of the places that the life of a daemon has had until it was `ready` or `over`."""
        count = int((self.tau.work / until).read_text())
        return [*range(1, count + 1, 1 if THOROUGH else max(count // most, 1))]


@pytest.fixture
def mortal(home: Tau) -> Iterator[Mortal]:
    """Such a home; its last daemon has ended."""
    made = Mortal(home)
    yield made
    if made.daemon is not None:
        made.daemon.send_signal(signal.SIGKILL)
        made.daemon.wait(PATIENCE_S)


def test_deaths_in_a_row_while_starting_change_nothing(mortal: Mortal) -> None:
    tau = mortal.tau
    assert mortal.serve(0)
    tau.deploy(TEXT.format(number=1))
    done = tau("run", "it")["run_id"]
    live = tau("run", "it", "-p", "wait=true", "--detach")["run_id"]
    eventually(lambda: tau.call("logs", run_id=live)["lines"])
    assert mortal.end() == 0
    assert mortal.serve(0)
    assert mortal.end() == 0
    files = {path.relative_to(tau.home) for path in tau.home.rglob("*")}
    deaths = 0
    for fatal in mortal.places("ready", 8):
        ready = mortal.serve(fatal)  # now and then a start has fewer events than the one that was counted
        deaths += mortal.end() == -signal.SIGKILL and not ready
    assert deaths >= (20 if THOROUGH else 6)
    eventually(lambda: len(tau.remains()) <= 2)  # the run and its fork server: those of dead daemons have ended
    tau.start()
    assert tau("inspect", done)["result"] == tau("retry", done)["result"] == 1
    (tau.home / "data/it/go").touch()
    assert tau("wait", live)["status"] == "success"
    assert (tau.home / "data/it/ran").read_text().split()[:2] == [done, live]
    assert len((tau.home / "data/it/ran").read_text().split()) == 3
    tau("shutdown")

    def grown() -> set[Path]:
        after = {path.relative_to(tau.home) for path in tau.home.rglob("*")}
        return {path for path in after - files if path.parts[0] not in ("data", "taud.log")}

    eventually(lambda: not grown())  # the socket goes a moment after its last connection


#: Each test takes one place in so many, from this one on: parts that can be worked on at once.
EVERY = 4 if THOROUGH else 24
FIRST = (1, 2, 3, 4) if THOROUGH else (1,)


@pytest.mark.parametrize("first", FIRST)
def test_a_daemon_that_dies_while_it_deploys_serves_one_version_or_the_other(mortal: Mortal, first: int) -> None:
    tau = mortal.tau

    def deploy(number: int) -> str | None:
        """Deploys text *number*; None if nobody answered, as the daemon died."""
        files = [{"path": "it.py", "text": TEXT.format(number=number)}]
        mortal.armed.touch()
        try:
            with tau.connect() as wire:
                answer = wire.ask({"id": 1, "method": "deploy", "params": {"files": files}})
        except ConnectionError:
            answer = None
        mortal.armed.unlink()
        return None if answer is None else answer["result"]["pipelines"][0]["name"]

    assert mortal.serve(0)
    assert deploy(1) == "it"
    mortal.end()
    served, answer, fatal = 1, None, first
    for number in itertools.count(2):
        assert mortal.serve(fatal, armed=True)
        answer = deploy(number)
        mortal.end()
        assert mortal.serve(0)
        found = tau.call("run", name="it")["result"]
        assert found == number if answer else found in (served, number)
        assert tau.call("code", name="it")["source"] == TEXT.format(number=found)
        mortal.end()
        if answer is not None:
            break  # a deploy has no more places to die at
        served, fatal = found, fatal + EVERY
    assert number > 2
    eventually(lambda: not tau.remains())
    tau.start()
    # The first prune removes what was half done.
    eventually(lambda: all(len(name.removesuffix(".code")) == 64 for name in os.listdir(tau.home / "versions")))


def test_a_daemon_that_dies_while_it_stops_leaves_its_runs_to_the_next(mortal: Mortal) -> None:
    tau = mortal.tau
    assert mortal.serve(0, armed=True)
    tau.deploy(TEXT.format(number=1))
    live = tau("run", "it", "-p", "wait=true", "--detach")["run_id"]
    eventually(lambda: tau.call("logs", run_id=live)["lines"])
    mortal.armed.touch()
    assert mortal.end() == 0
    mortal.armed.unlink()
    ends = []
    for fatal in mortal.places("over", 6):
        assert mortal.serve(fatal, armed=True)
        assert tau.call("inspect", run_id=live)["status"] == "running"
        mortal.armed.touch()
        ends.append(mortal.end())
        mortal.armed.unlink()
    assert -signal.SIGKILL in ends
    (tau.home / "data/it/go").touch()
    tau.start()
    assert tau("wait", live)["status"] == "success"
    assert (tau.home / "data/it/ran").read_text().split() == [live]
