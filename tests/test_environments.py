"""Virtual environments of pipelines: what a header asks for, built once, side by side."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, Tau, eventually, is_running
from test_terminal import typed

import tau as module


def wheel(folder: Path, version: str, more: str = "") -> Path:
    """A package `tinything` of one module, as a wheel that needs no index."""
    path = folder / f"tinything-{version}-py3-none-any.whl"
    about = f"tinything-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tinything.py", f"VERSION = {version!r}\n{more}")
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: tinything\nVersion: {version}\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        names = ("tinything.py", f"{about}/METADATA", f"{about}/WHEEL", f"{about}/RECORD")
        file.writestr(f"{about}/RECORD", "".join(f"{name},,\n" for name in names))
    return path


def header(*requirements: str) -> str:
    """A PEP 723 header."""
    listed = ", ".join(f'"{one}"' for one in requirements)
    return f"# /// script\n# dependencies = [{listed}]\n# ///\n"


def needs(path: Path) -> str:
    """The requirement that is this wheel."""
    return f"tinything @ {path.as_uri()}"


#: Each of two runs waits until both run.
TOGETHER = """
import os, time
from tau import pipeline
import tinything

@pipeline(name="{name}")
def it(ctx):
    open(ctx.params["here"], "w").close()
    while not os.path.exists(ctx.params["there"]):
        time.sleep(0.005)
    return {{"version": tinything.VERSION, "file": tinything.__file__}}
