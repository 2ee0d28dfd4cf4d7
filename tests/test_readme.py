"""The README cannot rot: its commands, snippets and tables are run, compared or derived.

`python tests/test_readme.py` writes the tables anew.
"""

from __future__ import annotations

import ast
import html
import http.server
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import record
from conftest import ENVIRON, PATIENCE_S, REPOSITORY, Tau, free_port, python
from test_terminal import on_terminal

import tau as module

README = REPOSITORY / "README.md"
TEXT = README.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands() -> str:
    """The reference of all commands, from their signatures."""
    lines = []
    here = sorted(
        module.LOCAL_COMMANDS.values(), key=lambda it: it.handler.__code__.co_firstlineno
    )  # whoever came first
    for chosen in (*module.OPERATIONS.values(), *here):
        name = chosen.words
        own = [one for one in chosen.arguments.values() if one not in (module.FIELDS, module.REASON)]  # of all
        usage = " ".join(map(usage_of, own))
        lines += [f"**`tau {name} {usage}`**".replace(" `", "`"), f"<br>{chosen.summary}"]
        lines += ["<br>" + " · ".join(f"`{example.partition('  # ')[0]}`" for example in chosen.examples), ""]
        if own:
            lines += ["| | |", "|---|---|"]
            lines += [f"| {label_of(one)} | {one.meaning} |" for one in own]
            lines.append("")
    return "\n".join(lines)


def usage_of(argument: module.Argument) -> str:
    """An argument as it stands in a usage line."""
    if argument.positional:
        word = "FILE" if argument.kind == "list[Json]" else argument.name.upper()
        return f"{word}…" if argument.kind == "list[str]" else word if argument.required else f"[{word}]"
    values = {"bool": "", "Json": " JSON", "Texts": " KEY=VALUE…", "list[Json]": " PATH…"}
    return f"[{argument.flags[0]}{values.get(argument.kind, ' ' + argument.name.upper())}]"


def label_of(argument: module.Argument) -> str:
    """An argument as it stands in the table."""
    names = [usage_of(argument).strip("[]")] if argument.positional else argument.flags
    return " ".join(f"`{name}`" for name in names)


def settings() -> str:
    """The table of all settings."""
    lines = ["| in `tau.toml` | default | environment | flag | meaning |", "|---|---|---|---|---|"]
    for row in module.SETTINGS:
        cells = [f"`[{row.section}] {row.name}`", module.encode_json(row.default), row.environment, row.flag]
        lines.append(
            "| " + " | ".join([*cells[:2], *(f"`{cell}`" if cell else "" for cell in cells[2:]), row.meaning]) + " |"
        )
    return "\n".join(lines) + "\n"


def places() -> str:
    """The table of the options of ctx.extract that are no format's."""
    lines = ["| for | option | default | meaning |", "|---|---|---|---|"]
    for what, table in (("files", module.FILE_OPTIONS), ("http(s)", module.WEB_OPTIONS)):
        for name, (_, default, _, meaning) in table.items():
            shown = "" if default in (None, False, {}) else f"`{module.encode_json(default)}`"
            lines.append(f"| {what} | `{name}` | {shown} | {meaning} |")
    return "\n".join(lines) + "\n"


def options() -> str:
    """The table of the options of @pipeline."""
    rows = module.pipeline_api()["options"]
    lines = [f"| `{row['name']}` | `{row['call'].partition('=')[2]}` | {row['summary']} |" for row in rows]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *lines]) + "\n"


def expressions() -> str:
    """What the page on scheduling says of expressions and of clocks that are set."""
    return re.findall(r"An expression .*?\n\n.*?\n(?=\n)", module.MANUAL["scheduling"], re.DOTALL)[0].replace(
        ".  ", ". "
    )


#: What user code calls.
CALLS = {
    "@source": module.source,
    "@target": module.target,
    "run_local": module.run_local,
    "csv": module.read_csv,
    "json": module.records_of,
    **{
        f"ctx.{name}": method
        for name, method in vars(module.PipelineContext).items()
        if inspect.isfunction(method) and not name.startswith("_")
    },
}


class Bare(str):
    """A text that is shown without quotes."""

    __repr__ = str.__str__


