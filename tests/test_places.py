"""Where data is: files here and remote, the author's own sources and targets; writes are whole or did not happen."""

from __future__ import annotations

import datetime
import json
import os
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Context, Tau, eventually

import tau as module

ROWS = [{"id": "1", "name": "a"}, {"id": "2", "name": "b"}]
FORMATS = ["csv", "tsv", "json", "jsonl", "csv.gz", "json.gz", "jsonl.gz"]


@pytest.fixture
def registered() -> Iterator[None]:
    """What a test registers is forgotten afterwards."""
    before = dict(module.SOURCES), dict(module.TARGETS)
    yield
    for registry, kept in zip((module.SOURCES, module.TARGETS), before, strict=True):
        registry.clear()
        registry.update(kept)


@pytest.mark.parametrize("suffix", FORMATS)
def test_append_replace_and_upsert_of_files(suffix: str, ctx: Context) -> None:
    path = f"deep/down/rows.{suffix}"
    assert ctx.load(path, ROWS) == 2
    assert ctx.load(path, [{"id": "3", "name": "c"}]) == 1
    assert [row["name"] for row in ctx.extract(path)] == ["a", "b", "c"]
    assert ctx.load(path, [{"id": "2", "name": "B"}, {"id": "4", "name": "d"}], mode="upsert", key="id") == 2
    assert [row["name"] for row in ctx.extract(path)] == ["a", "B", "c", "d"]
    before = Path(path).read_bytes()
    ctx.load(path, [{"id": "2", "name": "B"}], mode="upsert", key=["id"])
    assert Path(path).read_bytes() == before
    assert ctx.load(path, ROWS, mode="replace") == 2
    assert ctx.extract(path) == ROWS


@pytest.mark.parametrize("suffix", FORMATS)
def test_new_columns_of_files(suffix: str, ctx: Context) -> None:
    path = f"rows.{suffix}"
    ctx.load(path, [{"id": str(i)} for i in range(module.BATCH_ROWS + 5)])
    ctx.load(path, [{"id": "x", "new": "y"}])
    rows = ctx.extract(path)
    assert (len(rows), rows[-1]) == (module.BATCH_ROWS + 6, {"id": "x", "new": "y"})
    assert rows[0].get("new") in (None, "")


def test_a_csv_with_columns_of_its_own_is_appended_to(ctx: Context) -> None:
    for _ in range(2):
        ctx.load("rows.csv", ROWS, columns=["name", "id"], delimiter=";")
    assert Path("rows.csv").read_text() == "name;id\na;1\nb;2\na;1\nb;2\n"


def test_keys_of_a_csv_are_what_stands_in_it(ctx: Context) -> None:
    day = datetime.date(2026, 1, 2)
    rows = [{"n": 1, "d": day, "b": True, "v": 1.5}, {"n": 2, "d": day, "b": False, "v": None}]
    for _ in range(2):
        ctx.load("rows.csv", rows, mode="upsert", key=["n", "d", "b"])
        assert Path("rows.csv").read_text() == "n,d,b,v\n1,2026-01-02,true,1.5\n2,2026-01-02,false,\n"


def spoilt() -> Iterator[dict[str, str]]:
    """Rows, and then no more."""
    yield from ({"id": str(i), "name": "x"} for i in range(50))
    raise ValueError("the source broke")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("mode", module.MODES)
@pytest.mark.usefixtures("registered")
def test_a_load_that_fails_leaves_the_file_as_it_was(suffix: str, mode: str, ctx: Context) -> None:
    module.source("spoilt")(spoilt)
    path = Path(f"rows.{suffix}")
    for there in (False, True):
        if there:
            ctx.load(path, ROWS)
        before = path.read_bytes() if there else None
        with pytest.raises(ValueError, match="the source broke"):
            ctx.load(path, ctx.extract("spoilt", stream=True, batch_rows=10), mode=mode, key="id")
        assert (path.read_bytes() if path.exists() else None) == before
        assert [*Path().iterdir()] == ([path] if there else [])


