"""Typed params: what a run may be given is read from the signature, and anything else never becomes a run.

$ tau run parameters -p day=2026-01-31 -p limit=3
{"status": "success", "result": "Saturday: 3 rows at most from eu"}
"""

from datetime import date
from typing import Literal

from tau import PipelineContext, pipeline


@pipeline(description="Shows its params", tags=["example"])
def parameters(ctx: PipelineContext, day: date, limit: int = 100, region: Literal["eu", "us"] = "eu") -> str:
    return f"{day:%A}: {limit} rows at most from {region}"
