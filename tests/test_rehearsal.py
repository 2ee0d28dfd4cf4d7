"""A rehearsal: a run whose writes are withheld and told as effects, and that must not reach further."""

from __future__ import annotations

import csv
import json
import os
import shlex
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import postgres as postgresql
import pytest
from conftest import Tau, eventually, is_running, make_home, running
from test_web import Server, serving

import tau as module

OLD = [{"id": number, "name": f"n{number}"} for number in range(1, 6)]
NEW = [{"id": 4, "name": "n4"}, {"id": 5, "name": "other"}, {"id": 6, "name": "n6"}]
#: What a pipeline does → its line, and whether it is for databases only.
WRITES = {
    "append": ("ctx.load(place, [{'id': 7, 'name': 'n7'}], table)", False),
    "replace": (f"ctx.load(place, {NEW}, table, mode='replace', key='id')", False),
    "upsert": (f"ctx.load(place, {NEW}, table, mode='upsert', key='id')", False),
    "twice": (f"ctx.load(place, {NEW}, table, mode='replace'); ctx.load(place, [{{'id': 9}}], table)", False),
    "insert": ("ctx.sql(\"INSERT INTO sales (id, name) VALUES (8, 'n8'), (9, NULL)\", connection=place)", True),
    "update": ("ctx.sql('UPDATE sales SET name = :it WHERE id > 3', {'it': 'n4'}, connection=place)", True),
    "delete": ("ctx.sql('DELETE FROM sales WHERE id < 3', connection=place)", True),
    "create": ("ctx.sql('CREATE TABLE copy AS SELECT * FROM sales', connection=place)", True),
    "alter": ("ctx.sql('ALTER TABLE sales ADD COLUMN more INTEGER DEFAULT 1', connection=place)", True),
    "drop": ("ctx.sql('DROP TABLE sales', connection=place)", True),
}
PLACES = ("sales.csv", "OUTSIDE/sales.jsonl", "sqlite:///shop.db", "sqlite:///OUTSIDE/shop.db", "duckdb:///shop.duckdb")
PLACES += ("postgresql",)
LIBRARIES = {"duckdb": "import duckdb_engine", "postgresql": "import psycopg, sqlalchemy"}


@pytest.fixture(scope="module")
def shop() -> Iterator[Tau]:
    """A daemon whose pipelines are rehearsed."""
    made = make_home("[daemon]\nstop_grace_s = 0.5\n")
    with running(made):
        yield made


