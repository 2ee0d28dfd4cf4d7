"""A real pipeline: new CSV files are cleaned, checked and loaded into a database, which then sums them up.

$ tau run daily_sales
{"result": {"new": 3, "totals": [{"customer": "ada", "spent": 19.5}, {"customer": "bob", "spent": 3.0}]}}

$ tau run daily_sales
{"result": {"new": 0, "totals": [{"customer": "ada", "spent": 19.5}, {"customer": "bob", "spent": 3.0}]}}
"""

from pathlib import Path

from tau import PipelineContext, per_row, pipeline

SHOP = "sqlite:///shop.db"
SPENT = "SELECT customer, sum(amount) AS spent FROM sales GROUP BY customer ORDER BY spent DESC LIMIT :most"


@per_row
def clean(row):
    if row["status"] != "paid":
        return None
    return {"id": row["id"], "customer": row["customer"].strip().lower(), "amount": row["amount"]}


@pipeline(schedule="0 6 * * *", timezone="Europe/London", timeout="10m", retries=3, retry_delay="1m", retry_backoff=2)
def daily_sales(ctx: PipelineContext, most: int = 10):
    """Loads the new files of the shop and sums them up."""
    deliver("2026-01-31.csv", "id,customer,amount,status\n1,Ada,12.5,paid\n2,bob,3,paid\n3,ada ,7,paid\n4,eve,9,open\n")
    rows = ctx.extract("in/*.csv", new_only=True, types={"id": int, "amount": float})
    paid = ctx.transform(rows, steps=[clean])
    ctx.check("ids are unique", len({row["id"] for row in paid}) == len(paid))
    ctx.load(SHOP, paid, "sales", mode="upsert", key="id")
    ctx.metric("not paid", len(rows) - len(paid))
    return {"new": len(paid), "totals": ctx.sql(SPENT, {"most": most}, SHOP)}


def deliver(name: str, text: str) -> None:
    """Stands for the shop, which puts a file into `in/` each night."""
    Path("in").mkdir(exist_ok=True)
    if not Path("in", name).exists():
        Path("in", name).write_text(text)