def test_files_keep_their_mode_their_links_and_their_neighbours(ctx: Context, tmp_path: Path) -> None:
    ctx.load("new.csv", ROWS)
    assert Path("new.csv").stat().st_mode & 0o777 == 0o600
    Path("new.csv").chmod(0o644)
    Path("link.csv").symlink_to("new.csv")
    ctx.load("link.csv", ROWS)
    assert Path("link.csv").is_symlink()
    assert (Path("new.csv").stat().st_mode & 0o777, len(ctx.extract("new.csv"))) == (0o644, 4)
    assert sorted(path.name for path in Path().iterdir()) == ["link.csv", "new.csv"]


def test_every_way_to_name_a_file(ctx: Context, tmp_path: Path) -> None:
    path = tmp_path / "a b ü?.csv"
    ctx.load(path, ROWS)
    assert ctx.extract(str(path)) == ctx.extract(path) == ctx.extract(tmp_path, "a b ü?.csv") == ROWS
    assert ctx.extract(path.as_uri()) == ctx.extract(f"file://localhost{tmp_path}/a%20b%20%C3%BC%3F.csv") == ROWS
    assert ctx.extract("file://" + str(tmp_path), "a b ü?.csv") == ROWS
    ctx.load("rows", ROWS, format="csv")
    assert ctx.extract("rows", format="csv") == ROWS
    ctx.load("é" * 110 + ".csv", ROWS)


BAD: dict[str, tuple[Callable[[Context], Any], type[Exception], str, str]] = {
    "an unknown scheme": (
        lambda ctx: ctx.extract("htps://x/a.csv"),
        module.BadRequest,
        "unknown scheme 'htps://'",
        "did you mean 'https'?",
    ),
    "a machine in a file URL": (
        lambda ctx: ctx.extract("file://data.csv"),
        module.BadRequest,
        "names a machine, 'data.csv'",
        "three slashes",
    ),
    "a missing file": (
        lambda ctx: ctx.extract("nope.csv"),
        module.SourceError,
        "cannot read nope.csv: No such file",
        "ctx.data_dir",
    ),
    "a missing file elsewhere": (
        lambda ctx: ctx.extract("/nope/a.csv"),
        module.SourceError,
        "cannot read /nope/a.csv",
        "machine where this ran",
    ),
    "an empty folder": (lambda ctx: ctx.extract("."), module.SourceError, r"there is no file \./\*", "missing='ok'"),
    "a pattern of no file": (
        lambda ctx: ctx.extract("in/*.csv"),
        module.SourceError,
        r"there is no file in/\*.csv",
        "ctx.data_dir",
    ),
    "a folder to write to": (lambda ctx: ctx.load(".", ROWS, format="csv"), module.SourceError, "is no plain file", ""),
    "no place": (lambda ctx: ctx.extract(5), module.BadRequest, "5 is no place", "a path, a URL"),
    "no rows": (
        lambda ctx: ctx.load("a.csv", "text"),
        module.BadRequest,
        "rows are wanted, not 'text'",
        "list of dicts",
    ),
    "a word": (lambda ctx: ctx.extract("orders"), module.BadRequest, "'orders' is no path", "known: none"),
    "no format": (lambda ctx: ctx.extract("a.xlsx"), module.BadRequest, "'a.xlsx' has no known format", "known: csv"),
    "a format that is none": (
        lambda ctx: ctx.extract("a.csv", format="cvs"),
        module.BadRequest,
        "has no known format",
        "did you mean 'csv'?",
    ),
    "an option that is none": (
        lambda ctx: ctx.load("a.csv", ROWS) and ctx.extract("a.csv", delimeter=";"),
        module.BadRequest,
        "reading csv has no option 'delimeter'",
        "did you mean 'delimiter'?",
    ),
    "an option of the other way": (
        lambda ctx: ctx.load("a.csv", ROWS, ragged=True, mode="replace"),
        module.BadRequest,
        "writing csv has no option 'ragged'",
        "takes",
    ),
    "upsert without a key": (
        lambda ctx: ctx.load("a.csv", ROWS, mode="upsert"),
        module.BadRequest,
        "needs a key",
        "key=",
    ),
    "a key that is not there": (
        lambda ctx: ctx.load("a.csv", ROWS, mode="upsert", key="idd"),
        module.SourceError,
        "no column 'idd'",
        "did you mean 'id'?",
    ),
    "a database without a URL": (
        lambda ctx: ctx.extract("shop.db", "orders"),
        module.BadRequest,
        "'shop.db' is a path",
        "sqlite:///shop.db",
    ),
    "a database in ctx.sql without one": (
        lambda ctx: ctx.sql("SELECT 1", connection="shop.db"),
        module.BadRequest,
        "'shop.db' is a path",
        "sqlite:///shop.db",
    ),
    "a device": (
        lambda ctx: ctx.load("/dev/null", ROWS, format="csv"),
        module.SourceError,
        "is no plain file",
        "path of its own",
    ),
    "a path through a file": (
        lambda ctx: ctx.load("a.csv", ROWS) and ctx.load("a.csv/b.csv", ROWS),
        module.SourceError,
        "cannot write a.csv/b.csv",
        "",
    ),
    "a source's name": (lambda ctx: module.source("a b"), module.BadRequest, "cannot be a source's name", "letters"),
    "a source without a name": (lambda ctx: module.source(max), module.BadRequest, "needs a name", '@source("max")'),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD)
