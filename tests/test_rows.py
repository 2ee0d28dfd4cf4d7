"""Rows, counts, streams and the steps between them."""

from __future__ import annotations

import asyncio
import datetime
import sqlite3
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from conftest import Context, Tau
from hypothesis import given, settings
from hypothesis import strategies as st

import tau as module

DAY = datetime.date(2026, 1, 2)
KEPT: dict[str, list[Any]] = {
    "integers": [1, None, -(2**63), 2**63 - 1],
    "numbers": [1.5, None, 1e300],
    "texts": ["a", "", None, "it's", 'a "b"', "line\nend", "é\U0001f600", "NULL", "1"],
    "truths": [True, None, False],
    "days": [DAY, None],
    "times": [datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.UTC), None],
    "hours": [datetime.time(3, 4), None],
    "decimals": [Decimal("1.25"), None, Decimal("-10000000.01")],
    "documents": [{"a": [1]}, None],
    "lists": [[1, "x"], None],
    "names": [uuid.UUID(int=5), None],
    "bytes": [b"\0\xff", None],
    "nothing": [None, None],
}


@pytest.mark.parametrize("case", KEPT)
def test_a_sql_step_keeps_types(case: str, ctx: Context) -> None:
    rows = [{"a": value} for value in KEPT[case]]
    again = ctx.transform(rows, ["SELECT * FROM data"])
    assert again == rows
    assert [type(row["a"]) for row in again] == [type(row["a"]) for row in rows]


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "i": st.none() | st.integers(-(2**63), 2**63 - 1),
                "t": st.none() | st.text(st.characters(exclude_categories=["Cs"])),
                "d": st.none() | st.dates(),
                "n": st.none()
                | st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9), max_value=10**9),
                "b": st.none() | st.booleans(),
            }
        )
    )
)
@settings(max_examples=60)
def test_a_sql_step_keeps_any_row(rows: list[dict[str, Any]]) -> None:
    query = "SELECT i, t, d, n, b FROM data"
    if rows:
        again = module.SqlStep(query, {})(module.as_rows(rows))
        assert again == rows
        assert [{k: type(v) for k, v in row.items()} for row in again] == [
            {k: type(v) for k, v in row.items()} for row in rows
        ]


def test_decimals_are_compared_as_numbers(ctx: Context) -> None:
    rows = [{"a": Decimal("9.5")}, {"a": Decimal("10")}, {"a": 11}]
    assert ctx.transform(rows, ["SELECT a FROM data WHERE a > 9.9"]) == rows[1:]


def test_a_sql_step_takes_params_and_odd_names(ctx: Context) -> None:
    ctx.params |= {"least": 2, "of_no_use": object()}
    rows = [{"a b": 1, 'q"': 1, "select": 1}, {"a b": 3, 'q"': 3, "select": 3}]
    assert ctx.transform(rows, ['SELECT "select" AS s FROM data WHERE "a b" >= :least']) == [{"s": 3}]
    wide = [{f"c{i}": i for i in range(1500)}]
    assert ctx.transform(wide, ["SELECT c1499 FROM data"]) == [{"c1499": 1499}]


def test_sql_after_a_step_that_dropped_everything_still_knows_the_columns(ctx: Context) -> None:
    assert ctx.transform([{"a": 1}], [lambda rows: [], "SELECT a, count(*) AS n FROM data GROUP BY a"]) == []
    assert ctx.transform([], "SELECT a FROM data") == []
    assert ctx.transform([], ["SELECT count(*) AS n FROM data"]) == [{"n": 0}]


