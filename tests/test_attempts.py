"""Attempts: tried again, in time, from where it failed, within limits."""

from __future__ import annotations

import datetime
import os
import signal
import unittest.mock
from typing import Any

import pytest
from conftest import THOROUGH, Tau, eventually, is_running

import tau as module


def flaky(options: str, body: str) -> str:
    """A pipeline `flaky` that counts its attempts in a file of its directory."""
    return f"""
import os, signal, time
from tau import pipeline
@pipeline({options})
def flaky(ctx):
    with open("tried", "a") as file:
        file.write(f"{{ctx.run_id}} {{ctx.attempt}}\\n")
    ctx.log(f"attempt {{ctx.attempt}}")
    {body}
"""


def tried(tau: Tau, run_id: str, name: str = "flaky") -> list[int]:
    """The attempts of a run that its own record tells of."""
    lines = (tau.home / "data" / name / "tried").read_text().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith(run_id)]


FAIL_TWICE = "with ctx.step('work'):\n        assert ctx.attempt > 2\n    return ctx.attempt"


def test_a_failed_attempt_is_followed_by_others_each_with_its_trace(tau: Tau) -> None:
    tau.deploy(flaky("retries=3", FAIL_TWICE))
    run = tau("run", "flaky")
    assert (run["status"], run["attempt"], run["result"], run["error"]) == ("success", 3, 3, None)
    assert [one["status"] for one in run["attempts"]] == ["failed", "failed", "success"]
    assert run["attempts"][0]["error"]["type"] == "AssertionError"
    assert run["attempts"][0]["error"]["step"] == "work"
    assert tried(tau, run["run_id"]) == [1, 2, 3]
    first = tau("inspect", run["run_id"], "--attempt", "1")
    assert [step["status"] for step in first["trace"]["steps"]] == ["failed"]
    assert first["trace"]["log_tail"] == ["attempt 1"]
    lines = tau("logs", run["run_id"], "--attempt", "2")["lines"]
    assert [line["message"] for line in lines] == ["attempt 2"]
    assert "no attempt 9" in tau("inspect", run["run_id"], "--attempt", "9", exit=3)["message"]


def test_the_story_of_several_attempts_is_told_in_order_again_and_again(tau: Tau) -> None:
    tau.deploy(flaky("retries=2", FAIL_TWICE))
    *live, document = tau.command("run", "flaky", "--follow").lines
    kinds = [event["type"] for event in live]
    attempt = ["run.started", "log", "step.started", "step.finished"]
    assert kinds == ["run.queued", *attempt, "run.retrying", *attempt, "run.retrying", *attempt, "run.finished"]
    seqs = [event["seq"] for event in live]
    assert seqs == sorted(set(seqs))
    again = tau.command("logs", document["run_id"], "--follow").lines
    assert [line["message"] for line in again] == ["attempt 1", "attempt 2", "attempt 3"]
    assert [line["seq"] for line in again] == [event["seq"] for event in live if event["type"] == "log"]


def test_after_the_last_attempt_the_run_has_failed(tau: Tau) -> None:
    tau.deploy(flaky("retries=1", "raise ValueError('always')"))
    run = tau.command("run", "flaky").json
    assert (run["status"], run["attempt"], run["error"]["message"]) == ("failed", 2, "always")
    assert tried(tau, run["run_id"]) == [1, 2]
    assert run["duration_ms"] >= sum(one["duration_ms"] for one in run["attempts"]) - 2


CAUSES = [
    ("retry_on=ValueError", "raise ValueError", 2),
    ("retry_on=[OSError, ValueError]", "raise ConnectionError", 2),
    ("retry_on=[KeyError]", "raise ValueError", 1),
    ("retry_on=['died']", "raise ValueError", 1),
    ("retry_on=['died']", "os._exit(3)", 2),
    ("retry_on=[ValueError]", "os._exit(3)", 1),
    ("retry_on='timeout', timeout=0.2", "time.sleep(300)", 2),
    ("retry_on=[ValueError], timeout=0.2", "time.sleep(300)", 1),
    ("timeout=0.2", "time.sleep(300)", 2),
]


