"""The way from files to pipelines: packages, links, files that go along, and where a deployment came from."""

from __future__ import annotations

import shlex
import sqlite3
from pathlib import Path

import pytest
from conftest import Tau

import tau as module


def lay(tau: Tau, folder: str, files: dict[str, str]) -> Path:
    """A folder with such files; a text that begins with `-> ` is where a link leads."""
    root = tau.work / folder
    for path, text in files.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            place.symlink_to(text.removeprefix("-> "))
        else:
            place.write_text(text, encoding="utf-8")
    return root


def job(name: str, imports: str = "", result: str = "__name__") -> str:
    return f"from tau import pipeline\n{imports}\n@pipeline\ndef {name}(ctx):\n    return {result}\n"


def package(name: str) -> dict[str, str]:
    """A package whose files import each other in each way there is."""
    return {
        "shop/__init__.py": "LOADED = []\nLOADED.append(1)\n",
        "shop/rules.py": "from . import LOADED\nLIMIT = 3\n",
        "shop/plain.py": "",
        "shop/deep/__init__.py": "",
        "shop/deep/more.py": "from ..rules import LIMIT as MORE\n",
        "shop/relative.py": job(
            f"{name}_relative",
            "from .rules import LIMIT\nfrom .deep import more\nimport shop",
            "[LIMIT, more.MORE, shop.LOADED, __name__, __package__, shop.relative is __import__('sys').modules[__name__]]",
        ),
        "shop/absolute.py": job(
            f"{name}_absolute", "from shop.deep.more import MORE\nimport plain", "[MORE, __file__]"
        ),
    }


#: How a package is deployed, in the folder that it is in → which of its two files are loaded.
PACKAGES = {
    "deploy .": ("relative", "absolute"),
    "deploy shop": ("relative", "absolute"),
    "deploy shop --entry relative.py": ("relative",),
    "deploy . --entry shop/absolute.py": ("absolute",),
    "deploy shop --entry shop/relative.py": ("relative",),
    "deploy shop/relative.py --include shop": ("relative",),
    "deploy shop/absolute.py --include shop/__init__.py shop/rules.py shop/plain.py shop/deep": ("absolute",),
    "cd shop; deploy . --entry absolute.py": ("absolute",),
    "cd shop; deploy relative.py --include .": ("relative",),
}


