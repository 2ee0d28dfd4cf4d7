"""What a run leaves in its trace: errors that explain themselves, results that are JSON, captured output."""

from __future__ import annotations

import errno
import gzip
import json
import linecache
import os
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from conftest import Context, Tau

import tau as module

NESTED = """
    import json
    from tau import pipeline

    class Row:
        def __init__(self, amount):
            self.amount = amount
        def __repr__(self):
            return f"Row({self.amount!r})"

    def parse(text, password="hun" "ter2"):
        decoded = json.loads(text)
        return decoded

    def convert(rows):
        kept, token = [], "tok_123"
        settings = {"api_key": "k-" "456", "mode": "fast"}
        for row in rows:
            kept.append(parse(row.amount))
        return kept

    def level3(rows):
        return convert(rows)

    def level2(rows):
        return level3(rows)

    def level1(rows):
        count = len(rows)
        return level2(rows)

    @pipeline(name="it")
    def it(ctx):
        with ctx.step("load"):
            ctx.log("rows are there")
        with ctx.step("transform") as step:
            step.rows_in = 3
            with ctx.step("convert"):
                return level1([Row("1"), Row("2"), Row("{broken")])
"""


def test_an_error_in_the_fifth_nested_call_is_diagnosable_from_inspect_alone(tau: Tau) -> None:
    tau.deploy(NESTED)
    tau("run", "it", exit=1)
    text = tau.command("inspect", "it", "--last-run").out
    assert len(text) < 6_000
    run = json.loads(text)
    error = run["error"]
    assert (error["kind"], error["type"], error["step"]) == ("exception", "JSONDecodeError", "transform/convert")
    assert (error["file"], error["line"], error["code"]) == ("pipelines.py", 11, "decoded = json.loads(text)")
    assert error["message"].startswith("Expecting property name")
    mine = [frame for frame in error["frames"] if frame["user"]]
    assert [frame["function"] for frame in mine] == ["it", "level1", "level2", "level3", "convert", "parse"]
    assert mine[-1]["locals"] == {"text": "'{broken'", "password": "***"}
    assert mine[-2]["locals"]["row"] == "Row('{broken')"
    assert mine[-2]["locals"]["token"] == "***"
    assert mine[-2]["locals"]["settings"] == "{'api_key': '***', 'mode': 'fast'}"
    assert mine[1]["locals"]["count"] == "3"
    assert all(frame["locals"] == {} for frame in error["frames"] if not frame["user"])
    assert "hunter2" not in text
    assert "k-456" not in text
    load, transform = run["trace"]["steps"]
    assert (load["status"], transform["status"], transform["rows_in"]) == ("success", "failed", 3)
    assert transform["steps"][0]["error"]["type"] == "JSONDecodeError"
    assert f"tau code it --out it-v{run['version']}/" in run["next"]


def test_the_same_failure_has_the_same_fingerprint_and_another_has_not(tau: Tau) -> None:
    tau.deploy(NESTED)
    first, second = (tau("run", "it", exit=1)["error"]["fingerprint"] for _ in range(2))
    tau("undeploy", "it")
    other = tau.run_it("def it(ctx):\n    1 / 0", exit=1)["error"]["fingerprint"]
    assert re.fullmatch("[0-9a-f]{12}", first)
    assert first == second != other


RAISED = {
    "sys.exit": ("import sys\ndef it(ctx):\n    sys.exit('enough')", "SystemExit", "enough"),
    "KeyboardInterrupt": ("def it(ctx):\n    raise KeyboardInterrupt('ctrl-c')", "KeyboardInterrupt", "ctrl-c"),
    "GeneratorExit": ("def it(ctx):\n    raise GeneratorExit", "GeneratorExit", ""),
    "an assertion": ("def it(ctx):\n    assert 1 > 2, 'no'", "AssertionError", "no"),
    "asyncio": (
        "import asyncio\nasync def it(ctx):\n    await asyncio.sleep(0)\n    raise ValueError('later')",
        "ValueError",
        "later",
    ),
    "a message that raises": (
        "class E(Exception):\n    def __str__(self):\n        raise RuntimeError\ndef it(ctx):\n    raise E",
        "E",
        "<E: cannot be printed: RuntimeError>",
    ),
    "a message that hangs": (
        "class E(Exception):\n    def __str__(self):\n        while True: pass\ndef it(ctx):\n    raise E",
        "E",
        "<E: took too long to print>",
    ),
    "recursion": ("def it(ctx):\n    it(ctx)", "RecursionError", None),
    "memory": ("def it(ctx):\n    raise MemoryError('no more')", "MemoryError", "no more"),
}


@pytest.mark.parametrize("name", RAISED)
def test_whatever_is_raised_is_a_failed_run_with_its_text(tau: Tau, name: str) -> None:
    text, kind, message = RAISED[name]
    run = tau.run_it(text, exit=1)
    assert (run["status"], run["error"]["kind"], run["error"]["type"]) == ("failed", "exception", kind)
    assert message is None or run["error"]["message"] == message
    assert run["error"]["file"] == "pipelines.py"
    assert run["resources"]["exit_code"] == 1


