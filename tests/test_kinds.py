"""Kinds of value in columns: what a database holds comes back as it was, or is refused by name."""

from __future__ import annotations

import datetime
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import FAULTS, THOROUGH, Context
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from postgres import empty_house, importable

import tau as module

UTC = datetime.UTC
DAY = datetime.date(2026, 1, 2)
WHEN = datetime.datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001
MIDNIGHT = datetime.datetime(2026, 1, 2)  # noqa: DTZ001
ZONED = datetime.datetime(2026, 1, 2, 3, tzinfo=UTC)
TEA = datetime.time(16, 30)


@pytest.fixture(params=["sqlite", "postgresql", "duckdb"])
def house(request: pytest.FixtureRequest, ctx: Context) -> str:
    """The URL of a database of each kind, in which there is no table."""
    return empty_house(request.param, request, ctx)


#: Kind of a column → the value that declares it.
COLUMNS: dict[str, Any] = {
    "integer": 10115, "real": 2.5, "boolean": True, "date": DAY, "datetime": WHEN, "zoned": ZONED, "time": TEA,
    "decimal": Decimal("1.10"), "text": "abc", "bytes": b"\0\xff", "nothing": None,
}  # fmt: skip
VALUES: list[Any] = [
    *(7, 1, 0, 2**53 + 1, 2**70, 2.0, 3.7, 0.1 + 0.2, 1e300, float("inf"), float("nan"), True, None),
    *(DAY, WHEN, MIDNIGHT, ZONED, TEA, Decimal("3.7"), Decimal("12345678901234567.89"), Decimal("0.123456789012")),
    *(Decimal("NaN"), Decimal(5), "01067", "1067", "12.7", "12.50", "0012.50", "1e5", "32E0134", "true", "on", "today"),
    *(
        "03/04/2026",
        "2026-01-02",
        "20260131",
        "2026-01-02 10:30:00",
        "2026-01-02T10:30:00Z",
        "10:30",
        "",
        " 7",
        "1_000",
    ),
    *("abc", b"x", {"a": 1}, [1], datetime.timedelta(seconds=90)),
]
#: How a text looks if it can be nothing but a number.
PLAIN_NUMBER = r"-?(0|[1-9]\d*)(\.\d+)?"


def same(given: Any, back: Any) -> bool:
    """Whether a value came back as it was: equal, as its text, or as what its text can only mean."""
    if given is None or given != given:
        return back is None or back != back
    if isinstance(given, datetime.timedelta):
        given = given.total_seconds()
    if isinstance(given, (int, float, Decimal)) and isinstance(back, (int, float, Decimal)):
        return given == back or Decimal(str(+given)) == Decimal(str(+back))
    if isinstance(given, str) and isinstance(back, (int, float, Decimal)):
        is_truth = given == {True: "true", False: "false"}.get(back)
        return is_truth or (re.fullmatch(PLAIN_NUMBER, given) is not None and Decimal(given) == Decimal(str(back)))
    if isinstance(given, str) and isinstance(back, (datetime.date, datetime.time)):
        return back.isoformat().replace("+00:00", "Z") in (given, given.replace(" ", "T"), f"{given}:00")
    if type(given) is datetime.date and isinstance(back, datetime.datetime):
        given = datetime.datetime.combine(given, datetime.time())
    if isinstance(given, datetime.datetime) and type(back) is datetime.date:
        back = datetime.datetime.combine(back, datetime.time())
    texts = () if isinstance(given, bytes) else (module.csv_cell(given), module.sqlite_cell(given))
    return bool(given == back or back in [*map(str, texts)])


def load_both(house: str, ctx: Context, first: Any, second: Any, mode: str) -> bool:
    """Loads two values into one column.  Returns whether both came back; the second may have been refused."""
    ctx.sql("DROP TABLE IF EXISTS t", connection=house)
    ctx.load(house, [{"id": 1, "c": first}], "t", mode="upsert", key="id")
    refused: module.SourceError | None = None
    try:
        ctx.load(house, [{"id": 2, "c": second}], "t", mode=mode, key="id")
    except module.SourceError as problem:
        refused = problem
    found = [row["c"] for row in ctx.extract(house, "SELECT c FROM t ORDER BY id")]
    if refused is not None:
        assert re.search("row 1: column 'c'|64 bits", str(refused)), refused
        assert refused.hint
    given = [first] if refused is not None else [second] if mode == "replace" else [first, second]
    assert len(found) == len(given)
    assert all(map(same, given, found)), (given, found)
    return refused is None


