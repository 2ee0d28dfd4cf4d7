"""stdout, stderr and exit codes of `tau`, piped."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys

import pytest
from conftest import PATIENCE_S, Tau, eventually, free_port, python, run

import tau as module


def test_with_help_it_has_a_line_for_each_command(home: Tau) -> None:
    commands = {words.split()[0] for words in module.SHELL_COMMANDS}
    for words in (["--help"], ["-h"], ["help"]):
        done = home.command(*words)
        assert done.exit == 0
        lines = done.out.splitlines()
        assert max(map(len, lines)) <= 80
        assert re.findall(r"^  tau (\w+) +\S", done.out.partition("\n\n  tau COMMAND")[0], re.MULTILINE) == sorted(
            commands
        )


def test_an_operation_with_two_words_is_a_command_of_two_words(monkeypatch: pytest.MonkeyPatch) -> None:
    async def key_create(call: None, name: str, *, role: str = "reader") -> dict[str, str]:
        """Create a key.

        name          whose
        role          what it may
        """
        return {}

    entry = module.Operation(key_create, "writes")
    monkeypatch.setitem(module.OPERATIONS, "key_create", entry)
    assert (entry.name, entry.words) == ("key_create", "key create")
    for words in (["key", "create", "ada"], ["--host", "x:1", "key", "--json", "create", "ada"]):
        found, options = module.read_line(words)
        assert (found, options["name"]) == ("key create", "ada")
    assert "tau key create" in module.page("key")
    with pytest.raises(module.BadRequest, match="'key create' needs 'name'"):
        entry.check({})
    for words, hint in (
        (["key", "crate"], "'key create'"),
        (["kye", "create"], "'key'"),
        (["key_create"], "'key create'"),
    ):
        with pytest.raises(module.BadRequest) as refused:
            module.read_line(words)
        assert hint in refused.value.hint


def test_a_group_alone_prints_its_commands(home: Tau) -> None:
    pages = {home.command(*words).out for words in (["env"], ["env", "--help"], ["help", "env"], ["--json", "env"])}
    assert len(pages) == 1
    page = pages.pop()
    assert all(f"tau {words} " in page for words in module.SHELL_COMMANDS if words.startswith("env "))
    assert max(map(len, page.splitlines())) <= 80
    assert home.command("env").exit == 0
    error = home("env", "lst", exit=2)
    assert (error["code"], error["hint"]) == ("bad_request", "did you mean 'env list'? `tau env` lists them")
    assert home("env", "--limit", "3", "list", exit=2)["code"] == "bad_request"


def test_no_group_is_a_command_too() -> None:
    assert not {*module.COMMAND_GROUPS} & {*module.SHELL_COMMANDS}


def test_help_of_taud_has_examples(home: Tau) -> None:
    done = subprocess.run(
        [*python("taud"), "--help"], env=home.environ, capture_output=True, text=True, timeout=PATIENCE_S
    )
    examples = done.stdout.partition("\nexamples:\n")[2].splitlines()
    assert done.returncode == 0
    assert len(examples) == 2
    for example in examples:
        program, *words = shlex.split(example, comments=True)
        assert program == "taud"
        assert module.taud_parser().parse_args(words)


def test_an_unknown_command_or_option_is_exit_2_with_the_nearest(home: Tau) -> None:
    assert "did you mean 'status'?" in home("statsu", exit=2)["hint"]
    for words in (["list", "--limt", "3"], ["--bogus"], ["run"], ["list", "--limit", "x"], ["show", "a", "b"]):
        assert home(*words, exit=2)["code"] == "bad_request", words


def test_without_a_daemon_it_is_exit_6_and_says_how_to_start_one(home: Tau) -> None:
    for words in (["status"], ["run", "x"], ["shutdown"], ["logs", "x", "--follow"]):
        error = home(*words, exit=6)
        assert (error["code"], error["hint"], error["retryable"]) == ("unavailable", "taud --detach", True)


def test_version_needs_no_daemon(home: Tau, tau: Tau) -> None:
    for words in (["version"], ["--version"]):
        assert home(*words)["daemon"] is None
        assert tau(*words)["daemon"] == module.__version__


def test_common_options_may_stand_before_or_after_the_command(home: Tau, tau: Tau) -> None:
    for words in (["--home", tau.home, "list"], ["list", "--home", tau.home], [f"--home={tau.home}", "list", "--json"]):
        assert "pipelines" in home(*words)
    assert "pipelines" in home("list", "--host", f"unix://{tau.socket}")
    assert "pipelines" in home("list", TAU_HOST=f"unix://{tau.socket}")


@pytest.mark.parametrize(
    "host", ["nonsense", "tcp://:1", "ftp://a:1", "localhost:port", "tcp://h:0", "tls://h:1/x", "http://key@h"]
)
def test_an_address_that_is_none_is_refused(home: Tau, host: str) -> None:
    assert home("--host", host, "list", exit=2)["code"] == "bad_request"


def test_following_prints_events_and_the_document_last(tau: Tau) -> None:
    tau.deploy_it(
        "def it(ctx):\n    with ctx.step('a') as step:\n        step.rows_out = 3\n        ctx.log('in a')\n    return 1"
    )
    *events, document = tau.command("run", "it", "--follow").lines
    assert [event["type"] for event in events] == [
        "run.queued",
        "run.started",
        "step.started",
        "log",
        "step.finished",
        "run.finished",
    ]
    seqs = [event["seq"] for event in events]
    assert seqs == sorted(set(seqs))
    assert (events[2]["step"], events[3]["message"], events[4]["rows_out"]) == ("a", "in a", 3)
    assert document["status"] == events[-1]["status"] == "success"
    assert document["result"] == 1


def test_following_a_failure_is_exit_1(tau: Tau) -> None:
    tau.deploy_it("def it(ctx):\n    1 / 0")
    done = tau.command("run", "it", "--follow")
    assert (done.exit, done.lines[-1]["status"], done.err) == (1, "failed", "")


def test_logs_can_be_followed_while_the_run_runs(tau: Tau) -> None:
    tau.deploy_it(
        """
        import time
        from pathlib import Path
        def it(ctx):
            ctx.log("old")
            ctx.log("first")
            while not Path("go").exists():
                time.sleep(0.01)
            ctx.log("quiet", level="debug")
            ctx.log("last", n=1)
        """
    )
    run_id = tau("run", "it", "--detach")["run_id"]
    eventually(lambda: len(tau.call("logs", run_id=run_id)["lines"]) == 2)
    command = [*python("main"), "logs", "it", "--follow", "--tail", "1", "--level", "info"]
    following = subprocess.Popen(command, env=tau.environ, stdout=subprocess.PIPE, text=True)
    with following:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["message"] == "first"
        (tau.home / "data/it/go").touch()
        rest = [json.loads(line) for line in following.stdout]
    assert [(line["message"], line["fields"]) for line in rest] == [("last", {"n": 1})]
    assert following.returncode == 0
    (tau.home / "data/it/go").unlink()


def test_a_reader_that_goes_away_is_no_error(tau: Tau) -> None:
    command = " ".join(f"'{word}'" for word in python("main"))
    done = subprocess.run(
        ["sh", "-c", f"{command} schema | head -c 10; {command} list >&-; true"],
        env=tau.environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith('{"protocol')


def test_a_reader_that_goes_away_does_not_hide_that_the_run_failed(tau: Tau) -> None:
    tau.deploy_it("def it(ctx):\n    1 / 0")
    words = " ".join(f"'{word}'" for word in [*python("main"), "run", "it"])
    done = subprocess.run(
        ["bash", "-c", f"{words} | true; exit ${{PIPESTATUS[0]}}"], env=tau.environ, timeout=PATIENCE_S
    )
    assert done.returncode == 1


def test_numbers_that_json_has_not_are_refused(tau: Tau) -> None:
    tau.deploy_it("def it(ctx): ...")
    for words in (
        ["--params", '{"a": NaN}'],
        ["--params", '{"a": 1e999}'],
        ["--timeout", "nan"],
        ["--timeout", "inf"],
        ["--params", "[" * 5000 + "]" * 5000],
    ):
        assert tau("run", "it", *words, exit=2)["code"] == "bad_request", words
    assert "nested" in tau("run", "it", "-p", "a=" + "[" * 100 + "]" * 100, exit=2)["message"]


def test_an_option_without_its_value_is_refused(home: Tau) -> None:
    for words in (["--host"], ["--home"], ["--host", "list"]):
        assert home(*words, exit=2)["code"] == "bad_request", words


def test_answers_are_utf_8_whatever_the_locale(tau: Tau) -> None:
    tau.deploy_it("def it(ctx):\n    return 'grün ✓'")
    for encoding in ("ascii", "latin-1"):
        environ = tau.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run([*python("main"), "run", "it"], env=environ, capture_output=True, timeout=PATIENCE_S)
        assert json.loads(done.stdout.decode("utf-8"))["result"] == "grün ✓"


def test_closed_or_full_outputs_are_no_bug(tau: Tau) -> None:
    words = " ".join(f"'{word}'" for word in python("main"))
    for redirection, code in ((">&-", 0), ("<&-", 0), (">/dev/full", 5)):
        done = subprocess.run(
            ["sh", "-c", f"{words} list {redirection}"], env=tau.environ, capture_output=True, timeout=PATIENCE_S
        )
        assert done.returncode == code, (redirection, done.stderr)
        assert b"Traceback" not in done.stderr


def test_interruption_is_exit_130_and_the_run_goes_on(tau: Tau) -> None:
    tau.deploy_held()
    live = tau.call("status")["runs"]["running"]
    ignored = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background ignores it
    running = subprocess.Popen([*python("main"), "run", "it"], env=tau.environ, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, ignored)
    eventually(lambda: tau.call("status")["runs"]["running"] == live + 1)
    running.send_signal(2)
    assert running.communicate(timeout=PATIENCE_S)[1] == ""
    assert running.returncode == 130
    tau.go.touch()
    assert tau("wait", tau("runs", "it", "--last", 1)["runs"][0]["run_id"])["status"] == "success"


def test_output_is_json_unless_a_terminal_reads_it(tau: Tau) -> None:
    done = tau.command("list", TERM="xterm-256color")
    assert done.out.startswith("{")
    assert "\x1b" not in done.out


def test_stdout_carries_only_the_document(tau: Tau) -> None:
    tau.deploy_it("def it(ctx):\n    print('printed')\n    ctx.log('logged')")
    for words in (["run", "it"], ["inspect", "it"], ["runs", "it"], ["logs", "it"], ["status"], ["show", "it"]):
        done = tau.command(*words)
        assert done.err == ""
        assert len(done.out.splitlines()) == 1
        json.loads(done.out)


def test_a_bug_is_exit_9_without_a_traceback(home: Tau) -> None:
    path = home.work / os.fsdecode(b"bad\xff.py")
    path.write_text("x = 1\n")
    done = home.command("deploy", path)
    assert done.exit in (2, 6, 9)
    assert "Traceback" not in done.err
    assert "code" in done.error


def tries(tau: Tau) -> list[str]:
    """The homes of `tau try` that are left."""
    return [path.name for path in tau.work.glob("tau-try-*")]


TRIED = """
from tau import pipeline

