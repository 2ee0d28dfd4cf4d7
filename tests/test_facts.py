"""What an error tells beyond its message and place: `error.facts`, by kind of failure."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Tau, make_home, started

import tau as module

# Where a run was when it was stopped.

STOPPED = """
    import asyncio, re, signal, threading, time
    from tau import pipeline

    def spin():
        while True:
            sum(range(1000))

    async def wait():
        await asyncio.sleep(600)

    @pipeline(timeout=0.3)
    async def blocks(ctx):
        asyncio.create_task(wait(), name="waiter")
        with ctx.step("heavy") as step:
            step.rows_in, step.rows_out = 5, 3
            await asyncio.sleep(0)
            spin()

    @pipeline(timeout=0.3)
    async def awaits(ctx):
        with ctx.step("heavy"):
            await wait()

    @pipeline(timeout=0.3)
    def threaded(ctx):
        threading.Thread(target=spin, daemon=True, name="spinner").start()
        with ctx.step("heavy"):
            time.sleep(600)

    @pipeline(timeout=0.3)
    def streams(ctx):
        def batches():
            yield [{"id": 1}, {"id": 2}]
            time.sleep(600)
        ctx.load("heavy.csv", batches())

    @pipeline(timeout=0.3)
    def deaf(ctx):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with ctx.step("heavy"):
            time.sleep(600)
"""


@pytest.fixture(scope="module")
def stopping() -> Iterator[Tau]:
    for tau in started(make_home("[daemon]\nstop_grace_s = 2.5\n")):
        tau.deploy(textwrap.dedent(STOPPED))
        yield tau


def stopped(tau: Tau, name: str) -> tuple[Any, Any, dict[str, list[str]]]:
    """The run, its facts, and its stacks by name of thread or task."""
    run = tau.call("run", name=name, timeout=30)
    facts = run["error"]["facts"]
    assert (run["status"], facts["limit_s"]) == ("timed_out", 0.3)
    return run, facts, {stack["name"]: stack["frames"] for stack in facts["stacks"]}


def test_a_run_that_blocks_the_event_loop_tells_the_line_and_its_step_the_rows(stopping: Tau) -> None:
    run, facts, stacks = stopped(stopping, "blocks")
    assert facts["blocked"] is True
    assert facts["blocked_at"].endswith((" while True:", " sum(range(1000))"))
    assert next(frame.partition(" ")[2] for frame in stacks["MainThread"]) == "blocks: spin()"
    assert next(frame.partition(" ")[2] for frame in stacks["waiter"]) == "wait: await asyncio.sleep(600)"
    assert 0.3 <= facts["elapsed_s"] < 2.0
    (step,) = run["trace"]["steps"]
    assert (step["rows_in"], step["rows_out"]) == (5, 3)
    assert step["duration_ms"] > 250


def test_a_run_that_awaits_is_not_blocked_and_tells_what_it_waits_for(stopping: Tau) -> None:
    _, facts, stacks = stopped(stopping, "awaits")
    assert (facts["blocked"], "blocked_at" in facts) == (False, False), facts
    (frames,) = stacks.values()
    assert [frame.partition(" ")[2] for frame in frames][:2] == [
        "awaits: await wait()",
        "wait: await asyncio.sleep(600)",
    ]


def test_a_sync_run_has_the_stacks_of_its_threads_and_no_event_loop(stopping: Tau) -> None:
    _, facts, stacks = stopped(stopping, "threaded")
    assert "blocked" not in facts
    assert stacks["MainThread"][-1].endswith(" threaded: time.sleep(600)")
    assert " spin: " in stacks["spinner"][-1]


def test_a_stream_that_is_cut_has_the_rows_so_far(stopping: Tau) -> None:
    (step,) = stopped(stopping, "streams")[0]["trace"]["steps"]
    assert (step["status"], step["rows_in"]) == ("cancelled", 2)


def test_a_run_that_had_to_be_killed_says_where_it_was_and_how_long_its_step_took(stopping: Tau) -> None:
    run, _, stacks = stopped(stopping, "deaf")
    (step,) = run["trace"]["steps"]
    assert [frame.partition(":")[0] for frame in stacks["MainThread"]][-1] == run["error"]["file"]
    assert stacks["MainThread"][-1].endswith(" deaf")
    assert (run["resources"]["signal"], step["status"]) == (9, "failed")
    assert 300 < step["duration_ms"] < 10_000


# Bounds.


@pytest.mark.parametrize(
    ("facts", "kept"),
    [
        ({"body": "x" * 3_000, "status": 503}, {"status": 503}),
        ({"rows": ["x" * 500] * 100, "failing": 3}, {"rows": ["x" * 500] * 3, "failing": 3}),
        ({str(number): "x" for number in range(100_000)}, 2_000),
        ({"x" * 5_000: 1}, None),
        ({}, None),
    ],
)
def test_facts_are_bounded_whatever_a_journal_says(facts: Any, kept: Any) -> None:
    made = module.fit("facts", facts, module.Mask(), "raised")
    assert len(json.dumps(made)) < 3_000 if kept == 2_000 else made == kept