def test_a_place_that_cannot_be_is_told(case: str, ctx: Context) -> None:
    work, kind, message, hint = BAD[case]
    with pytest.raises(kind, match=message) as caught:
        work(ctx)
    assert hint in caught.value.hint
    assert os.stat("/dev/null").st_rdev


@pytest.mark.usefixtures("registered")
def test_sources_of_the_authors(ctx: Context) -> None:
    @module.source("plain")
    def plain(resource: str | None = None, limit: int = 2) -> list[dict[str, Any]]:
        return [{"n": i, "of": resource} for i in range(limit)]

    @module.source("generator")
    def generator() -> Iterator[dict[str, int]]:
        yield from ({"n": i} for i in range(3))

    @module.source("coroutine")
    async def coroutine(**options: Any) -> list[dict[str, Any]]:
        return [options]

    @module.source("async_generator")
    async def async_generator() -> AsyncIterator[dict[str, int]]:
        for i in range(3):
            yield {"n": i}

    assert ctx.extract("plain", "orders", limit=1) == [{"n": 0, "of": "orders"}]
    assert [len(batch) for batch in ctx.extract("plain", limit=5, stream=True, batch_rows=2)] == [2, 2, 1]
    assert ctx.extract("generator") == ctx.extract("async_generator") == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert ctx.extract("coroutine", "r", a=1) == [{"resource": "r", "a": 1}]
    with pytest.raises(module.BadRequest, match="'plain': got an unexpected keyword argument 'limt'") as caught:
        ctx.extract("plain", limt=1)
    assert "did you mean 'limit'?" in caught.value.hint
    with pytest.raises(module.BadRequest, match="'generator': got an unexpected keyword argument 'resource'"):
        ctx.extract("generator", "orders")
    for name in ("coroutine", "async_generator"):
        with pytest.raises(module.BadRequest, match=r"async source .* cannot be a stream"):
            list(ctx.extract(name, stream=True))
    with pytest.raises(module.BadRequest, match="'plian' is no path") as caught:
        ctx.extract("plian")
    assert caught.value.hint.startswith("did you mean 'plain'?")


@pytest.mark.usefixtures("registered")
def test_targets_of_the_authors(ctx: Context) -> None:
    seen: list[Any] = []

    @module.target("sink")
    def sink(rows: list[dict[str, Any]], mode: str, key: list[str], batch: int = 1) -> None:
        seen.append((rows, mode, key, batch))

    @module.target("counting")
    async def counting(rows: list[dict[str, Any]]) -> int:
        return 42

    assert ctx.load("sink", ROWS, mode="upsert", key="id", batch=5) == 2
    assert seen == [(ROWS, "upsert", ["id"], 5)]
    assert ctx.load("counting", ROWS) == 42
    with pytest.raises(module.BadRequest, match="'sink': got an unexpected keyword argument 'bach'"):
        ctx.load("sink", ROWS, bach=1)

    @module.target("needy")
    def needy(rows: list[dict[str, Any]], url: str) -> None: ...

    with pytest.raises(module.BadRequest, match="missing a required argument: 'url'"):
        ctx.load("needy", ROWS)


