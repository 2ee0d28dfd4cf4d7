"""From a signature to a JSON Schema, and from JSON to the values of its annotations."""

from __future__ import annotations

import datetime
import enum
import json
import typing
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import Tau

import tau as module

if typing.TYPE_CHECKING:
    from collections import OrderedDict

DAY = datetime.date(2026, 1, 31)
Name = typing.NewType("Name", str)


class Shade(enum.StrEnum):
    DARK = "dark"
    LIGHT = "light"


class Region(enum.Enum):
    """Where."""

    EU = "eu"
    US = "us"
    PAIR = (1, 2)


@dataclass
class Window:
    """From one day to another."""

    begin: datetime.date
    days: int = 1
    tags: list[str] = field(default_factory=list)


@dataclass
class Unknown:
    """A record whose types are only known to type checkers."""

    things: OrderedDict[str, int]


def annotated(hint: Any, **default: Any) -> module.Parameters:
    """The parameters of a pipeline with one param, `x`."""

    def it(ctx: object, x: Any) -> None: ...

    it.__annotations__["x"] = hint
    it.__defaults__ = (default["default"],) if default else None
    return module.Parameters(it)


#: Annotation, its schema, JSON, and what the function is given.
GOOD: list[tuple[Any, dict[str, Any], Any, Any]] = [
    (int, {"type": "integer"}, 5, 5),
    (float, {"type": "number"}, 5, 5.0),
    (bool, {"type": "boolean"}, True, True),
    (str, {"type": "string"}, "x", "x"),
    (Name, {"type": "string"}, "x", "x"),
    (Any, {}, [1], [1]),
    (datetime.date, {"type": "string", "format": "date"}, "2026-01-31", DAY),
    (
        datetime.datetime,
        {"type": "string", "format": "date-time"},
        "2026-01-31T06:00:00Z",
        datetime.datetime(2026, 1, 31, 6, tzinfo=datetime.UTC),
    ),
    (datetime.time, {"type": "string", "format": "time"}, "06:00", datetime.time(6)),
    (datetime.timedelta, {"type": "number"}, 90, datetime.timedelta(seconds=90)),
    (Decimal, {"anyOf": [{"type": "string", "format": "decimal"}, {"type": "number"}]}, "1.50", Decimal("1.50")),
    (uuid.UUID, {"type": "string", "format": "uuid"}, str(uuid.UUID(int=1)), uuid.UUID(int=1)),
    (Path, {"type": "string"}, "/tmp/x", Path("/tmp/x")),
    (Region, {"enum": ["eu", "us", [1, 2]]}, "eu", Region.EU),
    (Region, {"enum": ["eu", "us", [1, 2]]}, [1, 2], Region.PAIR),
    (Literal["a", 1], {"enum": ["a", 1]}, 1, 1),
    (Literal[Shade.DARK, Shade.LIGHT], {"enum": ["dark", "light"]}, "dark", "dark"),
    (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None, None),
    (datetime.date | None, {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]}, "2026-01-31", DAY),
    (typing.Annotated[int, "told"], {"type": "integer"}, 5, 5),
    (list, {"type": "array"}, [1, "x"], [1, "x"]),
    (list[int], {"type": "array", "items": {"type": "integer"}}, [1], [1]),
    (list[datetime.date], {"type": "array", "items": {"type": "string", "format": "date"}}, ["2026-01-31"], [DAY]),
    (typing.Sequence[int], {"type": "array", "items": {"type": "integer"}}, [1], [1]),
    (set[str], {"type": "array", "items": {"type": "string"}}, ["a", "a"], {"a"}),
    (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}, [1, 2], (1, 2)),
    (
        tuple[int, str],
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
        [1, "x"],
        (1, "x"),
    ),
    (dict, {"type": "object"}, {"a": 1}, {"a": 1}),
    (
        dict[str, datetime.date],
        {"type": "object", "additionalProperties": {"type": "string", "format": "date"}},
        {"a": "2026-01-31"},
        {"a": DAY},
    ),
    (
        Window,
        {
            "type": "object",
            "properties": {
                "begin": {"type": "string", "format": "date"},
                "days": {"type": "integer", "default": 1},
                "tags": {"type": "array", "items": {"type": "string"}, "default": []},
            },
            "required": ["begin"],
            "additionalProperties": False,
        },
        {"begin": "2026-01-31", "tags": ["x"]},
        Window(DAY, 1, ["x"]),
    ),
]


@pytest.mark.parametrize(("hint", "schema", "given", "value"), GOOD, ids=[str(one[0]) for one in GOOD])
def test_an_annotation_is_a_schema_and_a_conversion(hint: Any, schema: Any, given: Any, value: Any) -> None:
    found = annotated(hint)
    assert found.schema()["properties"]["x"] == schema
    assert module.mismatch(found.schema(), {"x": given}, "params") is None
    converted = found.convert({"x": json.loads(json.dumps(given))})["x"]
    assert (converted, type(converted)) == (value, type(value))