MODES = ["append", "replace", "upsert"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", COLUMNS)
def test_a_value_comes_back_or_is_refused(kind: str, mode: str, house: str, ctx: Context) -> None:
    """All values for each kind of column, each in one of the modes, in CI; else a share of them."""
    step = 1 if FAULTS >= 1000 else len(MODES) if THOROUGH else 41
    first = ([*COLUMNS].index(kind) * len(MODES) + MODES.index(mode)) % step
    values = VALUES[first::step]
    if house.startswith("duckdb") and not importable("pytz"):  # which it wants for times with a zone
        if kind == "zoned":
            pytest.skip("DuckDB reads times with a zone with pytz")
        values = [value for value in values if value is not ZONED]
    taken = [load_both(house, ctx, COLUMNS[kind], value, mode) for value in values]
    assert mode != "replace" or all(taken)


REFUSED = "refused"
#: Two values of a column → what is there after both were loaded.
PAIRS: dict[str, tuple[Any, Any, list[Any] | str]] = {
    "a code after a number": (10115, "01067", REFUSED),
    "a number in text": (10115, "1067", [10115, 1067]),
    "a fraction in text": (12, "12.7", REFUSED),
    "an exponent in text": (12, "1e5", REFUSED),
    "a fraction": (5, 3.7, [5, 3.7]),
    "a large integer in a column of reals": (0.5, 2**53 + 1, REFUSED),
    "a large integer and a fraction": (2**53 + 1, 0.5, [2**53 + 1, 0.5]),
    "a number in a column of truths": (True, 7, REFUSED),
    "a word in a column of truths": (True, "on", REFUSED),
    "nothing first": (None, 7, [None, 7]),
    "NaN in a column of integers": (7, float("nan"), [7, None]),
    "text in a column of bytes": (b"x", b"y", [b"x", b"y"]),
}
#: Databases without types of their own for these keep the text.
DATED: dict[str, tuple[Any, Any, list[Any] | str]] = {
    "a time in a column of days": (DAY, WHEN, [MIDNIGHT, WHEN]),
    "midnight in a column of days": (DAY, MIDNIGHT, [DAY, DAY]),
    "a time with a zone in a column without": (WHEN, ZONED, REFUSED),
    "today": (DAY, "today", REFUSED),
    "the third of April, or the fourth of March": (DAY, "03/04/2026", REFUSED),
    "a day in text": (DAY, "2026-01-02", [DAY, DAY]),
    "digits in a column of days": (DAY, "20260131", REFUSED),
    "decimals of more digits": (
        Decimal("1.10"),
        Decimal("0.123456789012"),
        [Decimal("1.10"), Decimal("0.123456789012")],
    ),
    "large decimals": (
        Decimal("1.10"),
        Decimal("12345678901234567.89"),
        [Decimal("1.1"), Decimal("12345678901234567.89")],
    ),
}


@pytest.mark.parametrize("case", [*PAIRS, *DATED])
def test_kinds_that_meet_in_a_column(case: str, house: str, ctx: Context) -> None:
    if case in DATED and house.startswith("sqlite"):
        pytest.skip("SQLite keeps the text")
    first, second, expected = (PAIRS | DATED)[case]
    ctx.load(house, [{"id": 1, "c": first}], "t")
    if expected == REFUSED:
        with pytest.raises(module.SourceError, match=r"row 2: column 'c' holds .*, which .* is not") as caught:
            ctx.load(house, [{"id": 2, "c": None}, {"id": 3, "c": second}], "t")
        assert caught.value.hint
        expected = [first]
    else:
        ctx.load(house, [{"id": 3, "c": second}], "t")
    assert [row["c"] for row in ctx.extract(house, "SELECT c FROM t ORDER BY id")] == expected


def test_sqlite_refuses_decimals_that_it_would_round(ctx: Context) -> None:
    ctx.load("sqlite:///house.db", [{"c": Decimal("1.10")}], "t")
    wrong = r"column 'c' holds decimals of at most 15 digits, which Decimal\('12345678901234567.89'\) is not"
    with pytest.raises(module.SourceError, match=wrong) as caught:
        ctx.load("sqlite:///house.db", [{"c": Decimal("12345678901234567.89")}], "t")
    assert "make the column text, from the first load on" in caught.value.hint
    assert "deletes the rows that are there" in caught.value.hint
    dropped = re.search(r"ctx\.sql\('(.*?)', connection=", caught.value.hint)
    assert dropped
    ctx.sql(dropped[1], connection="sqlite:///house.db")
    for text in ("1.10", "12345678901234567.89"):
        ctx.load("sqlite:///house.db", [{"c": text}], "t")
    assert [row["c"] for row in ctx.extract("sqlite:///house.db", "t")] == ["1.10", "12345678901234567.89"]


#: The first value of a column, one that it refuses, and what the error says.
LIMITS: list[tuple[Any, Any, str, str]] = [
    (7, 2**70, "integers of 64 bits, which", "a step can convert it"),
    (WHEN, ZONED, "datetimes without a zone, which", "a step can convert it"),
    (12, "12.7", "integers, which '12.7' is not", "types=True where CSV is extracted"),
    (10115, "01067", "integers, which '01067' is not", "a step can convert it"),
]


@pytest.mark.parametrize(("first", "second", "wrong", "hint"), LIMITS)
def test_a_refusal_says_what_a_column_asks_of_its_own_kind(
    first: Any, second: Any, wrong: str, hint: str, house: str, ctx: Context
) -> None:
    if second in (2**70, ZONED) and house.startswith("sqlite") is (second == ZONED):
        pytest.skip("SQLite keeps the text of times, others widen integers")
    ctx.load(house, [{"c": first}], "t")
    with pytest.raises(module.SourceError, match=wrong) as caught:
        ctx.load(house, [{"c": second}], "t")
    assert caught.value.hint.startswith(hint)


def test_nan_in_a_column_of_decimals_is_a_missing_value(house: str, ctx: Context) -> None:
    ctx.load(house, [{"c": Decimal("NaN")}, {"c": Decimal("9.50")}], "t")
    ctx.load(house, [{"c": Decimal("NaN")}], "t")
    assert ctx.sql("SELECT count(*) AS n, count(c) AS c FROM t", connection=house) == [{"n": 3, "c": 1}]


def test_replace_declares_columns_anew(house: str, ctx: Context) -> None:
    ctx.load(house, [{"zip": 10115, "n": 1}], "t")
    ctx.load(house, [{"zip": "01067", "n": 2}], "t", mode="replace")
    ctx.load(house, [{"zip": "00001", "n": 3}], "t")
    assert [row["zip"] for row in ctx.extract(house, "SELECT zip FROM t ORDER BY n")] == ["01067", "00001"]


def test_replace_declares_the_only_column_anew(house: str, ctx: Context) -> None:
    ctx.load(house, [{"zip": 1067}], "t")
    ctx.load(house, [{"zip": "01067"}], "t", mode="replace")
    assert ctx.extract(house, "t") == [{"zip": "01067"}]


@pytest.mark.parametrize("more", [{}, {"n": 1}])
def test_a_key_of_another_kind_is_refused_by_name_or_declared_anew(
    more: dict[str, int], house: str, ctx: Context
) -> None:
    ctx.load(house, [{"zip": 1067} | more], "t", mode="upsert", key="zip")
    rows = [{"zip": "01067"} | more]
    if house.startswith("postgresql"):
        ctx.load(house, rows, "t", mode="replace", key="zip")
    else:
        with pytest.raises(
            module.SourceError, match=r"row 1: column 'zip' holds integers.*, which '01067' is not"
        ) as it:
            ctx.load(house, rows, "t", mode="replace", key="zip")
        assert 'DROP TABLE "t"' in it.value.hint
        assert ctx.extract(house, "SELECT zip FROM t") == [{"zip": 1067}]
        ctx.sql('DROP TABLE "t"', connection=house)
        ctx.load(house, rows, "t", mode="replace", key="zip")
    assert ctx.extract(house, "SELECT zip FROM t") == [{"zip": "01067"}]


def test_two_keys_do_not_become_one(house: str, ctx: Context) -> None:
    ctx.load(house, [{"zip": 1067, "n": 1}], "t", mode="upsert", key="zip")
    with pytest.raises(module.SourceError, match="column 'zip' holds integers, which '01067' is not"):
        ctx.load(house, [{"zip": "01067", "n": 2}], "t", mode="upsert", key="zip")
    assert ctx.extract(house, "t") == [{"zip": 1067, "n": 1}]


def test_a_stream_may_widen_the_table_that_it_makes(house: str, ctx: Context) -> None:
    ctx.load(house, iter([[{"n": 5}, {"n": 4}], [{"n": 3.7}]]), "t", mode="replace")
    assert [row["n"] for row in ctx.extract(house, "SELECT n FROM t ORDER BY n DESC")] == [5, 4, 3.7]
    assert ctx.records("done")[-2]["columns"] == {"n": "integer|real"}


def test_replace_declares_a_column_anew_that_is_empty_in_the_first_batch(house: str, ctx: Context) -> None:
    ctx.load(house, [{"zip": 1067, "n": 1}], "t")
    ctx.load(house, iter([[{"zip": None, "n": 1}], [{"zip": "01067", "n": 2}]]), "t", mode="replace")
    assert [row["zip"] for row in ctx.extract(house, "SELECT zip FROM t ORDER BY n")] == [None, "01067"]


def test_a_stream_that_makes_a_table_is_told_the_way_that_works(house: str, ctx: Context) -> None:
    batches = [[{"zip": 10115}], [{"zip": "01067"}]]
    with pytest.raises(module.SourceError) as refused:
        ctx.load(house, iter(batches), "t")
    assert "use no stream" in str(refused.value.hint)
    ctx.load(house, [row for batch in batches for row in batch], "t")
    with pytest.raises(module.SourceError) as refused:
        ctx.load(house, [{"zip": b"x"}], "t")
    assert "DROP TABLE" in str(refused.value.hint)


def test_rows_of_several_shapes_need_a_statement_for_each_shape(
    house: str, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []
    insert = module.Loading.insert
    monkeypatch.setattr(module.Loading, "insert", lambda self, *given: (done.append(given), insert(self, *given))[1])
    rows = [{"id": number, **({"x": number} if number % 2 else {})} for number in range(2 * module.SHAPES_MAX)]
    for mode in ("upsert", "append"):
        ctx.load(house, [{"id": -1, "x": 0}], "t", mode="upsert", key="id")
        done.clear()
        ctx.load(house, rows, "t", mode=mode, key="id" if mode == "upsert" else ())
        assert len(done) == 2
        assert ctx.extract(house, "SELECT id, x FROM t WHERE id >= 0 ORDER BY id") == [
            {"x": None, **row} for row in rows
        ]
        ctx.sql("DELETE FROM t", connection=house)
    ctx.load(house, [{"id": 1, "x": 1}, {"id": 1}, {"id": 1, "x": 3}, {"id": 1}], "t", mode="upsert", key="id")
    assert ctx.extract(house, "t") == [{"id": 1, "x": 3}]  # in their order


@pytest.mark.parametrize("key", [(), "id"])
def test_the_first_value_decides_the_kind_of_a_column(key: Any, house: str, ctx: Context) -> None:
    mode = "upsert" if key else "append"
    ctx.load(house, module.Rows((), ["id", "amount"]), "t", mode=mode, key=key)  # a header alone
    ctx.load(house, [{"id": 1, "amount": None}], "t", mode=mode, key=key)
    assert ctx.extract(house, "t") == [{"id": 1, "amount": None}]
    ctx.load(house, [{"id": 2, "amount": 5}, {"id": 3, "amount": 7}], "t", mode=mode, key=key)
    assert ctx.sql("SELECT sum(amount) AS s FROM t WHERE id > 1", connection=house) == [{"s": 12}]


def test_a_column_that_another_has_filled_has_its_kind(house: str, ctx: Context) -> None:
    ctx.load(house, [{"id": 1, "c": None}], "t")
    ctx.sql("UPDATE t SET c = '007'", connection=house)
    if house.startswith("sqlite"):
        ctx.load(house, [{"id": 2, "c": 5}], "t")
    else:
        with pytest.raises(module.SourceError, match="column 'c'"):
            ctx.load(house, [{"id": 2, "c": 5}], "t")
    assert ctx.extract(house, "SELECT c FROM t WHERE id = 1") == [{"c": "007"}]


def test_types_that_a_user_declared_are_not_changed(house: str, ctx: Context) -> None:
    ctx.sql("CREATE TABLE t (id INTEGER, price NUMERIC(6, 2), code VARCHAR(9))", connection=house)
    rows = [{"id": "1", "price": "12.50", "code": 7}, {"id": "2", "price": Decimal("3"), "code": "007"}]
    ctx.load(house, rows, "t")
    found = ctx.extract(house, "SELECT * FROM t ORDER BY id")
    assert [(row["id"], float(row["price"]), row["code"]) for row in found] == [(1, 12.5, "7"), (2, 3.0, "007")]
    if not house.startswith("sqlite"):
        for row in ({"id": 1.5}, {"price": Decimal("1.005")}, {"price": Decimal("10000")}):
            with pytest.raises(module.SourceError, match=r"row 1: column '(id|price)' holds"):
                ctx.load(house, [row], "t")


MICROS = datetime.datetime(2026, 1, 2, 3, 4, 5, 600_000)  # noqa: DTZ001
#: Of a table that a user has made: database, declared type, value, and whether it comes back.
BY_HAND: list[tuple[str, str, Any, bool]] = [
    *(("sqlite", name, "007", False) for name in ("DATE", "DATETIME", "UUID", "JSON", "POINT", "STRING", "ANY")),
    *(("sqlite", "DATE", it, True) for it in (DAY, "2026-01-02", "abc", 7, 2.5)),
    *(("sqlite", name, Decimal("1.25"), True) for name in ("NUM", "FIXED(10,2)", "NUMBER")),
    ("sqlite", "INTERVAL", "abc", True), ("sqlite", "INTERVAL", DAY, True), ("sqlite", "INTERVAL", "007", False),
    ("sqlite", "FLOATING POINT", "1e5", False), ("sqlite", "BLOB", "007", True), ("sqlite", "", "007", True),
    ("postgresql", "REAL", 0.123456789, False), ("postgresql", "REAL", 16_777_217, False), ("postgresql", "REAL", 0.1, True),
    ("duckdb", "FLOAT", 0.1, False), ("duckdb", "FLOAT", 0.5, True),
    *((name, "TIMESTAMP(0)", MICROS, False) for name in ("postgresql", "duckdb")),
    ("postgresql", "TIMESTAMP(0)", WHEN, True), ("postgresql", "TIMESTAMP(3)", MICROS, True),
    ("duckdb", "TIMESTAMP_S", MICROS, False), ("duckdb", "TIMESTAMP_MS", MICROS, True),
    ("postgresql", "TIME(0)", datetime.time(1, 2, 3, 4), False),
    ("postgresql", "CHAR(5)", "abc", False), ("postgresql", "CHAR(5)", "abcde", True), ("postgresql", "CHAR(5)", "abcdef", False),
    ("postgresql", "VARCHAR(3)", "abc ", False), ("postgresql", "VARCHAR(3)", "abcd", False), ("postgresql", "VARCHAR(3)", "abc", True),
    ("postgresql", "SMALLINT", 70_000, False), ("duckdb", "TINYINT", 200, False), ("postgresql", "INTEGER", -(1 << 31), True),
    ("postgresql", "MONEY", Decimal("12.345"), False), ("postgresql", "small", "007", False), ("postgresql", "small", 7, True),
    ("postgresql", "exact", Decimal("1.999"), False), ("postgresql", "mood", "sad", True), ("postgresql", "JSONB", {"a": [1]}, True),
    ("postgresql", "UUID", "0f0e0d0c-0b0a-0908-0706-050403020100", True), ("postgresql", "INTERVAL", datetime.timedelta(1), True),
    ("postgresql", "INTERVAL", datetime.timedelta(-3, 4, 5), True), ("duckdb", "INTERVAL", datetime.timedelta(2, 3, 4), True),
    ("postgresql", "MONEY", "12.345", False), ("postgresql", "MACADDR", "08-00-2B-01-02", False),
    ("duckdb", "INTEGER[]", [1.7], False), ("duckdb", "INTEGER[]", ["007"], False), ("duckdb", "INTEGER[]", [1, 2], True),
    ("duckdb", "STRUCT(a INTEGER)", {"a": 1.7}, False), ("duckdb", "STRUCT(a INTEGER)", {"a": 1, "b": 2}, False),
    ("duckdb", "STRUCT(a INTEGER)", {"a": 1}, True), ("duckdb", "ENUM('a', 'b')", "a", True),
    ("duckdb", "DECIMAL(38, 9)", Decimal("12345678901234567890.1234567897"), True),  # which Tau may widen
    ("duckdb", "DECIMAL(38, 9)", Decimal("1234567890123456789012.12345678901234567890"), False),
    ("postgresql", "NUMERIC(37, 9)", Decimal("12345678901234567890.1234567897"), False),
]  # fmt: skip


@pytest.mark.parametrize(("database", "declared", "value", "is_kept"), BY_HAND)
def test_a_type_of_the_users_own_keeps_a_value_or_refuses_it(
    database: str, declared: str, value: Any, is_kept: bool, ctx: Context, request: pytest.FixtureRequest
) -> None:
    house = empty_house(database, request, ctx)
    if database == "postgresql":
        ctx.sql("CREATE DOMAIN small AS INTEGER", connection=house)
        ctx.sql("CREATE DOMAIN exact AS NUMERIC(10, 2)", connection=house)
        ctx.sql("CREATE TYPE mood AS ENUM ('sad')", connection=house)
    ctx.sql(f"CREATE TABLE t (id INTEGER, c {declared})", connection=house)
    rows = [{"id": 1, "c": None}, {"id": 2, "c": value}]
    if is_kept:
        ctx.load(house, rows, "t")
        back = ctx.extract(house, "SELECT c FROM t WHERE id = 2")[0]["c"]
        assert same(value, back) or module.comes_back(value, back) or value == str(back), back
    else:
        with pytest.raises(module.SourceError, match=r"row 2: column 'c' (holds|is) .*, which .* is not") as caught:
            ctx.load(house, rows, "t")
        assert caught.value.hint
        assert ctx.extract(house, "t") == []


OWN = [
    ("postgresql", "MACADDR", "08-00-2B-01-02-03"), ("postgresql", "MONEY", "1.5"), ("postgresql", "TSVECTOR", "a fat cat"),
    ("postgresql", "INET", "10.0.0.1"), ("postgresql", "INTEGER[]", "{1,2}"), ("postgresql", "INTERVAL", "1 day"),
    ("postgresql", "INT4RANGE", "[1,5)"), ("postgresql", "MONEY", Decimal("12.34")), ("postgresql", "NUMERIC(3,-2)", 1200),
    ("postgresql", "REAL", 0.10000000149011612), ("postgresql", "label", "x"), ("sqlite", "MONEY", Decimal("12.34")),
    ("duckdb", "INTERVAL", "1 day"), ("duckdb", "FLOAT", 0.10000000149011612),
]  # fmt: skip


@pytest.mark.parametrize(("database", "declared", "value"), OWN)
@pytest.mark.parametrize("mode", ["append", "replace"])
def test_what_a_type_of_the_users_own_takes_is_not_refused_and_its_type_stays(
    database: str, declared: str, value: Any, mode: str, ctx: Context, request: pytest.FixtureRequest
) -> None:
    house = empty_house(database, request, ctx)
    if database == "postgresql":
        ctx.sql("CREATE DOMAIN label AS TEXT NOT NULL DEFAULT 'd'", connection=house)
    ctx.sql(f"CREATE TABLE t (id INTEGER, c {declared})", connection=house)
    ctx.load(house, [{"id": 1, "c": value}, {"id": 2}], "t", mode=mode)
    assert len(ctx.extract(house, "t")) == 2
    if database == "postgresql":
        types = "SELECT format_type(atttypid, atttypmod) AS t FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'c'"
        assert ctx.sql(types, connection=house)[0]["t"].upper().replace(", ", ",") == declared.upper()


def test_replace_widens_only_types_that_tau_declares(ctx: Context, request: pytest.FixtureRequest) -> None:
    postgres = empty_house("postgresql", request, ctx)
    for declared, value in (("VARCHAR(3)", "abcd"), ("SMALLINT", 70_000), ("CHAR(5)", "abc"), ("REAL", 0.123456789)):
        ctx.sql("DROP TABLE IF EXISTS t", connection=postgres)
        ctx.sql(f"CREATE TABLE t (c {declared})", connection=postgres)
        with pytest.raises(module.SourceError, match="row 1: column 'c' holds"):
            ctx.load(postgres, [{"c": value}], "t", mode="replace")


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e300, Decimal("0.123456789012"), ZONED, WHEN, True, 7])
def test_the_kind_of_a_column_without_values_is_that_of_the_first(value: Any, house: str, ctx: Context) -> None:
    if house.startswith("duckdb") and value is ZONED and not importable("pytz"):
        pytest.skip("DuckDB reads times with a zone with pytz")
    ctx.load(house, [{"id": 1, "c": None}], "t")
    ctx.load(house, [{"id": 2, "c": value}], "t")
    back = ctx.extract(house, "SELECT c FROM t WHERE id = 2")[0]["c"]
    assert same(value, back)
    assert type(back) is type(value) or house.startswith("sqlite")


