"""What of the daemon must live goes on after a failure, and tells of it."""

from __future__ import annotations

import re

import pytest
from conftest import Tau, eventually, served

#: Each of these fails when it is called for the first time.
PARTS = (
    *("Runner.watch", "Runner.replace_servers", "Runner.look_after", "Scheduler.watch", "Scheduler.settled"),
    *(
        "Retention.prune",
        "Retention.watch",
        "ServiceManager.ping",
        "Daemon.look_after",
        "Listeners.accept",
        "Database.commit",
    ),
)
#: A part that has another name in `status`: it is an item of that.
NAMES = {"Scheduler.settled": "scheduler", "Retention.prune": "retention", "Database.commit": "store"}

CODE = f"""
tau.RESTART_S = 0.05

def fail_once(owner, name):
    work, failures = getattr(owner, name), [1]
    def failing(*arguments, **options):
        if failures:
            raise ZeroDivisionError(f"failure {{failures.pop()}} of {{name}}")
        return work(*arguments, **options)
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
        assert "Runner.watch failed" in str(home("doctor", exit=home.command("doctor").exit))
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