@pytest.mark.parametrize("line", PACKAGES)
def test_a_package_runs_as_python_m_would_run_it(tau: Tau, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"package_{[*PACKAGES].index(line)}"
    root = lay(tau, name, package(name))
    folder, _, command = line.rpartition("; ")
    monkeypatch.setattr(tau, "work", root / folder.removeprefix("cd "))
    deployed = tau(*shlex.split(command))["pipelines"]
    assert {row["name"] for row in deployed} == {f"{name}_{file}" for file in PACKAGES[line]}
    for file in PACKAGES[line]:
        run = tau.call("run", name=f"{name}_{file}")
        assert run["status"] == "success", run["error"]
        if file == "relative":
            assert run["result"] == [3, 3, [1], "shop.relative", "shop", True]
        else:
            assert run["result"][0] == 3
            assert run["result"][1].endswith("/shop/absolute.py")
    assert tau(*shlex.split(command))["changed"] is False
    assert tau(*shlex.split(command.replace("deploy", "check")))["missing_imports"] == []


def test_a_package_may_be_loaded_from_its_own_init(tau: Tau) -> None:
    root = lay(tau, "own_init", {"it_pack/__init__.py": job("from_init", "from .a import A", "[A, __name__]")})
    lay(tau, "own_init", {"it_pack/a.py": "A = 1\n"})
    tau("deploy", root)
    assert tau.call("run", name="from_init")["result"] == [1, "it_pack"]


def test_what_was_left_behind_is_told_how_to_come_along(tau: Tau) -> None:
    root = lay(tau, "helped", {"main.py": job("helpless", "import helper, tools.x"), "helper.py": "import more\n"})
    lay(tau, "helped", {"more.py": "", "tools/x.py": "", **package("lonely")})
    line = f"tau deploy {root}/main.py"
    for path in ("helper.py", "more.py", "tools"):
        hint = tau(*shlex.split(line)[1:], exit=2)["hint"]
        line = f"{line} --include {root}/{path}"
        assert hint == line
    assert tau(*shlex.split(line)[1:])["changed"] is True
    assert "deploy the package's folder" in tau("deploy", root / "shop" / "relative.py", exit=2)["hint"]
    assert "name it in the header" in tau("deploy", root / "shop" / "absolute.py", exit=2)["hint"]


LINKED = {
    "etl/main.py": job("linked", "import one\nfrom common import tools", "[one.X, tools.X]"),
    "etl/one.py": "-> ../shared/one.py",
    "etl/common": "-> ../shared/common",
    "shared/one.py": "X = 1\n",
    "shared/common/tools.py": "X = 2\n",
}


def test_links_that_are_named_are_followed(tau: Tau) -> None:
    root = lay(tau, "linked", LINKED)
    for words in ((root / "etl",), (root / "etl" / "main.py",)):
        tau("deploy", *words, "--include", root / "etl" / "common", root / "etl" / "one.py")
        assert tau.call("run", name="linked")["result"] == [1, 2]
        assert tau("code", "linked")["files"] == ["common/tools.py", "main.py", "one.py"]


def test_links_inside_the_folder_are_followed(tau: Tau) -> None:
    root = lay(tau, "inside", {**LINKED, "etl/one.py": "-> b/x.py", "etl/common": "-> b", "etl/b/x.py": "X = 1\n"})
    lay(tau, "inside", {"etl/b/tools.py": "X = 2\n", "etl/.hidden": "-> /nowhere", "etl/venv": "-> ../venv"})
    lay(tau, "inside", {"venv/pyvenv.cfg": "", "aside": "-> etl"})
    tau("undeploy", "linked")
    for folder in ("etl", "aside"):
        tau("deploy", root / folder)
        assert tau.call("run", name="linked")["result"] == [1, 2]
        files = ["b/tools.py", "b/x.py", "common/tools.py", "common/x.py", "main.py", "one.py"]
        assert tau("code", "linked")["files"] == files


#: A link in the folder → what is said of it.
LOST = {
    "-> ../shared/one.py": "leads out of the folder",
    "-> ../shared": "leads out of the folder",
    "-> /etc/hostname": "leads out of the folder",
    "-> nowhere.py": "No such file",
    "-> it": "Too many levels",
    "-> .": "leads back",
    "-> ..": "leads out of the folder",
    "-> b": "leads back",
}


@pytest.mark.parametrize("link", LOST)
def test_a_link_that_cannot_be_followed_is_refused_by_name(tau: Tau, link: str) -> None:
    name = f"lost_{[*LOST].index(link)}"
    files = {
        "etl/main.py": job(name),
        "etl/it": link,
        "etl/b/main.py": "",
        "etl/b/back": "-> ../b",
        "shared/one.py": "",
    }
    root = lay(tau, name, files if link == "-> b" else files | {"etl/b/back": ""})
    error = tau("deploy", root / "etl", exit=2)
    assert LOST[link] in error["message"]
    assert f"{root}/etl/{'b/back' if link == '-> b' else 'it'}" in error["message"]
    if "out" in LOST[link] and link != "-> ..":
        assert error["hint"] == f"tau deploy {root}/etl --include {root}/etl/it"
        assert tau(*shlex.split(error["hint"])[1:])["changed"] is True
        assert tau("code", name)["files"] != ["main.py"]


def test_what_is_included_twice_is_there_once(tau: Tau) -> None:
    root = lay(tau, "twice", {"main.py": job("twice"), "a.py": ""})
    assert tau("deploy", root, "--include", root / "a.py", "--include", root / "a.py", root)["changed"] is True
    assert tau("code", "twice")["files"] == ["a.py", "main.py"]
    files = [{"path": "a.py", "text": text} for text in ("x = 1", "x = 2")]
    with tau.connect() as wire:
        answer = wire.ask({"id": 1, "method": "deploy", "params": {"files": files}})
    assert answer["error"]["message"] == "two files would be 'a.py'"


def test_what_a_file_no_longer_has_is_told_with_the_way_out(tau: Tau) -> None:
    root = lay(
        tau, "gone", {"job.py": job("gone_a") + job("gone_b").replace("from", "#from"), "same.py": job("gone_c")}
    )
    assert "no_longer_in_file" not in tau("deploy", root / "job.py")
    tau("deploy", root / "same.py")
    (root / "job.py").write_text(job("gone_new"))
    assert "no_longer_in_file" not in tau("check", root / "job.py")
    deployed = tau("deploy", root / "job.py", "--name", "gone_new")
    assert deployed["no_longer_in_file"] == ["gone_a", "gone_b"]
    assert deployed["next"] == ["tau undeploy gone_a", "tau undeploy gone_b"]
    assert tau("deploy", root / "job.py")["no_longer_in_file"] == ["gone_a", "gone_b"]  # as long as they are there
    for line in deployed["next"]:
        tau(*shlex.split(line)[1:])
    assert "no_longer_in_file" not in tau("deploy", root / "job.py")
    tau("deploy", root / "job.py", "--name", "gone_renamed")
    assert "no_longer_in_file" not in tau("deploy", root / "job.py")  # it still has the function


def test_of_a_folder_only_what_was_loaded_can_be_gone(tau: Tau) -> None:
    root = lay(tau, "several_gone", {"one.py": job("fold_one"), "two.py": job("fold_two"), "six.py": job("fold_six")})
    tau("deploy", root)
    (root / "one.py").write_text(job("fold_other"))
    (root / "six.py").unlink()
    assert tau("deploy", root, "--entry", "two.py")["no_longer_in_file"] == ["fold_six"]
    assert tau("deploy", root)["no_longer_in_file"] == ["fold_one", "fold_six"]


def test_another_files_name_is_taken_only_on_purpose(tau: Tau, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay(tau, "taken", {"job.py": job("taken"), "other.py": job("taken", result="'other'")})
    lay(tau, "taken", {"copy/job.py": job("taken")})
    monkeypatch.setattr(tau, "work", root)
    tau("deploy", "job.py")
    error = tau("deploy", "other.py", exit=5)
    assert error["message"] == f"deployed from another file: taken {root}/job.py"
    assert (error["previously"], error["hint"]) == ({"taken": f"{root}/job.py"}, "tau deploy other.py --take-over")
    assert tau.call("run", name="taken")["result"] == "job"
    taken = tau(*shlex.split(error["hint"])[1:])
    assert (taken["changed"], taken["previously"]) == (True, {"taken": f"{root}/job.py"})
    assert tau("deploy", "other.py") == {"changed": False, "pipelines": [taken["pipelines"][0] | {"changed": False}]}
    assert tau("deploy", "job.py", "--name", "free")["changed"] is True
    sent = [{"path": "x.py", "text": job("taken", result="'wire'")}]  # nobody knows from where
    with tau.connect() as wire:
        assert wire.ask({"id": 1, "method": "deploy", "params": {"files": sent}})["error"]["data"]["code"] == "conflict"
    tau.call("deploy", files=sent, take_over=True)
    assert "previously" not in tau("deploy", "other.py")
    tau("undeploy", "taken")
    assert "previously" not in tau("deploy", "job.py")
    version = tau("show", "taken")["version"]
    assert (
        tau("deploy", "copy/job.py")["changed"] is tau("deploy", "job.py")["changed"] is False
    )  # the same from elsewhere
    assert tau("show", "taken")["options"]["origin"] == [str(root / "job.py")]
    assert tau("show", "taken")["version"] == version


def test_another_file_of_a_deployed_folder_is_another_file(tau: Tau) -> None:
    folder = tau.work / "filed"
    (folder / "archive").mkdir(parents=True)
    text = "from tau import pipeline\n@pipeline\ndef filed(ctx): return {!r}\n"
    for name in ("main.py", "other.py", "archive/old.py"):
        (folder / name).write_text(text.format(name))
    tau("deploy", folder, "--entry", "main.py")
    for words in ((folder / "archive" / "old.py",), (folder, "--entry", "other.py")):
        assert tau("deploy", *words, exit=5)["code"] == "conflict"
    assert tau("run", "filed")["result"] == "main.py"
    tau("deploy", folder, "--entry", "other.py", "--take-over")
    assert tau("run", "filed")["result"] == "other.py"
    for name in ("main.py", "archive/old.py"):
        (folder / name).unlink()
    (folder / "other.py").rename(folder / "new.py")
    tau("deploy", folder)


def test_a_file_and_the_folder_that_it_is_in_are_no_strangers(tau: Tau) -> None:
    root = lay(tau, "inside_of", {"shop/__init__.py": "", "shop/main.py": job("inside_of")})
    for number, path in enumerate(("shop/main.py", "shop", ".", "shop", "shop/main.py")):
        (root / "shop" / "main.py").write_text(job("inside_of", result=str(number)))
        assert tau("deploy", root / path)["changed"] is True, path
        assert tau.call("run", name="inside_of")["result"] == number
    files = [{"path": "main.py", "text": job("inside_of", result="'odd'"), "from": odd} for odd in ("not/absolute",)]
    assert "previously" in tau.call("deploy", files=files, take_over=True)


FAILING = job("report", "import helper", "1 / 0")


def test_what_was_typed_deploys_it_again(tau: Tau, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tau.work
    root = lay(tau, "typed", {"a b/main.py": FAILING, "a b/helper.py": "", "-x/lib.py": "", "-x/main.py": FAILING})
    for line, where in {
        "deploy 'a b'": root,
        "deploy 'a b' --entry main.py": root,
        "deploy .": root / "a b",
        "deploy main.py --include helper.py": root / "a b",
        "deploy 'a b/main.py' --include 'a b/helper.py' ./-x/lib.py --name report": root,
        "deploy ./-x --include 'a b/helper.py'": root,
    }.items():
        monkeypatch.setattr(tau, "work", where)
        tau(*shlex.split(line), "--take-over")
        again = tau("run", "report", exit=1)["source"]["deployed_from"]
        assert tau("deploy", *again)["changed"] is False
        monkeypatch.setattr(tau, "work", work)
        assert tau("inspect", "report")["source"]["deployed_from"] == again
    assert again == [f"{root}/-x", "--include", f"{root}/a b/helper.py"]
    sent = [{"path": "main.py", "text": FAILING}, {"path": "helper.py", "text": ""}]
    tau.call("deploy", files=sent, entry="main.py", take_over=True)
    assert tau("run", "report", exit=1)["source"]["deployed_from"] == []


def test_what_was_undeployed_is_brought_back_by_what_was_typed(tau: Tau) -> None:
    lay(tau, "back", {"job.py": job("back_again")})
    tau("deploy", "back/job.py")
    tau("undeploy", "back_again")
    for command in ("run", "show", "schedule"):
        assert tau(command, "back_again", exit=3)["hint"] == "tau deploy back/job.py", command
    assert tau("deploy", "back/job.py")["changed"] is True


def test_what_an_older_tau_has_deployed_is_not_new(home: Tau) -> None:
    home.start()
    lay(home, "old", {"job.py": job("old", result="1 / 0")})
    home("deploy", "old/job.py")
    home("shutdown")
    db = sqlite3.connect(home.home / "tau.db")
    with db:  # neither where it came from nor some options were known
        db.execute("UPDATE versions SET options = json_remove(options, '$.origin', '$.memory', '$.drift')")
    db.close()
    home.start()
    assert home("run", "old", exit=1)["source"]["deployed_from"] is None
    assert home("deploy", "old/job.py")["changed"] is False
    assert home("inspect", "old")["source"]["deployed_from"] == [f"{home.work}/old/job.py"]


def test_a_pipeline_belongs_to_the_file_that_declares_it(tau: Tau) -> None:
    rates = "from tau import pipeline\nRATE = 2\n@pipeline\ndef rates(ctx): return RATE\n"
    uses = "from tau import pipeline\nfrom rates import RATE\n@pipeline\ndef uses(ctx): return RATE * 2\n"
    root = lay(tau, "declared", {"rates.py": rates, "uses.py": uses})
    deployed = tau("deploy", root)["pipelines"]
    assert {row["name"] for row in deployed} == {"rates", "uses"}
    assert tau.call("run", name="uses")["result"] == 4


@pytest.mark.parametrize("name", ["csv", "sqlite3", "json"])
def test_a_file_may_be_named_like_a_library(tau: Tau, name: str) -> None:
    root = lay(
        tau, f"named_{name}", {f"{name}.py": f"from tau import pipeline\n@pipeline\ndef like_{name}(ctx): return 1\n"}
    )
    tau("deploy", root / f"{name}.py")
    assert tau("run", f"like_{name}")["result"] == 1
    tau("undeploy", f"like_{name}")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_header_from_windows_is_read(end: str) -> None:
    source = end.join(["# /// script", '# dependencies = ["polars==0.0.1"]', "# ///", "x = 1"])
    for text in (source, "\ufeff" + source):
        assert module.read_header(text, "x.py")["dependencies"] == ["polars==0.0.1"]  # type: ignore[index]


def test_hints_about_imports_lead_on(tau: Tau, tmp_path: Path) -> None:
    for name in ("lib", "pipes"):
        (tmp_path / name).mkdir()
    (tmp_path / "lib" / "h.py").write_text("H = 4\n")
    source = "from tau import pipeline\n{}\n@pipeline\ndef mono(ctx): return 1\n"
    path = tmp_path / "pipes" / "a.py"
    path.write_text(source.format("from lib.h import H"))
    said = tau("deploy", tmp_path, "--entry", "pipes/a.py", exit=2)
    assert said["hint"] == "lib was deployed: with pipes/__init__.py imports begin in the folder above"
    (tmp_path / "pipes" / "__init__.py").touch()
    tau("deploy", tmp_path, "--entry", "pipes/a.py")
    path.write_text(source.format("import h"))
    hint = tau("deploy", tmp_path, "--entry", "pipes/a.py", exit=2)["hint"]
    assert hint == "it was deployed as lib/h: import lib.h"
    path.write_text(source.format("from lib.h import G"))
    assert "relative" not in str(tau("deploy", tmp_path, "--entry", "pipes/a.py", exit=2)["hint"])
    tau("undeploy", "mono")


def test_a_folder_that_is_too_large_is_refused_with_its_largest_file(tau: Tau, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from tau import pipeline\n@pipeline\ndef it(ctx): ...\n")
    for name, size in (("one.csv", 3 << 20), ("two.csv", 4 << 20)):
        (tmp_path / name).write_bytes(b"x" * size)
    said = tau("deploy", tmp_path, exit=2)
    assert (said["code"], Path(said["file"]).name) == ("load_failed", "two.csv")
    assert said["message"].endswith(f"the largest file is {tmp_path / 'two.csv'}")