@pytest.mark.parametrize(("options", "body", "attempts"), CAUSES)
def test_only_what_the_author_means_is_tried_again(tau: Tau, options: str, body: str, attempts: int) -> None:
    tau.deploy(flaky(f"retries=1, {options}", body))
    run = tau.command("run", "flaky").json
    assert run["attempt"] == attempts
    assert run["status"] == ("timed_out" if "timeout=" in options else "failed")


def test_an_error_with_long_messages_is_that_error(tau: Tau) -> None:
    chain = "error = None\n    for _ in range(9):\n        error, cause = OSError('\\x01' * 66_000), error\n"
    body = f"{chain}        error.__cause__ = cause\n    raise error"
    tau.deploy(flaky("retries=1, retry_on=[OSError]", body))
    run = tau.command("run", "flaky").json
    assert (run["attempt"], run["error"]["type"]) == (2, "OSError")


PAUSES: list[tuple[dict[str, Any], list[float]]] = [
    ({}, [0, 0, 0]),
    ({"retry_delay": 5.0}, [5, 5, 5]),
    ({"retry_delay": 5.0, "retry_backoff": 2.0}, [5, 10, 20]),
    ({"retry_delay": 5.0, "retry_backoff": 2.0, "retry_delay_max": 8.0}, [5, 8, 8]),
    ({"retry_delay": 1.0, "retry_backoff": 100.0}, [1, 100, 10_000]),
]


@pytest.mark.parametrize(("options", "pauses"), PAUSES)
def test_delays_grow_as_they_are_told(options: dict[str, Any], pauses: list[float]) -> None:
    failed = module.Outcome("failed", None, module.bare_error("exception", "ValueError", "x"))
    found = [module.retry_pause({"retries": 3, **options}, attempt, failed) for attempt in (1, 2, 3, 4)]
    assert found == [*pauses, None]
    for _ in range(50):
        pause = module.retry_pause({"retries": 1, "retry_delay": 10.0, "retry_jitter": 0.2}, 1, failed)
        assert pause is not None
        assert 8.0 <= pause <= 12.0


def test_a_run_that_waits_to_be_tried_again_survives_kill_9_and_can_be_cancelled(fresh: Tau) -> None:
    fresh.deploy(flaky("retries=2, retry_delay=0.8", "assert ctx.attempt > 1"))
    waiting = fresh.call("run", name="flaky", wait=False)["run_id"]
    eventually(lambda: fresh("inspect", waiting)["status"] == "retrying")
    assert fresh("inspect", waiting)["retry_at"] is not None
    fresh.kill()
    fresh.start()
    assert fresh("wait", waiting)["status"] == "success"
    assert tried(fresh, waiting) == [1, 2]
    fresh.deploy(flaky("retries=2, retry_delay=3600", "assert False"))
    doomed = fresh.call("run", name="flaky", wait=False)["run_id"]
    eventually(lambda: fresh("inspect", doomed)["status"] == "retrying")
    assert fresh("cancel", doomed) == {"run_id": doomed, "status": "cancelled", "changed": True}
    assert fresh("inspect", doomed)["attempts"][0]["status"] == "failed"
    gone = fresh.call("run", name="flaky", wait=False)["run_id"]
    eventually(lambda: fresh("inspect", gone)["status"] == "retrying")
    assert fresh("undeploy", "flaky")["cancelled_runs"] == [gone]


def test_a_run_that_takes_too_long_times_out_with_all_it_started(tau: Tau) -> None:
    tau.deploy(
        """
        import subprocess, time
        from tau import pipeline
        @pipeline(timeout="200ms" if False else 0.2)
        def slow(ctx):
            child = subprocess.Popen(["sleep", "300"])
            ctx.log("child", pid=child.pid)
            with ctx.step("waiting"):
                time.sleep(300)
        """
    )
    run = tau.command("run", "slow")
    assert run.exit == 1
    error = run.json["error"]
    assert (run.json["status"], error["kind"], error["step"]) == ("timed_out", "timeout", "waiting")
    assert error["message"] == "stopped at its time limit of 0.2 s"
    pid = tau("logs", "slow")["lines"][0]["fields"]["pid"]
    assert not is_running(pid)


