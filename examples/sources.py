"""A source and a target of one's own, and a function that is applied to each row.

$ tau run sources
{"result": ["ada@example.com"], "trace": {"metrics": {"dropped": 1}}}
"""

from collections.abc import Iterator
from typing import Any

from tau import PipelineContext, per_row, pipeline, source, target

CRM: list[str] = []


@source("people")
def people(resource: str, active: bool = True) -> Iterator[dict[str, Any]]:
    yield {"team": resource, "mail": "ADA@example.com", "active": active}
    yield {"team": resource, "mail": "", "active": active}


@target("crm")
def crm(rows: list[dict[str, Any]]) -> None:
    CRM.extend(row["mail"] for row in rows)


@per_row
def tidy(row: dict[str, Any]) -> dict[str, Any] | None:
    return {**row, "mail": row["mail"].lower()} if row["mail"] else None


@pipeline(description="From a source to a target", tags=["example"])
def sources(ctx: PipelineContext) -> list[str]:
    found = ctx.extract("people", "analytics", active=True)
    kept = ctx.transform(found, steps=[tidy])
    ctx.metric("dropped", len(found) - len(kept))
    ctx.load("crm", kept)
    return CRM
