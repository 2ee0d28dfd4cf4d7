"""The power goes at any sync: what was acknowledged is there when it comes back, and nothing is run twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from conftest import PATIENCE_S, THOROUGH, Tau, Wire, eventually, make_home
from disk import disk  # noqa: F401

EVERY = 1 if THOROUGH else 12

PIPELINES = """
import os, time
from tau import pipeline

def note(ctx):
    file = os.open({record!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{{ctx.run_id}}\\n".encode())
    os.close(file)

@pipeline
def quick(ctx):
    note(ctx)
    return "done"

@pipeline
def endless(ctx):
    note(ctx)
    time.sleep(300)
"""
#: The daemon, after the words that are put before its start.
SERVE = "import sys, tau\n{}\nsys.exit(tau.taud())"
ANOTHER_BOOT = "tau.boot_id = lambda: 'another'"
CARELESS = "tau.SETTINGS_OF_SQLITE = tau.SETTINGS_OF_SQLITE.replace('FULL', 'NORMAL')"


class Power:
    """A home on a disk that loses what was not synced, and what its user was told before the power went."""

    def __init__(self, tau: Tau, library: Path) -> None:
        self.tau = tau
        self.record = tau.work / "record"
        self.shadow = tau.work / "shadow"
        self.environ = tau.environ | {"LD_PRELOAD": str(library), "TAU_TEST_SHADOW": str(self.shadow)}
        self.deployed = False
        self.acknowledged: list[str] = []
        self.finished: list[str] = []

    def serve(self, words: str, **environ: str) -> subprocess.Popen[bytes]:
        """A daemon, ready unless it has died before."""
        daemon = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVE.format(words)], env=self.environ | environ, cwd=self.tau.work,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert daemon.stdout is not None
        with daemon.stdout:
            daemon.stdout.readline()
        return daemon

    def tell(self) -> bool:
        """What a user does until nobody answers any more; whether it came to its end."""
        try:
            with self.tau.connect() as wire:
                text = PIPELINES.format(record=str(self.record))
                self.ask(wire, "deploy", files=[{"path": "p.py", "text": text}])
                self.deployed = True
                for name in ("quick", "endless", "quick"):
                    run_id = self.ask(wire, "run", name=name, wait=False)["run_id"]
                    self.acknowledged.append(run_id)
                    if name == "quick":
                        self.ask(wire, "wait", run_id=[run_id])
                        self.finished.append(run_id)
                    else:
                        eventually(lambda run_id=run_id: run_id in self.began())
                        about = {"method": "inspect", "run_id": run_id}
                        eventually(lambda about=about: self.ask(wire, **about)["started_at"])
        except (OSError, EOFError):
            return False
        return True

    @staticmethod
    def ask(wire: Wire, method: str, **params: Any) -> Any:
        """A result; EOFError if the daemon is gone."""
        answer = wire.ask({"id": 1, "method": method, "params": params})
        if answer is None:
            raise EOFError
        return answer["result"]

    def go(self, daemon: subprocess.Popen[bytes]) -> None:
        """The power goes: no process is left, and of the home only what was synced."""
        daemon.kill()
        daemon.wait()
        for _ in range(2):
            for pid in self.tau.remains():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        eventually(lambda: not self.tau.remains())
        home, live = self.tau.home, self.tau.work / "live"
        home.rename(live)
        home.mkdir(mode=0o700)
        for path in sorted(live.rglob("*")):
            kept = self.shadow / path.relative_to(live)
            if path.is_dir():
                (home / path.relative_to(live)).mkdir(mode=0o700, exist_ok=True)
            elif kept.exists():
                shutil.copy(kept, home / path.relative_to(live))
        shutil.rmtree(live)
        shutil.rmtree(self.shadow, ignore_errors=True)

    def lost(self) -> list[str]:
        """Runs that were acknowledged and are not there."""
        there = {run["run_id"] for run in self.tau.call("runs", limit=100)["runs"]}
        return [run_id for run_id in self.acknowledged if run_id not in there]

    def check(self) -> None:
        """The power is back: everything that was acknowledged is there, and whatever began has begun once."""
        daemon = self.serve(ANOTHER_BOOT)
        try:
            names = {one["name"] for one in self.tau.call("list")["pipelines"]}
            assert not self.deployed or names == {"quick", "endless"}
            assert self.lost() == []
            done = [self.tau.call("inspect", run_id=run_id) for run_id in self.finished]
            assert [(run["status"], run["result"]) for run in done] == [("success", "done")] * len(done)
            for run in self.tau.call("runs", limit=100)["runs"]:
                if run["pipeline"] == "endless" and run["run_id"] not in self.began():
                    self.tau.call("cancel", run_id=run["run_id"])  # it waits still, or begins just now
                ended = self.tau.call("wait", run_id=[run["run_id"]])
                expected = ("success", "lost", "cancelled") if run["pipeline"] == "quick" else ("lost", "cancelled")
                assert ended["status"] in expected, ended
            assert [run_id for run_id, count in Counter(self.began()).items() if count > 1] == []
            if names:
                assert self.tau.call("run", name="quick")["result"] == "done"
        finally:
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(PATIENCE_S) == 0

    def began(self) -> list[str]:
        """The runs that have begun, as they say themselves."""
        return self.record.read_text().split() if self.record.exists() else []


def with_power(library: Path, words: str = "", **environ: str) -> tuple[Power, bool]:
    """A story, and the power loss that it ends with; whether it was told to its end."""
    power = Power(make_home("[daemon]\nstop_grace_s = 0.3\n"), library)
    (power.shadow).mkdir()
    shutil.copy(power.tau.home / "tau.toml", power.shadow)
    daemon = power.serve(words, **environ)
    over = power.tell()
    power.go(daemon)
    return power, over


def test_the_power_goes_before_any_sync(disk: Path) -> None:  # noqa: F811
    over, fatal, seen = False, 1, 0
    while not over:
        power, over = with_power(disk, TAU_TEST_DIE=str(fatal))
        try:
            power.check()
            seen = max(seen, len(power.finished))
        finally:
            power.tau.stop()
            power.tau.home.parent.rmdir()
        fatal += EVERY
    assert seen == 2
    assert fatal > 10


def test_this_disk_does_lose_what_was_not_synced(disk: Path) -> None:  # noqa: F811
    power, over = with_power(disk, CARELESS)
    try:
        assert over
        daemon = power.serve(ANOTHER_BOOT)
        assert power.lost() == power.acknowledged
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE_S) == 0
    finally:
        power.tau.stop()
        power.tau.home.parent.rmdir()
