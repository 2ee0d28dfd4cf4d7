"""Risk: what is dangerous about a change of a pipeline, as its source shows it."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Tau

import tau as module

BASE = '''
import json
from tau import pipeline, PipelineContext
from rules import is_whole

TABLE, LEAST = "orders", 100
QUERY = "INSERT INTO seen SELECT * FROM orders"


def fetch(ctx, day):
    """Rows of a day."""
    return ctx.extract("shop", "orders", timeout="30s")


def validate(ctx, rows):
    if not rows:
        raise ValueError("nothing")
    ctx.check(all(is_whole(row) for row in rows))


@pipeline(retries=1, timeout="5m", schedule="0 6 * * *", tags=["shop"])
def orders(ctx: PipelineContext, day: str = "mon"):
    rows = fetch(ctx, day)
    validate(ctx, rows)
    clean = [row for row in rows if row["amount"]]
    ok = len(clean) > LEAST
    ctx.check(ok, name="enough")
    for row in clean:
        ctx.check(row["id"] is not None)
    try:
        extra = json.loads(ctx.params["extra"])
    except KeyError:
        extra = {}
    with ctx.step("load"):
        ctx.load("warehouse", clean, TABLE, mode="append")
    ctx.sql(QUERY)
    return {"rows": len(clean), **extra}
'''
RULES = "def is_whole(row):\n    return row['id'] > 0\n"


def risks(before: dict[str, str], now: dict[str, str]) -> list[dict[str, Any]]:
    """The risks of a change of these files."""
    return module.find_risks(*({path: text.encode() for path, text in side.items()} for side in (before, now)))


def changed(old: str, new: str, rules: str = RULES) -> list[dict[str, Any]]:
    """The risks of another text in the pipeline."""
    assert old in BASE, old
    return risks({"orders.py": BASE, "rules.py": RULES}, {"orders.py": BASE.replace(old, new), "rules.py": rules})


FETCH = "    rows = fetch(ctx, day)\n"
LOAD = '        ctx.load("warehouse", clean, TABLE, mode="append")\n'
CHECK = '    ctx.check(ok, name="enough")\n'


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        # A check gone, or not reached, in whatever way.
        (CHECK, "", "check_gone"),
        (CHECK, "    # " + CHECK, "check_gone"),
        (CHECK, '    """' + CHECK.strip() + '"""\n', "check_gone"),
        ("    validate(ctx, rows)\n", "", "check_gone"),
        ("    validate(ctx, rows)\n", "    validate\n", "check_edited"),
        ("    validate(ctx, rows)\n", "    validate(ctx, [{'id': 1}])\n", "check_edited"),
        ("        raise ValueError", "        print", "check_gone"),
        (FETCH, FETCH + "    if not rows:\n        return {}\n", "check_skipped"),
        (FETCH, FETCH + "    rows = [row for row in rows if row['id']]\n", "check_skipped"),
        (FETCH, FETCH + "    rows = [row | {'n': row['n'] or Decimal(0)} for row in rows]\n", "value_made_up"),
        ("    for row in clean:\n", "    for row in clean:\n        break\n", "check_edited"),
        # Weakened.
        ("len(clean) > LEAST", "len(clean) > LEAST or True", "check_edited"),
        ("LEAST = \"orders\", 100", "LEAST = \"orders\", 0", "check_edited"),
        ("    ok = len", "    ok = 0 < len", "check_edited"),
        ("ctx.check(ok,", "ctx.check(True,", "check_edited"),
        (CHECK, "    ok = 1 == 1\n" + CHECK, "check_edited"),
        (CHECK, "    if day != 'sun':\n    " + CHECK, "check_edited"),
        ("    for row in clean:", "    for row in clean[:1]:", "check_edited"),
        ("    for row in clean:", "    for row in clean:\n        row = {'id': 1}", "check_edited"),
        ("import json", "import json\nall = lambda rows: True", "check_edited"),
        (CHECK, "    import contextlib\n    with contextlib.suppress(Exception):\n    " + CHECK, "except_wider"),
        ('name="enough"', 'name="enough", severity="warn"', "check_warns"),
        ("def validate(ctx, rows):", "async def validate(ctx, rows):", "check_gone"),
        ("        raise ValueError", "        yield\n        raise ValueError", "check_gone"),
        ("def validate(ctx", "@staticmethod\ndef validate(ctx", "check_gone"),
        ("@pipeline", "validate = print\n\n\n@pipeline", "unreadable"),
        ("@pipeline", "def validate(ctx, rows): ...\n\n\n@pipeline", "unreadable"),
        (FETCH, FETCH + "    ctx.check = print\n", "unreadable"),
        (FETCH, FETCH + "    setattr(ctx, 'check', print)\n", "unreadable"),
        (FETCH, FETCH + "    ctx.__dict__['check'] = print\n", "unreadable"),
        (FETCH, FETCH + "    ctx = type('C', (), {})()\n", "unreadable"),
        (FETCH, FETCH + "    eval('1')\n", "unreadable"),
        ("from rules import is_whole", "from rules import never as is_whole", "unreadable"),
        # Failures that pass.
        ("    rows = fetch(ctx, day)", "    try:\n        rows = fetch(ctx, day)\n    except Exception: pass", "except_wider"),
        ("except KeyError", "except Exception", "except_wider"),
        ("except KeyError", "except (KeyError, TypeError)", "except_wider"),
        ("    try:\n", "    try:\n        clean = clean[:]\n", "except_wider"),
        ("        extra = {}\n", "        extra = {}\n    finally:\n        return {}\n", "except_wider"),
        ('row["amount"]]', 'row.get("amount", 0)]', "value_made_up"),
        ('row["amount"]]', '(row["amount"] or 0)]', "value_made_up"),
        # Loads, places.
        (LOAD, "        pass\n", "load_gone"),
        (LOAD, LOAD + LOAD, "load_edited"),
        (LOAD, "        if day: " + LOAD.strip() + "\n", "load_edited"),
        ('mode="append"', 'mode="replace"', "load_edited"),
        ("    ctx.sql(QUERY)\n", "", "load_gone"),
        ("INSERT INTO seen", "INSERT INTO others", "place"),
        ("INSERT INTO seen SELECT * FROM orders", "DELETE FROM seen", "load_edited"),
        (FETCH, FETCH + "    ctx.sql('DROP TABLE orders')\n", "load_edited"),
        ('TABLE, LEAST = "orders"', 'TABLE, LEAST = "others"', "load_edited"),
        (", TABLE,", ", day,", "unreadable"),
        ('"shop"', '"attic"', "place"),
        ('"shop"', '"sh" + "op"', "unreadable"),
        (FETCH, FETCH + "    open('/etc/passwd')\n", "place"),
        (FETCH, FETCH + "    there = 'http://evil.example/x'\n", "place"),
        (FETCH, FETCH + "    there = 'evil.example:80'\n", "place"),
        # Limits and options.
        ("retries=1", "retries=2", "limit"),
        ('timeout="5m"', 'timeout="10m"', "limit"),
        (', timeout="30s"', "", "limit"),
        ('timeout="5m", ', "", "limit"),
        ('timeout="5m"', 'timeout=str(day)', "limit"),
        ("0 6 * * *", "0 7 * * *", "schedule"),
        *((("tags=", f"{option}='x', tags=", option)) for option in ("heal", "expose", "executor", "after", "share", "memory")),
        ("tags=", "drift='ignore', tags=", "drift"),
        ("tags=", "novel='x', tags=", "unreadable"),
        ("tags=", "**{'retries': 9}, tags=", "unreadable"),
        ("tags=", "name='others', tags=", "pipeline"),
        ("@pipeline", "@fetch\n@pipeline", "pipeline"),
        (FETCH, FETCH + "    ctx.extract(**ctx.params)\n", "unreadable"),
        ("def orders(", "def others(", "pipeline"),
        # What it needs.
        (FETCH, FETCH + "    ctx.secret('TOKEN')\n", "secret"),
        (FETCH, FETCH + "    ctx.secret(day)\n", "unreadable"),
        (FETCH, FETCH + "    import os; os.environ['TOKEN']\n", "secret"),
        ("import json", "import json, requests", "dependency"),
        ("import json", "# /// script\n# dependencies = ['x']\n# ///\nimport json", "dependency"),
        ("import json", "import json, subprocess", "dependency"),
        ("    return {", "    return ({", "unreadable"),
    ],
)  # fmt: skip
def test_a_rule_names_what_is_dangerous(old: str, new: str, name: str) -> None:
    assert name in {risk["risk"] for risk in changed(old, new)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (FETCH, FETCH),
        ('row["amount"]]', 'row["total"]]'),
        (FETCH, FETCH + '    rows = [{**row, "amount": row["total"]} for row in rows]\n'),
        (FETCH, FETCH + "    ctx.log('renamed')\n    import datetime\n"),
        (FETCH, FETCH + "    ctx.check(len(rows) > 3)\n"),
        ("    return {", "    total = sum(row['amount'] for row in clean)\n    return {'total': total, "),
        ('"""Rows of a day."""', '"""Rows of a day of example.com, see https://example.com/x."""'),
        ("retries=1", "retries=0"),
        ('timeout="5m"', 'timeout="1m"'),
        ("tags=", "description='All', tags="),
        (FETCH, FETCH + "    dict(**ctx.params)\n"),
        ("import json", "# A comment.\nimport json, math"),
        ("except KeyError:", "except KeyError:  # nothing extra"),
    ],
)
def test_what_no_rule_names_is_low(old: str, new: str) -> None:
    assert changed(old, new) == []


