"""A CSV file into SQLite: extract, clean, aggregate, load.  Takes a path, or uses the trips below.

$ tau run trips
{"status": "success", "result": {"trips": 4, "revenue": {"Brooklyn": 23.5, "Manhattan": 25.25}}}
"""

import csv
import io
import sqlite3
from collections import defaultdict

from tau import PipelineContext, pipeline

SAMPLE = """\
pickup_borough,distance,total
Manhattan,1.6,12.95
Manhattan,0.79,12.30
Brooklyn,4.2,18.5
,2.0,9.8
Brooklyn,1.1,5.0
Queens,,31.0
"""


@pipeline(name="trips", description="Revenue per borough, into a SQLite file", tags=["example"])
def trips(ctx: PipelineContext) -> dict[str, object]:
    with ctx.step("extract") as step:
        path = ctx.params.get("path")
        with open(path, encoding="utf-8") if path else io.StringIO(SAMPLE) as file:
            rows = list(csv.DictReader(file))
        step.rows_out = len(rows)

    with ctx.step("clean") as step:
        kept = [row for row in rows if row["pickup_borough"] and float(row["distance"] or 0) > 0]
        step.rows_in, step.rows_out = len(rows), len(kept)

    with ctx.step("aggregate") as step:
        cents: defaultdict[str, int] = defaultdict(int)
        for row in kept:
            cents[row["pickup_borough"]] += round(float(row["total"]) * 100)
        revenue = {borough: cents[borough] / 100 for borough in sorted(cents)}
        step.rows_in, step.rows_out = len(kept), len(revenue)

    with ctx.step("load") as step, sqlite3.connect("trips.db") as db:  # in the pipeline's own directory
        db.execute("CREATE TABLE IF NOT EXISTS revenue (borough TEXT PRIMARY KEY, total REAL)")
        db.executemany("INSERT OR REPLACE INTO revenue VALUES (?, ?)", revenue.items())
        step.rows_in = step.rows_out = len(revenue)

    return {"trips": len(kept), "revenue": revenue}
