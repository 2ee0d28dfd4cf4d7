"""An operation is declared once; its faces agree."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from conftest import Tau, python

import tau as module

NAMES = "deploy check undeploy list show code run wait retry cancel runs inspect logs errors status schedule ticks why backfill pause resume version shutdown prune backup schema".split()
LOCAL = ["try", "doctor"]
COMMANDS = module.OPERATIONS | module.LOCAL_COMMANDS


def test_the_operations_are_these() -> None:
    assert set(module.OPERATIONS) == set(NAMES)
    assert set(module.LOCAL_COMMANDS) == set(LOCAL)


@pytest.mark.parametrize("name", [*NAMES, *LOCAL])
def test_every_argument_is_explained_and_in_every_face(name: str) -> None:
    chosen = COMMANDS[name]
    schema, parser = chosen.schema(), module.build_parser(chosen)
    known = {action.dest for action in parser._actions}
    assert chosen.summary.endswith((".", "terminal."))
    assert list(schema["properties"]) == list(chosen.arguments)
    for argument in chosen.arguments.values():
        assert argument.meaning, argument.name
        assert argument.name in known
        assert schema["properties"][argument.name]["description"] == argument.meaning
    assert schema["required"] == [one.name for one in chosen.arguments.values() if one.required]
    assert chosen.effect in ("reads", "writes", "destroys", "local")


def test_the_schema_is_served(tau: Tau) -> None:
    schema = tau("schema")
    assert [one["name"] for one in schema["operations"]] == list(module.OPERATIONS)
    run = next(one for one in schema["operations"] if one["name"] == "run")
    assert run["params"]["properties"]["wait"] == {
        "type": "boolean",
        "default": True,
        "description": "do not wait: answer as soon as the run is durable",
    }
    assert run["params"]["properties"]["params"]["type"] == ["object", "null"]
    assert schema["moves"]["queued"] == ["running", "cancelled", "timed_out"]


CHECKS: list[tuple[str, dict[str, Any], str]] = [
    ("show", {}, "'show' needs 'name'"),
    ("show", {"name": 1}, "'name': expected string, given integer 1"),
    ("show", {"name": "x", "nam": "y"}, "'show' has no argument 'nam'"),
    ("list", {"limit": "5"}, "'limit': expected integer, given string"),
    ("list", {"limit": 1.5}, "'limit': expected integer, given number 1.5"),
    ("list", {"limit": None}, "'limit': expected integer, given null"),
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
    done = home.command(name, "--help")
    assert done.exit == 0
    assert COMMANDS[name].summary.split()[0] in done.out
    assert max(map(len, done.out.splitlines())) <= 96


def test_without_docstrings_nothing_breaks(home: Tau) -> None:
    command = [python("main")[0], "-OO", *python("main")[1:]]
    for words in (["--help"], ["run", "--help"], ["status"]):
        done = subprocess.run([*command, *words], env=home.environ, capture_output=True, text=True, timeout=60)
        assert done.returncode in (0, 6), done.stderr
