"""Every example does what its docstring says."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pytest
from conftest import REPOSITORY, Tau

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))


def contains(document: Any, expected: Any) -> bool:
    """Whether a document has everything that is expected, and maybe more."""
    if isinstance(expected, dict):
        return all(key in document and contains(document[key], value) for key, value in expected.items())
    return bool(document == expected)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_does_what_it_says(tau: Tau, path: Any) -> None:
    text = path.read_text(encoding="utf-8")
    told = re.findall(r"\$ tau (run .+)\n\s*(\{.+\})", ast.get_docstring(ast.parse(text)) or "")
    assert told or path.stem == "hello_world"
    assert len(text.splitlines()) <= 60
    tau("deploy", path)
    for words, expected in told or [
        ("run hello_world", '{"result": {"records_processed": 2}, "trace": {"log_lines": 3}}')
    ]:
        document = tau.command(*words.split()).json
        assert contains(document, json.loads(expected)), document