def call_of(name: str) -> str:
    """How something of the API is called, and what it does: its signature and its docstring."""
    found = inspect.signature(CALLS[name]).parameters.values()
    ours = ("self", "text", "document", *(["batch_rows"] if name == "csv" else []))
    given = [one.replace(annotation=Bare(one.annotation)) for one in found if one.name not in ours]
    words = re.sub(r"(?<!,) ", "\N{NO-BREAK SPACE}", str(inspect.Signature(given)))  # a line ends between arguments
    shown = textwrap.fill(name + words, 112, subsequent_indent="    ").replace("\N{NO-BREAK SPACE}", " ")
    return f"```text\n{shown}\n```\n\n{inspect.getdoc(CALLS[name])}\n"


SAMPLE = REPOSITORY / "examples" / "tau.example.toml"
SAMPLE_END = """
# Connections that pipelines name: ctx.extract("shop", "orders"), ctx.sql("SELECT …", connection="shop").
# ${NAME} is a secret: from the environment, systemd's credentials or <home>/secrets/NAME.  "default" is
# what ctx.sql uses when none is named.
[connections.default]
url = "sqlite:////var/lib/warehouse.db"

[connections.shop]
url = "postgresql://tau:${SHOP_PASSWORD}@db.example.com/shop"

[connections.api]
url = "https://api.example.com/v1"

# Executors: commands that lead to other machines, for @pipeline(executor="worker1") and tau run --executor.
[executors.worker1]
command = ["ssh", "worker1"]
python = "python3"
lost_after_s = 60.0
has_dependencies = false

[executors.slurm]
command = ["srun", "--job-name={pipeline}", "--mem=4G"]

# Notifications: who is told of events, by a POST to a URL or by a command that gets the document on stdin.
[notify.agent]
url = "https://agent.example.com/hook"
# name of a secret that holds whsec_ and base64: messages are signed with it as Standard Webhooks says
secret = "HOOK_KEY"
events = ["incident.*", "heal.escalated", "heal.exhausted"]
# only of pipelines with such names; an empty list means all
pipelines = []
# only of this namespace, whose admins see and try it; "" means of all
namespace = ""
# json, or slack: a text that chat services show
format = "json"
# whether rows and variables of failures are sent too
data = false
# whether the name in the URL may be that of a private address; whether redirects may lead to other hosts
private = false
redirects = false

[notify.chat]
url = "https://hooks.example.com/${CHAT_TOKEN}"
format = "slack"

[notify.script]
command = ["/usr/local/bin/wake-the-agent"]
events = ["run.failed", "run.timed_out", "run.lost", "success.overdue"]
pipelines = ["etl_*"]

# The agent that mends and writes pipelines: any program that reads a document on stdin; see examples/heal.
[heal]
command = ["/path/to/examples/heal/agent.sh"]
# variables of taud that it gets besides PATH, HOME and LANG
env = ["AGENT"]
# whether incidents heal by themselves; whether it sees rows and variables
auto = false
data = false
# of an incident; in a day; at the same time; answers of one attempt; seconds of one attempt, and between two
attempts = 3
per_day = 10
at_once = 1
rounds = 3
time_s = 900.0
cool_down_s = 600.0
# runs after which a fix is trusted
probation = 3
"""


def sample() -> str:
    """The sample configuration: every setting with its default."""
    lines = [
        "# Every setting of taud with its default.  Copy what you need to <home>/tau.toml or /etc/tau/tau.toml.",
        "# The environment wins over this file, flags over both; unknown keys are refused.",
    ]
    section = ""
    for row in module.SETTINGS:
        if row.section != section:
            section = row.section
            lines += ["", f"[{section}]"]
        more = [f"${row.environment}" if row.environment else "", row.flag, ", ".join(row.schema.get("enum", ()))]
        told = "; ".join(filter(None, more))
        mark = "# " if row.name == "api_key" else ""  # a key that everybody knows is none
        lines += [
            f"# {row.meaning}" + (f" ({told})" if told else ""),
            f"{mark}{row.name} = {module.encode_json(row.default)}",
        ]
    return "\n".join(lines) + "\n" + SAMPLE_END


def test_the_sample_configuration_is_derived_from_the_code() -> None:
    assert SAMPLE.read_text(encoding="utf-8") == sample(), "python tests/test_readme.py writes it anew"


