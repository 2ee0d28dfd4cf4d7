"""One look: `tau inspect` of a failed run is the whole case, within its budget."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import Tau, make_home, running

import tau as module


class Breakage(NamedTuple):
    """A pipeline `it` that has succeeded once, what then changes, and what its case must tell."""

    source: str
    #: What the first answer must have, as paths into the document or texts anywhere in it.
    facts: tuple[str, ...]
    #: Files in its data directory: before, and after what changes.
    files: tuple[dict[str, str], dict[str, str]] = ({}, {})
    #: The source as it is deployed before it breaks, if another.
    first: str = ""
    #: The commands that must be among those that it proposes.
    next: tuple[str, ...] = ("tau code it --out it-v",)


HEAD = "from tau import pipeline\nimport os, time\n"
LOAD = """
@pipeline
def it(ctx):
    rows = ctx.extract("sales.csv")
    rows = ctx.transform(rows, [price])
    return ctx.load("sqlite:///shop.db", rows, "sales", mode="upsert", key=["id"])


def price(rows):
    return [{"id": row["id"], "amount": float(row["amount"])} for row in rows]
"""
SALES = "id,amount\n1,9.5\n2,3\n"
BREAKAGES = {
    "a renamed column": Breakage(
        HEAD + LOAD,
        (
            '"KeyError","message":"\'amount\'"',
            '"column":"amount","what":"removed"',
            '"column":"total","what":"added"',
            "total",
        ),
        ({"sales.csv": SALES}, {"sales.csv": SALES.replace("amount", "total")}),
        next=("tau peek sales.csv --in it --profile", "tau code it --out it-v"),
    ),
    "a missing secret": Breakage(
        HEAD + "@pipeline\ndef it(ctx):\n    return len(ctx.secret('SHOP_TOKEN'))\n",
        ("MissingSecret", '"last_found":{"run_id"', '"found":"', "SHOP_TOKEN"),
        next=("tau secret set SHOP_TOKEN",),
    ),
    "a slow service": Breakage(
        HEAD
        + "@pipeline(timeout=2.5)\ndef it(ctx):\n    with ctx.step('ask') as step:\n        step.rows_in = 7\n"
        + "        wait(os.path.exists('slow'))\n    return 1\n\n\ndef wait(long):\n    time.sleep(30 * long)\n",
        ('"limit_s":2.5', "@pipeline(timeout=…)", "time.sleep(30 * long)", '"rows_in":7', '"elapsed_s"'),
        ({}, {"slow": ""}),
    ),
    "out of memory": Breakage(
        HEAD
        + "@pipeline(memory='256M')\ndef it(ctx):\n    with ctx.step('read all'):\n"
        + "        return len(bytes((1 << 30) * os.path.exists('large')))\n",
        ("MemoryError", '"limit_bytes":268435456', "@pipeline(memory=…)", "read all"),
        ({}, {"large": ""}),
    ),
    "a changed key": Breakage(
        HEAD
        + '@pipeline\ndef it(ctx):\n    rows = ctx.extract("prices.csv", types=True)\n'
        + '    key = ["sku"] if os.path.exists("changed") else ["sku", "region"]\n'
        + '    return ctx.load("sqlite:///shop.db", rows, "prices", mode="upsert", key=key)\n',
        ('"primary":["sku","region"]', "`prices` has the primary key (sku, region)", "INSERT INTO"),
        ({"prices.csv": "sku,region,price\na,eu,1\n"}, {"changed": ""}),
    ),
    "an answer of 503": Breakage(
        HEAD + '@pipeline\ndef it(ctx):\n    return len(ctx.extract(open("url").read(), retries=0))\n',
        ('"status":503', '"retry_after"', "the shop is closed", "retries=3"),
        next=("tau retry RUN_ID",),
    ),
    "odd numbers": Breakage(
        HEAD
        + LOAD.replace("[price]", "[each]")
        .replace("def price(rows)", "from tau import per_row\n@per_row\ndef each(row)")
        .replace('[{"id"', '{"id"')
        .replace("} for row in rows]", "}"),
        ("could not convert string to float", '"position":2', "1.234,50", '"failing":2'),
        ({"sales.csv": SALES}, {"sales.csv": 'id,amount\n1,9.5\n2,"1.234,50"\n3,1\n4,"7,10"\n'}),
    ),
    "a wrong check": Breakage(
        HEAD
        + '@pipeline\ndef it(ctx):\n    rows = ctx.extract("sales.csv")\n'
        + "    ctx.check(lambda: len(rows) == 2)\n    return len(rows)\n",
        ("len(rows) == 2", "3 == 2"),
        ({"sales.csv": SALES}, {"sales.csv": SALES + "3,4\n"}),
    ),
    "a missing package": Breakage(
        HEAD + "@pipeline\ndef it(ctx):\n    import toml\n    return toml.loads('a = 1')\n",
        ("ModuleNotFoundError", "tomllib", '"python"', '"code":"'),
        first=HEAD + "@pipeline\ndef it(ctx):\n    return {'a': 1}\n",
        next=("tau rollback it --to",),
    ),
}


class Closed(http.server.BaseHTTPRequestHandler):
    """A shop that is open for one request."""

    asked = 0

    def do_GET(self) -> None:
        body = b'[{"id": 1}]'
        Closed.asked += 1
        if Closed.asked > 1:
            self.send_response(503)
            self.send_header("Retry-After", "120")
            body = b"the shop is closed"
        else:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Says nothing."""