@pytest.mark.usefixtures("registered")
def test_what_a_source_logs_and_raises_belongs_to_its_step(ctx: Context) -> None:
    @module.source("loud")
    def loud() -> list[dict[str, int]]:
        ctx.log("working")
        raise LookupError("gone")

    with pytest.raises(LookupError):
        ctx.extract("loud")
    assert [line["step"] for line in ctx.records("log")] == ["extract loud"]
    assert [done["status"] for done in ctx.records("done")] == ["failed"]


def test_remote_files_through_fsspec(ctx: Context) -> None:
    pytest.importorskip("fsspec")
    url = "memory://bucket/deep/rows.csv.gz"
    ctx.load(url, ROWS)
    ctx.load(url, [{"id": "2", "name": "B"}], mode="upsert", key="id")
    assert ctx.extract("memory://bucket/deep", "rows.csv.gz") == [ROWS[0], {"id": "2", "name": "B"}]
    with pytest.raises(module.SourceError, match=r"cannot read nope\.csv"):
        ctx.extract("memory://bucket/nope.csv")
    with pytest.raises((module.MissingExtra, module.SourceError)) as caught:
        ctx.extract("s3://bucket/rows.csv", storage_options={"anon": True, "endpoint_url": "http://127.0.0.1:1"})
    assert "s3" in str(caught.value)


def test_a_relative_path_that_is_missing_hints_at_include(tau: Tau) -> None:
    run = tau.run_it("def it(ctx):\n    ctx.extract('prices.csv')", exit=1)
    assert run["error"]["message"] == "cannot read prices.csv: No such file or directory"
    assert "--include" in run["error"]["hint"]


def test_what_several_append_at_once_is_all_there(ctx: Context) -> None:
    ctx.load("rows.csv", [{"n": -1}])
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(lambda n: ctx.load("rows.csv", [{"n": n}] * 100), range(8))] == [100] * 8
    found = [row["n"] for row in ctx.extract("rows.csv")]
    assert sorted(found) == sorted(["-1", *(str(n) for n in range(8) for _ in range(100))])


def test_a_step_that_is_over_before_a_file_is_free_says_so(ctx: Context) -> None:
    ctx.load("rows.csv", ROWS)
    other = module.lock_file("rows.csv")
    with pytest.raises(module.StepTimeout), ctx.step("wait", timeout=0.1):
        ctx.load("rows.csv", ROWS)
    os.close(other)
    assert ctx.extract("rows.csv") == ROWS


def test_a_file_that_another_made_meanwhile_is_not_overwritten(ctx: Context) -> None:
    def rows() -> Iterator[list[dict[str, int]]]:
        yield [{"n": 1}]
        ctx.load("rows.csv", [{"n": 2}])
        yield [{"n": 3}]

    with pytest.raises(module.SourceError, match=r"another run has made rows\.csv meanwhile"):
        ctx.load("rows.csv", rows())
    assert ctx.extract("rows.csv") == [{"n": "2"}]
    assert [path.name for path in Path().iterdir()] == ["rows.csv"]


