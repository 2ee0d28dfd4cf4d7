"""Libraries that people use work in a warm run as in a cold one: compute, read, write, threads; one by one and ten at once.

`TAU_LIBRARIES=1 python -m pytest tests/test_libraries.py -rP` prints what was warm or cold, and why.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from typing import Any

import pytest
from shelf import Shelf, how, shelf

pytestmark = pytest.mark.libraries

#: How many runs at once.
TOGETHER = 10

#: What each pipeline begins with; `same` is to be the same in each run, `new` never.
FRAME = """
import hashlib, io, json, os, threading
from concurrent.futures import ThreadPoolExecutor
from tau import pipeline

def in_threads(function, values):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(function, values))

def digest(data):
    return hashlib.sha256(data).hexdigest()

def served(answer):
    # An HTTP server in a thread of the run; the address, and the function that ends it.
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.dumps(answer(self.path, self.rfile.read(length))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}", lambda: (server.shutdown(), server.server_close())

"""

#: Title → what must be there, and the text.
LIBRARIES: dict[str, tuple[str, str]] = {}
LIBRARIES["numpy"] = (
    "numpy",
    """
import numpy as np

@pipeline
def it(ctx):
    square = (np.arange(90_000, dtype=float).reshape(300, 300) * 7 % 11) + 50 * np.eye(300)
    solved = np.linalg.solve(square, np.arange(300.0))
    np.savez("kept" + ctx.run_id, square=square)
    kept = np.load("kept" + ctx.run_id + ".npz")["square"]
    products = in_threads(lambda n: float((square @ (square + n)).sum()), range(8))
    return {
        "same": [round(float(solved.sum()), 9), float(kept.sum()), products, float(np.fft.rfft(square[0]).real.sum().round(6))],
        "new": [float(np.random.rand()), float(np.random.default_rng().random()), np.random.bytes(8).hex()],
    }
""",
)
LIBRARIES["scipy"] = (
    "scipy",
    """
import numpy as np
import scipy.integrate, scipy.io, scipy.linalg, scipy.optimize, scipy.sparse.linalg, scipy.stats

@pipeline
def it(ctx):
    found = scipy.optimize.minimize(lambda x: ((x - 3) ** 2).sum(), np.zeros(4)).x.round(4).tolist()
    sparse = scipy.sparse.diags([1.0, 4.0, 1.0], [-1, 0, 1], shape=(500, 500), format="csc")
    solved = scipy.sparse.linalg.spsolve(sparse, np.ones(500)).sum().round(6)
    scipy.io.savemat(f"{ctx.run_id}.mat", {"a": np.eye(5)})
    area = in_threads(lambda n: round(scipy.integrate.quad(lambda x: x**n, 0, 1)[0], 9), range(6))
    inverse = scipy.linalg.inv(np.eye(200) * 2).sum()
    kept = scipy.io.loadmat(f"{ctx.run_id}.mat")["a"].sum()
    return {
        "same": [found, float(solved), area, float(inverse), float(kept), round(float(scipy.stats.norm.cdf(1)), 9)],
        "new": [float(scipy.stats.norm.rvs())],
    }
""",
)
LIBRARIES["pandas"] = (
    "pandas",
    """
import pandas as pd

@pipeline
def it(ctx):
    hours = pd.date_range("2026-01-01", periods=5000, freq="h", tz="Europe/Berlin")
    frame = pd.DataFrame({"at": hours, "shop": [f"s{n % 7}" for n in range(5000)], "n": range(5000)})
    frame.to_csv(f"{ctx.run_id}.csv", index=False)
    read = pd.read_csv(f"{ctx.run_id}.csv", parse_dates=["at"])
    sums = read.groupby("shop")["n"].sum()
    merged = read.merge(sums.rename("all"), left_on="shop", right_index=True)
    monthly = frame.set_index("at").resample("MS")["n"].mean().round(6).tolist()
    many = in_threads(lambda n: int(frame[frame["n"] % (n + 2) == 0]["n"].sum()), range(8))
    return {"same": [sums.to_dict(), int(merged["all"].sum()), monthly, many, str(read["at"].iloc[-1])]}
""",
)
LIBRARIES["polars"] = (
    "polars",
    """
import polars as pl

