"""Databases: SQLite by itself, PostgreSQL and DuckDB through SQLAlchemy."""

from __future__ import annotations

import datetime
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import ENVIRON, PATIENCE_S, Context, Tau
from hypothesis import given, settings
from hypothesis import strategies as st
from postgres import empty_house, importable

import tau as module

DAY = datetime.date(2026, 1, 2)
WHEN = datetime.datetime(2026, 1, 2, 3, 4, 5, 678)  # noqa: DTZ001
ALL = ["sqlite", "postgresql", "duckdb"]


@pytest.fixture(params=ALL)
def house(request: pytest.FixtureRequest, ctx: Context) -> str:
    """The URL of an empty database of each kind."""
    return empty_house(request.param, request, ctx)


def rows_in(ctx: Context, house: str, table: str = "t", order: str = "id") -> list[dict[str, Any]]:
    """All rows of a table."""
    return ctx.extract(house, f"SELECT * FROM {table} ORDER BY {order}")


def test_append_replace_and_upsert(house: str, ctx: Context) -> None:
    rows = [{"id": 1, "name": "a"}, {"id": 2, "name": None}]
    assert ctx.load(house, rows, "t", mode="upsert", key="id") == 2
    assert ctx.load(house, [{"id": 3, "name": "c"}], "t") == 1
    assert ctx.load(house, [{"id": 2, "name": "B"}, {"id": 4, "name": "d"}], "t", mode="upsert", key=["id"]) == 2
    assert [row["name"] for row in rows_in(ctx, house)] == ["a", "B", "c", "d"]
    assert ctx.load(house, rows[:1], "t", mode="replace") == 1
    assert rows_in(ctx, house) == rows[:1]
    assert ctx.extract(house, "t") == rows[:1]


def test_of_two_that_replace_a_table_of_postgresql_one_waits(postgres: str, ctx: Context) -> None:
    ctx.sql("DROP TABLE IF EXISTS t", connection=postgres)
    for before in ([], [{"a": 0}]):
        if before:
            ctx.load(postgres, before, "t", mode="replace")
        begun, go_on = threading.Event(), threading.Event()

        def slow(begun: threading.Event = begun, go_on: threading.Event = go_on) -> Iterator[list[dict[str, Any]]]:
            yield [{"a": 1}]
            begun.set()
            go_on.wait(PATIENCE_S)
            yield [{"a": 1}]

        first = threading.Thread(target=lambda slow=slow: ctx.load(postgres, slow(), "t", mode="replace"))
        second = threading.Thread(target=lambda: ctx.load(postgres, [{"a": 2}], "t", mode="replace"))
        first.start()
        assert begun.wait(PATIENCE_S)
        second.start()
        second.join(0.3)
        go_on.set()
        first.join()
        second.join()
        assert ctx.extract(postgres, "t") == [{"a": 2}]


def test_a_change_of_a_table_of_postgresql_waits_a_minute_at_most(postgres: str, ctx: Context) -> None:
    ctx.load(postgres, [{"a": 1}], "waits", mode="replace")
    with module.Alchemy(postgres, ctx._around) as house:
        house.execute("ALTER TABLE waits ADD COLUMN b INT")
        assert [row["lock_timeout"] for batch in house.execute("SHOW lock_timeout") for row in batch] == ["1min"]


def test_a_session_of_duckdb_goes_on_and_who_has_the_file_open_is_told(ctx: Context) -> None:
    duckdb = pytest.importorskip("duckdb")
    pytest.importorskip("duckdb_engine")
    house = "duckdb:///a.duckdb"
    ctx.sql("CREATE TEMP TABLE t AS SELECT 1 AS a", connection=house)
    assert ctx.extract(house, "t") == [{"a": 1}]
    with duckdb.connect("b.duckdb"), pytest.raises(module.SourceError) as refused:
        ctx.extract("duckdb:///b.duckdb?access_mode=read_only", "t")
    assert "has it open" in str(refused.value.hint)


def test_params_are_an_object_and_a_list_is_no_value_of_in(ctx: Context) -> None:
    place = "sqlite:///a.db"
    ctx.load(place, [{"id": 1}, {"id": 2}], "t")
    with pytest.raises(module.BadRequest, match="params: expected object, given array"):
        ctx.sql("DELETE FROM t WHERE id = ?", (1,), place)  # type: ignore[arg-type]
    with pytest.raises(module.BadRequest) as refused:
        ctx.sql("DELETE FROM t WHERE id IN (:ids)", {"ids": [1, 2]}, place)
    assert ctx.sql(f"DELETE FROM t WHERE id {refused.value.hint}", {"ids": [1, 2]}, place) == 2