@pipeline
def tried(ctx, day: str = "today"):
    ctx.log(f"on {day}")
    ctx.check(day != "never")
    return {"day": day, "secret": len(ctx.secret("TRY_SECRET", default="none"))}
"""


NEEDING = TRIED.replace(', default="none"', "")


@pytest.mark.parametrize("way", ["--namespace", "TAU_NAMESPACE"])
def test_a_file_is_tried_in_a_namespace(way: str, home: Tau) -> None:
    shop = '[connections.shop]\nurl = "sqlite:///of_all.db"\n[namespaces.acme.connections.shop]\nurl = "sqlite:///own.db"\n'
    (home.home / "tau.toml").write_text(shop)
    for folder, secret in (("secrets", "of default"), ("secrets/acme", "of acme, longer")):
        (home.home / folder).mkdir(mode=0o700)
        (home.home / folder / "TRY_SECRET").write_text(secret)
        (home.home / folder / "TRY_SECRET").chmod(0o600)
    text = TRIED.replace("ctx.log", "ctx.load('shop', [{'a': 1}], 'rows'); assert open('own.db'); ctx.log")
    words, environ = ((way, "acme"), {}) if way.startswith("-") else ((), {way: "acme"})
    run = home(*words, "try", home.write(text, "tried.py"), TMPDIR=str(home.work), **environ)
    assert (run["status"], run["pipeline"], run["result"]["secret"]) == ("success", "acme/tried", 15)
    assert tries(home) == []
    own = home(*words, "check", home.write(NEEDING), TMPDIR=str(home.work), **environ)
    assert own["missing_secrets"] == []
    assert tries(home) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look at another user's home")
def test_root_leaves_nothing_in_the_home_of_another(home: Tau) -> None:
    os.chown(home.home, 65_534, 65_534)
    assert home("try", home.write(TRIED), TMPDIR=str(home.work))["status"] == "success"
    assert [*home.home.iterdir()] == []


def test_a_file_is_tried_without_a_daemon_and_leaves_nothing(home: Tau) -> None:
    path = home.write(TRIED, "tried.py")
    where = {"TMPDIR": str(home.work)}
    (home.home / "secrets").mkdir(mode=0o700)
    (home.home / "secrets" / "TRY_SECRET").write_text("four and more")
    (home.home / "secrets" / "TRY_SECRET").chmod(0o600)
    run = home("try", path, "-p", "day=monday", **where)
    assert (run["status"], run["result"]) == ("success", {"day": "monday", "secret": 13})
    assert run["trace"]["log_tail"] == ["on monday"]
    assert run["next"] == ["tau deploy tried.py"]
    failed = home.command("try", path, "-p", "day=never", **where)
    assert failed.exit == 1
    assert failed.json["error"]["kind"] == "check"
    assert shlex.split(failed.json["next"][0]) == ["tau", "try", str(path), "-p", "day=never"]
    assert "expected string" in home("try", path, "--params", '{"day": 5}', exit=2, **where)["message"]
    assert home("try", home.write("x = (", "bad.py"), exit=2, **where)["code"] == "load_failed"
    assert tries(home) == []
    assert not (home.home / "tau.db").exists()


READING = """
from pathlib import Path
from tau import pipeline