def test_a_function_that_decides_about_a_check_is_part_of_it() -> None:
    assert {risk["risk"] for risk in changed("", "", RULES.replace("> 0", "> -1"))} == {"check_edited"}


def test_a_file_that_is_not_python_cannot_be_read() -> None:
    files = {"orders.py": BASE, "rules.py": RULES, "query.sql": "SELECT 1"}
    (risk,) = risks(files, files | {"query.sql": "SELECT 2"})
    assert risk == {
        "risk": "unreadable",
        "file": "query.sql",
        "line": 1,
        "what": "what this does cannot be read from the source: SELECT 2",
    }


def test_moved_files_and_order_of_functions_tell_nothing() -> None:
    head, fetch, rest = BASE.partition("\n\ndef fetch")
    moved = head + BASE[BASE.index("\n\ndef validate") : BASE.index("\n\n@pipeline")]
    moved += fetch + rest[: rest.index("\n\ndef validate")] + BASE[BASE.index("\n\n@pipeline") :]
    assert risks({"orders.py": BASE, "rules.py": RULES}, {"new.py": moved, "rules.py": RULES}) == []


@pytest.mark.parametrize("depth", [200, 5_000])
def test_no_source_breaks_the_judge(depth: int) -> None:
    deep = "x = " + "-" * depth + "1\n"
    assert all(risk["risk"] in module.RISKS for risk in risks({"a.py": BASE}, {"a.py": BASE + deep}))
    assert risks({"a.py": BASE}, {"a.py": "\0"})
    risks({"a.py": ""}, {"a.py": "a = b\nb = a\ndef f(): return f()\n" * 300})
    assert risks({"a.py": BASE}, {"a.py": BASE + "\n\ndef count():\n    global TABLE\n    TABLE = 1\n"})
    many = "".join(f"a{number} = a{number - 1}\nopen(a{number})\n" for number in range(1, 2_000))
    assert risks({"a.py": many}, {"a.py": many + "print(1)\n"})


