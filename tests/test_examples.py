"""Every example does what its docstring says."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pytest
from conftest import REPOSITORY, Tau

EXAMPLES = sorted([*(REPOSITORY / "examples").glob("*.py"), *(REPOSITORY / "examples").glob("*/main.py")])


def contains(document: Any, expected: Any) -> bool:
    """Whether a document has everything that is expected, and maybe more."""
    if isinstance(expected, dict):
        return all(key in document and contains(document[key], value) for key, value in expected.items())
    if isinstance(expected, list) and isinstance(document, list):
        return len(document) == len(expected) and all(map(contains, document, expected))
    return bool(document == expected)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(REPOSITORY / "examples")))
def test_an_example_does_what_it_says(tau: Tau, path: Any) -> None:
    text = path.read_text(encoding="utf-8")
    told = re.findall(r"\$ tau (run .+)\n\s*(\{.+\})", ast.get_docstring(ast.parse(text)) or "")
    assert told or path.stem == "hello_world"
    assert len(text.splitlines()) <= 60
    tau("deploy", path if path.stem != "main" else path.parent)
    for words, expected in told or [
        ("run hello_world", '{"result": {"records_processed": 2}, "trace": {"log_lines": 3}}')
    ]:
        document = tau.command(*words.split()).json
        assert contains(document, json.loads(expected)), document
