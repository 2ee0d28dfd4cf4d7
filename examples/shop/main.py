"""A folder: modules and SQL travel with the pipeline.  `tau deploy examples/shop`

$ tau run shop
{"result": [{"customer": "ada", "spent": 19.0}, {"customer": "bob", "spent": 5.0}]}
"""

from pathlib import Path

from rules import is_paid

from tau import PipelineContext, pipeline

ORDERS = [
    {"customer": "ada", "amount": 12.0, "status": "paid"},
    {"customer": "ada", "amount": 7.0, "status": "paid"},
    {"customer": "bob", "amount": 5.0, "status": "paid"},
    {"customer": "bob", "amount": 99.0, "status": "open"},
]


@pipeline(description="What each customer has spent", tags=["example"])
def shop(ctx: PipelineContext) -> list[dict[str, object]]:
    query = (Path(__file__).parent / "spent.sql").read_text()
    return ctx.transform(ORDERS, steps=[is_paid, query])