def test_locals_that_raise_hang_or_are_huge_are_held_off(tau: Tau) -> None:
    run = tau.run_it(
        """
        class Raises:
            def __repr__(self):
                raise RuntimeError
        class Hangs:
            def __repr__(self):
                while True:
                    pass
        def it(ctx):
            raises, hangs, huge, long = Raises(), Hangs(), "x" * 10_000_000, list(range(1_000_000))
            1 / 0
        """,
        exit=1,
    )
    seen = run["error"]["frames"][-1]["locals"]
    assert seen["raises"] == "<Raises: cannot be printed: RuntimeError>"
    assert seen["hangs"] == "<Hangs: took too long to print>"
    assert len(seen["huge"]) <= module.REPR_SHOWN + len("\n…\n")
    assert seen["long"].startswith("[0, 1, 2, 3, 4, 5, ")
    kept = tau("inspect", run["run_id"], "--full")["error"]["frames"][-1]["locals"]
    assert [len(kept["huge"]) <= module.REPR_KEPT, kept["long"].endswith("58, 59, ...]")] == [True, True]


def test_causes_are_told(tau: Tau) -> None:
    run = tau.run_it(
        """
        def it(ctx):
            try:
                {}["amount"]
            except KeyError as missing:
                raise ValueError("bad row") from missing
        """,
        exit=1,
    )
    cause = run["error"]["cause"]
    assert (cause["type"], cause["message"], cause["line"]) == ("KeyError", "'amount'", 6)


def error_of(text: str, ctx: Context, **job: Any) -> Any:
    """The error document of the pipeline `it` in a deployed file with this text, without a daemon."""
    folder = ctx.journal.with_name("deployed")
    folder.mkdir(exist_ok=True)
    path = folder / "pipelines.py"
    path.write_text(textwrap.dedent(text).strip() + "\n")
    linecache.checkcache()
    attempt = ctx._attempt
    attempt.job |= {"folder": str(folder), **job}
    attempt.loaded = True
    known: dict[str, Any] = {"__name__": "pipelines"}
    try:
        exec(compile(path.read_text(), str(path), "exec"), known)
        known["it"](ctx)
    except BaseException as problem:
        record = {"at": 1, "mono": 1, "retry": None, "waits_for": "x"}
        record |= {"t": "raised", "error": module.error_document(problem, attempt)}
        return module.fit_record(record, module.Mask())["error"]
    raise AssertionError("nothing was raised")


