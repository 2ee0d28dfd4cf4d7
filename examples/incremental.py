"""Incremental: only what is new since the last success.  ctx.state is written only if the run succeeds.

$ tau run incremental
{"result": {"new": 3, "seen": 3}}

$ tau run incremental -p until=5
{"result": {"new": 2, "seen": 5}}
"""

from tau import PipelineContext, pipeline

EVENTS = [{"id": 1}, {"id": 2}, {"id": 3}, {"id": 4}, {"id": 5}]


@pipeline(description="Loads only new events", tags=["example"])
def incremental(ctx: PipelineContext, until: int = 3) -> dict[str, int]:
    cursor = ctx.state.get("cursor", 0)
    fresh = [event for event in EVENTS if cursor < event["id"] <= until]
    ctx.load("events.jsonl", fresh)
    ctx.state["cursor"] = max([cursor, *(event["id"] for event in fresh)])
    return {"new": len(fresh), "seen": len(ctx.extract("events.jsonl"))}
