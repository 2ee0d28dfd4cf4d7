"""What ctx.check asserts, under which name, and with which values it failed."""

from __future__ import annotations

import functools
import linecache
import types
from collections.abc import Iterator
from decimal import Decimal
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


def test_beside_starred_ones_all_are_numbered(ctx: Context) -> None:
    some, a = [True, True], 1
    ctx.check(a == 1, *some, a < 2)
    assert [*checks(ctx)] == ["assertion 1", "assertion 2", "assertion 3", "assertion 4"]
    ctx.check(*[("named", True)])
    assert "named" in checks(ctx)


def test_all_are_evaluated_before_the_first_is_raised(ctx: Context) -> None:
    a = 1
    with pytest.raises(module.CheckFailed) as caught:
        ctx.check(a == 2, lambda: 1 / 0, a == 1, a == 3)
    assert str(caught.value) == "3 of 4 checks failed: a == 2; lambda: 1 / 0; a == 3"
    told = [(one["passed"], one["error"]) for one in checks(ctx).values()]
    assert told == [(False, None), (False, "ZeroDivisionError: division by zero"), (True, None), (False, None)]


def test_what_a_condition_raises_is_the_cause(ctx: Context) -> None:
    with pytest.raises(module.CheckFailed, match="check failed: positive") as caught:
        ctx.check("positive", (row["amount"] > 0 for row in [{"amuont": 1}]))
    assert repr(caught.value.__cause__) == "KeyError('amount')"


def test_a_warning_only_records(ctx: Context) -> None:
    a = 1
    assert not ctx.check(a == 2, severity="warn")
    assert [(one["level"], one["message"]) for one in ctx.records("log")] == [("warning", "check failed: a == 2")]
    assert not ctx.check("all are right", (row for row in []), severity="warn")
    assert ctx.records("log")[-1]["message"] == "check failed: all are right"
    with pytest.raises(module.BadRequest, match='severity: expected one of "error", "warn", given string "fatal"'):
        ctx.check(True, severity="fatal")


class Truth:
    """A boolean of numpy's, or an array of no dimension."""

    def __init__(self, value: bool, kind: str = "b", shape: tuple[int, ...] = ()) -> None:
        self.value, self.shape = value, shape
        self.dtype = types.SimpleNamespace(kind=kind)

    def __bool__(self) -> bool:
        return self.value

    def __len__(self) -> int:
        raise TypeError("len() of unsized object")

    def __iter__(self) -> Iterator[bool]:
        raise TypeError("iteration over a 0-d array")


def none_of_them() -> bool:
    return False


#: A call of ctx.check, with `values` = [1, 2], and what it records: names with whether they passed.
ASSERTED: dict[str, dict[str, bool]] = {
    "ctx.check('two', len(values) == 2)": {"two": True},
    "ctx.check('none', values == [])": {"none": False},
    "ctx.check('function', none_of_them)": {"function": False},
    "ctx.check('all', [values[0] == 1, values[1] == 1])": {"all": False},
    "ctx.check(len(values) == 1, name='one')": {"one": False},
    "ctx.check(lambda: True, name='one')": {"one": True},
    "ctx.check(('one', True), ('two', False))": {"one": True, "two": False},
    "ctx.check([('one', True), ('two', False)])": {"one": True, "two": False},
    "ctx.check((str(value), value > 1) for value in values)": {"1": False, "2": True},
    "ctx.check({('one', True)})": {"one": True},
    "ctx.check([value > 0 for value in values])": {"[value > 0 for value in values]": True},
    "ctx.check([value > 1 for value in values])": {"[value > 1 for value in values]": False},
    "ctx.check([False])": {"[False]": False},
    "ctx.check((True, [True, (True, False)]))": {"(True, [True, (True, False)])": False},
    "ctx.check([('one', True), False, True])": {"[('one', True), False, True]": False},
    "ctx.check(map(bool, values))": {"map(bool, values)": True},
    "ctx.check(none_of_them)": {"none_of_them": False},
    "ctx.check(lambda: [True, False])": {"lambda: [True, False]": False},
    "ctx.check(Truth(True))": {"Truth(True)": True},
    "ctx.check(Truth(False))": {"Truth(False)": False},
    "ctx.check([Truth(True), Truth(False)])": {"[Truth(True), Truth(False)]": False},
}