def test_a_time_limit_holds_across_a_restart_of_the_daemon(fresh: Tau) -> None:
    fresh.deploy(flaky("timeout=1.0", "time.sleep(300)"))
    run_id = fresh.call("run", name="flaky", wait=False)["run_id"]
    eventually(lambda: fresh("inspect", run_id)["trace"]["log_lines"])
    fresh.kill()
    fresh.start()
    assert fresh.command("wait", run_id).json["status"] == "timed_out"


def test_waiting_in_the_queue_has_a_limit_too(home: Tau) -> None:
    (home.home / "tau.toml").write_text("[scheduler]\nmax_concurrent = 1\n[daemon]\nstop_grace_s = 0.2\n")
    home.start()
    home.deploy(flaky("queue_timeout=0.3", "time.sleep(300)"))
    live = home.call("run", name="flaky", wait=False)["run_id"]
    late = home.command("run", "flaky").json
    assert (late["status"], late["error"]["kind"], late["attempts"]) == ("timed_out", "timeout", [])
    assert "queue_timeout" in late["error"]["message"]
    assert home("inspect", live)["status"] == "running"


STEPS = """
import asyncio, time
from tau import pipeline
@pipeline
def sync_step(ctx):
    with ctx.step("outer", timeout=30):
        try:
            with ctx.step("inner", timeout=0.05):
                time.sleep(300)
        except TimeoutError as problem:
            ctx.log(str(problem))
    with ctx.step("short", timeout="0.05s"):
        with ctx.step("longer", timeout=10):
            time.sleep(300)

@pipeline
async def async_step(ctx):
    async with ctx.step("outer", timeout=30):
        try:
            async with ctx.step("inner", timeout=0.05):
                await asyncio.sleep(300)
        except TimeoutError as problem:
            ctx.log(str(problem))
    async with ctx.step("short", timeout=0.05):
        async with ctx.step("longer", timeout=10):
            await asyncio.sleep(300)
"""


@pytest.mark.parametrize("name", ["sync_step", "async_step"])
def test_a_step_that_takes_too_long_says_so(tau: Tau, name: str) -> None:
    tau.deploy(STEPS)
    run = tau.command("run", name).json
    assert (run["status"], run["error"]["kind"], run["error"]["type"]) == ("failed", "timeout", "StepTimeout")
    assert run["error"]["message"] == "step 'short' took longer than 0.05 s"
    assert run["trace"]["log_tail"] == ["step 'outer/inner' took longer than 0.05 s"]
    outer, short = run["trace"]["steps"]
    assert (outer["status"], outer["steps"][0]["status"]) == ("success", "failed")
    assert (short["status"], short["steps"][0]["status"]) == ("failed", "failed")


MEMO = """
from datetime import date
from tau import pipeline

def fetch(day):
    with open("fetched", "a") as file:
        file.write(f"{day}\\n")
    return {"day": day, "rows": (1, 2)}

async def fetch_later(day):
    return fetch(day)

@pipeline(retries=1)
async def memo_async(ctx, fail: int = 0):
    first = await ctx.memo("fetch", fetch_later, date(2026, 1, 31))
    other = await ctx.memo("fetch", fetch, date(2026, 2, 1))
    thing = await ctx.memo("thing", lambda: {1: {2, 3}}, pickle=True)
    if ctx.attempt <= fail:
        raise ValueError("after the memos")
    return [first, other["day"], thing[1] == {2, 3}]

@pipeline
def memo_sync(ctx, fail: bool = False):
    found = ctx.memo("fetch", fetch, "sync")
    if fail and ctx.attempt == 1 and not ctx.params.get("ok"):
        raise ValueError("after the memo")
    return found
"""


def fetched(tau: Tau, name: str) -> list[str]:
    """What the pipeline has fetched, by its own record."""
    path = tau.home / "data" / name / "fetched"
    return path.read_text().split() if path.exists() else []