@pytest.mark.parametrize("house", ["sqlite", "duckdb"])
def test_a_statement_that_begins_otherwise_says_how_many_rows_it_changed(ctx: Context, house: str) -> None:
    place = f"{house}:///h.{house}"
    ctx.sql("CREATE TABLE t (id INTEGER)", connection=place)
    insert = "INSERT INTO t SELECT n FROM (SELECT 1 AS n UNION ALL SELECT 2)"
    assert ctx.sql(f"-- all\n{insert}", connection=place) == 2
    with_ = "WITH s AS (SELECT 1 AS n UNION ALL SELECT 2) "
    assert ctx.sql(f"{with_} INSERT INTO t SELECT n FROM s", connection=place) == 2
    assert ctx.sql(f"{with_} DELETE FROM t WHERE id IN (SELECT n FROM s)", connection=place) == 4
    assert ctx.sql(f"{with_} DELETE FROM t WHERE id IN (SELECT n FROM s)", connection=place) == 0


@pytest.mark.parametrize("house", ["sqlite", "duckdb"])
def test_a_list_is_never_the_one_value_of_in(ctx: Context, house: str) -> None:
    with pytest.raises(module.BadRequest, match=r"IN \(:ids\) is one value, and ids has 2"):
        ctx.sql("SELECT 1 WHERE 1 NOT IN (:ids)", {"ids": ["a", "b"]}, f"{house}:///h.{house}")


#: A URL → what is told of it.
ODD_FILES = {
    "duckdb:///typo.duckdb": "there is no database",
    "duckdb://shop.duckdb": "names no file",
    "sqlite:///shop.db?mode=ro": "names no file",
}


@pytest.mark.parametrize("url", ODD_FILES)
def test_an_odd_url_of_a_file_is_refused_and_nothing_made(ctx: Context, url: str) -> None:
    before = {*os.listdir()}
    with pytest.raises(module.TauError, match=ODD_FILES[url]):
        ctx.extract(url, "orders")
    assert {*os.listdir()} == before


def test_a_folder_is_made_for_duckdb_too(ctx: Context) -> None:
    ctx.load("duckdb:///new/folder/shop.duckdb", [{"a": 1}], "t")
    assert ctx.extract("duckdb:///new/folder/shop.duckdb", "t") == [{"a": 1}]
    for url in ("duckdb:///:memory:", "duckdb://"):
        assert ctx.sql("SELECT 1 AS a", connection=url) == [{"a": 1}]
    ctx.load("in.csv", [{"a": 1}])
    assert ctx.extract("duckdb:///fresh.db", "SELECT * FROM 'in.csv'") == [{"a": 1}]


#: SQL → what it reads and writes.
TABLES_OF = {
    "REFRESH MATERIALIZED VIEW CONCURRENTLY mv": [("writes", "mv")],
    "WITH RECURSIVE r(n) AS (SELECT 1 UNION SELECT n + 1 FROM r) SELECT * FROM r": [],
    "MERGE INTO t USING u ON t.a = u.a WHEN MATCHED THEN DELETE": [("writes", "t"), ("reads", "u")],
    "DELETE FROM t USING u WHERE t.a = u.a": [("writes", "t"), ("reads", "u")],
    "SELECT * FROM t JOIN u USING (a)": [("reads", "t"), ("reads", "u")],
    "CREATE INDEX i ON t USING btree (a)": [],
    "CREATE TABLE e (id, n) AS (SELECT 1, 2)": [("writes", "e")],
    "WITH a AS (SELECT 1), b(n) AS (SELECT 2) SELECT * FROM a, b, c": [("reads", "c")],
    "SELECT * FROM big USING SAMPLE 10%": [("reads", "big")],
    "ALTER TABLE o ALTER COLUMN a TYPE numeric USING a::numeric": [("writes", "o")],
}


@pytest.mark.parametrize("query", TABLES_OF)
def test_tables_of_odd_statements(query: str) -> None:
    assert module.tables_in(query) == TABLES_OF[query]


def test_a_view_that_is_kept_is_a_table_too(ctx: Context, postgres: str) -> None:
    ctx.sql("DROP MATERIALIZED VIEW IF EXISTS kept", connection=postgres)
    ctx.sql("CREATE MATERIALIZED VIEW kept AS SELECT 1 AS a", connection=postgres)
    with pytest.raises(module.SourceError) as refused:
        ctx.extract(postgres, "kapt")
    with module.find_place(postgres, None, ctx._around, {}).connect("BEGIN") as house:
        assert "kept" in house.tables()
        assert "kept" not in house.tables(views=False)
    ctx.sql("DROP MATERIALIZED VIEW kept", connection=postgres)
    with pytest.raises(module.TauError) as refused:
        ctx.sql("SELECT * FROM (VALUES ('a')) AS t(t) WHERE t NOT IN (:keep)", {"keep": ["a"]}, postgres)
    assert refused.value.hint == "= ANY(:keep); for NOT IN, <> ALL(:keep)"


def test_a_hint_is_not_chosen_by_the_user_s_own_words(ctx: Context, postgres: str) -> None:
    with pytest.raises(module.SourceError) as refused:
        ctx.sql("SELECT locked,, constraint_no FROM t", connection=postgres)
    assert "another process writes" not in refused.value.hint
    (row,) = ctx.sql("SHOW client_connection_check_interval", connection=postgres)
    assert row["client_connection_check_interval"] == "1s"