#: A deployed file, and what its error tells: part of the document → a text in it.
TOLD: dict[str, tuple[str, dict[str, str]]] = {
    "all members of a group": (
        """
        def part(text):
            return int(text)
        def it(ctx):
            problems = []
            for text in ("a", "b"):
                try:
                    part(text)
                except ValueError as problem:
                    problems.append(problem)
            raise ExceptionGroup("two parts", [*problems, ExceptionGroup("more", [KeyError("deep")])])
        """,
        {
            "message": "two parts (3 sub-exceptions)",
            "message ": "literal for int() with base 10: 'a'",
            "message  ": "literal for int() with base 10: 'b'",
            "message   ": "KeyError: 'deep'",
            "message    ": 'File "pipelines.py", line 2, in part',
            "line": "10",
        },
    ),
    "notes": (
        """
        def it(ctx):
            problem = ValueError("bad row")
            problem.add_note("in file 17.csv")
            problem.add_note("at line 4")
            raise problem
        """,
        {"message": "bad row\nin file 17.csv\nat line 4"},
    ),
    "notes of a cause": (
        """
        def it(ctx):
            problem = ValueError("bad row")
            problem.add_note("in file 17.csv")
            raise RuntimeError("no load") from problem
        """,
        {"cause.message": "bad row\nin file 17.csv"},
    ),
    "the end of a command's stderr": (
        """
        import subprocess
        def it(ctx):
            subprocess.run(["sh", "-c", "seq 5000 >&2; echo decisive >&2; exit 3"], check=True, capture_output=True)
        """,
        {"message": "returned non-zero exit status 3.\n1\n2", "message ": "5000\ndecisive"},
    ),
    "the end of a command's output, as text, if its stderr is empty": (
        """
        import subprocess
        def it(ctx):
            subprocess.run("echo decisive; exit 3", shell=True, check=True, capture_output=True, text=True)
        """,
        {"message": "exit status 3.\ndecisive"},
    ),
    "what a command that took too long had written": (
        """
        import subprocess
        def it(ctx):
            subprocess.run("echo so far >&2; sleep 9", shell=True, capture_output=True, timeout=0.2)
        """,
        {"message": "timed out after 0.2 seconds\nso far"},
    ),
    "the user's line of a worker process": (
        """
        import multiprocessing, sys
        def work(number):
            return 1 / number
        def it(ctx):
            sys.modules["pipelines"] = module = type(sys)("pipelines")
            module.work = work
            with multiprocessing.get_context("fork").Pool(1) as pool:
                pool.map(work, [0])
        """,
        {
            "type": "ZeroDivisionError",
            "line": "8",
            "cause.type": "RemoteTraceback",
            "cause.file": "pipelines.py",
            "cause.line": "3",
            "cause.code": "return 1 / number",
            "cause.message": "ZeroDivisionError: division by zero",
        },
    ),
    "the user's line of a worker of an executor": (
        """
        import concurrent.futures, multiprocessing, sys
        def work(number):
            return 1 / number
        def it(ctx):
            sys.modules["pipelines"] = module = type(sys)("pipelines")
            module.work = work
            fork = multiprocessing.get_context("fork")
            with concurrent.futures.ProcessPoolExecutor(1, fork) as pool:
                pool.submit(work, 0).result()
        """,
        {"cause.type": "_RemoteTraceback", "cause.line": "3", "cause.code": "return 1 / number"},
    ),
    "a chain of causes to its end": (
        """
        def it(ctx):
            problem = KeyError("root")
            for number in range(20):
                problem, problem.__cause__ = ValueError(number), problem
            raise problem
        """,
        {
            "message": "19",
            "cause.message": "18",
            "cause.cause.message": "17",
            "cause.cause.cause.cause.cause.cause.cause.cause.type": "KeyError",
            "cause.cause.cause.cause.cause.cause.cause.cause.message": "root",
        },
    ),
    "causes in a circle": (
        """
        def it(ctx):
            first, second = ValueError("first"), ValueError("second")
            first.__cause__, second.__cause__ = second, first
            raise first
        """,
        {"message": "first", "cause.message": "second", "cause.cause": "None"},
    ),
    "both ends of a long message": (
        "def it(ctx):\n    raise ValueError('begin' + 'x' * 200_000 + 'end')\n",
        {"message": "beginxxx", "message ": "xxxend"},
    ),
    "the whole message of a cause": (
        "def it(ctx):\n    raise ValueError from KeyError('x' * 5_000 + 'end')\n",
        {"cause.message": "x" * 5_000 + "end"},
    ),
    "the step of a member of a group": (
        """
        def it(ctx):
            with ctx.step("outer"):
                try:
                    with ctx.step("inner"):
                        1 / 0
                except ZeroDivisionError as problem:
                    caught = problem
                raise ExceptionGroup("some", [caught])
        """,
        {"step": "outer/inner"},
    ),
    "an exception that is equal to all others": (
        """
        class Odd(Exception):
            def __eq__(self, other):
                return True
        def it(ctx):
            raise Odd("odd") from ValueError("cause")
        """,
        {"type": "Odd", "cause.message": "cause"},
    ),
    "a program that is not there": (
        "import subprocess\ndef it(ctx):\n    subprocess.run(['ffmpeg-not-here', '-version'])\n",
        {"hint": "'ffmpeg-not-here' is not on taud's PATH"},
    ),
    "a program that is not there, in async code": (
        """
        import asyncio
        def it(ctx):
            asyncio.run(asyncio.create_subprocess_exec("ffmpeg-not-here"))
        """,
        {"hint": "'ffmpeg-not-here' is not on taud's PATH"},
    ),
    "a program that a shell does not find": (
        "import subprocess\ndef it(ctx):\n    subprocess.run('ffmpeg-not-here', shell=True, check=True)\n",
        {"hint": "not on taud's PATH"},
    ),
    "a program by its path": (
        "import subprocess\ndef it(ctx):\n    subprocess.run(['/not/here/ffmpeg'])\n",
        {"hint": "is it on the machine where this ran?"},
    ),
    "a directory for a program": (
        "import subprocess\ndef it(ctx):\n    subprocess.run(['true'], cwd='not-here')\n",
        {"hint": "relative paths begin in ctx.data_dir"},
    ),
    "a variable that is not there": (
        "import os\ndef it(ctx):\n    return os.environ['WAREHOUSE_URL']\n",
        {"hint": "'WAREHOUSE_URL' is not in taud's environment"},
    ),
    "a key that is not there": ("def it(ctx):\n    return {}['WAREHOUSE_URL']\n", {"hint": "None"}),
    "the cause of what is raised instead": (
        """
        import os
        def it(ctx):
            try:
                os.environ["WAREHOUSE_URL"]
            except KeyError:
                raise RuntimeError("not configured") from None
        """,
        {"hint": "'WAREHOUSE_URL' is not in taud's environment", "cause": "None"},
    ),
    "a key that a dict does not have": (
        "def it(ctx):\n    row = {'id': 1, 'sensor': 's', 3: 0}\n    return row['id'] + row['amount']\n",
        {"hint": "the dict row has id, sensor, 3"},
    ),
    "a key by a variable": (
        """
        def it(ctx):
            row, column = {"amounts": 1, **{str(n): n for n in range(999)}}, "amount"
            return row[column]
        """,
        {"hint": "did you mean 'amounts'? the dict row has amounts, 0, 1,"},
    ),
    "a key of an empty dict": (
        "def it(ctx):\n    row = {}\n    return row['amount']\n",
        {"hint": "the dict row has no keys"},
    ),
    "a key that no local lacks": (
        "def it(ctx):\n    row = {'id': 1}\n    return row['id'] + {}['amount']\n",
        {"hint": "None"},
    ),
    "a module that is not there": (
        "def it(ctx):\n    import helper.parts\n",
        {"hint": "--include helper.py if that lies beside the file; else name it in the header's dependencies"},
    ),
    "an option of another tool": (
        "import tau\n@tau.pipeline(cron='0 6 * * *')\ndef it(ctx): ...\n",
        {"hint": "@pipeline knows after, catchup_window"},
    ),
    "a misspelled option": (
        "import tau\n@tau.pipeline(retrys=2)\ndef it(ctx): ...\n",
        {"hint": "did you mean 'retries'?"},
    ),
}


