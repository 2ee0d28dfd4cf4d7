"""What an author writes: the decorator, the context, steps."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import datetime
import inspect
import json
import signal
import sqlite3
import textwrap
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import Context, Tau

import tau as module


@pytest.fixture
def registry() -> list[module.Pipeline]:
    """What @pipeline has seen; forgotten afterwards."""
    before = len(module.PIPELINES)
    yield module.PIPELINES
    del module.PIPELINES[before:]


def test_a_decorated_function_stays_what_it_was(registry: list[module.Pipeline]) -> None:
    @module.pipeline
    def plain(ctx: object) -> str:
        """What it does.

        And how.
        """
        return f"called with {ctx}"

    @module.pipeline(name="other.name-1", description="told", tags=("a", "b"))
    async def named(ctx: object) -> None: ...

    assert plain("x") == "called with x"
    assert plain.__name__ == "plain"
    found = [(one.name, one.options["description"], one.options["tags"]) for one in registry[-2:]]
    assert found == [("plain", "What it does.", []), ("other.name-1", "told", ["a", "b"])]


@pytest.mark.parametrize("name", ["", "a b", "../up", "-x", "a" * 129, "naïve", "a/b", "new\nline"])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(module.BadRequest, match="cannot be a pipeline's name"):
        module.pipeline(name=name)(lambda ctx: None)


def test_a_function_must_take_the_context() -> None:
    with pytest.raises(module.BadRequest, match="must take a PipelineContext"):

        @module.pipeline
        def nothing() -> None: ...


#: Values that fit no option, or few.
ODD = (
    *(7, -1, 1.5, float("nan"), float("inf"), True, 10**400, object(), lambda: 1, int, b"x", "", "é", [7], {"x": 1}),
    *(datetime.timedelta(1), datetime.timedelta(-1), Decimal(3), ["a", 1], "loud", [[]], None),
)


@pytest.mark.parametrize("option", inspect.signature(module.pipeline).parameters)
def test_a_wrong_option_is_refused_by_name_and_a_right_one_is_json(
    option: str, registry: list[module.Pipeline]
) -> None:  # fmt: skip
    for value in ODD:
        before = len(registry)
        with contextlib.suppress(module.BadRequest):
            decorator: Any = module.pipeline(**({"name": "it"} | {option: value}))
            if option != "function":
                decorator(lambda ctx: None)
        for made in registry[before:]:
            module.fit("pipeline", json.loads(module.encode_json(made.to_json())), module.Mask(), option)


#: An option, a value, and what is said of it.
WRONG_OPTIONS: dict[str, tuple[object, str]] = {
    "retry_on": (7, "expected types of exceptions, given 7"),
    "tags": ("example", 'expected array of string, given string "example"'),
    "retries": ("3", 'expected a whole number from 0 to 100, given string "3"'),
    "priority": (10, "expected a whole number from 1 to 5, given integer 10"),
    "timeout": ([], "must be a time from 0 to 10 years"),
    "memory": (True, "expected a size from 64M, not True"),
    "overlap": ("never", 'expected one of "skip", "queue"'),
    "description": (7, "expected string, given integer 7"),
    "executor": (object(), "expected string, given object <object"),
}


@pytest.mark.parametrize("option", WRONG_OPTIONS)
def test_what_an_option_wants_is_named(option: str) -> None:
    value, message = WRONG_OPTIONS[option]
    with pytest.raises(module.BadRequest) as caught:
        module.pipeline(name="x", **{option: value})(lambda ctx: None)  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"@pipeline({option}=…): ")
    assert message in str(caught.value)


def test_a_name_without_its_keyword_is_no_function() -> None:
    with pytest.raises(module.BadRequest, match="'daily' is not a function"):
        module.pipeline("daily")  # type: ignore[arg-type]


def test_steps_nest_in_sync_and_async_code(tau: Tau) -> None:
    run = tau.run_it(
        """
        import asyncio
        async def part(ctx, name):
            async with ctx.step(name) as step:
                await asyncio.sleep(0.01)
                with ctx.step("inner"):
                    await asyncio.to_thread(ctx.log, f"in {name}")
                step.rows_in, step.rows_out = 2, 1
        async def it(ctx):
            async with ctx.step("all"):
                await asyncio.gather(part(ctx, "a"), part(ctx, "b"))
            with ctx.step("after"):
                pass
        """
    )
    everything, after = run["trace"]["steps"]
    assert after["name"] == "after"
    parts = everything["steps"]
    assert sorted(step["name"] for step in parts) == ["a", "b"]
    for step in parts:
        assert (step["rows_in"], step["rows_out"], step["status"]) == (2, 1, "success")
        assert [inner["name"] for inner in step["steps"]] == ["inner"]
        assert everything["duration_ms"] >= step["duration_ms"] >= 10
    assert {line["step"]: line["message"] for line in tau("logs", "it")["lines"]} == {
        "all/a/inner": "in a",
        "all/b/inner": "in b",
    }


#: Bodies of `it(ctx)` that open steps in generators, and the tree of their steps, with log lines in `<>`.
TREES: dict[str, tuple[str, str]] = {
    "a generator that outlives the step that reads it": (
        """
        def rows():
            with ctx.step("extract"):
                yield from range(3)
        stream = rows()
        next(stream)
        with ctx.step("load"):
            list(stream)
            ctx.log("in load")
        with ctx.step("report"):
            ctx.log("in report")
        """,
        "extract() load(<in load>) report(<in report>)",
    ),
    "a generator's own steps and lines, wherever it is read": (
        """
        def rows():
            with ctx.step("extract"):
                for page in (1, 2):
                    with ctx.step(f"page {page}"):
                        ctx.log("fetched")
                        yield page
                    ctx.log("read")
        for page in rows():
            with ctx.step(f"load {page}"):
                ctx.log("loaded")
        """,
        "extract(page 1(<fetched>) <read> page 2(<fetched>) <read>) load 1(<loaded>) load 2(<loaded>)",
    ),
    "a function that a generator calls": (
        """
        def fetch():
            with ctx.step("fetch"):
                ctx.log("fetched")
        def rows():
            with ctx.step("extract"):
                yield 1
                fetch()
                yield 2
        with ctx.step("all"):
            stream = rows()
            next(stream)
            with ctx.step("load"):
                list(stream)
        """,
        "all(extract(fetch(<fetched>)) load())",
    ),
    "generators in generators": (
        """
        def rows():
            with ctx.step("extract"):
                yield from range(2)
        def clean(rows):
            with ctx.step("clean"):
                for row in rows:
                    ctx.log(f"row {row}")
                    yield row
        with ctx.step("load"):
            list(clean(rows()))
        """,
        "load(clean(extract() <row 0> <row 1>))",
    ),
    "a generator that is dropped": (
        """
        def rows():
            with ctx.step("extract"):
                yield 1
        with ctx.step("first"):
            stream = rows()
            next(stream)
        del stream
        with ctx.step("second"):
            pass
        """,
        "first(extract()) second()",
    ),
    "a context manager made of a generator": (
        """
        @contextlib.contextmanager
        def traced(name):
            with ctx.step(name):
                yield
        with traced("outer"):
            with ctx.step("inner"):
                ctx.log("inside")
        """,
        "outer(inner(<inside>))",
    ),
    "an async context manager and an async generator": (
        """
        @contextlib.asynccontextmanager
        async def traced(name):
            async with ctx.step(name):
                yield
        async def rows():
            async with ctx.step("extract"):
                for row in range(2):
                    await asyncio.sleep(0)
                    ctx.log(f"row {row}")
                    yield row
        async def main():
            async with traced("outer"):
                async for row in rows():
                    with ctx.step(f"load {row}"):
                        await asyncio.sleep(0)
        return main()
        """,
        "outer(extract(<row 0> <row 1>) load 0() load 1())",
    ),
    "a pool of threads": (
        """
        def work(name):
            with ctx.step(name):
                ctx.log("working")
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            with ctx.step("first"):
                list(pool.map(work, "ab"))
            with ctx.step("second"):
                pool.submit(work, "c").result()
        """,
        "first(a(<working>) b(<working>)) second(c(<working>))",
    ),
    "a thread": (
        """
        with ctx.step("outer"):
            thread = threading.Thread(target=lambda: ctx.step("inner").__enter__().__exit__(None, None, None))
            thread.start()
            thread.join()
        """,
        "outer(inner())",
    ),
    "a pool of multiprocessing's threads": (
        """
        with ctx.step("outer"), multiprocessing.pool.ThreadPool(1) as pool:
            pool.map(ctx.log, ["working"])
        """,
        "outer(<working>)",
    ),
    "threads of a loop": (
        """
        async def main():
            loop = asyncio.get_running_loop()
            async with ctx.step("outer"):
                await loop.run_in_executor(None, ctx.log, "one")
                await asyncio.to_thread(ctx.log, "two")
        return main()
        """,
        "outer(<one> <two>)",
    ),
}


@pytest.mark.parametrize("case", TREES)
def test_steps_in_generators_have_the_right_parent(
    case: str, registry: list[module.Pipeline], ctx: Context
) -> None:  # fmt: skip
    text, expected = TREES[case]
    names = "import asyncio, concurrent.futures, contextlib, multiprocessing.pool, threading\n"
    known: dict[str, Any] = {}
    exec(f"{names}def it(ctx):\n{textwrap.indent(textwrap.dedent(text), '    ')}", known)
    declared = module.Pipeline(known["it"], "it", {}, ())
    ctx._job["limits"] = {"result_bytes": 1_000}
    module.returned_by(declared, ctx)
    assert tree_of(ctx) == expected


def tree_of(ctx: Context) -> str:
    """The steps of a journal and their log lines, in order of their beginning: `outer(inner(<line>))`."""
    lines = [json.loads(line) for line in ctx.journal.read_text(encoding="utf-8").splitlines()]
    begun = [line for line in lines if line["t"] in ("step", "log")]

    def inside(step: dict[str, Any] | None) -> str:
        number, path = (None, None) if step is None else (step["step"], step["path"])
        parts = []
        for line in begun:
            if line["t"] == "log" and line.get("step") == path:
                parts.append(f"<{line['message']}>")
            elif line["t"] == "step" and line.get("parent") == number:
                parts.append(f"{line['name']}({inside(line)})")
        return " ".join(parts)

    return inside(None)


def test_an_error_that_cannot_be_printed_is_itself_in_a_thread_too(registry: list[module.Pipeline]) -> None:
    class Refused(Exception):
        def __str__(self) -> str:
            return str(self.detail)  # type: ignore[attr-defined]

    @module.pipeline
    def local(ctx: module.PipelineContext) -> str:
        def work() -> None:
            with ctx.step("fetch"):
                raise Refused

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            with contextlib.suppress(Refused):
                pool.submit(work).result()
            return "handled"

    run = module.run_local(local)
    error = {"type": "Refused", "message": "<Refused: cannot be printed: AttributeError>"}
    assert (run["result"], run["trace"]["steps"][0]["error"]) == ("handled", error)


def test_a_steps_exception_is_recorded_and_raised_again(tau: Tau) -> None:
    run = tau.run_it(
        """
        def it(ctx):
            try:
                with ctx.step("outer"), ctx.step("inner"):
                    raise LookupError("gone")
            except LookupError as caught:
                return str(caught)
        """
    )
    outer = run["trace"]["steps"][0]
    assert run["result"] == "gone"
    for step in (outer, outer["steps"][0]):
        assert (step["status"], step["error"]) == ("failed", {"type": "LookupError", "message": "gone"})


def test_odd_row_counts_do_no_harm(tau: Tau) -> None:
    run = tau.run_it(
        """
        def it(ctx):
            with ctx.step("x" * 1000) as step:
                step.rows_in, step.rows_out = "many", 2**70
            with ctx.step("quote \\" and \\ud800") as step:
                step.rows_in = 3.0
        """
    )
    first, second = run["trace"]["steps"]
    assert (len(first["name"]), first["rows_in"], first["rows_out"]) == (200, None, None)
    assert (second["name"], second["rows_in"]) == ('quote " and ?', 3)


def test_an_unknown_level_is_refused(tau: Tau) -> None:
    run = tau.run_it("def it(ctx):\n    ctx.log('x', level='loud')", exit=1)
    assert (run["error"]["type"], run["error"]["line"]) == ("BadRequest", 4)


def test_more_steps_than_the_limit_are_not_recorded(tau: Tau) -> None:
    run = tau.run_it("def it(ctx):\n    for i in range(10_050):\n        with ctx.step('s'):\n            pass")
    assert run["status"] == "success"
    assert len(tau("inspect", run["run_id"], "--full")["trace"]["steps"]) == module.STEPS_MAX


def test_a_pipeline_runs_in_a_unit_test(registry: list[module.Pipeline], tmp_path: Path) -> None:
    @module.pipeline
    async def local(ctx: module.PipelineContext, day: str, limit: int = 2) -> dict[str, object]:
        with ctx.step("outer"), ctx.step("inner") as step:
            step.rows_out = limit
        ctx.log("hello", n=1)
        ctx.metric("rows", limit)
        ctx.check(limit > 0)
        ctx.state["seen"] = day
        ctx.load("out.csv", [{"day": day}])
        return {"day": day, "secret": ctx.secret("LOCAL_SECRET"), "before": ctx.state}

    run = module.run_local(local, {"day": "monday"}, secrets={"LOCAL_SECRET": "hush hush"}, data_dir=str(tmp_path))
    assert run["status"] == "success"
    assert run["result"]["secret"] == "hush hush"
    assert [step["name"] for step in run["trace"]["steps"]] == ["outer", "load out.csv"]
    assert run["trace"]["steps"][0]["steps"][0]["rows_out"] == 2
    assert run["trace"]["metrics"] == {"rows": 2}
    assert run["trace"]["checks"][0]["name"] == "limit > 0"
    assert (run["logs"], run["state"]) == (["hello"], {"seen": "monday"})
    assert (tmp_path / "out.csv").read_text() == "day\nmonday\n"


def test_a_unit_test_sees_what_a_pipeline_raises(registry: list[module.Pipeline]) -> None:
    @module.pipeline
    def raises(ctx: module.PipelineContext, x: int) -> None:
        ctx.check(x > 5, ("named", x != 1))

    with pytest.raises(module.CheckFailed, match="2 of 2 checks failed: x > 5; named"):
        module.run_local(raises, {"x": 1})
    with pytest.raises(module.BadRequest, match=r"params\.x: expected integer"):
        module.run_local(raises, {"x": "1"})
    with pytest.raises(module.BadRequest, match="is no pipeline"):
        module.run_local(len)


def test_state_is_kept_only_by_success_and_only_for_the_next(tau: Tau) -> None:
    tau.deploy_it(
        """
        def it(ctx, fail: bool = False):
            before = dict(ctx.state)
            ctx.state["runs"] = ctx.state.get("runs", 0) + 1
            if fail:
                raise ValueError("no")
            return [before, ctx.last_successful_run is not None and ctx.last_successful_run.tzinfo is not None]
        """
    )
    tau("undeploy", "it")  # what other tests have left under this name stays with it
    tau.deploy_it("def it(ctx):\n    ctx.state = {}\n")
    tau("run", "it")
    tau.deploy_it(
        """
        def it(ctx, fail: bool = False):
            before = dict(ctx.state)
            ctx.state["runs"] = ctx.state.get("runs", 0) + 1
            if fail:
                raise ValueError("no")
            return [before, ctx.last_successful_run.tzinfo is not None]
        """
    )
    assert tau("run", "it")["result"] == [{}, True]
    tau.command("run", "it", "-p", "fail=true")
    assert tau("run", "it")["result"] == [{"runs": 1}, True]
    assert tau("run", "it")["result"] == [{"runs": 2}, True]


def test_a_state_that_is_no_small_object_fails_the_run(tau: Tau) -> None:
    for value in ("[1]", "{'x': 'y' * 70_000}", "{'x': object()}"):
        run = tau.run_it(f"def it(ctx):\n    ctx.state = {value}\n", exit=1)
        assert run["error"]["kind"] == "result"
        assert "ctx.state" in run["error"]["message"]


def test_progress_and_metrics_are_told_live_and_kept(tau: Tau) -> None:
    tau.deploy_it(
        """
        def it(ctx):
            for i in range(2000):
                ctx.progress(i + 1, 2000, f"row {i}")
            ctx.metric("rows", 3)
            ctx.metric("rows", 4.5)
        """
    )
    done = tau.command("run", "it", "--follow")
    trace = done.lines[-1]["trace"]
    assert trace["progress"] == {"done": 2000, "total": 2000, "message": "row 1999"}
    assert trace["metrics"] == {"rows": 4.5}
    told = [line for line in done.lines if line.get("type") == "metric"]
    assert [line["value"] for line in told] == [3, 4.5]
    last = [line for line in done.lines if line.get("type") == "progress"][-1]
    assert (last["done"], last["message"]) == (2000, "row 1999")
    run = tau.run_it("def it(ctx):\n    ctx.metric('x', float('nan'))\n", exit=1)
    assert "finite number" in run["error"]["message"]


def test_a_run_knows_when_it_was_due_and_what_came_before(tau: Tau) -> None:
    run = tau.run_it(
        """
        def it(ctx):
            return [ctx.scheduled_for, ctx.attempt, ctx.pipeline, ctx.data_dir.endswith("/data/it")]
        """
    )
    assert run["result"] == [None, 1, "it", True]


def test_what_rows_hold_is_told_short_and_masked(tau: Tau) -> None:
    run = tau.run_it(
        """
        def it(ctx):
            rows = ctx.transform([{"id": i, "password": f"pw{i}"} for i in range(50)], steps="SELECT * FROM data")
            ctx.check(len(rows) > 50, severity="warn")
            return rows[0]["missing"]
        """,
        exit=1,
    )
    local = run["error"]["frames"][-1]["locals"]["rows"]
    assert local.startswith("[{'id': 0, 'password': '***'}")
    assert "pw0" not in json.dumps(run)
    assert len(run["trace"]["checks"][0]["values"]["rows"]) <= 160


def test_a_unit_test_is_told_what_to_do_and_can_be_scheduled_and_chained(registry: list[module.Pipeline]) -> None:
    @module.pipeline(after="other")
    def chained(ctx: module.PipelineContext) -> list[object]:
        return [ctx.upstream["other"]["result"], ctx.scheduled_for, ctx.secret("NOT_THERE_AT_ALL")]

    with pytest.raises(module.MissingSecret) as caught:
        module.run_local(chained, upstream={"other": 5}, scheduled_for="2026-01-01T00:00:00.000Z")
    assert caught.value.__notes__ == ['hint: run_local(…, secrets={"NOT_THERE_AT_ALL": "…"})']
    found = module.run_local(chained, upstream={"other": 5}, secrets={"NOT_THERE_AT_ALL": "it is"})
    assert found["result"] == [5, None, "it is"]


#: What a run leaves unfinished, and what it raises.
LEFT: dict[str, str] = {
    "a stream": "for batch in left.append(iter(ctx.extract('rows.jsonl', stream=True, batch_rows=1))) or left[0]: 1 / 0",
    "a stream that nobody reads on": "next(left.append(iter(ctx.extract('rows.jsonl', stream=True))) or left[0])",
    "a step": "left.append(step := ctx.step('open')); step.__enter__(); 1 / 0",
    "an async function": "left.append(ctx.check(wait)); 1 / 0",
    "a log": "left.append(ctx); ctx.log('first')",
}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("case", LEFT)
def test_what_a_local_run_leaves_does_not_reach_the_next(
    case: str, registry: list[module.Pipeline], tmp_path: Path
) -> None:  # fmt: skip
    left: list[object] = []
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n{"n": 2}\n')

    @module.pipeline
    async def first(ctx: module.PipelineContext) -> None:
        async def wait() -> bool:
            await asyncio.sleep(1)
            return True

        exec(LEFT[case], {"ctx": ctx, "left": left, "wait": wait})

    @module.pipeline
    async def second(ctx: module.PipelineContext) -> None:
        for rest in (left.pop(),):
            if hasattr(rest, "close"):
                rest.close()
            if hasattr(rest, "finish"):
                rest.finish(None, 0.0)
            if hasattr(rest, "log"):
                rest.log("late")
        with ctx.step("work"):
            pass

    with contextlib.suppress(ZeroDivisionError):
        module.run_local(first, data_dir=str(tmp_path))
    run = module.run_local(second)
    assert [step["name"] for step in run["trace"]["steps"]] == ["work"]
    assert run["logs"] == []


LOOP = """
import asyncio
from tau import pipeline

@pipeline
def pages(ctx):
    return [ctx.memo("page", lambda: page) for page in range(3)]

@pipeline
def again(ctx):
    for delay in (0, 1):
        try:
            return ctx.memo("fetch", lambda: 1 // delay)
        except ZeroDivisionError:
            pass

@pipeline
def alike(ctx, page: int = 1):
    return [ctx.memo("page", lambda: page) for _ in range(2)]

@pipeline
def looping(ctx):
    return asyncio.get_event_loop().run_until_complete(asyncio.sleep(0, "slept"))

@pipeline(retries=1, retry_on=[ConnectionError])
async def grouped(ctx):
    async def lost():
        raise ConnectionError("lost")
    async with asyncio.TaskGroup() as group:
        group.create_task(lost())

@pipeline
async def forgotten(ctx):
    ctx.memo("sent", lambda: 1)

@pipeline
def dots(ctx):
    for _ in range(30_000):
        print(".", end="", flush=True)
"""


def test_what_a_function_may_do_ends_as_it_should(fresh: Tau) -> None:
    fresh.deploy(LOOP)
    error = fresh("run", "pages", exit=1)["error"]
    assert (error["type"], "give what differs as an argument" in error["hint"]) == ("BadRequest", True)
    assert fresh("run", "alike")["result"] == [1, 1]
    assert fresh("run", "again")["result"] == 1
    assert fresh("run", "looping")["result"] == "slept"
    run = fresh("run", "grouped", exit=1)
    assert (run["attempt"], run["error"]["type"], run["error"]["message"]) == (2, "ConnectionError", "lost")
    assert "never awaited" in fresh("run", "forgotten", exit=1)["error"]["message"]
    run = fresh("run", "dots")
    assert run["status"] == "success"
    with contextlib.closing(sqlite3.connect(fresh.home / "tau.db")) as db:
        ((position,),) = db.execute("SELECT position FROM attempts WHERE run_id = ?", (run["run_id"],))
    assert json.loads(position).get("journal", 0) < 5_000_000


def test_a_series_does_not_lose_its_index(fresh: Tau) -> None:
    pytest.importorskip("pandas")
    text = "import pandas\ndef it(ctx): return {}"
    assert "keeps its index" in fresh.run_it(text.format("pandas.Series({'a': 1})"), exit=1)["error"]["message"]
    assert fresh.run_it(text.format("pandas.Series({'a': 1}).to_dict()"))["result"] == {"a": 1}


def test_run_local_works_in_a_loop_and_forgets_secrets(tmp_path: Path) -> None:
    async def within() -> Any:
        return module.run_local(local_memo, data_dir=str(tmp_path))["result"]

    @module.pipeline
    def local_memo(ctx: module.PipelineContext) -> Any:
        return ctx.memo("one", lambda: 1)

    assert asyncio.run(within()) == 1

    @module.pipeline
    def local_log(ctx: module.PipelineContext, key: bool = False) -> Any:
        ctx.log("testing the shop")
        return key and len(ctx.secret("TOKEN"))

    assert module.run_local(local_log, {"key": True}, secrets={"TOKEN": "testing"})["logs"] == ["*** the shop"]
    assert module.run_local(local_log)["logs"] == ["testing the shop"]


async def limited(ctx: module.PipelineContext, name: str, begin: float, limit: float, end: float) -> None:
    await asyncio.sleep(begin)
    with ctx.step(name, timeout=limit):
        await asyncio.sleep(end)


def test_steps_that_overlap_have_limits_of_their_own(registry: list[module.Pipeline]) -> None:
    @module.pipeline
    async def done(ctx: module.PipelineContext) -> str:
        await asyncio.gather(limited(ctx, "a", 0, 0.6, 0.1), limited(ctx, "b", 0.05, 0.3, 0.1))
        await asyncio.sleep(0.6)
        return "done"

    @module.pipeline
    async def late(ctx: module.PipelineContext) -> None:
        await asyncio.gather(limited(ctx, "a", 0, 0.2, 0.1), limited(ctx, "b", 0.05, 0.3, 60))

    assert module.run_local(done)["result"] == "done"
    with pytest.raises(module.StepTimeout, match="step 'b' took longer"):
        module.run_local(late)


def test_an_alarm_of_the_authors_comes_when_it_is_due(registry: list[module.Pipeline]) -> None:
    came: list[str] = []

    @module.pipeline
    def it(ctx: module.PipelineContext) -> None:
        signal.signal(signal.SIGALRM, lambda *_: came.append("mine"))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with ctx.step("within", timeout=60):
            until = time.monotonic() + 30
            while not came and time.monotonic() < until:
                time.sleep(0.01)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with ctx.step("after", timeout=60):
            pass
        while len(came) < 2 and time.monotonic() < until:
            time.sleep(0.01)

    try:
        module.run_local(it)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert came == ["mine", "mine"]


def test_an_alarm_that_is_set_within_a_step_comes_too(registry: list[module.Pipeline]) -> None:
    came: list[str] = []

    @module.pipeline
    def it(ctx: module.PipelineContext) -> None:
        with ctx.step("within", timeout=60):
            before = signal.signal(signal.SIGALRM, lambda *_: came.append("mine"))
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            module.safe_repr(object())
            until = time.monotonic() + 30
            while not came and time.monotonic() < until:
                time.sleep(0.01)
            signal.signal(signal.SIGALRM, before)

    module.run_local(it)
    assert came == ["mine"]


def test_steps_of_a_process_that_is_given_the_context_have_numbers_of_their_own(tau: Tau) -> None:
    tau.write("def work(ctx, n):\n    with ctx.step(f'part {n}') as step:\n        step.rows_out = n\n", "parts.py")
    tau.deploy(
        """
        import concurrent.futures, multiprocessing
        import parts
        from tau import pipeline

        @pipeline
        def it(ctx, how: str):
            pool = concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context(how))
            with pool:
                [*pool.map(parts.work, [ctx] * 3, [1, 2, 3])]
            with ctx.step("after") as step:
                step.rows_out = 4
        """,
        "pipelines.py", "--include", tau.work / "parts.py", "--entry", "pipelines.py", "--take-over",
    )  # fmt: skip
    for how in ("fork", "spawn"):
        run = tau("run", "it", "-p", f"how={how}")
        steps = {(step["name"], step["rows_out"]) for step in run["trace"]["steps"]}
        assert steps == {("part 1", 1), ("part 2", 2), ("part 3", 3), ("after", 4)}, how


def test_a_time_of_run_local_is_as_in_a_run(registry: list[module.Pipeline]) -> None:
    @module.pipeline
    def it(ctx: module.PipelineContext) -> list[Any]:
        return [ctx.last_successful_run, ctx.scheduled_for]

    given: Any = datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC)
    run = module.run_local(it, last_successful_run="2026-01-01", scheduled_for=given)
    assert run["result"] == ["2026-01-01T00:00:00+00:00", "2026-01-02T03:00:00+00:00"]


def test_an_async_step_cannot_see_a_stream(registry: list[module.Pipeline], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id\n1\n")

    async def later(rows: Any) -> Any:
        return rows

    @module.pipeline
    async def it(ctx: module.PipelineContext) -> None:
        await ctx.load("b.csv", ctx.transform(ctx.extract("a.csv", stream=True), [later]))

    with pytest.raises(module.BadRequest, match="step 'later' is async: it cannot see a stream"):
        module.run_local(it, data_dir=str(tmp_path))


def test_a_decimal_is_compared_as_a_number(ctx: Context) -> None:
    rows = [{"name": name, "amount": amount} for name, amount in (("a", 2), ("b", 500), ("b", 7.5))]
    ctx.params.update(least=Decimal("7.25"), whole=Decimal(500), huge=Decimal("NaN"))
    for condition, names in (("amount >= :least", ["b", "b"]), ("amount = :whole", ["b"]), ("amount = :huge", [])):
        made = ctx.transform(rows, [f"SELECT name FROM data WHERE {condition}"])
        assert [row["name"] for row in made] == names, condition
    ctx.sql("CREATE TABLE texts (it TEXT)", connection="sqlite:///s.db")
    ctx.sql("INSERT INTO texts VALUES (:it)", {"it": Decimal("1.50")}, connection="sqlite:///s.db")
    assert ctx.sql("SELECT it FROM texts", connection="sqlite:///s.db") == [{"it": "1.50"}]