@pipeline
def it(ctx):
    frame = pl.DataFrame({"a": range(100_000), "b": [n % 7 for n in range(100_000)]})
    sums = frame.lazy().group_by("b").agg(pl.col("a").sum()).sort("b").collect()
    frame.write_parquet(f"{ctx.run_id}.parquet")
    scan = pl.scan_parquet(f"{ctx.run_id}.parquet").filter(pl.col("b") == 3).select(pl.len())
    frame.write_csv(f"{ctx.run_id}.csv")
    many = in_threads(lambda n: frame.filter(pl.col("a") % (n + 2) == 0)["a"].sum(), range(8))
    joined = frame.join(frame, on="a").height
    streamed = scan.collect(engine="streaming").item()
    return {"same": [sums["a"].to_list(), scan.collect().item(), streamed, pl.read_csv(f"{ctx.run_id}.csv").height, many, joined]}
""",
)
LIBRARIES["pyarrow"] = (
    "pyarrow",
    """
import pyarrow as pa, pyarrow.compute as pc, pyarrow.csv, pyarrow.dataset, pyarrow.parquet as pq

@pipeline
def it(ctx):
    table = pa.table({"a": pa.array(range(100_000)), "b": [f"s{n % 5}" for n in range(100_000)]})
    pq.write_table(table, f"{ctx.run_id}.parquet", row_group_size=10_000)
    read = pq.read_table(f"{ctx.run_id}.parquet", use_threads=True)
    found = pa.dataset.dataset(f"{ctx.run_id}.parquet").to_table(filter=pc.field("b") == "s3").num_rows
    pa.csv.write_csv(table, f"{ctx.run_id}.csv")
    sums = read.group_by("b").aggregate([("a", "sum")]).sort_by("b").to_pylist()
    many = in_threads(lambda n: pc.sum(pc.multiply(table["a"], n)).as_py(), range(8))
    return {"same": [found, sums, pa.csv.read_csv(f"{ctx.run_id}.csv").num_rows, many]}
""",
)
LIBRARIES["duckdb"] = (
    "duckdb",
    """
import duckdb

@pipeline
def it(ctx):
    with duckdb.connect(f"{ctx.run_id}.duckdb") as db:
        db.execute("CREATE TABLE t AS SELECT range AS a, range % 7 AS b FROM range(200000)")
        sums = db.execute("SELECT b, sum(a)::BIGINT FROM t GROUP BY b ORDER BY b").fetchall()
        db.execute(f"COPY t TO '{ctx.run_id}.parquet' (FORMAT parquet)")
        found = db.execute(f"SELECT count(*) FROM '{ctx.run_id}.parquet' WHERE b = 3").fetchone()
        many = in_threads(lambda n: db.cursor().execute("SELECT sum(a * ?)::BIGINT FROM t", [n]).fetchone()[0], range(8))
    with duckdb.connect(f"{ctx.run_id}.duckdb", read_only=True) as db:
        kept = db.execute("SELECT count(*) FROM t").fetchone()
    return {"same": [sums, found, many, kept, duckdb.sql("SELECT 42").fetchall()]}
""",
)
LIBRARIES["pyarrow and duckdb"] = (
    "pyarrow duckdb",
    """
import duckdb
import pyarrow as pa, pyarrow.parquet as pq

@pipeline
def it(ctx):
    table = pa.table({"a": pa.array(range(50_000)), "b": [n % 5 for n in range(50_000)]})
    db = duckdb.connect()
    db.register("given", table)
    sums = db.execute("SELECT b, sum(a)::BIGINT AS s FROM given GROUP BY b ORDER BY b").to_arrow_table()
    pq.write_table(sums, f"{ctx.run_id}.parquet")
    return {"same": [pq.read_table(f"{ctx.run_id}.parquet").to_pylist()]}
""",
)
LIBRARIES["SQLAlchemy and sqlite"] = (
    "sqlalchemy",
    """
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

class Base(DeclarativeBase):
    pass

class Shop(Base):
    __tablename__ = "shops"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

@pipeline
def it(ctx, url: str = ""):
    engine = sa.create_engine(f"sqlite:///{ctx.run_id}.db")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Shop(id=n, name=f"s{n % 7}") for n in range(500))
        session.commit()
        counts = session.execute(sa.select(Shop.name, sa.func.count()).group_by(Shop.name).order_by(Shop.name)).all()

    def count(n):
        with engine.connect() as connection:
            return connection.execute(sa.select(sa.func.sum(Shop.id)).where(Shop.id > n)).scalar()

    try:
        return {"same": [[list(row) for row in counts], in_threads(count, range(8))]}
    finally:
        engine.dispose()
""",
)
LIBRARIES["SQLAlchemy and psycopg"] = (
    "sqlalchemy psycopg",
    """
import psycopg
import sqlalchemy as sa