@pipeline
def reads(ctx, way: str):
    path = Path(__file__).parent / "data" / "zips.csv"
    return len(ctx.extract(path) if way == "extract" else path.read_text().splitlines())
"""


@pytest.mark.parametrize("way", ["extract", "read_text"])
def test_a_file_that_was_left_behind_is_told_how_to_come_along(way: str, home: Tau) -> None:
    path = home.write(READING, "reads.py")
    (home.work / "data").mkdir()
    (home.work / "data" / "zips.csv").write_text("zip\n01067\n")
    failed = home.command("try", path, "-p", f"way={way}", TMPDIR=str(home.work))
    assert failed.exit == 1
    hint = failed.json["error"]["hint"]
    assert "--include FOLDER/data/zips.csv" in hint
    assert "FOLDER --entry pipeline.py" in hint


def test_a_first_pipeline_is_written_with_a_test_that_passes(home: Tau) -> None:
    written = home("init", "orders")
    assert written == {
        "files": ["orders.py", "test_orders.py"],
        "next": ["tau try orders.py", "tau deploy orders.py", "tau run orders"],
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_orders.py"],
        env=home.environ, cwd=home.work, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert "1 passed" in done.stdout
    home.start()
    for command in written["next"]:
        assert home.command(*command.split()[1:], TMPDIR=str(home.work)).exit == 0, command
    assert home("run", "orders")["result"] == {"greeting": "Hello, world!"}
    for name, told, code in (("orders", "already", 5), ("a-b", "cannot have the name", 2)):
        error = home("init", name, exit=code)
        assert told in error["message"]
        assert error["hint"] == "give another name: `tau init first_pipeline`"


def test_what_takes_too_long_is_not_tried_for_ever(home: Tau) -> None:
    (home.home / "tau.toml").write_text("[daemon]\nstop_grace_s = 0.2\n")
    path = home.write("import time\nfrom tau import pipeline\n@pipeline\ndef slow(ctx): time.sleep(300)\n")
    done = home.command("try", path, "--timeout", "0.5", TMPDIR=str(home.work))
    assert (done.exit, done.json["status"]) == (1, "cancelled")
    assert tries(home) == []


def test_one_of_several_pipelines_is_tried_by_name(home: Tau) -> None:
    text = "from tau import pipeline\n@pipeline\ndef a(ctx): return 'a'\n@pipeline\ndef b(ctx): return 'b'\n"
    path = home.write(text)
    assert "one of a, b" in home("try", path, exit=2, TMPDIR=str(home.work))["hint"]
    assert home("try", path, "--name", "b", TMPDIR=str(home.work))["result"] == "b"


def test_check_needs_no_daemon_either(home: Tau) -> None:
    found = home("check", home.write(TRIED), TMPDIR=str(home.work))
    assert (found["ok"], found["missing_secrets"], found["secrets"]) == (True, [], {"TRY_SECRET": "default"})
    found = home("check", home.write(NEEDING), TMPDIR=str(home.work))
    assert (found["ok"], found["missing_secrets"]) == (True, ["TRY_SECRET"])
    assert tries(home) == []


def test_what_is_tried_runs_once_whatever_schedules_it_has(home: Tau) -> None:
    path = home.write(
        """
        import time
        from tau import pipeline
        @pipeline(every=1, after="absent", retries=2, retry_delay=300)
        def tried(ctx, needed: int):
            if needed > 1:
                raise RuntimeError("too many")
            with open(ctx.params["needed"] and "/dev/null" or "", "a"):
                time.sleep(1.2)
            return ctx.scheduled_for
        """
    )
    run = home("try", path, "-p", "needed=1", TMPDIR=str(home.work))
    assert (run["result"], run["trigger"]) == (None, "manual")
    failed = home("try", path, "-p", "needed=2", exit=1, TMPDIR=str(home.work))
    assert (failed["status"], failed["attempt"]) == ("failed", 1)


def test_a_secret_that_others_can_read_is_a_missing_one_for_check(home: Tau) -> None:
    (home.home / "secrets").mkdir(mode=0o700)
    (home.home / "secrets" / "TRY_SECRET").write_text("for everybody")
    (home.home / "secrets" / "TRY_SECRET").chmod(0o644)
    path = home.write(NEEDING)
    found = home("check", path, TMPDIR=str(home.work))
    assert (found["ok"], found["missing_secrets"]) == (True, ["TRY_SECRET"])
    failed = home.command("try", path, TMPDIR=str(home.work)).json
    assert failed["error"]["hint"] == f"chmod 600 {(home.home / 'secrets').resolve()}/TRY_SECRET"


def test_who_gives_up_waiting_is_told_how_to_go_on(tau: Tau) -> None:
    tau.deploy_it("import time\ndef it(ctx): time.sleep(300)\n")
    gave_up = tau("run", "it", "--timeout", "0.05", exit=7)
    assert gave_up["next"] == [f"tau wait {gave_up['run_id']}"]
    tau("cancel", gave_up["run_id"])


def test_a_retry_is_a_run_and_exits_like_one(tau: Tau) -> None:
    tau.deploy_it("def it(ctx):\n    raise ValueError")
    run_id = tau("run", "it", exit=1)["run_id"]
    again = tau("retry", run_id, exit=1)
    assert (again["status"], again["retry_of"]) == ("failed", run_id)
    assert tau("retry", run_id, "--detach")["status"] in ("queued", "running")
    *events, document = tau.command("retry", run_id, "--follow").lines
    assert (events[-1]["type"], document["status"]) == ("run.finished", "failed")


def test_a_terminal_that_has_been_closed_changes_no_exit_code(home: Tau) -> None:
    ours, theirs = pty.openpty()
    os.close(ours)
    done = subprocess.run(
        [*python("main"), "version"], env=home.environ, stdout=theirs, stderr=subprocess.PIPE, timeout=PATIENCE_S
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["orders"], "`tau --help` lists them"),
        (["stauts"], "did you mean 'status'? `tau --help` lists them"),
        (["runs", "--last", "ten"], "--last: 'ten' is not a whole number"),
        (["run", "it", "--timeout", "soon"], "--timeout: 'soon' is not a number"),
    ],
)
def test_what_was_not_understood_is_said_in_words(tau: Tau, words: list[str], expected: str) -> None:
    error = tau(*words, exit=2)
    assert expected in (error["message"], error["hint"])


#: What the system refuses the command itself → code that makes it so, the words, what is told.
NO_PASSWD = "import pwd\ndef missing(uid): raise KeyError(uid)\npwd.getpwuid = missing"
NO_TEMPORARY = "import tempfile\ntempfile.tempdir = '/proc/nowhere'"
GONE = "import os, tempfile\nos.chdir(tempfile.mkdtemp())\nos.rmdir(os.getcwd())"
REFUSED = [
    (NO_PASSWD, {"HOME": ""}, ["list"], 2, "no home directory"),
    (NO_PASSWD, {"HOME": ""}, ["env", "list"], 2, "no home directory"),
    (NO_PASSWD, {"HOME": ""}, ["try", "file"], 2, "no home directory"),
    (GONE, {}, ["deploy", "pipelines.py"], 2, "the current directory has been deleted"),
    (GONE, {}, ["--home", "here", "status"], 2, "the current directory has been deleted"),
    (NO_TEMPORARY, {"TAU_HOME": "/proc/nowhere"}, ["try", "file"], 4, "cannot use /proc/nowhere"),
]


def refused_command(
    home: Tau, code: str, environ: dict[str, str], words: list[str]
) -> subprocess.CompletedProcess[str]:
    """A command in an interpreter that is changed first; `file` is a pipeline's path, an empty variable is none."""
    path = str(home.write(TRIED, "tried.py"))
    program = [*python("main")[:-1], f"{code}\nimport sys, tau; sys.exit(tau.main())"]
    words = [path if word == "file" else word for word in words]
    bare = {name: value for name, value in home.environ.items() if name != "TAU_HOME"} | environ
    bare = {name: value for name, value in bare.items() if value}
    return subprocess.run(
        [*program, *words], env=bare, cwd=home.work, capture_output=True, text=True, timeout=PATIENCE_S
    )


