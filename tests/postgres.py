"""A PostgreSQL of the tests' own, where its binaries are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import PATIENCE_S, Context, eventually, is_running


def binaries() -> Path | None:
    """Where initdb and postgres are."""
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.environ.get("PATH", "").split(":"))]
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


@contextmanager
def running() -> Iterator[str]:
    """The URL of a database that is gone afterwards; skips the test where there can be none."""
    pytest.importorskip("sqlalchemy")
    if not any(map(importable, ("psycopg", "psycopg2", "pg8000"))):
        pytest.skip("no driver for PostgreSQL is installed")
    folder = binaries()
    if folder is None:
        pytest.skip("PostgreSQL is not installed")
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    home = Path(tempfile.mkdtemp(prefix="tau-pg-", dir="/tmp"))
    if os.getuid() == 0:
        shutil.chown(home, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = home / "cluster"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": home}
    as_user = {"user": user, "group": pwd.getpwnam(user).pw_gid} if os.getuid() == 0 else {}
    subprocess.run(
        [folder / "initdb", "-D", cluster, "-U", "tau", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-instructions"],
        check=True,
        **quiet,
        **as_user,
    )  # type: ignore[call-overload]
    options = [
        "-p",
        str(port),
        "-c",
        "listen_addresses=127.0.0.1",
        "-c",
        f"unix_socket_directories={home}",
        "-c",
        "fsync=off",
    ]
    server = subprocess.Popen([folder / "postgres", "-D", cluster, *options], **quiet, **as_user)  # type: ignore[call-overload]
    try:
        eventually(lambda: answers(port))
        eventually(
            lambda: subprocess.run([folder / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]).returncode == 0
        )
        yield f"postgresql://tau:pw-of-postgres@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(2)
        server.wait(PATIENCE_S)
        assert not is_running(server.pid)
        shutil.rmtree(home)


def importable(name: str) -> bool:
    """Whether a module is installed."""
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def answers(port: int) -> bool:
    """Whether the server takes connections: it answers a request for encryption with one letter."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")
            return connection.recv(1) in (b"N", b"S")
    except OSError:
        return False


def empty_house(database: str, request: pytest.FixtureRequest, ctx: Context) -> str:
    """The URL of a database of a kind, in which there is no table."""
    if database != "postgresql":
        if database == "duckdb":
            pytest.importorskip("duckdb_engine")
        return f"{database}:///house.db"
    url: str = request.getfixturevalue("postgres")
    for statement in ("DROP SCHEMA public CASCADE", "CREATE SCHEMA public"):
        ctx.sql(statement, connection=url)
    return url
