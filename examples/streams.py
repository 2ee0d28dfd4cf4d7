"""Streams: a file of any size in bounded memory; the steps see one batch at a time.

$ tau run streams
{"result": 50000}
"""

from typing import Any

from tau import PipelineContext, per_row, pipeline


@per_row
def double(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row["id"], "twice": 2 * row["value"]}


@pipeline(description="CSV to SQLite, batch by batch", tags=["example"])
def streams(ctx: PipelineContext) -> int:
    with open("numbers.csv", "w") as file:
        file.write("id,value\n")
        file.writelines(f"{i},{i % 7}\n" for i in range(50_000))
    batches = ctx.extract("numbers.csv", stream=True, types={"id": int, "value": int})
    doubled = ctx.transform(batches, steps=[double])
    return ctx.load("sqlite:///numbers.db", doubled, "numbers", mode="replace")