"""


def test_two_pipelines_run_side_by_side_with_two_versions_of_a_package(tau: Tau) -> None:
    ids, versions = [], ("1.0", "2.0")
    for version in versions:
        name = f"tiny{version[0]}"
        text = header(needs(wheel(tau.work, version))) + TOGETHER.format(name=name)
        first = tau.deploy(text, f"{name}.py")
        assert first["environments"][0]["built"] is True
        assert "tinything" in "\n".join(first["environments"][0]["log"])
        again = tau.deploy(text + "\n# changed", f"{name}.py")
        assert again["changed"] is True
        assert again["environments"][0]["built"] is False
        marks = {"here": str(tau.work / version), "there": str(tau.work / ("2.0" if version == "1.0" else "1.0"))}
        ids.append(tau.call("run", name=name, params=marks, wait=False)["run_id"])
    runs = tau("wait", *ids)["runs"]
    assert [run["status"] for run in runs] == ["success", "success"]
    assert [run["result"]["version"] for run in runs] == list(versions)
    assert all("/environments/" in run["result"]["file"] for run in runs)
    with pytest.raises(ModuleNotFoundError):
        __import__("tinything")


def test_a_build_that_fails_changes_nothing_and_shows_its_log(tau: Tau) -> None:
    tau.deploy("from tau import pipeline\n@pipeline\ndef mine(ctx): return 1\n", "mine.py")
    absent = header(f"tinything @ {(tau.work / 'tinything-9.0-py3-none-any.whl').as_uri()}")
    error = tau.deploy(absent + "from tau import pipeline\n@pipeline\ndef mine(ctx): return 2\n", "mine.py", exit=2)
    assert error["code"] == "load_failed"
    assert "cannot be installed" in error["message"]
    assert any("tinything" in line for line in error["log"])
    assert tau("show", "mine")["version"] == 1
    built = {one.parent.name for one in (tau.home / "environments").glob("*/built")}
    folders = {one.name for one in (tau.home / "environments").iterdir() if one.is_dir()}
    assert folders == built


MALFORMED = {
    "not closed": ("# /// script\n# dependencies = []\n", "is not closed"),
    "no comment": ("# /// script\n# dependencies = [\n'x',\n# ]\n# ///\n", "is not closed"),
    "not TOML": ("# /// script\n# dependencies = [\n# ///\n", "not TOML"),
    "twice": (header("a") + "\n" + header("b"), "is there twice"),
    "not a list": ('# /// script\n# dependencies = "a"\n# ///\n', "expected array of string"),
    "an option": ('# /// script\n# dependencies = ["--index-url=x"]\n# ///\n', "must be a list"),
    "typo": ('# /// script\n# dependancies = ["a"]\n# ///\n', "did you mean 'dependencies'"),
    "too new": ('# /// script\n# requires-python = ">=4.0"\n# dependencies = ["a"]\n# ///\n', "requires Python >=4.0"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_header_is_refused_with_its_line(tau: Tau, case: str) -> None:
    text, message = MALFORMED[case]
    error = tau.deploy(
        "'''A doc.'''\n" + text + "from tau import pipeline\n@pipeline\ndef never(ctx): ...\n", "h.py", exit=2
    )
    assert error["code"] == "load_failed"
    assert message in error["message"]
    assert error["line"] == 2
    assert "# /// script" in error["hint"]


@pytest.mark.parametrize(
    "text", ["", "# /// script\n# dependencies = []\n# ///\n", "# /// other\n# x\n# ///\n", "# no header"]
)
def test_without_dependencies_a_pipeline_runs_in_the_daemons_python(text: str) -> None:
    assert module.read_header(text, "x.py") is None


ADMITTED: list[tuple[str, bool]] = [
    *(
        (text, True)
        for text in (
            "",
            ">=3.11",
            ">3.10",
            ">3.12",
            "<=3.12.1",
            "<3.12.2",
            "==3.12.*",
            "==3.12",
            "~=3.11",
            ">=3.11,<4",
            "!=3.13",
        )
    ),
    *(
        (text, False)
        for text in (
            ">=3.13",
            ">3.12.1",
            "<3.12.1",
            "<=3.12",
            "<3.12",
            "==3.11.*",
            "~=3.13",
            "!=3.12.*",
            "3.12",
            ">=three",
            "~=4.0",
        )
    ),
]


@pytest.mark.parametrize(("wanted", "admitted"), ADMITTED)
def test_a_required_python_is_compared_part_by_part(wanted: str, admitted: bool) -> None:
    assert module.admits(wanted, (3, 12, 1)) is admitted


def test_uv_is_used_where_it_is_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    make, install = module.build_commands("/e", ["a"])
    assert make == [sys.executable, "-m", "venv", "/e", "--without-pip"]
    assert install[:5] == [sys.executable, "-m", "pip", "--python", "/e/bin/python"]
    (tmp_path / "uv").write_text("#!/bin/sh\n")
    (tmp_path / "uv").chmod(0o700)
    assert module.build_commands("/e", ["a"])[1] == [
        str(tmp_path / "uv"),
        "pip",
        "install",
        "--python",
        "/e/bin/python",
        "a",
    ]


def fake_uv(folder: Path, script: str) -> dict[str, str]:
    """An environment in which `uv` is a script."""
    folder.mkdir()
    (folder / "uv").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "uv").chmod(0o700)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_a_build_that_takes_too_long_is_ended_with_all_its_processes(home: Tau) -> None:
    (home.home / "tau.toml").write_text("[daemon]\nbuild_timeout_s = 0.3\n")
    home.environ |= fake_uv(home.work / "bin", f"sleep 300 & echo $! > {home.work}/pid; wait")
    home.start()
    error = home.deploy(header("anything") + "from tau import pipeline\n@pipeline\ndef it(ctx): ...\n", exit=2)
    assert "build_timeout_s" in error["message"]
    pid = int((home.work / "pid").read_text())
    eventually(lambda: not is_running(pid))


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("command", ["deploy", "check", "try"])
def test_a_terminal_says_that_an_environment_is_being_built(home: Tau, command: str, columns: int) -> None:
    said = "echo 'Collecting anything'; printf 'Downloading \\033[2J it'; echo"
    home.environ |= fake_uv(home.work / "bin", f"{said}; while [ ! -e {home.go} ]; do sleep 0.05; done; exit 1")
    home.start()
    path = home.write(header("anything") + "from tau import pipeline\n@pipeline\ndef it(ctx): ...\n")
    with typed(home, command, path, columns=columns, TMPDIR=str(home.work)) as (child, read_until):
        read_until(r"  \d+s  building the environment: Downloading \\x1b\[2J it\x1b")
        home.go.touch()
        assert "cannot be installed" in read_until(None)
        assert child.wait(PATIENCE_S) == 2


def test_who_gives_up_waiting_for_a_build_ends_it(home: Tau) -> None:
    home.environ |= fake_uv(home.work / "bin", f"sleep 300 & echo $! > {home.work}/pid; wait")
    home.start()
    with home.connect() as wire:
        text = header("anything") + "from tau import pipeline\n@pipeline\ndef it(ctx): ...\n"
        wire.send({"id": 1, "method": "deploy", "params": {"files": [{"path": "it.py", "text": text}]}})
        pid = int(eventually(lambda: (home.work / "pid").exists() and (home.work / "pid").read_text()))
    eventually(lambda: not is_running(pid))
    assert not list((home.home / "environments").glob("*/built"))


def test_an_environment_that_no_version_needs_goes_with_the_next_start(home: Tau) -> None:
    home.start()
    text = (
        header(needs(wheel(home.work, "1.0")))
        + "from tau import pipeline\nimport tinything\n@pipeline\ndef it(ctx): return tinything.VERSION\n"
    )
    built = home.deploy(text)["environments"][0]["digest"]
    stray = home.home / "environments" / "0123456789ab"
    stray.mkdir()
    home.kill()
    home.start()
    eventually(lambda: not stray.exists())
    assert (home.home / "environments" / built).exists()
    assert home("run", "it")["result"] == "1.0"
    shutil.rmtree(home.home / "environments" / built)
    run: Any = home.command("run", "it").json
    assert run["error"]["kind"] == "died"
    assert home.deploy(text)["environments"][0]["built"] is True
    assert home("run", "it")["result"] == "1.0"


def test_a_header_is_read_in_linear_time() -> None:
    """Each of these took minutes as a regular expression."""
    for line in ("# /// a\n", "# /// script\n", "#\n", "# ///\n"):
        source = line * 200_000
        if "script" in line:
            with pytest.raises(module.LoadFailed):
                module.read_header(source, "it.py")
        else:
            assert module.read_header(source, "it.py") is None
