"""What an author writes: the decorator, the context, steps."""

from __future__ import annotations

import pytest
from conftest import Tau

import tau as module


@pytest.fixture
def registry() -> list[module.Pipeline]:
    """What @pipeline has seen; forgotten afterwards."""
    before = len(module.PIPELINES)
    yield module.PIPELINES
    del module.PIPELINES[before:]


def test_a_decorated_function_stays_what_it_was(registry: list[module.Pipeline]) -> None:
    @module.pipeline
    def plain(ctx: object) -> str:
        """What it does.

        And how.
        """
        return f"called with {ctx}"

    @module.pipeline(name="other.name-1", description="told", tags=("a", "b"))
    async def named(ctx: object) -> None: ...

    assert plain("x") == "called with x"
    assert plain.__name__ == "plain"
    found = [(one.name, one.options["description"], one.options["tags"]) for one in registry[-2:]]
    assert found == [("plain", "What it does.", []), ("other.name-1", "told", ["a", "b"])]


@pytest.mark.parametrize("name", ["", "a b", "../up", "-x", "a" * 129, "naïve", "a/b", "new\nline"])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(module.BadRequest, match="cannot be a pipeline's name"):
        module.pipeline(name=name)(lambda ctx: None)


def test_a_function_must_take_the_context() -> None:
    with pytest.raises(module.BadRequest, match="must take a PipelineContext"):

        @module.pipeline
        def nothing() -> None: ...


def test_tags_must_be_a_list() -> None:
    with pytest.raises(module.BadRequest, match="list of strings"):
        module.pipeline(name="x", tags="example")(lambda ctx: None)


def test_steps_nest_in_sync_and_async_code(tau: Tau) -> None:
    run = tau.run_it(
        """
        import asyncio
        async def part(ctx, name):
            async with ctx.step(name) as step:
                await asyncio.sleep(0.01)
                with ctx.step("inner"):
                    await asyncio.to_thread(ctx.log, f"in {name}")
                step.rows_in, step.rows_out = 2, 1
        async def it(ctx):
            async with ctx.step("all"):
                await asyncio.gather(part(ctx, "a"), part(ctx, "b"))
            with ctx.step("after"):
                pass
        """
    )
    everything, after = run["trace"]["steps"]
    assert after["name"] == "after"
    parts = everything["steps"]
    assert sorted(step["name"] for step in parts) == ["a", "b"]
    for step in parts:
        assert (step["rows_in"], step["rows_out"], step["status"]) == (2, 1, "success")
        assert [inner["name"] for inner in step["steps"]] == ["inner"]
        assert everything["duration_ms"] >= step["duration_ms"] >= 10
    assert {line["step"]: line["message"] for line in tau("logs", "it")["lines"]} == {
        "all/a/inner": "in a",
        "all/b/inner": "in b",
    }


def test_a_steps_exception_is_recorded_and_raised_again(tau: Tau) -> None:
    run = tau.run_it(
        """
        def it(ctx):
            try:
                with ctx.step("outer"), ctx.step("inner"):
                    raise LookupError("gone")
            except LookupError as caught:
                return str(caught)
        """
    )
    outer = run["trace"]["steps"][0]
    assert run["result"] == "gone"
    for step in (outer, outer["steps"][0]):
        assert (step["status"], step["error"]) == ("failed", {"type": "LookupError", "message": "gone"})


def test_odd_row_counts_do_no_harm(tau: Tau) -> None:
    run = tau.run_it(
        """
        def it(ctx):
            with ctx.step("x" * 1000) as step:
                step.rows_in, step.rows_out = "many", 2**70
            with ctx.step("quote \\" and \\ud800") as step:
                step.rows_in = 3.0
        """
    )
    first, second = run["trace"]["steps"]
    assert (len(first["name"]), first["rows_in"], first["rows_out"]) == (200, None, None)
    assert (second["name"], second["rows_in"]) == ('quote " and ?', 3)


def test_an_unknown_level_is_refused(tau: Tau) -> None:
    run = tau.run_it("def it(ctx):\n    ctx.log('x', level='loud')", exit=1)
    assert (run["error"]["type"], run["error"]["line"]) == ("BadRequest", 4)


def test_more_steps_than_the_limit_are_not_recorded(tau: Tau) -> None:
    run = tau.run_it("def it(ctx):\n    for i in range(10_050):\n        with ctx.step('s'):\n            pass")
    assert run["status"] == "success"
    assert len(tau("inspect", run["run_id"], "--full")["trace"]["steps"]) == module.STEPS_MAX
