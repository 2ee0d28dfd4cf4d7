"""The manual is made from the code: its pages are whole, small and true, and what they show works as it is printed."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, REPOSITORY, Tau, eventually, python
from test_shape import HEAVY
from test_terminal import on_terminal

import tau as module

COMMANDS = module.OPERATIONS | module.LOCAL_COMMANDS
METHODS = {
    f"ctx.{name}": method
    for name, method in vars(module.PipelineContext).items()
    if inspect.isfunction(method) and not name.startswith("_")
}
OPTIONS = [one for one in inspect.signature(module.pipeline).parameters.values() if one.name != "function"]


def bare(function: Any) -> str:
    """The arguments of a function and their defaults, without annotations."""
    given = [one for one in inspect.signature(function).parameters.values() if one.name != "self"]
    return str(inspect.Signature([one.replace(annotation=inspect.Parameter.empty) for one in given]))


def page(topic: str) -> str:
    """A page with its words in one line."""
    return " ".join(module.manual_page(topic).split())


@pytest.mark.parametrize("topic", module.TOPICS)
def test_a_page_is_printed_without_a_daemon_and_is_small(home: Tau, topic: str) -> None:
    done = home.command("help", topic)
    assert (done.exit, done.err, done.out) == (0, "", module.manual_page(topic) + "\n")
    assert done.out.startswith(f"{topic}: {module.TOPICS[topic]}\n\n")
    assert len(done.out.encode()) < 6_000
    assert not re.search(r"^<|\n\n\n\n|[ \t]$", done.out, re.MULTILINE)
    assert max(map(len, re.sub("```.*?```", "", done.out, flags=re.DOTALL).splitlines())) <= 90
    assert on_terminal(home, "help", topic, NO_COLOR="1")[1].replace("\r\n", "\n") == done.out


def test_without_a_topic_all_pages_and_commands_are_listed(home: Tau) -> None:
    listed = home.command("help").out
    assert all(f"tau help {topic} " in listed for topic in module.TOPICS)
    assert listed == home.command("--help").out
    assert home.command("help", "run").out == home.command("run", "--help").out
    assert home("help", "authring", exit=2)["hint"] == "`tau --help` lists them"


#: Heavy modules that a page does without; `ast` needs contextlib.
LATE = [name for name in HEAVY if name != "contextlib"]


@pytest.mark.parametrize("words", [["help", "api"], ["help", "places"], ["skill"]])
def test_a_page_imports_nothing_heavy(fresh: Tau, words: list[str]) -> None:
    code = f"import sys\nbefore = {{*sys.modules}}\nimport tau\ntau.main({words!r})\n"
    code += f"print(*({{*sys.modules}} - before) & {{*{LATE!r}}}, file=sys.stderr)"
    environ = fresh.environ | {"PYTHONPATH": str(REPOSITORY)}  # its parts are packed apart since a taud has started
    done = subprocess.run([*python("main")[:-1], code], env=environ, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, "\n")


def test_the_api_is_told_as_it_is() -> None:
    api = module.pipeline_api()
    assert [(it["name"], it["call"]) for it in api["options"]] == [
        (one.name, f"{one.name}={one.default!r}") for one in OPTIONS
    ]
    assert {it["name"]: it["call"] for it in api["context"] if "(" in it["call"]} == {
        name: f"{name}{bare(method)}" for name, method in METHODS.items()
    }
    others = {"@source": module.source, "@target": module.target, "run_local": module.run_local}
    assert {it["name"]: it["call"] for it in api["others"]} == {"@per_row": "@per_row"} | {
        name: f"{name}{bare(function)}" for name, function in others.items()
    }
    assert next(it["signature"] for it in api["options"] if it["name"] == "retries") == "retries: int = 0"
    step = next(it for it in api["context"] if it["name"] == "ctx.step")
    assert step["signature"] == "ctx.step(name: str, timeout: float | str | None=None)"
    assert all(it["summary"] and "  " not in it["name"] for rows in api.values() for it in rows)


def test_the_pages_have_all_of_it() -> None:
    authoring, api, timing = page("authoring"), page("api"), page("scheduling")
    for name, method in METHODS.items():
        summary = " ".join((inspect.getdoc(method) or "").splitlines()[0].split())
        for text in (authoring, api):
            assert f" {name}{bare(method)} {summary}" in text
    for option in OPTIONS:
        call = f"{option.name}={option.default!r}"
        assert f"{call}, " in authoring or f"{call})" in authoring
        assert (f" {call} " in api) != (f" {call} " in timing), call
    for name in (*module.FILE_OPTIONS, *module.WEB_OPTIONS):
        assert f" {name}=" in page("places")
    for reader in (module.read_csv, module.records_of):
        named = [name for name, one in inspect.signature(reader).parameters.items() if one.kind is one.KEYWORD_ONLY]
        assert all(f"{name}=" in page("places") for name in named)
    assert module.EXITS.strip() in module.manual_page("failures")


@pytest.mark.parametrize("topic", [*module.TOPICS, ""])
def test_what_a_page_names_exists(topic: str) -> None:
    text = page(topic) if topic else " ".join(module.filled(module.SKILL).split())
    for line in re.findall(r"`tau ([a-z][^`]*)`", text):
        words = line.split()
        name = next(name for name in (" ".join(words[:2]), words[0]) if name in module.SHELL_COMMANDS)
        known = {flag for one in module.SHELL_COMMANDS[name].arguments.values() for flag in one.flags}
        assert {word for word in words if word.startswith("-")} <= known | {"--help"}, line
        if words[0] == "help":
            assert words[1] in module.TOPICS


ROWS = """id,day,customer,amount,status
1,2026-01-02, Ada ,12.5,paid
2,2026-01-02,bob,3,open
3,2026-01-03,Eve,7,paid
4,2025-12-31,Old,7,paid
"""


def test_the_example_is_deployed_as_the_page_says_and_a_second_run_changes_nothing(fresh: Tau) -> None:
    text = module.manual_page("authoring")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    fresh.write(example, "daily_orders.py")
    orders = fresh.write(ROWS, "orders.csv")
    lines = re.findall(r"^    tau (.+?)(?:  #.*)?$", text, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["peek", "check", "try", "deploy", "run", "peek", "schedule"]
    answers = {}
    for line in lines:
        words = [word.replace("/srv/orders.csv", str(orders)) for word in shlex.split(line)]
        answers[words[0]] = fresh(*words)
    assert answers["check"]["ok"]
    assert answers["run"]["result"] == answers["try"]["result"] == {"loaded": 2, "in the table": 2}
    assert [step["name"] for step in answers["run"]["trace"]["steps"]][:3] == [
        "extract orders.csv",
        "choose",
        "transform",
    ]
    assert [step["rows_out"] for step in answers["run"]["trace"]["steps"]][:3] == [4, 3, 2]
    assert [check["passed"] for check in answers["run"]["trace"]["checks"]] == [True] * 3
    again = fresh("run", "daily_orders", "-p", f"path={orders}")
    assert again["result"] == answers["run"]["result"]
    assert fresh("peek", "sqlite:///shop.db", "orders", "--in", "daily_orders") == answers["peek"]
    assert [row["customer"] for row in answers["peek"]["rows"]] == ["ada", "eve"]
    assert answers["schedule"]["local"][0][11:].startswith("06:30:00+0")
    assert answers["schedule"]["timezone"] == "Europe/Berlin"
    orders.write_text(ROWS + "1,2026-01-03,Eve,-7,paid\n")
    failed = fresh("run", "daily_orders", "-p", f"path={orders}", "--detach")["run_id"]
    eventually(lambda: fresh("inspect", failed)["status"] == "retrying")  # in a minute
    assert fresh("inspect", failed)["attempts"][0]["error"]["type"] == "CheckFailed"
    fresh("cancel", "daily_orders")
    assert fresh("peek", "sqlite:///shop.db", "orders", "--in", "daily_orders") == answers["peek"]


BROKEN = (
    "from tau import pipeline\n@pipeline\ndef broken(ctx, rows: int = 0):\n    ctx.check('there are rows', rows > 0)\n"
)


def test_the_way_through_a_failure_leads_out_of_it(fresh: Tau) -> None:
    """The commands of the page on failures, in its order."""
    fresh.deploy(BROKEN, "broken.py")
    run_id = fresh("run", "broken", exit=1)["run_id"]
    (incident,) = fresh("errors")["incidents"]
    assert fresh("events", "--type", "run.failed,incident.*")["events"]
    assert fresh("inspect", incident["incident"])["incident"] == incident["incident"]
    assert fresh("inspect", "broken")["error"]["type"] == "CheckFailed"
    for words in (["diff", "broken"], ["versions", "broken"]):
        assert fresh.command(*words).exit in (0, 3)
    fresh("code", "broken", "--out", "fix")
    mended = fresh.work / "fix" / "broken.py"
    mended.write_text(mended.read_text().replace("rows: int = 0", "rows: int = 1"))
    assert fresh("try", mended, "--like", run_id)["status"] == "success"
    fresh("deploy", mended, "--take-over", "--probation", 3, "--reason", "the default was wrong")
    assert fresh("retry", run_id)["status"] == "success"
    assert [row["status"] for row in fresh("errors")["incidents"]] == ["closed"]


def frontmatter(text: str) -> tuple[dict[str, str], str]:
    """The fields before the body, and the body.  Each is a plain scalar of YAML, which may go on in the next lines."""
    _, head, body = text.split("---\n", 2)
    fields = dict(line.split(": ", 1) for line in re.sub(r"\n +", " ", head).splitlines())
    for value in fields.values():
        assert not re.search(r": | #|^[\[\]{}>|*&!%@`'\"#,?-]", value), value
    return fields, body


def test_the_skill_is_in_the_open_format(home: Tau) -> None:
    """As https://agentskills.io/specification says."""
    answer = home("skill", "--write", "skills")
    folder = home.work / "skills" / "tau"
    text = (folder / "SKILL.md").read_text(encoding="utf-8")
    fields, body = frontmatter(text)
    assert fields.keys() <= {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
    assert fields["name"] == folder.name
    assert re.fullmatch(r"(?!-)(?!.*--)[a-z0-9-]{1,64}(?<!-)", fields["name"])
    assert 1 <= len(fields["description"]) <= 1024
    assert "Use it when" in fields["description"]
    assert 1 <= len(fields["compatibility"]) <= 500
    assert len(body.encode()) < 20_000
    assert len(text.splitlines()) < 500
    links = re.findall(r"\]\((\S+?)\)", body)
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == {"SKILL.md", *links}
    assert [str(Path(path).relative_to("skills/tau")) for path in answer["written"]] == ["SKILL.md", *links]
    assert home.command("skill").out == text
    for topic in module.TOPICS:
        place = body if topic == "failures" else (folder / "references" / f"{topic}.md").read_text(encoding="utf-8")
        assert module.manual_page(topic).partition("\n\n")[2] in place
    for words, entry in module.SHELL_COMMANDS.items():
        assert f"  {entry.examples[0].partition('  #')[0]}" in body, words


def test_the_skill_is_written_again_without_harm(home: Tau) -> None:
    first = home("skill", "--write", ".")
    assert home("skill", "--write", ".") == {"written": [], "unchanged": first["written"]}
    mine = home.work / "tau" / "references" / "api.md"
    mine.write_text("mine")
    (home.work / "tau" / "SKILL.md").unlink()
    refused = home("skill", "--write", ".", exit=5)
    assert (refused["code"], "--force" in refused["hint"]) == ("conflict", True)
    assert mine.read_text() == "mine"
    assert not (home.work / "tau" / "SKILL.md").exists()
    assert sorted(home("skill", "--write", ".", "--force")["written"]) == ["./tau/SKILL.md", "./tau/references/api.md"]
