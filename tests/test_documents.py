"""Golden documents: what a program reads keeps its keys and their types; the files are in tests/data/documents.
What `tau schema` publishes is golden too; that every answer is so, every test tests (answers.py).

`python tests/test_documents.py` writes them anew.
"""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from answers import close
from conftest import REPOSITORY, Tau, make_home, running

import tau as module

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


def promises(schema: Any) -> Any:
    """What a schema promises, by document: the schema of each field, marked if it may be absent."""
    made = {}
    for name, part in schema["$defs"].items():
        texts = {word: json.dumps(one, sort_keys=True) for word, one in part["properties"].items()}
        made[name] = {word: text if word in part["required"] else f"? {text}" for word, text in texts.items()}
    return made


def published() -> Any:
    return promises(module.document_schema(*module.every_document()))


def is_kept(golden: str, now: str | None) -> bool:
    """Whether a field is as it was; it may have come to be always there, and to have one more of several values."""
    if now is None or "enum" not in golden:
        return now in (golden, golden.removeprefix("? "))
    return {*json.loads(golden)["enum"]} <= {*json.loads(now)["enum"]}


def test_what_is_published_of_a_field_stays_true() -> None:
    golden, now = json.loads((FOLDER / "schemas.json").read_text(encoding="utf-8")), published()
    gone = [f"{name}.{word}" for name in golden for word in golden[name] if word not in now.get(name, {})]
    kept = [(name, word) for name in golden for word in golden[name] if f"{name}.{word}" not in gone]
    assert gone + [f"{at}.{word}" for at, word in kept if not is_kept(golden[at][word], now[at][word])] == []


def test_a_field_that_is_removed_or_retyped_is_noticed_in_a_schema() -> None:
    text, number = ('{"type": "string"}', '{"type": "number"}')
    for golden, now, kept in (
        *((text, text, True), (text, number, False), (text, None, False), (text, f"? {text}", False)),
        *((f"? {text}", text, True), (f"? {text}", f"? {text}", True), (f"? {text}", number, False)),
        *(('{"enum": ["a"]}', '{"enum": ["b", "a"]}', True), ('{"enum": ["a", "b"]}', '{"enum": ["b"]}', False)),
    ):
        assert is_kept(golden, now) is kept, (golden, now)


def test_each_operation_has_the_schema_of_its_answer(told: Tau) -> None:
    whole = told("schema")
    assert {row["name"] for row in whole["operations"]} == module.OPERATIONS.keys()
    for row in whole["operations"]:
        kinds = [one["$ref"].rpartition("/")[2] for one in row["answer"].get("anyOf", [row["answer"]]) if "$ref" in one]
        assert kinds, f"{row['name']}: write its document into SHAPES"
        assert all(kind in whole["documents"]["$defs"] for kind in kinds)
    Draft202012Validator.check_schema(whole["documents"])
    own = [entry.name for entry in module.LOCAL_COMMANDS.values() if module.answer_of(entry) == "object"]
    assert sorted(own) == ["completion", "help", "mcp"]  # which print no document


def test_the_tables_say_nothing_twice() -> None:
    words = [word for some in module.WORD_KINDS.values() for word in some.split()]
    assert [word for word in {*words} if words.count(word) > 1] == []
    heads = [name for names in re.findall(r"(\S+):\s", module.SHAPES) for name in names.split(",")]
    assert [name for name in heads if heads.count(name) > 1] == []
    made = [name for name in module.shapes() if name not in heads and name not in module.VALUES]
    assert len(made) == module.SHAPES.count("{") + len(["text"])  # the parts of documents


def test_each_type_of_event_says_what_its_data_are() -> None:
    parts = module.document_schema("event")["$defs"]
    assert [name for name in module.EVENT_TYPES if name not in parts] == []
    event = {"seq": 1, "at": "2026-01-01T00:00:00.000Z", "type": "run.started", "pipeline": "p", "run_id": "r"}
    event |= {"scheduled_for": None, "actor": "taud", "reason": None}
    validator = Draft202012Validator(module.document_schema("event"))
    assert validator.is_valid(event | {"data": {"attempt": 1}})
    assert not validator.is_valid(event | {"data": {"attempt": "first"}})
    assert not validator.is_valid(event | {"type": "run.queued", "data": {"attempt": 1}})


@pytest.mark.parametrize("name", ["run", "incident", "error", "event", "followed", "wait", "step", "warning"])
def test_the_schema_of_a_document_has_all_that_it_refers_to(told: Tau, name: str) -> None:
    schema = told("schema", "--document", name)
    Draft202012Validator.check_schema(schema)
    text = json.dumps(schema)
    for part in text.split('"#/$defs/')[1:]:
        assert part.partition('"')[0] in schema["$defs"]


def test_documents_fit_their_schemas_which_allow_them_to_grow(told: Tau) -> None:
    schema, document = told("schema", "--document", "run"), told("inspect", "bad")
    assert Draft202012Validator(schema).is_valid(document | {"new": 1})
    assert not Draft202012Validator(close(schema, False)).is_valid(document | {"new": 1})
    assert not Draft202012Validator(schema).is_valid(document | {"attempt": "1"})
    del document["trace"]
    assert not Draft202012Validator(schema).is_valid(document)


@pytest.mark.parametrize("words", ["key create", "'key create'", "key_create"])
def test_an_operation_is_found_by_its_words_and_by_its_name(told: Tau, words: str) -> None:
    one = told("schema", *shlex.split(words))
    assert (one["name"], one["command"], one["params"]["required"]) == ("key_create", "tau key create", ["name"])
    assert "key" in one["answer"]["$defs"]["key_create"]["required"]


def test_commands_of_the_client_alone_are_found_too(told: Tau) -> None:
    assert "run" in told("schema", "try")["answer"]["$defs"]


@pytest.mark.parametrize(
    ("words", "exit", "hint"),
    [
        ("inspct", 3, "did you mean 'inspect'?"),
        ("key crate", 3, "did you mean 'key create'?"),
        ("--document incidnet", 3, "did you mean 'incident'?"),
        ("run --document run", 2, "ask for one of them"),
    ],
)
def test_an_unknown_word_is_refused_with_the_nearest(told: Tau, words: str, exit: int, hint: str) -> None:
    assert hint in told("schema", *words.split(), exit=exit)["hint"]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    with running(make_home()) as home:
        prepare(home)
        for file, get in DOCUMENTS.items():
            text = json.dumps(shape(get(home)), indent=1, ensure_ascii=False)
            (FOLDER / f"{file}.json").write_text(text + "\n", encoding="utf-8")
    (FOLDER / "schemas.json").write_text(json.dumps(published(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {len(DOCUMENTS)} shapes")