@pipeline
def it(ctx, url: str):
    engine = sa.create_engine(url)
    name = "t" + ctx.run_id.replace("-", "")
    table = sa.Table(name, sa.MetaData(), sa.Column("a", sa.Integer), sa.Column("b", sa.Text))
    table.create(engine)
    try:
        with engine.begin() as connection:
            connection.execute(sa.insert(table), [{"a": n, "b": f"s{n % 5}"} for n in range(500)])
        sums = sa.select(table.c.b, sa.func.sum(table.c.a)).group_by(table.c.b).order_by(table.c.b)

        def total(n):
            with engine.connect() as connection:
                return connection.execute(sa.select(sa.func.sum(table.c.a)).where(table.c.a > n)).scalar()

        with engine.connect() as connection:
            made = [list(row) for row in connection.execute(sums)]
        with psycopg.connect(url.replace("+psycopg", "")) as direct, direct.cursor() as cursor:
            with cursor.copy(f'COPY "{name}" TO STDOUT') as copy:
                size = sum(len(bytes(piece)) for piece in copy)
        return {"same": [made, in_threads(total, range(8)), size]}
    finally:
        table.drop(engine)
        engine.dispose()
""",
)
LIBRARIES["requests"] = (
    "requests",
    """
import requests

@pipeline
def it(ctx):
    address, end = served(lambda path, body: [path, body.decode()])
    try:
        with requests.Session() as session:
            got = [session.get(address + "/a", params={"n": n}, timeout=20).json() for n in range(3)]
            sent = session.post(address, json={"x": 1}, timeout=20).json()
        many = in_threads(lambda n: requests.get(f"{address}/{n}", timeout=20).json()[0], range(8))
        try:
            requests.get("https://127.0.0.1:9", timeout=5)
        except requests.ConnectionError as problem:
            refused = type(problem).__name__
        return {"same": [got, sent, many, refused]}
    finally:
        end()
""",
)
LIBRARIES["httpx"] = (
    "httpx",
    """
import asyncio
import httpx

async def gather(address):
    async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
        return [one.json()[0] for one in await asyncio.gather(*(client.get(f"{address}/{n}") for n in range(8)))]

@pipeline
async def it(ctx):
    address, end = served(lambda path, body: [path, body.decode()])
    try:
        with httpx.Client(timeout=20, trust_env=False) as client:
            got = await asyncio.to_thread(lambda: client.get(address + "/a", params={"n": 1}).json())
            sent = await asyncio.to_thread(lambda: client.post(address, json={"x": 1}).json())
        return {"same": [got, sent, await gather(address)]}
    finally:
        end()
""",
)
LIBRARIES["boto3"] = (
    "boto3",
    """
import boto3
from botocore.config import Config
from botocore.stub import Stubber

OPTIONS = {"region_name": "eu-central-1", "aws_access_key_id": "a", "aws_secret_access_key": "b"}

@pipeline
def it(ctx):
    client = boto3.session.Session().client("s3", **OPTIONS, config=Config(retries={"max_attempts": 1}))
    with Stubber(client) as stub:
        stub.add_response("list_buckets", {"Buckets": [{"Name": "one"}]})
        buckets = [one["Name"] for one in client.list_buckets()["Buckets"]]
    signed = in_threads(
        lambda n: client.generate_presigned_url("get_object", {"Bucket": "b", "Key": f"k{n}"}).partition("?")[0], range(8)
    )
    names = in_threads(lambda name: boto3.session.Session().client(name, **OPTIONS).meta.service_model.api_version, ["sqs"] * 2)
    return {"same": [buckets, signed, names]}
""",
)
LIBRARIES["pydantic"] = (
    "pydantic",
    """
import datetime
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

class Line(BaseModel):
    shop: str
    amount: float = Field(gt=0)
    at: datetime.datetime

class Bill(BaseModel):
    lines: list[Line]

@pipeline
def it(ctx):
    text = '{"lines": [{"shop": "a", "amount": "1.5", "at": "2026-01-01T00:00:00Z"}]}'
    bill = Bill.model_validate_json(text)
    try:
        Bill.model_validate({"lines": [{"shop": 1, "amount": -1, "at": "x"}]})
    except ValidationError as problem:
        errors = [error["type"] for error in problem.errors()]
    with open(f"{ctx.run_id}.json", "w") as file:
        file.write(bill.model_dump_json())
    with open(f"{ctx.run_id}.json") as file:
        again = Bill.model_validate_json(file.read())
    adapter = TypeAdapter(list[Line])
    many = in_threads(lambda n: len(adapter.validate_python(bill.lines * n)), range(8))
    return {"same": [bill.model_dump(mode="json"), errors, again == bill, many, sorted(Bill.model_json_schema()["$defs"])]}