def test_a_connection_that_was_closed_meanwhile_is_opened_again(ctx: Context, postgres: str) -> None:
    query = "SELECT pg_backend_pid() AS pid"
    (row,) = ctx.sql(query, connection=postgres)
    ctx._around.engines, old = {}, ctx._around.engines
    ctx.sql("SELECT pg_terminate_backend(:pid)", row, postgres)
    for engine in ctx._around.engines.values():
        engine.dispose()
    ctx._around.engines = old
    assert ctx.sql(query, connection=postgres) != [row]


def test_two_loads_that_bring_the_same_new_column_wait_for_each_other(ctx: Context, postgres: str) -> None:
    ctx.sql("DROP TABLE IF EXISTS grows", connection=postgres)
    ctx.load(postgres, [{"a": 1}], "grows")
    place = module.find_place(postgres, "grows", ctx._around, {}, writing=True)
    begun = threading.Event()

    def second() -> None:
        begun.wait()
        ctx.load(postgres, [{"a": 3, "b": 3}], "grows")

    def rows() -> Iterator[Any]:
        yield module.Rows([{"a": 2, "b": 2}])
        begun.set()
        time.sleep(0.3)  # the other waits for what is not committed

    thread = threading.Thread(target=second)
    thread.start()
    place.write(rows(), "append", [])
    thread.join()
    assert sorted(ctx.extract(postgres, "grows"), key=lambda row: row["a"]) == [
        *({"a": n, "b": None if n == 1 else n} for n in (1, 2, 3))
    ]
    ctx.sql("DROP TABLE grows", connection=postgres)


def test_duckdb_says_how_many_rows_a_statement_changed(ctx: Context) -> None:
    house = "duckdb:///a.duckdb"
    pytest.importorskip("duckdb_engine")
    ctx.load(house, [{"id": 1}, {"id": 2}], "t")
    assert ctx.sql("UPDATE t SET id = id + 1", connection=house) == 2
    assert ctx.sql('SELECT count(*) AS "Count" FROM t', connection=house) == [{"Count": 2}]


#: Statement → what its hint says.
HINTS = {
    "SELECT 1 WHERE now() > :day::date": "CAST(:name AS date)",
    "INSERT INTO needs (id) VALUES (1)": "each new row needs a value",
}


@pytest.mark.parametrize("query", HINTS)
@pytest.mark.parametrize("kind", ["postgresql", "duckdb"])
def test_a_database_that_refuses_has_a_hint(
    query: str, kind: str, ctx: Context, request: pytest.FixtureRequest
) -> None:
    house = empty_house(kind, request, ctx)
    ctx.sql("CREATE TABLE needs (id INT, name TEXT NOT NULL)", connection=house)
    with pytest.raises(module.SourceError) as refused:
        ctx.sql(query, {"day": "2026-01-01"} if ":day" in query else {}, connection=house)
    assert HINTS[query] in str(refused.value.hint)


def test_new_columns_are_added_and_missing_cells_are_left(house: str, ctx: Context) -> None:
    ctx.load(house, [{"id": 1, "a": 1}], "t", mode="upsert", key="id")
    ctx.load(house, [{"id": 1, "b": "x"}, {"id": 2, "a": 2}, {"b": "y", "id": 3}], "t", mode="upsert", key="id")
    assert rows_in(ctx, house) == [
        {"id": 1, "a": 1, "b": "x"},
        {"id": 2, "a": 2, "b": None},
        {"id": 3, "a": None, "b": "y"},
    ]


def test_rows_with_their_columns_in_another_order_are_loaded_once(house: str, ctx: Context) -> None:
    assert ctx.load(house, [{"id": 1, "a": 1}, {"a": 2, "id": 2}], "t") == 2
    assert rows_in(ctx, house) == [{"id": 1, "a": 1}, {"id": 2, "a": 2}]


def test_a_row_without_any_cell_is_a_row(house: str, ctx: Context) -> None:
    assert ctx.load(house, [{"id": 1}, {}], "t") == 2
    assert {row["id"] for row in rows_in(ctx, house)} == {1, None}


def test_the_last_row_of_a_key_wins_whatever_columns_it_has(house: str, ctx: Context) -> None:
    rows = [{"id": 1, "a": 1, "b": 1}, {"id": 1, "a": 2}, {"id": 1, "b": 3, "a": 3}, {"id": 1, "b": 4}]
    ctx.load(house, rows, "t", mode="upsert", key="id")
    assert rows_in(ctx, house) == [{"id": 1, "a": 3, "b": 4}]


KEPT = {
    "i": 2**62, "r": 1.5, "t": "it's \"é\"\n\U0001f600", "e": "", "b": True, "d": DAY, "w": WHEN, "h": datetime.time(3, 4),
    "n": Decimal("12345.678901"), "z": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "y": b"\0\xff",
}  # fmt: skip
#: What SQLite has no type for comes back as text or number.
PLAIN = KEPT | {
    "b": 1,
    "d": "2026-01-02",
    "w": "2026-01-02 03:04:05.000678",
    "h": "03:04:00",
    "n": 12345.678901,
    "z": "2026-01-02 00:00:00+00:00",
}


