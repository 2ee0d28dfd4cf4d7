"""An operation is declared once; its faces agree."""

from __future__ import annotations

import re
import shlex
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, Tau, python

import tau as module

NAMES = "deploy rollback versions check undeploy list lineage show code peek run try wait retry cancel runs inspect diff logs errors events state status watch calendar schedule claim heal create ticks why backfill pause resume version shutdown prune backup schema secret_set secret_remove secret_list open namespace_create namespace_set namespace_list namespace_show namespace_remove namespace_audit key_create key_list key_revoke notify_list notify_test notify_retry".split()
LOCAL = [
    "init",
    "doctor",
    "completion",
    "mcp",
    "help",
    "skill",
    *(f"env_{verb}" for verb in ("list", "show", "use", "add", "remove")),
]
COMMANDS = module.OPERATIONS | module.LOCAL_COMMANDS


def test_the_operations_are_these() -> None:
    assert set(module.OPERATIONS) == set(NAMES)
    assert set(module.LOCAL_COMMANDS) == set(LOCAL)


@pytest.mark.parametrize("name", [*NAMES, *LOCAL])
def test_every_argument_is_explained_and_in_every_face(name: str) -> None:
    chosen = COMMANDS[name]
    schema, parser = chosen.schema(), module.parser_of(chosen.words)
    known = {action.dest for action in parser._actions}
    assert chosen.summary.endswith((".", "terminal."))
    assert list(schema["properties"]) == list(chosen.arguments)
    for argument in chosen.arguments.values():
        assert argument.meaning, argument.name
        assert argument.name in known
        assert schema["properties"][argument.name]["description"] == argument.meaning
    assert schema["required"] == [one.name for one in chosen.arguments.values() if one.required]
    assert chosen.effect in ("reads", "writes", "destroys")


def test_the_schema_is_served(tau: Tau) -> None:
    schema = tau("schema")
    assert [one["name"] for one in schema["operations"]] == list(module.OPERATIONS)
    run = next(one for one in schema["operations"] if one["name"] == "run")
    assert (run["command"], run["examples"]) == ("tau run", module.OPERATIONS["run"].examples)
    runs = next(one for one in schema["operations"] if one["name"] == "runs")
    assert runs["params"]["properties"]["status"]["enum"] == [*module.MOVES, None]
    assert run["params"]["properties"]["wait"] == {
        "type": "boolean",
        "default": True,
        "description": "do not wait (on the wire, wait=false): answer as soon as the run is durable",
    }
    assert run["params"]["properties"]["params"]["type"] == ["object", "null"]
    assert schema["moves"]["queued"] == ["running", "cancelled", "timed_out"]


CHECKS: list[tuple[str, dict[str, Any], str]] = [
    ("show", {}, "'show' needs 'name'"),
    ("show", {"name": 1}, "'name': expected string, given integer 1"),
    ("show", {"name": "x", "nam": "y"}, "'show' has no argument 'nam'"),
    ("list", {"limit": "5"}, "'limit': expected a whole number from 1 to 10,000, given string"),
    ("list", {"limit": 1.5}, "'limit': expected a whole number from 1 to 10,000, given number 1.5"),
    ("list", {"limit": None}, "'limit': expected a whole number from 1 to 10,000, given null"),
    ("run", {"name": "x", "params": []}, "'params': expected object, given array"),
    ("wait", {"run_id": [1]}, r"'run_id'\[0\]: expected string, given integer 1"),
    ("deploy", {"files": ["x"]}, r"'files'\[0\]: expected object, given string"),
]