BAD_STEPS: dict[str, tuple[Any, type[Exception], str]] = {
    "a wrong column": ("SELECT amout FROM data", module.SourceError, "no such column: amout"),
    "no query": ("DELETE FROM data", module.BadRequest, "must be a query"),
    "half a query": ("SELECT FROM", module.SourceError, "syntax error|incomplete input"),
    "two statements": ("SELECT 1; SELECT 2", module.SourceError, "one statement"),
    "two columns of one name": ("SELECT 1 AS a, 2 AS a FROM data", module.SourceError, "two columns are named 'a'"),
    "a param that is not there": ("SELECT :nope FROM data", module.SourceError, "nope"),
    "None": (lambda rows: None, module.BadRequest, "returned None, not rows"),
    "a number": (lambda rows: 5, module.BadRequest, "rows are wanted, not 5"),
    "numbers": (lambda rows: [1, 2], module.BadRequest, "row 1 is no dict: 1"),
    "rows spoilt in place": (lambda rows: rows.append(7) or rows, module.BadRequest, "row 2 is no dict: 7"),
    "two names but for capitals": (None, module.SourceError, "two columns are named 'a'"),
    "no step": (42, module.BadRequest, "42 is no step"),
    "a row that is none": (module.per_row(lambda row: "x"), module.BadRequest, "@per_row function of row 1 made 'x'"),
}


@pytest.mark.parametrize("case", BAD_STEPS)
def test_a_step_that_cannot_be_is_told(case: str, ctx: Context) -> None:
    step, kind, message = BAD_STEPS[case]
    rows = [{"amount": 1}] if step is not None else [{"a": 1, "A": 2}]
    with pytest.raises(kind, match=message) as caught:
        ctx.transform(rows, [step or "SELECT 1"])
    assert caught.value.hint


def test_a_wrong_column_is_told_with_those_that_are_there(ctx: Context) -> None:
    with pytest.raises(module.SourceError) as caught:
        ctx.transform([{"amount": 1, "day": 2}], ["SELECT amout FROM data"])
    assert caught.value.hint == "did you mean 'amount'? data has the columns amount, day"


@pytest.mark.parametrize(("value", "message"), [(2**63, "64 bits"), (Decimal("0.1234567890123456789"), "15 digits")])
def test_numbers_that_sqlite_would_change_are_refused(value: Any, message: str, ctx: Context) -> None:
    with pytest.raises(module.SourceError, match=message):
        ctx.transform([{"a": value}], ["SELECT a FROM data"])


def test_per_row_steps_replace_drop_and_multiply(ctx: Context) -> None:
    @module.per_row
    def change(row: dict[str, int]) -> Any:
        return [None, row, [row, row]][row["a"]]

    assert [row["a"] for row in ctx.transform([{"a": 0}, {"a": 1}, {"a": 2}], [change])] == [1, 2, 2]
    assert change({"a": 1}) == {"a": 1}


def test_rows_are_a_list_and_counts_are_numbers(ctx: Context, tmp_path: Any) -> None:
    rows = ctx.transform([{"a": 1}], [list])
    assert isinstance(rows, list)
    assert (rows == [{"a": 1}], rows + rows, rows[:1], sorted(rows, key=str)) == (
        True,
        [{"a": 1}] * 2,
        [{"a": 1}],
        [{"a": 1}],
    )
    count = ctx.load(tmp_path / "a.csv", rows)
    assert (count, count + 1, f"{count}", isinstance(count, int)) == (1, 2, "1", True)


class Frame:
    """Quacks like a data frame of pandas."""

    columns = ("a", "b")

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.columns)

    def notna(self) -> Frame:
        """Which cells are there."""
        return self

    def astype(self, kind: type) -> Frame:
        """Of objects."""
        return self

    def where(self, present: Frame, other: None) -> Frame:
        """None where there is nothing."""
        return Frame([{k: other if v != v else v for k, v in row.items()} for row in self.rows])

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        """Its rows."""
        assert orient == "records"
        return self.rows


