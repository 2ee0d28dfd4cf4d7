"""The smallest useful pipeline: `tau run hello_world` answers `"result": {"records_processed": 2}`."""

from tau import PipelineContext, pipeline


@pipeline(name="hello_world", description="My first pipeline", tags=["example"])
async def hello_world(ctx: PipelineContext) -> dict[str, int]:
    ctx.log("Hello from Tau! 🚀")

    # Extract
    data = [{"id": 1, "name": "Alice"}, {"id": 2, "name": "Bob"}]
    ctx.log(f"Extracted {len(data)} records")

    # Transform
    transformed = [{"id": row["id"], "name": str(row["name"]).upper()} for row in data]

    # Validate
    assert len(transformed) > 0
    ctx.log("All checks passed ✓")

    return {"records_processed": len(transformed)}
