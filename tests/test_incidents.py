"""Incidents: failures of one kind are counted as one, closed by a success, and reopened by a repeat."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import Tau, free_port
from test_terminal import on_terminal

import tau as module

#: Fails as its param says; the message names what differs from run to run.
FRAIL = """
from tau import pipeline

@pipeline
def frail(ctx, how: str = "well"):
    with ctx.step(f"do {how}"):
        if how != "well":
            raise ValueError(f"{how} at row {ctx.run_id} of '/tmp/{ctx.run_id}/x.csv'")
    return how
"""


def fail(tau: Tau, how: str = "badly") -> Any:
    return tau("run", "frail", "-p", f"how={how}", exit=1)


def ledger(tau: Tau, *columns: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(tau.home / "tau.db", timeout=10)) as db:
        rows = db.execute("SELECT type, data FROM events WHERE type LIKE 'incident.%' ORDER BY seq").fetchall()
    return [(kind, *(json.loads(data)[column] for column in columns)) for kind, data in rows]


def test_ten_failures_open_one_incident_that_a_success_closes_and_a_repeat_reopens(home: Tau) -> None:
    home.start()
    assert home("errors") == {"incidents": [], "total": 0, "hint": "no failed run is kept"}
    home.deploy(FRAIL)
    runs = [fail(home)["run_id"] for _ in range(10)]
    home.deploy(FRAIL + "# 2\n")
    runs.append(fail(home)["run_id"])
    answer = home("errors")
    (row,) = answer["incidents"]
    assert (row["status"], row["count"], row["versions"], answer["total"]) == ("open", 11, [1, 2], 1)
    assert (row["pipeline"], row["step"], row["type"], row["last_run"]) == ("frail", "do badly", "ValueError", runs[-1])
    assert row["message"].startswith("badly at row")
    assert row["first_at"] < row["last_at"]
    home.deploy(FRAIL + "# 3\n")
    good = home("run", "frail")
    fixed = good["run_id"]
    assert good["closed_incidents"] == [row["incident"]]
    assert "closed_incidents" not in home("run", "frail")
    (closed,) = home("errors", "frail")["incidents"]
    assert (closed["status"], closed["count"], closed["fixed_by"]) == ("closed", 11, 3)
    assert closed["next"] == [f"tau inspect {row['incident']}"]
    fail(home)
    whole = home("inspect", row["incident"])
    assert (whole["status"], whole["count"], whole["closed_at"], whole["versions"]) == ("open", 12, None, [1, 2, 3])
    assert (whole["fixed_by"], whole["fixed_run"]) == (3, fixed)  # what fixed it before
    assert whole["run"]["error"]["fingerprint"] == whole["fingerprint"]
    assert [run["run_id"] for run in whole["runs"]] == [whole["last_run"], *runs[:1:-1]][:10]
    assert home("logs", row["incident"])["run_id"] == whole["last_run"]
    assert len(json.dumps(home("inspect", row["incident"], "--budget", "4000"))) < 4_500
    screen = on_terminal(home, "inspect", row["incident"], columns=80, NO_COLOR="1")[1]
    assert re.search(r"status +open\n.*\nrun +frail v3  failed in .*\n +error +ValueError: ", screen, re.DOTALL)
    assert [len(line) <= 80 for line in screen.splitlines() if "incident inc:" in line] == [True]
    opened = [("incident.opened", 1), ("incident.closed", 11), ("incident.reopened", 12)]
    assert ledger(home, "count") == opened
    assert home("inspect", "inc:000000000000", exit=3)["code"] == "not_found"


def test_what_fails_in_other_ways_is_another_incident_and_open_ones_come_first(tau: Tau) -> None:
    tau.deploy(FRAIL.replace("frail", "ways"))
    for how in ("upwards", "downwards", "upwards"):
        tau("run", "ways", "-p", f"how={how}", exit=1)
    rows = tau("errors", "ways")["incidents"]
    assert [(row["count"], row["step"]) for row in rows] == [(2, "do upwards"), (1, "do downwards")]
    cut = tau("errors", "ways", "--limit", "1")
    assert (cut["total"], cut["truncated"]["get"]) == (2, "tau errors ways --limit 2")


RETRIED = """
from tau import pipeline
import os, time

@pipeline(retries=2)
def retried(ctx):
    raise OSError(ctx.attempt)

@pipeline
def dies(ctx, code: int):
    os._exit(code)

@pipeline(timeout="0.3s")
def hangs(ctx):
    with ctx.step("wait"):
        time.sleep(60)

@pipeline
def waits(ctx):
    time.sleep(60)