@pytest.mark.parametrize(("code", "environ", "words", "exit", "told"), REFUSED)
def test_what_the_system_refuses_the_command_is_told_as_what_it_is(
    home: Tau, code: str, environ: dict[str, str], words: list[str], exit: int, told: str
) -> None:
    done = refused_command(home, code, environ, words)
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, told in error["message"]) == (exit, True), error
    assert error["hint"]
    assert not (home.work / "~").exists()


def test_without_a_home_directory_another_home_serves(home: Tau, tau: Tau) -> None:
    for given in ({"TAU_HOME": str(tau.home)}, {"TAU_HOST": f"unix://{tau.socket}", "TAU_HOME": str(home.home)}):
        done = refused_command(home, NO_PASSWD, {"HOME": "", **given}, ["list"])
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", [NO_TEMPORARY, GONE], ids=["no /tmp", "no directory"])
@pytest.mark.parametrize("words", [["try", "file"], ["check", "file"], ["doctor"]], ids=lambda words: words[0])
def test_try_check_and_doctor_survive(home: Tau, words: list[str], code: str) -> None:
    done = refused_command(home, code, {"TAU_HOME": str(home.home)}, words)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in home.home.glob("tau-try-*")] == []


def test_a_run_in_an_interpreter_of_its_own_needs_no_tmp(home: Tau) -> None:
    (home.work / "site").mkdir()
    home.write(NO_TEMPORARY, "site/sitecustomize.py")
    paths = f"{home.work / 'site'}:{home.environ['PYTHONPATH']}"
    home.environ |= {"PYTHONPATH": paths, "TAU_START_METHOD": "spawn"}
    home.start()
    assert home.run_it("def it(ctx): return 1")["result"] == 1