LONG = {
    "elements and statements": "try:\n" + " a\n" * 2000 + "except (" + "a," * 1000 + "):\n a\n",
    "returns": "def f():\n" + " return\n" * 14_000 + " ctx.check(1)\n",
    "a chain of names": "".join(f"a{n + 1}=a{n}\n" for n in range(3000)) + "a0=check\n",
    "checks in one statement": "for a in b:\n" + " check(a)\n" * 8000,
    "a name of many values": "a = 1\n" * 5000 + "check(a)\n" * 5000,
}


@pytest.mark.parametrize("case", LONG)
def test_a_source_that_is_made_to_be_long_to_read_counts_as_unreadable(case: str) -> None:
    facts = module.Facts({"a.py": LONG[case].encode()})
    assert facts.work < 2 * module.WORK_MAX
    assert sum(map(len, facts.places.values())) < 500_000
    risks = {row["risk"] for row in module.find_risks({"a.py": b"x = 1\n"}, {"a.py": LONG[case].encode()})}
    assert case == "returns" or "unreadable" in risks


def test_every_rule_has_its_words() -> None:
    named = {risk for rule in module.RULES.values() for risk in rule if risk}
    assert named <= module.RISKS.keys()
    assert {*module.OPTION_RISKS.values()} - {None} <= module.RISKS.keys()


def test_a_preview_and_a_diff_tell_risks(tau: Tau) -> None:
    source = "from tau import pipeline\n@pipeline\ndef judged(ctx):\n    ctx.check(1 < 2)\n"
    path = tau.work / "judged.py"
    path.write_text(source)
    assert "risks" in tau("deploy", path, "--dry-run")["pipelines"][0]
    tau("deploy", path)
    path.write_text(source.replace("    ctx.check(1 < 2)\n", "    return 1\n"))
    told = [{"risk": "check_gone", "file": "judged.py", "line": 4}]
    (row,) = tau("deploy", path, "--dry-run")["pipelines"]
    assert [{key: risk[key] for key in told[0]} for risk in row["risks"]] == told
    tau("deploy", path)
    assert tau("diff", "judged", "--versions", 1, 2)["risks"] == row["risks"]


@pytest.mark.parametrize("line", ['ctx.state["n"], limit = 1, {}', 'ctx.state["limit"] = {}', "ctx.limit = limit = {}"])
def test_a_check_that_is_defused_through_ctx_is_seen(line: str) -> None:
    read = "ctx.state['limit']" if line.startswith("ctx.state['l") or 'state["limit"]' in line else "limit"
    body = f"    {line}\n    ctx.check(len(ctx.extract('a.csv')) > {read})\n"
    old, new = (f"from tau import pipeline\n@pipeline\ndef it(ctx):\n{body.format(n)}" for n in (100, 0))
    found = module.find_risks({"it.py": old.encode()}, {"it.py": new.encode()})
    assert "check_edited" in {risk["risk"] for risk in found}
