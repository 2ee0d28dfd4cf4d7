"""What a run may do to its process, its daemon and its machine; it ends in the documented way and nobody else is hurt."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import PATIENCE_S, REPOSITORY, Tau, eventually, is_running

import tau as module

#: A user of whom no process runs.
NOBODY_ELSE = 54321


def test_recursion_without_end_is_ended_by_the_memory_limit(tau: Tau) -> None:
    tau.deploy(
        """
        import sys
        from tau import pipeline
        @pipeline(memory="96M")
        def deep(ctx):
            sys.setrecursionlimit(10**9)
            def down(n):
                return down(n + 1)
            down(0)
        """
    )
    run = tau("run", "deep", exit=1)
    assert run["status"] == "failed"
    assert run["error"]["kind"] in ("exception", "died")  # as CPython takes it: MemoryError, SystemError, SIGSEGV
    assert run["resources"]["max_rss_bytes"] < 128 << 20


def test_output_of_any_bytes_is_kept_as_text(tau: Tau) -> None:
    run = tau.run_it(
        r"""
        import os
        def it(ctx):
            os.write(1, b"raw \xff\xfe and \0 nul\n")
            os.write(2, b"\x1b[31mred\x1b[0m\n")
            print("lone \ud800 surrogate")
            ctx.log("logged \udfff\0\x1b[1m", field="\ud800")
            raise ValueError("told \ud800\0")
        """,
        exit=1,
    )
    lines = {line["message"] for line in tau("logs", run["run_id"])["lines"]}
    assert {"raw �� and \0 nul", "\x1b[31mred\x1b[0m", "lone ? surrogate"} <= lines
    assert any(line.startswith("logged ") and line.endswith("\0\x1b[1m") for line in lines)
    assert run["error"]["message"].startswith("told ")
    db = sqlite3.connect(f"file:{tau.home / 'tau.db'}?mode=ro", uri=True)
    assert db.execute("SELECT count(*) FROM logs WHERE run_id = ?", (run["run_id"],)).fetchone() == (4,)
    db.close()


def test_an_error_of_a_hundred_megabytes_is_cut(tau: Tau) -> None:
    run = tau.run_it("def it(ctx):\n    raise ValueError('x' * 100_000_000)", exit=1)
    assert run["error"]["type"] == "ValueError"
    assert len(json.dumps(tau("inspect", run["run_id"], "--full"))) < 200_000


def test_a_file_may_be_empty_or_a_link(tau: Tau) -> None:
    tau.write("", "empty.py")
    assert "no @pipeline" in tau("deploy", tau.work / "empty.py", exit=2)["message"]
    target = tau.write("from tau import pipeline\n@pipeline\ndef linked(ctx):\n    return 7\n", "target.py")
    (tau.work / "link.py").symlink_to(target)
    tau("deploy", tau.work / "link.py")
    target.unlink()
    assert tau("run", "linked")["result"] == 7
    (tau.work / "link.py").unlink()


def test_a_run_may_start_others_and_need_not_wait_for_a_slot(home: Tau) -> None:
    (home.home / "tau.toml").write_text("[scheduler]\nmax_concurrent = 1\n")
    home.start()
    home.deploy(
        """
        import tau
        from tau import pipeline
        @pipeline
        def outer(ctx):
            with tau.Client() as client:
                told = client.call("run", {"name": "inner", "timeout": 0.05})
                return [told["run_id"], told["status"], told["waited"], client.call("status", {})["slots"]["used"]]
        @pipeline
        def inner(ctx):
            return "inner"
        """
    )
    run_id, *told = home("run", "outer")["result"]
    assert told == ["queued", False, 1]  # the only slot is its own
    assert home("wait", run_id)["result"] == "inner"


def test_a_clock_that_is_set_back_during_a_run_gives_no_negative_duration(tau: Tau) -> None:
    run = tau.run_it(
        """
        import tau
        def it(ctx):
            with ctx.step("before"):
                ctx.log("first")
                tau.now = lambda real=tau.now: real() - 3600
            with ctx.step("after"):
                ctx.log("second")
            return 1
        """
    )
    assert run["finished_at"] < run["started_at"]  # as the clock said
    assert run["duration_ms"] >= 0
    assert [(step["name"], step["duration_ms"] >= 0) for step in run["trace"]["steps"]] == [
        ("before", True),
        ("after", True),
    ]
    lines = tau("logs", run["run_id"])["lines"]
    assert [line["message"] for line in lines] == ["first", "second"]  # in the order in which they were written
    assert lines[0]["at"] > lines[1]["at"]
    events = tau.call("inspect", run_id=run["run_id"], full=True)["attempts"]
    assert events[0]["duration_ms"] >= 0


def test_a_stranger_with_the_pid_of_a_run_gets_no_signal(fresh: Tau) -> None:
    fresh.deploy_it("def it(ctx):\n    return 1\n")
    run_id = fresh("run", "it")["run_id"]
    fresh.kill()
    eventually(lambda: not fresh.remains())
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        about = {"pid": stranger.pid, "started": "1", "boot": module.boot_id(), "mono": 0.0, "at": 0.0}
        server = {"pid": stranger.pid, "started": "2", "boot": module.boot_id()}
        db = sqlite3.connect(fresh.home / "tau.db")
        with db:
            db.execute("UPDATE runs SET status = 'running', result = NULL WHERE run_id = ?", (run_id,))
            process = json.dumps({**about, "server": server})
            db.execute(
                "UPDATE attempts SET ended = NULL, outcome = NULL, stopping = 'cancelled', process = ?", (process,)
            )
        db.close()
        fresh.start()
        assert fresh.call("wait", run_id=[run_id])["status"] == "cancelled"
        fresh("shutdown", "--cancel")
        assert is_running(stranger.pid)
    finally:
        stranger.kill()
        stranger.wait()


def test_a_fork_bomb_meets_the_limit_of_processes_and_can_be_cancelled(home: Tau) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become a user of whom nothing else runs")
    pythons = [one for one in (sys.executable, shutil.which("python3", path="/usr/bin")) if one and others_may(one)]
    if not pythons or not others_may(str(REPOSITORY / "tau.py")):
        pytest.skip("another user can reach no Python, or not this file")
    (home.home / "tau.toml").write_text("[limits]\nprocesses = 60\n[daemon]\nstop_grace_s = 0.3\n")
    home.home.parent.chmod(0o711)
    for path in (home.home, home.work, home.home / "tau.toml"):
        os.chown(path, NOBODY_ELSE, NOBODY_ELSE)
    code = [pythons[0], "-P", "-c", "import sys, tau; sys.exit(tau.taud())", "--detach"]
    as_other = {"user": NOBODY_ELSE, "group": NOBODY_ELSE, "extra_groups": []}
    environ = home.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        code, env=environ, cwd=home.work, capture_output=True, text=True, timeout=PATIENCE_S, **as_other
    )
    assert done.returncode == 0, done.stderr
    home.deploy(
        """
        import os, time
        from tau import pipeline
        @pipeline
        def bomb(ctx):
            while True:
                try:
                    os.fork()
                except OSError as full:
                    if ctx.params:
                        ctx.log(str(full))
                        ctx.params.clear()
                    time.sleep(0.05)
        @pipeline
        def quick(ctx):
            return 1
        """
    )
    run_id = home("run", "bomb", "-p", "tell=1", "--detach")["run_id"]
    lines = eventually(lambda: home.call("logs", run_id=run_id)["lines"])
    assert "Resource temporarily unavailable" in lines[0]["message"]
    assert len(processes_of(NOBODY_ELSE)) <= 61
    assert home.call("status")["slots"]["used"] == 1
    assert home("cancel", run_id)["status"] == "cancelled"
    assert home("run", "quick")["result"] == 1
    assert len(processes_of(NOBODY_ELSE)) <= 4  # the daemon, its fork server, and a child kept ready


def test_nobody_waits_for_an_orphan_that_has_become_another_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "not permitted")  # as for what sudo has started

    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(os, "getsid", lambda pid: pid)  # the kernel says 0 of a leader outside a container
    orphan = module.Orphan(os.getpid(), ())
    assert orphan.leader == os.getpid()
    orphan.end(module.Ending(lambda number: None, 10.0))
    assert orphan.leader == 0


def test_an_end_that_cannot_be_written_leaves_no_descriptor_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "encode", lambda record: None)  # to write it fails, as on a full disk
    told: list[Any] = []
    server: Any = SimpleNamespace(tell=told.append)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(TypeError):
        module.ForkServer.save_end(server, {"journal": str(tmp_path / "run"), "stem": "run"}, {"t": "end"})
    assert os.listdir("/proc/self/fd") == before


def others_may(path: str) -> bool:
    """Whether anybody can reach and read a file."""
    found = os.path.realpath(path)
    while found != "/":
        if not os.stat(found).st_mode & (0o005 if os.path.isdir(found) else 0o004):
            return False
        found = os.path.dirname(found)
    return True


def processes_of(uid: int) -> list[str]:
    """The live processes of a user."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{pid}").st_uid == uid and is_running(int(pid)):
                found.append(pid)
        except FileNotFoundError:
            continue
    return found