@pytest.mark.parametrize("case", TOLD)
def test_an_error_keeps_its_end(case: str, ctx: Context) -> None:
    text, expected = TOLD[case]
    error = error_of(text, ctx)
    for path, part in expected.items():
        found = error
        for key in path.strip().split("."):
            found = found[key]
        assert part in str(found), (path, found)


def test_a_library_that_an_environment_lacks_belongs_into_the_header(ctx: Context) -> None:
    error = error_of("def it(ctx):\n    import geopandas\n", ctx, python="/venv/bin/python")
    assert error["hint"].endswith('else add it to the header of the file: # dependencies = ["geopandas"]')


def test_what_inspect_cuts_keeps_both_ends_and_full_cuts_nothing(tau: Tau) -> None:
    message = "begin" + "x" * 20_000 + "end"
    run = tau.run_it(
        f"""
        def it(ctx):
            with ctx.step("a"):
                raise ValueError({message!r}) from KeyError({message!r})
        """,
        exit=1,
    )
    assert len(module.encode_json(run)) <= 6_000
    full = tau("inspect", run["run_id"], "--full")
    for document, whole in ((run, False), (full, True)):
        error = document["error"]
        for part in (error, error["cause"], document["trace"]["steps"][0]["error"], document["attempts"][0]["error"]):
            assert part["message"].strip("'").startswith("beginxx")
            assert part["message"].strip("'").endswith("xxend")
            assert (len(part["message"].strip("'")) == len(message)) == whole


RESULTS: list[tuple[str, Any]] = [
    ("None", None),
    ("{'a': [1, 2.5, True, None, 'ü']}", {"a": [1, 2.5, True, None, "ü"]}),
    ("(1, (2, 3))", [1, [2, 3]]),
    ("{1: 'a', 2.5: 'b', None: 'c'}", {"1": "a", "2.5": "b", "None": "c"}),
    (
        "{__import__('uuid').UUID(int=1): 1, __import__('datetime').date(2026, 1, 2): 2}",
        {"00000000-0000-0000-0000-000000000001": 1, "2026-01-02": 2},
    ),
    ("{3, 1, 2}", [1, 2, 3]),
    ("b'abcd'", {"bytes": 4}),
    ("__import__('datetime').date(2026, 1, 2)", "2026-01-02"),
    ("__import__('datetime').datetime(2026, 1, 2, 3, 4)", "2026-01-02T03:04:00"),
    ("__import__('datetime').timedelta(minutes=1)", 60.0),
    ("__import__('decimal').Decimal('1.10')", "1.10"),
    ("__import__('pathlib').Path('/a/b')", "/a/b"),
    ("__import__('uuid').UUID(int=1)", "00000000-0000-0000-0000-000000000001"),
    ("__import__('enum').Enum('E', 'A B').B", 2),
    ("__import__('http').HTTPStatus.OK", 200),
    ("__import__('collections').Counter('aab')", {"a": 2, "b": 1}),
    ("__import__('dataclasses').make_dataclass('D', ['x'])(7)", {"x": 7}),
    ("'lone \\ud800 surrogate'", "lone ? surrogate"),
]


@pytest.mark.parametrize(("expression", "expected"), RESULTS)
def test_results_have_a_documented_json_form(tau: Tau, expression: str, expected: Any) -> None:
    assert tau.run_it(f"def it(ctx):\n    return {expression}")["result"] == expected


BAD_RESULTS = {
    "float('nan')": "result is nan",
    "{'a': [1, {'b': float('inf')}]}": "result.a[1].b is inf",
    "10**5000": "result is an integer of 16,610 bits",
    "{'f': lambda: 1}": "result.f is a builtins.function",
    "(i for i in range(3))": "result is a builtins.generator",
    "{(1, 2): 3}": "result has the key (1, 2)",
    "{float('nan'): 1}": "a key of result is nan",
    "{1: 'a', '1': 'b'}": "result has two keys that JSON writes as '1'",
    "(lambda a: (a.append(a), a))([])[1]": "is nested too deeply, or contains itself",
    "'x' * 2_000_000": "the result has 2,000,003 bytes, the limit is 1,048,576",
    "object()": "result is a builtins.object",
}


@pytest.mark.parametrize("expression", BAD_RESULTS)
def test_a_result_without_a_json_form_fails_the_run(tau: Tau, expression: str) -> None:
    run = tau.run_it(f"def it(ctx):\n    return {expression}", exit=1)
    assert (run["status"], run["error"]["kind"]) == ("failed", "result")
    assert BAD_RESULTS[expression] in run["error"]["message"]


def test_large_results_are_cut_and_say_how_to_get_them(tau: Tau) -> None:
    run = tau.run_it("def it(ctx):\n    return {'rows': list(range(10_000)), 'n': 1}")
    assert len(module.encode_json(run)) <= 6_000
    cut = run["cut"][0]
    assert cut["path"] == "result"
    assert cut["bytes"] > 40_000
    assert cut["get"] == f"tau inspect {run['run_id']} --full"
    assert tau(*cut["get"].split()[1:])["result"] == {"rows": list(range(10_000)), "n": 1}


def test_long_traces_are_cut_and_keep_what_failed(tau: Tau) -> None:
    run = tau.run_it(
        """
        def it(ctx):
            for number in range(500):
                try:
                    with ctx.step(f"step {number}"):
                        if number == 250:
                            1 / 0
                except ZeroDivisionError:
                    pass
            for number in range(50):
                ctx.log("x" * 1000)
        """
    )
    assert len(module.encode_json(run)) <= 6_000
    names = [step["name"] for step in run["trace"]["steps"]]
    assert names[0] == "step 0"
    assert "step 250" in names
    assert names[-1] == "step 499"
    assert len(tau("inspect", run["run_id"], "--full")["trace"]["steps"]) == 500


