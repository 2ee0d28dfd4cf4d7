"""Steps with row counts: what a trace is made of.

$ tau run etl_orders
{"status": "success", "result": {"orders": 3, "revenue": 64.5}}
"""

from tau import PipelineContext, pipeline

ORDERS = [
    {"id": 1, "amount": "19.50", "state": "paid"},
    {"id": 2, "amount": "", "state": "open"},
    {"id": 3, "amount": "20.00", "state": "paid"},
    {"id": 4, "amount": "25.00", "state": "paid"},
]


@pipeline(name="etl_orders", description="Paid orders and their revenue", tags=["example"])
async def etl_orders(ctx: PipelineContext) -> dict[str, float]:
    async with ctx.step("extract") as step:
        rows = list(ORDERS)
        step.rows_out = len(rows)

    async with ctx.step("clean") as step:
        step.rows_in = len(rows)
        paid = [row | {"amount": float(str(row["amount"]))} for row in rows if row["state"] == "paid"]
        step.rows_out = len(paid)
        ctx.log("left out what is not paid", dropped=len(rows) - len(paid))

    async with ctx.step("load") as step:
        step.rows_in = len(paid)
        revenue = sum(float(row["amount"]) for row in paid)

    return {"orders": len(paid), "revenue": revenue}
