"""Parallel steps: asyncio.gather, and blocking work in threads; each is timed and nested by itself.

$ tau run parallel
{"result": {"fetched": [10, 20, 30]}}
"""

import asyncio

from tau import PipelineContext, pipeline


@pipeline(description="Three things at once", tags=["example"])
async def parallel(ctx: PipelineContext) -> dict[str, list[int]]:
    async def fetch(number: int) -> int:
        async with ctx.step(f"fetch {number}") as step:
            step.rows_out = await asyncio.to_thread(blocking, number)
            return step.rows_out

    def blocking(number: int) -> int:
        ctx.log(f"in the step of {number}")
        return 10 * number

    async with ctx.step("fetch all"):
        return {"fetched": await asyncio.gather(*map(fetch, (1, 2, 3)))}