def test_prints_are_log_lines_of_their_step(tau: Tau) -> None:
    tau.run_it(
        """
        import os, subprocess, sys
        def it(ctx):
            print("plain", 1)
            with ctx.step("outer"):
                print("two\\nlines", end="")
                print(" and an end")
                sys.stderr.write("to stderr\\n")
            sys.stdout.write("progress 1\\rprogress 2\\rprogress 3\\n")
            sys.stdout.buffer.write(b"raw \\xff bytes\\n")
            subprocess.run(["echo", "from a child"])
            print("\\x1b[31mred\\x1b[0m \\x00", end="")
        """
    )
    lines = tau("logs", "it")["lines"]
    seen = [(line["message"], line["step"], line["stream"]) for line in lines]
    seen.remove(("from a child", None, "stdout"))  # it is read when the daemon looks
    assert seen == [
        ("plain 1", None, "stdout"),
        ("two", "outer", "stdout"),
        ("lines and an end", "outer", "stdout"),
        ("to stderr", "outer", "stderr"),
        ("progress 3", None, "stdout"),
        ("raw \ufffd bytes", None, "stdout"),
        ("\x1b[31mred\x1b[0m \x00", None, "stdout"),
    ]


def test_a_line_is_logged_as_it_ends_on_a_terminal(tau: Tau) -> None:
    tau.run_it("import os\ndef it(ctx):\n    os.write(2, b'refused\\r\\n10 %\\r20 %\\r\\n\\r\\n')")
    assert [line["message"] for line in tau("logs", "it")["lines"]] == ["refused", "20 %", ""]


def test_a_line_of_100_mb_is_cut(tau: Tau) -> None:
    run = tau.run_it("import os\ndef it(ctx):\n    print('x' * 100_000_000)\n    os.write(1, b'y' * 1_000_000)")
    assert run["status"] == "success"
    lines = tau("logs", "it")["lines"]
    assert all(len(line["message"]) < 17_000 for line in lines)
    assert "characters cut" in lines[0]["message"]


def test_levels_and_fields_are_kept(tau: Tau) -> None:
    tau.run_it(
        """
        def it(ctx):
            ctx.log("quiet", level="debug")
            ctx.log("loud", level="error", rows=3, tags={"b", "a"}, odd=object)
            with ctx.step("a"), ctx.step("b"):
                ctx.log("inside")
        """
    )
    lines = tau("logs", "it", "--level", "warning")["lines"]
    assert [(line["message"], line["level"]) for line in lines] == [("loud", "error")]
    assert lines[0]["fields"] == {"rows": 3, "tags": ["a", "b"], "odd": "<class 'object'>"}
    for step in ("a", "a/b"):
        assert [line["message"] for line in tau("logs", "it", "--step", step)["lines"]] == ["inside"]
    assert tau("logs", "it", "--step", "b", exit=3)["hint"] == "its steps: a, a/b"


def test_records_of_logging_arrive_with_their_levels(tau: Tau) -> None:
    tau.run_it(
        """
        import logging
        log = logging.getLogger("shop.client")
        log.info("loading")
        def it(ctx):
            log.debug("too much")
            log.info("fetched %s pages", 3)
            logging.warning("page 2 was empty")
            with ctx.step("read"):
                try:
                    1 / 0
                except ZeroDivisionError:
                    log.exception("page 3 is corrupt")
            log.critical("all is lost")
            log.log(5, "nothing")
            log.info("%d", "no number")
        """
    )
    lines = tau("logs", "it")["lines"]
    told = [(line["level"], line["message"].partition("\n")[0], line["step"]) for line in lines]
    assert told[:5] == [
        ("info", "loading", None),
        ("info", "fetched 3 pages", None),
        ("warning", "page 2 was empty", None),
        ("error", "page 3 is corrupt", "read"),
        ("error", "all is lost", None),
    ]
    assert [line["fields"] for line in lines[1:3]] == [{"logger": "shop.client"}, {"logger": "root"}]
    assert "ZeroDivisionError: division by zero" in lines[3]["message"]
    assert lines[5]["message"] == "--- Logging error ---"


def test_logging_that_user_code_configures_is_its_own(tau: Tau) -> None:
    tau.run_it(
        """
        import logging, sys
        def it(ctx):
            logging.basicConfig(stream=sys.stdout, format="mine: %(message)s", level=logging.DEBUG)
            logging.debug("one")
        """
    )
    lines = [(line["level"], line["message"], line["stream"]) for line in tau("logs", "it")["lines"]]
    assert lines == [("info", "mine: one", "stdout")]


def test_levels_arrive_although_user_code_chooses_level_and_layout(tau: Tau) -> None:
    tau.run_it(
        """
        import logging
        def it(ctx):
            logging.basicConfig(level=logging.DEBUG)
            logging.debug("one")
            logging.warning("two")
            logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s", force=True)
            logging.warning("three")
            logging.error("four")
        """
    )
    lines = [(line["level"], line["message"], line["stream"]) for line in tau("logs", "it")["lines"]]
    assert lines == [("debug", "one", None), ("warning", "two", None), ("error", "ERROR: four", None)]


