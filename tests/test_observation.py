"""What a run sees of its data: places, columns, samples, drift, and who reads and writes what."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from conftest import Context, Tau, make_home, running
from strange import GOOD, line_of
from test_records import journal_of
from test_terminal import on_terminal

import tau as module


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("in/orders.csv", "/data/in/orders.csv"),
        ("./in/../*.csv", "/data/*.csv"),
        ("/abs/x.csv", "/abs/x.csv"),
        ("file:///a%20b.csv", "/a b.csv"),
        ("file://localhost/x.csv", "/x.csv"),
        ("sqlite:///shop.db", "sqlite:////data/shop.db"),
        ("sqlite:////abs/shop.db?timeout=5", "sqlite:////abs/shop.db"),
        ("sqlite+pysqlite:///shop.db", "sqlite:////data/shop.db"),
        ("duckdb:///:memory:", "duckdb:///:memory:"),
        ("duckdb:///w.duckdb?motherduck_token=t0ken", "duckdb:////data/w.duckdb"),
        ("postgres://tau:pa55@DB/shop", "postgresql://db:5432/shop"),
        ("postgresql+psycopg://tau:p/5?5@db:5433/shop?sslpassword=pa55", "postgresql://db:5433/shop"),
        ("postgresql:///shop?host=/tmp/pg&port=5433", "postgresql://%2ftmp%2fpg:5433/shop"),
        ("postgresql://[::1]/shop", "postgresql://[::1]:5432/shop"),
        ("mysql://db/shop", "mysql://db:3306/shop"),
        ("snowflake://tau:pa55@account/shop/public?warehouse=w", "snowflake://account/shop/public"),
        ("https://tau:pa55@Example.com:443/a/@me?token=pa55#x", "https://example.com/a/@me"),
        ("http://example.com:8080", "http://example.com:8080/"),
        ("s3://key:pa55@bucket/in/*.parquet", "s3://bucket/in/*.parquet"),
        ("abfs://sales@account.dfs.core.windows.net/a.csv", "abfs://sales@account.dfs.core.windows.net/a.csv"),
        ("github://owner:shop@main/a.csv", "github://owner:shop@main/a.csv"),
    ],
)
def test_a_place_has_one_name_without_secrets(written: str, name: str) -> None:
    assert module.place_name(written, "/data") == name
    assert module.place_name(name, "/elsewhere") == name


@pytest.mark.parametrize(
    ("query", "tables"),
    [
        ("SELECT * FROM orders o JOIN shop . customers USING (id)", "reads orders, reads shop.customers"),
        (
            "SELECT a FROM s x, \"the list\" AS l, [x y] WHERE b = 'FROM z' -- FROM y",
            "reads s, reads the list, reads x y",
        ),
        ("INSERT INTO t (a) SELECT a FROM s ON CONFLICT (a) DO UPDATE SET b = 1", "writes t, reads s"),
        ("DELETE FROM t WHERE a IN (SELECT a FROM s) /* FROM w */", "writes t, reads s"),
        ("UPDATE ONLY t SET a = (SELECT max(a) FROM s)", "writes t, reads s"),
        ("MERGE INTO t USING (SELECT * FROM s) ON t.a = s.a", "writes t, reads s"),
        ("CREATE TEMP TABLE IF NOT EXISTS t AS SELECT * FROM s", "writes t, reads s"),
        ("WITH x AS (SELECT * FROM s) SELECT * FROM x JOIN r ON true FOR UPDATE", "reads s, reads r"),
        ("TRUNCATE t", "writes t"),
        ("TRUNCATE TABLE ONLY t, s", "writes t, writes s"),
        ("SELECT extract(year FROM day) FROM s WHERE a IS DISTINCT FROM b", "reads s"),
        ("SELECT * FROM generate_series(1, 9)", ""),
    ],
)
def test_sql_tells_which_tables_it_reads_and_writes(query: str, tables: str) -> None:
    assert ", ".join(map(" ".join, module.tables_in(query))) == tables


SHAPE = {"columns": {"a": "integer", "b": "text|null"}, "nulls": {"b": 0.1}, "rows": [100] * 5}


@pytest.mark.parametrize(
    ("before", "now", "changes"),
    [
        ({}, {"rows": 50}, []),
        ({}, {"rows": 49}, [(None, "rows", [100, 100], 49)]),
        ({}, {"rows": 201}, [(None, "rows", [100, 100], 201)]),
        ({"rows": [100] * 4}, {"rows": 1}, []),
        ({"rows": None}, {"rows": None}, []),
        (
            {},
            {"columns": {"a": "integer", "c": "text"}},
            [("b", "removed", "text|null", None), ("c", "added", None, "text")],
        ),
        ({}, {"columns": {}, "rows": 100}, []),
        ({"columns": {}}, {}, []),
        ({}, {"columns": {"a": "real|integer", "b": "null"}}, [("a", "retyped", "integer", "real|integer")]),
        ({"columns": {"a": "null", "b": ""}}, {}, []),
        ({}, {"nulls": {"a": 0.19, "b": 0.3}}, [("b", "nulls", 0.1, 0.3)]),
    ],
)
def test_two_observations_differ(before: Any, now: Any, changes: list[Any]) -> None:
    found = module.differences(SHAPE | before, SHAPE | {"rows": 100} | now)
    assert [tuple(change.values()) for change in found] == changes
    assert all(module.difference_text([change]) for change in found)


def done(ctx: Context) -> list[Any]:
    return [module.read_record(module.encode(record), module.Mask(), "run") for record in ctx.records("done")]


def test_a_step_keeps_columns_missing_values_and_places(ctx: Context) -> None:
    ctx.load("in.jsonl", [{"a": 1, "b": None}, {"a": 2.5, "b": "x"}, {"a": 3, "b": None}, {"a": 4}])
    ctx.load("sqlite:///shop.db", ctx.extract("in.jsonl", stream=True, batch_rows=3), "main.sales")
    ctx.sql("INSERT INTO sales SELECT * FROM sales", connection="sqlite:///shop.db")
    folder, shop = ctx.data_dir, f"sqlite:///{ctx.data_dir}/shop.db"
    loaded, read, written, ran = done(ctx)
    assert loaded["columns"] == {"a": "integer|real", "b": "text|null"}
    assert [step["nulls"] for step in (loaded, read, written)] == [{"b": 0.75}] * 3
    assert [[tuple(place.values()) for place in step["places"]] for step in (loaded, read, written, ran)] == [
        [("writes", f"{folder}/in.jsonl", ""), ("reads", "", "")],
        [("reads", f"{folder}/in.jsonl", "")],
        [("writes", shop, "sales")],
        [("writes", shop, "sales"), ("reads", shop, "sales")],
    ]


def test_a_share_is_that_of_all_rows(ctx: Context) -> None:
    """Not of the first ones, and whatever the sizes of batches are."""
    rows = [{"a": None if number >= 75_000 else 1} for number in range(100_000)]
    ctx.transform(rows, [list])
    ctx.load("all.jsonl", iter([module.Rows(rows[:99_000]), module.Rows(rows[99_000:])]))
    shares = [step["nulls"]["a"] for step in done(ctx)]
    assert shares == pytest.approx([0.25] * 3, abs=0.002)


#: Reads the rows that it is given from a file, and loads them as a stream or at once.
FLOW = """
import json
from tau import pipeline

