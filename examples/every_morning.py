"""A schedule and a chain: one pipeline every morning, and another one after it that is given its result.

$ tau run yesterday
{"status": "success", "trigger": "manual", "scheduled_for": null, "result": {"orders": 3}}

`tau schedule yesterday` shows the next ticks, `tau why digest` that it comes after `yesterday`, and
`tau backfill yesterday --from 2026-01-01 --to 2026-01-31` runs a month of past mornings.
"""

from tau import PipelineContext, pipeline


@pipeline(schedule="0 6 * * *", timezone="Europe/London", expect_success_within="25h", tags=["example"])
def yesterday(ctx: PipelineContext) -> dict[str, int]:
    """Counts the orders of the day before the tick it runs for."""
    ctx.log("orders of", until=str(ctx.scheduled_for or "now"))
    return {"orders": 3}


@pipeline(after="yesterday", tags=["example"])
def digest(ctx: PipelineContext) -> str:
    """Runs whenever `yesterday` has succeeded."""
    return f"{ctx.upstream['yesterday']['result']['orders']} orders"
