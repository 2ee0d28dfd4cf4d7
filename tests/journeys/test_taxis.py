"""A real file, as a user would treat it: 6,433 taxi trips into revenue per borough."""

from __future__ import annotations

import csv
import sqlite3
from collections import defaultdict

import pytest
from conftest import REPOSITORY, TAXIS, Tau


@pytest.mark.skipif(not TAXIS.exists(), reason="the taxi data is not here")
def test_the_pipeline_gives_the_numbers_of_a_plain_script(tau: Tau) -> None:
    with TAXIS.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if row["pickup_borough"] and float(row["distance"] or 0) > 0]
    cents: defaultdict[str, int] = defaultdict(int)
    for row in kept:
        cents[row["pickup_borough"]] += round(float(row["total"]) * 100)
    revenue = {borough: cents[borough] / 100 for borough in cents}

    tau("deploy", REPOSITORY / "examples" / "trips.py")
    run = tau("run", "trips", "-p", f"path={TAXIS}")
    assert run["result"] == {"trips": len(kept), "revenue": revenue}
    steps = [(step["name"], step["status"], step["rows_in"], step["rows_out"]) for step in run["trace"]["steps"]]
    assert steps == [
        ("extract", "success", None, 6433),
        ("clean", "success", 6433, len(kept)),
        ("aggregate", "success", len(kept), len(revenue)),
        ("load", "success", len(revenue), len(revenue)),
    ]
    assert len(kept) == 6367
    with sqlite3.connect(tau.home / "data" / "trips" / "trips.db") as db:
        assert dict(db.execute("SELECT borough, total FROM revenue").fetchall()) == revenue
    db.close()
