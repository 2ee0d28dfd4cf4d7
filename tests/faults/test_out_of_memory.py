"""The kernel takes a run for want of memory: the run says so, and the daemon lives."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import PATIENCE_S, Tau, eventually, python

import tau as module

LIMIT = 300 << 20
#: How a control group is limited, swap too where there is any: by cgroup v2 and v1.
LIMITS = (("memory.max", "memory.swap.max", "0"), ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", str(LIMIT)))
PIPELINES = """
import os, time
from tau import pipeline

@pipeline
def hungry(ctx):
    kept = []
    ctx.log("in")
    while True:
        kept.append(b"x" * (8 << 20))

@pipeline
def modest(ctx):
    return int(open("/proc/self/oom_score_adj").read())

@pipeline
def patient(ctx):
    ctx.log("in")
    time.sleep(300)
"""


def top() -> Path | None:
    """The root of cgroup v2, which hands on its memory controller from now on; None where it has none."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    for root in (Path(at) for _, at, kind, *_ in mounts if kind == "cgroup2"):
        if "memory" in (root / "cgroup.controllers").read_text().split() and not os.getuid():
            try:
                (root / "cgroup.subtree_control").write_text("+memory")
            except OSError:
                return None
            return root
    return None


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with little memory; skips where none can be made."""
    above = top()
    if above is None and (counter := module.oom_counter()) is not None:
        above = Path(counter).parent
    if above is None or os.getuid():
        pytest.skip("needs root and a control group with a memory controller")
    made = Path(tempfile.mkdtemp(prefix="tau-test-", dir=above))
    limits = [row for row in LIMITS if (made / row[0]).exists()]
    try:
        if not limits:
            pytest.skip("the memory controller is not delegated to us")
        limit, swap, most = limits[0]
        (made / limit).write_text(str(LIMIT))
        if (made / swap).exists():
            (made / swap).write_text(most)
        yield made
    finally:
        eventually(lambda: not (made / "cgroup.procs").read_text())
        made.rmdir()


def test_a_run_that_takes_too_much_memory_says_so_and_the_daemon_lives(home: Tau, group: Path) -> None:
    inside = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *python("taud"), "--detach"]
    subprocess.run(inside, env=home.environ, cwd=home.work, stdout=subprocess.DEVNULL, timeout=PATIENCE_S, check=True)
    try:
        home.deploy(PIPELINES)
        assert home("run", "modest")["result"] == module.OOM_SCORE
        before = home.call("status")["processes"][:2]
        assert [one["role"] for one in before] == ["daemon", "fork server"]
        run = home("run", "hungry", exit=1)
        assert (run["status"], run["error"]["kind"], run["resources"]["signal"]) == ("failed", "died", 9)
        assert run["error"]["message"] == "killed by SIGKILL: the kernel was out of memory"
        assert run["trace"]["log_tail"] == ["in"]
        assert home.call("status")["processes"][:2] == before
        killed = home("run", "patient", "--detach")["run_id"]
        eventually(lambda: home.call("logs", run_id=killed)["lines"])
        os.kill(next(one["pid"] for one in home.call("status")["processes"] if one["role"] == "run"), signal.SIGKILL)
        assert home("wait", killed, exit=1)["error"]["message"] == "killed by SIGKILL"
    finally:
        home.stop()


BOUNDED = """
import mmap, subprocess, sys
from tau import pipeline

@pipeline(memory="64M")
def hungry(ctx):
    kept = []
    while True:
        kept.append(b"x" * (1 << 20))

@pipeline(memory="64M")
def parent(ctx):
    subprocess.run([sys.executable, "-c", "kept = [b'x' * (1 << 20) for _ in range(1000)]"])
    return "still here"

@pipeline(memory="64M")
def wide(ctx):
    mmap.mmap(-1, 1 << 30)  # room that is not used costs nothing
    return open("/proc/self/cgroup").read()

@pipeline
def free(ctx):
    return open("/proc/self/cgroup").read()
"""


@pytest.fixture
def unit() -> Iterator[Path]:
    """A control group such as systemd makes for a service with `Delegate=memory`; skips without cgroup v2."""
    root = top()
    if root is None:
        pytest.skip("needs root and cgroup v2 with its memory controller")
    made = root / f"tau-test-{os.getpid()}.service"
    try:
        (made / "taud").mkdir(parents=True)
        os.setxattr(made, "user.delegate", b"1")
    except OSError as problem:
        if made.exists():
            made.rmdir()
        pytest.skip(f"no control group can be made here: {problem}")
    yield made
    eventually(lambda: not (made / "taud" / "cgroup.procs").read_text())
    (made / "taud").rmdir()
    made.rmdir()


def test_a_limit_of_memory_is_a_control_group_where_ours_is_delegated(home: Tau, unit: Path) -> None:
    def groups() -> list[str]:
        return [path.name for path in unit.iterdir() if path.is_dir() and path.name != "taud"]

    def start() -> None:
        inside = ["sh", "-c", f'echo $$ > {unit}/taud/cgroup.procs; exec "$@"', "sh", *python("taud"), "--detach"]
        subprocess.run(
            inside, env=home.environ, cwd=home.work, stdout=subprocess.DEVNULL, timeout=PATIENCE_S, check=True
        )

    start()
    try:
        home.deploy(BOUNDED)
        words = "killed by SIGKILL: out of memory (it may use 67,108,864 bytes)"
        for name in ("hungry", "parent"):
            error = home("run", name, exit=1)["error"]
            assert (error["kind"], error["message"]) == ("died", words)
        run = home("run", "wide")
        assert f"{unit.name}/tau-run-{run['run_id']}" in run["result"]
        assert f"{unit.name}/taud" in home("run", "free")["result"]
        assert groups() == []
        (unit / "tau-run-left.1").mkdir()  # by a fork server that was killed
        home("shutdown")
        start()
        assert home("run", "wide")["status"] == "success"
        assert groups() == []
    finally:
        home.stop()


def test_where_nobody_counts_a_limit_makes_it_probable() -> None:
    server: Any = SimpleNamespace(oom_counter=None, oom_kills=0)
    told = module.ForkServer.why_killed(server, {"limits": {"memory_bytes": 1 << 28}})
    assert told is not None
    assert "probably out of memory" in told
    assert module.ForkServer.why_killed(server, {"limits": {"memory_bytes": 0}}) is None


def test_the_counter_is_read_in_both_of_its_forms(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 41\noom 3\noom_kill 2\noom_group_kill 0\n")
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")
    assert [module.oom_kills(str(tmp_path / name)) for _, _, name in module.OOM_COUNTERS] == [2, 7]
    assert module.oom_kills(None) == module.oom_kills(str(tmp_path / "gone")) == 0