def test_a_database_in_memory_stays_there(ctx: Context) -> None:
    pytest.importorskip("duckdb_engine")
    house = "duckdb:///:memory:"
    ctx.load(house, [{"a": 1}], "t")
    ctx.load(house, [{"a": 2.5, "b": "x"}], "t")
    ctx.sql("CREATE TABLE other (c FLOAT)", connection=house)
    ctx.load(house, [{"c": 0.5}], "other")
    ctx.sql("DROP TABLE other", connection=house)
    assert ctx.extract(house, "SELECT * FROM t ORDER BY a") == [{"a": 1, "b": None}, {"a": 2.5, "b": "x"}]


def test_a_table_of_the_session_is_still_meant_after_a_check(postgres: str, ctx: Context) -> None:
    ctx.sql("DROP TABLE IF EXISTS odd", connection=postgres)
    ctx.sql("CREATE TABLE odd (c MONEY)", connection=postgres)
    ctx.load(postgres, [{"c": Decimal(7)}], "odd")
    ctx.sql("CREATE TEMP TABLE passing (n INTEGER)", connection=postgres)
    ctx.load(postgres, [{"n": 7}], "passing")
    assert ctx.extract(postgres, "passing") == [{"n": 7}]


def test_a_strict_table_of_sqlite_keeps_what_any_takes(ctx: Context) -> None:
    ctx.sql("CREATE TABLE t (c ANY) STRICT", connection="sqlite:///house.db")
    ctx.load("sqlite:///house.db", [{"c": "007"}, {"c": 7}], "t")
    assert ctx.extract("sqlite:///house.db", "t") == [{"c": "007"}, {"c": 7}]