#: Annotation, JSON that it does not admit, and what is said.
WRONG: list[tuple[Any, Any, str]] = [
    (int, "5", 'params.x: expected integer, given string "5"'),
    (int, 5.0, "params.x: expected integer, given number 5.0"),
    (int, True, "params.x: expected integer, given boolean true"),
    (float, "x", 'params.x: expected number, given string "x"'),
    (datetime.date, "31.1.2026", "params.x: expected a date such as 2026-01-31"),
    (list[int], [1, "x"], 'params.x[1]: expected integer, given string "x"'),
    (dict[str, int], {"a": None}, "params.x.a: expected integer, given null"),
    (tuple[int, str], [1], "params.x: expected 2 items, given 1"),
    (Literal["eu", "us"], "uk", 'params.x: expected one of "eu", "us", given string "uk"'),
    (Region, 1, 'params.x: expected one of "eu", "us", [1,2], given integer 1'),
    (Window, {"begin": "2026-01-31", "dyas": 1}, "unknown key 'dyas'; did you mean 'days'"),
    (Window, {}, "params.x: 'begin' is missing"),
    (Decimal, "x", "a decimal such as 12.50"),
    (uuid.UUID, "x", "a UUID"),
    (int | None, "x", "expected integer or null"),
    (Window | None, {"begin": "2026-01-31", "dyas": 1}, "params.x: unknown key 'dyas'; did you mean 'days'"),
    (tuple[int, int] | None, [1], "params.x: expected 2 items, given 1"),
]


@pytest.mark.parametrize(("hint", "given", "message"), WRONG, ids=[str(one[:2]) for one in WRONG])
def test_what_does_not_fit_is_told_with_its_place(hint: Any, given: Any, message: str) -> None:
    wrong = module.mismatch(annotated(hint).schema(), {"x": given}, "params")
    assert wrong is not None
    assert message in f"{wrong}; {wrong.hint}"


@pytest.mark.parametrize("hint", [bytes, type, dict[int, str], object(), typing.TypeVar("T"), complex, Callable])
def test_what_json_cannot_carry_is_refused_at_once(hint: Any) -> None:
    with pytest.raises(module.BadRequest, match="JSON cannot carry") as caught:
        annotated(hint)
    assert "use str, int" in caught.value.hint


def test_types_that_only_a_type_checker_knows_are_told() -> None:
    for hint, name in (("OrderedDict[str, int]", "'x'"), (Unknown, "a field of Unknown")):
        with pytest.raises(module.BadRequest, match=f"the annotation of {name} cannot be resolved") as caught:
            annotated(hint)
        assert "TYPE_CHECKING" in caught.value.hint


def test_defaults_are_shown_and_used() -> None:
    def it(
        ctx: object,
        day: datetime.date = DAY,
        n: int = None,  # noqa: RUF013
        region: Region = Region.EU,
        *,
        to: Path = Path("x"),
    ) -> None: ...

    found = module.Parameters(it)
    assert {name: schema["default"] for name, schema in found.schema()["properties"].items()} == {
        "day": "2026-01-31",
        "n": None,
        "region": "eu",
        "to": "x",
    }
    assert found.schema()["required"] == []
    assert found.convert({}) == {"day": DAY, "n": None, "region": Region.EU, "to": Path("x")}
    assert module.mismatch(found.schema(), {"n": None}, "params") is None


#: Annotation, default, and what the function is given.
DEFAULTS: list[tuple[Any, Any, Any]] = [
    (datetime.date, "2026-01-31", DAY),
    (datetime.date, DAY, DAY),
    (datetime.date | None, "2026-01-31", DAY),
    (datetime.date | None, None, None),
    (datetime.datetime, "2026-01-31T06:00:00+00:00", datetime.datetime(2026, 1, 31, 6, tzinfo=datetime.UTC)),
    (datetime.timedelta, 90, datetime.timedelta(seconds=90)),
    (datetime.timedelta, datetime.timedelta(minutes=1), datetime.timedelta(minutes=1)),
    (Decimal, "1.10", Decimal("1.10")),
    (Decimal, Decimal("1.10"), Decimal("1.10")),
    (float, 1, 1.0),
    (float, float("inf"), float("inf")),
    (uuid.UUID, uuid.UUID(int=1), uuid.UUID(int=1)),
    (Path, "x", Path("x")),
    (str, Path("x"), "x"),
    (Region, "eu", Region.EU),
    (Region, Region.PAIR, Region.PAIR),
    (list[datetime.date], ["2026-01-31"], [DAY]),
    (list[int], (1, 2), [1, 2]),
    (set[str], {"a"}, {"a"}),
    (tuple[int, str], (1, "x"), (1, "x")),
    (dict[str, Decimal], {"a": "1.5"}, {"a": Decimal("1.5")}),
    (Window, Window(DAY, 2), Window(DAY, 2)),
    (Window, {"begin": "2026-01-31"}, Window(DAY)),
    (Any, (1, 2), (1, 2)),
    (Any, Path, Path),
    (object, DAY, DAY),
]


@pytest.mark.parametrize(("hint", "default", "value"), DEFAULTS, ids=[str(one[:2]) for one in DEFAULTS])
def test_a_default_arrives_as_a_given_value_would(hint: Any, default: Any, value: Any) -> None:
    given = annotated(hint, default=default).convert({})["x"]
    assert (given, type(given)) == (value, type(value))


