"""A disk without room: what was acknowledged stays, new work is refused in words, and it goes on by itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Tau, eventually, make_home


@pytest.fixture
def small() -> Iterator[Tau]:
    """A home on a disk of six megabytes."""
    tau = make_home()
    tau.home.rmdir()
    tau.home.mkdir(mode=0o700)
    if (
        os.getuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m,mode=700", "tmpfs", tau.home], check=False).returncode
    ):
        tau.home.rmdir()
        tau.work.rmdir()
        tau.home.parent.rmdir()
        pytest.skip("a file system of its own can be mounted by root only")
    try:
        tau.start()
        yield tau
    finally:
        tau.command("shutdown", "--cancel")
        eventually(lambda: not tau.remains())
        eventually(lambda: subprocess.run(["umount", tau.home], check=False).returncode == 0)
        tau.home.rmdir()
        for path in tau.work.iterdir():
            path.unlink()
        tau.work.rmdir()
        tau.home.parent.rmdir()


PIPELINES = """
import time
from tau import pipeline
@pipeline
def quick(ctx):
    return ctx.params

@pipeline
def waiting(ctx):
    import os
    while not os.path.exists(ctx.params["go"]):
        time.sleep(0.01)
    for number in range(50):
        ctx.log(f"line {number} " + "x" * 200)
    return "done"
"""


def fill(path: Path) -> None:
    """The disk has no room left."""
    with path.open("wb", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size //= 2


def test_a_full_disk_loses_nothing_and_recovers_by_itself(small: Tau) -> None:
    small.deploy(PIPELINES)
    done = small("run", "quick", "-p", "n=1")["run_id"]
    go = small.work / "go"
    live = small.call("run", name="waiting", params={"go": str(go)}, wait=False)["run_id"]
    eventually(lambda: small("inspect", live)["status"] == "running")
    fill(small.home / "filler")
    refused = eventually(lambda: (one := small.command("run", "quick", "-p", "x=" + "y" * 100_000)).exit == 5 and one)
    assert (refused.error["code"], refused.error["retryable"]) == ("storage_full", True)
    storage = small("status")["storage"]
    assert storage["refused_at"] is not None
    assert storage["free_bytes"] < 100_000
    assert small("inspect", done)["status"] == "success"  # reading goes on
    go.touch()  # the live run ends while there is no room to say so
    (small.home / "filler").unlink()
    finished = small("wait", live)
    assert (finished["status"], finished["result"]) == ("success", "done")
    assert finished["trace"]["log_lines"] in (50, 51)  # one may tell that the full disk has torn a line
    assert small("run", "quick", "-p", "n=2")["result"] == {"n": 2}
    assert small("status")["storage"]["free_bytes"] > 100_000
    small.kill()
    small.start()
    assert small("inspect", done)["status"] == "success"
