"""Runs write random records into their own journals, while honest runs, time limits and a schedule go on.

`TAU_FAULTS=100` writes 20,000 records, `TAU_RECORDS=1000000 TAU_SEED=7` a million; without, two thousand.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from conftest import PATIENCE_S, SEED, THOROUGH, Tau, eventually, make_home, running

sys.path.append(str(Path(__file__).parent.parent))

from strange import random_lines

RECORDS = int(os.environ.get("TAU_RECORDS", "20000" if THOROUGH else "2000"))
#: Records of a hostile run, and hostile runs at once.
RECORDS_OF_A_RUN, AT_ONCE = max(250, RECORDS // 400), 4
LOG_BYTES_MAX = 1 << 20

PIPELINES = """
import os, random, signal, time
from tau import pipeline

@pipeline(timeout=2)
def hostile(ctx):
    dice = random.Random(ctx.params["seed"])
    stem = os.path.join({runs!r}, f"{{ctx.run_id}}.1")
    with open(ctx.params["lines"], "rb") as file:
        lines = file.readlines()
    while lines:
        count = dice.randrange(1, 100)
        with open(stem + ".journal", "ab", 0) as journal:
            journal.write(b"".join(lines[:count])[: None if dice.random() < 0.9 else -1])
        del lines[:count]
        if dice.random() < 0.05:
            with open(stem + dice.choice([".end", ".stdout", ".stderr"]), "ab", 0) as file:
                file.write(b"".join(lines[:3]))
        if dice.random() < 0.01:
            os.truncate(stem + ".journal", dice.randrange(2000))
        if dice.random() < 0.1:
            time.sleep(0.05)
    end = dice.choice(["return", "raise", "exit", "kill", "hang"])
    if end == "raise":
        raise ValueError(lines)
    if end == "exit":
        os._exit(dice.randrange(4))
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ctx.log("hangs")
        time.sleep(600)
    return end

@pipeline
def honest(ctx, n: int):
    with ctx.step("work"):
        for number in range(20):
            ctx.log(str(number))
    return n * n

@pipeline(timeout=0.5)
def long(ctx):
    time.sleep(600)

@pipeline(every=1, overlap="skip")
def ticking(ctx):
    return "tick"
"""


def start_hostile(tau: Tau, number: int) -> str:
    lines = tau.work / f"lines-{number}"
    lines.write_bytes(b"".join(random_lines(RECORDS_OF_A_RUN, SEED + number)))
    params = {"lines": str(lines), "seed": SEED + number}
    return str(tau.call("run", name="hostile", params=params, wait=False)["run_id"])


def test_whatever_runs_say_nobody_else_is_hurt() -> None:
    with running(make_home("[scheduler]\nmax_concurrent = 8\n[daemon]\nstop_grace_s = 0.2\n")) as tau:
        tau.deploy(PIPELINES.format(runs=str(tau.home / "runs")))
        ended: list[Any] = []
        for round_number in range(-(-RECORDS // (RECORDS_OF_A_RUN * AT_ONCE))):
            hostile = [start_hostile(tau, round_number * AT_ONCE + number) for number in range(AT_ONCE)]
            long = str(tau.call("run", name="long", wait=False)["run_id"])
            assert tau.call("run", name="honest", params={"n": round_number})["result"] == round_number**2
            assert tau.call("wait", run_id=[long])["status"] == "timed_out"
            for run_id in hostile:
                if run_id.endswith("0"):  # a few are cancelled
                    tau.call("cancel", run_id=run_id, force=True)
            told = tau.call("wait", run_id=hostile, timeout=PATIENCE_S)
            ended += told.get("runs", [told])
            for run_id in hostile:
                tau.call("inspect", run_id=run_id, full=True)
                tau.call("logs", run_id=run_id)
            assert {run["status"] for run in ended[-AT_ONCE:]} <= {
                "success",
                "failed",
                "timed_out",
                "cancelled",
                "lost",
            }
        books = eventually(lambda: quiet(tau))
        assert books["ticking"] >= {"success"}
        log = (tau.home / "taud.log").read_text() if (tau.home / "taud.log").exists() else ""
        assert "Traceback" not in log, log[-4000:]
        assert len(log) < LOG_BYTES_MAX
        tau.call("undeploy", name="ticking")
        eventually(lambda: not list((tau.home / "runs").iterdir()))


def quiet(tau: Tau) -> dict[str, set[str]] | None:
    """The statuses of each pipeline's runs, once no slot is used."""
    if tau.call("status")["slots"]["used"]:
        return None
    books: dict[str, set[str]] = {}
    for run in tau.call("runs", limit=10_000)["runs"]:
        books.setdefault(run["pipeline"], set()).add(run["status"])
    return books