@contextlib.contextmanager
def shop() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Closed) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/orders.json"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def stage() -> Iterator[Tau]:
    made = make_home("[daemon]\nstop_grace_s = 0.5\n", "tcp")
    with running(made):
        yield made


def put(tau: Tau, files: dict[str, str]) -> None:
    folder = tau.home / "data" / "it"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize("name", BREAKAGES)
def test_the_first_answer_has_what_a_repair_needs(stage: Tau, name: str) -> None:
    it = BREAKAGES[name]
    for path in (stage.home / "data" / "it").glob("*"):
        path.unlink()
    with shop() as url:
        put(stage, it.files[0] | {"url": url})
        (stage.home / "secrets").mkdir(mode=0o700, exist_ok=True)
        secret = stage.home / "secrets" / "SHOP_TOKEN"
        secret.write_text("canary-of-the-shop")
        secret.chmod(0o600)
        stage.deploy(it.first or it.source, "it.py", "--take-over")
        good = stage("run", "it")
        put(stage, it.files[1])
        secret.unlink()
        stage.deploy(it.source, "it.py")
        run = stage("run", "it", exit=1)
    done = stage.command("inspect", "it")
    assert len(done.out.encode()) <= module.DOCUMENT_BYTES + 1
    assert [fact for fact in it.facts if fact not in done.out] == [], done.out
    case = done.json
    assert [*case][:5] == ["run_id", "pipeline", "version", "status", "error"]
    assert case["changed"]["since"]["run_id"] == good["run_id"]
    assert [
        line for line in it.next if not any(line.replace("RUN_ID", run["run_id"]) in one for one in case["next"])
    ] == []
    assert not any(one.startswith("tau deploy") for one in case["next"])
    assert "canary" not in done.out


UPSTREAM = (
    HEAD
    + """
@pipeline
def prices(ctx):
    rows = [{"sku": "a", "price": 12.5}, {"sku": "b", "price": 3.5}]
    return ctx.load("TARGET", rows, "prices", mode="replace")


@pipeline
def report(ctx):
    rows = ctx.extract("TARGET", "prices")
    ctx.check("prices are in euros", all(row["price"] < 100 for row in rows))
    return len(rows)
"""
)


@pytest.mark.parametrize("target", ["sqlite", "postgresql", "file"])
def test_a_changed_upstream_is_named_with_its_versions(stage: Tau, request: Any, tmp_path: Path, target: str) -> None:
    places = {"sqlite": f"sqlite:///{tmp_path}/shop.db", "file": f"{tmp_path}/prices.jsonl"}
    place = places.get(target) or request.getfixturevalue("postgres")
    source, table = UPSTREAM.replace("TARGET", place), "" if target == "file" else "prices"
    if not table:
        source = source.replace('rows, "prices", mode', "rows, mode").replace(f'"{place}", "prices"', f'"{place}"')
    stage.deploy(source, "shop.py")
    for name in ("prices", "report"):
        stage("run", name)
    stage.deploy(source.replace("12.5", "1250").replace("3.5", "350"), "shop.py", "--reason", "cents")
    writer = stage("run", "prices")
    stage("run", "report", exit=1)
    case = stage("inspect", "report")
    (upstream,) = case["changed"]["upstream"]
    assert (upstream["pipeline"], upstream["resource"], upstream["run_id"]) == ("prices", table, writer["run_id"])
    assert upstream["version"][0] < upstream["version"][1]
    assert '+    rows = [{"sku": "a", "price": 1250}' in upstream["code"]
    assert upstream["reason"] == "cents"
    assert upstream["finished_at"] == writer["finished_at"]
    (between,) = stage("lineage", upstream["place"], *filter(None, [table]))["lineage"]
    assert [row["pipeline"] for how in ("writes", "reads") for row in between[how]] == ["prices", "report"]


def test_a_key_that_only_reads_sees_no_rows_and_no_variables(stage: Tau) -> None:
    put(stage, {"sales.csv": "id,total\n17,canary\n"})
    stage.deploy(HEAD + LOAD.replace("shop.db", "other.db"), "it.py", "--take-over")
    run_id = stage("run", "it", exit=1)["run_id"]
    assert "canary" in stage.command("inspect", run_id).out
    key = stage("key", "create", "looks", "--scope", "read")["key"]
    seen = stage.command("inspect", run_id, TAU_API_KEY=key)
    assert (seen.exit, "canary" in seen.out) == (0, False)
    assert "need scope operate" in seen.json["samples"]["rows"]