class Polars:
    """Quacks like a data frame of polars."""

    columns = ("a",)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Its rows."""
        return [{"a": 1}]


def test_frames_and_tables_are_rows(ctx: Context) -> None:
    frame = Frame([{"a": 1, "b": float("nan")}])
    assert ctx.transform(frame, []) == [{"a": 1, "b": None}]
    assert ctx.transform(Polars(), [lambda rows: Polars()]) == [{"a": 1}]
    with sqlite3.connect(":memory:") as db:
        db.row_factory = sqlite3.Row
        assert ctx.transform(db.execute("SELECT 1 AS a"), []) == [{"a": 1}]
    db.close()
    module.source("frames")(lambda: frame)
    try:
        assert [len(batch) for batch in ctx.extract("frames", stream=True)] == [1]
    finally:
        del module.SOURCES["frames"]


def test_frames_of_a_generator_are_batches(ctx: Context) -> None:
    pandas = pytest.importorskip("pandas")
    frames = [pandas.DataFrame({"id": [1, 2]}), pandas.DataFrame({"id": [3]})]
    assert ctx.load("sqlite:///a.db", iter(frames), "t") == 3
    assert ctx.extract("sqlite:///a.db", "t") == [{"id": 1}, {"id": 2}, {"id": 3}]
    with pytest.raises(module.BadRequest, match="row 1 is no dict"):
        ctx.load("sqlite:///a.db", frames, "t")


def test_a_step_that_drops_everything_gives_its_columns_to_nobody(ctx: Context) -> None:
    def paid(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"id": row["id"], "eur": row["raw"]} for row in rows if row["status"] == "paid"]

    raw = [{"id": 1, "raw": 5, "status": "open"}, {"id": 2, "raw": 6, "status": "paid"}]
    for target in ("sqlite:///a.db", "a.csv", "a.jsonl"):
        for rows in (raw, raw[:1]):
            ctx.load(target, ctx.transform(rows, [paid]), table := "t" if "sqlite" in target else None)
        assert [{**row} for row in ctx.extract(target, table)] in ([{"id": 2, "eur": 6}], [{"id": "2", "eur": "6"}])
    assert ctx.transform(raw[:1], [paid, "SELECT status FROM data"]) == []  # SQL knows the last columns there were


def test_durations_are_durations_after_sql(ctx: Context) -> None:
    rows = [{"took": datetime.timedelta(seconds=90)}, {"took": None}]
    assert ctx.transform(rows, ["SELECT took FROM data"]) == rows


def test_a_frame_loses_no_column(ctx: Context) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"shop": ["a", "b"], "n": [1, 2]})
    with pytest.raises(module.SourceError, match="two columns are named 'shop'"):
        ctx.load("a.csv", pandas.concat([frame, frame], axis=1))
    with pytest.raises(module.BadRequest, match="the index of the frame, 'shop', is no column") as caught:
        ctx.load("a.csv", frame.groupby("shop").sum())
    assert caught.value.hint == "frame.reset_index()"
    ctx.load("a.csv", frame.groupby("shop").sum().reset_index())
    assert ctx.extract("a.csv", types=True) == [{"shop": "a", "n": 1}, {"shop": "b", "n": 2}]


def test_times_of_pandas_are_kept_or_refused(ctx: Context) -> None:
    pandas = pytest.importorskip("pandas")
    exact, more = (pandas.Timestamp(f"2026-01-02 03:04:05.{digits}") for digits in ("123456", "123456789"))
    rows = [{"at": exact, "took": pandas.Timedelta(seconds=90)}, {"at": pandas.NaT, "took": None}]
    for target in ("a.csv", "a.jsonl", "a.parquet", "sqlite:///a.db", "duckdb:///a.duckdb"):
        pytest.importorskip("duckdb_engine" if target.startswith("duckdb") else "pyarrow")
        table = "t" if ":" in target else None
        ctx.load(target, rows, table)
        back = ctx.extract(target, table, **({"types": True} if target == "a.csv" else {}))
        assert str(back[0]["at"]).replace("T", " ") == "2026-01-02 03:04:05.123456"
        took = back[0]["took"]
        assert (took.total_seconds() if hasattr(took, "total_seconds") else took) == 90
        assert back[1] == {"at": None, "took": None}
        if target in ("a.parquet", "duckdb:///a.duckdb"):
            with pytest.raises(module.SourceError, match=r"Timestamp|nanoseconds"):
                ctx.load(target, [{"at": more, "took": None}], table)
    with pytest.raises(module.SourceError, match="more than six digits") as caught:
        ctx.transform([{"at": more}], "SELECT at FROM data")
    assert "floor('us')" in caught.value.hint


def test_arrow_tables_are_rows(ctx: Context) -> None:
    arrow = pytest.importorskip("pyarrow")
    assert ctx.transform(arrow.table({"a": [1, None]}), []) == [{"a": 1}, {"a": None}]


class Real(float):
    """Quacks like numpy's float64."""