def test_try_check_and_doctor_survive_a_home_that_cannot_be_written(home: Tau) -> None:
    nowhere = {"TAU_HOME": str(home.write("", "file") / "home"), "TMPDIR": str(home.work)}
    for words in (["try", "file"], ["check", "file"]):
        done = refused_command(home, "", nowhere, words)
        assert (done.returncode, done.stderr) == (0, "")
    done = refused_command(home, "", nowhere, ["doctor"])
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert (checks["home"]["status"], checks["canary: run"]["status"]) == ("fail", "pass")
    assert tries(home) == []


@pytest.mark.parametrize(
    ("verb", "ours"),
    [
        ("stop", "'cancel' or 'shutdown'"),
        ("kill", "'cancel'"),
        ("ps", "'runs'"),
        ("rm", "'undeploy'"),
        ("delete", "'undeploy'"),
        ("start", "'run'"),
        ("trigger", "'run'"),
        ("unschedule", "'schedule NAME --clear' or 'schedule NAME --disable'"),
        ("disable", "'schedule NAME --disable'"),
        ("destroy", "'undeploy'"),
        ("undo", "'rollback'"),
        ("explain", "'why'"),
    ],
)
def test_a_verb_of_other_tools_names_ours(home: Tau, verb: str, ours: str) -> None:
    assert home(verb, "x", exit=2)["hint"] == f"did you mean {ours}? `tau --help` lists them"