#: What async code may ask of its event loop as the first thing that it does.
LOOPS = {
    "nothing": "",
    "a timer": "await asyncio.sleep(0.001)",
    "a thread that wakes it": """
        for _ in range(100):
            done = loop.create_future()
            threading.Thread(target=lambda: loop.call_soon_threadsafe(done.set_result, 1)).start()
            await done""",
    "an executor": "assert await loop.run_in_executor(None, os.getpid) == os.getpid()",
    "a descriptor": """
        done, (source, end) = loop.create_future(), os.pipe()
        loop.add_reader(source, done.set_result, 1)
        os.write(end, b"x")
        await done
        assert loop.remove_reader(source)""",
    "a signal": """
        done = loop.create_future()
        loop.add_signal_handler(signal.SIGUSR1, done.set_result, 1)
        os.kill(os.getpid(), signal.SIGUSR1)
        await done
        assert loop.remove_signal_handler(signal.SIGUSR1)""",
    "a subprocess": """
        echo = await asyncio.create_subprocess_exec("echo", "one", stdout=asyncio.subprocess.PIPE)
        assert await echo.communicate() == (b"one\\n", None)""",
    "a server": """
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()
        server.close()""",
}


@pytest.mark.parametrize("case", LOOPS)
def test_async_code_has_a_whole_event_loop(tau: Tau, case: str) -> None:
    """At its end tasks are cancelled and generators closed, as by asyncio.run()."""
    work = textwrap.indent(textwrap.dedent(LOOPS[case]).strip("\n"), " " * 12).lstrip()
    run = tau.run_it(
        f"""
        import asyncio, os, signal, threading
        async def forever():
            try:
                await asyncio.sleep(60)
            finally:
                print("cancelled")
        async def numbers():
            try:
                yield 1
                yield 2
            finally:
                print("closed")
        async def it(ctx):
            loop = asyncio.get_running_loop()
            assert isinstance(loop, asyncio.SelectorEventLoop) and loop is asyncio.get_event_loop()
            assert asyncio.current_task() in asyncio.all_tasks()
            {work}
            asyncio.create_task(forever()).add_done_callback(lambda task: None)
            await asyncio.sleep(0)
            global left
            left = numbers()
            return await anext(left)
        """
    )
    assert run["result"] == 1
    assert [line["message"] for line in tau("logs", "it")["lines"]] == ["cancelled", "closed"]


def test_user_code_may_choose_another_event_loop(tau: Tau) -> None:
    run = tau.run_it(
        """
        import asyncio
        class Loop(asyncio.SelectorEventLoop): ...
        class Policy(asyncio.DefaultEventLoopPolicy):
            _loop_factory = Loop
        asyncio.set_event_loop_policy(Policy())
        async def it(ctx):
            return type(asyncio.get_running_loop()) is Loop
        """
    )
    assert run["result"] is True


#: What is done after `print("processing file 17 ... ", end="", flush=True)` in a step, and the last lines then.
UNFINISHED = {
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", ["processing file 17 ... "]),
    "exited": ("os._exit(3)", ["processing file 17 ... "]),
    "to stderr": (
        "print('\\r10 %\\r20 %', end='', file=sys.stderr, flush=True); os._exit(3)",
        ["20 %", "processing file 17 ... "],
    ),
    "finished": ("print('done'); os._exit(3)", ["processing file 17 ... done"]),
    "returned": ("pass", ["processing file 17 ... "]),
    "a bar": ("print('\\r20 %', end='', flush=True); print(); os._exit(3)", ["20 %"]),
}


@pytest.mark.parametrize("case", UNFINISHED)
def test_what_was_printed_without_a_newline_is_logged(tau: Tau, case: str) -> None:
    then, expected = UNFINISHED[case]
    tau.deploy_it(
        f"""
        import os, signal, sys
        def it(ctx):
            with ctx.step("read"):
                print("processing file 17 ... ", end="", flush=True)
                {then}
        """
    )
    tau.command("run", "it")
    lines = tau("logs", "it")["lines"]
    assert sorted(line["message"] for line in lines) == sorted(expected)
    assert case == "returned" or {line["step"] for line in lines} == {"read"}


#: What a run does in line 5 of its file, in a function of its own, and the line that is told.
CRASHES = {
    "a segmentation fault": ("ctypes.string_at(0)", 5),
    "another signal": ("os.abort()", 5),
    "in a thread": ("(t := threading.Thread(target=lambda: ctypes.string_at(0))).start(); t.join()", 5),
    "of user code in a library": ("json.dumps([1], default=1, cls=Fault)", 9),
    "killed": ("os.kill(os.getpid(), 9)", None),
}


@pytest.mark.parametrize("case", CRASHES)
def test_the_line_of_user_code_that_crashed_is_told(tau: Tau, case: str) -> None:
    statement, line = CRASHES[case]
    path = tau.write(
        f"""
        from tau import pipeline
        import ctypes, json, os, threading

        def native(tile):
            {statement}

        class Fault(json.JSONEncoder):
            def encode(self, value):
                ctypes.string_at(0)

        @pipeline
        def it(ctx):
            native(9)
        """,
        "crash.py",
    )
    tau.call("deploy", files=[{"path": path.name, "text": path.read_text()}])
    error = tau.command("run", "it").json["error"]
    assert (error["kind"], error["file"], error["line"]) == ("died", "crash.py" if line else None, line)