def test_what_was_done_is_not_done_again_by_the_next_attempt(tau: Tau) -> None:
    tau.deploy(MEMO)
    before = len(fetched(tau, "memo_async"))
    run = tau("run", "memo_async", "-p", "fail=1")
    assert run["attempt"] == 2
    assert run["result"] == [{"day": "2026-01-31", "rows": [1, 2]}, "2026-02-01", True]
    assert fetched(tau, "memo_async")[before:] == ["2026-01-31", "2026-02-01"]
    assert "memo 'fetch' is used again ×2" in run["trace"]["log_tail"]  # noqa: RUF001
    eventually(lambda: not (tau.home / "memos" / run["run_id"]).exists())


def test_a_run_that_is_cancelled_as_it_fails_is_not_tried_again(fresh: Tau) -> None:
    body = "atexit.register(time.sleep, 600)\n    ctx.log('raises')\n    raise ValueError('x')"
    fresh.deploy(f"import atexit, time\nfrom tau import pipeline\n@pipeline(retries=5)\ndef it(ctx):\n    {body}\n")
    run_id = fresh.call("run", name="it", wait=False)["run_id"]
    journal = fresh.home / "runs" / f"{run_id}.1.journal"
    eventually(lambda: journal.exists() and '"raised"' in journal.read_text())
    answer = fresh.call("cancel", run_id=run_id)
    assert (answer["status"], answer["changed"]) == ("failed", False)
    run = fresh.call("inspect", name=run_id, full=True)
    assert [attempt["status"] for attempt in run["attempts"]] == ["failed"]


def test_a_run_that_is_cancelled_at_its_time_limit_is_not_tried_again(fresh: Tau) -> None:
    body = "try:\n        time.sleep(600)\n    finally:\n        ctx.log('stops')\n        time.sleep(1)"
    fresh.deploy(
        f"import time\nfrom tau import pipeline\n@pipeline(retries=5, timeout=0.2)\ndef it(ctx):\n    {body}\n"
    )
    run_id = fresh.call("run", name="it", wait=False)["run_id"]
    journal = fresh.home / "runs" / f"{run_id}.1.journal"
    eventually(lambda: journal.exists() and "stops" in journal.read_text())
    fresh.call("cancel", run_id=run_id)
    run = fresh.call("inspect", name=run_id, full=True)
    assert [attempt["status"] for attempt in run["attempts"]] == ["timed_out"]


def test_what_is_undeployed_meanwhile_is_not_tried_again(fresh: Tau) -> None:
    fresh.deploy_held(after="raise ValueError('x')")
    fresh.deploy((fresh.work / "pipelines.py").read_text().replace("@pipeline", "@pipeline(retries=3)"))
    run_id = fresh.call("run", name="it", wait=False)["run_id"]
    eventually(lambda: fresh.call("inspect", name=run_id)["status"] == "running")
    fresh("undeploy", "it")
    fresh.go.touch()
    run = fresh.call("wait", run_id=run_id)
    assert (run["status"], run["attempt"]) == ("failed", 1)


def test_a_step_of_tau_s_own_calls_has_a_limit_too(tau: Tau) -> None:
    run = tau.run_it(
        """
        import time
        async def it(ctx):
            async with ctx.step("slow", timeout=0.05):
                await ctx.transform([{"n": 1}], [lambda rows: time.sleep(0.2) or rows])
        """,
        exit=1,
    )
    assert (run["error"]["type"], run["error"]["step"]) == ("StepTimeout", "slow")


def test_a_step_ends_a_query_of_sqlite(tau: Tau) -> None:
    run = tau.run_it(
        """
        def it(ctx):
            with ctx.step("slow", timeout=0.2):
                ctx.sql("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
                        connection="sqlite:///new.db")
        """,
        exit=1,
    )
    assert run["error"]["type"] == "StepTimeout"


HANDLED = {"sys.exit(0)": ("success", None), "raise KeyError('own') from None": ("failed", "KeyError")}


