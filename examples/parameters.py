"""Params: what `tau run -p` and `--params` hand to a run.

$ tau run parameters -p day=2026-01-01 -p limit=3
{"status": "success", "params": {"day": "2026-01-01", "limit": 3}, "result": "2026-01-01: 3 rows at most"}
"""

from tau import PipelineContext, pipeline


@pipeline(name="parameters", description="Shows its params", tags=["example"])
def parameters(ctx: PipelineContext) -> str:
    return f"{ctx.params.get('day', 'today')}: {ctx.params.get('limit', 100)} rows at most"