#: What a run raises, whether retry_on names it, and how many attempts there are.
AGAIN = {
    "ctx.secret('NOT_THERE_AT_ALL')": ("", 1),
    "ctx.log('x', level='loud')": ("", 1),
    "raise tau.MissingExtra('no duckdb')": ("", 1),
    "raise tau.CheckFailed('no')": ("", 2),
    "raise OSError('no')": ("", 2),
    "raise BadRequest('not ours')": ("", 2),
    "raise tau.MissingSecret('no')": ("retry_on=[tau.MissingSecret]", 2),
    "raise tau.BadRequest('no')": ("retry_on=[OSError]", 1),
}


@pytest.mark.parametrize("statement", AGAIN)
def test_what_another_attempt_would_meet_again_is_not_retried(tau: Tau, statement: str) -> None:
    options, attempts = AGAIN[statement]
    text = f"""
        import tau
        class BadRequest(Exception): ...
        @tau.pipeline(retries=1, {options})
        def it(ctx):
            {statement}
    """
    tau.call("deploy", files=[{"path": "again.py", "text": textwrap.dedent(text)}])
    assert len(tau.command("run", "it").json["attempts"]) == attempts


def test_a_run_has_a_directory_a_name_and_its_params(tau: Tau) -> None:
    run = tau.run_it(
        """
        import os, sys, threading
        def it(ctx):
            threading.Thread(target=lambda: ctx.log("from a thread that nobody joined")).start()
            return {"cwd": os.getcwd(), "run": ctx.run_id, "environ": os.environ["TAU_RUN_ID"],
                    "params": ctx.params, "stdin": sys.stdin.read(), "umask": os.umask(0),
                    "is": [ctx.pipeline, ctx.version >= 1, ctx.attempt, ctx.data_dir == os.getcwd()]}
        """,
        "--params",
        '{"day": "2026-01-01", "n": 1}',
        "-p",
        "n=2",
        "-p",
        "text=words here",
    )
    result = run["result"]
    assert result["cwd"] == str(tau.home / "data" / "it")
    assert result["run"] == result["environ"] == run["run_id"]
    assert result["params"] == run["params"] == {"day": "2026-01-01", "n": 2, "text": "words here"}
    assert (result["stdin"], result["umask"], result["is"]) == ("", 0o022, ["it", True, 1, True])


def test_a_module_may_be_named_like_one_of_the_standard_library(tau: Tau) -> None:
    for name in ("json.py", "tau.py", "not a word.py"):
        tau.deploy("import tau\n@tau.pipeline(name='it')\ndef it(ctx):\n    return __name__", name, "--take-over")
        assert tau("run", "it")["status"] == "success"
        (tau.work / name).unlink()  # what is started in this directory would import it


def test_files_that_were_not_closed_are_written_all_the_same(tau: Tau) -> None:
    tau.run_it(
        """
        import io, multiprocessing, sys
        def child():
            print("from a child", end="")
        def it(ctx):
            global kept
            kept = open("kept.txt", "w")
            kept.write("data")
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join()
            sys.stdout = io.TextIOWrapper(sys.stdout.buffer)
            print("wrapped")
        """
    )
    assert (tau.home / "data/it/kept.txt").read_text() == "data"
    assert {line["message"] for line in tau("logs", "it")["lines"]} == {"from a child", "wrapped"}


def test_a_module_that_hides_one_of_ours_does_not_hide_the_error(tau: Tau) -> None:
    tau.deploy("from tau import pipeline\n@pipeline(name='it')\ndef it(ctx):\n    1 / 0\n", "hashlib.py")
    assert tau("run", "it", exit=1)["error"]["type"] == "ZeroDivisionError"
    (tau.work / "hashlib.py").unlink()


def test_without_its_stdout_a_run_still_returns(tau: Tau) -> None:
    assert tau.run_it("import sys\ndef it(ctx):\n    del sys.stdout, sys.stderr\n    return 1")["result"] == 1


def test_what_stdout_offers_elsewhere_it_offers_here(tau: Tau) -> None:
    text = "import sys\ndef it(ctx):\n    s = sys.stdout\n    s.reconfigure(line_buffering=True)\n    return [s.mode, s.name, s.encoding, s.isatty(), s.fileno()]"
    assert tau.run_it(text)["result"] == ["w", "<stdout>", "utf-8", False, 1]


def test_steps_nested_very_deeply_are_told_as_siblings(tau: Tau) -> None:
    run = tau.run_it(
        "import contextlib\ndef it(ctx):\n    with contextlib.ExitStack() as stack:\n"
        "        for number in range(700):\n            stack.enter_context(ctx.step(str(number)))"
    )
    assert run["status"] == "success"
    deep, step = 0, tau("inspect", "it", "--full")["trace"]["steps"][0]
    while step["steps"]:
        deep, step = deep + 1, step["steps"][0]
    assert deep == module.STEP_DEPTH_MAX


def test_an_alarm_of_the_authors_own_still_rings(tau: Tau) -> None:
    run = tau.run_it(
        """
        import signal, time
        def it(ctx):
            rung = []
            signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            try:
                with ctx.step("s"):
                    raise ValueError
            except ValueError:
                pass
            time.sleep(0.6)
            return rung
        """
    )
    assert run["result"] == [14]