@pytest.mark.parametrize("line", HANDLED)
def test_what_a_pipeline_makes_of_a_late_step_is_its_own(tau: Tau, line: str) -> None:
    tau.deploy_it(
        f"""
        import sys, time
        from tau import StepTimeout
        def it(ctx):
            with ctx.step("slow", timeout=0.05):
                try:
                    time.sleep(60)
                except StepTimeout:
                    {line}
        """
    )
    run = tau.command("run", "it").json
    assert (run["status"], run["error"] and run["error"]["type"]) == HANDLED[line]


def test_a_cancelled_query_of_sqlite_is_not_asked_again(tau: Tau) -> None:
    tau.deploy_it(
        """
        def it(ctx):
            for attempt in range(9):
                try:
                    ctx.log(f"try {attempt}")
                    ctx.sql("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
                            connection="sqlite:///new.db")
                except Exception as problem:
                    ctx.log(str(problem))
        """
    )
    run_id = tau("run", "it", "--detach")["run_id"]
    eventually(lambda: tau.call("logs", run_id=run_id)["lines"])
    tau("cancel", run_id)
    assert [line["message"] for line in tau.call("logs", run_id=run_id)["lines"]] == ["try 0"]


def test_memos_of_other_arguments_are_others() -> None:
    @module.pipeline
    def it(ctx: module.PipelineContext) -> list[int]:
        no_json = [float("nan")] * 2000
        return [ctx.memo("last", lambda numbers: numbers[-1], [*no_json, last]) for last in (1, 2, 1)]

    run = module.run_local(it)
    module.PIPELINES.pop()
    assert (run["result"], run["logs"]) == ([1, 2, 1], ["memo 'last' is used again"])


def test_a_memo_is_not_that_of_another_call() -> None:
    @module.pipeline
    def it(ctx: module.PipelineContext) -> object:
        return [ctx.memo("m", lambda: day.isoformat()) for day in map(datetime.date.fromordinal, (1, 2))]  # noqa: B023

    with pytest.raises(module.BadRequest, match="would return what another call of this attempt has made"):
        module.run_local(it)
    module.PIPELINES.pop()


def test_memos_of_one_function_are_used_again() -> None:
    @module.pipeline
    def it(ctx: module.PipelineContext) -> object:
        rows = [{"id": 1}]

        def fetch(page: int) -> object:
            def parse(text: object) -> object:
                return text

            return ctx.memo("page", lambda page: parse(page), page)

        calls = [ctx.memo("n", lambda: rows.append({}) or len(rows)) for _ in "ab"]
        return [*calls, fetch(1), fetch(1), ctx.memo("mock", unittest.mock.Mock(return_value=3))]

    run = module.run_local(it)
    module.PIPELINES.pop()
    assert run["result"] == [2, 2, 1, 1, 3]


def test_memos_keep_what_was_returned_or_say_that_they_cannot() -> None:
    @module.pipeline
    def it(ctx: module.PipelineContext) -> list[object]:
        calls = [ctx.memo("first", lambda data: data.decode(), data) for data in (b"ab", b"cd")]
        half = ctx.memo("half", lambda: "\ud800")
        try:
            ctx.memo("bytes", lambda: [b"xyz"])
        except Exception as problem:
            return [calls, half == "\ud800", str(problem)]
        return []

    run = module.run_local(it)
    module.PIPELINES.pop()
    wrong = "memo bytes[0] is bytes, which JSON cannot express: pickle=True"
    assert run["result"] == [["ab", "cd"], True, wrong]


def test_a_run_is_retried_from_its_failure(tau: Tau) -> None:
    tau.deploy(MEMO)
    failed = tau.command("run", "memo_async", "-p", "fail=2").json
    assert failed["status"] == "failed"
    assert fetched(tau, "memo_async")[-2:] == ["2026-01-31", "2026-02-01"]
    count = len(fetched(tau, "memo_async"))
    again = tau.command("retry", failed["run_id"], "--from-failure", "--key", "once").json
    assert (again["retry_of"], again["trigger"]) == (failed["run_id"], "retry")
    assert again["status"] == "failed"  # it fails twice by its params, but fetches nothing
    assert len(fetched(tau, "memo_async")) == count
    same = tau.command("retry", failed["run_id"], "--from-failure", "--key", "once").json
    assert (same["run_id"], same["deduplicated"]) == (again["run_id"], True)
    chained = tau.command("retry", again["run_id"], "--from-failure").json
    assert chained["retry_of"] == again["run_id"]
    fresh = tau.command("retry", failed["run_id"]).json
    assert fresh["status"] == "failed"
    assert len(fetched(tau, "memo_async")) > count