DOCUMENT = {
    "at": "noon",
    "page": {"n": 1},
    "items": [{"id": 1, "by": {"name": "a", "of": {"x": [1]}}}, {"id": 2, "by": {}}],
}
#: Options of a JSON document → its rows, or the message and the hint of an error.
SHAPES: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "a list": (DOCUMENT, {"records": "items"}, DOCUMENT["items"]),
    "null is no rows": ({"items": None}, {"records": "items"}, []),
    "the document itself": (DOCUMENT, {"records": "."}, [DOCUMENT]),
    "fields around the list": (
        DOCUMENT,
        {"records": "items", "meta": ["at", "page.n"]},
        [row | {"at": "noon", "page.n": 1} for row in DOCUMENT["items"]],  # type: ignore[operator]
    ),
    "a field that is null": ({"x": None, "items": [{}]}, {"records": "items", "meta": ["x"]}, [{"x": None}]),
    "a field that is not there": (DOCUMENT, {"records": "items", "meta": ["when"]}, ("no 'when' in", "at, page")),
    "a field that rows have": (
        {"id": 0, "items": [{"id": 1}]},
        {"records": "items", "meta": ["id"]},
        ("named 'id'", ""),
    ),
    "fields in a text": (DOCUMENT, {"records": "items", "meta": "at"}, ("expected array of string", "meta=[")),
    "objects become columns": (
        DOCUMENT,
        {"records": "items", "flatten": True},
        [{"id": 1, "by.name": "a", "by.of.x": [1]}, {"id": 2, "by": {}}],
    ),
    "with another mark": ([{"a": {"b": {"c": 1}}}], {"flatten": "__"}, [{"a__b__c": 1}]),
    "two of one name": ([{"a": {"b": 1}, "a.b": 2}], {"flatten": True}, ("two columns are named 'a.b'", "flatten='_'")),
    "another charset": ('[{"a": "é"}]'.encode("latin-1"), {"encoding": "latin-1"}, [{"a": "é"}]),
    "a charset unsaid": ('[{"a": "é"}]'.encode("latin-1"), {}, ("can't decode byte", "encoding='cp1252'")),
    "another charset of lines": (
        '{"a": {"é": 1}}\n'.encode("utf-16"),
        {"encoding": "utf-16", "flatten": True, "format": "jsonl"},
        [{"a.é": 1}],
    ),
    "no charset": (b"[]", {"encoding": "utf-9"}, ("unknown encoding", "utf-8")),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_of_json_documents(case: str, ctx: Context) -> None:
    document, options, right = SHAPES[case]
    Path("it.json").write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    if not isinstance(right, tuple):
        assert ctx.extract("it.json", **options) == right
        return
    with pytest.raises(module.TauError, match=right[0]) as caught:
        ctx.extract("it.json", **options)
    assert right[1] in caught.value.hint


def in_folder(*names: str) -> None:
    """A folder with a row in each of these files, and with what is none of them."""
    Path("in/deep").mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(names):
        Path("in", name).write_text(f"n\n{n}\n")
    Path("in/.hidden.csv").write_text("n\n99\n")
    Path("in/deep/d.csv").write_text("n\n50\n")


#: Names of files → their rows in this order.
MANY: dict[str, tuple[Any, list[str]]] = {
    "a pattern": ("in/*.csv", ["1", "0"]),
    "a folder": ("in", ["1", "0"]),
    "with a slash": ("in/", ["1", "0"]),
    "a part of the names": ("in/b?.csv", ["0"]),
    "folders within": ("in/**/*.csv", ["1", "0", "50"]),
    "a path": (Path("in") / "*.csv", ["1", "0"]),
}


@pytest.mark.parametrize("case", MANY)
@pytest.mark.parametrize("stream", [False, True])
def test_many_files_are_read_in_the_order_of_their_names(case: str, stream: bool, ctx: Context) -> None:
    in_folder("b1.csv", "a2.csv")
    place, right = MANY[case]
    rows = ctx.extract(place, stream=stream, types=None)
    assert [row["n"] for batch in ([rows] if not stream else rows) for row in batch] == right
    if case == "a pattern":
        assert (
            ctx.extract("in", "*.csv")
            == ctx.extract(Path("in").resolve().as_uri(), "*.csv")
            == [{"n": "1"}, {"n": "0"}]
        )


def test_the_file_of_each_row_on_request(ctx: Context) -> None:
    in_folder("b.csv", "a.csv")
    rows = [{"n": "1", "_file": "in/a.csv"}, {"n": "0", "_file": "in/b.csv"}]
    assert ctx.extract("in/*.csv", file_column="_file") == rows
    assert [*ctx.extract("in", stream=True, file_column="_file")] == [rows[:1], rows[1:]]
    with pytest.raises(module.SourceError, match=r"in/a\.csv: there is a column 'n' already"):
        ctx.extract("in", file_column="n")
    Path("in/c.csv").write_text("n\n")
    assert ctx.extract("in/c.csv", file_column="_file").columns == ["n", "_file"]


