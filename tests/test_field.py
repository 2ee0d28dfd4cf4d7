"""Cases from the field: small inputs on which other systems, or Tau before, gave wrong rows.  They lie beside the checkout."""

from __future__ import annotations

import contextlib
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually

import tau as module

FIELD = Path(__file__).parents[1].parent / "shared" / "field"
#: Folder → (params, the result) or (params, a pattern of the error, a part of its hint).
CASES: list[tuple[str, dict[str, Any], Any, str | None]] = [
    ("data-04-codes-after-the-sample", {}, "line 4: '01067' in column 'zip'", "types={'zip': 'text'}"),
    (
        "data-05-decimals-second-load",
        {},
        "column 'amount' holds decimals of at most 15 digits, which",
        'DROP TABLE "ledger"',
    ),
    (
        "data-05-decimals-second-load",
        {"warehouse": "duckdb:///l.duckdb", "later": "0.123456789012"},
        {"1": "1.100000000000", "2": "0.123456789012"},
        None,
    ),
    ("data-06-date-then-datetime", {}, ["2026-01-01T00:00:00", "2026-01-02T10:30:00"], "seen"),
    ("data-07-duckdb-other-capitals", {}, 2, None),
    ("data-07-duckdb-other-capitals", {"second": "Customers"}, 2, None),
    ("data-08-postgres-63-characters", {"warehouse": "postgres"}, "PostgreSQL cuts names after 63 bytes", "rename"),
    ("data-09-parquet-same-name-twice", {}, "joined.parquet: two columns are named 'value'", "rename"),
    ("data-10-exponent-codes", {}, ["32E0134", "17E4", "20"], None),
    ("data-11-hint-of-a-preamble", {}, ["1", "2"], "id"),
    ("data-12-space-before-the-quote", {}, "line 2 has 4 cells, the header 3", "skip_spaces=True"),
    ("data-12-space-before-the-quote", {"options": {"skip_spaces": True}}, ["Smith, J"], "name"),
    ("data-13-tsv-with-bare-quotes", {}, "line 2 .to 4.: a quoted cell of several lines", "quote=''"),
    ("data-14-backslash-escapes", {}, "line 2: ',' expected after", "escape="),
    ("data-14-backslash-escapes", {"options": {"escape": "\\"}}, ['foo ("bar")'], "title"),
    ("data-15-open-quote", {}, "line 2: a quote opens and never closes", "quote=''"),
    ("data-17-null-instead-of-no-rows", {"url": "server"}, [1, 2], "id"),
    ("data-20-token-not-link", {"url": "server"}, "next_token", "token_param"),
    ("data-21-post-with-a-cursor", {"url": "server"}, 2, None),
    ("data-22-offset-and-limit", {"url": "server"}, "page_step", "page_step"),
    ("data-23-json-of-another-charset", {"url": "server"}, "café", None),
    *(
        (case, {"warehouse": house}, expected, column)
        for house in ("sqlite:///x.db", "duckdb:///x.duckdb", "postgres")
        for case, expected, column in (
            ("data-24-first-day-without-values", "12" if house == "postgres" else 12, None),  # its sum is a numeric
            ("data-25-integers-then-a-fraction", [5, 4, 3.7], None),
            ("data-28-upsert-keys", [3, 9], None),
            ("data-32-nan-inside-json", "row 1, column 'reading': .*nan", "a step can put None in its place"),
            ("data-33-durations", 90.0, None),
            ("data-35-text-into-integers", "column 'kilos' holds integers, which '12.7' is not", "types=True"),
        )
    ),
    ("data-26-half-an-emoji", {"warehouse": "postgres"}, "row 2, column 'text'", "errors='replace'"),
    ("data-27-null-byte", {"warehouse": "postgres"}, "row 2, column 'note'", "replace"),
    ("data-28-upsert-keys", {"null_key": True}, "a row has no 'sku'", "a step can drop such rows"),
    ("data-29-trailing-delimiters", {}, "line 2 has 4 cells, the header 3", "ragged=True"),
    ("data-30-gz-members-and-no-suffix", {}, ["1", "2"], None),
    ("data-30-gz-members-and-no-suffix", {"name": "plain.csv"}, ["1"], None),
    *(("data-31-names-that-begin-like-sql", {"table": name}, 1, None) for name in ("Call log", "Table 1", "from john")),
    ("data-34-numeric-nan", {}, 1, None),
]


@contextlib.contextmanager
def served(script: Path) -> Iterator[str]:
    """The URL of a case's own web service."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, script, str(port)])
    try:
        eventually(lambda: listens(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.mark.skipif(not FIELD.exists(), reason="../shared/field is not beside the checkout")
@pytest.mark.parametrize(("case", "params", "expected", "part"), CASES)
def test_a_case_from_the_field(
    case: str, params: dict[str, Any], expected: Any, part: str | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    house = params.get("warehouse", "")
    if "duckdb" in house + case:
        pytest.importorskip("duckdb_engine")
    folder = shutil.copytree(FIELD / case, tmp_path / case)
    with contextlib.ExitStack() as stack:
        if house == "postgres":
            params = params | {"warehouse": request.getfixturevalue("postgres")}
            clear(params["warehouse"])
        if "url" in params:
            params = params | {"url": stack.enter_context(served(folder / "server.py"))}
        before = [*module.PIPELINES]
        stack.callback(lambda: module.PIPELINES.__setitem__(slice(None), before))
        runpy.run_path(str(folder / "pipeline.py"))
        function = module.PIPELINES[-1].function
        if isinstance(expected, str) and part is not None:
            with pytest.raises(module.TauError, match=expected) as caught:
                module.run_local(function, params)
            assert part in caught.value.hint
            return
        result = module.run_local(function, params)["result"]
        assert (result if part is None else [row[part] for row in result]) == expected


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def clear(url: str) -> None:
    @module.pipeline(name="clear")
    def clear_schema(ctx: module.PipelineContext) -> None:
        for statement in ("DROP SCHEMA public CASCADE", "CREATE SCHEMA public"):
            ctx.sql(statement, connection=url)

    module.run_local(clear_schema)
    module.PIPELINES.pop()