"""


def test_only_final_failures_count_whatever_ended_the_run(home: Tau) -> None:
    home.start()
    home.deploy(RETRIED)
    home("run", "retried", exit=1)
    for code in (3, 4):
        home("run", "dies", "-p", f"code={code}", exit=1)
    home("run", "hangs", exit=1)
    run_id = home("run", "waits", "--detach")["run_id"]
    home("cancel", run_id)
    rows = {row["pipeline"]: (row["count"], row["type"], row["step"]) for row in home("errors")["incidents"]}
    assert rows == {
        "retried": (1, "OSError", None),
        "dies": (2, "ProcessDied", None),
        "hangs": (1, "TimeoutError", "wait"),
    }


def test_twenty_failures_at_once_are_one_incident(home: Tau) -> None:
    home.start()
    home.deploy(FRAIL)
    with ThreadPoolExecutor(20) as pool:
        params = {"name": "frail", "params": {"how": "badly"}}
        runs = [*pool.map(lambda _: home.call("run", **params)["run_id"], range(20))]
    (row,) = home("errors")["incidents"]
    assert (row["count"], row["last_run"] in runs) == (20, True)
    assert [kind for (kind,) in ledger(home)] == ["incident.opened"]


def error_of(message: str, *functions: str, step: str | None = None) -> Any:
    frames = [{"function": name, "user": True} for name in functions] + [{"function": "inner", "user": False}]
    return {"type": "E", "message": message, "step": step, "frames": frames}


SAME = [
    ("row 17 of 4,000 is -1.5e-7", "row 3 of 12 is 8"),
    ("no column 'price' in \"orders\"", "no column 'prices' in \"ord'ers\""),
    ("cannot read /data/in/a.csv: gone", "cannot read https://example.com/b?c=d: gone"),
    ("run 1m82hsw4knxmxg at 2026-01-31T06:00:00Z", "run 1m82hsw4knx000 at 2027-12-01T07:00:00Z"),
    ("key 6f1c2a90-aaaa-4bbb-8ccc-0123456789ab", "key 00000000-0000-4000-8000-000000000000"),
    ("object at 0x7f3a, digest deadbeef", "object at 0x1, digest cafebabe"),
    ("it begins 'and has no end", "it begins 'otherwise"),
    ("duplicate key DETAIL: Key (name)=(Ada) exists.", "duplicate key DETAIL: Key (name)=(Bob) exists."),
    ("a" * 500 + "x", "a" * 500 + "y"),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_values_in_a_message_make_no_other_kind_of_failure(first: str, second: str) -> None:
    marks = [module.error_fingerprint(error_of(message, "f")) for message in (first, second)]
    assert marks[0] == marks[1]


def test_type_function_step_and_words_make_another_kind_of_failure() -> None:
    errors = [error_of("m", "f"), error_of("other", "f"), error_of("m", "f", "g"), error_of("m"), error_of("it's", "f")]
    errors += [error_of("m", step="load"), error_of("m", "f") | {"type": "F"}, error_of("it", "f"), error_of("m", "h2")]
    assert len({*map(module.error_fingerprint, errors)}) == len(errors)
    assert module.error_fingerprint(error_of("m", step="day 1")) == module.error_fingerprint(
        error_of("m", step="day 2")
    )


@pytest.mark.parametrize("text", ["a", "'", "a'", "\ud800", "\0", "é", "/", "1", "-", " ", "a.", "f" * 7 + " "])
def test_no_message_costs_much(text: str) -> None:
    began = time.perf_counter()
    module.error_fingerprint(error_of(text * (1 << 20)))
    assert time.perf_counter() - began < 0.1


def test_a_limited_key_sees_the_incidents_of_its_pipelines_only(home: Tau) -> None:
    home.start("--port", str(port := free_port()))
    home.deploy(FRAIL + FRAIL.replace("frail", "other").partition("pipeline\n")[2])
    fail(home)
    home("run", "other", "-p", "how=badly", exit=1)
    ids = {row["pipeline"]: row["incident"] for row in home("errors")["incidents"]}
    key = home("key", "create", "few", "--scope", "read", "--pipelines", "fra*")["key"]
    environ = {"TAU_API_KEY": key, "TAU_HOST": f"tcp://127.0.0.1:{port}"}
    seen = home("errors", **environ)
    assert ([row["incident"] for row in seen["incidents"]], seen["total"]) == ([ids["frail"]], 1)
    assert home("inspect", ids["frail"], **environ)["count"] == 1
    for word in (ids["other"], "inc:000000000000"):
        hidden = home("inspect", word, exit=3, **environ)
        assert hidden["message"] == f"no pipeline named '{word}'"


def test_nobody_waits_for_incidents_of_what_is_undeployed(fresh: Tau) -> None:
    fresh.run_it("def it(ctx): raise KeyError", exit=1)
    (opened,) = fresh("errors")["incidents"]
    fresh("undeploy", "it")
    assert [row["status"] for row in fresh("errors")["incidents"]] == ["closed"]
    fresh.run_it("def it(ctx): raise KeyError", exit=1)
    assert [(row["incident"], row["count"]) for row in fresh("errors")["incidents"]] == [(opened["incident"], 2)]
