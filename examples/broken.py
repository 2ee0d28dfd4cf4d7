"""A failure that explains itself: where, in which step, with which values.

$ tau run broken
{"status": "failed", "error": {"kind": "exception", "type": "KeyError", "step": "transform", "line": 16}}
"""

from tau import PipelineContext, pipeline

ROWS = [{"id": 1, "amount": 5}, {"id": 2, "amuont": 7}]


def total(rows: list[dict[str, int]]) -> int:
    """The sum of all amounts; the second row has a typing error."""
    result = 0
    for row in rows:
        result += row["amount"]
    return result


@pipeline(name="broken", description="Fails on purpose", tags=["example"])
def broken(ctx: PipelineContext) -> int:
    with ctx.step("transform") as step:
        step.rows_in = len(ROWS)
        return total(ROWS)