@pytest.mark.parametrize("budget", [3_000, 6_000, 20_000])
def test_a_case_fits_into_any_budget_and_says_what_was_cut(stage: Tau, budget: int) -> None:
    deep = "\n".join(f"def f{n}(x):\n    y = ['{'x' * 100}'] * 9\n    return f{n + 1}(y)\n" for n in range(30))
    source = (
        HEAD
        + deep
        + "\ndef f30(x):\n    raise ValueError('z' * 5_000)\n\n@pipeline\ndef it(ctx, big: str = 'p' * 900):\n"
    )
    source += "    for n in range(300):\n        with ctx.step(f'step {n}' * 5):\n            ctx.check(f'check {n}' * 9, n % 7 != 0, severity='warn')\n"
    source += "    ctx.log('l' * 3000)\n    large = list(range(200, 260))\n    ctx.check('large', large[0] == 200)\n    f0(large)\n"
    stage.deploy(source, "it.py", "--take-over")
    stage("run", "it", exit=1)
    done = stage.command("inspect", "it", "--budget", budget)
    assert not done.err
    assert len(done.out.encode()) <= budget + 1
    assert {"path", "bytes", "get"} == {*done.json["cut"][0]}
    assert done.json["error"]["message"].startswith("zzz")
    whole = stage("inspect", "it", "--full")
    assert ("cut" in whole, len(whole["trace"]["steps"])) == (False, 300)
    assert "258, 259]" in whole["error"]["frames"][0]["locals"].get("x", "258, 259]")


def test_two_runs_and_two_versions_are_compared(stage: Tau) -> None:
    source = HEAD + "@pipeline\ndef it(ctx, day: str = 'monday'):\n    assert day != 'friday', day\n    return 1\n"
    stage.deploy(source, "it.py", "--take-over")
    first = stage("run", "it")["run_id"]
    stage.deploy(source.replace("return 1", "return 2").replace("@pipeline", "@pipeline(retries=1)"), "it.py")
    second = stage("run", "it", "-p", "day=friday", exit=1)["run_id"]
    for words in ((second,), ("it",), (second, first)):
        told = stage("diff", *words)
        assert told["since"]["run_id"] == first
        assert told["params"] == {"day": [None, "friday"]}
        assert "-    return 1\n+    return 2\n" in told["code"]
        assert told["options"]["retries"] == [0, 1]
    versions = [told["since"]["version"], stage("inspect", "it")["version"]]
    assert "+    return 2" in stage("diff", "it", "--versions", *versions)["code"]
    assert stage("diff", "it", "--versions", "1", exit=2)["hint"] == "tau diff it --versions 1 2"
    assert json.dumps(told).count("packages") == 0


def test_a_failure_without_a_place_shows_its_function(fresh: Tau) -> None:
    before = "".join(f"def other_{number}():\n    return {number}\n\n" for number in range(200))
    fresh.deploy(f"from tau import pipeline\n{before}@pipeline\ndef big(ctx):\n    return 'x' * (2 << 20)\n")
    run = fresh("run", "big", exit=1)
    assert run["source"]["line"] == 603
    assert "result_bytes" in run["error"]["hint"]
    assert any("def big(ctx)" in line for line in run["source"]["lines"])


def test_the_innermost_cause_is_kept_and_large_params_are_tried_again(fresh: Tau) -> None:
    fresh.deploy_it(
        "def it(ctx, ids=()):\n    try:\n        {}['root']\n    except KeyError as problem:\n"
        "        for number in range(4):\n            new = ValueError(f'{number} ' + 'x' * 900)\n"
        "            new.__cause__, problem = problem, new\n        raise problem"
    )
    run = fresh("run", "it", "--params", json.dumps({"ids": [*range(300)]}), exit=1)
    cause, types = run["error"], []
    while cause:
        types.append(cause["type"])
        cause = cause["cause"]
    assert types[-1] == "KeyError"
    fresh.deploy_it("def it(ctx, ids=()): return len(ids)")
    run = fresh("run", "it", "--params", json.dumps({"ids": [*range(300)]}))
    (again,) = (line for line in run["next"] if "retry" in line)
    assert fresh(*again.split()[1:])["result"] == 300


def test_next_names_the_connection_whose_url_has_the_user(home: Tau) -> None:
    (home.home / "tau.toml").write_text('[connections.wh]\nurl = "sqlite:////tmp/no such folder of tau/x.db"\n')
    home.start()
    home.deploy_it("def it(ctx): ctx.extract('wh', 'orders')\n")
    failed = home("run", "it", exit=1)
    assert any(line.startswith("tau peek wh orders --in it ") for line in failed["next"])


def test_a_secret_that_a_failed_run_did_not_ask_for_is_not_lost(home: Tau) -> None:
    home.start()
    home("secret", "set", "KEY_OF_SHOP", stdin="value of it")
    home.deploy_it("def it(ctx, fails=False):\n    if fails: raise ValueError('x')\n    ctx.secret('KEY_OF_SHOP')\n")
    home("run", "it")
    failed = home("run", "it", "-p", "fails=true", exit=1)
    assert "secrets" not in failed.get("changed", {})