def test_a_retry_runs_the_version_that_is_asked_for(tau: Tau) -> None:
    tau.deploy("from tau import pipeline\n@pipeline\ndef vers(ctx, x: int): raise ValueError(1)\n")
    failed = tau.command("run", "vers", "-p", "x=7").json
    tau.deploy("from tau import pipeline\n@pipeline\ndef vers(ctx, x: int): return x\n")
    assert tau("retry", failed["run_id"])["result"] == 7
    same = tau.command("retry", failed["run_id"], "--version", "same").json
    assert (same["status"], same["version"], same["params"]) == ("failed", failed["version"], {"x": 7})
    assert tau("retry", failed["run_id"], "--version", str(failed["version"] + 1))["result"] == 7
    assert "no version 99" in tau("retry", failed["run_id"], "--version", "99", exit=3)["message"]
    for word in ("newest", "9" * 5000, "٣", "-1"):
        assert tau("retry", failed["run_id"], f"--version={word}", exit=2)["code"] == "bad_request"
    tau.deploy(flaky("", "time.sleep(300)"))
    live = tau.call("run", name="flaky", wait=False)["run_id"]
    assert tau("retry", live, exit=5)["code"] == "conflict"
    tau("cancel", live)
    assert tau("retry", live, "--detach")["status"] in ("queued", "running")
    tau("cancel", tau("runs", "flaky")["runs"][0]["run_id"])


def test_what_is_too_large_or_secret_is_not_kept_and_said_so(home: Tau) -> None:
    (home.home / "tau.toml").write_text("[limits]\nmemo_bytes = 100\n")
    home.start()
    home.deploy(
        """
        from tau import pipeline
        @pipeline
        def it(ctx):
            ctx.secret("X", default="a secret value")
            return [len(ctx.memo("large", lambda: "x" * 200)), ctx.memo("secret", lambda: "a secret value")]
        """
    )
    run = home("run", "it")
    assert run["result"] == [200, "***"]
    told = " ".join(run["trace"]["log_tail"])
    assert "memo 'large' is not kept: it has" in told
    assert "memo 'secret' is not kept: it holds a secret" in told


LIMITS = """
import os
from tau import pipeline
@pipeline(memory="256M")
def hungry(ctx):
    return len(bytearray(1 << 30))

@pipeline
def writer(ctx):
    with open("big", "wb") as file:
        for _ in range(64):
            file.write(b"x" * (1 << 20))

@pipeline
def opener(ctx):
    return len([os.open("/dev/null", os.O_RDONLY) for _ in range(500)])

@pipeline
def modest(ctx):
    return "fine"
"""


def test_the_system_enforces_limits_and_the_run_still_tells_its_end(home: Tau) -> None:
    (home.home / "tau.toml").write_text("[limits]\nfile_bytes = 8000000\nopen_files = 300\n")
    home.start()
    home.deploy(LIMITS)
    hungry = home.command("run", "hungry").json
    assert (hungry["status"], hungry["error"]["type"]) == ("failed", "MemoryError")
    assert "memory" in hungry["error"]["hint"]
    assert "File too large" in home.command("run", "writer").json["error"]["message"]
    assert "Too many open files" in home.command("run", "opener").json["error"]["message"]
    assert home("run", "modest")["result"] == "fine"
    for text, message in (("'1M'", "a size from 64M"), ("'lots'", "a size from"), ("True", "a size from")):
        error = home.deploy(f"from tau import pipeline\n@pipeline(memory={text})\ndef bad(ctx): ...\n", exit=2)
        assert message in error["message"]


