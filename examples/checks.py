"""Checks: assertions that are recorded, with the values they failed with, before bad data goes anywhere.

$ tau run checks
{"result": 2, "trace": {"checks": [{"name": "len(rows) > 0"}, {"name": "few nulls", "passed": false}]}}

$ tau run checks -p strict=true
{"status": "failed", "result": null, "error": {"kind": "check", "message": "check failed: few nulls"}}
"""

from tau import PipelineContext, pipeline


@pipeline(description="Checks its rows", tags=["example"])
def checks(ctx: PipelineContext, strict: bool = False) -> int:
    rows = [{"id": 1, "mail": "a@example.com"}, {"id": 2, "mail": None}]
    nulls = sum(row["mail"] is None for row in rows)
    ctx.check(len(rows) > 0)
    ctx.check(("few nulls", nulls < len(rows) / 2), severity="error" if strict else "warn")
    return len(rows)