def test_two_keys_of_a_load_do_not_become_one(house: str, ctx: Context) -> None:
    with pytest.raises(module.SourceError, match="two keys become one"):
        ctx.load(house, [{"k": 1, "n": 1}, {"k": "1", "n": 2}], "t", mode="upsert", key="k")
    with pytest.raises(module.SourceError, match="a row has no 'k', part of the key"):
        ctx.load(house, [{"k": float("nan"), "n": 1}], "t", mode="upsert", key="k")


def test_bytes_of_any_class_are_bytes(house: str, ctx: Context) -> None:
    ctx.load(house, [{"c": b"ab"}, {"c": bytearray(b"cd")}, {"c": memoryview(b"ef")}], "t")
    assert [bytes(row["c"]) for row in ctx.extract(house, "t")] == [b"ab", b"cd", b"ef"]
    with pytest.raises(module.SourceError, match=r"row 1, column 'c': cell\[0\] is bytes"):
        ctx.load(house, [{"c": [b"xyz"]}], "other")


def test_rows_that_a_table_leaves_out_are_told(ctx: Context, request: pytest.FixtureRequest) -> None:
    for house in ("sqlite:///house.db", request.getfixturevalue("postgres")):
        ctx.sql("DROP TABLE IF EXISTS t", connection=house)
        ctx.sql("CREATE TABLE t (n BIGINT)", connection=house)
        if house.startswith("sqlite"):
            trigger = "CREATE TRIGGER odd BEFORE INSERT ON t WHEN new.n = 2 BEGIN SELECT RAISE(IGNORE); END"
            ctx.sql(trigger, connection=house)
        else:
            ctx.sql("CREATE RULE odd AS ON INSERT TO t WHERE new.n = 2 DO INSTEAD NOTHING", connection=house)
        ctx.load(house, [{"n": 1}, {"n": 2}, {"n": 3}], "t")
        assert [row["n"] for row in ctx.extract(house, "t")] == [1, 3]
    said = [record["message"] for record in ctx.records("log") if record["level"] == "warning"]
    what = "t says that it took 1 rows fewer than it was given: a trigger, a rule or ON CONFLICT of its own"
    assert said == [what] * 2


