"""What of the daemon must live goes on after a failure, and tells of it."""

from __future__ import annotations

import logging
import os
import re
import signal
from pathlib import Path

import pytest
from conftest import PATIENCE_S, Tau, eventually, served

import tau as module

#: Each of these fails when it is called for the first time.
PARTS = (
    *("Runner.watch", "Runner.replace_servers", "Runner.look_after", "Scheduler.watch", "Scheduler.settled"),
    *("Retention.watch", "ServiceManager.ping", "Daemon.look_after", "Listeners.accept", "Feed.changed"),
)
#: Parts that have another name in `status`: they are items of that.
NAMES = {"Scheduler.settled": "scheduler", "Feed.changed": "event loop"}

CODE = f"""
import inspect
tau.RESTART_S = 0.05

def fail_once(owner, name):
    work, failures = getattr(owner, name), [1]
    def fail():
        if failures:
            raise ZeroDivisionError(f"failure {{failures.pop()}} of {{name}}")
    def failing(*arguments, **options):
        fail()
        return work(*arguments, **options)
    if inspect.iscoroutinefunction(work):
        async def failing(*arguments, **options):
            fail()
            return await work(*arguments, **options)
    failing.__qualname__ = work.__qualname__
    setattr(owner, name, failing)

for owner, name in (part.split(".") for part in {PARTS!r}):
    fail_once(getattr(tau, owner), name)
"""


def test_each_part_of_the_daemon_goes_on_after_a_failure_and_status_metrics_and_log_tell_it(home: Tau) -> None:
    with served(home, code=CODE):
        assert home.run_it("def it(ctx):\n    return 7")["result"] == 7
        home("schedule", "it", "--every", "1")
        eventually(lambda: home.call("runs", name="it")["runs"][1:])
        wanted = {NAMES.get(part, part) for part in PARTS}
        eventually(lambda: {row["task"] for row in home.call("status")["task_failures"]} == wanted)
        failures = {row["task"]: row for row in home.call("status")["task_failures"]}
        assert {row["count"] for row in failures.values()} == {1}
        assert all(re.match("ZeroDivisionError: failure 1 of", row["error"]) for row in failures.values())
        checks = {check["name"]: check for check in home.command("doctor").json["checks"]}
        assert checks["tasks"]["status"] == "warn"
        assert "Runner.watch failed" in checks["tasks"]["found"]
        log = (home.work / "taud.log").read_text()
        assert all(log.count(f"{name} failed: ZeroDivisionError") == 1 for name in wanted)


@pytest.mark.parametrize("part", ["Venvs.python", "Starter.send"])
def test_a_run_that_a_bug_keeps_from_being_started_fails(home: Tau, part: str) -> None:
    home.start()
    home.deploy_it("def it(ctx):\n    return 7")
    home("shutdown")
    eventually(lambda: not home.remains())
    with served(home, code=CODE.replace(repr(PARTS), repr((part,)))):
        run = home("run", "it", exit=1)
        assert (run["status"], run["error"]["message"]) == ("failed", f"failure 1 of {part.partition('.')[2]}")
        assert home("run", "it")["result"] == 7


def test_repeated_warnings_are_counted_and_not_repeated() -> None:
    bound, lines = module.LogFilter(None), []

    def log(text: str, at: float, level: int = logging.ERROR) -> None:
        record = logging.makeLogRecord({"msg": "%s", "args": (text,), "levelno": level, "created": at})
        if bound.filter(record):
            lines.append(record.getMessage())

    for number in range(1000):
        log("it failed", number)
        log(f"number {number}", number)
        log("as asked", number, logging.INFO)
    assert [line for line in lines if line.startswith("it")] == [
        *("it failed", "it failed (10 times)", "it failed (100 times)", "it failed (1,000 times)")
    ]
    assert len(lines) == 4 + 1000 + 1000
    log("it failed", 1000 + module.REPEATED_S)
    assert lines[-1] == "it failed"
    assert len(bound.repeats) <= module.REPEATS_MAX


def test_the_log_of_a_detached_daemon_is_rotated_while_it_serves_and_when_it_starts(home: Tau) -> None:
    home.start()
    log, old = home.home / "taud.log", home.home / "taud.log.1"
    for text in ("large\n", "larger\n"):
        with log.open("a") as file:
            file.write(text * module.LOG_BYTES_MAX)
        os.kill(home.pid(), signal.SIGHUP)  # which it logs
        eventually(lambda tail=text: old.exists() and tail in old.read_text()[-100:])
        eventually(lambda: log.exists() and "is read again" in log.read_text())
        assert log.stat().st_size < 1000
        assert log.stat().st_mode & 0o777 == 0o600
        assert Path(f"/proc/{home.pid()}/fd/2").readlink() == log
    log.unlink()
    os.kill(home.pid(), signal.SIGHUP)
    eventually(lambda: log.exists() and "is read again" in log.read_text())
    log.write_text("again\n" * module.LOG_BYTES_MAX)
    home.kill()
    home.start()
    assert "again" in old.read_text()[-100:]
    assert "again" not in log.read_text()


def test_a_shutdown_that_cannot_record_what_it_cancels_changes_nothing(home: Tau) -> None:
    code = """
import os
def full():
    raise tau.StorageFull("no room")
note_stopping = tau.Store.note_stopping
tau.Store.note_stopping = lambda *given: note_stopping(*given) if os.path.exists("room") else full()
"""
    with served(home, code=code) as daemon:
        home.deploy_held()
        run_id = home("run", "it", "--detach")["run_id"]
        eventually(lambda: home.call("inspect", run_id=run_id)["status"] == "running")
        assert home("shutdown", "--cancel", exit=5)["code"] == "storage_full"
        assert home.call("status")["stopping"] is False
        (home.work / "room").touch()
        assert home("shutdown", "--cancel")["live_runs"] == 0
        daemon.wait(PATIENCE_S)
