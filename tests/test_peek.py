"""A look at data, for those who may: what it shows of each kind of place, what it refuses, and how much it takes."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, THOROUGH, Context, Tau, make_home, running, served
from postgres import importable
from test_keys import ask, key_for
from test_terminal import on_terminal
from test_web import Server, serving

import tau as module

CANARY = "canary-5up3r-s3cr3t"
ROWS = [{"id": number, "amount": f"{number}.50", "at": f"2026-01-0{number}"} for number in range(1, 9)]
ROWS += [{"id": 9, "amount": "1,009.50", "at": ""}]
#: What a profile says of the amounts and the times.
AMOUNT = {"kind": "real", "nulls": 0, "distinct": 9, "least": 1.5, "greatest": 8.5}
AMOUNT |= {"shapes": {"9.99": 8, "9,999.99": 1}, "odd": [{"row": 9, "cell": "1,009.50"}]}
LOADS = """
from tau import pipeline

@pipeline
def loads(ctx, rows: list, targets: list):
    for place, table in targets:
        upsert = {"mode": "upsert", "key": "id"} if table else {"mode": "replace"}
        # What DuckDB upserts at once has no order.
        for part in [[row] for row in rows] if place.startswith("duckdb") else [rows]:
            ctx.load(place, part, table or None, **upsert)
    for place, table in targets:
        if table:
            ctx.sql("CREATE INDEX by_time ON sales (\\"at\\")", connection=place)