class Several:
    """Quacks like numpy's arrays and scalars."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def item(self) -> float:
        (value,) = self.values
        return value

    def tolist(self) -> Any:
        return self.values[0] if len(self.values) == 1 else [*self.values]


@pytest.mark.parametrize("made", [1767225600000000000, [1767225600000000000]])
def test_times_of_which_numpy_makes_integers_are_refused(made: Any, ctx: Context) -> None:
    class Nanoseconds:
        """Quacks like numpy's datetime64[ns], whose tolist() says no unit."""

        class dtype:  # noqa: N801
            kind = "M"

        def tolist(self) -> Any:
            return made

    with pytest.raises(module.BadResult, match="is no time of Python's"):
        module.to_json(Nanoseconds(), "result")
    with pytest.raises(module.SourceError, match="is no time of Python's"):
        ctx.load("sqlite:///a.db", [{"at": Nanoseconds()}], "t")


def test_arrays_and_scalars_of_numpy_have_a_form(ctx: Context) -> None:
    row = {"scalar": Several(1.5), "array": Several(1, 2)}
    assert module.to_json(row, "result") == {"scalar": 1.5, "array": [1, 2]}
    ctx.load("rows.jsonl", [row])
    assert ctx.extract("rows.jsonl") == [{"scalar": 1.5, "array": [1, 2]}]


def test_a_type_is_known_by_its_family(ctx: Context) -> None:
    stamp = type("Timestamp", (datetime.datetime,), {})(2026, 1, 2)
    scan = module.Scan(module.as_rows([{"a": Real(1.5), "b": stamp, "c": 1, "d": None}, {"c": 1.5}]))
    assert [module.common_kind(scan.kinds(name)) for name in "abcd"] == ["real", "datetime", "real", None]


def test_streams_pass_in_batches_and_are_read_once(ctx: Context, tmp_path: Any) -> None:
    path = tmp_path / "a.jsonl"
    ctx.load(path, [{"a": i} for i in range(25)])
    stream = ctx.extract(path, stream=True, batch_rows=10)
    doubled = ctx.transform(stream, [module.per_row(lambda row: {"a": row["a"] * 2}), lambda rows: rows[1:]])
    assert [len(batch) for batch in doubled] == [9, 9, 4]
    with pytest.raises(module.BadRequest, match="read only once"):
        list(doubled)
    with pytest.raises(module.BadRequest, match="SQL step needs all rows"):
        ctx.transform(ctx.extract(path, stream=True), ["SELECT 1"])
    with pytest.raises(module.BadRequest, match="whole number from 1"):
        ctx.extract(path, stream=True, batch_rows=0)


def test_a_stream_is_traced_as_its_steps_and_ends_when_its_reader_does(tau: Tau) -> None:
    run = tau.run_it(
        """
        from tau import per_row, source
        @source("numbers")
        def numbers():
            for i in range(100):
                if i == 15: ctx_of[0].log("half")
                yield {"a": i}
        ctx_of = []
        @per_row
        def keep_even(row):
            return row if row["a"] % 2 == 0 else None
        def it(ctx):
            ctx_of.append(ctx)
            done = ctx.load("even.csv", ctx.transform(ctx.extract("numbers", stream=True, batch_rows=10), [keep_even]))
            for batch in ctx.extract("numbers", stream=True, batch_rows=10):
                break
            return done
        """
    )
    assert run["result"] == 50
    told = [
        (step["name"], step["status"], step["rows_in"], step["rows_out"], len(step["steps"]))
        for step in run["trace"]["steps"]
    ]
    assert sorted(told) == [
        ("extract numbers", "success", None, 10, 0),
        ("extract numbers", "success", None, 100, 0),
        ("load even.csv", "success", 50, 50, 0),
        ("transform", "success", 50, 50, 1),
    ]
    assert tau("logs", "it")["lines"][0]["step"] == "extract numbers"