#: Annotation, default, and what is said.
WRONG_DEFAULTS: list[tuple[Any, Any, str]] = [
    (datetime.date, "yesterday", 'expected a date such as 2026-01-31, given string "yesterday"'),
    (datetime.date, 5, "expected a date such as 2026-01-31, given integer 5"),
    (datetime.date, len, "has no JSON form"),
    (int, "5", 'expected integer, given string "5"'),
    (int, 1.5, "expected integer, given number 1.5"),
    (str, 1, "expected string, given integer 1"),
    (bool, 1, "expected boolean, given integer 1"),
    (int, float("nan"), "which JSON cannot express"),
    (Decimal, "many", "expected a decimal such as 12.50 or number"),
    (Literal["eu", "us"], "uk", 'expected one of "eu", "us"'),
    (Region, "uk", 'expected one of "eu", "us", [1,2]'),
    (list[int], [1, "x"], "'x'[1]: expected integer"),
    (tuple[int, str], (1,), "expected 2 items, given 1"),
    (Window, {"days": 1}, "'begin' is missing"),
    (dict[str, int], [], "expected object, given array []"),
]


@pytest.mark.parametrize(("hint", "default", "message"), WRONG_DEFAULTS, ids=[str(one[:2]) for one in WRONG_DEFAULTS])
def test_a_default_that_could_not_be_given_is_refused(hint: Any, default: Any, message: str) -> None:
    with pytest.raises(module.BadRequest) as caught:
        annotated(hint, default=default)
    assert str(caught.value).startswith("the default of 'x'")
    assert message in str(caught.value)


def test_the_default_of_a_field_is_checked_too(tau: Tau) -> None:
    text = """
        from dataclasses import dataclass
        from datetime import date
        from tau import pipeline
        @dataclass
        class Window:
            begin: date = "soon"
        @pipeline
        def it(ctx, window: Window): ...
    """
    error = tau("deploy", tau.write(text, "fields.py"), exit=2)
    assert "the default of 'begin': expected a date" in error["message"]


def test_signatures_that_cannot_be_called_are_refused() -> None:
    def positional(ctx: object, x: int, /) -> None: ...
    def keyword(*, ctx: object) -> None: ...

    for function, message in ((positional, "must not be positional-only"), (keyword, "must take a PipelineContext")):
        with pytest.raises(module.BadRequest, match=message):
            module.Parameters(function)


def test_params_are_checked_before_a_run_is_queued_and_converted_in_it(tau: Tau) -> None:
    tau.deploy(
        """
        from __future__ import annotations
        from tau import pipeline
        import enum
        from dataclasses import dataclass
        from datetime import date
        from typing import Literal
        class Kind(enum.Enum):
            BIG = "big"
        @dataclass
        class Window:
            begin: date
        @pipeline
        async def it(ctx, day: date, kinds: list[Kind], window: Window | None = None, limit: int = 100, region: Literal["eu", "us"] = "eu"):
            assert ctx.params["day"] is day and ctx.params["limit"] == limit
            return [day.isoweekday(), [kind.name for kind in kinds], window and window.begin.year, limit, region]
        """
    )
    done = tau("run", "it", "--params", '{"day": "2026-01-31", "kinds": ["big"], "window": {"begin": "2025-01-01"}}')
    assert done["result"] == [6, ["BIG"], 2025, 100, "eu"]
    before = len(tau("runs", "it")["runs"])
    for params, message in (
        ('{"kinds": []}', "'day' is missing"),
        ('{"day": "soon", "kinds": []}', "params.day: expected a date"),
        ('{"day": "2026-01-31", "kinds": ["huge"]}', 'params.kinds[0]: expected one of "big"'),
        ('{"day": "2026-01-31", "kinds": [], "limt": 1}', "did you mean 'limit'"),
    ):
        error = tau("run", "it", "--params", params, exit=2)
        assert message in error["message"] + error["hint"]
    assert len(tau("runs", "it")["runs"]) == before
    schema = tau("show", "it")["params"]
    assert schema["properties"]["day"] == {"type": "string", "format": "date"}
    assert schema["required"] == ["day", "kinds"]


def test_other_params_reach_a_function_that_takes_them(tau: Tau) -> None:
    run = tau.run_it("def it(ctx, a: int = 1, **more):\n    return [a, more, ctx.params]", "--params", '{"b": "x"}')
    assert run["result"] == [1, {"b": "x"}, {"a": 1, "b": "x"}]
    run = tau.run_it("def it(ctx):\n    return ctx.params", "--params", '{"any": [1]}')
    assert run["result"] == {"any": [1]}


def test_an_annotation_for_type_checkers_alone_does_not_deploy(tau: Tau) -> None:
    text = """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        from tau import pipeline
        if TYPE_CHECKING:
            from datetime import date
        @pipeline
        def it(ctx, day: date): ...
    """
    error = tau("deploy", tau.write(text, "checked.py"), exit=2)
    assert "the annotation of 'day' cannot be resolved" in error["message"]
    assert "TYPE_CHECKING" in error["hint"]