"""


@pytest.fixture(scope="module")
def web() -> Iterator[Server]:
    """A web server."""
    yield from serving()


@pytest.fixture(scope="module")
def shop(web: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tau]:
    """A daemon with a pipeline that has data of every kind, and with connections."""
    outside = tmp_path_factory.mktemp("outside")
    made = make_home("[daemon]\nstop_grace_s = 0.5\n", "tcp")
    config = made.home / "tau.toml"
    tables = {
        "warehouse": f'url = "sqlite:///{outside}/warehouse.db"',
        "closed": f'url = "sqlite:///{outside}/closed.db"\npeek = false',
        "closed_nowhere": 'url = "postgresql://u:${NO_SUCH_SECRET}@localhost/db"\npeek = false',
        "closed_folder": f'url = "{outside}/closed"\npeek = false',
        "closed_web": f'url = "http://localhost:{web.server_address[1]}/closed"\npeek = false',
        "secret_web": f'url = "{web.url}/secret?key=${{API_TOKEN}}"',
    }
    with open(config, "a") as file:
        file.writelines(f"[connections.{name}]\n{text}\n" for name, text in tables.items())
    for name in ("warehouse", "closed"):
        with sqlite3.connect(outside / f"{name}.db") as db:
            db.execute("CREATE TABLE prices (sku TEXT, region TEXT, price REAL, PRIMARY KEY (sku, region))")
            db.execute("INSERT INTO prices VALUES ('a', 'eu', 2.5)")
        db.close()
    (outside / "closed").mkdir()
    (outside / "closed" / "a.csv").write_text("id\n1\n")
    (outside / "open.csv").write_text("id\n1\n")
    made.environ["OUTSIDE"] = str(outside)
    with running(made):
        made.deploy(LOADS)
        made.call("secret_set", name="API_TOKEN", value=CANARY)
        yield made


def look(tau: Tau, *words: Any, exit: int = 0) -> Any:
    """What `tau peek` answers."""
    return tau("peek", *words, exit=exit)


#: Place → the words that name it, and whether it is a database.
PLACES = {
    "csv": ("in/sales.csv", "", True),
    "jsonl": ("in/sales.jsonl", "", False),
    "json": ("in/sales.json", "", False),
    "parquet": ("in/sales.parquet", "", False),
    "http": ("WEB/sales", "", False),
    "sqlite": ("sqlite:///sales.db", "sales", False),
    "duckdb": ("duckdb:///sales.duckdb", "sales", False),
    "postgresql": ("POSTGRES", "sales", False),
}


@pytest.mark.parametrize("kind", PLACES)
def test_every_kind_of_place_shows_rows_keys_and_a_profile(
    kind: str, shop: Tau, web: Server, request: pytest.FixtureRequest
) -> None:
    place, table, is_text = PLACES[kind]
    if kind == "postgresql":
        place = request.getfixturevalue("postgres")
    for module_name in {"duckdb": ["duckdb_engine"], "parquet": ["pyarrow"]}.get(kind, ()):
        pytest.importorskip(module_name)
    web.tell("/sales", ROWS)
    if kind != "http":
        params = {"rows": ROWS, "targets": [[place, table]]}
        assert shop("run", "loads", "--params", json.dumps(params))["status"] == "success"
    words = [place.replace("WEB", web.url), *filter(None, [table]), "--in", "loads"]
    seen = look(shop, *words, "--limit", 2)
    first = [{name: str(cell) for name, cell in row.items()} for row in ROWS] if is_text else ROWS
    assert seen["rows"] == first[:2]
    assert [(row["name"], row["kind"]) for row in seen["columns"]] == [
        ("id", "text" if is_text else "integer"),
        ("amount", "text"),
        ("at", "text"),
    ]
    assert (seen["row_count"], seen["counted"], "profile" in seen) == (9, "all", False)
    assert seen.get("keys") == ({"primary": ["id"], "unique": [], "indexes": [["at"]]} if table else None)
    assert ("declared" in seen["columns"][0]) == bool(table)
    profile = look(shop, *words, "--profile")["profile"]
    assert profile["amount"] == AMOUNT
    assert (profile["id"]["kind"], profile["id"]["least"], profile["id"]["greatest"]) == ("integer", 1, 9)
    assert (profile["at"]["kind"], profile["at"]["nulls"], profile["at"]["greatest"]) == ("date", 1, "2026-01-08")
    if table:
        assert "sales" in look(shop, place, "--in", "loads")["tables"]
        query = look(shop, place, "SELECT max(id) AS most FROM sales", "--in", "loads")
        assert (query["rows"], query["row_count"], "keys" in query) == ([{"most": 9}], 1, False)
        if kind != "sqlite":
            typed = "SELECT CAST('2026-01-02' AS date) AS day, CAST(1.50 AS decimal(9, 2)) AS price"
            seen = look(shop, place, typed, "--in", "loads", "--profile")
            assert seen["rows"] == [{"day": "2026-01-02", "price": "1.50"}]
            assert [(row["name"], row["kind"]) for row in seen["columns"]] == [("day", "date"), ("price", "decimal")]
            assert [seen["profile"][name]["kind"] for name in ("day", "price")] == ["date", "real"]
        near = look(shop, place, "sale", "--in", "loads", exit=2)
        assert (near["message"], near["hint"][:21]) == ("there is no table 'sale'", "did you mean 'sales'?")


#: What nobody may look at: the words, and a part of the message.
REFUSED: dict[str, tuple[str, str]] = {
    **{
        f"sqlite: {query}": (f"sqlite:///OUT/warehouse.db|{query}", message)
        for query, message in {
            "INSERT INTO prices VALUES ('b', 'eu', 1)": "not one query",
            "WITH x AS (SELECT 1) INSERT INTO prices SELECT 'b', 'eu', 1": "not authorized",
            "PRAGMA user_version = 5": "not one query",
            "SELECT * FROM pragma_table_info('prices')": "not authorized",
            "ATTACH 'OUT/made.db' AS made": "not one query",
            "VACUUM INTO 'OUT/made.db'": "not one query",
            "SELECT 1; DROP TABLE prices": "not one query",
            "SELECT load_extension('x')": "not authorized",
            "SELECT fts3_tokenizer('x')": "",
            "SELECT readfile('/etc/passwd')": "",
        }.items()
    },
    **{
        f"postgresql: {query}": (f"POSTGRES|{query}", message)
        for query, message in {
            "INSERT INTO looked VALUES (2)": "not one query",
            "WITH x AS (INSERT INTO looked VALUES (2) RETURNING id) SELECT * FROM x": "",
            "SELECT id INTO made FROM looked": "",
            "COPY looked TO '/tmp/made.csv'": "not one query",
            "SELECT 1; COMMIT; DROP TABLE looked": "not one query",
            "SELECT pg_read_file('/etc/passwd')": "pg_read_file in a query",
            "SELECT \"pg_read_file\"/**/('/etc/passwd')": "pg_read_file in a query",
            "SELECT U&\"pg_re\\0061d_file\"('/etc/passwd')": "U& in a query",
            "SELECT * FROM pg_ls_dir('/')": "pg_ls_dir in a query",
            'SELECT "Own"()': "Own in a query",
            'SELECT "own-1" ()': "own-1 in a query",
            "SELECT lo_import('/etc/passwd')": "lo_import in a query",
            "SELECT pg_terminate_backend(1)": "pg_terminate_backend in a query",
            "SELECT query_to_xml('SELECT 1', true, true, '')": "query_to_xml in a query",
            "SELECT set_config('transaction_read_only', 'off', false)": "set_config in a query",
        }.items()
    },
    **{
        f"duckdb: {query}": (f"duckdb:///OUT/looked.duckdb|{query}", message)
        for query, message in {
            "INSERT INTO looked VALUES (2)": "not one query",
            "COPY looked TO 'OUT/made.csv'": "not one query",
            "ATTACH 'OUT/made.duckdb'": "not one query",
            "SET enable_external_access = true": "not one query",
            "SELECT 1; COPY looked TO 'OUT/made.csv'": "not one query",
            "SELECT * FROM read_csv('/etc/passwd')": "disabled",
            "FROM 'OUT/open.csv'": "disabled",
            "FROM glob('/etc/*')": "disabled",
        }.items()
    },
    "the store": ("HOME/tau.db", "it belongs to taud"),
    "the store as a database": ("sqlite:///HOME/tau.db|runs", "it belongs to taud"),
    "the store by another scheme": ("sqlite+pysqlite:///HOME/../home/tau.db|runs", "it belongs to taud"),
    "the secrets": ("file://localhost/HOME/secrets/a.csv", "it belongs to taud"),
    "the secrets by another library": ("local:///HOME/secrets/a.csv", "it belongs to taud"),
    "a pattern in the home": ("HOME/s*/*.csv", "it belongs to taud"),
    "a pattern that leads into the home": ("HOM[E]/secrets/*.csv", "it belongs to taud"),
    "a link into the home": ("OUT/link.csv", "it belongs to taud"),
    "a folder that is a link into the home": ("OUT/folder|a.csv", "it belongs to taud"),
    "a database by way of the working directory": ("sqlite:////proc/self/cwd/../../tau.db|runs", "nobody may look"),
    "another by that way": ("duckdb:////proc/self/cwd/../../tau.duckdb|runs", "it belongs to taud"),
    "a database that is a link into the home": ("sqlite:///OUT/link.db|runs", "it belongs to taud"),
    "the working directory of the process": ("/proc/self/cwd/../../secrets/a.csv", "nobody may look"),
    "the environment of a process": ("OUT/environ.csv", "it tells of processes"),
    "what its folder has": ("/proc/self/e*|--in|loads", "it tells of processes"),
    "a name that is no path": ("file:///a%00.csv", "null"),
    "a secret alone": ("${API_TOKEN}|--in|loads", "is no path"),
    "a URL with an odd port": ("zip://a.csv::WEB/closed/a.zip#]", "Port"),
    "a link out of the data": ("HOME/data/loads/out.csv", "a link that leads out"),
    "a link out of the data, by a pattern": ("o*.csv|--in|loads", "a link that leads out"),
    "a closed connection": ("closed|prices", "[connections.closed] peek = false"),
    "its URL": ("sqlite:///OUT/closed.db|prices", "[connections.closed] peek = false"),
    "its URL by another way": ("sqlite:///OUT/closed/../folder2/closed.db|prices", "[connections.closed] peek = false"),
    "a closed folder": ("closed_folder|a.csv", "[connections.closed_folder] peek = false"),
    "a file in a closed folder": ("OUT/closed/a.csv", "[connections.closed_folder] peek = false"),
    "a pattern that leads there": ("OUT/c*/a.csv", "[connections.closed_folder] peek = false"),
    "a closed URL by its address": ("WEB/closed/a.json", "[connections.closed_web] peek = false"),
    "a redirect to it": ("WEB/to_closed", "[connections.closed_web] peek = false"),
    "the metadata service": ("http://169.254.169.254/latest.json", "metadata service"),
    "the metadata service as a number": ("http://2852039166/latest.json", "metadata service"),
    "the metadata service in IPv6": ("http://[fd00:ec2::254]/latest.json", "metadata service"),
    "the metadata service as IPv4 in IPv6": ("http://[::ffff:169.254.169.254]/latest.json", "metadata service"),
    "the metadata service by its name": ("http://metadata.google.internal/latest.json", "metadata service"),
    "a redirect to the metadata service": ("WEB/to_metadata", "metadata service"),
    "a database there": ("postgresql://u@169.254.169.254/db|t", "metadata service"),
    "a database's URL with another host": ("postgresql://u@localhost/db?host=127.0.0.2|t", "may lead elsewhere"),
    "a URL in a URL": ("zip://a.csv::WEB/closed/a.zip", "may lead elsewhere"),
    "a database's URL with two hosts": ("postgresql://u@localhost,127.0.0.2/db|t", "may lead elsewhere"),
}


@pytest.fixture(scope="module")
def traps(shop: Tau, web: Server) -> dict[str, str]:
    """Links, redirects and databases that lead where nobody may look; what stands for what in the table."""
    out, home = Path(shop.environ["OUTSIDE"]), shop.home
    (home / "secrets" / "a.csv").write_text("id\n1\n")
    for name, target in {
        out / "link.csv": home / "secrets" / "a.csv",
        out / "folder": home / "secrets",
        out / "folder2": out,
        out / "link.db": home / "tau.db",
        out / "environ.csv": Path("/proc/self/environ"),
        home / "data" / "loads" / "out.csv": out / "open.csv",
    }.items():
        name.parent.mkdir(exist_ok=True, parents=True)
        name.symlink_to(target)
    web.tell("/closed/a.json", ROWS)
    web.tell("/to_closed", (302, {"Location": "/closed/a.json"}, b""))
    web.tell("/to_metadata", (302, {"Location": "http://169.254.169.254/latest.json"}, b""))
    if importable("duckdb"):
        import duckdb

        with duckdb.connect(str(out / "looked.duckdb")) as db:
            db.execute("CREATE TABLE looked AS SELECT 1 AS id")
    return {"OUT": str(out), "HOME": str(home), "HOM[E]": str(home)[:-1] + "[e]", "WEB": web.url}


@pytest.mark.parametrize("case", REFUSED)
def test_what_nobody_may_look_at(
    case: str, shop: Tau, traps: dict[str, str], ctx: Context, request: pytest.FixtureRequest
) -> None:
    words, message = REFUSED[case]
    names = dict(traps)
    if "POSTGRES" in words:
        names["POSTGRES"] = request.getfixturevalue("postgres")
        ctx.sql("CREATE TABLE IF NOT EXISTS looked AS SELECT 1 AS id", connection=names["POSTGRES"])
        for name in ("Own", "own-1"):
            own = f"CREATE OR REPLACE FUNCTION \"{name}\"() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1'"
            ctx.sql(own, connection=names["POSTGRES"])
    if words.startswith("duckdb"):
        pytest.importorskip("duckdb_engine")
    before = {path: path.lstat().st_mtime_ns for path in Path(traps["OUT"]).rglob("*")}
    for name in sorted(names, key=len, reverse=True):
        words = words.replace(name, names[name])
    done = shop.command("peek", *words.split("|"))
    assert done.exit in (2, 4), done.out
    assert message in done.error["message"], done.error
    assert done.error["hint"]
    assert {path: path.lstat().st_mtime_ns for path in Path(traps["OUT"]).rglob("*")} == before
    if "POSTGRES" in names:
        assert ctx.extract(names["POSTGRES"], "looked") == [{"id": 1}]


def test_operators_look_at_connections_and_at_the_lineage_of_what_they_see(shop: Tau, traps: dict[str, str]) -> None:
    out = traps["OUT"]
    params = {"rows": ROWS, "targets": [[f"sqlite:///{out}/known.db", "sales"]]}
    assert shop("run", "loads", "--params", json.dumps(params))["status"] == "success"
    with sqlite3.connect(shop.home / "tau.db") as db:
        for place in (f"{out}/folder2/lake", "ftp://known.host/a.csv"):
            db.execute("INSERT OR IGNORE INTO lineage VALUES ('loads', 'reads', ?, '', '', 1, '')", (place,))
    db.close()
    Path(out, "lake").mkdir(exist_ok=True)
    Path(out, "lake", "a.csv").write_text("id\n1\n")
    prices = {"place": "warehouse", "resource": "prices"}
    raw = {"place": f"sqlite+pysqlite:///{out}/known.db", "resource": "sales"}
    lake = {"place": f"{out}/folder2/lake", "resource": "a.csv"}
    other = {"place": f"{out}/open.csv"}
    keys = {
        "reads": ("--scope", "read"),
        "operates": ("--scope", "operate"),
        "operates_loads": ("--scope", "operate", "--pipelines", "loads"),
        "operates_others": ("--scope", "operate", "--pipelines", "others"),
        "administers": ("--scope", "admin"),
    }
    allowed = {
        "reads": (),
        "operates": (prices, raw, lake),
        "operates_loads": (prices, raw, lake),
        "operates_others": (prices,),
        "administers": (prices, raw, lake),  # a namespace, not the daemon
    }
    for name, words in keys.items():
        key = key_for(shop, name, *words)
        answers = [ask(shop, key, "peek", params) for params in (prices, raw, lake, other)]
        assert [isinstance(answer, dict) for answer in answers] == [
            params in allowed[name] for params in (prices, raw, lake, other)
        ], (name, answers)
        assert {answer for answer in answers if isinstance(answer, str)} <= {"forbidden"}
    operator = key_for(shop, "operates")
    for resource in ("../open.csv", "%2e%2e/open.csv", "x/../../open.csv"):
        assert ask(shop, operator, "peek", lake | {"resource": resource}) == "forbidden"
    assert ask(shop, operator, "peek", raw | {"place": f"{raw['place']}?dbname=other"}) == "forbidden"
    assert ask(shop, operator, "peek", {"place": "ftp://127.0.0.1:1/@known.host/a.csv"}) == "forbidden"
    stranger = key_for(shop, "operates_others", "--pipelines", "others")
    assert ask(shop, stranger, "peek", {"place": "in/sales.csv", "in": "loads"}) == "not_found"


def test_the_data_of_a_pipeline_is_for_those_who_see_it(shop: Tau) -> None:
    folder = shop.home / "data" / "loads" / "in"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.csv").write_text("id\n1\n")
    path = str(folder / "mine.csv")
    assert look(shop, path)["rows"] == look(shop, "in/mine.csv", "--in", "loads")["rows"] == [{"id": "1"}]
    assert look(shop, "mine.csv", exit=3)["hint"].startswith("write the whole path")
    with sqlite3.connect(shop.home / "tau.db") as db:
        db.execute("INSERT OR IGNORE INTO lineage VALUES ('loads', 'reads', ?, '', '', 1, '')", (path,))
    db.close()
    for pattern, answer in {"loads": dict, "others": str}.items():
        key = key_for(shop, f"data_{pattern}", "--scope", "operate", "--pipelines", pattern)
        assert isinstance(ask(shop, key, "peek", {"place": path}), answer)


def test_no_secret_is_shown_or_left_behind(shop: Tau, web: Server) -> None:
    rows = [{"id": 1, "note": f"it is {CANARY} there", "api_key": "k-123", "deep": {"password": "p-456"}}]
    web.tell("/secret", rows)
    done = shop.command("peek", "secret_web", "--profile")
    assert web.asked[-1][0] == f"/secret?key={CANARY}"
    assert done.json["rows"] == [{"id": 1, "note": "it is *** there", "api_key": "***", "deep": "{'password': '***'}"}]
    assert done.json["place"] == f"{web.url}/secret"
    web.tell("/secret", (500, {}, CANARY.encode()))
    failed = shop.command("peek", "secret_web")
    raw = shop.command("peek", f"postgresql://me:{CANARY}@127.0.0.1:1/db", "t")
    assert (failed.exit, raw.exit) == (2, 2)
    for text in (done.out, done.err, failed.out, failed.err, raw.out, raw.err):
        assert not any(word in text for word in (CANARY, "k-123", "p-456"))
    for path in shop.home.rglob("*"):
        if path.is_file() and path.parent.name != "secrets":
            assert CANARY.encode() not in path.read_bytes(), path


def test_large_data_ends_in_bounded_size(shop: Tau, tmp_path: Path) -> None:
    size = (50 if THOROUGH else 8) << 20
    (tmp_path / "row.jsonl").write_text('{"id": 1, "text": "%s"}\n{"id": 2}\n' % ("x" * size))
    (tmp_path / "line.csv").write_text("id,text\n1," + "x" * (50 << 20))
    (tmp_path / "wide.json").write_text(json.dumps([{f"c{i}": "y" * 500 for i in range(1000)}] * 10))
    with sqlite3.connect(tmp_path / "many.db") as db:
        db.execute("CREATE TABLE many AS WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r LIMIT 1100000)"
                   " SELECT n FROM r")  # fmt: skip
    db.close()
    row = look(shop, tmp_path / "row.jsonl", "--profile")
    assert row["rows"][0]["text"] == "x" * 200 + f"… ({size:,} characters)"
    assert row["row_count"] == 2
    assert "field larger than field limit" in look(shop, tmp_path / "line.csv", exit=2)["message"]
    wide = look(shop, tmp_path / "wide.json", "--profile")
    assert (len(wide["rows"]), len(wide["columns"]), wide["cut"][:6]) == (1, 200, "to 200")
    for words, count in ((["many"], 1_000_000), (["SELECT n FROM many"], 100_000)):
        many = look(shop, f"sqlite:///{tmp_path}/many.db", *words, "--profile", "--limit", 10_000)
        assert (many["row_count"], many["counted"], many["profile"]["n"]["greatest"]) == (count, "at least", 10_000)
    for document in (row, wide, many):
        assert len(json.dumps(document)) < 300_000


def test_what_does_not_end_is_ended(home: Tau, tmp_path: Path) -> None:
    (home.home / "tau.toml").write_text("[daemon]\nstop_grace_s = 0.2\n")
    endless = "WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT max(n) FROM r"
    large = "SELECT hex(zeroblob(400000000)) AS text"
    many = f"{endless[:-20]}SELECT n, hex(zeroblob(50000)) AS text FROM r ORDER BY 2"
    sqlite3.connect(tmp_path / "empty.db").close()
    (tmp_path / "empty.db").touch()
    with (
        socket.create_server(("127.0.0.1", 0)) as hanging,
        served(home, code="tau.PEEK_S, tau.PEEK_BYTES = 1.5, 300 << 20"),
    ):
        dripping = threading.Thread(target=drip, args=(hanging,), daemon=True)
        dripping.start()
        port = hanging.getsockname()[1]
        began = time.monotonic()
        for words in (
            (f"http://127.0.0.1:{port}/hangs.json",),
            (f"http://127.0.0.1:{port}/drips.json",),
            (f"postgresql://u@127.0.0.1:{port}/db", "t"),
            (f"sqlite:///{tmp_path}/empty.db", endless),
            (f"sqlite:///{tmp_path}/empty.db", large),
            (f"sqlite:///{tmp_path}/empty.db", many),
        ):
            error = look(home, *words, exit=2)
            assert error["code"] == "too_much", (words, error)
            assert error["message"].startswith("it is too much for a look: "), words
            assert ("memory" in error["message"]) == (words[-1] in (large, many)), error
        assert time.monotonic() - began < PATIENCE_S
        assert home.call("status")["slots"]["used"] == 0
        assert not [path for path in (home.home / "runs").iterdir() if path.suffix == ".journal"]
        hanging.shutdown(socket.SHUT_RDWR)  # ends its accept()
        dripping.join()


def drip(server: socket.socket) -> None:
    """Takes connections; says nothing, or for `/drips` a byte now and then."""
    with contextlib.ExitStack() as peers, contextlib.suppress(OSError):
        while True:
            peer = peers.enter_context(server.accept()[0])
            if b"drips" in peer.recv(1000):
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
                with contextlib.suppress(OSError):
                    for _ in range(30):
                        peer.sendall(b" ")
                        time.sleep(0.1)


def test_a_person_sees_tables(shop: Tau) -> None:
    code, screen = on_terminal(shop, "peek", "warehouse", "prices", "--profile", columns=100)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen)
    assert code == 0
    assert re.search(r"columns +name +kind +declared\n +sku +text +TEXT\n", plain)
    assert re.search(r"rows +sku  region  price\n +a +eu +2.5\n", plain)
    assert re.search(r"profile +column +kind +nulls +distinct +least +greatest", plain)
    assert re.search(r"keys +primary sku, region", plain)


def test_a_prune_meanwhile_takes_nothing_from_a_look(shop: Tau, web: Server) -> None:
    asked, pruned = threading.Event(), threading.Event()

    def answer(path: str) -> Any:
        asked.set()
        pruned.wait(PATIENCE_S)
        return ROWS

    seen: list[Any] = []
    looking = threading.Thread(target=lambda: seen.append(look(shop, web.tell("/slow", answer))))
    looking.start()
    assert asked.wait(PATIENCE_S)
    shop("prune")
    pruned.set()
    looking.join()
    assert seen[0]["row_count"] == 9


def test_of_a_database_that_cannot_be_made_harmless_only_tables_are_shown(
    postgres: str, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx.sql("DROP TABLE IF EXISTS alone", connection=postgres)
    ctx.sql("CREATE TABLE alone (id INTEGER)", connection=postgres)
    monkeypatch.setattr(module, "LOOKING", {})
    with module.find_warehouse(postgres, ctx._around).connect("BEGIN") as house:
        assert "alone" in house.tables()
        with pytest.raises(module.Forbidden, match="of postgresql only whole tables are shown"):
            house.check_query("SELECT 1")