def test_a_step_of_a_stream_has_the_columns_that_come_out_of_it(ctx: Context) -> None:
    ctx.load("a.jsonl", [{"a": 1}] * 3)
    stream = ctx.extract("a.jsonl", stream=True, batch_rows=2)
    ctx.load("b.jsonl", ctx.transform(stream, [lambda rows: [{"b": str(row["a"])} for row in rows]]))
    columns = [record["columns"] for record in ctx.records("done")]
    assert sorted(map(str, columns)) == ["{'a': 'integer'}"] * 2 + ["{'b': 'text'}"] * 3


def test_everything_can_be_awaited_or_not(tau: Tau) -> None:
    run = tau.run_it(
        """
        async def it(ctx):
            rows = await ctx.transform([{"a": 1}], [list])
            count = await ctx.load("a.csv", rows)
            again = await ctx.extract("a.csv")
            assert await ctx.check(len(again) == 1)
            stream = await ctx.extract("a.csv", stream=True)
            batches = [batch async for batch in stream]
            return [count, again, batches, await ctx.sql("SELECT 1 AS n", connection="sqlite:///x.db")]
        """
    )
    assert run["result"] == [1, [{"a": "1"}], [[{"a": "1"}]], [{"n": 1}]]


def test_steps_side_by_side_nest_right(tau: Tau) -> None:
    run = tau.run_it(
        """
        import asyncio
        from tau import source
        @source("slow")
        async def slow(name):
            async with asyncio.timeout(5):
                await asyncio.sleep(0.01)
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
            contexts[0].log(name)
            return [{"name": name}]
        @source("pages")
        async def pages():
            for i in range(2):
                await asyncio.sleep(0)
                yield {"page": i}
        contexts = []
        async def step(rows):
            await asyncio.sleep(0.01)
            await asyncio.to_thread(contexts[0].log, "in a thread")
            return rows
        async def it(ctx):
            contexts.append(ctx)
            async with ctx.step("all"):
                a, b, c = await asyncio.gather(
                    ctx.extract("slow", name="a"), ctx.extract("slow", name="b"), ctx.extract("pages"))
                d, e = await asyncio.gather(ctx.transform(a, [step]), ctx.transform(c, [list]))
            return [a, b, c, d, e]
        """
    )
    assert run["result"] == [
        [{"name": "a"}],
        [{"name": "b"}],
        [{"page": 0}, {"page": 1}],
        [{"name": "a"}],
        [{"page": 0}, {"page": 1}],
    ]
    (everything,) = run["trace"]["steps"]
    assert [step["name"] for step in everything["steps"]] == [
        "extract slow",
        "extract slow",
        "extract pages",
        "transform",
        "transform",
    ]
    places = {line["message"]: line["step"] for line in tau("logs", "it")["lines"]}
    assert places == {"a": "all/extract slow", "b": "all/extract slow", "in a thread": "all/transform/step"}


def test_tasks_can_be_made_of_what_is_there_and_of_what_is_to_come(ctx: Context) -> None:
    async def slow(rows: list[dict[str, int]]) -> list[dict[str, int]]:
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        return rows * 2

    async def it() -> list[Any]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ctx.transform([{"a": 1}], [step])) for step in (slow, list)]
        return [task.result() for task in tasks] + [await asyncio.wait_for(ctx.check(True), 1)]

    assert asyncio.run(it()) == [[{"a": 1}] * 2, [{"a": 1}], True]


def test_a_task_that_is_cancelled_before_it_begins_ends_its_step(ctx: Context) -> None:
    class Double:
        """Work that is awaited, and does not mind if it is not."""

        def __init__(self, rows: list[dict[str, int]]) -> None:
            self.rows = rows

        def __await__(self) -> Iterator[Any]:
            yield from asyncio.sleep(0).__await__()
            return self.rows * 2

    async def it() -> None:
        task = asyncio.ensure_future(asyncio.wait_for(ctx.transform([{"a": 1}], [Double]), 1))
        made = asyncio.get_running_loop().create_task(ctx.transform([{"a": 1}], [Double]))
        made.cancel()
        with pytest.raises(asyncio.CancelledError):
            await made
        assert await task == [{"a": 1}] * 2
        module.Unfinished.check()

    asyncio.run(it())
    assert sorted(done["status"] for done in ctx.records("done")) == ["failed"] * 2 + ["success"] * 2