@pytest.mark.parametrize("call", ASSERTED)
def test_booleans_functions_names_and_iterables_of_them_are_assertions(call: str, ctx: Context) -> None:
    assert asserted(ctx, call, module.CheckFailed) is None
    assert {name: one["passed"] for name, one in checks(ctx).items()} == ASSERTED[call]


def asserted(ctx: Context, call: str, *expected: type[Exception]) -> Exception | None:
    """Makes a call of ctx.check in a file of its own; returns an exception that it may not raise."""
    path = ctx.journal.with_name("called.py")
    path.write_text(call)
    linecache.checkcache()
    known = {"ctx": ctx, "values": [1, 2], "Truth": Truth, "none_of_them": none_of_them, "Decimal": Decimal}
    try:
        exec(compile(call, str(path), "exec"), known)
    except expected:
        return None
    except Exception as problem:
        return problem
    return None


#: A call of ctx.check that says nothing, and what is said about it.
REFUSED: dict[str, str] = {
    "ctx.check()": "ctx.check has no conditions",
    "ctx.check(*[])": "ctx.check has no conditions",
    "ctx.check([])": "given an empty iterable",
    "ctx.check(())": "given an empty iterable",
    "ctx.check(value for value in [])": "given an empty iterable",
    "ctx.check(True, [])": "'[]': expected true or false, given an empty iterable",
    "ctx.check({'name': 'x', 'ok': False})": "given dict {'name': 'x', 'ok': False}",
    "ctx.check([{'name': 'x', 'ok': False}])": "given dict {'name': 'x', 'ok': False}",
    "ctx.check(('x', True, False))": "given str 'x'",
    "ctx.check(['x', True])": "given str 'x'",
    "ctx.check('len(values) > 5')": "given str 'len(values) > 5'",
    "ctx.check(('x', 'is right'))": "'x': expected true or false, given str 'is right'",
    "ctx.check('x', 'is right')": "'x': expected true or false, given str 'is right'",
    "ctx.check('x', True, False)": "ctx.check has 2 conditions for the name 'x'",
    "ctx.check(True, False, name='x')": "ctx.check has 2 conditions for the name 'x'",
    "ctx.check('x', True, name='y')": "ctx.check has 2 conditions for the name 'y'",
    "ctx.check(name='x')": "ctx.check has no conditions",
    "ctx.check(True, 'x')": "''x'': expected true or false, given str 'x'",
    "ctx.check(values)": "'values': expected true or false, given int 1",
    "ctx.check(len(values))": "'len(values)': expected true or false, given int 2",
    "ctx.check(0)": "given int 0",
    "ctx.check(float('nan'))": "given float nan",
    "ctx.check(Decimal('nan'))": "given Decimal Decimal('NaN')",
    "ctx.check(None)": "given NoneType None",
    "ctx.check(b'x')": "given bytes b'x'",
    "ctx.check(lambda: 'x')": "given str 'x'",
    "ctx.check(object)": "given object <object",
    "ctx.check(Truth(True, 'f'))": "given Truth <",
    "ctx.check(1, severity='warn')": "given int 1",
}


@pytest.mark.parametrize("call", REFUSED)
def test_what_can_be_no_condition_is_refused_by_name(call: str, ctx: Context) -> None:
    problem = asserted(ctx, call)
    assert isinstance(problem, module.BadRequest)
    assert REFUSED[call] in str(problem)
    assert "ctx.check(len(rows) > 0)" in problem.hint


def test_what_fails_is_told_although_another_has_nothing_to_say(ctx: Context) -> None:
    problem = asserted(ctx, "ctx.check(('there are rows', False), ('each is right', (row for row in [])))")
    assert isinstance(problem, module.CheckFailed)
    assert str(problem) == "1 of 2 checks failed: there are rows"


def test_a_refused_one_does_not_hide_those_beside_it(ctx: Context) -> None:
    values = [1]
    with pytest.raises(module.BadRequest, match="'values'"):
        ctx.check(values == [], values, (1 / value for value in [0]), severity="warn")
    told = [(one["passed"], one["error"]) for one in checks(ctx).values()]
    assert told == [
        (False, None),
        (False, "BadRequest: expected true or false, given int 1"),
        (False, "ZeroDivisionError: division by zero"),
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