def test_rows_that_the_triggers_of_a_view_take_are_not_missed(ctx: Context) -> None:
    house = "sqlite:///house.db"
    for line in (
        "CREATE TABLE t (n INTEGER)",
        "CREATE VIEW v AS SELECT n FROM t",
        "CREATE TRIGGER into_t INSTEAD OF INSERT ON v BEGIN INSERT INTO t VALUES (new.n); END",
    ):
        ctx.sql(line, connection=house)
    ctx.load(house, [{"n": 1}, {"n": 2}], "v")
    assert [row["n"] for row in ctx.extract(house, "v")] == [1, 2]
    assert [record for record in ctx.records("log") if record["level"] == "warning"] == []


def test_what_is_no_number_or_time_of_a_frame_is_loaded_as_before(ctx: Context) -> None:
    pytest.importorskip("duckdb_engine")
    pandas, house = pytest.importorskip("pandas"), "duckdb:///house.db"
    ctx.sql("CREATE TABLE t (a REAL, b DOUBLE, c JSON)", connection=house)
    nan = float("nan")
    ctx.load(house, [{"a": nan, "b": nan, "c": pandas.NaT}, {"a": 0.5, "b": 0.1, "c": WHEN}], "t")
    first = ctx.extract(house, "t")[0]
    assert (str(first["a"]), str(first["b"]), first["c"]) == ("nan", "nan", None)