def test_many_files_of_several_formats(ctx: Context) -> None:
    in_folder("a.csv")
    ctx.load("in/b.jsonl.gz", [{"n": 1, "m": 2}])
    assert ctx.extract("in") == [{"n": "0"}, {"n": 1, "m": 2}]
    Path("in/notes.txt").write_text("n\n7\n")
    with pytest.raises(module.BadRequest, match=r"'notes\.txt' has no known format"):
        ctx.extract("in")
    assert ctx.extract("in/*.txt", format="csv") == [{"n": "7"}]
    Path("in/z[1].csv").write_text("n\n8\n")
    assert ctx.extract("in/z[1].csv") == [{"n": "8"}]
    ctx.load("in/z[1].csv", [{"n": 9}])
    assert ctx.extract("in/z[1].csv") == [{"n": "8"}, {"n": "9"}]
    Path("broken.csv").write_text("a,b\n1\n")
    with pytest.raises(module.SourceError, match=r"broken\.csv: line 2"):
        ctx.extract("*.csv")


def test_no_file_is_no_rows_on_request(ctx: Context) -> None:
    for place in ("in/*.csv", "nothing.csv", "."):
        assert ctx.extract(place, missing="ok") == []
        assert [*ctx.extract(place, missing="ok", stream=True)] == []
        with pytest.raises(module.SourceError):
            ctx.extract(place)
    assert ctx.load("rows.jsonl", ctx.extract("in/*.csv", missing="ok")) == 0


#: Options that are none of files, or of writing them.
FILE_WORDS: dict[str, tuple[Callable[[Context], Any], str]] = {
    "new_only": (lambda ctx: ctx.extract("a.csv", new_only="yes"), "new_only: expected boolean"),
    "no name": (lambda ctx: ctx.extract("a.csv", file_column=3), "file_column: expected string"),
    "another word": (lambda ctx: ctx.extract("a.csv", missing="okay"), 'missing: expected one of "error", "ok"'),
    "a pattern": (lambda ctx: ctx.load("in/*.csv", ROWS), r"in/\*.csv names many files"),
    "a folder": (lambda ctx: ctx.load("in/", ROWS, format="csv"), r"in/\* names many files"),
    "written": (lambda ctx: ctx.load("a.csv", ROWS, new_only=True), "writing csv has no option 'new_only'"),
    "words for None": (lambda ctx: ctx.extract("a.csv", nulls=3), "nulls: expected string or array, given integer 3"),
    "a word for None": (lambda ctx: ctx.extract("a.csv", nulls=["NA", 3]), "nulls.*expected string, given integer 3"),
    "a delimiter": (lambda ctx: ctx.extract("a.csv", delimiter=3), "delimiter: expected string"),
    "columns": (lambda ctx: ctx.extract("a.csv", columns="ab"), "columns: expected array or null"),
    "lines": (lambda ctx: ctx.extract("a.csv", skip_lines="2"), "skip_lines: expected integer"),
    "a JSON option": (lambda ctx: ctx.extract("a.json", flatten=2), "flatten: expected boolean or string"),
    "a written one": (lambda ctx: ctx.load("a.csv", ROWS, delimiter=3), "delimiter: expected string"),
    "an empty name": (lambda ctx: ctx.extract("a.csv", **{"": 1}), "reading csv has no option ''"),
}


@pytest.mark.parametrize("case", FILE_WORDS)
def test_options_of_files_are_checked(case: str, ctx: Context) -> None:
    work, message = FILE_WORDS[case]
    with pytest.raises(module.BadRequest, match=message):
        work(ctx)