def test_what_taud_is_asked_for_beside_a_running_daemon_is_told(fresh: Tau) -> None:
    port = str(free_port())
    done = run("taud", "--detach", "--port", port, cwd=fresh.work, environ=fresh.environ)
    assert (done.exit, done.error["code"]) == (5, "conflict")
    assert done.error["hint"] == f"tau shutdown; taud --detach --port {port}"
    assert run("taud", "--detach", cwd=fresh.work, environ=fresh.environ).json["changed"] is False
    fresh("shutdown")
    first, again = (run("taud", "--detach", "--port", port, cwd=fresh.work, environ=fresh.environ) for _ in "ab")
    assert (first.json["changed"], again.json["changed"]) == (True, False)


def test_the_form_of_an_answer_is_chosen(tau: Tau) -> None:
    tau.deploy_it("def it(ctx): ...")
    assert tau.command("list", TAU_OUTPUT="text").out.startswith("name ")
    assert tau.command("list", "--text").out == tau.command("--text", "list", TAU_OUTPUT="json").out
    assert tau.command("list", "--json", TAU_OUTPUT="text").json["pipelines"]
    assert tau.command("show", "nothing", "--text").err.startswith("error: no pipeline named")
    for words in (["list"], ["statsu"]):
        error = tau(*words, exit=2, TAU_OUTPUT="yaml")
        assert (error["message"], error["hint"]) == ("TAU_OUTPUT is 'yaml'", "TAU_OUTPUT=json, or TAU_OUTPUT=text")