def test_rows_without_columns_are_refused(house: str, ctx: Context) -> None:
    ctx.load(house, [{"c": 1}], "t")
    for target in (house, "rows.csv", "rows.parquet"):
        if target != "rows.parquet" or importable("pyarrow"):
            with pytest.raises(module.SourceError, match="the rows have no columns"):
                ctx.load(target, [{}, {}], "t" if target == house else None)


def test_a_table_that_is_made_anew_has_its_new_types_at_once(house: str, ctx: Context) -> None:
    for cell in [7, "x"] * 8:
        ctx.sql("DROP TABLE IF EXISTS t", connection=house)
        ctx.load(house, [{"c": cell}], "t")
        assert ctx.extract(house, "t") == [{"c": cell}]


#: Declared type → the kind of its values, and whether they have a zone.
TYPES: dict[str, tuple[str | None, bool | None]] = {
    "BIGINT": ("integer", None), "UInt64": ("integer", None), "SERIAL": ("integer", None), "INTERVAL": (None, None),
    "POINT": (None, None), "INTEGER[]": (None, None), "Array(Int64)": (None, None), "list<item: int64>": (None, None),
    "STRUCT(a INTEGER)": (None, None), "DOUBLE PRECISION": ("real", None), "float": ("real", None), "bool": ("boolean", None),
    "DATE": ("date", None), "date32[day]": ("date", None), "DATETIME": ("datetime", False), "TIMESTAMP": ("datetime", False),
    "TIMESTAMP WITHOUT TIME ZONE": ("datetime", False), "TIMESTAMP WITH TIME ZONE": ("datetime", True),
    "timestamp[us, tz=UTC]": ("datetime", True), "TIME": ("time", False), "NUMERIC(10, 2)": ("decimal", None),
    "decimal128(3, 2)": ("decimal", None), "VARCHAR(9)": ("text", None), "large_string": ("text", None), "BYTEA": ("bytes", None),
    "UUID": (None, None), "JSON": (None, None), "": (None, None),
}  # fmt: skip