@pytest.mark.parametrize("stream", [False, True])
def test_only_files_that_no_successful_run_has_read_are_new(stream: bool, tau: Tau) -> None:
    tau.deploy_it(
        """
        import os
        def it(ctx, write={}, remove=(), fails=False, stream=False):
            os.makedirs("in", exist_ok=True)
            for name, n in write.items():
                with open("in/" + name, "w") as file:
                    file.write(f"n\\n{n}\\n")
            for name in remove:
                os.unlink("in/" + name)
            rows = ctx.extract("in", new_only=True, missing="ok", stream=stream)
            rows = [row["n"] for batch in (rows if stream else [rows]) for row in batch]
            if fails:
                raise ValueError("not today")
            return [rows, ctx.state]
        """
    )

    def run(**params: Any) -> Any:
        return tau.call("run", name="it", params={"stream": stream, **params})["result"]

    assert run()[0] == []
    assert run(write={"a.csv": 1, "b.csv": 2}, fails=True) is None
    assert run()[0] == ["1", "2"]
    assert run()[0] == []
    rows, state = run(write={"a.csv": 11, "c.csv": 3})
    assert (rows, len(state["files_read"]["in/*"])) == (["11", "3"], 3)
    assert len(run(remove=["a.csv"])[1]["files_read"]["in/*"]) == 2
    assert run(write={"a.csv": 11})[0] == ["11"]


def test_files_that_a_run_beside_has_read_are_not_new(tau: Tau) -> None:
    tau.deploy_it(
        """
        import os, time
        def it(ctx, write={}, wait=False):
            os.makedirs("in", exist_ok=True)
            for name, n in write.items():
                with open("in/" + name, "w") as file:
                    file.write(f"n\\n{n}\\n")
            rows = ctx.extract("in", new_only=True, missing="ok")
            open("waits", "w").close()
            while wait and not os.path.exists("go"):
                time.sleep(0.01)
            return [row["n"] for row in rows]
        """
    )
    tau.call("run", name="it", params={"write": {"a.csv": 0}}, wait=True)
    folder = tau.home / "data" / "it"
    (folder / "waits").unlink()
    slow = tau.call("run", name="it", params={"write": {"b.csv": 1}, "wait": True}, wait=False)["run_id"]
    eventually((folder / "waits").exists)
    assert "2" in tau.call("run", name="it", params={"write": {"c.csv": 2}}, wait=True)["result"]
    (folder / "go").touch()
    assert tau("wait", slow)["result"] == ["1"]
    (folder / "go").unlink()
    assert tau.call("run", name="it", wait=True)["result"] == []


def test_a_state_of_the_author_s_own_shape_is_kept(tau: Tau) -> None:
    tau.deploy_it(
        """
        import os, time
        def it(ctx, wait=False):
            ctx.state["files_read"] = {"x": 5, "y": ["a", 1]}
            ctx.state["by"] = ctx.run_id
            open("waits", "w").close()
            while wait and not os.path.exists("go"):
                time.sleep(0.01)
        """
    )
    folder = tau.home / "data" / "it"
    slow = tau.call("run", name="it", params={"wait": True}, wait=False)["run_id"]
    eventually((folder / "waits").exists)
    tau("run", "it")
    (folder / "go").touch()
    assert tau("wait", slow)["status"] == "success"
    assert tau("state", "it")["state"]["by"] == slow
    (folder / "go").unlink()
    tau("state", "it", "--clear")


def test_a_stream_that_is_left_has_read_what_was_read_to_its_end(ctx: Context) -> None:
    in_folder("a.csv", "b.csv", "c.csv")
    for batch in ctx.extract("in", new_only=True, stream=True):
        if batch == [{"n": "1"}]:
            break
    assert len(ctx.state["files_read"]["in/*"]) == 1
    assert ctx.extract("in", new_only=True) == [{"n": "1"}, {"n": "2"}]
    assert ctx.extract("in", new_only=True) == []
    assert ctx.extract("in/a.csv", new_only=True) == [{"n": "0"}]
    assert ctx.extract("in/a.csv", new_only=True) == []


