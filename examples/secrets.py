"""Secrets: from the environment, from systemd's credentials or <home>/secrets; `***` wherever Tau prints.

$ tau run secrets
{"result": "Bearer ***"}
"""

from tau import PipelineContext, pipeline


@pipeline(description="Uses a secret without telling it", tags=["example"])
def secrets(ctx: PipelineContext) -> str:
    key = ctx.secret("EXAMPLE_API_KEY", default="tau-example-key")
    ctx.log(f"calling with {key}")
    return f"Bearer {key}"