def test_values_come_back_as_they_were(house: str, ctx: Context) -> None:
    expected = dict(PLAIN if house.startswith("sqlite") else KEPT)
    values = dict(KEPT)
    if house.startswith("duckdb") and not importable("pytz"):  # which it wants for times with a zone
        del values["z"], expected["z"]
    nothing = dict.fromkeys(values)
    ctx.load(house, [{"id": 1} | values, {"id": 2} | nothing], "t")
    first, second = rows_in(ctx, house)
    assert first == {"id": 1} | expected
    assert second == {"id": 2} | nothing


def test_a_length_of_time_is_its_seconds(house: str, ctx: Context) -> None:
    ctx.load(house, [{"id": 1, "took": datetime.timedelta(minutes=1, milliseconds=500)}], "t")
    assert rows_in(ctx, house) == [{"id": 1, "took": 60.5}]


def test_documents_are_kept_as_json(house: str, ctx: Context) -> None:
    ctx.load(house, [{"id": 1, "d": {"a": [1, None]}, "l": ["é"]}], "t")
    assert rows_in(ctx, house) == [{"id": 1, "d": '{"a":[1,null]}', "l": '["é"]'}]


@pytest.mark.parametrize("target", ["house", "rows.csv"])
def test_a_value_without_a_form_is_named_with_its_row(target: str, house: str, ctx: Context) -> None:
    batches = iter([[{"id": 1, "d": {"a": 1}}, {"id": 2, "d": None}], [{"id": 3, "d": {"a": float("nan")}}]])
    place = (house, batches, "t") if target == "house" else (target, batches)
    with pytest.raises(module.SourceError, match=r"row 3, column 'd': .*nan") as caught:
        ctx.load(*place)
    assert caught.value.hint == "a step can put None in its place, or make text of it"


def test_columns_of_mixed_kinds(house: str, ctx: Context) -> None:
    rows = [{"id": 1, "n": 1, "m": 1, "x": "a"}, {"id": 2, "n": 2.5, "m": Decimal("2.5"), "x": 5}]
    ctx.load(house, rows, "t")
    assert [(float(row["n"]), float(row["m"]), row["x"]) for row in rows_in(ctx, house)] == [
        (1, 1, "a"),
        (2.5, 2.5, "5"),
    ]