@pytest.mark.parametrize("declared", TYPES)
def test_a_declared_type_tells_its_kind(declared: str) -> None:
    column = module.Column("c", declared)
    assert (column.kind and column.kind.name, column.zone) == TYPES[declared]


def test_large_integers_where_a_column_holds_them(ctx: Context) -> None:
    pytest.importorskip("duckdb_engine")
    ctx.sql("CREATE TABLE t (n HUGEINT)", connection="duckdb:///house.db")
    ctx.load("duckdb:///house.db", [{"n": 2**70}], "t")
    assert ctx.extract("duckdb:///house.db", "t") == [{"n": 2**70}]


def test_names_are_compared_as_the_database_does(house: str, ctx: Context) -> None:
    ctx.load(house, [{"ID": 1, "Name": "ada"}], "Customers")
    if house.startswith("postgresql"):
        ctx.load(house, [{"ID": 2, "id": 3}], "Customers")
    else:
        ctx.load(house, [{"id": 2, "name": "bob"}], "customers")
        with pytest.raises(module.SourceError, match="two columns are named 'id'"):
            ctx.load(house, [{"id": 3, "ID": 4}], "customers")
    assert ctx.sql('SELECT count(*) AS n FROM "Customers"', connection=house) == [{"n": 2}]
    ctx.load(house, [{"É": 1, "é": 2}], "accents")
    ctx.load(house, [{"é": 3}], "accents")
    assert ctx.sql('SELECT sum("é") AS s FROM accents', connection=house) == [{"s": 5}]


@pytest.mark.parametrize("name", ["Call log", "Table 1", "Values 2024", "from john", "select-all", "with"])
def test_a_name_that_begins_like_sql_is_a_name(name: str, house: str, ctx: Context) -> None:
    for _ in range(2):
        ctx.load(house, [{"n": 1}], name)
    assert ctx.extract(house, name) == [{"n": 1}] * 2
    assert ctx.extract(house, f'SELECT*FROM "{name}"') == [{"n": 1}] * 2


def test_postgresql_refuses_the_names_that_it_would_cut(postgres: str, ctx: Context) -> None:
    for table, column in (("t" * 64, "n"), ("t", "ü" * 32)):
        with pytest.raises(module.SourceError, match="PostgreSQL cuts names after 63 bytes") as caught:
            ctx.load(postgres, [{column: 1}], table)
        assert caught.value.hint