@pytest.mark.parametrize(("name", "given", "message"), CHECKS)
def test_wrong_arguments_are_named(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(module.BadRequest, match=message):
        module.OPERATIONS[name].check(given)


def test_one_string_may_stand_for_a_list_and_null_for_what_is_optional() -> None:
    assert module.OPERATIONS["wait"].check({"run_id": "a", "timeout": None}) == {"run_id": ["a"], "timeout": None}
    assert module.OPERATIONS["run"].check({"name": "x", "timeout": 1}) == {"name": "x", "timeout": 1}


@pytest.mark.parametrize("name", [*NAMES, *LOCAL])
def test_help_is_printed_without_a_daemon(name: str, home: Tau) -> None:
    words = COMMANDS[name].words.split()
    done = home.command(*words, "--help")
    assert done.exit == 0
    assert home.command("help", *words).out == done.out
    assert COMMANDS[name].summary.split()[0] in done.out
    assert all(f"\n  {example}\n" in done.out for example in COMMANDS[name].examples)
    assert "exit codes:" in done.out
    assert max(map(len, done.out.splitlines())) <= 79


def test_without_docstrings_nothing_breaks(home: Tau) -> None:
    command = [python("main")[0], "-OO", *python("main")[1:]]
    for words in (["--help"], ["status"], ["help", "api"], ["skill"]):
        done = subprocess.run([*command, *words], env=home.environ, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode in (0, 6), done.stderr


def words_of(example: str) -> list[str]:
    """The words of an example, without its comment and without what is the shell's."""
    words = shlex.split(example, comments=True)
    end = next((at for at, word in enumerate(words) if word in ("<", ">")), len(words))
    assert words[0] == "tau", example
    return words[1:end]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the examples speak of."""
    (tmp_path / "shop").mkdir()
    for path in ("orders.py", "shop/main.py"):
        (tmp_path / path).write_text(ORDERS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


ORDERS = "from tau import pipeline\n@pipeline(every='90d')\ndef orders(ctx):\n    with ctx.step('load'):\n        ctx.log('in')\n"


@pytest.mark.parametrize("name", [*NAMES, *LOCAL])
def test_the_examples_are_two_command_lines_of_the_command(name: str, files: Path) -> None:
    entry = COMMANDS[name]
    assert len(entry.examples) == 2
    for example in entry.examples:
        found, options = module.read_line(words_of(example))
        assert found == entry.words, example
        assert len(example) <= 94
        for common in module.COMMON:
            options.pop(common, None)
        given = {name: module.read_value(entry.arguments[name], options[name], options) for name in options}
        assert entry.check(given) is not None


#: How examples end that do not end with 0.
ENDS = {"status": (0, 6), "shutdown": (0, 6)}  # there is no other daemon; it can be stopped only once
ENDS["diff"] = (0, 3)  # there may be one version
ENDS["events"] = (0, 8)  # nothing may be new
ENDS["open"] = (5,)  # there is no TCP port
ENDS |= dict.fromkeys(
    ("namespace_create", "namespace_remove", "namespace_audit", "key_create", "key_revoke"), (0, 2, 3)
)  # there is no executor and no namespace
ENDS |= {"claim": (3,), "heal": (2,), "create": (2, 5)}  # there is no incident and no agent
ENDS |= dict.fromkeys(("notify_test", "notify_retry"), (3,))  # there is no recipient


def test_the_examples_do_something(fresh: Tau) -> None:
    for line in COMMANDS["init"].examples:
        fresh(*words_of(line))
    (fresh.work / "shop").mkdir()
    for path in ("orders.py", "shop/main.py"):
        (fresh.work / path).write_text(ORDERS if path == "orders.py" else ORDERS.replace("orders(", "shop("))
    (fresh.work / "key").write_text("x" * 40)
    (fresh.work / "key").chmod(0o600)
    data = fresh.home / "data" / "orders"
    (data / "in").mkdir(parents=True)
    (data / "in" / "sales.csv").write_text("id,amount\n1,5\n")
    with sqlite3.connect(data / "shop.db") as db:
        db.execute("CREATE TABLE sales (id INTEGER PRIMARY KEY)")
    db.close()
    where = {"TMPDIR": str(fresh.work), "TAU_HOST": f"unix://{fresh.socket}"}
    later = ("undeploy", "shutdown", "env_remove")
    fresh("env", "add", "production", f"unix://{fresh.socket}")
    for number in range(3):
        fresh.call("deploy", files=[{"path": "orders.py", "text": f"{ORDERS}# {number}\n"}])
    for name in [*(one for one in COMMANDS if one not in ("init", *later)), *later]:
        for example in COMMANDS[name].examples:
            line = example.replace("~/tau.key", "key")
            line = line.replace("https://tau.example.com", f"unix://{fresh.socket}")
            if "1m82" in line:
                line = re.sub(r"\b1m82\w*", fresh("runs", "--last", 1)["runs"][0]["run_id"], line)
            done = fresh.command(*words_of(line), stdin="x" * 40, **where)
            assert done.exit in ENDS.get(name, (0,)), (line, done.exit, done.out, done.err)