def test_a_database_without_on_conflict_updates_else_inserts(
    postgres: str, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ON_CONFLICT", ())
    ctx.sql("DROP TABLE IF EXISTS t", connection=postgres)
    for rows in (
        [{"id": 1, "a": 1}, {"id": 2, "a": 2}],
        [{"id": 2, "b": "x"}, {"id": 3, "a": 3}],
        [{"id": 3}, {"id": 4}],
    ):
        assert ctx.load(postgres, rows, "t", mode="upsert", key="id") == 2
    assert rows_in(ctx, postgres) == [
        {"id": 1, "a": 1, "b": None},
        {"id": 2, "a": 2, "b": "x"},
        {"id": 3, "a": 3, "b": None},
        {"id": 4, "a": None, "b": None},
    ]


ODD = [
    "with space",
    'quo"te',
    "select",
    "comma,",
    "ünï",
    "a.b",
    "100%",
    ":x",
    "semi;colon",
    "Case",
    "back\\slash",
    "%(a)s",
    "it's",
]


def test_odd_names_and_many_columns(house: str, ctx: Context) -> None:
    row = {"id": 1} | dict.fromkeys(ODD, "v") | {f"c{i}": i for i in range(120)}
    for _ in range(2):
        ctx.load(house, [row], "order items", mode="upsert", key=["id"])
    assert ctx.extract(house, "order items") == [row]
    ctx.load(house, [{"id": 2, "new :col%": 1}], "order items", mode="upsert", key="id")
    assert ctx.extract(house, "order items")[1]["new :col%"] == 1


def test_tables_of_a_schema(ctx: Context, postgres: str) -> None:
    ctx.sql("CREATE SCHEMA IF NOT EXISTS mart", connection=postgres)
    for _ in range(2):
        ctx.load(postgres, [{"id": 1}], "mart.orders", mode="replace")
    assert ctx.extract(postgres, "mart.orders") == [{"id": 1}]


def test_a_load_that_fails_leaves_the_table_as_it_was(house: str, ctx: Context) -> None:
    ctx.load(house, [{"id": 1, "a": 1}], "t", mode="upsert", key="id")

    def spoilt() -> Iterator[dict[str, Any]]:
        yield from ({"id": i, "a": i, "new": i} for i in range(2, 30))
        raise ValueError("the source broke")

    module.source("spoilt")(spoilt)
    try:
        for mode in ("append", "replace", "upsert"):
            with pytest.raises(ValueError, match="the source broke"):
                ctx.load(house, ctx.extract("spoilt", stream=True, batch_rows=10), "t", mode=mode, key="id")
            with pytest.raises(ValueError, match="the source broke"):
                ctx.load(house, ctx.extract("spoilt", stream=True, batch_rows=10), f"fresh_{mode}")
    finally:
        del module.SOURCES["spoilt"]
    assert rows_in(ctx, house) == [{"id": 1, "a": 1}]
    with pytest.raises(module.SourceError):
        ctx.extract(house, "fresh_append")


def test_statements_take_params_and_answer_with_rows_or_counts(house: str, ctx: Context) -> None:
    ctx.load(house, [{"id": i, "name": f"n{i}"} for i in range(5)], "t")
    assert ctx.sql("SELECT id FROM t WHERE name = :name", {"name": "n3"}, connection=house) == [{"id": 3}]
    assert ctx.sql("SELECT :a AS a, :b AS b", {"a": "'; DROP TABLE t", "b": 5}, connection=house)[0]["b"] in (5, "5")
    assert ctx.sql("SELECT id FROM t WHERE id > 9", connection=house) == []
    changed = ctx.sql("UPDATE t SET name = :x WHERE id < 2", {"x": "y"}, connection=house)
    assert changed == 2 or house.startswith("duckdb")
    assert [row["name"] for row in rows_in(ctx, house)] == ["y", "y", "n2", "n3", "n4"]
    assert ctx.extract(house, "SELECT id FROM t WHERE id = :n", params={"n": 4}) == [{"id": 4}]
    assert [len(batch) for batch in ctx.extract(house, "t", stream=True, batch_rows=2)] == [2, 2, 1]


BAD: dict[str, tuple[Any, str]] = {
    "no table": (lambda ctx, house: ctx.extract(house, "nope"), "nope"),
    "no column": (lambda ctx, house: ctx.sql("SELECT nope FROM t", connection=house), "nope"),
    "no SQL": (lambda ctx, house: ctx.sql("SELEC 1", connection=house), "(?i)syntax"),
    "a param too few": (lambda ctx, house: ctx.sql("SELECT :a", connection=house), "'?:?a'?"),
    "two columns of one name": (
        lambda ctx, house: ctx.sql("SELECT 1 AS a, 2 AS a", connection=house),
        "two columns are named 'a'",
    ),
    "upsert by what is not unique": (
        lambda ctx, house: ctx.load(house, [{"id": 1, "a": 2}], "t", mode="upsert", key="a"),
        "(?i)conflict|unique",
    ),
    "a key that is not there": (
        lambda ctx, house: ctx.load(house, [{"idd": 1}], "t", mode="upsert", key="id"),
        "there is no column 'id'",
    ),
    "a key that is not there, of a new table": (
        lambda ctx, house: ctx.load(house, [{"id": 1}], "u", mode="upsert", key="idd"),
        "there is no column 'idd'",
    ),
    "a key that is not there, to append": (
        lambda ctx, house: ctx.load(house, [{"id": 1}], "u", key="idd"),
        "there is no column 'idd'",
    ),
    "a row without its key": (
        lambda ctx, house: ctx.load(house, [{"id": 1}, {"a": 1}], "t", mode="upsert", key="id"),
        "a row has no 'id'",
    ),
    "a key that is None": (
        lambda ctx, house: ctx.load(house, [{"id": None}], "t", mode="upsert", key="id"),
        "a row has no 'id'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_database_refuses_is_told(case: str, house: str, ctx: Context) -> None:
    ctx.load(house, [{"id": 1, "a": 1}], "t")
    work, message = BAD[case]
    with pytest.raises(module.SourceError, match=message) as caught:
        work(ctx, house)
    assert caught.value.hint
    assert "sqlalche.me" not in str(caught.value)


IMPOSSIBLE: dict[str, tuple[Any, str]] = {
    "upsert without a key": (
        lambda ctx: ctx.load("sqlite:///a.db", [], "t", mode="upsert"),
        "mode='upsert' needs a key",
    ),
    "a key that is no name": (
        lambda ctx: ctx.load("sqlite:///a.db", [], "t", mode="upsert", key=5),
        r"key\[0\]: expected string, given integer 5",
    ),
    "no mode": (
        lambda ctx: ctx.load("sqlite:///a.db", [], "t", mode="upset"),
        'mode: expected one of "append", "replace", "upsert", given string "upset"',
    ),
    "no table": (lambda ctx: ctx.load("sqlite:///a.db", [{"a": 1}]), "which table"),
    "no table to read": (lambda ctx: ctx.extract("sqlite:///a.db"), "which table or query"),
    "no file": (lambda ctx: ctx.extract("sqlite://", "t"), "names no file"),
    "no such option": (lambda ctx: ctx.extract("sqlite:///a.db", "t", parms={}), "no option 'parms'"),
    "a connection that is none": (lambda ctx: ctx.sql("SELECT 1", connection="shpo"), "'shpo' is no path"),
    "no default": (lambda ctx: ctx.sql("SELECT 1"), "which connection"),
    "a connection that is a file": (lambda ctx: ctx.sql("SELECT 1", connection="file:///a.csv"), "is no database"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_asked_of_a_database(case: str, ctx: Context) -> None:
    work, message = IMPOSSIBLE[case]
    with pytest.raises(module.BadRequest, match=message) as caught:
        work(ctx)
    assert caught.value.hint
    assert not Path("a.db").exists()


def test_sqlite_names_the_row_that_it_refuses(ctx: Context) -> None:
    ctx.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT NOT NULL)", connection="sqlite:///house.db")
    batches = [[{"id": n, "name": "x"} for n in range(3)], [{"id": 3, "name": "x"}, {"id": 1, "name": "again"}]]
    wrong = r"row 5, \{'id': 1, 'name': 'again'\}: UNIQUE constraint failed: t.id"
    with pytest.raises(module.SourceError, match=wrong):
        ctx.load("sqlite:///house.db", iter(batches), "t")
    with pytest.raises(module.SourceError, match=r"row 1, \{'id': 9, 'name': None\}: NOT NULL constraint failed"):
        ctx.load("sqlite:///house.db", [{"id": 9, "name": None}], "t")


@pytest.mark.parametrize("target", ["a.csv", "a.json", "mine"])
def test_a_key_that_is_no_column_is_told_before_anything_is_written(
    target: str, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []
    monkeypatch.setitem(module.TARGETS, "mine", lambda rows, mode, key: taken.extend(rows))
    with pytest.raises(module.SourceError, match="there is no column 'idd'") as caught:
        ctx.load(target, [{"id": 1, "a": 2}], mode="upsert", key="idd")
    assert caught.value.hint == "did you mean 'id'? the columns are id, a"
    assert not taken
    assert not Path(target).exists()


def test_a_database_that_is_not_there_is_not_made_by_reading(ctx: Context) -> None:
    for work in (
        lambda: ctx.extract("sqlite:///typo.db", "t"),
        lambda: ctx.sql("SELECT * FROM t", connection="sqlite:///typo.db"),
        lambda: ctx.sql("INSERT INTO t VALUES (1)", connection="sqlite:///typo.db"),
    ):
        with pytest.raises(module.SourceError, match=r"no database|no such table"):
            work()
    assert ctx.sql("SELECT 1 AS n", connection="sqlite:///typo.db") == [{"n": 1}]
    assert not Path("typo.db").exists()
    ctx.sql("CREATE TABLE t (id)", connection="sqlite:///made.db")
    assert (ctx.extract("sqlite:///made.db", "t"), Path("made.db").exists()) == ([], True)


def test_what_sqlite_wants_outside_of_transactions(ctx: Context) -> None:
    house = "sqlite:///house.db"
    ctx.load(house, [{"id": 1}], "t")
    assert ctx.sql("PRAGMA journal_mode = WAL", connection=house) == [{"journal_mode": "wal"}]
    ctx.sql("VACUUM", connection=house)
    assert ctx.sql("INSERT INTO t VALUES (2) RETURNING id", connection=house) == [{"id": 2}]
    with pytest.raises(module.SourceError, match="one statement"):
        ctx.sql("SELECT 1; SELECT 2", connection=house)
    assert [row["id"] for row in ctx.extract(house, "t")] == [1, 2]


def test_integers_beyond_64_bits(house: str, ctx: Context) -> None:
    ctx.load(house, [{"id": 1, "n": 2**70}], "t")
    assert int(rows_in(ctx, house)[0]["n"]) == 2**70


def test_a_fraction_is_not_rounded_away(house: str, ctx: Context) -> None:
    ctx.load(house, [{"id": 1, "n": 1}], "t")
    ctx.load(house, [{"id": 2, "n": 2.0}], "t")
    ctx.load(house, [{"id": 3, "n": 1.5}], "t")
    assert [row["n"] for row in rows_in(ctx, house)] == [1, 2, 1.5]


def test_sqlite_compares_decimals_as_numbers_and_keeps_long_ones(ctx: Context) -> None:
    house = "sqlite:///house.db"
    ctx.load(house, [{"n": Decimal("9.5"), "m": Decimal("0.1234567890123456789")}, {"n": Decimal("10")}], "t")
    assert ctx.sql("SELECT count(*) AS n FROM t WHERE n > 9.6", connection=house) == [{"n": 1}]
    assert ctx.extract(house, "t")[0]["m"] == "0.1234567890123456789"


def test_no_rows_do_not_decide_the_types_of_a_table(ctx: Context) -> None:
    house = "sqlite:///house.db"
    ctx.load(house, module.Rows((), ["id", "n"]), "t")
    ctx.load(house, [{"id": 1, "n": None}], "u")
    for table in ("t", "u"):
        ctx.load(house, [{"id": 1, "n": 5}], table, mode="replace")
        assert ctx.sql(f"SELECT n FROM {table} WHERE n > 4", connection=house) == [{"n": 5}]
    assert ctx.load(house, [], "nothing") == 0


ROWS = st.fixed_dictionaries(
    {"id": st.integers(0, 5)},
    optional={
        "a": st.none() | st.integers(-(2**63), 2**63 - 1),
        "b": st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    },
)


@given(st.lists(st.tuples(st.sampled_from(["replace", "upsert"]), st.lists(ROWS, max_size=6)), max_size=4))
@settings(max_examples=40)
def test_upserts_do_what_a_dictionary_does(ctx: Context, loads: list[tuple[str, list[dict[str, Any]]]]) -> None:
    for target in ("sqlite:///props.db", "props.json"):
        Path("props.db").unlink(missing_ok=True)
        Path("props.json").unlink(missing_ok=True)
        resource = "t" if target.startswith("sqlite") else None
        known: dict[int, dict[str, Any]] = {}
        for mode, rows in [("upsert", [{"id": 9, "a": 1, "b": "x"}]), *loads]:
            if mode == "replace":
                known = {}
                rows = [*{row["id"]: row for row in rows}.values()]
            assert ctx.load(target, rows, resource, mode=mode, key="id") == len(rows)
            for row in rows:
                known[row["id"]] = known.get(row["id"], {}) | row
        found = {row["id"]: {k: v for k, v in row.items() if v is not None} for row in ctx.extract(target, resource)}
        assert found == {key: {k: v for k, v in row.items() if v is not None} for key, row in known.items()}


def test_two_runs_load_into_one_new_file_at_once(tau: Tau) -> None:
    tau.deploy_it(
        """
        def it(ctx, part: int, spoilt: bool = False):
            rows = ({"id": part * 1000 + i} for i in range(1000))
            if spoilt:
                rows = ({"id": None} for i in range(1))
            return ctx.load("sqlite:///together.db", rows, "t", mode="upsert", key="id")
        """
    )
    with tau.connect() as wire:
        for part in range(8):
            wire.send(
                {
                    "id": part,
                    "method": "run",
                    "params": {"name": "it", "params": {"part": part, "spoilt": part % 2 == 1}},
                }
            )
        done = [wire.receive()["result"] for _ in range(8)]
    assert sorted(run["status"] for run in done) == ["failed"] * 4 + ["success"] * 4
    path = tau.home / "data" / "it" / "together.db"
    assert path.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*), count(DISTINCT id / 1000) FROM t").fetchone() == (4000, 4)
    db.close()
    path.unlink()


def test_a_step_that_is_over_before_a_database_is_free_says_so(ctx: Context) -> None:
    ctx.load("sqlite:///house.db", [{"id": 1}], "t")
    other = sqlite3.connect("house.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(0.4, other.rollback).start()
    with pytest.raises(module.StepTimeout), ctx.step("wait", timeout=0.1):
        ctx.load("sqlite:///house.db", [{"id": 2}], "t")
    other.close()
    assert ctx.extract("sqlite:///house.db", "t") == [{"id": 1}]


def test_a_stream_from_a_database_into_itself(ctx: Context) -> None:
    house = "sqlite:///house.db"
    ctx.load(house, [{"id": i, "text": "x" * 300} for i in range(20_000)], "t")
    copied = ctx.load(house, ctx.extract(house, "t", stream=True, batch_rows=1000), "u")
    assert copied == 20_000
    assert ctx.sql("SELECT count(*) AS n FROM u", connection=house) == [{"n": 20_000}]


def test_connections_of_the_configuration(ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE_IT_IS", str(tmp_path))
    made = Context(
        tmp_path, default="sqlite:///${WHERE_IT_IS}/shop.db", lost="sqlite:///${NOT_THERE}/x.db", folder=str(tmp_path)
    )
    try:
        made.load("default", [{"id": 1}], "t")
        assert made.sql("SELECT id FROM t") == [{"id": 1}]
        assert (tmp_path / "shop.db").exists()
        with pytest.raises(module.MissingSecret, match=r"connection 'lost' needs \$\{NOT_THERE\}"):
            made.extract("lost", "t")
        (tmp_path / "a.csv").write_text("a\n1\n")
        assert made.extract("folder", "a.csv") == [{"a": "1"}]
        with pytest.raises(module.BadRequest, match="'defualt' is no path") as caught:
            made.extract("defualt", "t")
        assert caught.value.hint.startswith("did you mean 'default'?")
    finally:
        made.close()


def test_passwords_of_urls_are_not_told_and_may_have_any_letter(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PG_PASSWORD", "p@ss/w:rd#%?")
    url = postgres.replace("pw-of-postgres", "${PG_PASSWORD}")
    made = Context(tmp_path, shop=url, wrong=url.replace("/postgres", "/nowhere").replace("tau:", "nobody:"))
    try:
        assert made.sql("SELECT 1 AS n", connection="shop") == [{"n": 1}]
        with pytest.raises(module.SourceError, match="cannot connect to postgresql") as caught:
            made.sql("SELECT 1", connection="wrong")
        made.log(str(caught.value), "error", url=made._around.url_of("wrong"))
        assert "p@ss" not in made.journal.read_text()
        assert "p%40ss" not in made.journal.read_text()
    finally:
        made.close()


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path) -> None:
    code = """
        import sys
        sys.modules["sqlalchemy"] = sys.modules["fsspec"] = sys.modules["pyarrow"] = sys.modules["pyarrow.parquet"] = None
        import tau
        from conftest import Context
        from pathlib import Path
        ctx = Context(Path.cwd())
        for work in (lambda: ctx.extract("postgresql://h/d", "t"), lambda: ctx.extract("s3://b/a.csv"), lambda: ctx.load("a.parquet", [{"a": 1}])):
            try:
                work()
            except tau.MissingExtra as problem:
                print(problem, "|", problem.hint)
        try:
            ctx.extract("mysq://h/d", "t")
        except tau.BadRequest as problem:
            print(problem, "|", problem.hint)
    """
    environ = ENVIRON | {"PYTHONPATH": f"{ENVIRON['PYTHONPATH']}:{Path(__file__).parent}"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    database, remote, parquet, unknown = done.stdout.splitlines()
    assert database.startswith("postgresql needs sqlalchemy, which is not installed |")
    assert "tau-pipelines[sql]" in database
    assert "tau-pipelines[files]" in remote
    assert "tau-pipelines[parquet]" in parquet
    assert unknown == "unknown scheme 'mysq://' | did you mean 'mysql'?"


def test_a_driver_that_is_missing_is_named(ctx: Context) -> None:
    pytest.importorskip("sqlalchemy")
    with pytest.raises(module.MissingExtra, match="oracle needs") as caught:
        ctx.extract("oracle://u:pw@h/d", "t")
    assert "pip install" in caught.value.hint
    with pytest.raises(module.TauError) as caught:
        ctx.extract("snowflake://u:pw@h/d", "t")
    assert caught.value.hint.split(",")[0].endswith("-m pip install snowflake-sqlalchemy")


KEYS = """
CREATE TABLE t (b INTEGER, "A b" INTEGER, c TEXT, d TEXT, PRIMARY KEY ("A b", b), UNIQUE (c));
CREATE INDEX i ON t (d, c);
CREATE UNIQUE INDEX j ON t (d);
CREATE INDEX k ON t (lower(c));
CREATE TABLE bare (id INTEGER)
"""


def test_the_keys_of_a_table(house: str, ctx: Context) -> None:
    for statement in KEYS.split(";"):
        ctx.sql(statement, connection=house)
    with module.find_warehouse(house, ctx._around).connect("BEGIN") as there:
        known = there.keys_of("t")
        assert (known["primary"], sorted(known["unique"])) == (["A b", "b"], [["c"], ["d"]])
        assert ["d", "c"] in known["indexes"]
        assert len(known["indexes"]) == 2
        nothing = {"primary": [], "unique": [], "indexes": []}
        assert there.keys_of("bare") == there.keys_of("absent") == nothing


@pytest.mark.parametrize("house", ALL[:2], indirect=True)
def test_a_unique_index_of_some_rows_is_no_key(house: str, ctx: Context) -> None:
    ctx.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, d TEXT)", connection=house)
    ctx.sql("CREATE UNIQUE INDEX t_d ON t (d) WHERE id > 3", connection=house)
    with module.find_warehouse(house, ctx._around).connect("BEGIN") as there:
        assert there.keys_of("t") == {"primary": ["id"], "unique": [], "indexes": [["d"]]}


#: What breaks a key of the table `t`.
BROKEN_KEYS = {
    "a load": lambda ctx, house: ctx.load(house, [{"b": 1, "A b": 1, "c": "x", "d": "y"}] * 2, "t"),
    "an upsert": lambda ctx, house: ctx.load(house, [{"b": 1, "c": "x"}], "t", mode="upsert", key="b"),
    "a statement": lambda ctx, house: ctx.sql("INSERT INTO t VALUES (1, 1, 'x', 'y'), (1, 1, 'z', 'z')", None, house),
}


@pytest.mark.parametrize("way", BROKEN_KEYS)
def test_an_error_of_a_key_tells_the_keys_of_the_table(house: str, ctx: Context, way: str) -> None:
    for statement in KEYS.split(";"):
        ctx.sql(statement, connection=house)
    with pytest.raises(module.SourceError) as caught:
        BROKEN_KEYS[way](ctx, house)
    facts = caught.value.detail
    assert facts["statement"].startswith("INSERT INTO")
    if way == "a statement" and house.startswith("duckdb"):
        return  # it does not say of which table
    assert (facts["table"], facts["primary"], sorted(facts["unique"])) == ("t", ["A b", "b"], [["c"], ["d"]])
    assert caught.value.hint.startswith("`t` has the primary key (A b, b) and a unique index on (")
    assert ctx.sql("SELECT count(*) AS n FROM t", connection=house) == [{"n": 0}]
