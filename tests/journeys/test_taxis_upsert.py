"""A real file into real databases, twice: extract, SQL, check, upsert; the second run changes nothing."""

from __future__ import annotations

import csv
import sqlite3
from collections import defaultdict
from typing import Any

import pytest
from conftest import TAXIS, Context, Tau

PIPELINE = '''
QUERY = """
    SELECT date(pickup) AS day, pickup_borough AS borough, count(*) AS trips, sum(cast(round(total * 100) AS INTEGER)) AS cents
    FROM data WHERE pickup_borough IS NOT NULL AND distance > 0 GROUP BY 1, 2
"""
async def it(ctx, path: str, target: str):
    rows = ctx.extract(path, types=True)
    revenue = ctx.transform(rows, steps=[QUERY])
    ctx.check(len(rows) == 6433, len(revenue) > 0, lambda: all(row["cents"] > 0 for row in revenue))
    trips = [row | {"trip": number} for number, row in enumerate(rows)]
    return {
        "revenue": ctx.load(target, revenue, "revenue", mode="upsert", key=["day", "borough"]),
        "trips": ctx.load(target, trips, "trips", mode="upsert", key="trip"),
    }
'''


def expected() -> tuple[dict[tuple[str, str], tuple[int, int]], list[dict[str, str]]]:
    """(day, borough) → (trips, cents), by csv alone, and the rows."""
    with TAXIS.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found: defaultdict[tuple[str, str], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for row in rows:
        if row["pickup_borough"] and float(row["distance"]) > 0:
            key = row["pickup"][:10], row["pickup_borough"]
            found[key] = found[key][0] + 1, found[key][1] + round(float(row["total"]) * 100)
    return dict(found), rows


def run_twice(tau: Tau, target: str, snapshot: Any) -> list[Any]:
    """What *snapshot* sees after each of two runs."""
    tau.deploy_it(PIPELINE)
    seen = []
    for _ in range(2):
        run = tau("run", "it", "-p", f"path={TAXIS}", "-p", f"target={target}")
        assert run["result"] == {"revenue": len(expected()[0]), "trips": 6433}
        seen.append(snapshot())
    steps = [(step["name"], step["rows_in"], step["rows_out"]) for step in run["trace"]["steps"]]
    assert steps[0] == ("extract taxis.csv", None, 6433)
    assert [check["passed"] for check in run["trace"]["checks"]] == [True] * 3
    return seen


def check_numbers(revenue: list[tuple[Any, ...]], trips: list[tuple[Any, ...]]) -> None:
    """The tables hold the numbers of csv alone."""
    numbers, rows = expected()
    assert {(str(day), borough): (count, cents) for day, borough, count, cents in revenue} == numbers
    plain = [(float(row["fare"]), int(row["passengers"]), row["pickup_zone"] or None) for row in rows]
    assert [(float(fare), passengers, zone) for fare, passengers, zone in trips] == plain


TRIPS = "SELECT fare, passengers, pickup_zone FROM trips ORDER BY trip"


@pytest.mark.skipif(not TAXIS.exists(), reason="the taxi data is not here")
def test_taxis_into_sqlite_twice(tau: Tau) -> None:
    path = tau.home / "data" / "it" / "taxis.db"

    def snapshot() -> Any:
        db = sqlite3.connect(path)
        try:
            return (db.execute("SELECT * FROM revenue").fetchall(), db.execute(TRIPS).fetchall(), [*db.iterdump()])
        finally:
            db.close()

    first, second = run_twice(tau, "sqlite:///taxis.db", snapshot)
    assert first == second
    check_numbers(*second[:2])
    path.unlink()


@pytest.mark.skipif(not TAXIS.exists(), reason="the taxi data is not here")
def test_taxis_into_postgresql_twice(tau: Tau, postgres: str, ctx: Context) -> None:
    def snapshot() -> Any:
        tables = [
            [tuple(row.values()) for row in ctx.sql(query, connection=postgres)]
            for query in ("SELECT * FROM revenue ORDER BY 1, 2", TRIPS)
        ]
        return [*tables, ctx.sql("SELECT count(*) AS n FROM trips", connection=postgres)]

    first, second = run_twice(tau, postgres, snapshot)
    assert first == second
    check_numbers(*second[:2])
    kinds = ctx.sql(
        "SELECT data_type AS kind FROM information_schema.columns WHERE table_name = 'trips' AND column_name = 'pickup'",
        connection=postgres,
    )
    assert kinds == [{"kind": "timestamp without time zone"}]
    for table in ("trips", "revenue"):
        ctx.sql(f"DROP TABLE {table}", connection=postgres)
