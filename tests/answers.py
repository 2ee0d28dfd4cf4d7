"""Every document that a test gets must have the shape that `tau schema` publishes, and no field besides."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

import tau as module

#: What has been validated: documents of one kind and shape are alike, as a schema asks for nothing but shapes.
SEEN: set[Any] = set()
TYPES = frozenset(module.EVENT_TYPES)


def close(schema: Any, is_part: bool) -> Any:
    """The schema whose objects have no other fields; *is_part* says that --fields has left some out."""
    if isinstance(schema, list):
        return [close(item, is_part) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close(value, is_part) for key, value in schema.items() if not (is_part and key == "required")}
    return closed | ({"additionalProperties": False} if "properties" in schema and "type" in schema else {})


@functools.cache
def validator(kind: str, is_part: bool) -> Draft202012Validator:
    return Draft202012Validator(close(module.document_schema(kind), is_part))


def shape(value: Any) -> Any:
    """The keys of a value and the types of what they hold; of a type of events also the word."""
    if isinstance(value, dict):
        return tuple((key, shape(item)) for key, item in value.items())
    if isinstance(value, list):
        return frozenset(map(shape, value))
    return value if value in TYPES else type(value)


def validate(kind: str, document: Any, is_part: bool = False) -> None:
    """Fails unless the document is of this kind."""
    mark = kind, is_part, shape(document)
    if mark not in SEEN:
        wrong = best_match(validator(kind, is_part).iter_errors(document))
        assert wrong is None, (kind, [*wrong.absolute_path], wrong.message[-500:], "tau.SHAPES says what it should be")
        SEEN.add(mark)


def validate_answer(name: str, document: Any, is_part: bool = False) -> None:
    """Validates what an operation answers; one that a test has made is not published."""
    if name in ("ping", "hello"):
        validate(name, document)
    elif entry := (module.OPERATIONS | module.LOCAL_COMMANDS).get(name):
        validate(module.answer_of(entry), document, is_part)


def validate_message(message: Any, asked: dict[Any, Any]) -> None:
    """Validates a message of the wire; *asked* are the requests by id."""
    if not isinstance(message, dict):
        return
    if "error" in message:
        validate("error", message["error"]["data"] | {"message": message["error"]["message"]})
    elif "result" in message and (request := asked.get(repr(message.get("id")))):
        validate_answer(request["method"], message["result"], "fields" in (request.get("params") or {}))
    elif message.get("method") == "event":
        event = {key: value for key, value in message["params"].items() if key != "request"}
        validate(f"followed.{event['type']}", event)


def validate_output(words: Iterable[Any], out: str, err: str) -> None:
    """Validates what a command has printed for a program."""
    for report in read_lines(err):
        for kind in report.keys() & {"error", "warning"}:
            validate(kind, report[kind])
    name, is_part = command_of([*map(str, words)])
    for document in read_lines(out):
        if {"seq", "type"} <= document.keys():
            validate("event" if "actor" in document else f"followed.{document['type']}", document)
        elif name:
            validate_answer(name, document, is_part)


def read_lines(text: str) -> list[Any]:
    """The objects in a text with one JSON document a line; none in other texts."""
    try:
        documents = [json.loads(line) for line in text.splitlines()]
    except (ValueError, RecursionError):
        return []
    return [document for document in documents if isinstance(document, dict)]


def command_of(words: list[str]) -> tuple[str, bool]:
    """The operation that a command line calls, "" if it prints no answer, and whether it asks for some fields only."""
    if not words:
        return "watch", True
    named = []
    while words and len(named) < 2:
        word, *words = words
        if word in ("--env", "--host", "--home"):
            words = words[1:]
        elif not word.startswith("-"):
            named.append(word)
    found = [module.SHELL_COMMANDS.get(" ".join(named[:count])) for count in (2, 1)]
    name = next((entry.name for entry in found if entry), "")
    return name, any(word.startswith("--fields") for word in words)