def test_a_trial_that_is_ended_leaves_nothing(home: Tau) -> None:
    path = home.write(
        """
        import os, time
        from tau import pipeline
        @pipeline
        def slow(ctx):
            open(os.environ["HOME"] + "/began", "w").close()
            time.sleep(300)
        """
    )
    for number in (signal.SIGTERM, signal.SIGHUP):
        child = subprocess.Popen(
            [*python("main"), "try", str(path)], env=home.environ | {"TMPDIR": str(home.work)}, cwd=home.work,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        eventually((home.work / "began").exists)
        child.send_signal(number)
        assert child.wait(PATIENCE_S) == 130
        assert tries(home) == []
        (home.work / "began").unlink()


@pytest.mark.parametrize("words", [("events", "--follow", "--since", "0"), ("logs", "it", "--follow")])
def test_followers_end_when_nobody_reads(fresh: Tau, words: tuple[str, ...]) -> None:
    fresh.deploy_held(before="[print(n, flush=True) or time.sleep(0.01) for n in range(100_000)]")
    fresh("run", "it", "--detach")
    child = subprocess.Popen([*python("main"), *words], env=fresh.environ, cwd=fresh.work, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline()
    child.stdout.close()
    fresh("cancel", "it")  # of which the ledger tells
    assert child.wait(PATIENCE_S) == 0


def test_followers_end_with_their_reader_though_nothing_happens(fresh: Tau) -> None:
    fresh.deploy_it("def it(ctx): ...\n")
    words = [*python("main"), "events", "--follow", "--since", "0", "--type", "pipeline.deployed"]
    child = subprocess.Popen(words, env=fresh.environ, cwd=fresh.work, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline()
    child.stdout.close()
    assert child.wait(PATIENCE_S) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a disk that is always full")
def test_errors_that_cannot_be_told_do_not_change_the_exit_code(tau: Tau) -> None:
    for words, code in ((("show", "nothing"), 3), (("show",), 2), (("run", "nothing", "--text"), 3)):
        with open("/dev/full", "w") as full:
            assert subprocess.run([*python("main"), *words], env=tau.environ, stderr=full).returncode == code


WRONG_LINES = [
    ("deploy", "--include", "helper.py", "one.py"),
    ("check", "--entry", "main.py"),
    ("deploy", ""),
    ("try", "--include", "a.py", "b.py"),
    ("run", "it", "--key", ""),
    ("init", "my-pipe"),
]


@pytest.mark.parametrize("words", WRONG_LINES, ids=" ".join)
def test_what_a_script_forgets_is_bad_usage(tau: Tau, words: tuple[str, ...]) -> None:
    tau.deploy_it("def it(ctx): ...\n")
    files = [tau.write("x = 1\n", name) for name in ("helper.py", "one.py", "a.py", "b.py", "main.py")]
    assert tau(*words, exit=2)["code"] in ("bad_request", "load_failed")
    for path in files:
        path.unlink()


def test_stdin_may_be_a_socket(fresh: Tau) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = subprocess.Popen(
            [*python("main"), "secret", "set", "KEY"], env=fresh.environ, cwd=fresh.work, stdin=theirs,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        ours.sendall(b"value of a socket")
        ours.shutdown(socket.SHUT_WR)
        assert json.loads(child.communicate(timeout=PATIENCE_S)[0])["changed"]
    refused = subprocess.run(
        [*python("main"), "run", "it", "--params", "-"], env=fresh.environ | {"LC_ALL": "C.UTF-8"}, cwd=fresh.work,
        input=b'{"a": "\xfc"}', capture_output=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert (refused.returncode, json.loads(refused.stderr)["error"]["code"]) == (2, "bad_request")


def test_options_may_stand_before_the_last_word(tau: Tau) -> None:
    tau.deploy_it("def it(ctx): ...\n")
    assert tau("schedule", "it", "--timezone", "Europe/Zurich", "0 6 * * *")["cron"] == "0 6 * * *"
    tau("schedule", "it", "--clear")
    assert "'-x'" in tau("show", "--json", "--", "-x", exit=3)["message"]
    (tau.home / "data" / "it").mkdir(parents=True, exist_ok=True)
    (path := tau.home / "data" / "it" / "peeked.csv").write_text("a\n1\n")
    assert tau("peek", "--in", "it", "peeked.csv")["rows"] == [{"a": "1"}]
    path.unlink()


def test_one_of_several_is_tried_in_a_namespace(home: Tau) -> None:
    text = "from tau import pipeline\n@pipeline\ndef a(ctx): return 'a'\n@pipeline\ndef b(ctx): return 'b'\n"
    path, environ = home.write(text), {"TMPDIR": str(home.work), "TAU_NAMESPACE": "acme"}
    assert home("try", path, "--name", "b", **environ)["result"] == "b"
    assert home("try", path, "--name", "b", "--dry-run", **environ)["status"] == "success"


def test_resume_without_a_name_is_told_of_resume(tau: Tau) -> None:
    assert tau("resume", exit=2)["hint"] == "tau resume NAME"
    assert tau("pause", exit=2)["hint"] == "tau pause NAME"