@pytest.mark.parametrize("text", ["half an emoji \ud83d", "a NUL \0"])
def test_a_text_that_a_database_refuses_is_named(text: str, house: str, ctx: Context) -> None:
    rows = [{"id": 1, "c": "fine"}, {"id": 2, "c": text}]
    if "NUL" in text and not house.startswith("postgresql"):
        ctx.load(house, rows, "t")
        assert ctx.extract(house, "SELECT c FROM t WHERE id = 2") == [{"c": text}]
        return
    with pytest.raises(module.SourceError, match="\"t\": row 2, column 'c'") as caught:
        ctx.load(house, rows, "t")
    assert "replace" in caught.value.hint


NUMBERS = st.sampled_from([0, 1, -1, 10115, 2**53 + 1, -(2**63), 2**63, 2**70]) | st.integers()
LIKE_OTHERS = st.sampled_from(
    [value for value in VALUES if isinstance(value, str)] + ["NULL", "nan", "\ud83d", "a\0b", "é\n"]
)
#: Values of one column in one batch are of one of these kinds, or of two.
KINDS = st.sampled_from(
    [
        NUMBERS,
        st.floats(),
        LIKE_OTHERS | st.text(max_size=5),
        st.booleans(),
        st.dates(),
        st.datetimes(min_value=datetime.datetime(1900, 1, 1)),  # noqa: DTZ001
        st.datetimes(min_value=datetime.datetime(1900, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
        st.times(),
        st.decimals(min_value=-(10**20), max_value=10**20) | st.sampled_from([Decimal("NaN"), Decimal("1.10")]),
        st.binary(max_size=3),
        st.none(),
        st.sampled_from(VALUES),
    ]
)
NAMES = st.sampled_from(
    ["a", "A", "é", "É", "with space", 'quo"te', "x" * 70, "", "select", "a.b", "%s", ":x"]
) | st.text(max_size=5)


@st.composite
def loads(draw: Any) -> list[list[dict[str, Any]]]:
    """Two batches of rows with the same columns, whose kinds differ."""
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    batches = []
    for start in (0, 10):
        cells = {name: st.none() | draw(KINDS) for name in names}
        rows = draw(st.lists(st.fixed_dictionaries(cells), min_size=1, max_size=3))
        batches.append([{"row number": start + number} | row for number, row in enumerate(rows)])
    return batches


def same_in_a_file(name: str, given: Any, back: Any) -> bool:
    """Whether a value came back from a file, which may have only texts."""
    if name == "csv":
        return back == ("" if given is None else str(module.csv_cell(given)))
    if (isinstance(given, datetime.timedelta) and back == given) or (given != given and back == "NaN"):
        return True
    return same(given, back) or (isinstance(given, (dict, list)) and given == back)


#: Target → how many of a thousand examples it gets; a database takes longest.
EXAMPLES = {"sqlite": 250, "duckdb": 100, "postgresql": 100, "csv": 200, "jsonl": 200, "parquet": 150}


@pytest.mark.parametrize("target", EXAMPLES)
def test_any_rows_come_back_or_are_refused_by_name(target: str, ctx: Context, request: pytest.FixtureRequest) -> None:
    @given(batches=loads())
    @settings(
        max_examples=EXAMPLES[target] if THOROUGH else 10,
        phases=[*Phase] if THOROUGH else [Phase.explicit, Phase.generate],  # to shrink takes long
        suppress_health_check=[*HealthCheck],
    )
    def some(batches: list[list[dict[str, Any]]]) -> None:
        come_back(target, batches, ctx, request)

    some()


def come_back(target: str, batches: list[list[dict[str, Any]]], ctx: Context, request: pytest.FixtureRequest) -> None:
    """Loads batches, each of which may be refused; what was loaded must come back."""
    is_file = target in ("csv", "jsonl", "parquet")
    if is_file:
        place, table = f"rows.{target}", None
        pytest.importorskip("pyarrow")
        Path(place).unlink(missing_ok=True)
    else:
        place, table = request.getfixturevalue("postgres") if target == "postgresql" else f"{target}:///any.db", "t"
        ctx.sql("DROP TABLE IF EXISTS t", connection=place)
        for engine in ctx._around.engines.values():
            engine.dispose()  # connections remember the result types of queries
    loaded: list[dict[str, Any]] = []
    refused: list[module.SourceError] = []
    for batch in batches:
        try:
            ctx.load(place, batch, table)
            loaded += batch
        except module.SourceError as problem:
            refused.append(problem)
    assert all(problem.hint for problem in refused)
    if not loaded or (target == "duckdb" and not importable("pytz") and "tzinfo" in repr(loaded)):
        return
    found = sorted(ctx.extract(place, table), key=lambda row: int(row["row number"]))
    assert len(found) == len(loaded)
    for given_row, row in zip(loaded, found, strict=True):
        row = {
            key.lower() if target in ("sqlite", "duckdb") and key.isascii() else key: cell for key, cell in row.items()
        }
        for key, value in given_row.items():
            back = row[key.lower() if target in ("sqlite", "duckdb") and key.isascii() else key]
            assert same_in_a_file(target, value, back) if is_file else same(value, back), (key, value, back)