""",
)
LIBRARIES["scikit-learn"] = (
    "sklearn",
    """
import joblib
import numpy as np
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

@pipeline
def it(ctx):
    data, target = make_classification(300, 8, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(data, target)
    joblib.dump(model, f"{ctx.run_id}.joblib")
    kept = joblib.load(f"{ctx.run_id}.joblib").score(data, target)
    forest = RandomForestClassifier(10, random_state=0, n_jobs=2).fit(data, target).predict(data).sum()
    scores = cross_val_score(LogisticRegression(), data, target, cv=3).round(6).tolist()
    many = in_threads(lambda n: float(LogisticRegression(C=n + 1).fit(data, target).score(data, target)), range(4))
    loose = RandomForestClassifier(1).fit(data, target).estimators_[0].random_state
    return {"same": [kept, int(forest), scores, many], "new": [int(loose)]}
""",
)
LIBRARIES["matplotlib"] = (
    "matplotlib",
    """
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

def draw(n):
    figure = Figure()
    axes = figure.subplots()
    axes.plot(range(10), [value * n for value in range(10)], label="a line")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return digest(buffer.getvalue())

@pipeline
def it(ctx):
    figure, axes = plt.subplots()
    axes.bar(["a", "b"], [1, 2])
    figure.savefig(f"{ctx.run_id}.pdf", metadata={"CreationDate": None})
    figure.savefig(f"{ctx.run_id}.png", metadata={"Software": None})
    plt.close(figure)
    with open(f"{ctx.run_id}.png", "rb") as file:
        return {"same": [digest(file.read()), os.path.getsize(f"{ctx.run_id}.pdf"), draw(1), plt.get_fignums(), matplotlib.get_backend()]}
""",
)
LIBRARIES["lxml"] = (
    "lxml",
    """
from lxml import etree, html

SHEET = etree.XML('''<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
<xsl:template match="/"><n><xsl:value-of select="count(//row)"/></n></xsl:template></xsl:stylesheet>''')

@pipeline
def it(ctx):
    tree = etree.ElementTree(etree.XML("<rows>" + "".join(f"<row n='{n}'>t{n}</row>" for n in range(500)) + "</rows>"))
    tree.write(f"{ctx.run_id}.xml", xml_declaration=True, encoding="utf-8")
    read = etree.parse(f"{ctx.run_id}.xml")
    turned = str(etree.XSLT(SHEET)(read))
    many = in_threads(lambda n: len(read.xpath(f"//row[@n > {n * 50}]")), range(8))
    try:
        etree.XML("<a>")
    except etree.XMLSyntaxError as problem:
        error = str(problem)
    page = html.fromstring("<p>one<br>two").text_content()
    return {"same": [turned, many, error, page, sum(1 for _ in etree.iterparse(f"{ctx.run_id}.xml", tag="row"))]}
""",
)
LIBRARIES["openpyxl"] = (
    "openpyxl",
    """
import datetime
import openpyxl
from openpyxl.styles import Font

def write(path, n):
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["a", "b"])
    for number in range(50):
        sheet.append([number * n, datetime.date(2026, 1, 1)])
    sheet["A1"].font = Font(bold=True)
    sheet["C1"] = "=SUM(A2:A51)"
    book.save(path)
    sheet = openpyxl.load_workbook(path, read_only=False).active
    return [sheet.max_row, sum(row[0] for row in sheet.iter_rows(min_row=2, max_col=1, values_only=True)), sheet["C1"].value]

@pipeline
def it(ctx):
    return {"same": [write(f"{ctx.run_id}.xlsx", 1), in_threads(lambda n: write(f"{ctx.run_id}.{n}.xlsx", n), range(4))]}
""",
)
LIBRARIES["cryptography"] = (
    "cryptography",
    """
import base64
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

def derive(n):
    return PBKDF2HMAC(hashes.SHA256(), 32, b"salt", 1000 + n).derive(b"word").hex()

@pipeline
def it(ctx):
    box = Fernet(base64.urlsafe_b64encode(b"k" * 32))
    token = box.encrypt(b"text")
    with open(ctx.run_id, "wb") as file:
        file.write(token)
    with open(ctx.run_id, "rb") as file:
        opened = box.decrypt(file.read()).decode()
    key = Ed25519PrivateKey.from_private_bytes(b"p" * 32)
    key.public_key().verify(key.sign(b"said"), b"said")
    sealed = AESGCM(b"k" * 16).encrypt(b"n" * 12, b"text", None).hex()
    return {
        "same": [opened, key.sign(b"said").hex(), sealed, in_threads(derive, range(8))],
        "new": [token.decode(), Fernet.generate_key().decode(), AESGCM.generate_key(128).hex()],
    }