def with_tables(text: str) -> str:
    """The README with its derived parts as they must be."""
    tables = {"commands": commands(), "settings": settings(), "places": places(), "@pipeline": options()}
    tables["expressions"] = expressions()
    for name, table in (tables | {name: call_of(name) for name in CALLS}).items():
        begin, end = rf"(<!-- {re.escape(name)}: .*? -->\n)", rf"(<!-- end of {re.escape(name)} -->)"
        text = re.sub(begin + ".*?" + end, lambda m, table=table: f"{m[1]}\n{table}\n{m[2]}", text, flags=re.DOTALL)
    return text


def test_the_tables_are_derived_from_the_code() -> None:
    assert with_tables(TEXT) == TEXT, "python tests/test_readme.py writes them anew"


#: What differs from run to run.
VARIES = (
    (r"\b[0-9][0-9a-hjkmnp-tv-z]{13}\b", "RUN"),
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
    (r"[0-9a-f]{24}", "KEY"),
    (r'"fingerprint": "\w+"', '"fingerprint": "…"'),
    (r"[\d.]+ ms", "N ms"),
    (r"(_ms|_bytes)(\": |=)[\d.]+", r"\1\2N"),
    (r"(?m)^pid( +)\d+$", r"pid\1N"),
)


def normal(text: str) -> str:
    """The text with all that differs from run to run replaced."""
    for pattern, word in VARIES:
        text = re.sub(pattern, word, text)
    return text


def with_gaps(text: str) -> str:
    """The pattern of a text of which a line of `…` stands for any number of lines."""
    return "(?:.*\n)*?".join(re.escape(part) for part in re.split(r"(?m)^ *…\n", text))


def test_the_quick_start_prints_what_it_says(home: Tau) -> None:
    home.write(next(block for block in blocks("python") if 'name="orders"' in block), "orders.py")
    for session in blocks("console"):
        for part in session.split("$ ")[1:]:
            command, _, expected = part.partition("\n")
            program, *words = command.split()
            seen = terminal_of(home, program, words)
            if "--json" in words:
                seen = json.dumps(json.loads(seen), indent=2, ensure_ascii=False) + "\n"
            shown = normal(seen).replace(str(home.home), "~/.local/state/tau")
            assert re.fullmatch(with_gaps(normal(expected)), shown), (command, shown)


def terminal_of(tau: Tau, program: str, words: list[str]) -> str:
    """What a command of the README shows on a terminal without colours."""
    if program == "taud":
        quoted = " ".join(f"'{word}'" for word in [*python("taud"), *words])
        done = subprocess.run(
            ["script", "-qec", quoted, "/dev/null"], env=tau.environ, capture_output=True, text=True, timeout=PATIENCE_S
        )
        return done.stdout.replace("\r\n", "\n")
    screen = on_terminal(tau, *words, NO_COLOR="1")[1]
    return re.sub(r"[^\n]*\r\x1b\[K", "", screen)


BODIES = [block for block in blocks("python") if re.match("# (ctx|@source|the rest)", block)]
OTHERS = [block for block in blocks("python") if block not in BODIES]
ORDERS = "id,customer,amount,status\\n1,ada,12.5,paid\\n2,bob,3,open\\n3,ada,7,paid\\n"


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body[2:].partition(":")[0])
def test_every_snippet_of_the_api_runs_as_printed(tau: Tau, body: str) -> None:
    with serving(PAGES) as port:
        text = textwrap.indent(body.replace("https://api.example.com", f"http://127.0.0.1:{port}"), "    ")
        run = tau.run_it(f"def it(ctx):\n    open('orders.csv', 'w').write('{ORDERS}')\n{text}\n")
    assert run["error"] is None


def test_every_method_of_the_context_has_a_snippet() -> None:
    shown = " ".join(BODIES)
    names = [name for name in vars(module.PipelineContext) if not name.startswith("_")]
    assert [name for name in names if f"ctx.{name}" not in shown] == []


#: What the example API answers: path and query → document.
PAGES = {
    "/issues?state=open": {"data": {"items": [{"id": 1}, {"id": 2}], "next": "/issues?page=2"}},
    "/issues?page=2": {"data": {"items": [{"id": 3}], "next": None}},
}


