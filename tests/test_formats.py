"""Bytes and rows: what is written can be read again, and what is malformed is told with its line."""

from __future__ import annotations

import bz2
import datetime
import enum
import gzip
import importlib.util
import io
import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import Context
from hypothesis import given, settings
from hypothesis import strategies as st

import tau as module

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
CELLS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
#: Column names that a careless writer trips over.
ODD = ["a", "with space", 'quo"te', "select", "comma,", "line\nend", "ünï", "", "a.b", "%s", ":x", "back\\slash"]
QUICK = settings(max_examples=60)
FORMATS = ["csv", "tsv", "json", "jsonl"]


def write(name: str, *batches: list[dict[str, Any]], **options: Any) -> bytes:
    """The bytes of a format."""
    file = io.BytesIO()
    module.FILE_FORMATS[name].write(file, [module.as_rows(batch) for batch in batches], **options)
    return file.getvalue()


def read(name: str, data: bytes, batch_rows: int | None = None, **options: Any) -> list[list[dict[str, Any]]]:
    """The batches in bytes."""
    if name == "tsv":
        options = {"quote": '"'} | options  # a cell may have several lines
    found = module.FILE_FORMATS[name].read(io.BytesIO(data), batch_rows, **options)
    return [list(batch) for batch in found]


def as_text(value: Any) -> str:
    """A cell as CSV has it."""
    return (
        {None: "", True: "true", False: "false"}.get(value, str(value))
        if not isinstance(value, int | float) or isinstance(value, bool)
        else str(value)
    )


@pytest.mark.parametrize("name", ["csv", "tsv"])
@given(rows=st.lists(st.fixed_dictionaries(dict.fromkeys(("a", "b", "c d"), CELLS)), min_size=1))
@QUICK
def test_csv_gives_back_the_text_of_every_cell(name: str, rows: list[dict[str, Any]]) -> None:
    again = [row for batch in read(name, write(name, rows)) for row in batch]
    assert again == [{column: as_text(value) for column, value in row.items()} for row in rows]


@pytest.mark.parametrize("name", ["json", "jsonl"])
@given(rows=st.lists(st.dictionaries(TEXT, CELLS | st.lists(CELLS) | st.dictionaries(TEXT, CELLS))))
@QUICK
def test_json_gives_back_the_rows(name: str, rows: list[dict[str, Any]]) -> None:
    assert [row for batch in read(name, write(name, rows)) for row in batch] == rows


@given(rows=st.lists(st.fixed_dictionaries({"a": TEXT}), min_size=1), size=st.integers(1, 7))
@QUICK
def test_batches_hold_the_same_rows(rows: list[dict[str, Any]], size: int) -> None:
    for name in FORMATS:
        batches = read(name, write(name, rows), size)
        assert [row for batch in batches for row in batch] == rows
        assert all(0 < len(batch) <= size for batch in batches)


@pytest.mark.parametrize("name", FORMATS)
def test_odd_column_names_and_many_of_them(name: str) -> None:
    rows = [{column: f"{column}!" for column in ODD} | {f"c{i}": "x" for i in range(150)}]
    assert read(name, write(name, rows)) == [rows]


@pytest.mark.parametrize("name", FORMATS)
def test_dates_decimals_and_lists_have_a_text(name: str) -> None:
    row = {"d": datetime.date(2026, 1, 2), "n": Decimal("1.50"), "l": [1, {"a": None}]}
    (again,) = read(name, write(name, [row]))
    expected = {"d": "2026-01-02", "n": "1.50", "l": '[1,{"a":null}]'}
    assert again == [expected if name in ("csv", "tsv") else expected | {"l": [1, {"a": None}]}]


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_are_refused_and_not_counted(name: str) -> None:
    with pytest.raises(module.SourceError, match="bytes"):
        write(name, [{"a": b"abc"}])


def test_nan_is_a_missing_value_in_json_and_infinity_is_refused() -> None:
    assert write("jsonl", [{"a": float("nan"), "b": 1}]) == b'{"a":null,"b":1}\n'
    with pytest.raises(module.SourceError, match="no JSON form"):
        write("json", [{"a": float("inf")}])


def test_no_rows_make_a_file_that_can_be_read() -> None:
    assert (write("csv", []), write("json", []), write("jsonl", [])) == (b"", b"[]\n", b"")
    for name in ("json", "jsonl"):
        assert [row for batch in read(name, write(name, [])) for row in batch] == []


def test_a_header_without_rows_keeps_its_columns() -> None:
    for batch_rows in (None, 10):
        (batch,) = module.FILE_FORMATS["csv"].read(io.BytesIO(b"a,b\n"), batch_rows)
        assert (list(batch), batch.columns) == ([], ["a", "b"])