def test_an_output_that_never_ends_does_not_fill_the_disk(home: Tau) -> None:
    (home.home / "tau.toml").write_text("[limits]\nlog_bytes = 100000\n")
    home.start()
    home.deploy(
        """
        import os, subprocess, time
        from tau import pipeline
        @pipeline(timeout=120)
        def loud(ctx):
            subprocess.run("yes 'a line of the flood' | head -c 80000000", shell=True)
            while os.fstat(1).st_blocks * 512 > 25_000_000:
                time.sleep(0.01)
            return os.fstat(1).st_size
        """
    )
    run = home("run", "loud")
    assert run["result"] == 80_000_000
    assert run["trace"]["log_lines"] == 80_000_000 // len("a line of the flood\n")
    assert run["trace"]["log_dropped"] > 3_900_000


def test_cancelling_ends_fifty_children_that_ignore_sigterm(tau: Tau) -> None:
    tau.deploy(
        """
        import os, signal, time
        from tau import pipeline
        @pipeline
        def herd(ctx):
            pids = []
            for i in range(50):
                if (pid := os.fork()) == 0:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    if i % 2:
                        os.setsid()
                    time.sleep(300)
                    os._exit(0)
                pids.append(pid)
            ctx.log("children", pids=pids)
            time.sleep(300)
        """
    )
    run_id = tau.call("run", name="herd", wait=False)["run_id"]
    pids = eventually(lambda: [line["fields"]["pids"] for line in tau("logs", run_id)["lines"] if line["fields"]])[0]
    assert tau("cancel", run_id)["status"] == "cancelled"
    assert [pid for pid in pids if is_running(pid)] == []


def test_many_runs_wait_for_ten_slots_and_all_run_once(home: Tau) -> None:
    home.start()
    home.deploy(flaky("", "pass"))
    count = 1000 if THOROUGH else 200
    with home.connect() as wire:
        for number in range(count):
            wire.send({"id": number, "method": "run", "params": {"name": "flaky", "wait": False}})
        ids = [wire.receive()["result"]["run_id"] for _ in range(count)]
    eventually(lambda: home("status")["runs"]["success"] == count)
    lines = (home.home / "data" / "flaky" / "tried").read_text().splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(ids)


def test_a_run_of_an_older_time_is_retried_where_its_process_vanished(fresh: Tau) -> None:
    fresh.deploy(flaky("retries=1, retry_on='lost'", "time.sleep(300) if ctx.attempt == 1 else None"))
    run_id = fresh.call("run", name="flaky", wait=False)["run_id"]
    eventually(lambda: fresh("inspect", run_id)["trace"]["log_lines"])
    processes = fresh.call("status")["processes"]
    for one in sorted(processes, key=lambda one: ["daemon", "fork server", "run"].index(one["role"])):
        os.kill(one["pid"], signal.SIGKILL)
    eventually(lambda: not any(is_running(one["pid"]) for one in processes))
    fresh.start()
    run = fresh("wait", run_id)
    assert [one["status"] for one in run["attempts"]] == ["lost", "success"]


DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    ctx.log('deaf')\n    while True: time.sleep(1)"


def test_a_deaf_run_is_cancelled_at_once_by_force(home: Tau) -> None:
    (home.home / "tau.toml").write_text("[daemon]\nstop_grace_s = 600\n")
    home.start()
    home.deploy(flaky("retries=3", DEAF))
    first = home.call("run", name="flaky", wait=False)["run_id"]
    eventually(lambda: home("inspect", first)["trace"]["log_lines"] == 2)
    assert home("cancel", first, "--force")["status"] == "cancelled"
    second = home.call("run", name="flaky", wait=False)["run_id"]
    eventually(lambda: home("inspect", second)["trace"]["log_lines"] == 2)
    with home.connect() as patient:
        patient.send({"id": 1, "method": "cancel", "params": {"run_id": second}})
        assert home("cancel", second, "--force")["status"] == "cancelled"
        assert patient.receive()["result"]["status"] == "cancelled"
    assert home("inspect", second)["attempt"] == 1