@contextmanager
def serving(pages: dict[str, Any]) -> Iterator[int]:
    """The port of a web server on loopback that answers with these documents."""

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(pages[self.path]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *words: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("number", range(len(OTHERS)))
def test_every_python_snippet_runs(tau: Tau, number: int) -> None:
    snippet = OTHERS[number]
    if 'name="orders"' in snippet:
        name = tau.deploy(snippet)["pipelines"][0]["name"]
        assert tau.command("run", name).json["error"]["type"] == "KeyError"
    else:
        path = tau.write(snippet, "snippet.py")
        done = subprocess.run(
            [sys.executable, path], env=tau.environ, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() in ("", module.__version__)


@pytest.mark.parametrize("program", ["nc", "socat"])
def test_the_shell_snippets_get_an_answer(tau: Tau, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    lines = [line for block in blocks("bash") for line in block.splitlines() if f"| {program} " in line]
    assert len(lines) == 1
    line = re.sub(r"(~|\$HOME)/\.local/state/tau/tau\.sock", str(tau.socket), lines[0])
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=PATIENCE_S)
    assert '"result"' in done.stdout, done


def test_the_commands_about_the_network_work(home: Tau) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    port = str(free_port())
    (block,) = [block for block in blocks("bash") if "taud --detach --port 8400" in block]
    for line in block.replace("8400", port).replace("~/.local/state/tau", str(home.home)).splitlines():
        done = subprocess.run(
            ["sh", "-c", line], env=with_programs(home), capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert (done.returncode, done.stderr) == (0, ""), line
        assert done.stdout.strip() == "ready" or json.loads(done.stdout), line
    commands_of = [block for block in blocks("bash") if block.startswith(("tau key create", "tau namespace create"))]
    home.write("from tau import pipeline\n@pipeline\ndef orders(ctx): ...\n", "orders.py")
    for line in "".join(commands_of).splitlines():
        _, *words = shlex.split(line, comments=True)
        assert home.command(*words).exit == 0, line
    assert [(one["name"], one["status"]) for one in home("key", "list")["keys"]] == [
        ("acme/ci", "live"),
        ("ci", "revoked"),
        ("dashboard", "live"),
    ]


def with_programs(home: Tau) -> dict[str, str]:
    """An environment in which `tau` and `taud` are commands."""
    folder = home.work / "bin"
    folder.mkdir(exist_ok=True)
    for name, function in (("tau", "main"), ("taud", "taud")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.join(python(function))} "$@"\n')
        script.chmod(0o755)
    return home.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_commands_about_schedules_and_runs_work(home: Tau) -> None:
    home.start()
    home.deploy("from tau import pipeline\n@pipeline\ndef orders(ctx): ...\n", "orders.py")
    home("run", "orders")
    (home.home / "data" / "orders" / "orders.csv").write_text("id,amount\n1,5\n")
    chosen = [block for block in blocks("bash") if re.match("tau (schedule|runs|peek)", block)]
    lines = [line for block in chosen for line in block.splitlines()]
    assert len(lines) > 10
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        assert program == "tau"
        assert home.command(*words).exit == 0, line


def test_the_commands_about_environments_work(home: Tau) -> None:
    (home.work / "staging.key").write_text("x" * 40)
    (home.work / "staging.key").chmod(0o600)
    lines = [line for block in blocks("bash") if "tau env" in block for line in block.splitlines()]
    assert len(lines) == 5
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        assert program == "tau"
        stdin = (home.work / words.pop()).read_text() if words[-2:-1] == ["<"] else ""
        assert home.command(*[word for word in words if word != "<"], stdin=stdin).exit == 0, line


def test_the_environments_of_the_readme_can_be_read(home: Tau) -> None:
    path = home.work / ".config/tau/environments.toml"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(block for block in blocks("toml") if "host =" in block))
    path.chmod(0o600)
    assert [one["name"] for one in home("env", "list")["environments"]] == ["local", "production"]
    assert home("--env", "production", "env", "list")["daemon"]["host"] == "https://tau.prod.mycompany.com"


def test_the_commands_of_an_upgrade_work(home: Tau) -> None:
    (block,) = (block for block in blocks("bash") if "tau shutdown --drain" in block)
    home.start()
    run_id = home.run_it("def it(ctx):\n    return 1")["run_id"]
    for line in block.splitlines():
        program, *words = shlex.split(line, comments=True)
        if program == "taud":
            assert (words, home.start()["changed"]) == (["--detach"], True)
        elif program == "tau":
            assert home.command(*words).exit == 0, line
        else:
            assert words == ["install", "--upgrade", "."]
    assert home("inspect", run_id)["status"] == "success"


def test_the_first_two_commands_are_there() -> None:
    first, second, *_ = blocks("bash")
    assert "examples/hello_world.py" in first
    assert "pytest" in second
    assert all(len(block.splitlines()) == 1 for block in (first, second))


def test_the_options_of_a_pipeline_have_the_defaults_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", TEXT[TEXT.index("### @pipeline") :], re.MULTILINE)
    told = {
        name: ast.literal_eval(default) for name, default in rows if name in module.PIPELINE_OPTIONS or name == "name"
    }
    options = [one for one in inspect.signature(module.pipeline).parameters.values() if one.name != "function"]
    assert {one.name: one.default for one in options} == told


def test_the_explained_pipeline_is_an_example() -> None:
    (block,) = (block for block in blocks("python") if "def daily_sales" in block)
    example = (REPOSITORY / "examples" / "daily_sales.py").read_text()
    lines = iter(example.splitlines())
    assert [line for line in block.splitlines() if line not in lines] == []  # they are there in this order


def test_the_pictures_show_commands_that_exist() -> None:
    named = re.findall(r"\]\(examples/([\w.]+)\)", TEXT)
    assert sorted(named) == sorted(record.SESSIONS)
    for name in named:
        picture = (REPOSITORY / "examples" / name).read_text(encoding="utf-8")
        seen = {html.unescape(line) for line in re.findall(r">\$ (tau [^<]+)<", picture)}
        typed = [line for line in seen if not any(other.startswith(line) for other in seen - {line})]
        assert {*typed} == {line for line in record.SESSIONS[name][2] if line.startswith("tau ")}
        for line in typed:
            _, command, *words = shlex.split(line)
            flags = {
                flag
                for one in (module.OPERATIONS | module.LOCAL_COMMANDS)[command].arguments.values()
                for flag in one.flags
            }
            assert {word for word in words if word.startswith("-")} <= flags


def test_a_session_at_a_terminal_becomes_a_picture(tmp_path: Path) -> None:
    sessions = {"picture.svg": (60, 8, ["echo '<&>'", "tau version"])}
    code = f"import pathlib, record; record.record(pathlib.Path({str(tmp_path)!r}), {sessions!r})"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY / "tests", env=ENVIRON, check=True, timeout=PATIENCE_S)
    picture = ElementTree.parse(tmp_path / "picture.svg")
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"$ tau version", "<&>"} <= {*texts}
    assert len([*picture.iter("{http://www.w3.org/2000/svg}animate")]) > 3  # lines come and go