@pipeline(OPTIONS)
def NAME(ctx, rows: list, stream: bool = False, fails: bool = False):
    ctx.load("sqlite:///shop.db", [{"a": 0}], "earlier")
    with open("in.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\\n" for row in rows)
    read = ctx.extract("in.jsonl", stream=stream, **({"batch_rows": 2} if stream else {}))
    ctx.load("sqlite:///shop.db", ctx.transform(read, [list]), "sales")
    assert not fails
"""
ROWS = [{"id": number, "amount": number} for number in range(10)]
RENAMED = [{"id": row["id"], "amuont": str(row["amount"])} for row in ROWS]


def deploy(tau: Tau, name: str, options: str = "") -> None:
    tau.deploy(FLOW.replace("NAME", name).replace("OPTIONS", options), f"{name}.py", "--take-over")


def flow(tau: Tau, name: str, rows: Any = ROWS, **params: Any) -> Any:
    return tau.call("run", name=name, params={"rows": rows, **params})


def loaded(tau: Tau, name: str, table: str = "sales") -> int:
    with contextlib.closing(sqlite3.connect(tau.home / "data" / name / "shop.db")) as db:
        return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_a_renamed_column_is_a_drift(tau: Tau) -> None:
    deploy(tau, "drifts")
    assert flow(tau, "drifts")["trace"]["drift"] == []
    run = flow(tau, "drifts", RENAMED)
    (drift,) = run["trace"]["drift"]  # the first step that sees it tells it
    assert (run["status"], drift["step"]) == ("success", "extract in.jsonl")
    assert [(change["column"], change["what"]) for change in drift["changes"]] == [
        ("amount", "removed"),
        ("amuont", "added"),
    ]
    assert events_of(tau, run, "run.drifted") == [
        {"attempt": 1, "step": drift["step"], "message": "amount removed: integer; amuont added: text"}
    ]
    assert flow(tau, "drifts", RENAMED)["trace"]["drift"] == []  # this is how it is now
    lines = tau.command("run", "drifts", "--follow", "--params", json.dumps({"rows": ROWS})).lines
    assert [event["step"] for event in lines if event.get("type") == "drift"] == [drift["step"]]
    deploy(tau, "drifts", "drift='ignore'")
    assert flow(tau, "drifts")["trace"]["drift"] == []


def events_of(tau: Tau, run: Any, kind: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(tau.home / "tau.db")) as db:
        rows = db.execute("SELECT data FROM events WHERE run_id = ? AND type = ?", (run["run_id"], kind))
        return [json.loads(data) for (data,) in rows]


def test_a_day_of_whole_amounts_is_no_drift(tau: Tau) -> None:
    deploy(tau, "whole", "drift='fail'")
    fractions = [row | {"amount": row["amount"] + 0.5} for row in ROWS]
    assert [flow(tau, "whole", rows)["status"] for rows in (fractions, ROWS, fractions)] == ["success"] * 3
    error = flow(tau, "whole", [row | {"amount": "many"} for row in ROWS])["error"]
    assert "amount retyped: " in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_drift_that_fails_loads_nothing_and_leaves_earlier_loads(tau: Tau, stream: bool) -> None:
    name = f"strict_{stream}".lower()
    deploy(tau, name, "drift='fail'")
    for _ in range(5):
        assert flow(tau, name, stream=stream)["status"] == "success"
    for rows, what in ((RENAMED, "amuont added"), (ROWS[:4], "number of rows: [10, 10] → 4"), (ROWS * 3, "→ 30")):
        run = flow(tau, name, rows, stream=stream)
        error = run["error"]
        assert (run["status"], error["kind"], error["type"]) == ("failed", "drift", "DriftFound")
        assert (error["step"].endswith("extract in.jsonl"), what in error["message"]) == (True, True), error
        assert [drift["step"] for drift in run["trace"]["drift"]] == ["extract in.jsonl"]
    assert (loaded(tau, name), loaded(tau, name, "earlier")) == (50, 8)
    assert error["facts"]["changes"] == run["trace"]["drift"][0]["changes"]
    assert "until a run has succeeded" in error["hint"]


def test_data_from_elsewhere_that_drifts_is_not_written(tau: Tau) -> None:
    """Not even the first batch, where a target has no transaction."""
    source = """
    from tau import pipeline, target

    @target("log")
    def log(rows):
        open("written", "a").write(f"{len(rows)} ")

    @pipeline(drift="fail")
    def own(ctx, column: str, count: int):
        ctx.load("log", [{column: 1}] * count)
        ctx.load("sqlite:///shop.db", iter([[{column: 1}], [{column: 1}]]), "sales")
    """
    tau.deploy(source, "own.py")
    for _ in range(5):
        assert tau.call("run", name="own", params={"column": "a", "count": 2})["status"] == "success"
    for column, count in (("b", 2), ("a", 5)):
        assert tau.call("run", name="own", params={"column": column, "count": count})["error"]["kind"] == "drift"
    assert (tau.home / "data" / "own" / "written").read_text() == "2 " * 5


def test_a_step_that_occurs_several_times_only_tells_new_columns_and_kinds() -> None:
    steps = [
        {"path": "s", "columns": {"a": "integer"}, "nulls": {}, "rows": 9},
        {"path": "s", "columns": {"b": "text", "a": "real|null"}, "nulls": {}, "rows": 1},
    ]
    made = module.baseline({}, steps)
    assert made == {"s": {"columns": {"a": "integer|real|null", "b": "text"}, "nulls": {}, "rows": [9], "times": 2}}
    empty = [steps[0] | {"columns": {}, "rows": 0}]
    assert module.baseline(made, empty)["s"] == made["s"] | {"rows": [9, 0], "times": 1}
    many = [steps[0] | {"path": f"{number} {'x' * 1000}"} for number in range(2_000)]
    assert 66_000 < len(module.encode_json(module.baseline({}, many))) < module.BASELINE_BYTES_MAX + 5_000


def samples(tau: Tau, run: Any) -> list[tuple[str, Any]]:
    with contextlib.closing(sqlite3.connect(tau.home / "tau.db")) as db:
        question = "SELECT step, data FROM observations WHERE run_id = ? AND kind = 'sample' ORDER BY n"
        return [(step, json.loads(data)) for step, data in db.execute(question, (run["run_id"],))]


def test_a_run_that_fails_shows_some_of_its_rows(tau: Tau) -> None:
    deploy(tau, "shows")
    rows = [{"id": number, "note": "x" * 50, "password": "hunter2"} for number in range(5)]
    run = flow(tau, "shows", rows, fails=True)
    found = samples(tau, run)
    assert [(step, data["way"]) for step, data in found] == [
        *(("load earlier", "in"), ("extract in.jsonl", "out")),
        *(("transform", "in"), ("transform", "out"), ("transform/list", "in"), ("transform/list", "out")),
        ("load sales", "in"),
    ]
    assert found[1][1]["rows"] == [row | {"password": "***"} for row in rows[:3]]
    assert "sample" not in {event["type"] for event in tau.command("wait", run["run_id"], "--follow").lines[:-1]}


@pytest.mark.parametrize("options", ["", "samples=False", "retries=1"])
def test_nothing_else_leaves_rows_anywhere(options: str, fresh: Tau) -> None:
    """A healthy run has no sample, nor one that succeeds in the end, nor one whose pipeline wants none."""
    rows = fresh.work / "rows.jsonl"
    rows.write_text("".join(f'{{"note": "canary{number}"}}\n' for number in range(5)))
    source = f"""
    from tau import pipeline
    @pipeline({options})
    def quiet(ctx):
        ctx.load("sqlite:///{fresh.work}/out.db", ctx.transform(ctx.extract("{rows}"), [list]), "t")
        if {bool(options)} and ctx.attempt == 1:
            raise ValueError
    """
    fresh.deploy(source)
    run = fresh.call("run", name="quiet")
    assert (run["status"], samples(fresh, run)) == ("failed" if "samples" in options else "success", [])
    found = [path for path in fresh.home.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]
    assert found == [] or options == "retries=1"  # what was deleted may lie in a free page


def test_samples_are_small_and_without_secrets(ctx: Context) -> None:
    ctx._attempt.sample_rows = 10
    ctx._attempt.hide("s3cret-value")
    wide = {f"column {number}": "wörd " * 99 for number in range(60)}
    hostile = type("Hostile", (), {"__repr__": lambda self: 1 / 0})()
    rows = [
        wide | {"key": f"{'x' * 155}s3cret-value", "bytes": b"x", "real": math.nan, "n": 1 << 80} for _ in range(10)
    ]
    ctx.load("wide.jsonl", [])
    for some in (
        rows,
        [{"day": datetime.date(2026, 1, 1), "h": hostile, "l": [1, {"token": "t0ken"}], "s3cret-value": 1}],
    ):
        step = ctx.step("it")
        with step:
            step.take_sample(some, "in")
    ctx._attempt.show_samples()
    records = [
        module.read_record(module.encode(record), module.Mask(), "run")["data"] for record in ctx.records("sample")
    ]
    assert all(len(module.encode_json(record["rows"]).encode()) <= module.SAMPLE_BYTES for record in records)
    (last,) = records[-1]["rows"]
    assert last == {
        "day": "datetime.date(2026, 1, 1)",
        "h": "<Hostile: cannot be printed: ZeroDivisionError>",
        "l": "[1, {'token': '***'}]",
        "***": 1,
    }
    assert "s3cret" not in str(records)
    assert len(module.sample_of([{"a": 1, "b": "x" * 400}] * 3, 500)[0]["b"]) == 60


def uses(rows: Any) -> dict[tuple[str, str], list[list[str]]]:
    """Place and resource → who writes and who reads."""
    return {
        (row["place"], row["resource"]): [[use["pipeline"] for use in row[how]] for how in ("writes", "reads")]
        for row in rows
    }


PLACES = {
    "sqlite": ("sqlite:///{work}/shop.db", "sales"),
    "files": ("{work}/sales.csv", ""),
    "folder": ("{work}/out", "2026.csv"),
    "duckdb": ("duckdb:///{work}/shop.duckdb", "sales"),
    "postgres": ("{postgres}", "sales"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_lineage_shows_what_is_between_two_pipelines(tau: Tau, kind: str, request: pytest.FixtureRequest) -> None:
    url, resource = PLACES[kind]
    url = url.format(work=tau.work, postgres=request.getfixturevalue("postgres") if kind == "postgres" else "")
    read = {"folder": f'"{url}/*.csv"', "files": f'"{url}"'}.get(kind, f'"{url}", "SELECT * FROM {resource}"')
    source = f"""
    from tau import pipeline
    @pipeline
    def a_{kind}(ctx):
        ctx.load({url!r}, [{{"id": 1}}], {resource or None!r}, mode="replace")
    @pipeline
    def b_{kind}(ctx):
        return len(ctx.extract({read}))
    """
    tau.deploy(source, f"lineage_{kind}.py")
    runs = {name: tau.call("run", name=f"{name}_{kind}") for name in "ab"}
    assert runs["b"]["result"] == 1, runs["b"]["error"]
    place = module.place_name(url, "/")
    answer = tau.call("lineage", name=f"b_{kind}")
    writers = [use for row in answer["lineage"] for use in row["writes"]]
    assert [(use["pipeline"], use["version"], use["run_id"]) for use in writers] == [
        (f"a_{kind}", 1, runs["a"]["run_id"])
    ]
    assert f"a_{kind}" in answer["unknown"]
    assert tau.call("lineage", name=f"b_{kind}", resource="nothing")["lineage"] == []
    asked = uses(tau("lineage", url, *[resource] * bool(resource))["lineage"])
    if kind == "folder":  # a pattern, and a file in it
        assert uses(tau("lineage", url)["lineage"]) == {
            (f"{place}/*.csv", ""): [[], ["b_folder"]],
            (f"{place}/2026.csv", ""): [["a_folder"], []],
        }
    else:
        assert asked == {(place, resource): [[f"a_{kind}"], [f"b_{kind}"]]}
    show = tau.call("show", name=f"a_{kind}")["lineage"]
    assert (show["reads"], [row["run_id"] for row in show["writes"]]) == ("unknown", [runs["a"]["run_id"]])
    assert "writes" in on_terminal(tau, "lineage", f"b_{kind}")[1]
    assert "reads" in on_terminal(tau, "show", f"b_{kind}")[1]


def test_rows_that_a_pipeline_got_by_itself_are_unknown_not_nothing(ctx: Context) -> None:
    class Frame:
        def to_dicts(self) -> list[Any]:
            return [{"a": 1}]

    ctx.load("a.jsonl", [{"a": 1}])  # nothing was read
    ctx.load("b.jsonl", ctx.extract("a.jsonl"))
    ctx.load("c.jsonl", Frame())  # it has its own ways
    ctx.load("d.jsonl", ctx.extract("a.jsonl", stream=True))
    unknown = [any(not place["place"] for place in step["places"]) for step in done(ctx)]
    assert unknown == [True, False, False, True, False, False]


def test_lineage_keeps_what_a_failed_run_has_read_but_not_what_it_has_not_written(tau: Tau) -> None:
    source = """
    from tau import pipeline
    @pipeline
    def user(ctx, count: int = 0):
        ctx.load("in.csv", [{"a": 1}])
        for number in range(count):
            ctx.load(f"{number}.csv", [{"a": 1}])
        if not count:
            ctx.load("https://example.com/x", ctx.extract("in.csv"))
    """
    tau.deploy(source, "user.py")
    assert tau.call("run", name="user")["status"] == "failed"
    show, place = tau.call("show", name="user")["lineage"], f"{tau.home}/data/user/in.csv"
    assert [[row["place"] for row in show[how]] for how in ("reads", "writes")] == [[place], [place]]
    tau.call("run", name="user", params={"count": 150})
    assert len(tau.call("show", name="user")["lineage"]["writes"]) == 151
    answer = tau.call("lineage", name="user", limit=5)
    assert (len(answer["lineage"]), answer["truncated"]["get"][:25]) == (5, "tau lineage user --limit ")
    assert tau("lineage", "in.csv", exit=3)["hint"].startswith("write the whole path")


def test_a_key_sees_the_lineage_of_its_own_pipelines() -> None:
    with running(make_home(transport="tcp")) as net:
        source = "from tau import pipeline\n" + "".join(
            f"@pipeline\ndef {name}(ctx):\n    ctx.load('/{net.work}/shared.csv', [{{'a': 1}}])\n"
            for name in ("etl_a", "other")
        )
        net.deploy(source)
        for name in ("etl_a", "other"):
            assert net.call("run", name=name)["status"] == "success"
        key = net.call("key_create", name="etl", scope="read", pipelines="etl_*")["key"]
        for words in ((), ("etl_a",), (f"{net.work}/shared.csv",)):
            answer = net("lineage", *words, TAU_API_KEY=key)
            assert ("etl_a" in str(answer), "other" in str(answer)) == (True, False), words
        assert net("lineage", "other", exit=3, TAU_API_KEY=key)["code"] == "not_found"


def test_what_a_journal_says_of_data_is_bounded(tau: Tau) -> None:
    """A run writes its own records: too many, too large, about others."""
    drift, sample, step = ({"t": kind, **GOOD[kind]} for kind in ("drift", "sample", "step"))
    place = {"how": "writes", "place": "p" * 4000, "resource": ""}
    finished = {"t": "done", **GOOD["done"], "columns": {"c" * 50_000: "text"}, "places": [place] * 1000}
    lines = b"".join(map(line_of, [*[drift] * 50, *[sample] * 90, step, finished]))
    code = f"    {journal_of(tau)}.write({lines!r})\n    ctx.sql(1)\n"
    tau.deploy(f"from tau import pipeline\n@pipeline\ndef forger(ctx):\n{code}", "forger.py")
    run = tau.call("run", name="forger")
    assert run["status"] == "failed"
    assert len(tau.call("inspect", name="forger", full=True)["trace"]["drift"]) == module.DRIFTS_MAX
    assert len(samples(tau, run)) == 2 * module.SAMPLED_STEPS
    assert len(events_of(tau, run, "run.drifted")) == 1
    assert tau.call("show", name="forger")["lineage"] == {"reads": "unknown", "writes": []}


def test_what_is_deleted_with_a_pipeline(tau: Tau) -> None:
    deploy(tau, "gone")
    flow(tau, "gone")
    tau.call("undeploy", name="gone")
    assert "gone" not in str(tau.call("lineage"))
    deploy(tau, "gone")
    assert flow(tau, "gone", RENAMED)["trace"]["drift"] != []  # as its history, what it has seen stays


def test_run_local_sees_what_a_run_sees(tmp_path: Path) -> None:
    @module.pipeline(name="local", drift="fail")
    def local(ctx: module.PipelineContext) -> int:
        return ctx.load("b.csv", ctx.transform([{"a": 1}], [list]))

    trace = module.run_local(local, data_dir=str(tmp_path))["trace"]
    assert trace["drift"] == []
    assert trace["steps"][-1]["places"] == [
        {"how": "writes", "place": f"{tmp_path}/b.csv", "resource": ""},
        {"how": "reads", "place": "", "resource": ""},
    ]