def test_new_only_fails_before_the_rows_if_it_cannot_remember_all_files(ctx: Context) -> None:
    in_folder(*(f"{number}.csv" for number in range(2_000)))
    assert len(ctx.extract("in", new_only=True)) == 2_000
    assert len(module.changed_state(ctx)["state"]["files_read"]["in/*"]) == 2_000
    in_folder(*(f"{number}.csv" for number in range(2_500)))
    with pytest.raises(module.SourceError, match="2,500 files are too many for new_only"):
        next(iter(ctx.extract("in", new_only=True, stream=True)))


def test_an_option_of_none_is_as_if_it_were_not_there(ctx: Context) -> None:
    in_folder("a.csv")
    assert ctx.extract("in/a.csv", format=None, file_column=None, types=None) == [{"n": "0"}]


def test_files_in_an_archive_need_no_time_of_change(ctx: Context) -> None:
    pytest.importorskip("fsspec")
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("in/a.csv", "n\n1\n")
    place = f"zip://in/*.csv::{Path('a.zip').resolve()}"
    assert ctx.extract(place) == [{"n": "1"}]
    with pytest.raises(module.SourceError, match="no time of change") as caught:
        ctx.extract(place, new_only=True)
    assert caught.value.hint == "leave new_only out"


def test_files_that_are_gzip_by_another_name_are_unpacked(ctx: Context) -> None:
    ctx.load("rows.csv.gz", ROWS)
    Path("rows.csv.gz").rename("rows.csv")
    assert ctx.extract("rows.csv") == ROWS
    Path("rows.csv").write_bytes(Path("rows.csv").read_bytes() * 2)
    assert len(ctx.extract("rows.csv")) == 5
    Path("short.csv").write_bytes(Path("rows.csv").read_bytes()[:30])
    with pytest.raises(module.SourceError, match=r"short\.csv: Compressed file ended"):
        ctx.extract("short.csv")


def test_many_remote_files(ctx: Context) -> None:
    pytest.importorskip("fsspec")
    for n, name in enumerate(("many/b.csv", "many/a.csv", "many/deep/c.csv")):
        ctx.load(f"memory://{name}", [{"n": n}])
    assert ctx.extract("memory://many/*.csv") == ctx.extract("memory://many/") == [{"n": "1"}, {"n": "0"}]
    assert len(ctx.extract("memory://many/**/*.csv")) == 3
    assert ctx.extract("memory://many/*.csv", new_only=True, file_column="f")[0] == {"n": "1", "f": "/many/a.csv"}
    ctx.load("memory://many/b.csv", [{"n": 7}])
    assert ctx.extract("memory://many/*.csv", new_only=True) == [{"n": "0"}, {"n": "7"}]
    assert ctx.extract("memory://many/*.json", missing="ok") == ctx.extract("memory://many/x.csv", missing="ok") == []
    with pytest.raises(module.SourceError, match=r"there is no file memory://many/\*\.json"):
        ctx.extract("memory://many/*.json")


def test_many_files_that_were_read_do_not_count_as_state(ctx: Context) -> None:
    for folder in "abc":
        Path(folder).mkdir()
        for number in range(1_500):
            Path(folder, f"{number}.csv").write_text("id\n1\n")
        ctx.extract(f"{folder}/*.csv", new_only=True)
    assert len(module.changed_state(ctx)["state"]["files_read"]) == 3


def test_a_target_that_takes_all_gets_mode_and_key(ctx: Context) -> None:
    told: dict[str, Any] = {}

    @module.target("takes_all")
    def takes_all(rows: Any, **options: Any) -> None:
        told.update(options)

    ctx.load("takes_all", [{"id": 1}], "leads", mode="upsert", key="id")
    assert told == {"resource": "leads", "mode": "upsert", "key": ["id"]}


def test_files_in_folders_below_are_named_in_the_hint(ctx: Context) -> None:
    Path("hive/year=2026").mkdir(parents=True)
    Path("hive/year=2026/a.csv").write_text("id\n1\n")
    with pytest.raises(module.SourceError, match="there is no file") as refused:
        ctx.extract("hive")
    assert "'hive/**/*.…'" in refused.value.hint
    assert ctx.extract("hive/**/*.csv") == [{"id": "1"}]
