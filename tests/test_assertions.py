"""What ctx.check asserts, under which name, and with which values it failed."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from conftest import Context, Tau

import tau as module


def checks(ctx: Context) -> dict[str, Any]:
    """Name → what was recorded."""
    return {one["name"]: one["data"] for one in ctx.records("check")}


def test_an_assertion_is_named_by_its_source_text(ctx: Context) -> None:
    rows, least = [1, 2], 1
    assert ctx.check(len(rows) > least, rows[0] == 1)
    assert [*checks(ctx)] == ["len(rows) > least", "rows[0] == 1"]
    assert all(one["passed"] and one["values"] == {} for one in checks(ctx).values())


def test_texts_over_several_lines_with_commas_calls_and_letters_of_any_kind(ctx: Context) -> None:
    größe, name = 3, "a, b"
    ctx.check(
        größe
        > 2, f"{name}, {größe:>3}" == "a, b,   3",  # a comment, with a comma
        max(1, größe) == 3, {"a": [1, 2]}["a"][0] == 1, severity="warn",
    )  # fmt: skip
    assert [*checks(ctx)] == [
        "größe > 2",
        'f"{name}, {größe:>3}" == "a, b,   3"',
        "max(1, größe) == 3",
        '{"a": [1, 2]}["a"][0] == 1',
    ]


def test_a_failed_one_tells_the_values_of_its_names(ctx: Context) -> None:
    rows, least, my_token = [1], 2, "s3cret"
    with pytest.raises(module.CheckFailed, match="check failed: len"):
        ctx.check(len(rows) >= least and my_token)
    (found,) = checks(ctx).values()
    assert found["values"] == {"rows": "[1]", "least": "2", "my_token": "***"}


def test_functions_and_pairs_name_themselves(ctx: Context) -> None:
    def no_duplicates() -> bool:
        return True

    total = 5
    ctx.check(("the total", total > 1), no_duplicates, lambda: total == 5, ("later", lambda: True))
    assert [*checks(ctx)] == ["the total", "no_duplicates", "lambda: total == 5", "later"]
    ctx.check(functools.partial(bool, 1))
    assert "functools.partial(bool, 1)" in checks(ctx)


def test_starred_ones_are_numbered_and_the_others_keep_their_names(ctx: Context) -> None:
    some, a = [True, True], 1
    ctx.check(a == 1, *some, a < 2)
    assert [*checks(ctx)] == ["a == 1", "assertion 2", "assertion 3", "a < 2"]
    ctx.check(*[("named", True)])
    assert "named" in checks(ctx)


def test_all_are_evaluated_before_the_first_is_raised(ctx: Context) -> None:
    a = 1
    with pytest.raises(module.CheckFailed) as caught:
        ctx.check(a == 2, lambda: 1 / 0, a == 1, a == 3)
    assert str(caught.value) == "3 of 4 checks failed: a == 2; lambda: 1 / 0; a == 3"
    told = [(one["passed"], one["error"]) for one in checks(ctx).values()]
    assert told == [(False, None), (False, "ZeroDivisionError: division by zero"), (True, None), (False, None)]


def test_a_warning_only_records(ctx: Context) -> None:
    a = 1
    assert not ctx.check(a == 2, severity="warn")
    assert [(one["level"], one["message"]) for one in ctx.records("log")] == [("warning", "check failed: a == 2")]
    with pytest.raises(module.BadRequest, match='severity: expected one of "error", "warn", given string "fatal"'):
        ctx.check(True, severity="fatal")


def test_what_is_always_true_is_no_assertion(ctx: Context) -> None:
    values = [1]
    with pytest.raises(module.CheckFailed):
        ctx.check("len(values) > 5", (value > 5 for value in values))
    assert [one["error"] for one in checks(ctx).values()] == [
        "BadRequest: text is always true",
        "BadRequest: a generator is always true",
    ]


def test_async_assertions_and_the_step_they_are_in(tau: Tau) -> None:
    run = tau.run_it(
        """
        async def is_fresh():
            return True
        async def it(ctx):
            rows = []
            with ctx.step("load"):
                await ctx.check(is_fresh)
                ctx.check(len(rows) > 0, severity="warn")
            await ctx.check(
                len(rows)
                == 1
            )
        """,
        exit=1,
    )
    told = [(one["name"], one["passed"], one["step"]) for one in run["trace"]["checks"]]
    assert told == [("is_fresh", True, "load"), ("len(rows) > 0", False, "load"), ("len(rows) == 1", False, None)]
    assert (run["error"]["kind"], run["error"]["type"]) == ("check", "CheckFailed")
    assert run["error"]["message"] == "check failed: len(rows) == 1"
