"""What is deployed is exactly what runs, what is listed, hashed, shown and backed up."""

from __future__ import annotations

import base64
import marshal
import sys
from typing import Any

import pytest
from conftest import Tau

MAIN = """
import helper
from tau import pipeline
@pipeline
def it(ctx):
    try:
        import shadow
    except ImportError:
        shadow = None
    exec(ctx.params.get("do", ""))
    return [helper.VALUE, shadow is None]
"""


def deploy(tau: Tau, **others: bytes) -> str:
    """Deploys the pipeline `it` with a helper and other files; their digest."""
    files = {"main.py": MAIN.encode(), "helper.py": b"VALUE = 'source'"} | others
    rows = [{"path": path, "base64": base64.b64encode(content).decode()} for path, content in files.items()]
    tau.call("deploy", files=rows, entry="main.py")
    code = tau.call("code", name="it")
    assert code["files"] == sorted(files)
    return str(code["sha256"])


def run(tau: Tau, do: str = "") -> Any:
    return tau.call("run", name="it", params={"do": do})["result"]


COMPILED = marshal.dumps(compile("VALUE = 'compiled'", "helper.py", "exec"))


@pytest.mark.parametrize("path", ["helper.pyc", "__pycache__/helper.cpython-311.pyc", "a/__pycache__/b", "x.pyo"])
def test_compiled_python_is_not_deployed(tau: Tau, path: str) -> None:
    files = [{"path": "main.py", "text": MAIN}, {"path": path, "base64": base64.b64encode(COMPILED).decode()}]
    with tau.connect() as wire:
        refused = wire.ask({"id": 1, "method": "deploy", "params": {"files": files, "entry": "main.py"}})["error"]
    assert refused["data"]["code"] == "load_failed"
    assert path in refused["message"]


def test_no_file_that_is_deployed_is_taken_for_a_cache(tau: Tau) -> None:
    tag = sys.implementation.cache_tag
    deploy(tau, **{f"{name}.{tag}": COMPILED for name in ("main.py", "helper.py", "helper")})
    assert run(tau) == ["source", True]


def test_compiled_code_is_saved_beside_the_deployed_files_and_used_again(tau: Tau) -> None:
    digest = deploy(tau, note=b"with a cache of its own")
    folder = tau.home / "versions" / digest
    assert run(tau) == ["source", True]
    caches = {path: path.stat().st_mtime_ns for path in folder.with_name(f"{digest}.code").iterdir()}
    assert len(caches) == 2
    assert run(tau) == ["source", True]
    assert {path: path.stat().st_mtime_ns for path in caches} == caches
    assert sorted(path.name for path in folder.rglob("*")) == ["helper.py", "main.py", "note"]


@pytest.mark.parametrize(
    "change",
    [
        "open(here + '/shadow.py', 'w')",
        "open(here + '/helper.py', 'w').write('VALUE = 1 # ...')",
        "os.utime(here + '/helper.py', (1, 1)); os.truncate(here + '/helper.py', 0)",
        "os.unlink(here + '/helper.py'); os.mkfifo(here + '/helper.py')",
        "os.rename(here, here + 'x'); os.symlink(here + 'x', here)",
        "shutil.rmtree(here); os.mkfifo(here)",
        "os.mkdir(here + '/shadow'); open(here + '/shadow/__init__.py', 'w')",
    ],
)
def test_what_a_run_changes_of_the_deployed_files_changes_no_later_run(tau: Tau, change: str) -> None:
    deploy(tau, about=change.encode())
    assert run(tau, f"import os, shutil; here = os.path.dirname(__file__); {change}") == ["source", True]
    for _ in range(2):
        assert run(tau) == ["source", True]