def test_logging_never_fails_a_run(tau: Tau) -> None:
    run = tau.run_it(
        """
        class Array:
            def item(self):
                raise ValueError("more than one")
        def it(ctx):
            ctx.log("x", array=Array(), large=10**5000, blob="a" * 40_000_000)
        """
    )
    assert run["status"] == "success"
    assert len(json.dumps(tau("logs", "it")["lines"][0]["fields"])) < 20_000


def test_a_file_that_fails_to_load_in_a_run_is_of_kind_load(tau: Tau) -> None:
    text = "import os\nfrom tau import pipeline\nassert 'TAU_RUN_ID' not in os.environ\n@pipeline\ndef it(ctx): ...\n"
    tau.deploy(text)
    error = tau("run", "it", exit=1)["error"]
    assert (error["kind"], error["type"], error["line"]) == ("load", "AssertionError", 3)


def test_what_finds_no_room_on_the_disk_waits_and_comes_in_order(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, write, room = ctx._attempt.journal, os.write, [0]

    def scarce(file: int, data: bytes) -> int:
        if file != journal.descriptor:
            return write(file, data)
        if not room[0]:
            raise OSError(errno.ENOSPC, "no space left on device")
        written = write(file, bytes(data)[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", scarce)
    for number in range(300):
        ctx.log(f"line {number}")
        if number % 7 == 0:
            room[0] = number  # enough for some of them, and for a part of another
    with ctx.step("a step"):
        pass
    room[0] = 1 << 30
    journal.write_outcome({"t": "returned"})
    monkeypatch.undo()
    assert journal.waiting == b""
    records = [json.loads(line) for line in journal_lines(ctx.journal)]
    assert [one["message"] for one in records if one["t"] == "log"] == [f"line {number}" for number in range(300)]
    assert [one["t"] for one in records][-1] == "returned"


def journal_lines(path: Path) -> list[str]:
    """The lines of a journal that are records: what was torn is none."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            json.loads(line)
        except ValueError:
            continue
        found.append(line)
    return found


def test_no_way_of_working_loses_what_it_has_done(tau: Tau) -> None:
    """An async target that nobody awaits, a packed file that nobody closes, dataclasses, odd exceptions, many steps."""
    tau.deploy(
        """
        import asyncio, dataclasses, gzip
        from typing import ClassVar
        from tau import pipeline, target

        @target("later")
        async def later(rows):
            await asyncio.sleep(0)

        @pipeline
        def forgets(ctx):
            async def main():
                ctx.load("later", [{"a": 1}])
            asyncio.run(main())

        out = None

        @pipeline
        def packs(ctx):
            global out
            out = gzip.open("out.gz", "wt")
            out.write("text")

        @dataclasses.dataclass
        class Made:
            a: int
            b: ClassVar[int] = 5

        @pipeline
        def makes(ctx):
            return Made(1)

        class Odd(Exception):
            exceptions = None
            def __getattr__(self, name):
                return None

        @pipeline
        def odd(ctx):
            with ctx.step("s"):
                raise Odd("as it is")

        @pipeline(retries=1, retry_on=[ConnectionError])
        def group(ctx):
            if ctx.attempt == 1:
                raise ExceptionGroup("two", [ConnectionError("a"), ConnectionError("b")])

        @pipeline
        def state(ctx):
            ctx.state["name"] = b"caf\\xe9".decode("utf-8", "surrogateescape")

        @pipeline
        def large(ctx):
            ctx.state["id"] = 10**20

        @pipeline
        def counts(ctx):
            query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT count(*) FROM n"
            ctx.sql(query, connection="sqlite:///new.db")

        @pipeline
        def pumps(ctx):
            import subprocess, threading
            helper = subprocess.Popen(["sleep", "30"], stdout=subprocess.PIPE, text=True)
            threading.Thread(target=helper.stdout.read, daemon=True).start()

        @pipeline
        def leaves(ctx):
            def rows():
                with ctx.step("rows"):
                    yield 1
                    yield 2
            next(rows())

        @pipeline
        def bytes_(ctx):
            body = b"x" * 50_000_000
            raise ValueError("with a body")

        @pipeline
        def many(ctx):
            for number in range(10_001):
                with ctx.step("s"):
                    pass
        """,
        "ways.py",
    )

    def run(name: str) -> Any:
        return tau.command("run", name).json

    assert "await" in run("forgets")["error"]["message"]
    assert run("packs")["status"] == "success"
    assert gzip.decompress((tau.home / "data" / "packs" / "out.gz").read_bytes()) == b"text"
    assert run("makes")["result"] == {"a": 1}
    assert (run("odd")["error"]["type"], run("odd")["error"]["step"]) == ("Odd", "s")
    assert (run("group")["status"], run("group")["attempt"]) == ("success", 2)
    assert "half a character" in run("state")["error"]["message"]
    assert [step["status"] for step in run("leaves")["trace"]["steps"]] == ["success"]
    assert run("large")["status"] == "success"
    assert run("counts")["trace"]["log_tail"] == []
    assert run("pumps")["trace"]["log_tail"] == []
    failed = run("bytes_")
    assert "xxx" in failed["error"]["frames"][-1]["locals"]["body"]
    assert "more than 10,000 steps: the others are not kept" in run("many")["trace"]["log_tail"]
