"""Golden documents: what a program reads keeps its keys and their types; the files are in tests/data/documents.

`python tests/test_documents.py` writes them anew.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from conftest import REPOSITORY, Tau, make_home, running

FOLDER = REPOSITORY / "tests" / "data" / "documents"
PIPELINES = """
from tau import pipeline

@pipeline(schedule="0 6 * * *", tags=["daily"], description="Paid orders")
def good(ctx, day: str = "monday"):
    with ctx.step("sum") as step:
        step.rows_in, step.rows_out = 2, 1
    ctx.check("there are some", True)
    ctx.metric("rejected", 1)
    ctx.log("summed", rows=1)
    return {"total": 1}

@pipeline
def bad(ctx):
    ctx.log("before")
    rows = [{"amount": 5}]
    with ctx.step("sum"):
        sum(row["price"] for row in rows)
"""

#: The same in another file, with other options, params and secrets.
CHANGED = PIPELINES.replace("0 6", "0 7").replace("monday", "friday").replace("1\n", "1\n    ctx.secret('KEY')\n", 1)


def events_of(tau: Tau) -> list[Any]:
    """The events of a run, by type."""
    return [{event["type"]: event} for event in tau.command("run", "good", "--follow").lines[:-1]]


def seen_by_peek(tau: Tau) -> Any:
    """What is seen of a table."""
    path = tau.work / "shop.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE sales (id INTEGER PRIMARY KEY, at TEXT)")
        db.executemany("INSERT INTO sales (at) VALUES (?)", [("2026-01-01",), ("2026-01-02",), ("?",)])
    db.close()
    return tau("peek", f"sqlite:///{path}", "sales", "--profile")


#: Golden file → how to get the document, in a home in which `good` and `bad` have run.
DOCUMENTS: dict[str, Callable[[Tau], Any]] = {
    "run-success": lambda tau: tau("inspect", "good"),
    "run-failure": lambda tau: tau("inspect", "bad"),
    "errors": lambda tau: tau("errors"),
    "errors-all": lambda tau: tau("errors", "--all"),
    "incident": lambda tau: tau("inspect", tau("errors")["incidents"][0]["incident"]),
    "runs": lambda tau: tau("runs"),
    "list": lambda tau: tau("list"),
    "show": lambda tau: tau("show", "good"),
    "peek": seen_by_peek,
    "watch": lambda tau: tau("watch"),
    "versions": lambda tau: tau("versions", "good"),
    "rollback": lambda tau: tau("rollback", "good", "--to", "1"),
    "deploy-dry-run": lambda tau: tau("deploy", tau.write(CHANGED, "changed.py"), "--dry-run", "--take-over"),
    "deploy-conflict": lambda tau: tau("deploy", tau.write(PIPELINES), "--name", "good", "--expect", "7", exit=5),
    "code-files": lambda tau: tau.call("code", name="good", out=""),
    "events": events_of,
    "ledger": lambda tau: tau("events", "--since", 0, "--limit", 5),
}


def shape(document: Any) -> Any:
    """The keys of a document and the JSON types of their values; a list has the keys of all its items."""
    if isinstance(document, dict):
        return {key: shape(value) for key, value in sorted(document.items())}
    if isinstance(document, list):
        whole: Any = {}
        shapes = [shape(item) for item in document]
        for item in shapes:
            whole |= item if isinstance(item, dict) else {}
        return [whole or next(iter(shapes))] if shapes else []
    names = {str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names[type(document)]


def missing(golden: Any, now: Any, place: str = "") -> list[str]:
    """What a golden shape has and the present one has not, or has in another type."""
    if isinstance(golden, list) and isinstance(now, list):
        golden, now = dict(enumerate(golden)), dict(enumerate(now))
    if isinstance(golden, dict) and isinstance(now, dict):
        return [it for key in golden for it in missing(golden[key], now.get(key), f"{place}.{key}")]
    return [] if golden == now else [f"{place}: {golden} is now {now}"]


def prepare(tau: Tau) -> None:
    tau.deploy(PIPELINES)
    for name in ("good", "bad"):
        tau.command("run", name)


@pytest.fixture(scope="module")
def told() -> Any:
    with running(make_home()) as tau:
        prepare(tau)
        yield tau


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_keeps_its_keys_and_their_types(told: Tau, name: str) -> None:
    golden = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert missing(golden, shape(DOCUMENTS[name](told))) == []


def test_a_key_that_is_removed_or_retyped_is_noticed() -> None:
    golden = shape({"a": 1, "rows": [{"x": None}, {"y": "text"}], "b": {"c": [1]}})
    assert missing(golden, golden | {"new": "string"}) == []
    for changed in ({"a": "1"}, {"rows": [{"x": None}]}, {"b": {}}, {"b": {"c": []}}):
        assert missing(golden, shape({"a": 1, "rows": [{"x": None, "y": ""}], "b": {"c": [1]}} | changed)), changed


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    with running(make_home()) as home:
        prepare(home)
        for file, get in DOCUMENTS.items():
            text = json.dumps(shape(get(home)), indent=1, ensure_ascii=False)
            (FOLDER / f"{file}.json").write_text(text + "\n", encoding="utf-8")
    print(f"wrote {len(DOCUMENTS)} shapes")
