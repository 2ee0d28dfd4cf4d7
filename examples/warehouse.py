"""Extract, transform in SQL, upsert: run it twice and the second time changes nothing.

$ tau run warehouse
{"result": {"written": 2, "top": {"borough": "Manhattan", "revenue": 25.25}}}

$ tau run warehouse
{"result": {"written": 2, "rows": 2}}
"""

from pathlib import Path

from tau import PipelineContext, pipeline

TRIPS = "borough,total\nManhattan,12.95\nManhattan,12.30\nBrooklyn,18.5\n"
REVENUE = "SELECT borough, sum(total) AS revenue FROM data GROUP BY borough ORDER BY revenue DESC"


@pipeline(description="Revenue per borough into SQLite", tags=["example"])
def warehouse(ctx: PipelineContext) -> dict[str, object]:
    Path("trips.csv").write_text(TRIPS)  # stands for what somebody else delivers
    trips = ctx.extract("trips.csv", types={"total": float})
    revenue = ctx.transform(trips, steps=[REVENUE])
    written = ctx.load("sqlite:///warehouse.db", revenue, "revenue", mode="upsert", key="borough")
    rows = ctx.sql("SELECT * FROM revenue WHERE revenue > :least", {"least": 0}, "sqlite:///warehouse.db")
    return {"written": written, "rows": len(rows), "top": revenue[0]}
