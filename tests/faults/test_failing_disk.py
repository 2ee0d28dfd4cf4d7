"""A disk that fails to sync, one that can only be read, and a log that nobody takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, Tau, eventually, is_running, python
from disk import disk  # noqa: F401

PIPELINES = """
import time
from pathlib import Path
from tau import pipeline

@pipeline
def quick(ctx):
    return ctx.params

@pipeline
def waiting(ctx):
    ctx.log("in")
    while not Path("go").exists():
        time.sleep(0.01)
    return "done"
"""


def start(tau: Tau, **files: Any) -> subprocess.Popen[str]:
    """A daemon in the foreground."""
    return subprocess.Popen(python("taud"), env=tau.environ, cwd=tau.work, text=True, **files)


def refusal(tau: Tau) -> Any:
    """The error with which a daemon does not start."""
    done = subprocess.run(
        [*python("taud"), "--json"], env=tau.environ, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, "Traceback" in done.stderr) == (5, False), done.stderr
    return json.loads(done.stderr.splitlines()[-1])["error"]


@pytest.fixture
def trouble(home: Tau, disk: Path) -> Iterator[Path]:  # noqa: F811
    """A file: while it exists, what it names fails for the daemons of this home."""
    path = home.work / "trouble"
    sane = dict(home.environ)
    home.environ |= {"LD_PRELOAD": str(disk), "TAU_TEST_TROUBLE": str(path)}
    yield path
    path.unlink(missing_ok=True)
    home.environ = sane


def test_after_a_failed_sync_nothing_is_tried_again_and_nothing_is_lost(home: Tau, trouble: Path) -> None:
    log = home.work / "log"
    with log.open("w") as file:
        daemon = start(home, stdout=subprocess.PIPE, stderr=file)
    assert daemon.stdout is not None
    with daemon.stdout:
        assert daemon.stdout.readline()
    home.deploy(PIPELINES)
    done = home.call("run", name="quick", params={"n": 1})["run_id"]
    live = home.call("run", name="waiting", wait=False)["run_id"]
    eventually(lambda: home.call("logs", run_id=live)["lines"])
    trouble.write_text("sync")
    with home.connect() as wire:
        wire.send({"id": 1, "method": "run", "params": {"name": "quick", "key": "k", "wait": False}})
        assert wire.receive() is None  # no answer that might be wrong
    assert daemon.wait(PATIENCE_S) == 1
    assert "the disk has failed to keep the store" in log.read_text()
    assert "disk I/O error" in refusal(home)["message"]
    trouble.unlink()
    (home.home / "data/waiting/go").touch()  # the live run has gone on
    home.start()
    assert home("wait", live)["result"] == "done"
    assert home("inspect", done)["result"] == {"n": 1}
    assert home("run", "quick", "--key", "k")["status"] == "success"
    assert len(home("runs", "quick")["runs"]) == 2


def test_a_disk_that_can_only_be_read_refuses_writes_and_recovers(home: Tau, trouble: Path) -> None:
    home.start()
    home.deploy(PIPELINES)
    done = home("run", "quick", "-p", "n=1")["run_id"]
    trouble.write_text("write")
    assert home("run", "quick", exit=5)["code"] == "storage_full"
    assert home("inspect", done)["result"] == {"n": 1}
    assert home("status")["storage"]["refused_at"] is not None
    trouble.unlink()
    assert home("run", "quick", "-p", "n=2")["result"] == {"n": 2}


def test_a_home_that_is_mounted_read_only_is_refused_by_name(home: Tau) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", home.home]
    if os.getuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a file system of its own can be mounted by root only")
    try:
        home.start()
        home("shutdown")
        eventually(lambda: not home.remains())
        remount = ["mount", "-o", "remount,ro", home.home]
        eventually(lambda: subprocess.run(remount, check=False, capture_output=True).returncode == 0)
        error = refusal(home)
        assert (str(home.home) in error["message"], "Read-only file system" in error["message"]) == (True, True)
        subprocess.run(["mount", "-o", "remount,rw", home.home], check=True)
        assert home.start()["changed"] is True
        home("shutdown")
        eventually(lambda: not home.remains())
    finally:
        eventually(lambda: subprocess.run(["umount", home.home], check=False).returncode == 0)


@pytest.mark.parametrize("log", ["/dev/full", "a closed pipe"])
def test_a_log_that_nobody_takes_harms_nobody(home: Tau, log: str) -> None:
    if log == "/dev/full":
        descriptor = os.open(log, os.O_WRONLY)
    else:
        read, descriptor = os.pipe()
        os.close(read)
    (home.home / "tau.toml").write_text("[daemon]\nlog_level = 'debug'\n")
    daemon = start(home, stdout=subprocess.PIPE, stderr=descriptor)
    os.close(descriptor)
    assert daemon.stdout is not None
    with daemon.stdout:
        assert daemon.stdout.readline()
    home.deploy(PIPELINES)
    server = next(one["pid"] for one in home.call("status")["processes"] if one["role"] == "fork server")
    os.kill(server, signal.SIGKILL)  # which is an error in the log
    eventually(lambda: not is_running(server))
    assert home("run", "quick", "-p", "n=1")["result"] == {"n": 1}
    assert home("status")["pid"] == daemon.pid
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(PATIENCE_S) == 0


def test_a_full_disk_below_the_log_harms_nobody(home: Tau) -> None:
    home.home.joinpath("taud.log").symlink_to("/dev/full")
    assert home.start()["changed"] is True
    home.deploy(PIPELINES)
    assert home("run", "quick")["status"] == "success"