@pytest.fixture(scope="module")
def web() -> Iterator[Server]:
    """A web server."""
    yield from serving()


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A PostgreSQL."""
    with postgresql.running() as url:
        yield url


def files_of(source: str) -> list[dict[str, str]]:
    return [{"path": "it.py", "text": "from tau import pipeline\n" + source}]


def pipeline_of(line: str, *before: str) -> str:
    """The source of a pipeline that does one line."""
    lines = "\n".join(before)
    return f"{lines}\n@pipeline\ndef it(ctx, place: str = '', table: str | None = None):\n    {line}\n"


def run_of(tau: Tau, source: str, **params: Any) -> str:
    """Deploys and runs a pipeline; the id of that run."""
    tau.call("deploy", files=files_of(source), take_over=True)
    return str(tau.call("run", name="it", params=params)["run_id"])


def rehearse(tau: Tau, source: str, like: str, **more: Any) -> Any:
    return tau.call("try", files=files_of(source), like=like, **{"allow": [*module.RISKS], **more})


def rows_of(tau: Tau, place: str) -> Any:
    """All rows of a place, of each table."""
    folder = tau.home / "data" / "it"
    if "://" not in place:
        path = folder / place
        with open(path, newline="") as file:
            return {"": [*csv.DictReader(file)] if path.suffix == ".csv" else [*map(json.loads, file)]}
    if place.startswith("sqlite"):
        with closing(sqlite3.connect(folder / place.partition(":///")[2])) as db:
            names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            db.row_factory = sqlite3.Row
            return {name: [dict(row) for row in db.execute(f"SELECT * FROM {name}")] for name in names}
    found = {}
    with connected(place, folder) as db:
        cursor = db.execute("SELECT table_name FROM information_schema.tables WHERE table_schema IN ('main', 'public')")
        for (name,) in cursor.fetchall():
            cursor = db.execute(f"SELECT * FROM {name}")
            columns = [column[0] for column in cursor.description]
            found[name] = [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
    return found


def connected(place: str, folder: Path) -> Any:
    if place.startswith("duckdb"):
        return pytest.importorskip("duckdb").connect(str(folder / place.partition(":///")[2]), read_only=True)
    return pytest.importorskip("psycopg").connect(place)


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file of a directory and its content."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def against(before: list[Any], after: list[Any], is_keyed: bool) -> dict[str, int]:
    """What differs between two lists of rows, counted in another way than Tau does."""
    cells = lambda row: {name: cell for name, cell in row.items() if cell is not None}  # noqa: E731
    left, same = [*map(cells, before)], 0
    fresh = []
    for row in map(cells, after):
        if row in left:
            left.remove(row)
            same += 1
        else:
            fresh.append(row)
    changed = len({row["id"] for row in left} & {row["id"] for row in fresh}) if is_keyed else 0
    return {"added": len(fresh) - changed, "changed": changed, "removed": len(left) - changed, "same": same}


@pytest.mark.parametrize("place", PLACES)
def test_nothing_changes_and_the_effects_are_those_of_the_real_run(
    place: str, shop: Tau, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if place == "postgresql":
        place = request.getfixturevalue("database")
    place = place.replace("OUTSIDE", str(tmp_path))
    if place.startswith("duckdb"):
        pytest.importorskip("duckdb_engine")
    is_database = "://" in place
    given = {"place": place, "table": "sales" if is_database else None}
    library = LIBRARIES.get(place.partition(":")[0], "")  # the runs that fill the place are warm
    again = "[ctx.sql(f'DROP TABLE IF EXISTS {name}', connection=place) for name in ('copy', 'sales')]; " * is_database
    fill = pipeline_of(f"{again}ctx.load(place, {OLD}, table, mode='replace', key='id')", library)
    for name, (line, needs_database) in WRITES.items():
        if needs_database and not is_database:
            continue
        like, source = run_of(shop, fill, **given), pipeline_of(line)
        before, files = rows_of(shop, place), tree_of(shop.home / "data") | tree_of(tmp_path)
        count = len(shop.call("runs", limit=1_000)["runs"])
        done = rehearse(shop, source, like, times=1 + (name == "upsert"))
        assert (done["status"], done["error"], done["refused"]) == ("success", None, []), name
        assert done.get("agree") is (True if name == "upsert" else None)
        assert rows_of(shop, place) == before, name
        assert tree_of(shop.home / "data") | tree_of(tmp_path) == files, name
        assert len(shop.call("runs", limit=1_000)["runs"]) == count
        run_of(shop, source, **given)
        after = rows_of(shop, place)
        changed = [table for table in {**before, **after} if before.get(table) != after.get(table)]
        told = {effect["resource"]: effect for effect in done["effects"]}
        assert {*told} == {*changed}, name
        for table in changed:
            effect, is_keyed = told[table], is_database or name == "upsert"
            expected = against(before.get(table, []), after.get(table, []), is_keyed)
            if name != "replace" or is_database:
                assert effect["against"] == expected, (name, effect)
            assert effect["mode"] == {"twice": "replace+append"}.get(name, name if name in module.MODES else "sql")
            if name in module.MODES:
                assert (effect["rows"], effect["columns"]["name"]) == (1 if name == "append" else 3, "text")


def test_later_reads_see_what_was_withheld(shop: Tau, database: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/other.db"
    line = f"""
    ctx.load(place, [{{"id": 1}}, {{"id": 2}}], table, mode="upsert", key="id")
    ctx.load("{tmp_path}/x/y/a.csv", [{{"id": 1}}])
    ctx.load("{url}", [{{"id": 1}}], "t")
    found = [len(ctx.extract(place, "later")), ctx.sql("SELECT count(*) AS n FROM later", connection=place)[0]["n"]]
    found += [len(ctx.extract("{tmp_path}/x/y/*.csv")), len(ctx.extract("{tmp_path}/**/*.csv"))]
    found += [len(ctx.extract("{url}", "t"))]
    ctx.check(found == [2, 2, 1, 1, 1], name="found")
    """.strip()
    like = run_of(shop, pipeline_of("ctx.sql('SELECT 1', connection=place)"), place=database, table="later")
    done = rehearse(shop, pipeline_of(line), like)
    assert (done["status"], done["checks"][0]["passed"]) == ("success", True), done["error"]
    assert [effect["against"]["added"] for effect in done["effects"]] == [2, 1, 1]
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("kind", ["sqlite", "duckdb", "postgresql"])
def test_production_writes_the_same_table_meanwhile(
    kind: str, shop: Tau, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = tmp_path / "busy.db"
    place = request.getfixturevalue("database") if kind == "postgresql" else f"{kind}:///{path}"
    begin = f"ctx.load(place, {OLD}, table, mode='replace', key='id')"
    run_of(shop, pipeline_of(begin), place=place, table="busy")
    line = "ctx.load(place, [{'id': n, 'name': 'x'} for n in range(4, 5000)], table, mode='upsert', key='id')"
    like = run_of(shop, pipeline_of("ctx.extract(place, table)"), place=place, table="busy")
    stop, written = threading.Event(), list[int]()

    def write() -> None:
        connect = {
            "sqlite": lambda: sqlite3.connect(path, timeout=60),
            "duckdb": lambda: duckdb.connect(str(path)),
            "postgresql": lambda: connected(place, path),
        }[kind]
        while not stop.is_set():
            with closing(connect()) as db:
                db.execute(f"INSERT INTO busy (id, name) VALUES ({10_000 + len(written)}, 'production')")
                db.commit()
            written.append(1)
            time.sleep(0.01 if kind == "duckdb" else 0)  # one process alone has the file open

    writer = threading.Thread(target=write)
    writer.start()
    try:
        eventually(lambda: len(written) > 3)
        done = rehearse(shop, pipeline_of(line), like)
    finally:
        stop.set()
        writer.join()
    assert done["status"] == "success", done["error"]
    counts = done["effects"][0]["against"]
    assert (counts["added"], counts["changed"], counts["removed"]) == (4994, 2, 0)
    assert len(rows_of(shop, place)["busy"]) == 5 + len(written)


#: What a rehearsal refuses → the lines before the pipeline, its own, and what is told.
REFUSED = {
    "module code": ("open('OUTSIDE/file', 'w').close()", "pass", "a change of OUTSIDE/file"),
    "open": ("", "open('OUTSIDE/file', 'a')", "it.py:5: a change of OUTSIDE/file"),
    "os.remove": ("import os", "os.remove('OUTSIDE/kept')", "a change of OUTSIDE/kept"),
    "os.rename": ("import os", "os.rename('OUTSIDE/kept', 'here')", "a change of OUTSIDE/kept"),
    "rmtree": ("import shutil", "shutil.rmtree('OUTSIDE')", "a change of OUTSIDE/kept"),
    "chmod": ("import pathlib", "pathlib.Path('OUTSIDE/kept').chmod(0o777)", "a change of OUTSIDE/kept"),
    "subprocess": ("import subprocess", "subprocess.run(['touch', 'OUTSIDE/file'])", "subprocess.Popen"),
    "os.system": ("import os", "os.system('touch OUTSIDE/file')", "os.system"),
    "fork": ("import os", "os.fork() or os._exit(0)", "os.fork"),
    "kill": ("import os", "os.kill(os.getppid(), 9)", "os.kill"),
    "urllib": ("import urllib.request", "urllib.request.urlopen(place)", "a connection to localhost"),
    "requests": ("import requests", "requests.get(place)", "a connection to localhost"),
    "xmlrpc": ("import xmlrpc.client", "xmlrpc.client.ServerProxy(place).x()", "a connection to localhost"),
    "Client": ("import tau", "tau.Client(home='HOME').call('shutdown', {})", "socket of this machine"),
    "unix": ("import socket", "socket.socket(socket.AF_UNIX).connect('HOME/tau.sock')", "socket of this machine"),
    "secret": ("", "ctx.secret(place)", "secret 'OTHER'"),
    "secret file": ("", "open('HOME/secrets/OTHER')", "it belongs to taud"),
    "store": ("", "open('HOME/tau.db', 'rb')", "it belongs to taud"),
    "attach": (
        "",
        "ctx.sql(\"ATTACH 'OUTSIDE/kept.db' AS x\", connection='sqlite:///a.db')",
        "a change of OUTSIDE/kept.db",
    ),
    "mysql": ("", "ctx.load('mysql://localhost/db', [{'id': 1}], 't')", "mysql://localhost:3306/db"),
    "database": ("", "ctx.load(place, [{'id': 1}], 't')", "postgresql://elsewhere"),
    "psycopg": ("", "import psycopg", "import psycopg"),
    "web": ("", "ctx.extract(place)", "a connection to localhost"),
    "commit": ("", "ctx.sql('/* */ commit', connection='duckdb:///a.duckdb')", "COMMIT in"),
    "copy": (
        "",
        "ctx.sql(\"COPY (SELECT 1) TO 'OUTSIDE/x'\", connection='duckdb:///a.duckdb')",
        "a change of OUTSIDE/x",
    ),
    "duckdb": (
        "",
        "ctx.sql('SELECT 1', connection='duckdb:///a.duckdb'); import duckdb; duckdb.connect('OUTSIDE/x')",
        "duckdb.connect()",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_reaches_further_is_refused_and_told(case: str, shop: Tau, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    shop.call("secret_set", name="OTHER", value="0ther-5ecret")
    given = {"secret": "OTHER", "database": "postgresql://elsewhere/db"}
    like = run_of(shop, pipeline_of("pass"), place=given.get(case, "http://localhost:1/rows"))

    def filled(text: str) -> str:
        return (
            text.replace("OUTSIDE", str(outside)).replace("HOME", str(shop.home)).replace("WEB", "http://localhost:1")
        )

    before, line, told = map(filled, REFUSED[case])
    files = tree_of(outside)
    if case == "module code":
        files_sent = files_of(pipeline_of(line, before))
        with shop.connect() as wire:
            params = {"files": files_sent, "like": like, "allow": [*module.RISKS]}
            error = wire.ask({"jsonrpc": "2.0", "id": 1, "method": "try", "params": params})
        assert told in error["error"]["message"]
        assert tree_of(outside) == files
        return
    allow = module.RISKS.keys() - ({"place", "secret"} if "place" in line else ())  # what a source shows is allowed
    done = rehearse(shop, pipeline_of(line, before), like, allow=[*allow])
    assert (done["status"], len(done["refused"])) == ("failed", 1), done
    assert told in done["refused"][0]
    assert tree_of(outside) == files
    assert shop.call("ping")


def test_what_the_last_success_used_is_allowed_to_be_read(shop: Tau, web: Server) -> None:
    web.tell("/rows", [{"id": 1}])
    shop.call("secret_set", name="MINE", value="my-0wn-5ecret")
    read = f"ctx.secret('MINE'); ctx.extract('{web.url}/rows')"
    like = run_of(shop, pipeline_of(read))
    more = "urllib.request.urlopen('WEB/rows').close(); urllib.request.urlopen('WEB/rows', b'x')"
    done = rehearse(shop, pipeline_of(f"{read}; {more.replace('WEB', web.url)}", "import urllib.request"), like)
    told = [text.partition(": ")[2] for text in done["refused"]]
    assert (done["status"], told) == ("failed", ["a POST over HTTP: it may change something"])
    assert [step["rows_out"] for step in done["steps"]] == [1]


def test_a_target_of_the_authors_is_not_called(shop: Tau, tmp_path: Path) -> None:
    before = f"import tau\n@tau.target('mine')\ndef mine(rows):\n    open('{tmp_path}/file', 'w').close()"
    like = run_of(shop, pipeline_of("pass"))
    (effect,) = rehearse(shop, pipeline_of("ctx.load('mine', [{'id': 1}, {'id': 2}])", before), like)["effects"]
    about = {"place": "@mine", "resource": "", "mode": "append", "rows": 2}
    assert effect == {**about, "columns": {"id": "integer"}, "against": None}
    assert not [*tmp_path.iterdir()]


TABLES = """
CREATE TABLE audit (id INTEGER);
CREATE TABLE one (id INTEGER PRIMARY KEY);
CREATE TABLE two (id INTEGER REFERENCES one DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION note() RETURNS integer LANGUAGE sql AS 'INSERT INTO audit VALUES (1) RETURNING 1'
"""


def test_what_postgresql_does_by_itself_is_told(shop: Tau, database: str) -> None:
    begin = f"[ctx.sql(text, connection=place) for text in {TABLES.strip()!r}.split(';')]"
    run_of(shop, pipeline_of(begin), place=database)
    like = run_of(shop, pipeline_of("ctx.sql('SELECT 1', connection=place)"), place=database)
    done = rehearse(shop, pipeline_of("ctx.sql('SELECT note()', connection=place)"), like)
    assert (done["status"], len(done["unobserved"])) == ("success", 1), done
    assert done["unobserved"][0].endswith("audit")
    done = rehearse(shop, pipeline_of("ctx.sql('INSERT INTO two VALUES (7)', connection=place)"), like)
    assert (done["status"], "foreign key" in done["error"]["message"]) == ("failed", True)
    for statement in ("COMMIT", "INSERT INTO one VALUES (1); COMMIT", "DO $$ BEGIN COMMIT; END $$"):
        done = rehearse(shop, pipeline_of(f"ctx.sql({statement!r}, connection=place)"), like)
        assert done["status"] == "failed", statement
    kept = rows_of(shop, database)
    assert kept["audit"] == kept["one"] == kept["two"] == []


def test_postgresql_is_streamed_and_emptied_in_a_rehearsal_as_in_a_run(shop: Tau, database: str) -> None:
    begin = "[ctx.sql(text, connection=place) for text in ('CREATE TABLE full1 (id INT)', 'INSERT INTO full1 VALUES (1), (2)')]"
    run_of(shop, pipeline_of(begin), place=database)
    truncate = pipeline_of("ctx.sql('TRUNCATE full1', connection=place)")
    stream = pipeline_of("ctx.load('copy.csv', ctx.extract(place, 'full1', stream=True))")
    like = run_of(shop, stream, place=database)
    done = rehearse(shop, stream, like)
    assert (done["status"], done["effects"][0]["rows"]) == ("success", 2), done["error"]
    done = rehearse(shop, truncate, like)
    assert [effect["against"]["removed"] for effect in done["effects"]] == [2]
    assert len(rows_of(shop, database)["full1"]) == 2


def test_what_is_caught_is_told_all_the_same(shop: Tau, tmp_path: Path) -> None:
    line = f"""
    try:
        open("{tmp_path}/file", "w")
    except OSError:
        return "caught"
    """.strip()
    done = rehearse(shop, pipeline_of(line), run_of(shop, pipeline_of("pass")))
    assert (done["status"], len(done["refused"])) == ("success", 1)


def test_files_that_module_code_writes_are_effects(shop: Tau) -> None:
    line = """
    open("new.csv", "w").write("id,name\\n1,a\\n2,b\\n")
    open("notes.bin", "wb").write(b"\\0")
    with sqlite3.connect(ctx.data_dir + "/own.db") as db:
        db.execute("CREATE TABLE IF NOT EXISTS own (id INTEGER PRIMARY KEY, name TEXT)")
        db.execute("INSERT OR REPLACE INTO own VALUES (1, 'b')")
    """.strip()
    source = pipeline_of(line, "import sqlite3")
    like = run_of(shop, source.replace("'b'", "'a'").replace("\\n2,b", ""))
    done = rehearse(shop, source, like)
    told = {os.path.basename(effect["place"]) + effect["resource"]: effect for effect in done["effects"]}
    assert {effect["mode"] for effect in told.values()} == {"code"}, told
    assert told["own.dbown"]["against"] == {"added": 0, "changed": 1, "removed": 0, "same": 0}
    assert told["new.csv"]["against"] == {"added": 1, "changed": 0, "removed": 0, "same": 1}
    assert "notes.bin" not in told  # it has not changed


def test_it_has_what_the_run_had_and_what_is_today(shop: Tau) -> None:
    source = """
@pipeline
def it(ctx, day: str):
    state = dict(ctx.state)
    ctx.state["n"] = ctx.state.get("n", 0) + 1
    return {"day": day, "state": state, "run": ctx.run_id, "memo": ctx.memo("m", int, "5"), "at": str(ctx.scheduled_for)}
"""
    like = run_of(shop, source, day="monday")
    check = source.replace(
        "    return ", "    ctx.check(ctx.state['n'] == 2 and day == 'monday', name='same')\n    return "
    )
    done = rehearse(shop, check, like, times=2)
    assert (done["status"], done["like"], done["memos"], done["agree"]) == ("success", like, "not used", True)
    assert shop.call("run", name="it", params={"day": "x"})["result"]["state"] == {"n": 1}


def test_modules_of_the_authors_do_not_decide_what_has_changed(shop: Tau) -> None:
    """Neither those with names of Python's own, nor what it finds of a rehearsal in its context."""
    line = "open('report.bin', 'wb').write({})"
    like = run_of(shop, pipeline_of(line.format("b'1'")))
    source = pipeline_of(line.format("b'2'"), "import contextvars", "assert not [*contextvars.copy_context()]")
    others = [{"path": f"{name}.py", "text": ""} for name in ("filecmp", "csv", "difflib")]
    done = shop.call("try", files=files_of(source) + others, like=like, allow=[*module.RISKS])
    assert done["status"] == "success", done["error"]
    assert [(effect["mode"], Path(effect["place"]).name) for effect in done["effects"]] == [("code", "report.bin")]


def test_two_rehearsals_that_differ_do_not_agree(shop: Tau) -> None:
    line = "ctx.load('random.csv', [{'id': random.random()}], mode='replace')"
    like = run_of(shop, pipeline_of("pass"))
    path = shop.write("from tau import pipeline\n" + pipeline_of(line, "import random"))
    assert shop("try", path, "--like", like, exit=5)["code"] == "unproven"
    words = ["--like", like, "--times", 2, "--allow", "place", "load_edited"]
    assert shop("try", path, *words, exit=1)["agree"] is False
    shown = shop.command("try", path, *words, "--text")
    assert (shown.exit, shown.err, "random.csv" in shown.out) == (1, "", True)


def test_what_was_proven_is_deployed_by_the_command_that_is_told(shop: Tau) -> None:
    like = run_of(shop, pipeline_of("pass"))
    path = shop.write("from tau import pipeline\n" + pipeline_of("ctx.load('few.csv', [{'id': 1}])"))
    done = shop("try", path, "--like", like, "--allow", "place", "load_edited")
    command = shlex.split(done["next"][0])
    assert command[-3:] == ["--allow", "place", "load_edited"]
    assert [it["name"] for it in shop(*command[1:])["pipelines"]] == ["it"]


def test_a_rehearsal_ends_with_its_time_its_memory_and_its_request(shop: Tau) -> None:
    like = run_of(shop, pipeline_of("pass"))
    done = rehearse(shop, pipeline_of("time.sleep(300)", "import time"), like, timeout=0.5)
    assert done["status"] == "timed_out"
    hog = pipeline_of("b'x' * (1 << 31)").replace("@pipeline", "@pipeline(memory='1G')")
    error = rehearse(shop, hog, like)["error"]
    assert error["type"] == "MemoryError" or "out of memory" in error["message"], error
    with shop.connect() as wire:
        files = files_of(pipeline_of("time.sleep(300)", "import time"))
        wire.send({"jsonrpc": "2.0", "id": 1, "method": "try", "params": {"files": files, "like": like}})
        pid = eventually(lambda: pid_of_load(shop))
    eventually(lambda: not is_running(pid))
    eventually(lambda: not [*(shop.home / "runs").glob(".load*")])


def pid_of_load(tau: Tau) -> int:
    """The process that rehearses, once its scratch copy is there."""
    pids = [one["pid"] for one in tau.call("status")["processes"] if one["role"] == "load"]
    return pids[0] if pids and [*(tau.home / "runs").glob(".load*/now")] else 0


def test_kill_9_of_the_daemon_leaves_no_process_and_no_copy(fresh: Tau) -> None:
    like = run_of(fresh, pipeline_of("pass"))
    with fresh.connect() as wire:
        files = files_of(pipeline_of("time.sleep(300)", "import time"))
        wire.send({"jsonrpc": "2.0", "id": 1, "method": "try", "params": {"files": files, "like": like}})
        pid = eventually(lambda: pid_of_load(fresh))
        fresh.kill()
    eventually(lambda: not is_running(pid))
    fresh.start()  # a copy that was just made for the next process goes with the next daemon
    eventually(lambda: not [*(fresh.home / "runs").glob(".load*")])


def test_a_dry_run_withholds_in_a_home_that_is_thrown_away(home: Tau, tmp_path: Path) -> None:
    path = home.write("from tau import pipeline\n" + pipeline_of(f"ctx.load(place, {NEW})"))
    done = home("try", path, "--dry-run", "-p", f"place={tmp_path}/out.csv", TMPDIR=str(home.work), TAU_READ_ONLY="1")
    assert (done["status"], done["like"], done["effects"][0]["against"]["added"]) == ("success", None, 3)
    assert not (tmp_path / "out.csv").exists()


def test_read_only_refuses_what_asks_the_daemon(shop: Tau) -> None:
    path = shop.write("from tau import pipeline\n" + pipeline_of("pass"))
    like = run_of(shop, pipeline_of("pass"))
    assert shop("try", path, "--like", like, exit=4, TAU_READ_ONLY="1")["code"] == "forbidden"
    assert shop.command("try", path, "--like", like, "-p", "place=x").exit == 2


def test_a_file_that_is_too_large_is_refused(shop: Tau, tmp_path: Path) -> None:
    with open(tmp_path / "large.csv", "wb") as file:
        file.truncate((1 << 30) + 1)
    like = run_of(shop, pipeline_of("pass"))
    done = rehearse(shop, pipeline_of(f"ctx.load('{tmp_path}/large.csv', {NEW})"), like)
    assert "1,073,741,824" in done["refused"][0]


def test_in_an_interpreter_that_has_imported_nothing_yet_it_is_the_same(home: Tau) -> None:
    home.environ["PYTHONHASHSEED"] = "1"  # so its processes are no forks of one that has
    file = home.write("from tau import pipeline\n@pipeline\ndef it(ctx):\n    open('out.txt', 'w').write('1')\n")
    tried = home("try", file, "--dry-run")
    assert (tried["status"], len(tried["effects"])) == ("success", 1), tried