def test_an_async_step_that_is_cancelled_ends_its_step(ctx: Context) -> None:
    async def endless(rows: list[dict[str, int]]) -> None:
        await asyncio.Event().wait()

    async def it() -> None:
        async with asyncio.timeout(0.01):
            await ctx.transform([{"a": 1}], [endless])

    with pytest.raises(TimeoutError):
        asyncio.run(it())
    assert [done["status"] for done in ctx.records("done")] == ["failed", "failed"]


def test_batches_may_come_from_a_generator(ctx: Context) -> None:
    ctx.load("a.jsonl", [{"a": i} for i in range(25)])
    batches = ([row for row in batch if row["a"] % 2] for batch in ctx.extract("a.jsonl", stream=True, batch_rows=10))
    assert ctx.load("b.jsonl", batches) == 12
    assert ctx.load("c.jsonl", ({"a": i} for i in range(3))) == 3
    assert ctx.load("d.jsonl", iter(())) == 0


CELLS: dict[str, Any] = {"an object": object(), "half a character": "\ud800"}


@pytest.mark.parametrize("case", CELLS)
@pytest.mark.parametrize("target", ["a.csv", "a.json", "a.jsonl", "sqlite:///a.db", "a step"])
def test_cells_that_nothing_can_hold_are_told(case: str, target: str, ctx: Context) -> None:
    rows = [{"a": CELLS[case]}]
    step = "SELECT a FROM data"
    with pytest.raises(module.SourceError) as caught:
        ctx.transform(rows, step) if target == "a step" else ctx.load(target, rows, "t" if "db" in target else None)
    assert caught.value.hint


def test_what_was_never_awaited_fails_the_run(tau: Tau) -> None:
    run = tau.run_it(
        """
        async def double(rows):
            return rows + rows
        async def it(ctx):
            ctx.transform([{"a": 1}], [double])
        """,
        exit=1,
    )
    assert run["error"]["message"] == "never awaited: transform/double"
    assert "await" in run["error"]["hint"]


def test_using_what_was_not_awaited_says_so(tau: Tau) -> None:
    run = tau.run_it(
        """
        async def double(rows):
            return rows + rows
        async def it(ctx):
            return len(ctx.transform([{"a": 1}], [double]))
        """,
        exit=1,
    )
    assert "write `await ctx" in run["error"]["message"]


def test_async_steps_work_in_a_sync_pipeline(tau: Tau) -> None:
    run = tau.run_it(
        """
        from tau import per_row, target
        async def double(rows):
            return rows + rows
        @per_row
        async def more(row):
            return {"a": row["a"] + 1}
        @target("sink")
        async def sink(rows):
            return 7
        def it(ctx):
            rows = ctx.transform([{"a": 1}], [double, more])
            return [rows, ctx.load("sink", rows), bool(ctx.check(lambda: nothing()))]
        async def nothing():
            return True
        """
    )
    assert run["result"] == [[{"a": 2}, {"a": 2}], 7, True]


def test_steps_keep_columns_and_counts(tau: Tau) -> None:
    run = tau.run_it(
        """
        def rename(rows):
            return [{"b": row["a"]} for row in rows]
        def it(ctx):
            ctx.transform([{"a": 1}, {"a": None}, {"a": 2.5}], [rename, "SELECT * FROM data WHERE b > 1"])
        """
    )
    (whole,) = tau("inspect", run["run_id"], "--full")["trace"]["steps"]
    assert [(s["name"], s["rows_in"], s["rows_out"], s["columns"]) for s in whole["steps"]] == [
        ("rename", 3, 3, {"b": "integer|real|null"}),
        ("SELECT * FROM data WHERE b > 1", 3, 1, {"b": "real"}),
    ]