def test_every_link_leads_to_a_heading_and_the_contents_name_all() -> None:
    titles = re.findall(r"^##+ (.+)$", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-"): title for title in titles}
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= anchors.keys()
    contents = re.findall(r"\]\(#([\w-]+)\)", TEXT.partition("\n## ")[0])
    chapters = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    assert [anchors[anchor] for anchor in contents if anchors[anchor] in chapters] == chapters


def test_the_readme_is_short() -> None:
    own = re.sub(r"<!-- ([^:>]+): written by .*?<!-- end of \1 -->", "", TEXT, flags=re.DOTALL)
    assert len([word for word in own.split() if any(map(str.isalnum, word))]) <= 6_000


def test_everything_public_is_documented() -> None:
    assert all(f"{name}" in TEXT for name in module.__all__ if name not in ("Step", "TauError"))
    for row in module.SETTINGS:
        assert row.name in TEXT


def test_what_the_readme_names_exists() -> None:
    own = re.sub(r"```(?:(?!```).)*```", "", TEXT, flags=re.DOTALL)
    words = {name.split()[0] for name in (one.words for one in (module.OPERATIONS | module.LOCAL_COMMANDS).values())}
    assert {*re.findall(r"`tau\s+([a-z]+)", own)} <= words
    for path in re.findall(r"`((?:examples|tests|\.ci)/[\w./]*)`", TEXT):
        assert (REPOSITORY / path).exists(), path


if __name__ == "__main__":
    README.write_text(with_tables(TEXT), encoding="utf-8")
    SAMPLE.write_text(sample(), encoding="utf-8")
    print(f"wrote the tables of {os.path.relpath(README)}")