""",
)
LIBRARIES["grpcio"] = (
    "grpc",
    """
import grpc

def echo(request, context):
    return b"heard " + request

def count(request, context):
    for number in range(int(request)):
        yield b"%d" % number

@pipeline
def it(ctx):
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("T", {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Count": grpc.unary_stream_rpc_method_handler(count),
    }),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
            one = channel.unary_unary("/T/Echo")
            said = one(b"this", timeout=30).decode()
            many = in_threads(lambda n: one(b"%d" % n, timeout=30).decode(), range(8))
            counted = [int(part) for part in channel.unary_stream("/T/Count")(b"20", timeout=30)]
        return {"same": [said, many, counted]}
    finally:
        server.stop(None).wait()
""",
)


@pytest.fixture(scope="module")
def stand() -> Iterator[Shelf]:
    """A daemon whose Python has the libraries."""
    with shelf("load_timeout_s = 120\nwarm_bytes = 4_000_000_000\n") as made:
        made.tau.environ["MPLCONFIGDIR"] = str(made.tau.work / "matplotlib")
        yield made.start()


def test_the_list_is_whole() -> None:
    wanted = "numpy scipy pandas polars pyarrow duckdb sqlalchemy psycopg requests httpx boto3 pydantic sklearn matplotlib lxml openpyxl cryptography grpc"
    assert {*wanted.split()} == {name for needed, _ in LIBRARIES.values() for name in needed.split()}


@pytest.mark.parametrize("title", LIBRARIES)
def test_a_library_works_in_a_warm_run_as_in_a_cold_one(
    stand: Shelf, title: str, request: pytest.FixtureRequest
) -> None:
    needed, text = LIBRARIES[title]
    for name in needed.split():
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    params: dict[str, Any] = {}
    if "psycopg" in needed:
        params["url"] = request.getfixturevalue("postgres").replace("postgresql://", "postgresql+psycopg://")
    name = title.replace(" ", "_")
    deploy(stand, name, text)
    cold = stand.run(name, **params)
    assert (cold["status"], how(cold)) == ("success", "cold"), cold["error"]
    state = stand.becomes("warm", "cold", name=name)
    print(json.dumps({"library": title, **state}))
    if state["state"] == "cold":  # whoever asks for it gets it nevertheless
        assert "thread" in state["why"]
        assert how(stand.run(name, **params)) == "cold"
        deploy(stand, name, text, "warm=True, ")
        assert how(stand.run(name, **params)) == "cold"
        stand.becomes("warm", name=name)
    runs = [stand.run(name, **params), stand.run(name, **params), *stand.wait(stand.begin(name, TOGETHER, **params))]
    assert [(run["status"], run["error"]) for run in runs] == [("success", None)] * len(runs)
    assert {how(run) for run in runs} == {"warm"}
    assert [run["result"]["same"] for run in runs] == [cold["result"]["same"]] * len(runs)
    for found in zip(*(run["result"].get("new", []) for run in [cold, *runs]), strict=True):
        assert len({*map(str, found)}) == len(found)


def deploy(stand: Shelf, name: str, text: str, options: str = "") -> None:
    """Deploys a pipeline of this name, in a file whose name is no library's."""
    decorated = (FRAME + text).replace("@pipeline", f"@pipeline(name={name!r}, {options}timeout=120)")
    stand.deploy(decorated, f"with_{name}.py")


def test_processes_of_a_library_start_from_a_warm_run(stand: Shelf) -> None:
    """Joblib's are new interpreters that import what the run has pickled."""
    pytest.importorskip("joblib")
    deploy(stand, "joined", """
import joblib
from joblib.externals.loky import get_reusable_executor

@pipeline
def it(ctx):
    try:
        return joblib.Parallel(n_jobs=2)(joblib.delayed(pow)(n, 2) for n in range(9))
    finally:
        get_reusable_executor().shutdown(wait=True)
""")  # fmt: skip
    runs = [stand.run("joined")]
    stand.becomes("warm", name="joined")
    runs.append(stand.run("joined"))
    assert [(how(run), run["result"]) for run in runs] == [
        ("cold", [n * n for n in range(9)]),
        ("warm", [n * n for n in range(9)]),
    ]