MALFORMED = {
    "ragged": ("csv", b"a,b\n1,2\n3\n", {}, "line 3 has 1 cells, the header 2"),
    "ragged after cells of two lines": ("csv", b'a,b\n"1\n1",2\n\n3\n', {}, "line 5 has 1 cells"),
    "a duplicate header": ("csv", b"a,b,a\n1,2,3\n", {}, "two columns are named 'a', number 1 and 3"),
    "a quote that is not closed": ("csv", b'a,b\n1,"2\n', {}, "line 2: a quote opens and never closes"),
    "text after a quote": ("csv", b'a,b\n1,"2"x\n', {}, "line 2: ',' expected after"),
    "a quote that is not closed, in a long file": (
        "csv",
        b'a,b\n1,"2\n' + b"3,4\n" * 99,
        {},
        "line 2: a quote opens and never closes",
    ),
    "a cell of several lines in TSV": (
        "tsv",
        b'a\tb\n\n1\t"x\n2\ty\n3\tz"\n',
        {"quote": None},
        r"line 3 \(to 5\): a quoted cell of several lines",
    ),
    "an empty file": ("csv", b"", {}, "there is no header"),
    "blank lines alone": ("csv", b"\xef\xbb\xbf\n\r\n\n", {}, "there is no header"),
    "too many lines skipped": ("csv", b"a\n1\n", {"skip_lines": 5}, "there is no header"),
    "two columns without a name": ("csv", b"id,,\n1,2,3\n", {}, "two columns are named ''"),
    "a decimal comma that is none": (
        "csv",
        b"a\n1.5\n",
        {"types": {"a": float}, "decimal": ",", "delimiter": ";"},
        "'1.5' in column 'a' is not real",
    ),
    "thousands that are none": (
        "csv",
        b"a;b\n1.23;x\n",
        {"types": {"a": int}, "thousands": ".", "decimal": ",", "delimiter": ";"},
        "'1.23' in column 'a' is not integer",
    ),
    "another delimiter": ("csv", b"a;b\n1;2\n", {}, "the header is one column: 'a;b'"),
    "a cell of another type": (
        "csv",
        b"a\n1\n\nx\n",
        {"types": {"a": int}},
        "line 4: 'x' in column 'a' is not integer",
    ),
    "a type for no column": ("csv", b"a\n1\n", {"types": {"b": int}}, "no column 'b'"),
    "no JSON": ("json", b"a,b\n1,2\n", {}, "not JSON"),
    "half of JSON": ("json", b'[{"a": 1}, {"a"', {}, "not JSON"),
    "JSON too deep": ("json", b"[" * 100_000, {}, "not JSON"),
    "half of JSON lines": ("jsonl", b'{"a": 1}\n{"a"', {}, "line 2 is not JSON"),
    "JSON lines without objects": ("jsonl", b'{"a": 1}\n[1]\n', {}, "line 2 is no object"),
    "records elsewhere": ("json", b'{"items": [{"a": 1}]}', {}, "object with lists in it"),
    "records nowhere": ("json", b'{"items": [{"a": 1}]}', {"records": "rows"}, "no list at records='rows'"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_malformed_is_told_with_its_line(case: str) -> None:
    name, data, options, message = MALFORMED[case]
    with pytest.raises(module.SourceError, match=message) as caught:
        read(name, data, **options)
    assert caught.value.hint


IMPOSSIBLE = {
    "no encoding": ("csv", {"encoding": "utf-9"}, "unknown encoding"),
    "types of another kind": ("csv", {"types": "all"}, "types must be True or a mapping"),
    "no type": ("csv", {"types": {"a": "itneger"}}, "is no type"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_options_are_refused(case: str) -> None:
    name, options, message = IMPOSSIBLE[case]
    with pytest.raises(module.BadRequest, match=message):
        read(name, b"a\n1\n", **options)


def test_what_can_be_asked_of_csv() -> None:
    assert read("csv", b"a,b\n1\n1,2,3\n", ragged=True) == [[{"a": "1", "b": ""}, {"a": "1", "b": "2"}]]
    assert read("csv", b"1;2\n", delimiter=";", columns=["a", "b"]) == [[{"a": "1", "b": "2"}]]
    assert read("csv", b"junk\na,a\n1,2\n", columns=["x", "y"], skip_lines=2) == [[{"x": "1", "y": "2"}]]
    assert read("csv", "a\né\n".encode("cp1252"), encoding="cp1252") == [[{"a": "é"}]]
    assert read("csv", "\ufeffa\n1\n".encode()) == [[{"a": "1"}]]
    assert read("csv", b"a\r\n1\r\n\r\n2\r\n") == [[{"a": "1"}, {"a": "2"}]]
    assert read("csv", b"\xef\xbb\xbf\n\na\n1\n") == [[{"a": "1"}]]
    assert read("csv", b"junk\n\na\n1\n", skip_lines=1) == [[{"a": "1"}]]
    assert read("csv", b"sep=;\r\na;b\r\n1;2\r\n") == [[{"a": "1", "b": "2"}]]
    assert read("csv", b'a, b\n1, "x, y"\n', skip_spaces=True) == [[{"a": "1", "b": "x, y"}]]
    assert read("csv", b'a\n"x (\\"y\\")"\n', escape="\\") == [[{"a": 'x ("y")'}]]
    assert read("csv", b"a,b\n'x,y',\"z\"\n", quote="'") == [[{"a": "x,y", "b": '"z"'}]]
    assert read("tsv", b'a\tb\n1\t"x\n2\ty"\n', quote="") == [[{"a": "1", "b": '"x'}, {"a": "2", "b": 'y"'}]]
    assert read("csv", b"a,b\nNA,\n1,NULL\n", nulls=["NA", "NULL"], types={"a": int}) == [
        [{"a": None, "b": ""}, {"a": 1, "b": None}]
    ]
    numbers = {"decimal": ",", "thousands": ".", "delimiter": ";", "types": True}
    assert read("csv", b"a;b;c\n1.234,50;1.234;1,5x\n-0,5;7;x\n", **numbers) == [
        [{"a": 1234.5, "b": 1234, "c": "1,5x"}, {"a": -0.5, "b": 7, "c": "x"}]
    ]
    assert read("json", b'{"page": {"rows": [{"a": 1}]}}', records="page.rows") == [[{"a": 1}]]
    assert read("json", b'{"@odata.rows": [{"a": 1}]}', records="@odata.rows") == [[{"a": 1}]]


GUESSES: dict[str, tuple[list[str], list[Any]]] = {
    "integers": (["1", "-20", "0", ""], [1, -20, 0, None]),
    "codes with zeros stay text": (["007", "8"], ["007", "8"]),
    "long numbers stay text": (["12345678901234567890", "1"], ["12345678901234567890", "1"]),
    "numbers": (["1.5", "2", "-.5", "1e+3", "1.5e3", "1e-305"], [1.5, 2.0, -0.5, 1000.0, 1500.0, 1e-305]),
    "codes with an E stay text": (["32E0134", "17E4", "20"], ["32E0134", "17E4", "20"]),
    "long decimals stay text": (["0.1234567890123456", "1"], ["0.1234567890123456", "1"]),
    "too large numbers stay text": (["1e+999", "1"], ["1e+999", "1"]),
    "truths": (["true", "FALSE", ""], [True, False, None]),
    "yes and no stay text": (["yes", "no"], ["yes", "no"]),
    "days": (["2026-01-02"], [datetime.date(2026, 1, 2)]),
    "weeks stay text": (["2026-W05"], ["2026-W05"]),
    "days that are none stay text": (["2026-02-30"], ["2026-02-30"]),
    "times": (["2026-01-02 03:04:05"], [datetime.datetime(2026, 1, 2, 3, 4, 5)]),  # noqa: DTZ001
    "a mixture stays text": (["1", "x", ""], ["1", "x", None]),
    "nothing": (["", ""], [None, None]),
    "nan and inf stay text": (["nan", "inf"], ["nan", "inf"]),
}


@pytest.mark.parametrize("case", GUESSES)
def test_types_are_guessed_carefully(case: str) -> None:
    texts, expected = GUESSES[case]
    data = write("csv", [{"a": text, "b": "x"} for text in texts])
    assert [row["a"] for row in read("csv", data, types=True)[0]] == expected


def test_types_that_are_named_are_read_as_python_reads_them() -> None:
    types = {"i": int, "f": "float", "b": bool, "d": "decimal", "t": "datetime", "u": str.upper}
    data = b"i,f,b,d,t,u,x\n007, 1.50 ,yes,1.50,2026-01-02,a,1\n,,,,,,\n"
    first, second = read("csv", data, types=types)[0]
    when = datetime.datetime(2026, 1, 2)  # noqa: DTZ001
    assert first == {"i": 7, "f": 1.5, "b": True, "d": Decimal("1.50"), "t": when, "u": "A", "x": "1"}
    assert second == dict.fromkeys(types) | {"x": ""}


def test_a_function_named_like_a_kind_is_called() -> None:
    def date(text: str) -> str:
        return f"on {text}"

    assert read("csv", b"d\n2026-01-02\n", types={"d": date}) == [[{"d": "on 2026-01-02"}]]


def test_json_in_another_encoding_and_a_letter_that_it_lacks() -> None:
    rows = [{"a": "é"}]
    for name in ("json", "jsonl"):
        assert read(name, write(name, rows, encoding="latin-1"), encoding="latin-1") == [rows]
        with pytest.raises(module.SourceError, match=r"a cell cannot be written: .*: .*€") as caught:
            write(name, [{"a": "€"}], encoding="latin-1")
        assert caught.value.hint


HINTS = {
    "a delimiter too many": (b"a,b\n1,2,\n", "ragged=True cuts the empty cells at the line's end"),
    "a cell too many": (b"a,b\n1,2\n3,4,5\n", "is there a delimiter in a cell"),
    "a preamble": (b"Report,\nid,name,city\n1,ada,rome\n", "skip_lines=1, if this line is the header"),
    "a long preamble": (b"Report,\n\nid,name,city\n1,ada,rome\n", "skip_lines=2, if this line is the header"),
    "a footer": (b"a,b,c\n1,2,3\nsum\n", "ragged=True fills such lines; a step can drop a footer"),
    "spaces before quotes": (b'id, name, city\n1, "Smith, J", "Rome"\n', "skip_spaces=True"),
    "escaped quotes": (b'"id","title"\n"1","foo (\\"bar\\")"\n', "escape='\\\\', if a backslash escapes quotes"),
    "an open quote": (b'a,b\n1,"2\n', "quote='' reads quotes as text; or is the file cut off?"),
    "text after a quote": (b'a,b\n1,"2"x\n', "quote='' reads quotes as text"),
    "another delimiter": (b"id;name\n1;ada\n", "delimiter=';'"),
    "another delimiter of quoted cells": (b'"id";"name"\n"1";"ada"\n', "delimiter=';'"),
    "rows with a name before": (b"A,B\nx,1,2\ny,3,4\n", "columns=[…] with it, if the header lacks a name"),
    "comments": (b"#one\n#two\n#three\nS,X\n1,2\n", "skip_lines=3, if this line is the header"),
    "a title": (b",,\nTotal,,\nid,name,city\n1,ada,rome\n", "skip_lines=1 alone, if the header is below"),
    "two names after blank lines": (b"\n\na,a\n1,2\n", "columns=[…], skip_lines=3 renames them"),
}
UNNAMED = {
    "another delimiter": (b"1;2;3\n", "delimiter=';'"),
    "a name too few": (b"1,2,3,4\n", "columns=[…] needs 4 names"),
}
#: How files begin that are not UTF-8.  Most of these are read in cp1252 too, as nonsense.
STRANGE = {
    "UTF-16": ("a.csv", "a,b\n1,2\n".encode("utf-16"), {}, "encoding='utf-16'"),
    "JSON in UTF-16 without its mark": ("a.json", '[{"a": 1}]'.encode("utf-16-le"), {}, "encoding='utf-16'"),
    "UTF-16 of the other order": ("a.csv", b"\xfe\xff" + "a,b\n".encode("utf-16-be"), {}, "encoding='utf-16'"),
    "UTF-32": ("a.csv", "a,b\n1,2\n".encode("utf-32"), {}, "encoding='utf-32'"),
    "Japanese": ("a.csv", "num,text\n1,サウロン\n".encode("shift_jis"), {}, "encoding='shift_jis' reads '1,サウロン'"),
    "bzip2": ("a.csv", bz2.compress(b"a,b\n1,2\n"), {}, "unpack it first"),
    "bzip2 by its name": ("a.csv.bz2", bz2.compress(b"a,b\n1,2\n"), {}, "unpack it first"),
    "a tar archive": ("a.tar.gz", b"", {}, "unpack it first"),
    "an Excel file": ("a.csv", b"PK\3\4\x14\0\6\0\x8e", {}, "pandas.read_excel"),
    "an Excel file by its name": ("a.xlsx", b"", {}, "pandas.read_excel"),
    "an old Excel file": ("a.xls", b"\xd0\xcf\x11\xe0", {"format": "csv"}, "pandas.read_excel"),
}


@pytest.mark.parametrize("case", HINTS)
def test_a_hint_loses_no_cell(case: str) -> None:
    data, hint = HINTS[case]
    with pytest.raises(module.SourceError) as caught:
        read("csv", data)
    assert hint in caught.value.hint


@pytest.mark.parametrize("case", UNNAMED)
def test_a_hint_knows_that_the_caller_names_the_columns(case: str) -> None:
    data, hint = UNNAMED[case]
    with pytest.raises(module.SourceError) as caught:
        read("csv", data, columns=["a", "b", "c"])
    assert hint in caught.value.hint


@pytest.mark.parametrize("case", STRANGE)
def test_a_hint_tells_what_a_file_is(case: str, ctx: Context, tmp_path: Path) -> None:
    name, data, options, hint = STRANGE[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(module.TauError) as caught:
        ctx.extract(tmp_path / name, **options)
    assert hint in caught.value.hint


CELLS_HINTED: dict[str, tuple[str, str, str]] = {
    "a comma": ("1,5", "decimal", "decimal=','"),
    "both marks": ("1.234,50", "decimal", "thousands='.', decimal=','"),
    "thousands": ("1,234", "integer", "thousands=','"),
    "no value": ("N/A", "integer", "nulls=['N/A'], if that is no value; else name its type"),
    "a word": ("x", "integer", "name its type: types={'a': 'text'}"),
}


@pytest.mark.parametrize("case", CELLS_HINTED)
def test_a_hint_for_a_cell_names_the_option(case: str) -> None:
    cell, kind, hint = CELLS_HINTED[case]
    with pytest.raises(module.SourceError) as caught:
        read("csv", f"b;a\n1;{cell}\n".encode(), delimiter=";", types={"a": kind})
    assert caught.value.hint.startswith(hint)


def test_single_quotes_are_named_as_the_marks() -> None:
    with pytest.raises(module.SourceError) as caught:
        read("csv", b"id,name\n1,'Smith, J'\n2,'Doe, A'\n")
    assert caught.value.hint.startswith('quote="\'"')


LATER: dict[str, tuple[list[str], str]] = {
    "a word": (["1", "2", "x"], "integer"),
    "a code": (["10115", "20095", "01067"], "integer"),
    "a sign": (["1", "2", "+3"], "integer"),
    "a space": (["1", "2", " 3"], "integer"),
    "zeros before": (["1.5", "2.5", "0012.50"], "real"),
    "an exponent": (["1.5", "2.5", "32E0134"], "real"),
    "many digits": (["1.5", "2.5", "0.12345678901234567"], "real"),
    "another truth": (["true", "false", "on"], "boolean"),
    "a day without lines": (["2026-01-30", "2026-01-31", "20260131"], "date"),
    "a day that is none": (["2026-01-30", "2026-01-31", "2026-02-30"], "date"),
    "a day alone": (["2026-01-30 10:00", "2026-01-31 10:00", "2026-01-31"], "datetime"),
}


@pytest.mark.parametrize("case", LATER)
def test_a_stream_keeps_the_types_of_its_first_batch_and_says_where_they_end(case: str) -> None:
    texts, kind = LATER[case]
    data = write("csv", [{"a": text, "b": "x"} for text in texts])
    wrong = re.escape(f"line 4: '{texts[2]}' in column 'a' is not {kind}")
    with pytest.raises(module.SourceError, match=wrong) as caught:
        read("csv", data, 2, types=True)
    assert caught.value.hint == "name its type: types={'a': 'text'}"
    assert read("csv", data, types=True)[0][2]["a"] in (texts[2], 3)
    assert read("csv", data, 2, types={"a": "text"})[1] == [{"a": texts[2], "b": "x"}]


def test_the_hint_keeps_the_types_that_were_guessed_of_other_columns() -> None:
    data = write("csv", [{"zip": zip_code, "n": str(n), "word": "x"} for n, zip_code in enumerate(["1", "2", "007"])])
    with pytest.raises(module.SourceError, match="line 4: '007' in column 'zip'") as caught:
        read("csv", data, 2, types=True)
    assert caught.value.hint == "name its type: types={'zip': 'text', 'n': 'integer'}"
    rows = read("csv", data, types={"zip": "text", "n": "integer"})[0]
    assert rows[2] == {"zip": "007", "n": 2, "word": "x"}


def test_many_texts_are_read_at_once_as_each_alone() -> None:
    texts = ["1", "-0", "007", "1.5", "12345678.5", ".5", "1e+3", "true", "True", "2026-01-02", "1\n2", "3\n"]
    for kind in module.KINDS_OF_VALUE:
        for text in texts:
            reader = kind.reader(["", text, None])
            assert reader == kind.read or reader(text) == kind.read(text)
        assert kind.reader(["3\n"]) == kind.read
    data = "".join(f"{number}\n" for number in ["n", *range(150), "007"]).encode()
    with pytest.raises(module.SourceError, match="line 152: '007' in column 'n' is not integer"):
        read("csv", data, 120, types=True)


def test_a_column_after_the_header_is_refused() -> None:
    late = ([{"a": 1}], [{"a": 1}], [{"a": 1, "b": 2}])
    with pytest.raises(module.SourceError, match="column 'b' appears only after the header") as caught:
        write("csv", *late)
    assert "columns=" in caught.value.hint
    assert write("csv", *late, columns=["b", "a"]) == b"b,a\n,1\n,1\n2,1\n"


def test_a_file_in_an_encoding_that_lacks_a_letter() -> None:
    with pytest.raises(module.SourceError, match="cannot be written"):
        write("csv", [{"a": "€"}], encoding="latin-1")


@pytest.mark.parametrize("name", FORMATS)
def test_packed_files_and_bytes_that_do_not_change(name: str, ctx: Context, tmp_path: Path) -> None:
    rows = [{"a": "1", "b": "é"}] * 3
    path = tmp_path / f"rows.{name}.gz"
    ctx.load(path, rows)
    before = path.read_bytes()
    assert gzip.decompress(before) == write(name, rows)
    assert ctx.extract(path) == rows
    ctx.load(path, rows, mode="replace")
    assert path.read_bytes() == before
    path.write_bytes(before[:-9])
    with pytest.raises(module.SourceError, match=r"rows\..*end-of-stream"):
        ctx.extract(path)


def test_parquet_keeps_types(ctx: Context, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    day = datetime.date(2026, 1, 2)
    rows = [
        {"a": 1, "b": "x", "d": day, "n": Decimal("1.50"), "m": None},
        {"a": 2, "b": None, "d": day, "n": None, "m": 1.5},
    ]
    path = tmp_path / "rows.parquet"
    assert ctx.load(path, rows) == 2
    assert ctx.extract(path) == rows
    assert [len(batch) for batch in ctx.extract(path, stream=True, batch_rows=1)] == [1, 1]
    ctx.load(path, [{"a": 2, "b": "y"}], mode="upsert", key="a")
    assert [row["b"] for row in ctx.extract(path)] == ["x", "y"]
    ctx.load(path, [{"a": 3, "new": True}])
    assert ctx.extract(path)[2] == {"a": 3, "b": None, "d": None, "n": None, "m": None, "new": True}
    ctx.load(tmp_path / "empty.parquet", [])
    assert ctx.extract(tmp_path / "empty.parquet") == []
    assert [row["new"] for row in ctx.extract(path)] == [None, None, True]
    parts = [{"a": 1, "b": 2}], [{"a": 1}], [{"a": 3}]
    ctx.load(tmp_path / "parts.parquet", iter(parts))
    assert [row["b"] for row in ctx.extract(tmp_path / "parts.parquet")] == [2, None, None]


DAY, WHEN = datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2, 3)  # noqa: DTZ001
PARQUET: dict[str, Callable[[Context, Path], object]] = {
    "mixed types": lambda ctx, path: ctx.load(path, [{"a": 1}, {"a": "x"}]),
    "large integers": lambda ctx, path: ctx.load(path, [{"a": 2**70}]),
    "a fraction among later integers": lambda ctx, path: ctx.load(path, iter([[{"a": 1}], [{"a": 2}], [{"a": 3.7}]])),
    "half a character": lambda ctx, path: ctx.load(path, [{"a": "x"}, {"a": "\ud83d"}]),
    "a time among days": lambda ctx, path: ctx.load(path, [{"a": DAY}, {"a": WHEN}]),
    "a zone among times": lambda ctx, path: ctx.load(path, [{"a": WHEN}, {"a": WHEN.replace(tzinfo=datetime.UTC)}]),
    "bytes among later texts": lambda ctx, path: ctx.load(path, iter([[{"a": "x"}], [{"a": "y"}], [{"a": b"z"}]])),
    "no number among times": lambda ctx, path: ctx.load(path, [{"a": WHEN.time()}, {"a": float("nan")}]),
    "no parquet": lambda ctx, path: path.write_bytes(b"a,b\n1,2\n") and ctx.extract(path),
}


@pytest.mark.parametrize("case", PARQUET)
def test_what_parquet_cannot_hold(case: str, ctx: Context, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(module.SourceError, match="Parquet"):
        PARQUET[case](ctx, tmp_path / "rows.parquet")


NESTED: dict[str, list[Any]] = {
    "a key": [{"a": 1}, {"a": 2}, {"a": 3, "b": 9}], "a fraction": [[1], [2], [1.5]], "a time": [[DAY], [DAY], [WHEN]],
    "a number": [[WHEN], [WHEN], [7]], "bytes": [[b"a"], [b"b"], ["c"]],
}  # fmt: skip


@pytest.mark.parametrize("case", NESTED)
def test_parquet_changes_nothing_in_a_list_or_an_object(case: str, ctx: Context) -> None:
    pytest.importorskip("pyarrow")
    *first, last = ([{"a": cell}] for cell in NESTED[case])
    with pytest.raises(module.SourceError, match=r"not for Parquet: column 'a'"):
        ctx.load("rows.parquet", iter([*first, last]))
    ctx.load("rows.parquet", [*first[0], *first[1], {"a": None}])
    assert ctx.extract("rows.parquet") == [*first[0], *first[1], {"a": None}]


def test_an_object_in_parquet_need_not_have_all_members(ctx: Context) -> None:
    pytest.importorskip("pyarrow")
    ctx.load("rows.parquet", [{"a": {"b": 1}}, {"a": {"c": 2}}])
    assert ctx.extract("rows.parquet") == [{"a": {"b": 1, "c": None}}, {"a": {"b": None, "c": 2}}]


def test_a_time_of_day_with_nanoseconds_is_not_cut(tmp_path: Path, ctx: Context) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "times.parquet"
    columns = {name: arrow.array([3_600_000_000_001], arrow.time64("ns")) for name in ("a", "b")}
    parquet.write_table(arrow.table(columns), path)
    with pytest.raises(module.SourceError, match="column 'a', 'b': its nanoseconds would be cut") as caught:
        ctx.extract(path)
    assert by_hint(caught.value.hint, path) == [dict.fromkeys("ab", datetime.time(1))]


class Level(int, enum.Enum):
    LOW = 1
    HIGH = 2


BERLIN = datetime.timezone(datetime.timedelta(hours=1))
KEYS = [
    *((Decimal("1.5"), Decimal("1.25")), (1, 2.5), (2**70, 2**70 + 1), (Level.LOW, Level.HIGH)),
    tuple(datetime.datetime(2026, 1, 2, hour, tzinfo=BERLIN) for hour in (3, 4)),
    (datetime.timedelta(seconds=90), datetime.timedelta(1)),
]


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("name", ["json", "jsonl", "parquet"])
def test_an_upsert_finds_the_keys_that_it_wrote(name: str, keys: tuple[Any, Any], ctx: Context) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow")
        keys = (1, 2) if keys[0] == 2**70 else keys
    rows = [{"k": key, "n": 1} for key in keys]
    for _ in range(2):
        ctx.load(f"rows.{name}", rows, mode="upsert", key="k")
    assert len(ctx.extract(f"rows.{name}")) == 2


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet"])
def test_an_upsert_finds_keys_of_numpy_and_refuses_a_time_that_is_none(name: str, ctx: Context) -> None:
    numpy, pandas = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    for kind in (numpy.int64, numpy.float32):
        rows = [{"k": kind(100), "n": 1}, {"k": kind(7), "n": 2}]
        for _ in range(2):
            ctx.load(f"{kind.__name__}.{name}", rows, mode="upsert", key="k")
        assert len(ctx.extract(f"{kind.__name__}.{name}")) == 2
    with pytest.raises(module.SourceError, match="a row has no 'k', part of the key"):
        ctx.load(f"none.{name}", [{"k": pandas.NaT, "n": 1}], mode="upsert", key="k")


def test_a_text_in_a_column_of_lists_does_not_become_its_letters(ctx: Context) -> None:
    pytest.importorskip("pyarrow")
    tagged = [[{"tags": ["a"]}], [{"tags": ["b"]}], [{"tags": "urgent"}]]
    with pytest.raises(module.SourceError, match=r"column 'tags' is .*, which 'urgent' is not") as refused:
        ctx.load("rows.parquet", iter(tagged))
    assert "use no stream" in str(refused.value.hint)


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet"])
def test_a_first_batch_without_rows_is_passed_over(name: str, ctx: Context) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow")
    for _ in range(2):
        assert ctx.load(f"rows.{name}", iter([[], [{"a": "1"}], []])) == 1
    assert ctx.extract(f"rows.{name}") == [{"a": "1"}, {"a": "1"}]


def test_an_append_reads_what_is_there_with_the_options_of_a_reader(ctx: Context) -> None:
    for _ in range(2):
        ctx.load("rows.tsv", [{"a": "two\nlines"}], quote='"')
    assert ctx.extract("rows.tsv", quote='"') == [{"a": "two\nlines"}] * 2
    with pytest.raises(module.BadRequest, match="has no option 'quote'"):
        ctx.load("rows.tsv", [{"a": "x"}], quote='"', mode="replace")


def test_a_list_in_a_cell_is_json_and_a_hint_keeps_the_other_types(ctx: Context) -> None:
    Path("a.csv").write_text('id,tags,day\n1,"[1, 2]",2026-01-01\n2,[],01.02.2026\n')
    types = {"id": int, "tags": list}
    assert ctx.extract("a.csv", types=types)[0] == {"id": 1, "tags": [1, 2], "day": "2026-01-01"}
    with pytest.raises(module.SourceError) as refused:
        ctx.extract("a.csv", types=types | {"day": "date"})
    assert "types={'id': 'integer', 'tags': 'json', 'day': 'text'}" in refused.value.hint


def test_the_hint_for_a_sheet_loses_no_text(ctx: Context) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("openpyxl")
    pandas.DataFrame({"country": ["NA", None, "None"]}).to_excel("a.xlsx", index=False)
    with pytest.raises(module.BadRequest) as refused:
        ctx.extract("a.xlsx")
    given = re.search(r"pandas\.read_excel\(path, (.*)\)", refused.value.hint)
    assert given is not None
    frame = pandas.read_excel("a.xlsx", **eval(f"dict({given[1]})"))
    ctx.load("a.jsonl", frame)
    assert ctx.extract("a.jsonl") == [{"country": "NA"}, {"country": None}, {"country": "None"}]


def test_what_parquet_itself_refuses_names_it(ctx: Context) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(module.SourceError, match="not for Parquet: Cannot write struct type 'a'"):
        ctx.load("rows.parquet", [{"a": {}}])
    ctx.load("rows.parquet", [{"a": {1, 2}}])
    assert sorted(ctx.extract("rows.parquet")[0]["a"]) == [1, 2]


@pytest.mark.parametrize("name", ["csv", "json", "jsonl", "parquet"])
def test_bytes_in_a_list_are_kept_or_refused(name: str, ctx: Context) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow")
        rows = [{"k": b"ab", "n": 1}, {"k": b"cd", "n": 2}]
        ctx.load("rows.parquet", rows, mode="upsert", key="k")
        ctx.load("rows.parquet", rows, mode="upsert", key="k")
        assert ctx.extract("rows.parquet") == rows
    else:
        with pytest.raises(module.SourceError, match="bytes"):
            ctx.load(f"rows.{name}", [{"a": [b"xyz"]}])


def test_what_json_cannot_keep_is_refused_or_a_decimal() -> None:
    for name in ("json", "jsonl"):
        for text, wrong in (
            ('{"a": 1, "a": 2}', "two columns are named 'a'"),
            ('{"a": {"b": 1, "b": 2}}', "are named 'b'"),
            ('{"a": 1e400}', "1e400 is out of range"),
        ):
            with pytest.raises(module.SourceError, match=wrong):
                read(name, text.encode())
    assert read("json", b'[{"a": 12.340000000000000000}]') == [[{"a": 12.34}]]
    numbers = [0.1, 0.10000000000000001, -0.01574736306608441, 1e300, 5e-324, 2**53 + 1]
    long = "12345678901234567.89"
    found = read("json", json.dumps([{"a": it} for it in numbers])[:-1].encode() + f', {{"a": {long}}}]'.encode())[0]
    assert [row["a"] for row in found] == [*numbers, Decimal(long)]
    assert [type(row["a"]) for row in found] == [*map(type, numbers), Decimal]
    for text, number in (("3.14159265358979312", math.pi), ("0.10000000000000000555", 0.1)):  # as C writes them
        assert repr(read("json", f'[{{"a": {text}}}]'.encode())[0][0]["a"]) == repr(number)
    with pytest.raises(module.SourceError) as caught:
        read("jsonl", b'{"a": 1e400}')
    assert caught.value.hint == "whoever writes it can write it as text"


def test_nanoseconds_in_text_are_not_cut() -> None:
    day, clock = b"at\n2026-01-02T10:30:00.123456789\n", b"at\n10:30:00.1234567\n"
    assert read("csv", day, types=True) == [[{"at": "2026-01-02T10:30:00.123456789"}]]
    for data, kind in ((day, "datetime"), (clock, "time")):
        with pytest.raises(module.SourceError, match="in column 'at' is not"):
            read("csv", data, types={"at": kind})
    assert read("csv", b"at\n10:30:00.1234560\n", types={"at": "time"})[0][0]["at"].microsecond == 123456


def test_utf_16_without_a_mark_is_told(ctx: Context) -> None:
    for text, options in (("id\n1\n", {}), ("id,name\n1,Omega", {}), ("id,name\n1,x\n", {"encoding": "utf-16"})):
        Path("a.csv").write_bytes(text.encode("utf-16-le"))
        with pytest.raises(module.SourceError) as caught:
            ctx.extract("a.csv", **options)
        assert "'utf-16-le'" in caught.value.hint
        assert ctx.extract("a.csv", encoding="utf-16-le")


def test_a_suffix_is_not_believed(ctx: Context) -> None:
    Path("plain.csv.gz").write_text("a\n1\n")
    assert ctx.extract("plain.csv.gz") == [{"a": "1"}]


def test_json_is_written_a_row_a_line(tmp_path: Path, ctx: Context) -> None:
    path = tmp_path / "rows.json"
    ctx.load(path, [{"a": 1}, {"a": 2}])
    assert path.read_text() == '[\n{"a":1},\n{"a":2}\n]\n'
    assert json.loads(path.read_text()) == ctx.extract(path)


def by_hint(hint: str, path: Path) -> Any:
    """What the statements of a hint make of a Parquet file."""
    first, last = hint.partition("ctx.extract, ")[2].split("; ")
    names: dict[str, Any] = {"pyarrow": pytest.importorskip("pyarrow"), "path": path}
    exec(first, names)
    return eval(last, names)


def test_parquet_with_two_columns_of_one_name_is_refused(tmp_path: Path, ctx: Context) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "joined.parquet"
    parquet.write_table(arrow.table([[10], [100]], names=["value", "value"]), path)
    wrong = r"joined.parquet: two columns are named 'value', number 1 and 2"
    with pytest.raises(module.SourceError, match=wrong) as caught:
        ctx.extract(path)
    assert by_hint(caught.value.hint, path) == [{"value": 10, "value_2": 100}]


def test_nanoseconds_that_python_lacks_are_told_with_their_column(tmp_path: Path, ctx: Context) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "ticks.parquet"
    parquet.write_table(arrow.table({"id": [1], "at": arrow.array([1], arrow.timestamp("ns"))}), path)
    if importlib.util.find_spec("pandas") is not None:
        assert ctx.extract(path)[0]["at"].nanosecond == 1
        return
    with pytest.raises(module.SourceError, match=r"ticks\.parquet: column 'at':") as caught:
        ctx.extract(path)
    assert caught.value.hint.startswith("install pandas; or ")
    assert by_hint(caught.value.hint, path) == [{"id": 1, "at": datetime.datetime(1970, 1, 1)}]  # noqa: DTZ001


@pytest.mark.parametrize("name", ["csv", "csv.gz", "json", "jsonl"])
def test_rows_are_added_to_a_file_of_none(name: str, ctx: Context) -> None:
    ctx.load(f"rows.{name}", [])
    ctx.load(f"rows.{name}", [{"a": "1"}])
    assert ctx.extract(f"rows.{name}") == [{"a": "1"}]
    Path("new.csv").touch()
    ctx.load("new.csv", [{"a": "1"}], mode="upsert", key="a")
    assert ctx.extract("new.csv") == [{"a": "1"}]


@pytest.mark.parametrize("other", [7, 7.5, Decimal("2.25")])
def test_a_number_among_durations_is_not_taken_for_microseconds(other: Any, ctx: Context) -> None:
    rows = [{"a": datetime.timedelta(seconds=90)}, {"a": None}, {"a": other}]
    with pytest.raises(module.SourceError, match=r"column 'a' is duration\[us\], which .* is not"):
        ctx.load("durations.parquet", rows)
    ctx.load("durations.parquet", rows[:2])
    assert ctx.extract("durations.parquet") == rows[:2]
